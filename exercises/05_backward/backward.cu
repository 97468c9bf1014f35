// y and max_index (planes, OH, OW): a 2x2 max-pooling of relu(x), x (planes, H, W); dout is the gradient of y.
// dx: the gradient of x, before the ReLU.

extern "C" __global__ void relu_pool_backward(const float* dout, const float* y, const int* max_index, float* dx,
                                              int planes, int H, int W, int OH, int OW) {
    int element = blockIdx.x * blockDim.x + threadIdx.x;  // of dx
    if (element >= planes * H * W) return;
    int w = element % W, h = element / W % H, plane = element / (W * H);

    // hole: about 5 lines
    int i = h / 2, j = w / 2;
    int window = (plane * OH + i) * OW + j;
    bool in_window = i < OH && j < OW;
    bool passes = in_window && max_index[window] == h * W + w && y[window] > 0.0f;
    dx[element] = passes ? dout[window] : 0.0f;
    // end of hole
}
