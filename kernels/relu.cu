// The rectified linear unit, forward and backward.
//
//   y = max(x, 0);   dx = dout where y > 0, else 0 (at x = 0 too, where any slope from 0 to 1 would do)
//
//   array   shape   forward   backward
//   x       any     in
//   y       any     out       in
//   dout    any               in
//   dx      any               out
//
//   kernel          grid               block   global reads a thread   writes
//   relu_forward    ceil(count/256)    256     1                       1
//   relu_backward   ceil(count/256)    256     2                       1
//
//   x  -2  -1   0   3        dout   a   b   c   d
//   y   0   0   0   3        dx     0   0   0   d
//
// The backward pass reads y instead of x: its sign says the same, and x need not be kept.
//
// In training the epilogue of fast_conv.cu applies the ReLU. The tests compare that with this kernel.
//
// Read next: add.cu.

extern "C" __global__ void relu_forward(const float* __restrict__ x, float* __restrict__ y, int count) {
    int element = thread_number();  // 0 .. count - 1, and the last block's surplus
    if (element >= count) return;
    y[element] = x[element] < 0.0f ? 0.0f : x[element];  // a NaN is passed on, not hidden
}

extern "C" __global__ void relu_backward(const float* __restrict__ dout, const float* __restrict__ y,
                                         float* __restrict__ dx, int count) {
    int element = thread_number();  // 0 .. count - 1, and the last block's surplus
    if (element >= count) return;
    dx[element] = y[element] > 0.0f ? dout[element] : 0.0f;
}
