// What every kernel file shares; the loader puts this text before each of them.
//
// An array `x` of shape (N, C, H, W) lies in memory row by row: element (n, c, h, w) is x[((n * C + c) * H + h) * W + w].
// Kernels take 32-bit indices; the launchers refuse arrays that these cannot number.

// The number of this thread in the whole launch: 0 .. gridDim.x * blockDim.x - 1.
__device__ inline int thread_number() { return blockIdx.x * blockDim.x + threadIdx.x; }

// Threads of a block that together own one sum. See block_sum.
constexpr int SUM_THREADS = 64;

// The sum of `mine` over the block, returned in thread 0 (0 in the others). The order of the additions is fixed, so
// the same inputs give the same bits; and SUM_THREADS short sums lose less to rounding than one long one.
// Call once in a kernel, by all SUM_THREADS threads: a second call would overwrite `partial` while thread 0 still reads.
__device__ inline float block_sum(float mine) {
    __shared__ float partial[SUM_THREADS];
    partial[threadIdx.x] = mine;
    __syncthreads();  // until every thread has written its part
    float total = 0.0f;
    if (threadIdx.x == 0)
        for (int thread = 0; thread < SUM_THREADS; ++thread) total += partial[thread];
    return total;
}

// Philox4x32-10, a counter-based random generator: a block cipher's worth of mixing turns (counter, key) into four
// random words, with no state to carry. So random numbers are a function of what they are for (which picture, which
// step), the same on every device and in any order.
// Salmon, Moraes, Dror & Shaw, "Parallel random numbers: as easy as 1, 2, 3" (2011).
struct Words {
    unsigned int word[4];
};

__device__ inline Words philox(unsigned int c0, unsigned int c1, unsigned int c2, unsigned int c3, unsigned int key0,
                               unsigned int key1) {
    for (int round = 0; round < 10; ++round) {
        unsigned int high0 = __umulhi(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
        unsigned int high1 = __umulhi(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
        c0 = high1 ^ c1 ^ key0;
        c1 = low1;
        c2 = high0 ^ c3 ^ key1;
        c3 = low0;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    Words result = {{c0, c1, c2, c3}};
    return result;
}

// --- For the fast convolutions. Their sizes are template parameters, so that loops over them unroll, and small arrays
// are registers. ---

__device__ constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }
__device__ constexpr int round_up(int a, int b) { return ceil_div(a, b) * b; }

// Whether 0 <= at < size, in one comparison.
__device__ inline bool within(int at, int size) { return (unsigned int)at < (unsigned int)size; }

// The pitch of rows of `count` floats in shared memory: a multiple of 4, so that each begins where a float4 may; and an
// odd one, so that 8 rows begin in 8 different places of the 32 banks.
__device__ constexpr int pitch_of(int count) { return 4 * (ceil_div(count, 4) | 1); }

// COUNT consecutive floats; four at a time where `from` is a multiple of four floats from its array's start.
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

// Adds up the sums of SPLITS threads that shared the terms between them: those of split 0 then have the totals. The
// order of the additions is fixed. `member` is the thread's number within its split, 0 .. MEMBERS - 1.
template <int SPLITS, int MEMBERS, int COUNT>
__device__ inline void add_splits(float (&sums)[COUNT], int split, int member) {
    if constexpr (SPLITS > 1) {
        __shared__ float parts[(SPLITS - 1) * COUNT * MEMBERS];
        if (split > 0)
#pragma unroll
            for (int k = 0; k < COUNT; ++k) parts[((split - 1) * COUNT + k) * MEMBERS + member] = sums[k];
        __syncthreads();  // until the other splits have written theirs
        if (split == 0)
            for (int other = 0; other < SPLITS - 1; ++other)
#pragma unroll
                for (int k = 0; k < COUNT; ++k) sums[k] += parts[(other * COUNT + k) * MEMBERS + member];
    }
}

// What is written of a sum: 0 where a ReLU cuts it off, or a relu_mask is not open. A NaN is passed on.
__device__ inline float finished(float sum, int relu, bool is_open) {
    return (relu && sum < 0.0f) || !is_open ? 0.0f : sum;
}

// Writes the outputs of COUNT neighbouring pixels, the first in column `left` of a row of `width`, which may stick out
// on both sides: sum + bias (+ add), through a ReLU if `relu`, 0 where relu_mask is not above 0. add and relu_mask may be null.
// All pointers are to the first pixel's place; add, relu_mask and y are of one shape, and begin where a float4 may.
template <int COUNT>
__device__ inline void finish_row(const float* sums, float bias, const float* add, const float* relu_mask, int relu,
                                  float* y, int left, int width) {
    if (COUNT % 4 == 0 && left % 4 == 0 && width % 4 == 0) {
#pragma unroll
        for (int k = 0; k + 3 < COUNT; k += 4) {
            if (!within(left + k, width)) continue;
            float added[4] = {}, gates[4] = {1.0f, 1.0f, 1.0f, 1.0f}, values[4];
            if (add) load_row<4, true>(added, add + k);
            if (relu_mask) load_row<4, true>(gates, relu_mask + k);
#pragma unroll
            for (int i = 0; i < 4; ++i) values[i] = finished(sums[k + i] + bias + added[i], relu, gates[i] > 0.0f);
            *reinterpret_cast<float4*>(y + k) = make_float4(values[0], values[1], values[2], values[3]);
        }
        return;
    }
#pragma unroll
    for (int k = 0; k < COUNT; ++k)
        if (within(left + k, width))
            y[k] = finished(sums[k] + bias + (add ? add[k] : 0.0f), relu, !relu_mask || relu_mask[k] > 0.0f);
}
