// dx[n,c,h,w] = sum over o,i,j,u,v of dout[n,o,i,j] * weight[o,c,u,v]   where i*stride + u - padding = h
//                                                                      and   j*stride + v - padding = w

extern "C" __global__ void conv2d_backward_input_naive(const float* dout, const float* weight, float* dx, int N, int C,
                                                       int H, int W, int O, int KH, int KW, int OH, int OW, int stride,
                                                       int padding) {
    int element = blockIdx.x * blockDim.x + threadIdx.x;  // of dx
    if (element >= N * C * H * W) return;
    int w = element % W, h = element / W % H, c = element / (W * H) % C, n = element / (W * H * C);

    float sum = 0.0f;
    for (int o = 0; o < O; ++o)
        for (int u = 0; u < KH; ++u)
            for (int v = 0; v < KW; ++v) {
                // hole: about 6 lines
                int row = h + padding - u;
                int column = w + padding - v;
                if (row < 0 || row % stride != 0 || column < 0 || column % stride != 0) continue;
                int i = row / stride;
                int j = column / stride;
                if (i >= OH || j >= OW) continue;
                // end of hole
                sum += dout[((n * O + o) * OH + i) * OW + j] * weight[((o * C + c) * KH + u) * KW + v];
            }
    dx[element] = sum;
}
