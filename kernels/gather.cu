// Gather: an array's values in another order.
//
//   gathered[i] = values[index[i]]      0 where index[i] is not 0 .. P - 1
//
//   array      shape
//   values     (P)     in
//   index      (M)     in
//   gathered   (M)     out
//
//   kernel   grid           block   global reads a thread   writes
//   gather   ceil(M/256)    256     2                       1
//
// The fast convolutions read the weights of four channels as one float4, so these have to be neighbours. The forward pass
// wants four output channels together, the data gradient four input channels. So a training step first gathers all
// weights of a network in both orders (tinyfcn/packed_weight.py), while it composes its images.
//
//   values     a b c d e f     two rows of three: weights of two output channels
//   index      0 3 1 4 2 5     by columns
//   gathered   a d b e c f
//
// Neighbouring threads read values that lie far apart, so a request uses little of the sectors that it loads. That is
// cheap here: the weights fit the L2 cache, and it happens once a step, not in each block of a convolution.
//
// Read next: fast_conv.cu.

extern "C" __global__ void gather(const float* __restrict__ values, const int* __restrict__ index,
                                  float* __restrict__ gathered, int P, int M) {
    int element = thread_number();  // 0 .. M - 1, and the last block's surplus
    if (element >= M) return;
    int from = index[element];
    gathered[element] = 0 <= from && from < P ? values[from] : 0.0f;
}
