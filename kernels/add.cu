// The scaled sum of two arrays: where a skip connection joins.
//
//   z = scale * (a + b);   da = db = scale * dz
//
//   array   shape   forward   backward
//   a, b    any     in
//   z       any     out
//   dz      any               in
//   da      any               out      db is the same array
//
//   kernel         grid               block   global reads a thread   writes
//   add_forward    ceil(count/256)    256     2                       1
//   add_backward   ceil(count/256)    256     1                       1
//
// scale is 1 for a sum and 1/2 for the mean that the source article takes. With scale 1 the gradient passes through
// unchanged, so nothing is launched.
//
//   a   1   2   3
//   b  10  20  30        scale 1/2:   z  5.5  11  16.5        da = dz / 2
//
// In training the epilogue of fast_conv.cu adds the skip connection. The tests compare that with this kernel.
//
// Read next: max_pool2d.cu.

extern "C" __global__ void add_forward(const float* __restrict__ a, const float* __restrict__ b,
                                       float* __restrict__ z, float scale, int count) {
    int element = thread_number();  // 0 .. count - 1, and the last block's surplus
    if (element >= count) return;
    z[element] = scale * (a[element] + b[element]);
}

extern "C" __global__ void add_backward(const float* __restrict__ dz, float* __restrict__ da, float scale, int count) {
    int element = thread_number();  // 0 .. count - 1, and the last block's surplus
    if (element >= count) return;
    da[element] = scale * dz[element];
}
