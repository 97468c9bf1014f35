// Fast convolution: the three sums behind conv2d and conv_transpose2d, fused with bias, skip connection, ReLU, pooling.
//
//   forward           y[n,o,i,j]       = sum over c,u,v of x[n,c,h,w] * weight[o,c,u,v]      h = i*stride + u - padding
//   data gradient     dx[n,c,h,w]      = sum over o,u,v of dout[n,o,i,j] * weight[o,c,u,v]   w = j*stride + v - padding
//   weight gradient   dweight[o,c,u,v] = sum over n,i,j of dout[n,o,i,j] * x[n,c,h,w]
//   OH = (H + 2*padding - KH) / stride + 1, OW likewise; x and dout count as 0 outside the image.
//
// This file keeps conv2d's names. conv_transpose2d exchanges the two sides: its forward pass is the data gradient here,
// its own data gradient is the forward pass here, and its weight gradient is the same sum.
//
//   array          shape             forward   data gradient   weight gradient
//   x              (N,C,H,W)         in                        in
//   packed         see "packed"      in        in                                the weight, in the order of reading
//   bias           (O) or (C)        in        in                                may be null
//   y              (N,O,OH,OW)       out
//   dout           (N,O,OH,OW)                 in              in
//   dx             (N,C,H,W)                   out
//   add            as y or dx        in        in                                may be null: a skip connection's map
//   relu_mask      as y or dx        in        in                                may be null: see "epilogue"
//   max_index      (N,O,OH/2,OW/2)   out       in              in                may be null: see "pooling"
//   workspace      (splits,length)                             out               length: all sums, then the biases
//   dweight        (O,C,KH,KW)                                 out               by fast_conv_reduce_split_k
//   dbias          (O) or (C)                                  out               may be null: sums of dout (conv2d)
//                                                                                or of x (conv_transpose2d); see bias_of
//   With max_index, y and dout have its shape.
//
//   kernel                      grid                        block           global reads               writes
//   fast_conv_forward           images, tile rows, columns  see "a block"   both tiles, once a block   each output once
//   fast_conv_backward_input    images, tile rows, columns  see "a block"   both tiles, once a block   each output once
//   fast_conv_backward_weight   ceil(C/C_TILE), splits      see "block"     both tiles, once a block   1 a weight
//   fast_conv_reduce_split_k    ceil(length/32)             up to 512       about 8 a thread           32 a block
//
// Why the naive form is slow. A thread owns one output. For each multiply-add it loads an input and a weight from
// global memory and tests whether the input lies in the image: two loads and some ten instructions for one useful one.
//
// What the forward pass does about it. A thread owns ROWS x COLUMNS pixels of CHANNELS output channels and keeps their
// sums in registers. An input in a register serves all its channels, and a weight serves all its pixels: with 4 pixels
// and 16 channels, 20 loads feed 64 multiply-adds. The loads come from shared memory, as float4s. Channels, kernel and
// stride are template parameters, so that the loops unroll. Above 1x1, 84 to 95 of 100 instructions of the inner loop
// are multiply-adds (sm_90).
//
//   a block   TX threads of COLUMNS pixels along a row, TY threads of ROWS pixels along a column, GROUPS channel groups
//             of CHANNELS = O / GROUPS channels (rounded up to 4), IMAGES images, SPLITS that share the input channels
//   packed    the weight as (C,KH,KW,O), the output channel last, so that a float4 holds one weight of 4 channels; O is
//             rounded up to 4 with zeros. gather.cu packs the weights of a whole network in one launch
//   shared    CHANNEL_TILE input channels at a time: the input tile, 0 outside the image; and the weight tile
//   a warp    has two channel groups side by side where GROUPS is even. So two neighbouring lanes read one float4 of the
//             input, and every second lane one of the weights: half the wavefronts that 32 different float4s take
//   stride    a line of the tile holds its even columns first, then its odd ones (with stride 2): threads that are
//             neighbours read neighbouring float4s whatever the stride
//   staging   by cp.async, so that all loads of a block are under way at once. A thread copies one position of the
//             input tile in many channels, and computes where it lies once. Weights are copied four at a time
//   split-K   each of SPLITS sets of threads sums its own input channels; reduce_splits adds the sets up
//   epilogue  y = sum + bias + add, then the ReLU if `relu`, then 0 where relu_mask is not above 0
//   pooling   with max_index and ROWS 2, the epilogue is ReLU and 2x2 max-pooling, with max_index as in max_pool2d.cu
//
// The layer `context` for 16 images, 3x3, 32 -> 32 channels, 14x19 outputs: a block of TX 5 * TY 2 * GROUPS 8 * SPLITS 4
// = 320 threads computes two rows (ROWS and IMAGES are 1). CHANNEL_TILE is 16: each split sums 4 of 16 input channels.
//
//   outputs, 4 channels a group      0123456789abcdefghi              each thread has COLUMNS = 4 pixels
//   tx                               0   1   2   3   4
//   tile of one input channel        ........................         4 lines of 24 floats, 3 (u) for each row
//   a thread's window, of one row        wwwwwwww                     tx = 1: two float4s serve all v and 4 channels
//   a thread's weights, for u and v      tttt                         one float4: this weight of its 4 channels
//                                                                     sums[o][p] += t[o] * window[p + v]: 16 at a time
//
// What the data gradient does about it. dx gathers: row h meets only the weight rows u with (h + padding - u) % stride
// == 0. Rows that share this remainder form a phase, and within a phase dx is a dense convolution with a small kernel:
// 6x6 with stride 2 is four phases of 3x3. A thread owns all column phases of COLUMNS positions of dout in one row
// phase. With 4 positions, stride 2 and 8 channels that is 64 sums in registers.
//
//   packed    the weight as (O,KH,KW,C), KH rounded up to a multiple of STRIDE and C to one of 4, with zeros
//   pooling   with max_index, for which POOLED is 1, dout is the gradient of a 2x2 max-pooling's outputs. Loading the
//             tile puts each gradient at its max index, so the full-size gradient, three quarters of it 0, never exists
//             in global memory.
//
// What the weight gradient does about it. The naive form loads dout C*KH*KW times and x O*KH*KW times. Here a block
// loads a tile of both into shared memory once, and a thread owns O_EACH * C_EACH rows of KW weights, with the sums in
// registers. For four neighbouring positions of dout a thread loads the rows below and does 4*KW*O_EACH*C_EACH
// multiply-adds:
//
//   dout, each of O_EACH channels    d0 d1 d2 d3                 one float4, the same for most of a warp
//   x, each of C_EACH channels       x0 x1 x2 x3 x4 x5 . .       3*STRIDE + max(KW, STRIDE) floats, in whole float4s
//                                                                (here KW 3, STRIDE 1)
//   sum[v] += d0*x[v] + d1*x[STRIDE + v] + d2*x[2*STRIDE + v] + d3*x[3*STRIDE + v]
//
//   block     O_THREADS * C_THREADS * KH threads, one for each row u of the weights of its O_EACH * C_EACH channel
//             pairs, cover all O and C_TILE = C_THREADS * C_EACH of the C. SPLITS_X * SPLITS_Y such sets share the
//             positions of a tile
//   shared    first a tile: IMAGES images, ROWS x COLUMNS positions of dout, and the pixels of x under them; at the end
//             the sums
//   split-K   the sums of all blocks add up to a weight's gradient, but a block cannot wait for another. So each of
//             `splits` blocks takes its share of the tiles and writes its sums into its row of the workspace, in the
//             order of its threads. fast_conv_reduce_split_k adds up the rows, in a fixed order, and puts each total
//             into its place.
//
// tinyfcn/ops/tiles.py chooses the sizes, tinyfcn/ops/fast_conv.py launches. Read next: softmax_cross_entropy.cu.

