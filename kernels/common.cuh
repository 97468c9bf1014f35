// What every kernel file shares; the loader puts this text before each of them.
//
// An array `x` of shape (N, C, H, W) lies in memory row by row: element (n, c, h, w) is
// x[((n * C + c) * H + h) * W + w]. Indices have 32 bits; the launchers refuse arrays that these cannot number.

// This thread's number in the whole launch: 0 .. gridDim.x * blockDim.x - 1.
__device__ inline int thread_number() { return blockIdx.x * blockDim.x + threadIdx.x; }

// Threads of a block that together own one sum. See block_sum.
constexpr int SUM_THREADS = 64;

// The sum of `mine` over the block, returned in thread 0 (0 in the others). The order of the additions is fixed, so the
// same inputs give the same bits; and SUM_THREADS short sums lose less to rounding than one long one. All SUM_THREADS
// threads call it, once in a kernel: a second call would overwrite `partial` while thread 0 still reads.
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
// random words and carries no state. So a random number is a function of its purpose (which image, which step), and is
// the same on every device and in any order.
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

// What softmax_cross_entropy.cu and linear_cross_entropy.cu share.
constexpr int LOSS_THREADS = 256;  // a block of either, or fewer of the second

// The loss of a position, from its logits in registers. Writes their gradient; `positions`: over how many the mean is.
template <int K>
__device__ inline float loss_and_gradient(const float* logit, float* dlogit, int label, int ignore_index,
                                          float unlabelled, unsigned int positions) {
    const bool ignored = label == ignore_index;
    float largest = logit[0];
#pragma unroll
    for (int k = 1; k < K; ++k) largest = fmaxf(largest, logit[k]);
    float power[K];
    float sum = 0.0f;
    float chosen = nanf("");  // the label's logit; `logit[label]` would index registers, which have no addresses
#pragma unroll
    for (int k = 0; k < K; ++k) {
        if (k == label) chosen = logit[k];
        power[k] = expf(logit[k] - largest);
        sum += power[k];
    }
    const float scale = (ignored ? unlabelled : 1.0f) / positions;
    const float inverse = 1.0f / sum;
#pragma unroll
    for (int k = 0; k < K; ++k) {
        float p = power[k] * inverse;
        dlogit[k] = k == label && !ignored ? scale * (p - 1.0f) : scale * p;
    }
    return ignored ? 0.0f : logf(sum) - (chosen - largest);
}

// Writes the sum of the losses of a block's threads, over `positions`, into the block's part. All its warps are whole.
__device__ inline void add_up_losses(float mine, float* parts, unsigned int positions) {
    __shared__ float in_warp[LOSS_THREADS / 32];  // the losses of each warp
    for (int distance = 16; distance > 0; distance /= 2) mine += __shfl_down_sync(0xffffffff, mine, distance);
    if (threadIdx.x % 32 == 0) in_warp[threadIdx.x / 32] = mine;
    __syncthreads();  // until every warp has written its losses
    if (threadIdx.x == 0) {
        float total = 0.0f;
        for (int warp = 0; warp < blockDim.x / 32; ++warp) total += in_warp[warp];
        parts[blockIdx.x] = total / positions;
    }
}
