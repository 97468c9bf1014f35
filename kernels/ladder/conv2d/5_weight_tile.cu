// The weights in shared memory too, output channel last.
//
// The rung before still loads a weight from global memory for each product, although all threads of the block want the
// same one.
//
// Here the block loads the weights of its four output channels once, and lays them side by side: a thread gets the four
// weights of a product's pixel as one float4. Global memory is now asked only while tiles are loaded. What bounds the
// loop is shared memory: two requests for four products.

constexpr int CHANNELS = 4;
constexpr int TILE_H = 8, TILE_W = 20, TILE_THREADS = TILE_H * TILE_W;

template <int KH, int KW, int STRIDE>
__global__ void conv2d_weight_tile(const float* __restrict__ x, const float* __restrict__ weight,
                                   const float* __restrict__ bias, float* __restrict__ y, int N, int C, int H, int W,
                                   int O, int OH, int OW, int padding) {
    constexpr int ROWS = (TILE_H - 1) * STRIDE + KH, COLUMNS = (TILE_W - 1) * STRIDE + KW;
    __shared__ float tile[ROWS][COLUMNS];
    __shared__ __align__(16) float weights[KH * KW][CHANNELS];
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
        for (int k = threadIdx.x; k < CHANNELS * KH * KW; k += TILE_THREADS) {
            int o = min(first + k / (KH * KW), O - 1);
            weights[k % (KH * KW)][k / (KH * KW)] = weight[(o * C + c) * KH * KW + k % (KH * KW)];
        }
        __syncthreads();  // until all threads have loaded their share
#pragma unroll
        for (int u = 0; u < KH; ++u)
#pragma unroll
            for (int v = 0; v < KW; ++v) {
                float pixel = tile[ty * STRIDE + u][tx * STRIDE + v];
                float4 four = *reinterpret_cast<const float4*>(weights[u * KW + v]);
                sums[0] += pixel * four.x, sums[1] += pixel * four.y;
                sums[2] += pixel * four.z, sums[3] += pixel * four.w;
            }
        __syncthreads();  // until all threads have used the tiles
    }
    int i = top + ty, j = left + tx;
#pragma unroll
    for (int k = 0; k < CHANNELS; ++k)
        if (i < OH && j < OW && first + k < O)
            y[((n * O + first + k) * OH + i) * OW + j] = sums[k] + bias[first + k];
}
