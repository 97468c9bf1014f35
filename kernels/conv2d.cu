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
//   add, relu_mask      (N,O,OH,OW)    in                       may be null, see finish_row in common.cuh
//   max_index         (N,O,OH/2,OW/2)  out     in   (weight)  may be null, see max_pool2d.cu
//   partials       (splits,length)          out  (weight)  see below
//
//   kernel                          grid                  block   global reads a thread            writes
//   conv2d_forward_naive            ceil(N*O*OH*OW/256)   256     2*C*KH*KW + 1                    1
//   conv2d_backward_input_naive     ceil(N*C*H*W/256)     256     2*O*KH*KW / stride^2             1
//   conv2d_backward_weight_naive    O*C*KH*KW             64      2*N*OH*OW / 64                   1 a block
//   conv2d_backward_bias_naive      O                     64      N*OH*OW / 64                     1 a block
//   conv2d_forward                  pictures, rows and    below   C*(tile + taps) / block          its sums
//                                   columns of tiles
//   conv2d_backward_weight          ceil(C/B_TILE),       below   its share of dout and x          1 for each weight
//                                   splits                                                         of the block
//   conv2d_sum_partials             ceil(length/32)       512     splits / 16                      1 for 16
//
// One row, kernel 3, stride 1, padding 1. Forward, an output asks which inputs it sees; backward, an input asks which
// outputs saw it, and through which weight. Both only read what others wrote: no atomics, no races.
//
//   x         .    x0   x1   x2   x3   .        y1  = w0 x0 + w1 x1 + w2 x2
//                    \   |   /                   dx1 = w2 d0 + w1 d1 + w0 d2       (the weights in reverse: the gradient
//   y, dout        d0   d1   d2   d3            dw0 = d1 x0 + d2 x1 + d3 x2        of a convolution is a transposed one)
//
// What conv2d_forward_naive pays. A thread owns one output. For each multiply-add it reads an input and a weight from
// global memory and asks whether the input lies in the picture: two loads and some ten instructions beside the one that
// counts.
//
// What conv2d_forward saves. A thread owns ROWS x COLUMNS pixels of OUTPUTS channels, with their sums in registers. An
// input that it has read serves all its channels, a weight all its pixels: with 4 pixels and 16 channels, 20 numbers
// read make 64 multiply-adds. (That is where there are many pictures. Of 16 a thread owns fewer channels, so that there
// are enough threads.) They are read from shared memory, as float4s; channels, kernel and stride are template parameters,
// so that loops are written out, and where the kernel is larger than 1x1, 8 to 9 of 10 instructions are multiply-adds.
//
//   block     TX lanes of COLUMNS pixels by TY of ROWS, GROUPS of OUTPUTS = O / GROUPS channels (rounded up to 4),
//             PICTURES where one has few pixels, and SPLITS that share the input channels and are added up at the end
//   shared    of CHUNK input channels at a time, the tile of x that the block sees, 0 outside the picture, and the
//             taps, the weights with the output channel last: what a float4 holds is 4 channels of one weight
//   at last   y = sum + bias + add, through a ReLU if `relu`, 0 where relu_mask is not above 0. With `max_index`, which wants
//             ROWS 2, instead the ReLU's maximum over 2x2 pixels, and which it was: the thread has all four.
//
// The layer `context` of 16 pictures, 3x3, 32 -> 32 channels, 14x19 outputs: a block of TX 5 * GROUPS 8 * SPLITS 4 = 160
// threads makes one row of them (ROWS, TY and PICTURES are 1). CHUNK is 16: each split adds up 4 of 16 input channels.
//
//   outputs, 4 channels a group      0123|4567|89ab|cdef|ghi          tx = 0 .. 4, each COLUMNS = 4 pixels
//   tile of one input channel        ........................         3 rows (u) of 24 floats: what those pixels see
//   a thread's `seen`, of one row        ssssssss                     tx = 1: two float4s serve all v and 4 channels
//   a thread's `tap`, of one u and v     tttt                         one float4: the weight of its 4 channels
//                                                                     sums[o][p] += tap[o] * seen[p + v]: 16 at a time
//
// What conv2d_backward_weight_naive pays. A block owns one weight: so dout is read C*KH*KW times and x O*KH*KW times.
//
// What conv2d_backward_weight saves. A block brings a tile of both into shared memory once, and a thread owns A_EACH *
// B_EACH rows of KW weights, with their sums in registers. dout is the `coarse` picture here and x the `fine` one; of
// conv_transpose2d they are x and dout, for it is the same sum. For four neighbouring places a thread reads
//
//   coarse, of each of A_EACH channels   c0 c1 c2 c3           one float4, the same for most of a warp
//   fine, of each of B_EACH channels     f0 f1 f2 f3 f4 f5     a row of 3*STRIDE + KW floats     (here KW 3, STRIDE 1)
//
//   sum[v] += c0*f[v] + c1*f[STRIDE + v] + c2*f[2*STRIDE + v] + c3*f[3*STRIDE + v]
//
// which are 4*KW*A_EACH*B_EACH multiply-adds for A_EACH + B_EACH*SEEN/4 float4s, SEEN the floats of that row rounded up.
//
//   block     with (A, B) for the channels of coarse and fine: A_LANES * B_LANES * KH threads, one for each row u of the
//             weights of its A_EACH * B_EACH pairs of channels, have all A and B_TILE = B_LANES * B_EACH of the B between
//             them; GROUPS_X * GROUPS_Y such groups share the places of a tile, and are added up at the end
//   shared    a tile: of PICTURES, ROWS x COLUMNS places of coarse, and what fine has under them; at the end, the sums
//
// Sums of all blocks add up to a weight's gradient, but no block can wait for another. So each of `splits` has a share of
// the tiles and writes its sums into partials (splits, length), length = all weights and then the biases; and
// conv2d_sum_partials adds them up, in their order. With `max_index`, coarse is the gradient of a 2x2 max-pooling's outputs,
// as in conv_transpose2d.cu.
//
// conv2d_forward is also conv_transpose2d's gradient of x, a convolution of dout. conv2d's own is a transposed one of
// dout: conv_transpose2d_forward of conv_transpose2d.cu. Which tiles: tinyfcn/ops/fast_conv.py.
//
// Read next: conv_transpose2d.cu, the same two sums with forward and backward exchanged.

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

