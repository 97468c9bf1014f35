// Peak rates of a GPU: how fast it copies, and how fast it multiplies and adds. No network uses these kernels;
// `tinyfcn bench` compares the others with them.
//
//   copy           y[i] = x[i]
//   multiply-add   y[i] = sum over k = 0 .. 7 of c_k; c_k = x[i] + k, then `rounds` times c_k * scale + shift
//
//   array   shape    in or out
//   x       (I)      in
//   y       (I)      out
//
//   kernel              grid             block   global reads a thread   writes            flops a thread
//   peak_copy           ceil(I/4096)     256     4 float4s               4 float4s         0
//   peak_multiply_add   ceil(I/256)      256     1                       1                 16 * rounds
//
// Each thread of the copy has four loads of 16 bytes in flight before its first store, because memory answers late.
// Each multiply-add needs the one before it and waits some four cycles for it. Eight independent chains give the thread
// something to do meanwhile, and two such warps keep a scheduler busy.
//
//   chain 0   c0 . . . c0' . . . c0"              one chain: a multiply-add every four cycles
//   chain 1     c1 . . . c1' . . . c1"            four and more: one every cycle, which is the peak
//
// Read next: tinyfcn/bench/roofline.py, which measures.

constexpr int COPY_THREADS = 256;
constexpr int COPY_FOURS = 4;  // a thread
constexpr int CHAINS = 8;

extern "C" __global__ void __launch_bounds__(COPY_THREADS)
    peak_copy(const float* __restrict__ x, float* __restrict__ y, int fours) {
    const int first = blockIdx.x * COPY_THREADS * COPY_FOURS + threadIdx.x;  // 0 .. fours - 1, and some surplus
    float4 held[COPY_FOURS];
#pragma unroll
    for (int k = 0; k < COPY_FOURS; ++k)
        if (first + k * COPY_THREADS < fours) held[k] = reinterpret_cast<const float4*>(x)[first + k * COPY_THREADS];
#pragma unroll
    for (int k = 0; k < COPY_FOURS; ++k)
        if (first + k * COPY_THREADS < fours) reinterpret_cast<float4*>(y)[first + k * COPY_THREADS] = held[k];
}

extern "C" __global__ void peak_multiply_add(const float* __restrict__ x, float* __restrict__ y, float scale,
                                             float shift, int rounds, int count) {
    int element = thread_number();  // 0 .. count - 1, and the last block's surplus
    if (element >= count) return;
    float chain[CHAINS];
#pragma unroll
    for (int k = 0; k < CHAINS; ++k) chain[k] = x[element] + k;
#pragma unroll 16  // so that the loop counter costs next to nothing
    for (int round = 0; round < rounds; ++round)
#pragma unroll
        for (int k = 0; k < CHAINS; ++k) chain[k] = chain[k] * scale + shift;
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < CHAINS; ++k) sum += chain[k];
    y[element] = sum;
}
