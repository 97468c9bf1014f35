// A thread an output.
//
// Each output has one owner, which adds up all of its products. No two threads write one number, so nothing can race.
// Neighbouring threads own neighbouring pixels, so a warp reads whole sectors.
//
// What it pays: two loads for each product, and some ten instructions that find the addresses and ask whether the pixel
// lies within the image.

extern "C" __global__ void conv2d_output_per_thread(const float* __restrict__ x, const float* __restrict__ weight,
                                                    const float* __restrict__ bias, float* __restrict__ y, int N, int C,
                                                    int H, int W, int O, int OH, int OW, int KH, int KW, int stride,
                                                    int padding) {
    int element = thread_number();  // 0 .. N*O*OH*OW - 1, and the last block's surplus
    if (element >= N * O * OH * OW) return;
    int j = element % OW, i = element / OW % OH, o = element / (OW * OH) % O, n = element / (OW * OH * O);

    float sum = bias[o];
    for (int c = 0; c < C; ++c)
        for (int u = 0; u < KH; ++u)
            for (int v = 0; v < KW; ++v) {
                int h = i * stride + u - padding, w = j * stride + v - padding;
                if (h < 0 || h >= H || w < 0 || w >= W) continue;
                sum += x[((n * C + c) * H + h) * W + w] * weight[((o * C + c) * KH + u) * KW + v];
            }
    y[element] = sum;
}