extern "C" __global__ void conv2d_backward_bias_naive(const float* __restrict__ dout, float* __restrict__ dbias, int N,
                                                      int O, int OH, int OW) {
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
                   const float* __restrict__ add = nullptr, const float* __restrict__ relu_mask = nullptr,
                   int* __restrict__ max_index = nullptr) {
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
                int line = (picture * CHUNK + c) * TILE_H + ty * ROWS * STRIDE + row;
                load_row<SEEN, COLUMNS * STRIDE % 4 == 0>(seen, tile + line * TILE_W + tx * COLUMNS * STRIDE);
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
            if (max_index) {
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
                    max_index[element] = (i + best / 2) * OW + j + p + best % 2;
                }
                continue;
            }
        }
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            if (i + r >= OH) continue;
            int element = ((n * O + channel) * OH + i + r) * OW + j;
            finish_row<COLUMNS>(sums + (o * ROWS + r) * COLUMNS, each, add ? add + element : nullptr,
                                relu_mask ? relu_mask + element : nullptr, relu, y + element, j, OW);
        }
    }
}

// What this thread has to add up of the tile of one channel, of which it is member number `member` of MEMBERS: LINES
// lines with WIDTH floats, PITCH apart. Of each picture's HEIGHT lines the first `rows` count, of a line the first
// `columns`.
template <int MEMBERS, int LINES, int HEIGHT, int WIDTH, int PITCH>
__device__ inline float sum_of_share(const float* tile, int member, int rows, int columns) {
    float sum = 0.0f;
    if (member >= MEMBERS) return sum;  // where the channels do not divide the block's threads
    for (int k = member; k < LINES * (WIDTH / 4); k += MEMBERS) {
        int line = k / (WIDTH / 4), column = k % (WIDTH / 4) * 4;
        if (line % HEIGHT >= rows || column >= columns) continue;
        float4 four = *reinterpret_cast<const float4*>(tile + line * PITCH + column);
        sum += (four.x + four.y) + (four.z + four.w);
    }
    return sum;
}

constexpr int OF_COARSE = 1, OF_FINE = 2;  // which picture's sums the gradient of the bias is, if one is wanted
constexpr int SUM_ELEMENTS = 32, SUM_GROUPS = 16;  // of conv2d_sum_partials: numbers of a block, and threads for each

template <int KH, int KW, int STRIDE, int A_EACH, int B_EACH, int A_LANES, int B_LANES, int GROUPS_X, int GROUPS_Y,
          int PICTURES, int ROWS, int COLUMNS>
