// Inputs and weights in shared memory.
//
// The rung before loads each input again for every row phase and every output channel, and each weight in every thread.
//
// Here a block loads the inputs under its outputs once for each channel, with zeros around the image, and the weights
// of four output channels, side by side as a float4. A thread computes the STRIDE phases of four channels: an input and
// the weights of its phases serve 4 * STRIDE products. The last rung is the kernel that trains:
// fast_conv_backward_input.

constexpr int CHANNELS = 4, TILE_H = 8, TX = 20, TILE_THREADS = TILE_H * TX;  // TX: columns of inputs

template <int KH, int KW, int STRIDE>
__global__ void conv_transpose2d_shared(const float* __restrict__ x, const float* __restrict__ weight,
                                        const float* __restrict__ bias, float* __restrict__ y, int N, int C, int H,
                                        int W, int O, int OH, int OW, int padding) {
    constexpr int AS = (KH + STRIDE - 1) / STRIDE, BS = (KW + STRIDE - 1) / STRIDE;  // weights of a phase
    constexpr int ROWS = (TILE_H - 1) / STRIDE + 1 + AS, COLUMNS = TX + BS - 1;
    __shared__ float tile[ROWS][COLUMNS];
    __shared__ __align__(16) float weights[AS * STRIDE][BS * STRIDE][CHANNELS];  // those past the kernel are 0
    int tiles = ((OW - 1 + padding) / STRIDE + TX) / TX;  // in a row of tiles
    int top = blockIdx.x / tiles * TILE_H, left = blockIdx.x % tiles * TX, first_i = (top + padding) / STRIDE - AS + 1;
    int first = blockIdx.y * CHANNELS, n = blockIdx.z, tx = threadIdx.x % TX, h = top + threadIdx.x / TX;
    int phase_u = (h + padding) % STRIDE, row = (h + padding) / STRIDE - first_i;

    float sums[STRIDE][CHANNELS] = {};
    for (int c = 0; c < C; ++c) {
        for (int k = threadIdx.x; k < ROWS * COLUMNS; k += TILE_THREADS) {
            int i = first_i + k / COLUMNS, j = left - BS + 1 + k % COLUMNS;
            bool is_inside = i >= 0 && i < H && j >= 0 && j < W;
            tile[k / COLUMNS][k % COLUMNS] = is_inside ? x[((n * C + c) * H + i) * W + j] : 0.0f;
        }
        for (int k = threadIdx.x; k < AS * STRIDE * BS * STRIDE * CHANNELS; k += TILE_THREADS) {
            int o = k % CHANNELS, v = k / CHANNELS % (BS * STRIDE), u = k / (CHANNELS * BS * STRIDE);
            bool is_there = u < KH && v < KW && first + o < O;
            weights[u][v][o] = is_there ? weight[((c * O + first + o) * KH + u) * KW + v] : 0.0f;
        }
        __syncthreads();  // until all threads have loaded their share
#pragma unroll
        for (int a = 0; a < AS; ++a)
#pragma unroll
            for (int b = 0; b < BS; ++b) {
                float pixel = tile[row - a][tx + BS - 1 - b];
#pragma unroll
                for (int phase = 0; phase < STRIDE; ++phase) {
                    float4 four = *reinterpret_cast<const float4*>(weights[phase_u + a * STRIDE][phase + b * STRIDE]);
                    sums[phase][0] += pixel * four.x, sums[phase][1] += pixel * four.y;
                    sums[phase][2] += pixel * four.z, sums[phase][3] += pixel * four.w;
                }
            }
        __syncthreads();  // until all threads have used the tiles
    }
#pragma unroll
    for (int k = 0; k < STRIDE * CHANNELS; ++k) {
        int o = first + k % CHANNELS, w = (left + tx) * STRIDE + k / CHANNELS - padding;
        float sum = sums[k / CHANNELS][k % CHANNELS];
        if (o < O && h < OH && w >= 0 && w < OW) y[((n * O + o) * OH + h) * OW + w] = sum + bias[o];
    }
}
