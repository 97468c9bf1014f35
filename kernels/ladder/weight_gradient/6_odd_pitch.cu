// Odd pitches.
//
// In the rung before, the lanes of a warp read pixels of 8 channels, whose planes lie 144 floats apart for a 3x3
// kernel: 8 float4s in 8 of the 32 banks, so four of them come one after another.
//
// Here a plane is padded to an odd number of float4s. Then 8 planes begin in 8 different quarters of the banks. The
// last rung is the kernel that trains: fast_conv_backward_weight.

constexpr int CHANNELS = 8, THREADS = CHANNELS * CHANNELS, TILE_H = 4, TILE_W = 20;

template <int KH, int KW, int STRIDE>
__global__ void weight_gradient_odd_pitch(const float* __restrict__ dout, const float* __restrict__ x,
                                        float* __restrict__ workspace, int N, int C, int H, int W, int O, int OH,
                                        int OW, int padding) {
    constexpr int WINDOW = (3 * STRIDE + KW + 3) / 4 * 4;  // pixels of a row under four outputs
    constexpr int ROWS = (TILE_H - 1) * STRIDE + KH, COLUMNS = (TILE_W - 4) * STRIDE + WINDOW;
    __shared__ __align__(16) float gradients[CHANNELS][TILE_H][TILE_W];
    constexpr int PLANE = (ROWS * COLUMNS / 4 | 1) * 4;  // an odd number of float4s
    __shared__ __align__(16) float pixels[CHANNELS][PLANE];
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
            pixels[c - first_c][row * COLUMNS + column] = is_there ? x[((n * C + c) * H + h) * W + w] : 0.0f;
        }
        __syncthreads();  // until all threads have loaded their share
        for (int i = 0; i < TILE_H; ++i)
            for (int j = 0; j < TILE_W; j += 4) {
                float4 four = *reinterpret_cast<const float4*>(gradients[own_o][i] + j);
#pragma unroll
                for (int u = 0; u < KH; ++u) {
                    __align__(16) float row[WINDOW];
#pragma unroll
                    for (int k = 0; k < WINDOW; k += 4)
                        *reinterpret_cast<float4*>(row + k) = *reinterpret_cast<const float4*>(
                            pixels[own_c] + (i * STRIDE + u) * COLUMNS + j * STRIDE + k);
#pragma unroll
                    for (int v = 0; v < KW; ++v)
                        sums[u][v] += four.x * row[v] + four.y * row[STRIDE + v] + four.z * row[2 * STRIDE + v] +
                                      four.w * row[3 * STRIDE + v];
                }
            }
        __syncthreads();  // until all threads have used the tiles
    }
    int o = first_o + own_o, c = first_c + own_c;
#pragma unroll
    for (int k = 0; k < KH * KW; ++k)
        if (c < C && o < O) workspace[((blockIdx.z * O + o) * C + c) * KH * KW + k] = sums[k / KW][k % KW];
}
