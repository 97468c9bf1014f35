// Transposed convolution ("deconvolution"), forward and backward: how the FCN grows its small map to the picture's size.
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
//   add, relu_mask      (N,O,OH,OW)    in                       may be null, see below
//   max_index         (N,C,H/2,W/2)  in                       may be null, see below
//
//   kernel                                    grid                  block   global reads a thread          writes
//   conv_transpose2d_forward_naive            ceil(N*O*OH*OW/256)   256     2*C*KH*KW / stride^2 + 1       1
//   conv_transpose2d_backward_input_naive     ceil(N*C*H*W/256)     256     2*O*KH*KW                      1
//   conv_transpose2d_backward_weight_naive    C*O*KH*KW             64      2*N*H*W / 64                   1 a block
//   conv_transpose2d_forward                  N/PICTURES x tiles    below   C*(tile + taps) / block        its sums
//
// The gradient of the bias is conv2d_backward_bias_naive's: both add a bias to each channel of their output.
//
// One row, kernel 4, stride 2: every input stamps the kernel onto the output, each stamp 2 to the right of the last.
// Written as a stamp, neighbours would add to one output at once; so each output gathers the stamps that cover it.
//
//   x0 *  w0 w1 w2 w3                      y0 = x0 w0     y2 = x0 w2 + x1 w0     y4 = x1 w2 + x2 w0
//   x1 *        w0 w1 w2 w3                y1 = x0 w1     y3 = x0 w3 + x1 w1     y5 = x1 w3 + x2 w1
//   x2 *              w0 w1 w2 w3          Even outputs meet only w0 and w2, odd ones only w1 and w3: `stride` phases.
//
// What the naive form pays. A thread owns one output. It walks through all KH*KW weights of each channel, finds by two
// remainders that 1 in stride^2 meets its phase, and for each that does reads a weight and an input from global memory:
// two loads and some fifteen instructions of bookkeeping for one multiply-add.
//
// What the fast form saves. Of one phase the weights are known, so its outputs are a dense convolution with a small
// kernel: 6x6 / 2 is four phases of 3x3. A thread owns COLUMNS * STRIDE neighbouring outputs of one row, which are all
// column phases of COLUMNS stamps in one row phase, and OUTPUTS channels: with 4, 2 and 8 that is 64 sums in registers.
// For each input channel and tap row it reads 8 inputs, of which 6 count, and 48 weights, as float4s from shared memory,
// for 192 multiply-adds. So about 9 of 10 instructions are multiply-adds.
//
//   block     TX lanes of COLUMNS stamps by TY rows, GROUPS of OUTPUTS = O / GROUPS channels (rounded up to 4),
//             PICTURES where one has few pixels, and SPLITS that share the input channels and are added up at the end
//   shared    of CHUNK input channels at a time, the tile of x that the block needs, 0 outside the picture, and the
//             taps, the weights with the output channel last: what a float4 holds is 4 channels of one weight
//   at last   y = sum + bias + add, through a ReLU if `relu`, 0 where relu_mask is not above 0 (finish_row in common.cuh).
//             So bias, skip connection and ReLU cost no pass over memory of their own.
//
// It is also conv2d's gradient of x, which is a transposed convolution of dout; relu_mask then is x, where x came out of a
// ReLU. With `max_index`, x is the gradient of a 2x2 max-pooling's outputs, and is put back to where they came from on its
// way into the tile: the full-size gradient, three quarters of it 0, never exists in memory.
//
// The gradient of x is a convolution of dout: conv2d_forward of conv2d.cu. Which tiles: tinyfcn/ops/fast_conv.py.
//
// In tinyfcn/networks/skip.py two of these bring 14x19 back to 64x84. Read next: softmax_cross_entropy.cu.

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
                int row = h + padding - u;  // i * stride, if input row i stamps this output with weight row u
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
    for (int place = threadIdx.x; place < N * H * W; place += SUM_THREADS) {
        int j = place % W;  // 0 .. W - 1
        int i = place / W % H;  // 0 .. H - 1
        int n = place / (W * H);  // 0 .. N - 1
        int h = i * stride + u - padding;  // -padding .. OH - 1 + padding
        int w = j * stride + v - padding;
        if (h < 0 || h >= OH || w < 0 || w >= OW) continue;
        sum += x[((n * C + c) * H + i) * W + j] * dout[((n * O + o) * OH + h) * OW + w];
    }
    float total = block_sum(sum);
    if (threadIdx.x == 0) dweight[blockIdx.x] = total;
}

template <int C, int O, int KH, int KW, int STRIDE, int COLUMNS, int TX, int TY, int GROUPS, int PICTURES, int SPLITS,
          int CHUNK>
