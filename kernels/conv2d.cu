// Two-dimensional convolution (cross-correlation, as every deep-learning library has it), forward and backward.
//
//   y[n,o,i,j] = bias[o] + sum over c,u,v of x[n, c, i*stride + u - padding, j*stride + v - padding] * weight[o,c,u,v]
//   OH = (H + 2*padding - KH) / stride + 1, OW likewise; x counts as 0 outside the picture.
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
//   add, gate      (N,O,OH,OW)    in                       may be null, see finish_row in common.cuh
//   winner         (N,O,OH/2,OW/2)  out     in   (weight)  may be null, see max_pool2d.cu
//   partials       (SPLITS,...)             out  (weight)  sums of some places
//
//   kernel                          grid                  block   global reads a thread            writes
//   conv2d_forward_naive            ceil(N*O*OH*OW/256)   256     2*C*KH*KW + 1                    1
//   conv2d_backward_input_naive     ceil(N*C*H*W/256)     256     2*O*KH*KW / stride^2             1
//   conv2d_backward_weight_naive    O*C*KH*KW             64      2*N*OH*OW / 64                   1 a block
//   conv2d_backward_bias_naive      O                     64      N*OH*OW / 64                     1 a block
//   conv2d_forward                  N/PICTURES x tiles    below   C*(tile + taps) / block          its sums
//
// One row, kernel 3, stride 1, padding 1. Forward, an output asks which inputs it sees; backward, an input asks which
// outputs saw it, and through which weight. Both only read what others wrote: no atomics, no races.
//
//   x         .    x0   x1   x2   x3   .        y1  = w0 x0 + w1 x1 + w2 x2
//                    \   |   /                   dx1 = w2 d0 + w1 d1 + w0 d2       (the weights in reverse: the gradient
//   y, dout        d0   d1   d2   d3            dw0 = d1 x0 + d2 x1 + d3 x2        of a convolution is a transposed one)
//
// The weights are few and each sums over all pictures and places, so a whole block owns one weight's gradient.
//
// What conv2d_forward_naive pays. A thread owns one output. For each multiply-add it reads an input and a weight from
// global memory and asks whether the input lies in the picture: two loads and some ten instructions beside the one that
// counts.
//
// What conv2d_forward saves. A thread owns ROWS x COLUMNS pixels of OUTPUTS channels, with their sums in registers. An
// input that it has read serves all its channels, a weight all its pixels: with 4 pixels and 16 channels, 20 numbers
// read make 64 multiply-adds. They are read from shared memory, as float4s; channels, kernel and stride are template
// parameters, so loops are written out and 9 of 10 instructions are multiply-adds.
//
//   block     TX lanes of COLUMNS pixels by TY of ROWS, GROUPS of OUTPUTS = O / GROUPS channels (rounded up to 4),
//             PICTURES where one has few pixels, and SPLITS that share the input channels and are added up at the end
//   shared    of CHUNK input channels at a time, the tile of x that the block sees, 0 outside the picture, and the
//             taps, the weights with the output channel last: what a float4 holds is 4 channels of one weight
//   at last   y = sum + bias + add, through a ReLU if `relu`, 0 where gate is not above 0. With `winner`, which wants
//             ROWS 2, instead the ReLU's maximum over 2x2 pixels, and which it was: the thread has all four.
//
// It is also conv_transpose2d's gradient of x, a convolution of dout. conv2d's own is a transposed one of dout:
// conv_transpose2d_forward of conv_transpose2d.cu. Which tiles: tinyfcn/ops/correlation.py.
//
// Read next: conv_transpose2d.cu, the same two sums with forward and backward exchanged.