__device__ constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }
__device__ constexpr int round_up(int a, int b) { return ceil_div(a, b) * b; }

// How many blocks a multiprocessor should hold at once: two, unless their threads would then lack registers.
__device__ constexpr int blocks_at_once(int threads) { return threads <= 256 ? 2 : 1; }

// Whether 0 <= index < size, in one comparison.
__device__ inline bool within(int index, int size) { return (unsigned int)index < (unsigned int)size; }

// The distance between rows of `count` floats in shared memory. It is a multiple of 4, so that each row begins where a
// float4 may; and an odd one, so that 8 rows begin in 8 different banks of the 32.
__device__ constexpr int pitch_of(int count) { return 4 * (ceil_div(count, 4) | 1); }

// The distance between the even columns of a line and its odd ones, with stride 2. A warp stores 16 of each at once: at a
// distance of 16 banks they meet all 32. It costs at most 7 floats a line; where it would cost more, it is not done.
__device__ constexpr int phase_pitch(int width, int stride) {
    return stride == 2 && width % 32 > 8 && width % 32 <= 16 ? width / 32 * 32 + 16 : width;
}

// The distance between the lines of a tile, at least `width` floats: where there is one, such that the banks go on where
// a warp's lanes go on in the next of `rows` rows of threads. A row reads `row` floats, and the next one `lines` lines on.
__device__ constexpr int line_pitch(int width, int rows, int lines, int row) {
    for (int pitch = width; rows > 1 && pitch < width + 32; pitch += 4)
        if ((lines * pitch - row) % 32 == 0) return pitch;
    return width;
}

// A thread copies one position of a tile, in several channels. Where a block has more threads than positions, there are
// several sets of threads, each with its share of the channels. How many:
__device__ constexpr int sets_of(int threads, int positions, int channels) {
    int sets = threads / positions;
    return sets < 1 ? 1 : sets < channels ? sets : channels;
}

// The distance between the k-th sums of all `threads` and the next. A warp reads the k-th sums of one split's threads, and
// then the next ones of the next split's: at this distance they lie in banks that follow each other.
__device__ constexpr int part_pitch(int threads, int split_threads) {
    return threads + (split_threads - threads % 32 + 32) % 32;
}

// Loads COUNT consecutive floats. BY_FOUR loads them as float4s; `from` must then be aligned to 16 bytes.
template <int COUNT, bool BY_FOUR>
__device__ inline void load_row(float (&row)[COUNT], const float* from) {
#pragma unroll
    for (int k = 0; k < COUNT; k += BY_FOUR ? 4 : 1) {
        if constexpr (BY_FOUR) {
            float4 four = *reinterpret_cast<const float4*>(from + k);
            row[k] = four.x;
            row[k + 1] = four.y;
            row[k + 2] = four.z;
            row[k + 3] = four.w;
        } else {
            row[k] = from[k];
        }
    }
}

