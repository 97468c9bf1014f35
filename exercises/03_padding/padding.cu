// y[n,o,i,j] = bias[o] + sum over c,u,v of x[n, c, i*stride + u - padding, j*stride + v - padding] * weight[o,c,u,v]

extern "C" __global__ void conv2d_forward_naive(const float* x, const float* weight, const float* bias, float* y, int N,
                                                int C, int H, int W, int O, int KH, int KW, int OH, int OW, int stride,
                                                int padding) {
    int element = blockIdx.x * blockDim.x + threadIdx.x;
    if (element >= N * O * OH * OW) return;
    int j = element % OW, i = element / OW % OH, o = element / (OW * OH) % O, n = element / (OW * OH * O);

    float sum = bias[o];
    for (int c = 0; c < C; ++c)
        for (int u = 0; u < KH; ++u)
            for (int v = 0; v < KW; ++v) {
                // hole: about 3 lines
                int h = i * stride + u - padding;
                int w = j * stride + v - padding;
                if (h < 0 || h >= H || w < 0 || w >= W) continue;
                // end of hole
                sum += x[((n * C + c) * H + h) * W + w] * weight[((o * C + c) * KH + u) * KW + v];
            }
    y[element] = sum;
}
