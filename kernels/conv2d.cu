// Two-dimensional convolution (cross-correlation, as every deep-learning library has it), forward and backward.
//
//   y[n,o,i,j] = bias[o] + sum over c,u,v of x[n, c, i*stride + u - padding, j*stride + v - padding] * weight[o,c,u,v]
//   OH = (H + 2*padding - KH) / stride + 1, OW likewise; x counts as 0 outside the image.
//
//   array          shape          forward   backward
//   x              (N,C,H,W)      in        in   (weight)
//   weight         (O,C,KH,KW)    in        in   (input)
//   bias           (O)            in
//   y              (N,O,OH,OW)    out
//   dout           (N,O,OH,OW)              in
//   dx             (N,C,H,W)                out  (input)
//   dweight        (O,C,KH,KW)              out  (weight)
//   dbias          (O)                      out  (bias)
//
//   kernel                          grid                  block   global reads a thread     writes
//   conv2d_forward_naive            ceil(N*O*OH*OW/256)   256     2*C*KH*KW + 1             1
//   conv2d_backward_input_naive     ceil(N*C*H*W/256)     256     2*O*KH*KW / stride^2      1
//   conv2d_backward_weight_naive    O*C*KH*KW             64      2*N*OH*OW / 64            1 a block
//   conv2d_backward_bias_naive      O                     64      N*OH*OW / 64              1 a block
//
// One row, kernel 3, stride 1, padding 1. In the forward pass an output asks which inputs its window covers; in the
// backward pass an input asks which outputs it went into, and through which weight. Both only read what other kernels
// wrote: there are no atomics and no races.
//
//   x         .    x0   x1   x2   x3   .        y1  = w0 x0 + w1 x1 + w2 x2
//                    \   |   /                   dx1 = w2 d0 + w1 d1 + w0 d2      (the weights in reverse: the gradient
//   y, dout        d0   d1   d2   d3            dw0 = d1 x0 + d2 x1 + d3 x2       of a convolution is a transposed one)
//
// Read next: conv_transpose2d.cu, its backward pass as a layer; then the rungs of ladder/conv2d, up to fast_conv.cu.

extern "C" __global__ void conv2d_forward_naive(const float* __restrict__ x, const float* __restrict__ weight,
                                                const float* __restrict__ bias, float* __restrict__ y, int N, int C,
                                                int H, int W, int O, int KH, int KW, int OH, int OW, int stride,
                                                int padding) {
    int element = thread_number();  // 0 .. N*O*OH*OW - 1, and the last block's surplus
    if (element >= N * O * OH * OW) return;
    int j = element % OW;  // 0 .. OW - 1
    int i = element / OW % OH;  // 0 .. OH - 1
    int o = element / (OW * OH) % O;  // 0 .. O - 1
    int n = element / (OW * OH * O);  // 0 .. N - 1

    float sum = bias[o];
    for (int c = 0; c < C; ++c)
        for (int u = 0; u < KH; ++u)
            for (int v = 0; v < KW; ++v) {
                int h = i * stride + u - padding;  // -padding .. H - 1 + padding
                int w = j * stride + v - padding;
                if (h < 0 || h >= H || w < 0 || w >= W) continue;
                sum += x[((n * C + c) * H + h) * W + w] * weight[((o * C + c) * KH + u) * KW + v];
            }
    y[element] = sum;
}

extern "C" __global__ void conv2d_backward_input_naive(const float* __restrict__ dout, const float* __restrict__ weight,
                                                       float* __restrict__ dx, int N, int C, int H, int W, int O,
                                                       int KH, int KW, int OH, int OW, int stride, int padding) {
    int element = thread_number();  // 0 .. N*C*H*W - 1, and the last block's surplus
    if (element >= N * C * H * W) return;
    int w = element % W;  // 0 .. W - 1
    int h = element / W % H;  // 0 .. H - 1
    int c = element / (W * H) % C;  // 0 .. C - 1
    int n = element / (W * H * C);  // 0 .. N - 1

    float sum = 0.0f;
    for (int o = 0; o < O; ++o)
        for (int u = 0; u < KH; ++u)
            for (int v = 0; v < KW; ++v) {
                int row = h + padding - u;  // i * stride, if output row i met this pixel through weight row u
                int column = w + padding - v;
                if (row < 0 || row % stride != 0 || column < 0 || column % stride != 0) continue;
                int i = row / stride;
                int j = column / stride;
                if (i >= OH || j >= OW) continue;
                sum += dout[((n * O + o) * OH + i) * OW + j] * weight[((o * C + c) * KH + u) * KW + v];
            }
    dx[element] = sum;
}

extern "C" __global__ void conv2d_backward_weight_naive(const float* __restrict__ dout, const float* __restrict__ x,
                                                        float* __restrict__ dweight, int N, int C, int H, int W, int O,
                                                        int KH, int KW, int OH, int OW, int stride, int padding) {
    int v = blockIdx.x % KW;  // the block's number, 0 .. O*C*KH*KW - 1, is the weight's
    int u = blockIdx.x / KW % KH;  // 0 .. KH - 1
    int c = blockIdx.x / (KW * KH) % C;  // 0 .. C - 1
    int o = blockIdx.x / (KW * KH * C);  // 0 .. O - 1

    float sum = 0.0f;
    for (int position = threadIdx.x; position < N * OH * OW; position += SUM_THREADS) {
        int j = position % OW;  // 0 .. OW - 1
        int i = position / OW % OH;  // 0 .. OH - 1
        int n = position / (OW * OH);  // 0 .. N - 1
        int h = i * stride + u - padding;  // -padding .. H - 1 + padding
        int w = j * stride + v - padding;
        if (h < 0 || h >= H || w < 0 || w >= W) continue;
        sum += dout[((n * O + o) * OH + i) * OW + j] * x[((n * C + c) * H + h) * W + w];
    }
    float total = block_sum(sum);
    if (threadIdx.x == 0) dweight[blockIdx.x] = total;
}

extern "C" __global__ void conv2d_backward_bias_naive(const float* __restrict__ dout, float* __restrict__ dbias, int N,
                                                      int O, int OH, int OW) {
    int o = blockIdx.x;  // 0 .. O - 1
    float sum = 0.0f;
    for (int position = threadIdx.x; position < N * OH * OW; position += SUM_THREADS) {
        int n = position / (OH * OW);  // 0 .. N - 1
        sum += dout[(n * O + o) * OH * OW + position % (OH * OW)];
    }
    float total = block_sum(sum);
    if (threadIdx.x == 0) dbias[o] = total;
}