// Copies *from to shared memory, or 0 if it is not there. From Ampere on this takes no register, so that all copies of a
// thread are under way at once; wait_for_copies waits for them. They go through the L1 cache (`.ca`), since the blocks of a
// multiprocessor read the same weights.
__device__ inline void copy_to_shared(float* to, const float* from, bool is_there) {
#if __CUDA_ARCH__ >= 800
    unsigned int address = static_cast<unsigned int>(__cvta_generic_to_shared(to));
    int bytes = is_there ? 4 : 0;  // the rest of the 4 bytes becomes 0
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(address), "l"(from), "r"(bytes) : "memory");
#else
    *to = is_there ? *from : 0.0f;
#endif
}

// The same for four floats, at addresses that are multiples of 16 bytes.
__device__ inline void copy_four_to_shared(float* to, const float* from, bool is_there) {
#if __CUDA_ARCH__ >= 800
    unsigned int address = static_cast<unsigned int>(__cvta_generic_to_shared(to));
    int bytes = is_there ? 16 : 0;
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(bytes) : "memory");
#else
    *reinterpret_cast<float4*>(to) =
        is_there ? *reinterpret_cast<const float4*>(from) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#endif
}

__device__ inline void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// Copies LINES lines of COUNT packed weights to shared memory, PITCH apart, and 0 behind them, up to WIDTH floats a line.
// COUNT and WIDTH are multiples of 4.
template <int LINES, int COUNT, int WIDTH, int PITCH, int THREADS>
__device__ inline void copy_weights_to_shared(float* tile, const float* packed) {
#pragma unroll 4
    for (int n = threadIdx.x; n < LINES * (WIDTH / 4); n += THREADS) {
        int line = n / (WIDTH / 4), column = n % (WIDTH / 4) * 4;
        copy_four_to_shared(tile + line * PITCH + column, packed + line * COUNT + column, column < COUNT);
    }
}

// Adds up the sums of SPLITS sets of threads that shared the terms: afterwards the threads of split 0 hold the totals.
// The order of the additions is fixed. `thread` is the thread's number within its split, 0 .. SPLIT_THREADS - 1. `parts`
// is shared memory for (SPLITS - 1) * COUNT * SPLIT_THREADS floats.
template <int SPLITS, int SPLIT_THREADS, int COUNT>
__device__ inline void reduce_splits(float (&sums)[COUNT], float* parts, int split, int thread) {
    if constexpr (SPLITS > 1) {
        __syncthreads();  // until all threads have read the tiles, where the sums go
        if (split > 0)
#pragma unroll
            for (int k = 0; k < COUNT; ++k) parts[((split - 1) * COUNT + k) * SPLIT_THREADS + thread] = sums[k];
        __syncthreads();  // until the other splits have written theirs
        if (split == 0)
            for (int other = 0; other < SPLITS - 1; ++other)
#pragma unroll
                for (int k = 0; k < COUNT; ++k) sums[k] += parts[(other * COUNT + k) * SPLIT_THREADS + thread];
    }
}

// The value to store for a sum: 0 where the ReLU cuts it off or the mask is closed. A NaN stays a NaN.
__device__ inline float rectified(float sum, int relu, bool is_open) {
    return (relu && sum < 0.0f) || !is_open ? 0.0f : sum;
}

// The epilogue for COUNT neighbouring pixels of a row of `width`; the first lies in column `left`, and the row may end
// before the last or begin after the first. It stores sum + bias (+ add), through a ReLU if `relu`, and 0 where
// relu_mask is not above 0. `element` is the first pixel's in y, add and relu_mask; the last two may be null. Each array
// begins where a float4 may.
template <int COUNT>
__device__ inline void store_row(const float* sums, float bias, const float* add, const float* relu_mask, int relu,
                                 float* y, int element, int left, int width) {
    if (COUNT % 4 == 0 && left % 4 == 0 && width % 4 == 0) {
#pragma unroll
        for (int k = 0; k + 3 < COUNT; k += 4) {
            if (!within(left + k, width)) continue;
            float added[4] = {}, mask[4] = {1.0f, 1.0f, 1.0f, 1.0f}, values[4];
            if (add) load_row<4, true>(added, add + element + k);
            if (relu_mask) load_row<4, true>(mask, relu_mask + element + k);
#pragma unroll
            for (int i = 0; i < 4; ++i) values[i] = rectified(sums[k + i] + bias + added[i], relu, mask[i] > 0.0f);
            *reinterpret_cast<float4*>(y + element + k) = make_float4(values[0], values[1], values[2], values[3]);
        }
        return;
    }
#pragma unroll
    for (int k = 0; k < COUNT; ++k)
        if (within(left + k, width))
            y[element + k] = rectified(sums[k] + bias + (add ? add[element + k] : 0.0f), relu,
                                       !relu_mask || relu_mask[element + k] > 0.0f);
}

template <int O, int C, int KH, int KW, int STRIDE, int ROWS, int COLUMNS, int TX, int TY, int GROUPS, int IMAGES,
          int SPLITS, int CHANNEL_TILE>
