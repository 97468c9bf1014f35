// Shuffles.
//
// The tree before has eight barriers, and each of its steps reads shared memory twice and writes it once.
//
// Lanes of a warp can hand each other numbers from register to register, without memory and without a barrier. So each
// warp adds up its 32 sums by five shuffles, and only eight sums go through shared memory. The last rung is the pair of
// kernels that train: there each block adds up its own losses where it computes them, so that all multiprocessors take
// part, and the second launch has only a part of each block to add.

constexpr int THREADS = 256, WARP = 32;

__device__ inline float warp_sum(float sum) {  // in lane 0
    for (int apart = WARP / 2; apart > 0; apart /= 2) sum += __shfl_down_sync(0xffffffff, sum, apart);
    return sum;
}

extern "C" __global__ void mean_by_shuffles(const float* __restrict__ losses, float* __restrict__ mean, int count) {
    __shared__ float of_warps[THREADS / WARP];
    float sum = 0.0f;
    for (int position = threadIdx.x; position < count; position += THREADS) sum += losses[position];
    sum = warp_sum(sum);
    if (threadIdx.x % WARP == 0) of_warps[threadIdx.x / WARP] = sum;
    __syncthreads();  // until all warps have written theirs
    float total = threadIdx.x < THREADS / WARP ? of_warps[threadIdx.x] : 0.0f;
    if (threadIdx.x < WARP) total = warp_sum(total);
    if (threadIdx.x == 0) mean[0] = total / count;
}
