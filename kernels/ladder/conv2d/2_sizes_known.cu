// Sizes that the compiler knows.
//
// The rung before spends most of its instructions on addresses: the compiler knows neither the size of the kernel nor
// the stride, so it cannot unroll the loops, and computes each index anew.
//
// Here they are template parameters. The loops over u and v become a list of products whose offsets are constants. The
// requests to memory are the same. Count the instructions to see the difference.

template <int KH, int KW, int STRIDE>
__global__ void conv2d_sizes_known(const float* __restrict__ x, const float* __restrict__ weight,
                                   const float* __restrict__ bias, float* __restrict__ y, int N, int C, int H, int W,
                                   int O, int OH, int OW, int padding) {
    int element = thread_number();  // 0 .. N*O*OH*OW - 1, and the last block's surplus
    if (element >= N * O * OH * OW) return;
    int j = element % OW, i = element / OW % OH, o = element / (OW * OH) % O, n = element / (OW * OH * O);

    float sum = bias[o];
    for (int c = 0; c < C; ++c) {
        const float* plane = x + (n * C + c) * H * W;
        const float* kernel = weight + (o * C + c) * KH * KW;
#pragma unroll
        for (int u = 0; u < KH; ++u)
#pragma unroll
            for (int v = 0; v < KW; ++v) {
                int h = i * STRIDE + u - padding, w = j * STRIDE + v - padding;
                if (h < 0 || h >= H || w < 0 || w >= W) continue;
                sum += plane[h * W + w] * kernel[u * KW + v];
            }
    }
    y[element] = sum;
}