__global__ void __launch_bounds__(TX* TY* GROUPS* IMAGES* SPLITS, blocks_at_once(TX * TY * GROUPS * IMAGES * SPLITS))
    fast_conv_forward(const float* __restrict__ x, const float* __restrict__ packed, float* __restrict__ y, int N,
                      int H, int W, int OH, int OW, int padding, int relu, const float* __restrict__ bias = nullptr,
                      const float* __restrict__ add = nullptr, const float* __restrict__ relu_mask = nullptr,
                      int* __restrict__ max_index = nullptr) {
    constexpr int SPLIT_THREADS = TX * TY * GROUPS * IMAGES, THREADS = SPLIT_THREADS * SPLITS;
    constexpr int CHANNELS = round_up(ceil_div(O, GROUPS), 4);  // output channels of a thread
    constexpr int SIDE = GROUPS % 2 == 0 ? 2 : 1;  // channel groups side by side in a warp
    constexpr int PITCH = GROUPS * CHANNELS;
    constexpr int WINDOW = round_up(COLUMNS + ceil_div(KW, STRIDE) - 1, 4);  // inputs of a phase under a thread's pixels
    constexpr int PHASE_W = phase_pitch((TX - 1) * COLUMNS + WINDOW, STRIDE);
    constexpr int TILE_H = (TY * ROWS - 1) * STRIDE + KH, TILE_W = STRIDE * PHASE_W;
    constexpr int LINE = line_pitch(TILE_W, TY, ROWS * STRIDE, TX * COLUMNS);
    constexpr int POSITIONS = IMAGES * TILE_H * TILE_W;  // of a channel's tile
    constexpr int SETS = sets_of(THREADS, POSITIONS, CHANNEL_TILE);
    constexpr int WEIGHTS = CHANNEL_TILE * KH * KW * PITCH, TILES = WEIGHTS + IMAGES * CHANNEL_TILE * TILE_H * LINE;
    constexpr int PARTS = (SPLITS - 1) * CHANNELS * ROWS * COLUMNS * SPLIT_THREADS;
    __shared__ __align__(16) float shared[TILES > PARTS ? TILES : PARTS];  // first the tiles, at the end the sums
    float* weight_tile = shared;
    float* tile = shared + WEIGHTS;

    int tx = threadIdx.x / SIDE % TX;  // 0 .. TX - 1
    int ty = threadIdx.x / (SIDE * TX) % TY;  // 0 .. TY - 1
    int group = threadIdx.x / (SIDE * TX * TY) % (GROUPS / SIDE) * SIDE + threadIdx.x % SIDE;  // 0 .. GROUPS - 1
    int image = threadIdx.x / (TX * TY * GROUPS) % IMAGES;  // 0 .. IMAGES - 1
    int split = threadIdx.x / SPLIT_THREADS;  // 0 .. SPLITS - 1
    int n = blockIdx.x * IMAGES + image;  // 0 .. N - 1, and the last block's surplus
    int top = blockIdx.y * TY * ROWS, left = blockIdx.z * TX * COLUMNS;  // the first output: 0 .. OH - 1, 0 .. OW - 1

    float sums[CHANNELS * ROWS * COLUMNS] = {};
    for (int first = 0; first < C; first += CHANNEL_TILE) {
        __syncthreads();  // until all threads have read the previous channels
        for (int k = threadIdx.x; k < SETS * POSITIONS; k += THREADS) {
            int line = k / TILE_W % TILE_H, column = k % TILE_W, of_block = k / (TILE_W * TILE_H) % IMAGES;
            int set = k / POSITIONS;  // 0 .. SETS - 1
            int from = blockIdx.x * IMAGES + of_block;  // the image
            int h = top * STRIDE - padding + line, w = left * STRIDE - padding + column;
            bool is_there = from < N && within(h, H) && within(w, W);
            const float* there = x + ((from * C + first + set) * H + h) * W + w;
            float* to = tile + ((of_block * CHANNEL_TILE + set) * TILE_H + line) * LINE + column % STRIDE * PHASE_W +
                        column / STRIDE;
#pragma unroll 16
            for (int c = 0; c < CHANNEL_TILE; c += SETS)
                if (CHANNEL_TILE % SETS == 0 || c + set < CHANNEL_TILE)
                    copy_to_shared(to + c * TILE_H * LINE, there + c * H * W, is_there);
        }
        copy_weights_to_shared<CHANNEL_TILE * KH * KW, round_up(O, 4), GROUPS * CHANNELS, PITCH, THREADS>(
            weight_tile, packed + first * KH * KW * round_up(O, 4));
        wait_for_copies();
        __syncthreads();  // until all threads have loaded their share

        for (int c = split; c < CHANNEL_TILE; c += SPLITS)
#pragma unroll
            for (int row = 0; row < (ROWS - 1) * STRIDE + KH; ++row) {
                float window[STRIDE][WINDOW];
                int line = (image * CHANNEL_TILE + c) * TILE_H + ty * ROWS * STRIDE + row;
#pragma unroll
                for (int phase = 0; phase < STRIDE; ++phase)
                    load_row<WINDOW, COLUMNS % 4 == 0>(window[phase],
                                                       tile + line * LINE + phase * PHASE_W + tx * COLUMNS);
#pragma unroll
                for (int r = 0; r < ROWS; ++r) {
                    int u = row - r * STRIDE;  // the weight row that meets this input row for output row r, if any
                    if (u < 0 || u >= KH) continue;
#pragma unroll
                    for (int v = 0; v < KW; ++v) {
                        float weights[CHANNELS];
                        load_row<CHANNELS, true>(weights,
                                                 weight_tile + ((c * KH + u) * KW + v) * PITCH + group * CHANNELS);
#pragma unroll
                        for (int o = 0; o < CHANNELS; ++o)
#pragma unroll
                            for (int p = 0; p < COLUMNS; ++p)
                                sums[(o * ROWS + r) * COLUMNS + p] +=
                                    weights[o] * window[v % STRIDE][p + v / STRIDE];
                    }
                }
            }
    }
    reduce_splits<SPLITS, SPLIT_THREADS>(sums, shared, split, threadIdx.x % SPLIT_THREADS);
    if (split > 0 || n >= N) return;

#pragma unroll
    for (int o = 0; o < CHANNELS; ++o) {
        int channel = group * CHANNELS + o;  // 0 .. O - 1, and the last group's surplus
        int i = top + ty * ROWS, j = left + tx * COLUMNS;  // 0 .. OH - 1, 0 .. OW - 1, and the last block's surplus
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
                    for (int q = 0; q < 4; ++q) {  // the window's pixels in reading order: among equals the first stays
                        float value = sums[(o * 2 + q / 2) * COLUMNS + p + q % 2] + each;
                        if (value > largest || value != value) largest = value, best = q;  // a NaN is passed on
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
            store_row<COLUMNS>(sums + (o * ROWS + r) * COLUMNS, each, add, relu_mask, relu, y, element, j, OW);
        }
    }
}

