constexpr int TILE = 16;        // a block has TILE x TILE threads, one for each of its outputs
constexpr int ROWS = TILE + 2;  // its inputs are ROWS x ROWS pixels

// y[n,o,i,j] = sum over c,u,v of x[n, c, i + u - 1, j + v - 1] * weight[o,c,u,v]: 3x3, stride 1, padding 1
extern "C" __global__ void conv3x3(const float* x, const float* weight, float* y, int C, int H, int W, int O) {
    __shared__ float tile[ROWS][ROWS];
    int across = (W + TILE - 1) / TILE;  // tiles in a row of tiles
    int top = blockIdx.x / across * TILE, left = blockIdx.x % across * TILE, o = blockIdx.y, n = blockIdx.z;
    int ty = threadIdx.y, tx = threadIdx.x, i = top + ty, j = left + tx;

    float sum = 0.0f;
    for (int c = 0; c < C; ++c) {
        const float* plane = x + (n * C + c) * H * W;
        const float* kernel = weight + (o * C + c) * 9;
        // hole: about 9 lines
        for (int k = ty * TILE + tx; k < ROWS * ROWS; k += TILE * TILE) {
            int h = top - 1 + k / ROWS, w = left - 1 + k % ROWS;
            bool inside = h >= 0 && h < H && w >= 0 && w < W;
            tile[k / ROWS][k % ROWS] = inside ? plane[h * W + w] : 0.0f;
        }
        __syncthreads();  // until the tile is complete
        for (int u = 0; u < 3; ++u)
            for (int v = 0; v < 3; ++v) sum += tile[ty + u][tx + v] * kernel[u * 3 + v];
        __syncthreads();  // until all threads have used the tile
        // end of hole
    }
    if (i < H && j < W) y[((n * O + o) * H + i) * W + j] = sum;
}
