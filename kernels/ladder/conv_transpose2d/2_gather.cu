// An output gathers.
//
// The rung before adds to each output from many threads, by atomics whose order is nobody's choice.
//
// Here a thread owns an output, and asks each weight of the kernel which input it would bring. No atomics, one order,
// the same bits in each run. But at stride 2 only every fourth weight has an input for an output: the loop visits
// stride^2 weights for each one that it uses.

extern "C" __global__ void conv_transpose2d_gather(const float* __restrict__ x, const float* __restrict__ weight,
                                                   const float* __restrict__ bias, float* __restrict__ y, int N, int C,
                                                   int H, int W, int O, int OH, int OW, int KH, int KW, int stride,
                                                   int padding) {
    int element = thread_number();  // 0 .. N*O*OH*OW - 1, and the last block's surplus
    if (element >= N * O * OH * OW) return;
    int w = element % OW, h = element / OW % OH, o = element / (OW * OH) % O, n = element / (OW * OH * O);

    float sum = bias[o];
    for (int c = 0; c < C; ++c)
        for (int u = 0; u < KH; ++u)
            for (int v = 0; v < KW; ++v) {
                int row = h + padding - u, column = w + padding - v;  // stride times the input's
                if (row < 0 || row % stride != 0 || column < 0 || column % stride != 0) continue;
                int i = row / stride, j = column / stride;
                if (i >= H || j >= W) continue;
                sum += x[((n * C + c) * H + i) * W + j] * weight[((c * O + o) * KH + u) * KW + v];
            }
    y[element] = sum;
}