template <int O, int C, int KH, int KW, int STRIDE, int COLUMNS, int TX, int TY, int GROUPS, int IMAGES, int SPLITS,
          int CHANNEL_TILE, int POOLED>
__global__ void __launch_bounds__(TX* TY* GROUPS* IMAGES* SPLITS, blocks_at_once(TX * TY * GROUPS * IMAGES * SPLITS))
    fast_conv_backward_input(const float* __restrict__ dout, const float* __restrict__ packed, float* __restrict__ dx,
                             int N, int H, int W, int OH, int OW, int padding, int relu,
                             const float* __restrict__ bias = nullptr, const float* __restrict__ add = nullptr,
                             const float* __restrict__ relu_mask = nullptr,
                             const int* __restrict__ max_index = nullptr) {
    constexpr int SPLIT_THREADS = TX * TY * GROUPS * IMAGES, THREADS = SPLIT_THREADS * SPLITS;
    constexpr int CHANNELS = round_up(ceil_div(C, GROUPS), 4);  // channels of dx of a thread
    constexpr int SIDE = GROUPS % 2 == 0 ? 2 : 1;  // channel groups side by side in a warp
    // The weights of two phases, which a warp may read at once, lie KW lines apart.
    constexpr int PITCH = line_pitch(GROUPS * CHANNELS, STRIDE, KW, GROUPS * CHANNELS);
    constexpr int PHASE_KH = ceil_div(KH, STRIDE), PHASE_KW = ceil_div(KW, STRIDE);  // the kernel of one phase
    constexpr int WINDOW = round_up(COLUMNS + PHASE_KW - 1, 4);  // positions of a row of dout that a thread reads
    constexpr int TILE_H = TY / STRIDE + PHASE_KH - 1, TILE_W = (TX - 1) * COLUMNS + WINDOW;
    constexpr int LINE = line_pitch(TILE_W, TY / STRIDE, 1, TX * COLUMNS);
    constexpr int POSITIONS = IMAGES * TILE_H * TILE_W;  // of a channel's tile
    constexpr int SETS = sets_of(THREADS, POSITIONS, CHANNEL_TILE);
    constexpr int LINES = PHASE_KH * STRIDE * KW;  // of an output channel's weights; those from KH * KW on are 0
    constexpr int WEIGHTS = CHANNEL_TILE * LINES * PITCH, TILES = WEIGHTS + IMAGES * CHANNEL_TILE * TILE_H * LINE;
    constexpr int PARTS = (SPLITS - 1) * CHANNELS * COLUMNS * STRIDE * SPLIT_THREADS;
    __shared__ __align__(16) float shared[TILES > PARTS ? TILES : PARTS];  // first the tiles, at the end the sums
    float* weight_tile = shared;
    float* tile = shared + WEIGHTS;

    int tx = threadIdx.x / SIDE % TX;  // 0 .. TX - 1
    int ty = threadIdx.x / (SIDE * TX) % (TY / STRIDE);  // 0 .. TY/STRIDE - 1: rows of one phase stand side by side,
    int phase = threadIdx.x / (SIDE * TX * (TY / STRIDE)) % STRIDE;  // 0 .. STRIDE - 1: a warp reads the same weights
    int group = threadIdx.x / (SIDE * TX * TY) % (GROUPS / SIDE) * SIDE + threadIdx.x % SIDE;  // 0 .. GROUPS - 1
    int image = threadIdx.x / (TX * TY * GROUPS) % IMAGES;  // 0 .. IMAGES - 1
    int split = threadIdx.x / SPLIT_THREADS;  // 0 .. SPLITS - 1
    int n = blockIdx.x * IMAGES + image;  // 0 .. N - 1, and the last block's surplus
    int top = blockIdx.y * (TY / STRIDE), left = blockIdx.z * TX * COLUMNS;  // the block's first position of dout

    float sums[CHANNELS * COLUMNS * STRIDE] = {};
    for (int first = 0; first < O; first += CHANNEL_TILE) {
        __syncthreads();  // until all threads have read the previous channels
        for (int k = threadIdx.x; k < SETS * POSITIONS; k += THREADS) {
            int line = k / TILE_W % TILE_H, column = k % TILE_W, of_block = k / (TILE_W * TILE_H) % IMAGES;
            int set = k / POSITIONS;  // 0 .. SETS - 1
            int from = blockIdx.x * IMAGES + of_block;  // the image
            int i = top - (PHASE_KH - 1) + line, j = left - (PHASE_KW - 1) + column;
            bool is_there = from < N && within(i, POOLED ? OH / 2 * 2 : OH) && within(j, POOLED ? OW / 2 * 2 : OW);
            int plane = POOLED ? (OH / 2) * (OW / 2) : OH * OW;
            int at = (from * O + first + set) * plane + (POOLED ? i / 2 * (OW / 2) + j / 2 : i * OW + j);
            float* to = tile + ((of_block * CHANNEL_TILE + set) * TILE_H + line) * LINE + column;
#pragma unroll 16
            for (int o = 0; o < CHANNEL_TILE; o += SETS)
                if (CHANNEL_TILE % SETS == 0 || o + set < CHANNEL_TILE) {
                    int element = at + o * plane;
                    copy_to_shared(to + o * TILE_H * LINE, dout + element,
                                   is_there && (!POOLED || max_index[element] == i * OW + j));
                }
        }
        copy_weights_to_shared<CHANNEL_TILE * LINES, round_up(C, 4), GROUPS * CHANNELS, PITCH, THREADS>(
            weight_tile, packed + first * LINES * round_up(C, 4));
        wait_for_copies();
        __syncthreads();  // until all threads have loaded their share

        for (int o = split; o < CHANNEL_TILE; o += SPLITS)
#pragma unroll
            for (int a = 0; a < PHASE_KH; ++a) {
                float window[WINDOW];
                load_row<WINDOW, COLUMNS % 4 == 0>(
                    window,
                    tile + ((image * CHANNEL_TILE + o) * TILE_H + ty + PHASE_KH - 1 - a) * LINE + tx * COLUMNS);
#pragma unroll
                for (int v = 0; v < KW; ++v) {
                    float weights[CHANNELS];
                    int u = phase + a * STRIDE;  // 0 .. PHASE_KH * STRIDE - 1
                    load_row<CHANNELS, true>(
                        weights, weight_tile + ((o * PHASE_KH * STRIDE + u) * KW + v) * PITCH + group * CHANNELS);
#pragma unroll
                    for (int c = 0; c < CHANNELS; ++c)
#pragma unroll
                        for (int p = 0; p < COLUMNS; ++p)
                            sums[c * COLUMNS * STRIDE + p * STRIDE + v % STRIDE] +=
                                weights[c] * window[p + PHASE_KW - 1 - v / STRIDE];
                }
            }
    }
    reduce_splits<SPLITS, SPLIT_THREADS>(sums, shared, split, threadIdx.x % SPLIT_THREADS);
    int h = (top + ty) * STRIDE + phase - padding;  // -padding .. H - 1, and the last block's surplus
    if (split > 0 || n >= N || h < 0 || h >= H) return;

    int w = (left + tx * COLUMNS) * STRIDE - padding;  // the thread's first pixel: -padding .. W - 1, and surplus
#pragma unroll
    for (int c = 0; c < CHANNELS; ++c) {
        int channel = group * CHANNELS + c;  // 0 .. C - 1, and the last group's surplus
        if (channel >= C) continue;
        int element = ((n * C + channel) * H + h) * W + w;
        store_row<COLUMNS * STRIDE>(sums + c * COLUMNS * STRIDE, bias ? bias[channel] : 0.0f, add, relu_mask, relu, dx,
                                    element, w, W);
    }
}

