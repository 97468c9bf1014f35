// y[n,c,i,j] = max over u,v < size of x[n, c, i*stride + u, j*stride + v];  max_index[n,c,i,j] = h*W + w of that pixel

extern "C" __global__ void max_pool2d(const float* x, float* y, int* max_index, int planes, int H, int W, int OH,
                                      int OW, int size, int stride) {
    int element = blockIdx.x * blockDim.x + threadIdx.x;
    if (element >= planes * OH * OW) return;
    int j = element % OW, i = element / OW % OH;
    const float* plane = x + element / (OW * OH) * H * W;  // the channel's H*W pixels

    // hole: about 10 lines
    int best = i * stride * W + j * stride;
    float largest = plane[best];
    for (int u = 0; u < size; ++u)
        for (int v = 0; v < size; ++v) {
            int candidate = (i * stride + u) * W + j * stride + v;
            if (plane[candidate] > largest || isnan(plane[candidate])) {
                largest = plane[candidate];
                best = candidate;
            }
        }
    // end of hole
    y[element] = largest;
    max_index[element] = best;
}
