// Several output channels a thread.
//
// The rung before loads each pixel again for every output channel: a product costs two loads, one of a pixel and one of
// a weight.
//
// Here a thread computes one pixel of four output channels. A pixel that it has loaded serves four products, so a
// product costs one load of a weight and a quarter of a load of a pixel.

constexpr int CHANNELS = 4;  // of a thread

template <int KH, int KW, int STRIDE>
__global__ void conv2d_channels_per_thread(const float* __restrict__ x, const float* __restrict__ weight,
                                           const float* __restrict__ bias, float* __restrict__ y, int N, int C, int H,
                                           int W, int O, int OH, int OW, int padding) {
    int groups = (O + CHANNELS - 1) / CHANNELS;
    int element = thread_number();  // 0 .. N*groups*OH*OW - 1, and the last block's surplus
    if (element >= N * groups * OH * OW) return;
    int j = element % OW, i = element / OW % OH, n = element / (OW * OH * groups);
    int first = element / (OW * OH) % groups * CHANNELS;  // of the thread's output channels

    float sums[CHANNELS] = {};
    for (int c = 0; c < C; ++c)
#pragma unroll
        for (int u = 0; u < KH; ++u)
#pragma unroll
            for (int v = 0; v < KW; ++v) {
                int h = i * STRIDE + u - padding, w = j * STRIDE + v - padding;
                if (h < 0 || h >= H || w < 0 || w >= W) continue;
                float pixel = x[((n * C + c) * H + h) * W + w];
#pragma unroll
                for (int k = 0; k < CHANNELS; ++k) {
                    int o = min(first + k, O - 1);  // surplus channels repeat the last one
                    sums[k] += pixel * weight[((o * C + c) * KH + u) * KW + v];
                }
            }
#pragma unroll
    for (int k = 0; k < CHANNELS; ++k)
        if (first + k < O) y[((n * O + first + k) * OH + i) * OW + j] = sums[k] + bias[first + k];
}
