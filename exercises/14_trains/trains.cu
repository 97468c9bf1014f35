// dweight[o,c,u,v] = sum over n,i,j of dout[n,o,i,j] * x[n, c, i*stride + u - padding, j*stride + v - padding]

constexpr int SUMS = 64;  // threads of a block; a block owns a weight

extern "C" __global__ void conv2d_backward_weight_naive(const float* dout, const float* x, float* dweight, int N, int C,
                                                        int H, int W, int O, int KH, int KW, int OH, int OW, int stride,
                                                        int padding) {
    __shared__ float sums[SUMS];
    int v = blockIdx.x % KW, u = blockIdx.x / KW % KH, c = blockIdx.x / (KW * KH) % C, o = blockIdx.x / (KW * KH * C);

    float sum = 0.0f;
    for (int position = threadIdx.x; position < N * OH * OW; position += SUMS) {  // each thread every 64th output
        // hole: about 5 lines
        int j = position % OW, i = position / OW % OH, n = position / (OW * OH);
        int h = i * stride + u - padding;
        int w = j * stride + v - padding;
        if (h < 0 || h >= H || w < 0 || w >= W) continue;
        sum += dout[((n * O + o) * OH + i) * OW + j] * x[((n * C + c) * H + h) * W + w];
        // end of hole
    }
    sums[threadIdx.x] = sum;
    __syncthreads();  // until all threads have written their sum
    if (threadIdx.x > 0) return;
    float total = 0.0f;
    for (int k = 0; k < SUMS; ++k) total += sums[k];
    dweight[blockIdx.x] = total;
}
