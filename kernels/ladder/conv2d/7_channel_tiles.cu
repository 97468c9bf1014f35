// Tiles of several channels, staged without conflicts.
//
// The rung before waits at two barriers for each input channel. And its threads write the weights with neighbouring
// lanes 16 floats apart, so that a warp's 32 numbers lie in 2 of the 32 banks.
//
// Here a tile holds four channels, and a block waits a quarter as often. A warp stages 8 weights of each of 4 output
// channels, in rows 20 floats apart: these lie in 32 banks. The last rung, fast_conv_forward, is the one that trains.

constexpr int CHANNELS = 4, PIXELS = 4, GROUPS = 4, CHANNEL_TILE = 4, PITCH = GROUPS * CHANNELS + 4;
constexpr int TX = 5, TILE_H = 8, TILE_W = TX * PIXELS, TILE_THREADS = TX * TILE_H * GROUPS;
template <int KH, int KW, int STRIDE>
__global__ void conv2d_channel_tiles(const float* __restrict__ x, const float* __restrict__ weight,
                                     const float* __restrict__ bias, float* __restrict__ y, int N, int C, int H, int W,
                                     int O, int OH, int OW, int padding) {
    constexpr int WINDOW = ((PIXELS - 1) * STRIDE + KW + 3) / 4 * 4, EIGHTS = (CHANNEL_TILE * KH * KW + 7) / 8;
    constexpr int ROWS = (TILE_H - 1) * STRIDE + KH, COLUMNS = (TILE_W - PIXELS) * STRIDE + WINDOW;
    __shared__ __align__(16) float tile[CHANNEL_TILE][ROWS][COLUMNS];
    __shared__ __align__(16) float weights[EIGHTS * 8][PITCH];
    int tiles = (OW + TILE_W - 1) / TILE_W, top = blockIdx.x / tiles * TILE_H, left = blockIdx.x % tiles * TILE_W;
    int first = blockIdx.y * GROUPS * CHANNELS, n = blockIdx.z;
    int tx = threadIdx.x % TX, ty = threadIdx.x / TX % TILE_H, group = threadIdx.x / (TX * TILE_H);
    float sums[CHANNELS][PIXELS] = {};
    for (int first_c = 0; first_c < C; first_c += CHANNEL_TILE) {
        for (int k = threadIdx.x; k < CHANNEL_TILE * ROWS * COLUMNS; k += TILE_THREADS) {
            int c = first_c + k / (ROWS * COLUMNS), row = k / COLUMNS % ROWS, column = k % COLUMNS;
            int h = top * STRIDE - padding + row, w = left * STRIDE - padding + column;
            bool is_inside = c < C && h >= 0 && h < H && w >= 0 && w < W;
            tile[k / (ROWS * COLUMNS)][row][column] = is_inside ? x[((n * C + c) * H + h) * W + w] : 0.0f;
        }
        for (int k = threadIdx.x; k < EIGHTS * 8 * GROUPS * CHANNELS; k += TILE_THREADS) {
            int row = k / 128 * 8 + k % 8, o = k / 8 % (GROUPS * CHANNELS), c = first_c + row / (KH * KW);
            bool is_there = c < C && first + o < O;  // a surplus row is never read
            weights[row][o] = is_there ? weight[((first + o) * C + first_c) * KH * KW + row] : 0.0f;
        }
        __syncthreads();  // until all threads have loaded their share
        for (int c = 0; c < CHANNEL_TILE; ++c)
#pragma unroll
            for (int u = 0; u < KH; ++u) {
                __align__(16) float row[WINDOW];
#pragma unroll
                for (int k = 0; k < WINDOW; k += 4)
                    *reinterpret_cast<float4*>(row + k) =
                        *reinterpret_cast<const float4*>(tile[c][ty * STRIDE + u] + tx * PIXELS * STRIDE + k);
#pragma unroll
                for (int v = 0; v < KW; ++v) {
                    float4 four = *reinterpret_cast<const float4*>(weights[(c * KH + u) * KW + v] + group * CHANNELS);
                    for (int p = 0; p < PIXELS; ++p) {
                        sums[0][p] += row[p * STRIDE + v] * four.x, sums[1][p] += row[p * STRIDE + v] * four.y;
                        sums[2][p] += row[p * STRIDE + v] * four.z, sums[3][p] += row[p * STRIDE + v] * four.w;
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
