// y[n,o,h,w] = bias[o] + sum over c,u,v of x[n,c,i,j] * weight[c,o,u,v]   where i*stride + u - padding = h
//                                                                        and   j*stride + v - padding = w

extern "C" __global__ void conv_transpose2d(const float* x, const float* weight, const float* bias, float* y, int N,
                                            int C, int H, int W, int O, int KH, int KW, int OH, int OW, int stride,
                                            int padding) {
    int element = blockIdx.x * blockDim.x + threadIdx.x;  // of y
    if (element >= N * O * OH * OW) return;
    int w = element % OW, h = element / OW % OH, o = element / (OW * OH) % O, n = element / (OW * OH * O);

    float sum = bias[o];
    for (int c = 0; c < C; ++c)
        // hole: about 6 lines
        for (int u = (h + padding) % stride; u < KH; u += stride)
            for (int v = (w + padding) % stride; v < KW; v += stride) {
                int i = (h + padding - u) / stride, j = (w + padding - v) / stride;
                if (i < 0 || i >= H || j < 0 || j >= W) continue;
                sum += x[((n * C + c) * H + i) * W + j] * weight[((c * O + o) * KH + u) * KW + v];
            }
        // end of hole
    y[element] = sum;
}
