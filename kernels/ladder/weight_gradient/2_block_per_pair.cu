// A block a pair of channels.
//
// The rung before loads each dout anew for every weight of a kernel.
//
// Here a block owns all weights between one input channel and one output channel, and a thread keeps a sum for each of
// them. A dout that it has loaded serves all of them. At the end each thread writes its sums to shared memory, and one
// thread a weight adds up what the others wrote.

constexpr int THREADS = 64;

template <int KH, int KW, int STRIDE>
__global__ void weight_gradient_block_per_pair(const float* __restrict__ dout, const float* __restrict__ x,
                                               float* __restrict__ dweight, int N, int C, int H, int W, int O, int OH,
                                               int OW, int padding) {
    __shared__ float parts[KH * KW][THREADS];
    int c = blockIdx.x, o = blockIdx.y;
    float sums[KH][KW] = {};
    for (int position = threadIdx.x; position < N * OH * OW; position += THREADS) {
        int j = position % OW, i = position / OW % OH, n = position / (OW * OH);
        float gradient = dout[((n * O + o) * OH + i) * OW + j];
#pragma unroll
        for (int u = 0; u < KH; ++u)
#pragma unroll
            for (int v = 0; v < KW; ++v) {
                int h = i * STRIDE + u - padding, w = j * STRIDE + v - padding;
                if (h >= 0 && h < H && w >= 0 && w < W) sums[u][v] += gradient * x[((n * C + c) * H + h) * W + w];
            }
    }
#pragma unroll
    for (int k = 0; k < KH * KW; ++k) parts[k][threadIdx.x] = sums[k / KW][k % KW];
    __syncthreads();  // until all threads have written their sums
    for (int k = threadIdx.x; k < KH * KW; k += THREADS) {
        float total = 0.0f;
        for (int thread = 0; thread < THREADS; ++thread) total += parts[k][thread];
        dweight[(o * C + c) * KH * KW + k] = total;
    }
}
