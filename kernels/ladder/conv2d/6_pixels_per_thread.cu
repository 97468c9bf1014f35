// Several pixels a thread.
//
// In the rung before four products need two requests to shared memory, one for a pixel and one for four weights.
//
// Here a thread computes four neighbouring pixels of four channels: 16 sums in registers. A row of pixels, loaded as
// float4s, serves all weights of a row of the kernel, and four weights serve all four pixels. 16 products for each
// float4 of weights: the loop begins to be bound by arithmetic. Four groups of threads share the tile, each with its
// channels.

constexpr int CHANNELS = 4, PIXELS = 4, GROUPS = 4;
constexpr int TX = 5, TILE_H = 8, TILE_W = TX * PIXELS, TILE_THREADS = TX * TILE_H * GROUPS;

template <int KH, int KW, int STRIDE>
__global__ void conv2d_pixels_per_thread(const float* __restrict__ x, const float* __restrict__ weight,
                                         const float* __restrict__ bias, float* __restrict__ y, int N, int C, int H,
                                         int W, int O, int OH, int OW, int padding) {
    constexpr int WINDOW = ((PIXELS - 1) * STRIDE + KW + 3) / 4 * 4;  // the pixels that a thread needs of a row
    constexpr int ROWS = (TILE_H - 1) * STRIDE + KH, COLUMNS = (TILE_W - PIXELS) * STRIDE + WINDOW;
    __shared__ __align__(16) float tile[ROWS][COLUMNS];
    __shared__ __align__(16) float weights[KH * KW][GROUPS * CHANNELS];
    int tiles = (OW + TILE_W - 1) / TILE_W, top = blockIdx.x / tiles * TILE_H, left = blockIdx.x % tiles * TILE_W;
    int first = blockIdx.y * GROUPS * CHANNELS, n = blockIdx.z;
    int tx = threadIdx.x % TX, ty = threadIdx.x / TX % TILE_H, group = threadIdx.x / (TX * TILE_H);

    float sums[CHANNELS][PIXELS] = {};
    for (int c = 0; c < C; ++c) {
        for (int k = threadIdx.x; k < ROWS * COLUMNS; k += TILE_THREADS) {
            int h = top * STRIDE - padding + k / COLUMNS, w = left * STRIDE - padding + k % COLUMNS;
            bool is_inside = h >= 0 && h < H && w >= 0 && w < W;
            tile[k / COLUMNS][k % COLUMNS] = is_inside ? x[((n * C + c) * H + h) * W + w] : 0.0f;
        }
        for (int k = threadIdx.x; k < GROUPS * CHANNELS * KH * KW; k += TILE_THREADS)
            weights[k % (KH * KW)][k / (KH * KW)] =
                weight[(min(first + k / (KH * KW), O - 1) * C + c) * KH * KW + k % (KH * KW)];
        __syncthreads();  // until all threads have loaded their share
#pragma unroll
        for (int u = 0; u < KH; ++u) {
            __align__(16) float row[WINDOW];
#pragma unroll
            for (int k = 0; k < WINDOW; k += 4)
                *reinterpret_cast<float4*>(row + k) =
                    *reinterpret_cast<const float4*>(tile[ty * STRIDE + u] + tx * PIXELS * STRIDE + k);
#pragma unroll
            for (int v = 0; v < KW; ++v) {
                float4 four = *reinterpret_cast<const float4*>(weights[u * KW + v] + group * CHANNELS);
                for (int p = 0; p < PIXELS; ++p) {
                    float pixel = row[p * STRIDE + v];
                    sums[0][p] += pixel * four.x, sums[1][p] += pixel * four.y;
                    sums[2][p] += pixel * four.z, sums[3][p] += pixel * four.w;
                }
            }
        }
        __syncthreads();  // until all threads have used the tiles
    }
#pragma unroll
    for (int k = 0; k < CHANNELS * PIXELS; ++k) {
        int o = first + group * CHANNELS + k / PIXELS, i = top + ty, j = left + tx * PIXELS + k % PIXELS;
        if (o < O && i < OH && j < OW) y[((n * O + o) * OH + i) * OW + j] = sums[k / PIXELS][k % PIXELS] + bias[o];
    }
}
