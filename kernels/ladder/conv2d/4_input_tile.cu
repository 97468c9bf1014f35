// A tile of the input in shared memory.
//
// In the rung before, neighbouring outputs load the same pixels: each pixel is loaded once for every weight of the
// kernel. And each load comes after the question whether the pixel lies within the image.
//
// Here a block loads the pixels that its outputs need once, channel by channel, with zeros around the image. Inside the
// loop there is no `if`. Shared memory answers sooner, but it is asked as often: alone this rung hardly helps.

constexpr int CHANNELS = 4;                       // of a thread
constexpr int TILE_H = 8, TILE_W = 20;            // outputs of a block, in each of its channels
constexpr int TILE_THREADS = TILE_H * TILE_W;

template <int KH, int KW, int STRIDE>
__global__ void conv2d_input_tile(const float* __restrict__ x, const float* __restrict__ weight,
                                  const float* __restrict__ bias, float* __restrict__ y, int N, int C, int H, int W,
                                  int O, int OH, int OW, int padding) {
    constexpr int ROWS = (TILE_H - 1) * STRIDE + KH, COLUMNS = (TILE_W - 1) * STRIDE + KW;
    __shared__ float tile[ROWS][COLUMNS];
    int tiles = (OW + TILE_W - 1) / TILE_W;  // in a row of tiles
    int top = blockIdx.x / tiles * TILE_H, left = blockIdx.x % tiles * TILE_W;
    int first = blockIdx.y * CHANNELS, n = blockIdx.z;
    int ty = threadIdx.x / TILE_W, tx = threadIdx.x % TILE_W;

    float sums[CHANNELS] = {};
    for (int c = 0; c < C; ++c) {
        for (int k = threadIdx.x; k < ROWS * COLUMNS; k += TILE_THREADS) {
            int h = top * STRIDE - padding + k / COLUMNS, w = left * STRIDE - padding + k % COLUMNS;
            bool is_inside = h >= 0 && h < H && w >= 0 && w < W;
            tile[k / COLUMNS][k % COLUMNS] = is_inside ? x[((n * C + c) * H + h) * W + w] : 0.0f;
        }
        __syncthreads();  // until all threads have loaded their share
#pragma unroll
        for (int u = 0; u < KH; ++u)
#pragma unroll
            for (int v = 0; v < KW; ++v) {
                float pixel = tile[ty * STRIDE + u][tx * STRIDE + v];
#pragma unroll
                for (int k = 0; k < CHANNELS; ++k)
                    sums[k] += pixel * weight[((min(first + k, O - 1) * C + c) * KH + u) * KW + v];
            }
        __syncthreads();  // until all threads have used the tile
    }
    int i = top + ty, j = left + tx;
#pragma unroll
    for (int k = 0; k < CHANNELS; ++k)
        if (i < OH && j < OW && first + k < O)
            y[((n * O + first + k) * OH + i) * OW + j] = sums[k] + bias[first + k];
}