__global__ void __launch_bounds__(A_LANES* B_LANES* KH* GROUPS_X* GROUPS_Y, 2)
    conv2d_backward_weight(const float* __restrict__ coarse, const float* __restrict__ fine,
                           float* __restrict__ partials, int N, int A, int OH, int OW, int B, int H, int W,
                           int padding, int bias_of, const int* __restrict__ max_index = nullptr) {
    constexpr int GROUPS = GROUPS_X * GROUPS_Y, THREADS = A_LANES * B_LANES * KH * GROUPS;
    constexpr int A_TILE = A_LANES * A_EACH, B_TILE = B_LANES * B_EACH;  // channels of a block
    constexpr int SEEN = round_up(3 * STRIDE + (KW > STRIDE ? KW : STRIDE), 4);  // floats of fine for four places
    constexpr int TILE_H = (ROWS - 1) * STRIDE + (KH > STRIDE ? KH : STRIDE), TILE_W = (COLUMNS - 4) * STRIDE + SEEN;
    constexpr int PITCH = pitch_of(TILE_W), LINES = PICTURES * TILE_H;
    constexpr int PLANE = LINES * PITCH + ((KH - LINES) * (PITCH / 4) & 7) * 4;  // the next channel goes on as line KH
    constexpr int PLACES = PICTURES * ROWS * COLUMNS, COARSE_PLANE = pitch_of(PLACES);
    constexpr int TILES = A_TILE * COARSE_PLANE + B_TILE * PLANE;
    constexpr int ROW = B_TILE * KH * KW, ROW_PITCH = ROW | 1;  // weights of one coarse channel; odd, for the banks
    constexpr int PART = A_TILE * ROW_PITCH | 1;  // a group has a sum for each weight of the block, and
    constexpr int PARTS = GROUPS * PART + THREADS;  // a thread one for the bias
    __shared__ __align__(16) float shared[TILES > PARTS ? TILES : PARTS];  // first the tiles, in the end the parts
    float* coarse_tile = shared;
    float* fine_tile = shared + A_TILE * COARSE_PLANE;

    // Lanes of a warp read what lies in different banks: of a channel consecutive lines of odd float4s, then the next
    // channel's; so a thread's own channels are B_LANES, and A_LANES, apart.
    int u = threadIdx.x % KH;  // 0 .. KH - 1
    int b_lane = threadIdx.x / KH % B_LANES;  // 0 .. B_LANES - 1
    int a_lane = threadIdx.x / (KH * B_LANES) % A_LANES;  // 0 .. A_LANES - 1
    int group = threadIdx.x / (KH * B_LANES * A_LANES);  // 0 .. GROUPS - 1
    int first_b = blockIdx.x * B_TILE;  // 0 .. B - 1
    int down = ceil_div(OH, ROWS), across = ceil_div(OW, COLUMNS), tiles = ceil_div(N, PICTURES) * down * across;
    int plane = max_index ? (OH / 2) * (OW / 2) : OH * OW;  // places of a channel of coarse

    float sums[A_EACH][B_EACH][KW] = {};
    float bias = 0.0f;  // the thread's share of one channel's sum
    for (int tile = blockIdx.y; tile < tiles; tile += gridDim.y) {
        int left = tile % across * COLUMNS;  // 0 .. OW - 1
        int top = tile / across % down * ROWS;  // 0 .. OH - 1
        int first_n = tile / (across * down) * PICTURES;  // 0 .. N - 1
        __syncthreads();  // until nobody reads the last tile any more
        for (int k = threadIdx.x; k < PLACES; k += THREADS) {
            int j = left + k % COLUMNS, i = top + k / COLUMNS % ROWS, n = first_n + k / (COLUMNS * ROWS);
            bool is_there = n < N && i < OH && j < OW && !(max_index && (i / 2 >= OH / 2 || j / 2 >= OW / 2));
            int from = is_there ? n * A * plane + (max_index ? i / 2 * (OW / 2) + j / 2 : i * OW + j) : 0;
#pragma unroll 8
            for (int a = 0; a < A_TILE; ++a) {
                float value = is_there && a < A ? coarse[from + a * plane] : 0.0f;
                if (max_index && is_there && a < A && max_index[from + a * plane] != i * OW + j) value = 0.0f;
                coarse_tile[a * COARSE_PLANE + k] = value;
            }
        }
        for (int k = threadIdx.x; k < LINES * TILE_W; k += THREADS) {
            int line = k / TILE_W, n = first_n + line / TILE_H;
            int h = top * STRIDE - padding + line % TILE_H, w = left * STRIDE - padding + k % TILE_W;
            bool is_there = n < N && within(h, H) && within(w, W);
            int from = is_there ? ((n * B + first_b) * H + h) * W + w : 0;
#pragma unroll 8
            for (int b = 0; b < B_TILE; ++b)
                fine_tile[b * PLANE + line * PITCH + k % TILE_W] =
                    is_there && first_b + b < B ? fine[from + b * H * W] : 0.0f;
        }
        __syncthreads();  // until all have loaded their share

        for (int row = group / GROUPS_X; row < PICTURES * ROWS; row += GROUPS_Y) {
            int line = row / ROWS * TILE_H + row % ROWS * STRIDE + u;
            const float* seen_from = fine_tile + b_lane * PLANE + line * PITCH;
            const float* places_from = coarse_tile + a_lane * COARSE_PLANE + row * COLUMNS;
#pragma unroll 1
            for (int column = group % GROUPS_X * 4; column < COLUMNS; column += GROUPS_X * 4) {
                float seen[B_EACH][SEEN];
#pragma unroll
                for (int b = 0; b < B_EACH; ++b)
                    load_row<SEEN, true>(seen[b], seen_from + b * B_LANES * PLANE + column * STRIDE);
#pragma unroll
                for (int a = 0; a < A_EACH; ++a) {
                    float places[4];
                    load_row<4, true>(places, places_from + a * A_LANES * COARSE_PLANE + column);
#pragma unroll
                    for (int place = 0; place < 4; ++place)
#pragma unroll
                        for (int b = 0; b < B_EACH; ++b)
#pragma unroll
                            for (int v = 0; v < KW; ++v) sums[a][b][v] += places[place] * seen[b][place * STRIDE + v];
                }
            }
        }
        if (bias_of == OF_COARSE && blockIdx.x == 0)
            bias += sum_of_share<THREADS / A_TILE, PICTURES * ROWS, ROWS, COLUMNS, COLUMNS>(
                coarse_tile + threadIdx.x % A_TILE * COARSE_PLANE, threadIdx.x / A_TILE, ROWS, COLUMNS);
        if (bias_of == OF_FINE)  // tiles overlap: each adds up what the next ones do not, and the last one all
            bias += sum_of_share<THREADS / B_TILE, LINES, TILE_H, TILE_W, PITCH>(
                fine_tile + threadIdx.x % B_TILE * PLANE, threadIdx.x / B_TILE,
                top + ROWS < OH ? ROWS * STRIDE : TILE_H, left + COLUMNS < OW ? COLUMNS * STRIDE : TILE_W);
    }

    __syncthreads();  // until nobody reads the tiles any more, whose place the parts take
#pragma unroll
    for (int a = 0; a < A_EACH; ++a)
#pragma unroll
        for (int b = 0; b < B_EACH; ++b)
#pragma unroll
            for (int v = 0; v < KW; ++v)
                shared[group * PART + (a_lane + a * A_LANES) * ROW_PITCH +
                       ((b_lane + b * B_LANES) * KH + u) * KW + v] = sums[a][b][v];
    float* bias_parts = shared + GROUPS * PART;
    bias_parts[threadIdx.x] = bias;
    __syncthreads();  // until all have written their parts

    int biases = bias_of == OF_COARSE ? A : bias_of == OF_FINE ? B : 0;
    float* mine = partials + blockIdx.y * (A * B * KH * KW + biases);
    for (int k = threadIdx.x; k < A_TILE * ROW; k += THREADS) {
        int a = k / ROW;  // 0 .. A_TILE - 1, of which the last may be surplus
        int b = first_b + k % ROW / (KH * KW);  // 0 .. B - 1, and the last block's surplus
        float total = 0.0f;
        for (int part = 0; part < GROUPS; ++part) total += shared[part * PART + a * ROW_PITCH + k % ROW];
        if (a < A && b < B) mine[(a * B + first_b) * KH * KW + k % ROW] = total;
    }
    int channels = bias_of == OF_COARSE ? A_TILE : B_TILE;
    int channel = bias_of == OF_COARSE ? threadIdx.x : first_b + threadIdx.x;
    if (threadIdx.x < channels && channel < biases && (bias_of == OF_FINE || blockIdx.x == 0)) {
        float total = 0.0f;
        for (int part = threadIdx.x; part < THREADS / channels * channels; part += channels) total += bias_parts[part];
        mine[A * B * KH * KW + channel] = total;
    }
}

extern "C" __global__ void __launch_bounds__(512) conv2d_sum_partials(const float* __restrict__ partials,
                                                                      float* __restrict__ dweight, int weights,
                                                                      int biases, int splits,
                                                                      float* __restrict__ dbias = nullptr) {
    __shared__ float parts[SUM_GROUPS][SUM_ELEMENTS];
    int lane = threadIdx.x % SUM_ELEMENTS;  // 0 .. SUM_ELEMENTS - 1
    int group = threadIdx.x / SUM_ELEMENTS;  // 0 .. SUM_GROUPS - 1
    int element = blockIdx.x * SUM_ELEMENTS + lane;  // 0 .. weights + biases - 1, and the last block's surplus
    int length = weights + biases;
    float sum = 0.0f;
    if (element < length)
#pragma unroll 8
        for (int split = group; split < splits; split += SUM_GROUPS) sum += partials[split * length + element];
    parts[group][lane] = sum;
    __syncthreads();  // until every group has written its part
    if (group > 0 || element >= length) return;

    float total = 0.0f;
#pragma unroll
    for (int part = 0; part < SUM_GROUPS; ++part) total += parts[part][lane];
    (element < weights ? dweight[element] : dbias[element - weights]) = total;
}
