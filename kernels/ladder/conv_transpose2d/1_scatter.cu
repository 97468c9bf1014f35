// An input scatters.
//
// A transposed convolution spreads each input over the outputs that its kernel covers. Written down as it is said, a
// thread owns an input, and adds its products to the outputs. Outputs of several inputs overlap, so the additions are
// atomic.
//
// What it pays: an atomic for each product. And the order of a sum is that in which the threads come by, so the last
// bits of the result differ from run to run: right, and still a lottery. The order check of `tinyfcn sanitize` shows
// it.

extern "C" __global__ void conv_transpose2d_bias(const float* __restrict__ bias, float* __restrict__ y, int N, int O,
                                                 int plane) {
    int element = thread_number();  // 0 .. N*O*plane - 1, and the last block's surplus
    if (element < N * O * plane) y[element] = bias[element / plane % O];
}

extern "C" __global__ void conv_transpose2d_scatter(const float* __restrict__ x, const float* __restrict__ weight,
                                                    float* y, int N, int C, int H, int W, int O, int OH, int OW, int KH,
                                                    int KW, int stride, int padding) {
    int element = thread_number();  // 0 .. N*C*H*W - 1, and the last block's surplus
    if (element >= N * C * H * W) return;
    int j = element % W, i = element / W % H, c = element / (W * H) % C, n = element / (W * H * C);

    for (int o = 0; o < O; ++o)
        for (int u = 0; u < KH; ++u)
            for (int v = 0; v < KW; ++v) {
                int h = i * stride + u - padding, w = j * stride + v - padding;
                if (h < 0 || h >= OH || w < 0 || w >= OW) continue;
                atomicAdd(y + ((n * O + o) * OH + h) * OW + w, x[element] * weight[((c * O + o) * KH + u) * KW + v]);
            }
}