// One thread's share of the sum over the tile of one channel, which THREADS threads share; this is number `thread`. The
// tile has LINES lines of WIDTH floats, PITCH apart. The first `rows` of each image's HEIGHT lines count, and the first
// `columns` of a line.
template <int THREADS, int LINES, int HEIGHT, int WIDTH, int PITCH>
__device__ inline float sum_of_share(const float* tile, int thread, int rows, int columns) {
    float sum = 0.0f;
    if (thread >= THREADS) return sum;  // where the channels do not divide the block's threads
    for (int k = thread; k < LINES * (WIDTH / 4); k += THREADS) {
        int line = k / (WIDTH / 4), column = k % (WIDTH / 4) * 4;
        if (line % HEIGHT >= rows || column >= columns) continue;
        float4 four = *reinterpret_cast<const float4*>(tile + line * PITCH + column);
        sum += (four.x + four.y) + (four.z + four.w);
    }
    return sum;
}

constexpr int BIAS_OF_DOUT = 1, BIAS_OF_X = 2;  // the array whose sums are dbias; 0: no bias
constexpr int REDUCED_ELEMENTS = 32, MAX_REDUCERS = 16;  // fast_conv_reduce_split_k: elements a block, threads an element

template <int KH, int KW, int STRIDE, int O_EACH, int C_EACH, int O_THREADS, int C_THREADS, int SPLITS_X, int SPLITS_Y,
          int IMAGES, int ROWS, int COLUMNS, int POOLED>
