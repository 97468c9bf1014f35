// All column phases of an input in one thread.
//
// In the rung before, neighbouring outputs of different phases load the same inputs, and a warp's lanes differ in the
// weights that they want: those of even columns want one half, those of odd columns the other.
//
// Here a thread computes the STRIDE neighbouring outputs that lie over one input column, one of each phase. It loads an
// input once for all of them, and all lanes of a warp want the same weights.

template <int KH, int KW, int STRIDE>
__global__ void conv_transpose2d_phases_per_thread(const float* __restrict__ x, const float* __restrict__ weight,
                                                   const float* __restrict__ bias, float* __restrict__ y, int N, int C,
                                                   int H, int W, int O, int OH, int OW, int padding) {
    int columns = (OW - 1 + padding) / STRIDE + 1;  // of inputs over which outputs lie, some of them outside the image
    int element = thread_number();  // 0 .. N*O*OH*columns - 1, and the last block's surplus
    if (element >= N * O * OH * columns) return;
    int column = element % columns, h = element / columns % OH;
    int o = element / (columns * OH) % O, n = element / (columns * OH * O);
    int phase_u = (h + padding) % STRIDE, last_i = (h + padding) / STRIDE;

    float sums[STRIDE] = {};
    for (int c = 0; c < C; ++c)
#pragma unroll
        for (int a = 0; a < (KH + STRIDE - 1) / STRIDE; ++a)
#pragma unroll
            for (int b = 0; b < (KW + STRIDE - 1) / STRIDE; ++b) {
                int u = phase_u + a * STRIDE, i = last_i - a, j = column - b;
                if (u >= KH || i < 0 || i >= H || j < 0 || j >= W) continue;
                float pixel = x[((n * C + c) * H + i) * W + j];
#pragma unroll
                for (int phase = 0; phase < STRIDE; ++phase)
                    if (phase + b * STRIDE < KW)
                        sums[phase] += pixel * weight[((c * O + o) * KH + u) * KW + phase + b * STRIDE];
            }
#pragma unroll
    for (int phase = 0; phase < STRIDE; ++phase) {
        int w = column * STRIDE + phase - padding;
        if (w >= 0 && w < OW) y[((n * O + o) * OH + h) * OW + w] = sums[phase] + bias[o];
    }
}
