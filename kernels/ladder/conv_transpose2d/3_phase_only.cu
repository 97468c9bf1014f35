// Only the weights of the output's phase.
//
// The rung before visits every weight, and finds by a remainder that most have no input for the output.
//
// The weights that have one are known: those whose row is (h + padding) modulo the stride, and every stride-th one
// after it; likewise for columns. The remainder is taken once, before the loop, which now visits only what it uses.
// Sizes are template parameters, as in rung 2 of conv2d.

template <int KH, int KW, int STRIDE>
__global__ void conv_transpose2d_phase_only(const float* __restrict__ x, const float* __restrict__ weight,
                                            const float* __restrict__ bias, float* __restrict__ y, int N, int C, int H,
                                            int W, int O, int OH, int OW, int padding) {
    int element = thread_number();  // 0 .. N*O*OH*OW - 1, and the last block's surplus
    if (element >= N * O * OH * OW) return;
    int w = element % OW, h = element / OW % OH, o = element / (OW * OH) % O, n = element / (OW * OH * O);
    int phase_u = (h + padding) % STRIDE, last_i = (h + padding) / STRIDE;  // the input row of the phase's first weight
    int phase_v = (w + padding) % STRIDE, last_j = (w + padding) / STRIDE;

    float sum = bias[o];
    for (int c = 0; c < C; ++c)
#pragma unroll
        for (int a = 0; a < (KH + STRIDE - 1) / STRIDE; ++a)
#pragma unroll
            for (int b = 0; b < (KW + STRIDE - 1) / STRIDE; ++b) {
                int u = phase_u + a * STRIDE, v = phase_v + b * STRIDE, i = last_i - a, j = last_j - b;
                if (u >= KH || v >= KW || i < 0 || i >= H || j < 0 || j >= W) continue;
                sum += x[((n * C + c) * H + i) * W + j] * weight[((c * O + o) * KH + u) * KW + v];
            }
    y[element] = sum;
}