__global__ void __launch_bounds__(O_THREADS* C_THREADS* KH* SPLITS_X* SPLITS_Y,
                                  blocks_at_once(O_THREADS * C_THREADS * KH * SPLITS_X * SPLITS_Y))
    fast_conv_backward_weight(const float* __restrict__ dout, const float* __restrict__ x,
                              float* __restrict__ workspace, int N, int O, int OH, int OW, int C, int H, int W,
                              int padding, int bias_of, const int* __restrict__ max_index = nullptr) {
    constexpr int SPLITS = SPLITS_X * SPLITS_Y, THREADS = O_THREADS * C_THREADS * KH * SPLITS;
    constexpr int O_TILE = O_THREADS * O_EACH, C_TILE = C_THREADS * C_EACH;  // channels of a block
    constexpr int WINDOW = round_up(3 * STRIDE + (KW > STRIDE ? KW : STRIDE), 4);  // floats of x for four positions
    constexpr int TILE_H = (ROWS - 1) * STRIDE + (KH > STRIDE ? KH : STRIDE);
    constexpr int TILE_W = (COLUMNS - 4) * STRIDE + WINDOW;
    constexpr int PITCH = pitch_of(TILE_W), LINES = IMAGES * TILE_H;
    constexpr int X_PLANE = LINES * PITCH + ((KH - LINES) * (PITCH / 4) & 7) * 4;  // the next channel begins as line KH
    constexpr int POSITIONS = IMAGES * ROWS * COLUMNS, DOUT_PLANE = pitch_of(POSITIONS);
    constexpr int TILES = O_TILE * DOUT_PLANE + C_TILE * X_PLANE;
    // At the end the block adds up SUMS sums of each thread over the splits, and a part of the bias's sum of each thread.
    constexpr int SUMS = O_EACH * C_EACH * KW, SPLIT_THREADS = THREADS / SPLITS;
    constexpr int PART_PITCH = part_pitch(THREADS, SPLIT_THREADS), PARTS = (SUMS + 1) * PART_PITCH;
    __shared__ __align__(16) float shared[TILES > PARTS ? TILES : PARTS];  // first the tiles, at the end the sums
    float* dout_tile = shared;
    float* x_tile = shared + O_TILE * DOUT_PLANE;

    // The lanes of a warp read different banks: consecutive lines of one channel, an odd number of float4s apart, then
    // the next channel's. So a thread's own channels are C_THREADS, and O_THREADS, apart.
    int u = threadIdx.x % KH;  // 0 .. KH - 1
    int c_thread = threadIdx.x / KH % C_THREADS;  // 0 .. C_THREADS - 1
    int o_thread = threadIdx.x / (KH * C_THREADS) % O_THREADS;  // 0 .. O_THREADS - 1
    int split = threadIdx.x / (KH * C_THREADS * O_THREADS);  // 0 .. SPLITS - 1
    int first_c = blockIdx.x * C_TILE;  // 0 .. C - 1
    int down = ceil_div(OH, ROWS), across = ceil_div(OW, COLUMNS), tiles = ceil_div(N, IMAGES) * down * across;
    int plane = POOLED ? (OH / 2) * (OW / 2) : OH * OW;  // floats of a channel of dout

    float sums[SUMS] = {};  // of O_EACH x C_EACH x KW weights
    float bias = 0.0f;  // the thread's share of one channel's sum
    for (int tile = blockIdx.y; tile < tiles; tile += gridDim.y) {
        int left = tile % across * COLUMNS;  // 0 .. OW - 1
        int top = tile / across % down * ROWS;  // 0 .. OH - 1
        int first_n = tile / (across * down) * IMAGES;  // 0 .. N - 1
        __syncthreads();  // until all threads have read the previous tile
        for (int k = threadIdx.x; k < POSITIONS; k += THREADS) {
            int j = left + k % COLUMNS, i = top + k / COLUMNS % ROWS, n = first_n + k / (COLUMNS * ROWS);
            bool is_there = n < N && i < OH && j < OW && !(POOLED && (i / 2 >= OH / 2 || j / 2 >= OW / 2));
            int from = is_there ? n * O * plane + (POOLED ? i / 2 * (OW / 2) + j / 2 : i * OW + j) : 0;
#pragma unroll 8
            for (int o = 0; o < O_TILE; ++o, from += plane)
                copy_to_shared(dout_tile + o * DOUT_PLANE + k, dout + from,
                               is_there && o < O && (!POOLED || max_index[from] == i * OW + j));
        }
        for (int k = threadIdx.x; k < LINES * TILE_W; k += THREADS) {
            int line = k / TILE_W, n = first_n + line / TILE_H;
            int h = top * STRIDE - padding + line % TILE_H, w = left * STRIDE - padding + k % TILE_W;
            bool is_there = n < N && within(h, H) && within(w, W);
            int from = is_there ? ((n * C + first_c) * H + h) * W + w : 0;
#pragma unroll 8
            for (int c = 0; c < C_TILE; ++c, from += H * W)
                copy_to_shared(x_tile + c * X_PLANE + line * PITCH + k % TILE_W, x + from, is_there && first_c + c < C);
        }
        wait_for_copies();
        __syncthreads();  // until all threads have loaded their share

        for (int row = split / SPLITS_X; row < IMAGES * ROWS; row += SPLITS_Y) {
            int line = row / ROWS * TILE_H + row % ROWS * STRIDE + u;
            const float* x_row = x_tile + c_thread * X_PLANE + line * PITCH;
            const float* dout_row = dout_tile + o_thread * DOUT_PLANE + row * COLUMNS;
#pragma unroll 1
            for (int column = split % SPLITS_X * 4; column < COLUMNS; column += SPLITS_X * 4) {
                float window[C_EACH][WINDOW];
#pragma unroll
                for (int c = 0; c < C_EACH; ++c)
                    load_row<WINDOW, true>(window[c], x_row + c * C_THREADS * X_PLANE + column * STRIDE);
#pragma unroll
                for (int o = 0; o < O_EACH; ++o) {
                    float d[4];
                    load_row<4, true>(d, dout_row + o * O_THREADS * DOUT_PLANE + column);
#pragma unroll
                    for (int p = 0; p < 4; ++p)
#pragma unroll
                        for (int c = 0; c < C_EACH; ++c)
#pragma unroll
                            for (int v = 0; v < KW; ++v)
                                sums[(o * C_EACH + c) * KW + v] += d[p] * window[c][p * STRIDE + v];
                }
            }
        }
        if (bias_of == BIAS_OF_DOUT && blockIdx.x == 0)
            bias += sum_of_share<THREADS / O_TILE, IMAGES * ROWS, ROWS, COLUMNS, COLUMNS>(
                dout_tile + threadIdx.x % O_TILE * DOUT_PLANE, threadIdx.x / O_TILE, ROWS, COLUMNS);
        if (bias_of == BIAS_OF_X)  // tiles of x overlap: each sums the pixels that the next ones lack, and the last all
            bias += sum_of_share<THREADS / C_TILE, LINES, TILE_H, TILE_W, PITCH>(
                x_tile + threadIdx.x % C_TILE * X_PLANE, threadIdx.x / C_TILE,
                top + ROWS < OH ? ROWS * STRIDE : TILE_H, left + COLUMNS < OW ? COLUMNS * STRIDE : TILE_W);
    }

    __syncthreads();  // until all threads have read the tiles, whose memory the sums take
    float* parts = shared;  // SUMS x SPLITS x SPLIT_THREADS
    float* bias_parts = shared + SUMS * PART_PITCH;
#pragma unroll
    for (int k = 0; k < SUMS; ++k) parts[k * PART_PITCH + threadIdx.x] = sums[k];
    bias_parts[threadIdx.x] = bias;
    __syncthreads();  // until all threads have written their sums
    int biases = bias_of == BIAS_OF_DOUT ? O : bias_of == BIAS_OF_X ? C : 0;
    int thread = threadIdx.x % SPLIT_THREADS;  // 0 .. SPLIT_THREADS - 1
    float* mine = workspace + blockIdx.y * (gridDim.x * SUMS * SPLIT_THREADS + biases);
    for (int k = split; k < SUMS; k += SPLITS) {  // each split adds up some of the sums
        float total = 0.0f;
#pragma unroll 8
        for (int part = 0; part < SPLITS; ++part) total += parts[k * PART_PITCH + part * SPLIT_THREADS + thread];
        mine[(blockIdx.x * SUMS + k) * SPLIT_THREADS + thread] = total;
    }
    int channels = bias_of == BIAS_OF_DOUT ? O_TILE : C_TILE;
    int channel = bias_of == BIAS_OF_DOUT ? threadIdx.x : first_c + threadIdx.x;
    if (threadIdx.x < channels && channel < biases && (bias_of == BIAS_OF_X || blockIdx.x == 0)) {
        float total = 0.0f;
#pragma unroll 8
        for (int part = threadIdx.x; part < THREADS / channels * channels; part += channels) total += bias_parts[part];
        mine[gridDim.x * SUMS * SPLIT_THREADS + channel] = total;
    }
}

