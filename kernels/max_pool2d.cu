// Max-pooling, forward and backward.
//
//   y[n,c,i,j] = max over u,v < size of x[n, c, i*stride + u, j*stride + v]
//   OH = (H - size) / stride + 1, OW likewise; no window covers the rows and columns left over at the end.
//
//   array          shape            forward   backward
//   x              (N,C,H,W)        in
//   y              (N,C,OH,OW)      out
//   max_index      (N,C,OH,OW)      out       in       h*W + w of the maximum; among equals, the first
//   dout           (N,C,OH,OW)                in
//   dx             (N,C,H,W)                  out
//
//   kernel                 grid                  block   global reads a thread           writes
//   max_pool2d_forward     ceil(N*C*OH*OW/256)   256     size^2 + 1                      2
//   max_pool2d_backward    ceil(N*C*H*W/256)     256     up to 2*ceil(size/stride)^2     1
//
// The derivative of a maximum is 1 for the largest pixel and 0 for the others, so the gradient goes to max_index alone.
// Ties are common: after a ReLU whole windows are 0. Then the first pixel in reading order wins, here and in the
// reference.
//
//   x  1 3 | 0 0      y  3 0      max_index  1 2      dout  a b      dx  0 a b 0
//      2 0 | 0 0                                                      0 0 0 0
//
// Windows overlap where stride < size. A pixel may then be the maximum of several windows, and its thread asks each
// window that covers it.
//
// In training the epilogue of fast_conv.cu pools, and its backward kernels read max_index. The tests compare both with
// these kernels.
//
// Read next: conv2d.cu.

extern "C" __global__ void max_pool2d_forward(const float* __restrict__ x, float* __restrict__ y,
                                              int* __restrict__ max_index, int N, int C, int H, int W, int OH, int OW,
                                              int size, int stride) {
    int element = thread_number();  // 0 .. N*C*OH*OW - 1, and the last block's surplus
    if (element >= N * C * OH * OW) return;
    int j = element % OW;  // 0 .. OW - 1
    int i = element / OW % OH;  // 0 .. OH - 1
    const float* plane = x + element / (OW * OH) * H * W;

    int best = i * stride * W + j * stride;
    float largest = plane[best];
    for (int u = 0; u < size; ++u)
        for (int v = 0; v < size; ++v) {
            int candidate = (i * stride + u) * W + j * stride + v;  // within the plane: 0 .. H*W - 1
            float value = plane[candidate];
            if (value > largest || value != value) {  // not >=: among equals the first stays; a NaN is passed on
                largest = value;
                best = candidate;
            }
        }
    y[element] = largest;
    max_index[element] = best;
}

extern "C" __global__ void max_pool2d_backward(const float* __restrict__ dout, const int* __restrict__ max_index,
                                               float* __restrict__ dx, int N, int C, int H, int W, int OH, int OW,
                                               int size, int stride) {
    int element = thread_number();  // 0 .. N*C*H*W - 1, and the last block's surplus
    if (element >= N * C * H * W) return;
    int w = element % W;  // 0 .. W - 1
    int h = element / W % H;  // 0 .. H - 1
    int first = element / (W * H) * OH * OW;  // where this channel's windows begin

    float sum = 0.0f;
    for (int u = 0; u < size; ++u)
        for (int v = 0; v < size; ++v) {
            int row = h - u;  // i * stride, if window row i has this pixel as its row u
            int column = w - v;
            if (row < 0 || row % stride != 0 || column < 0 || column % stride != 0) continue;
            int i = row / stride;
            int j = column / stride;
            if (i >= OH || j >= OW) continue;
            if (max_index[first + i * OW + j] == h * W + w) sum += dout[first + i * OW + j];
        }
    dx[element] = sum;
}
