// Tiles of both in shared memory.
//
// The rung before loads dout once for each input channel, and x once for each output channel and each weight.
//
// Here a block owns 8 input channels and 8 output channels, and a thread one pair of them. The block goes over all
// images by tiles of 4 x 20 outputs. It loads the gradients of its output channels and the pixels of its input channels
// once, and each number serves 8 threads. With so few blocks, most of a large GPU idles: the next rung is about that.

constexpr int CHANNELS = 8, THREADS = CHANNELS * CHANNELS, TILE_H = 4, TILE_W = 20;

template <int KH, int KW, int STRIDE>
__global__ void weight_gradient_tiles(const float* __restrict__ dout, const float* __restrict__ x,
                                      float* __restrict__ dweight, int N, int C, int H, int W, int O, int OH, int OW,
                                      int padding) {
    constexpr int ROWS = (TILE_H - 1) * STRIDE + KH, COLUMNS = (TILE_W - 1) * STRIDE + KW;
    __shared__ float gradients[CHANNELS][TILE_H][TILE_W];
    __shared__ float pixels[CHANNELS][ROWS][COLUMNS];
    int first_c = blockIdx.x * CHANNELS, first_o = blockIdx.y * CHANNELS;
    int own_c = threadIdx.x % CHANNELS, own_o = threadIdx.x / CHANNELS;
    int tiles = (OW + TILE_W - 1) / TILE_W, of_image = (OH + TILE_H - 1) / TILE_H * tiles;

    float sums[KH][KW] = {};
    for (int tile = 0; tile < N * of_image; ++tile) {
        int n = tile / of_image, top = tile % of_image / tiles * TILE_H, left = tile % tiles * TILE_W;
        for (int k = threadIdx.x; k < CHANNELS * TILE_H * TILE_W; k += THREADS) {
            int o = k / (TILE_H * TILE_W), row = k / TILE_W % TILE_H, column = k % TILE_W;
            bool is_there = first_o + o < O && top + row < OH && left + column < OW;
            gradients[o][row][column] =
                is_there ? dout[((n * O + first_o + o) * OH + top + row) * OW + left + column] : 0.0f;
        }
        for (int k = threadIdx.x; k < CHANNELS * ROWS * COLUMNS; k += THREADS) {
            int c = k / (ROWS * COLUMNS), row = k / COLUMNS % ROWS, column = k % COLUMNS;
            int h = top * STRIDE - padding + row, w = left * STRIDE - padding + column;
            bool is_there = first_c + c < C && h >= 0 && h < H && w >= 0 && w < W;
            pixels[c][row][column] = is_there ? x[((n * C + first_c + c) * H + h) * W + w] : 0.0f;
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
#pragma unroll
    for (int k = 0; k < KH * KW; ++k)
        if (first_c + own_c < C && first_o + own_o < O)
            dweight[((first_o + own_o) * C + first_c + own_c) * KH * KW + k] = sums[k / KW][k % KW];
}