extern "C" __global__ void conv2d_forward_naive(const float* __restrict__ x, const float* __restrict__ weight, const
                                                float* __restrict__ bias, float* __restrict__ y, int N, int C, int H,
                                                int W, int O, int KH, int KW, int OH, int OW, int stride, int padding) {
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

extern "C" __global__ void conv2d_backward_input_naive(const float* __restrict__ dout, const float* __restrict__
                                                       weight, float* __restrict__ dx, int N, int C, int H, int W,
                                                       int O, int KH, int KW, int OH, int OW, int stride, int padding) {
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
                                                        float* __restrict__ dweight, int N, int C, int H, int W, int
                                                        O, int KH, int KW, int OH, int OW, int stride, int padding) {
    int v = blockIdx.x % KW;  // the block's number, 0 .. O*C*KH*KW - 1, is the weight's
    int u = blockIdx.x / KW % KH;  // 0 .. KH - 1
    int c = blockIdx.x / (KW * KH) % C;  // 0 .. C - 1
    int o = blockIdx.x / (KW * KH * C);  // 0 .. O - 1

    float sum = 0.0f;
    for (int place = threadIdx.x; place < N * OH * OW; place += SUM_THREADS) {
        int j = place % OW;  // 0 .. OW - 1
        int i = place / OW % OH;  // 0 .. OH - 1
        int n = place / (OW * OH);  // 0 .. N - 1
        int h = i * stride + u - padding;  // -padding .. H - 1 + padding
        int w = j * stride + v - padding;
        if (h < 0 || h >= H || w < 0 || w >= W) continue;
        sum += dout[((n * O + o) * OH + i) * OW + j] * x[((n * C + c) * H + h) * W + w];
    }
    float total = block_sum(sum);
    if (threadIdx.x == 0) dweight[blockIdx.x] = total;
}

extern "C" __global__ void conv2d_backward_bias_naive(const float* __restrict__ dout, float* __restrict__ dbias, int
                                                      N, int O, int OH, int OW) {
    int o = blockIdx.x;  // 0 .. O - 1
    float sum = 0.0f;
    for (int place = threadIdx.x; place < N * OH * OW; place += SUM_THREADS) {
        int n = place / (OH * OW);  // 0 .. N - 1
        sum += dout[(n * O + o) * OH * OW + place % (OH * OW)];
    }
    float total = block_sum(sum);
    if (threadIdx.x == 0) dbias[o] = total;
}

template <int C, int O, int KH, int KW, int STRIDE, int ROWS, int COLUMNS, int TX, int TY, int GROUPS, int PICTURES,
          int SPLITS, int CHUNK>
__global__ void __launch_bounds__(TX* TY* GROUPS* PICTURES* SPLITS, 2)
    conv2d_forward(const float* __restrict__ x, const float* __restrict__ weight, float* __restrict__ y, int N, int H,
                   int W, int OH, int OW, int padding, int relu, const float* __restrict__ bias = nullptr,
                   const float* __restrict__ add = nullptr, const float* __restrict__ gate = nullptr,
                   int* __restrict__ winner = nullptr) {
    constexpr int MEMBERS = TX * TY * GROUPS * PICTURES, THREADS = MEMBERS * SPLITS;
    constexpr int OUTPUTS = round_up(ceil_div(O, GROUPS), 4);  // channels of a thread
    constexpr int PITCH = pitch_of(GROUPS * OUTPUTS);
    constexpr int SEEN = round_up((COLUMNS - 1) * STRIDE + KW, 4);  // inputs in a row that a thread reads
    constexpr int TILE_H = (TY * ROWS - 1) * STRIDE + KH, TILE_W = (TX - 1) * COLUMNS * STRIDE + SEEN;
    __shared__ __align__(16) float tile[PICTURES * CHUNK * TILE_H * TILE_W];
    __shared__ __align__(16) float taps[CHUNK * KH * KW * PITCH];

    int tx = threadIdx.x % TX;  // 0 .. TX - 1
    int ty = threadIdx.x / TX % TY;  // 0 .. TY - 1
    int group = threadIdx.x / (TX * TY) % GROUPS;  // 0 .. GROUPS - 1
    int picture = threadIdx.x / (TX * TY * GROUPS) % PICTURES;  // 0 .. PICTURES - 1
    int split = threadIdx.x / MEMBERS;  // 0 .. SPLITS - 1
    int n = blockIdx.x * PICTURES + picture;  // 0 .. N - 1, and the last block's surplus
    int top = blockIdx.y * TY * ROWS, left = blockIdx.z * TX * COLUMNS;  // of the block's outputs

    float sums[OUTPUTS * ROWS * COLUMNS] = {};
    for (int first = 0; first < C; first += CHUNK) {
        __syncthreads();  // until nobody reads the last channels any more
#pragma unroll 8
        for (int k = threadIdx.x; k < PICTURES * CHUNK * TILE_H * TILE_W; k += THREADS) {
            int from = blockIdx.x * PICTURES + k / (TILE_W * TILE_H * CHUNK);
            int c = first + k / (TILE_W * TILE_H) % CHUNK;
            int h = top * STRIDE - padding + k / TILE_W % TILE_H;
            int w = left * STRIDE - padding + k % TILE_W;
            bool is_there = from < N && within(h, H) && within(w, W);
            tile[k] = is_there ? x[((from * C + c) * H + h) * W + w] : 0.0f;
        }
#pragma unroll 8
        for (int k = threadIdx.x; k < GROUPS * OUTPUTS * CHUNK * KH * KW; k += THREADS) {
            int o = k / (CHUNK * KH * KW);
            int tap = k % (CHUNK * KH * KW);  // of the chunk's channels, all KH * KW
            taps[tap * PITCH + o] = o < O ? weight[(o * C + first) * KH * KW + tap] : 0.0f;
        }
        __syncthreads();  // until all have loaded their share

        for (int c = split; c < CHUNK; c += SPLITS)
#pragma unroll
            for (int row = 0; row < (ROWS - 1) * STRIDE + KH; ++row) {
                float seen[SEEN];
                load_row<SEEN, COLUMNS * STRIDE % 4 == 0>(
                    seen, tile + ((picture * CHUNK + c) * TILE_H + ty * ROWS * STRIDE + row) * TILE_W + tx * COLUMNS * STRIDE);
#pragma unroll
                for (int r = 0; r < ROWS; ++r) {
                    int u = row - r * STRIDE;  // the kernel's row that meets this one for output row r, if there is one
                    if (u < 0 || u >= KH) continue;
#pragma unroll
                    for (int v = 0; v < KW; ++v) {
                        float tap[OUTPUTS];
                        load_row<OUTPUTS, true>(tap, taps + ((c * KH + u) * KW + v) * PITCH + group * OUTPUTS);
#pragma unroll
                        for (int o = 0; o < OUTPUTS; ++o)
#pragma unroll
                            for (int p = 0; p < COLUMNS; ++p)
                                sums[(o * ROWS + r) * COLUMNS + p] += tap[o] * seen[p * STRIDE + v];
                    }
                }
            }
    }
    add_splits<SPLITS, MEMBERS>(sums, split, threadIdx.x % MEMBERS);
    if (split > 0 || n >= N) return;

#pragma unroll
    for (int o = 0; o < OUTPUTS; ++o) {
        int channel = group * OUTPUTS + o;  // 0 .. O - 1, and the last group's surplus
        int i = top + ty * ROWS, j = left + tx * COLUMNS;
        if (channel >= O) continue;
        float each = bias ? bias[channel] : 0.0f;
        if constexpr (ROWS == 2 && COLUMNS % 2 == 0) {
            if (winner) {
#pragma unroll
                for (int p = 0; p < COLUMNS; p += 2) {
                    if (i / 2 >= OH / 2 || (j + p) / 2 >= OW / 2) continue;
                    int best = 0;
                    float largest = 0.0f;
#pragma unroll
                    for (int place = 0; place < 4; ++place) {  // in reading order: of equals the first stays
                        float value = sums[(o * 2 + place / 2) * COLUMNS + p + place % 2] + each;
                        if (value > largest || value != value) largest = value, best = place;  // a NaN is passed on
                    }
                    int element = ((n * O + channel) * (OH / 2) + i / 2) * (OW / 2) + (j + p) / 2;
                    y[element] = largest;
                    winner[element] = (i + best / 2) * OW + j + p + best % 2;
                }
                continue;
            }
        }
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            if (i + r >= OH) continue;
            int element = ((n * O + channel) * OH + i + r) * OW + j;
            finish_row<COLUMNS>(sums + (o * ROWS + r) * COLUMNS, each, add ? add + element : nullptr,
                                gate ? gate + element : nullptr, relu, y + element, j, OW);
        }
    }
}