__global__ void __launch_bounds__(TX* TY* GROUPS* PICTURES* SPLITS, 2)
    conv_transpose2d_forward(const float* __restrict__ x, const float* __restrict__ weight, float* __restrict__ y,
                             int N, int H, int W, int OH, int OW, int padding, int relu,
                             const float* __restrict__ bias = nullptr, const float* __restrict__ add = nullptr,
                             const float* __restrict__ relu_mask = nullptr, const int* __restrict__ max_index = nullptr) {
    constexpr int MEMBERS = TX * TY * GROUPS * PICTURES, THREADS = MEMBERS * SPLITS;
    constexpr int OUTPUTS = round_up(ceil_div(O, GROUPS), 4);  // channels of a thread
    constexpr int PITCH = pitch_of(GROUPS * OUTPUTS);
    constexpr int TAPS_H = ceil_div(KH, STRIDE), TAPS_W = ceil_div(KW, STRIDE);  // of one phase
    constexpr int SEEN = round_up(COLUMNS + TAPS_W - 1, 4);  // inputs in a row that a thread reads
    constexpr int TILE_H = TY / STRIDE + TAPS_H - 1, TILE_W = (TX - 1) * COLUMNS + SEEN;
    __shared__ __align__(16) float tile[PICTURES * CHUNK * TILE_H * TILE_W];
    __shared__ __align__(16) float taps[CHUNK * TAPS_H * STRIDE * KW * PITCH];

    int tx = threadIdx.x % TX;  // 0 .. TX - 1
    int ty = threadIdx.x / TX % (TY / STRIDE);  // 0 .. TY/STRIDE - 1: the rows of one phase stand together,
    int phase = threadIdx.x / (TX * (TY / STRIDE)) % STRIDE;  // 0 .. STRIDE - 1, so that a warp reads the same weights
    int group = threadIdx.x / (TX * TY) % GROUPS;  // 0 .. GROUPS - 1
    int picture = threadIdx.x / (TX * TY * GROUPS) % PICTURES;  // 0 .. PICTURES - 1
    int split = threadIdx.x / MEMBERS;  // 0 .. SPLITS - 1
    int n = blockIdx.x * PICTURES + picture;  // 0 .. N - 1, and the last block's surplus
    int top = blockIdx.y * (TY / STRIDE), left = blockIdx.z * TX * COLUMNS;  // of the block's stamps

    float sums[OUTPUTS * COLUMNS * STRIDE] = {};
    for (int first = 0; first < C; first += CHUNK) {
        __syncthreads();  // until nobody reads the last channels any more
#pragma unroll 4
        for (int k = threadIdx.x; k < PICTURES * CHUNK * TILE_H * TILE_W; k += THREADS) {
            int from = blockIdx.x * PICTURES + k / (TILE_W * TILE_H * CHUNK);
            int c = first + k / (TILE_W * TILE_H) % CHUNK;
            int i = top - (TAPS_H - 1) + k / TILE_W % TILE_H;
            int j = left - (TAPS_W - 1) + k % TILE_W;
            float value = 0.0f;
            if (!max_index) {
                if (from < N && within(i, H) && within(j, W)) value = x[((from * C + c) * H + i) * W + j];
            } else if (from < N && within(i, H / 2 * 2) && within(j, W / 2 * 2)) {
                int pooled = ((from * C + c) * (H / 2) + i / 2) * (W / 2) + j / 2;
                if (max_index[pooled] == i * W + j) value = x[pooled];
            }
            tile[k] = value;
        }
#pragma unroll 4
        for (int k = threadIdx.x; k < CHUNK * GROUPS * OUTPUTS * TAPS_H * STRIDE * KW; k += THREADS) {
            int tap = k % (TAPS_H * STRIDE * KW);  // u * KW + v, and rows of zeros where KH is no multiple of STRIDE
            int o = k / (TAPS_H * STRIDE * KW) % (GROUPS * OUTPUTS);
            int c = k / (TAPS_H * STRIDE * KW * GROUPS * OUTPUTS);
            bool is_there = o < O && tap < KH * KW;
            taps[(c * TAPS_H * STRIDE * KW + tap) * PITCH + o] =
                is_there ? weight[((first + c) * O + o) * KH * KW + tap] : 0.0f;
        }
        __syncthreads();  // until all have loaded their share

        for (int c = split; c < CHUNK; c += SPLITS)
#pragma unroll
            for (int a = 0; a < TAPS_H; ++a) {
                float seen[SEEN];
                load_row<SEEN, COLUMNS % 4 == 0>(
                    seen, tile + ((picture * CHUNK + c) * TILE_H + ty + TAPS_H - 1 - a) * TILE_W + tx * COLUMNS);
#pragma unroll
                for (int v = 0; v < KW; ++v) {
                    float tap[OUTPUTS];
                    load_row<OUTPUTS, true>(
                        tap, taps + ((c * TAPS_H * STRIDE + phase + a * STRIDE) * KW + v) * PITCH + group * OUTPUTS);
#pragma unroll
                    for (int o = 0; o < OUTPUTS; ++o)
#pragma unroll
                        for (int p = 0; p < COLUMNS; ++p)
                            sums[o * COLUMNS * STRIDE + p * STRIDE + v % STRIDE] +=
                                tap[o] * seen[p + TAPS_W - 1 - v / STRIDE];
                }
            }
    }
    add_splits<SPLITS, MEMBERS>(sums, split, threadIdx.x % MEMBERS);
    int h = (top + ty) * STRIDE + phase - padding;  // -padding .. OH - 1, and the last block's surplus
    if (split > 0 || n >= N || h < 0 || h >= OH) return;

    int w = (left + tx * COLUMNS) * STRIDE - padding;  // of the first output
#pragma unroll
    for (int o = 0; o < OUTPUTS; ++o) {
        int channel = group * OUTPUTS + o;  // 0 .. O - 1, and the last group's surplus
        if (channel >= O) continue;
        int element = ((n * O + channel) * OH + h) * OW + w;
        finish_row<COLUMNS * STRIDE>(sums + o * COLUMNS * STRIDE, bias ? bias[channel] : 0.0f,
                                     add ? add + element : nullptr, relu_mask ? relu_mask + element : nullptr, relu, y + element,
                                     w, OW);
    }
}
