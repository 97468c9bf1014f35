// y (W, H) is x (H, W) transposed: y[w][h] = x[h][w]. A block of 32 x 32 threads takes a tile of 32 x 32 numbers.

extern "C" __global__ void transpose(const float* x, float* y, int H, int W) {
    int top = blockIdx.y * 32, left = blockIdx.x * 32;  // of the block's tile in x
    int ty = threadIdx.y, tx = threadIdx.x;             // 0 .. 31; tx is the thread's lane
    // hole: about 4 lines
    __shared__ float tile[32][33];
    if (top + ty < H && left + tx < W) tile[ty][tx] = x[(top + ty) * W + left + tx];
    __syncthreads();  // until the tile is complete
    if (left + ty < W && top + tx < H) y[(left + ty) * H + top + tx] = tile[tx][ty];
    // end of hole
}
