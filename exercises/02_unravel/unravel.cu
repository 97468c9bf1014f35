// y (N, O, OH, OW), x (N, C, H, W), weight (O, C, KH, KW), each row by row; OH = H - KH + 1, OW = W - KW + 1

extern "C" __global__ void conv2d(const float* x, const float* weight, float* y, int N, int C, int H, int W, int O,
                                  int KH, int KW, int OH, int OW) {
    int element = blockIdx.x * blockDim.x + threadIdx.x;  // of y
    if (element >= N * O * OH * OW) return;
    // hole: about 4 lines
    int j = element % OW;
    int i = element / OW % OH;
    int o = element / (OW * OH) % O;
    int n = element / (OW * OH * O);
    // end of hole

    float sum = 0.0f;
    for (int c = 0; c < C; ++c)
        for (int u = 0; u < KH; ++u)
            for (int v = 0; v < KW; ++v)
                sum += x[((n * C + c) * H + i + u) * W + j + v] * weight[((o * C + c) * KH + u) * KW + v];
    y[element] = sum;
}
