// Transposed convolution ("deconvolution"), forward and backward: how the FCN grows its small map to the image's size.
//
//   y[n,o,h,w] = bias[o] + sum over c,u,v of x[n,c,i,j] * weight[c,o,u,v]   where i*stride + u - padding = h
//                                                                           and   j*stride + v - padding = w
//   OH = (H - 1)*stride + KH - 2*padding, OW likewise.
//
//   array          shape          forward   backward
//   x              (N,C,H,W)      in        in   (weight)
//   weight         (C,O,KH,KW)    in        in   (input)
//   bias           (O)            in
//   y              (N,O,OH,OW)    out
//   dout           (N,O,OH,OW)              in
//   dx             (N,C,H,W)                out  (input)
//   dweight        (C,O,KH,KW)              out  (weight)
//
//   kernel                                    grid                  block   global reads a thread          writes
//   conv_transpose2d_forward_naive            ceil(N*O*OH*OW/256)   256     2*C*KH*KW / stride^2 + 1       1
//   conv_transpose2d_backward_input_naive     ceil(N*C*H*W/256)     256     2*O*KH*KW                      1
//   conv_transpose2d_backward_weight_naive    C*O*KH*KW             64      2*N*H*W / 64                   1 a block
//
// conv2d_backward_bias_naive computes the gradient of the bias: both operations add a bias to each output channel.
//
// One row, kernel 4, stride 2. Each input multiplies the whole kernel and adds the product to the output, 2 further to
// the right than its neighbour. If threads owned inputs, neighbours would add to one output at once. So a thread owns
// an output and gathers the inputs that reach it.
//
//   x0 *  w0 w1 w2 w3                      y0 = x0 w0     y2 = x0 w2 + x1 w0     y4 = x1 w2 + x2 w0
//   x1 *        w0 w1 w2 w3                y1 = x0 w1     y3 = x0 w3 + x1 w1     y5 = x1 w3 + x2 w1
//   x2 *              w0 w1 w2 w3          Even outputs meet only w0 and w2, odd ones only w1 and w3: `stride` phases.
//
// The gradient of x is a convolution of dout. In tinyfcn/networks/skip.py two transposed convolutions bring 14x19 back
// to 64x84.
//
// Read next: gather.cu, then fast_conv.cu, the fast forms of both convolutions; or first softmax_cross_entropy.cu.

extern "C" __global__ void conv_transpose2d_forward_naive(const float* __restrict__ x, const float* __restrict__ weight,
                                                          const float* __restrict__ bias, float* __restrict__ y, int N,
                                                          int C, int H, int W, int O, int KH, int KW, int OH, int OW,
                                                          int stride, int padding) {
    int element = thread_number();  // 0 .. N*O*OH*OW - 1, and the last block's surplus
    if (element >= N * O * OH * OW) return;
    int w = element % OW;  // 0 .. OW - 1
    int h = element / OW % OH;  // 0 .. OH - 1
    int o = element / (OW * OH) % O;  // 0 .. O - 1
    int n = element / (OW * OH * O);  // 0 .. N - 1

    float sum = bias[o];
    for (int c = 0; c < C; ++c)
        for (int u = 0; u < KH; ++u)
            for (int v = 0; v < KW; ++v) {
                int row = h + padding - u;  // i * stride, if input row i reaches this output through weight row u
                int column = w + padding - v;
                if (row < 0 || row % stride != 0 || column < 0 || column % stride != 0) continue;
                int i = row / stride;
                int j = column / stride;
                if (i >= H || j >= W) continue;
                sum += x[((n * C + c) * H + i) * W + j] * weight[((c * O + o) * KH + u) * KW + v];
            }
    y[element] = sum;
}

extern "C" __global__ void conv_transpose2d_backward_input_naive(const float* __restrict__ dout,
                                                                 const float* __restrict__ weight,
                                                                 float* __restrict__ dx, int N, int C, int H, int W,
                                                                 int O, int KH, int KW, int OH, int OW, int stride,
                                                                 int padding) {
    int element = thread_number();  // 0 .. N*C*H*W - 1, and the last block's surplus
    if (element >= N * C * H * W) return;
    int j = element % W;  // 0 .. W - 1
    int i = element / W % H;  // 0 .. H - 1
    int c = element / (W * H) % C;  // 0 .. C - 1
    int n = element / (W * H * C);  // 0 .. N - 1

    float sum = 0.0f;
    for (int o = 0; o < O; ++o)
        for (int u = 0; u < KH; ++u)
            for (int v = 0; v < KW; ++v) {
                int h = i * stride + u - padding;  // -padding .. OH - 1 + padding
                int w = j * stride + v - padding;
                if (h < 0 || h >= OH || w < 0 || w >= OW) continue;
                sum += dout[((n * O + o) * OH + h) * OW + w] * weight[((c * O + o) * KH + u) * KW + v];
            }
    dx[element] = sum;
}

extern "C" __global__ void conv_transpose2d_backward_weight_naive(const float* __restrict__ dout,
                                                                  const float* __restrict__ x,
                                                                  float* __restrict__ dweight, int N, int C, int H,
                                                                  int W, int O, int KH, int KW, int OH, int OW,
                                                                  int stride, int padding) {
    int v = blockIdx.x % KW;  // the block's number, 0 .. C*O*KH*KW - 1, is the weight's
    int u = blockIdx.x / KW % KH;  // 0 .. KH - 1
    int o = blockIdx.x / (KW * KH) % O;  // 0 .. O - 1
    int c = blockIdx.x / (KW * KH * O);  // 0 .. C - 1

    float sum = 0.0f;
    for (int position = threadIdx.x; position < N * H * W; position += SUM_THREADS) {
        int j = position % W;  // 0 .. W - 1
        int i = position / W % H;  // 0 .. H - 1
        int n = position / (W * H);  // 0 .. N - 1
        int h = i * stride + u - padding;  // -padding .. OH - 1 + padding
        int w = j * stride + v - padding;
        if (h < 0 || h >= OH || w < 0 || w >= OW) continue;
        sum += x[((n * C + c) * H + i) * W + j] * dout[((n * O + o) * OH + h) * OW + w];
    }
    float total = block_sum(sum);
    if (threadIdx.x == 0) dweight[blockIdx.x] = total;
}
