// The sum split among blocks, and a second launch.
//
// The rung before has a block for each 8 x 8 channels: 16 of them for a layer of 32 x 32, on a GPU with 132
// multiprocessors.
//
// Here `splits` blocks share the tiles of the same channels. Each writes its own sums to a workspace, and a second
// kernel adds them up in the order of the splits. Atomics would save that launch, and the order with it: the bits would
// change from run to run. This is a split of the K of a matrix product, hence the name.

constexpr int CHANNELS = 8, THREADS = CHANNELS * CHANNELS, TILE_H = 4, TILE_W = 20;

template <int KH, int KW, int STRIDE>
__global__ void weight_gradient_split_k(const float* __restrict__ dout, const float* __restrict__ x,
                                        float* __restrict__ workspace, int N, int C, int H, int W, int O, int OH,
                                        int OW, int padding) {
    constexpr int ROWS = (TILE_H - 1) * STRIDE + KH, COLUMNS = (TILE_W - 1) * STRIDE + KW;
    __shared__ float gradients[CHANNELS][TILE_H][TILE_W];
    __shared__ float pixels[CHANNELS][ROWS][COLUMNS];
    int first_c = blockIdx.x * CHANNELS, first_o = blockIdx.y * CHANNELS;
    int own_c = threadIdx.x % CHANNELS, own_o = threadIdx.x / CHANNELS;
    int tiles = (OW + TILE_W - 1) / TILE_W, of_image = (OH + TILE_H - 1) / TILE_H * tiles;
    float sums[KH][KW] = {};
    for (int tile = blockIdx.z; tile < N * of_image; tile += gridDim.z) {
        int n = tile / of_image, top = tile % of_image / tiles * TILE_H, left = tile % tiles * TILE_W;
        for (int k = threadIdx.x; k < CHANNELS * TILE_H * TILE_W; k += THREADS) {
            int o = first_o + k / (TILE_H * TILE_W), i = top + k / TILE_W % TILE_H, j = left + k % TILE_W;
            gradients[o - first_o][i - top][j - left] =
                o < O && i < OH && j < OW ? dout[((n * O + o) * OH + i) * OW + j] : 0.0f;
        }
        for (int k = threadIdx.x; k < CHANNELS * ROWS * COLUMNS; k += THREADS) {
            int c = first_c + k / (ROWS * COLUMNS), row = k / COLUMNS % ROWS, column = k % COLUMNS;
            int h = top * STRIDE - padding + row, w = left * STRIDE - padding + column;
            bool is_there = c < C && h >= 0 && h < H && w >= 0 && w < W;
            pixels[c - first_c][row][column] = is_there ? x[((n * C + c) * H + h) * W + w] : 0.0f;
        }
        __syncthreads();  // until all threads have loaded their share
        for (int i = 0; i < TILE_H; ++i)
            for (int j = 0; j < TILE_W; ++j) {
                float gradient = gradients[own_o][i][j];
#pragma unroll
                for (int k = 0; k < KH * KW; ++k)
                    sums[k / KW][k % KW] += gradient * pixels[own_c][i * STRIDE + k / KW][j * STRIDE + k % KW];
            }
        __syncthreads();  // until all threads have used the tiles
    }
    int o = first_o + own_o, c = first_c + own_c;
#pragma unroll
    for (int k = 0; k < KH * KW; ++k)
        if (c < C && o < O) workspace[((blockIdx.z * O + o) * C + c) * KH * KW + k] = sums[k / KW][k % KW];
}

extern "C" __global__ void weight_gradient_reduce(const float* __restrict__ workspace, float* __restrict__ dweight,
                                                  int weights, int splits) {
    int k = thread_number();  // 0 .. weights - 1, and the last block's surplus
    float total = 0.0f;
    for (int split = 0; k < weights && split < splits; ++split) total += workspace[split * weights + k];
    if (k < weights) dweight[k] = total;
}
