constexpr int THREADS = 64;  // of a block

// Each block smooths its own 64 numbers, `rounds` times: a number becomes the mean of itself and its two neighbours.
// The first and the last number of a block are their own outer neighbours.
extern "C" __global__ void smooth(const float* x, float* y, int rounds) {
    __shared__ float row[THREADS];
    int t = threadIdx.x, left = max(t - 1, 0), right = min(t + 1, THREADS - 1);

    // hole: 2 barriers, among these 5 lines
    row[t] = x[blockIdx.x * THREADS + t];  // keep
    for (int round = 0; round < rounds; ++round) {  // keep
        __syncthreads();  // until all numbers of the round before are written
        float mean = (row[left] + row[t] + row[right]) / 3.0f;  // keep
        __syncthreads();  // until all threads have read their neighbours
        row[t] = mean;  // keep
    }  // keep
    // end of hole
    y[blockIdx.x * THREADS + t] = row[t];
}