extern "C" __global__ void __launch_bounds__(512)
    fast_conv_reduce_split_k(const float* __restrict__ workspace, float* __restrict__ dweight, int splits, int blocks,
                             int O, int C, int KH, int KW, int o_each, int c_each, int o_threads, int c_threads,
                             int biases, float* __restrict__ dbias = nullptr) {
    __shared__ float partial[MAX_REDUCERS][REDUCED_ELEMENTS];
    int reducers = blockDim.x / REDUCED_ELEMENTS;  // 1 .. MAX_REDUCERS
    int lane = threadIdx.x % REDUCED_ELEMENTS;  // 0 .. REDUCED_ELEMENTS - 1
    int reducer = threadIdx.x / REDUCED_ELEMENTS;  // 0 .. reducers - 1
    int element = blockIdx.x * REDUCED_ELEMENTS + lane;  // 0 .. length - 1, and the last block's surplus
    int threads = o_threads * c_threads * KH, sums = o_each * c_each * KW;
    int weights = blocks * sums * threads, length = weights + biases;
    float sum = 0.0f;
    for (int first = reducer; first < splits; first += 8 * reducers) {
#pragma unroll
        for (int k = 0; k < 8; ++k) {  // all eight loads are under way at once
            int split = first + k * reducers;
            sum += element < length && split < splits ? workspace[split * length + element] : 0.0f;
        }
    }
    partial[reducer][lane] = sum;
    __syncthreads();  // until every reducer has written its part
    if (reducer > 0 || element >= length) return;

    float total = 0.0f;
#pragma unroll 8
    for (int part = 0; part < reducers; ++part) total += partial[part][lane];
    if (element >= weights) {
        dbias[element - weights] = total;
        return;
    }
    // Which weight the sum is of: as fast_conv_backward_weight numbers its threads, and the sums of a thread.
    int thread = element % threads, k = element / threads % sums, block = element / (threads * sums);
    int u = thread % KH, v = k % KW;
    int c = (block * c_each + k / KW % c_each) * c_threads + thread / KH % c_threads;  // 0 .. C - 1, and surplus
    int o = k / (KW * c_each) * o_threads + thread / (KH * c_threads);  // 0 .. O - 1, and surplus
    if (o < O && c < C) dweight[((o * C + c) * KH + u) * KW + v] = total;
}
