constexpr int MAX_THREADS = 256;  // of a block, which may have any number up to this

// y[block] = the sum of x over the block's threads, one number each
extern "C" __global__ void block_sums(const float* x, float* y, int count) {
    __shared__ float sums[MAX_THREADS];
    int t = threadIdx.x, element = blockIdx.x * blockDim.x + t;
    sums[t] = element < count ? x[element] : 0.0f;

    // hole: about 6 lines
    for (int active = blockDim.x; active > 1;) {
        int half = (active + 1) / 2;  // rounded up: the middle one of an odd number waits for the next round
        __syncthreads();              // until all sums of the round before are written
        if (t + half < active) sums[t] += sums[t + half];
        active = half;
    }
    // end of hole
    if (t == 0) y[blockIdx.x] = sums[0];
}
