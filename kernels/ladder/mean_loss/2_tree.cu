// A tree.
//
// In the rung before one thread adds all losses.
//
// Here 256 threads add up a share each, neighbours taking neighbouring losses, so that a warp reads whole sectors. Then
// the block adds up its 256 sums by halves: 128 threads add the sums of the other 128, then 64, then 32 ... Eight steps
// with a barrier after each, instead of 256 additions.

constexpr int THREADS = 256;

extern "C" __global__ void mean_by_tree(const float* __restrict__ losses, float* __restrict__ mean, int count) {
    __shared__ float sums[THREADS];
    float sum = 0.0f;
    for (int position = threadIdx.x; position < count; position += THREADS) sum += losses[position];
    sums[threadIdx.x] = sum;
    for (int half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();  // until all sums of the step before are written
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    if (threadIdx.x == 0) mean[0] = sums[0] / count;
}
