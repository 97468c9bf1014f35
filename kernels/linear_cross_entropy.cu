// The last layer of a network with its loss: a linear layer at each position, the softmax cross-entropy of its outputs,
// forward and backward in one kernel. softmax_cross_entropy.cu explains the loss; the symbols are those of its header.
//
//   logits[n,k,s] = bias[k] + sum over c of weight[k,c] * x[n,c,s]            a 1x1 convolution
//   loss, dlogits = as in softmax_cross_entropy.cu
//   dx[n,c,s]     = sum over k of weight[k,c] * dlogits[n,k,s]                0 where x is, if through_relu
//
//   array      shape     linear_cross_entropy
//   x          (N,C,S)   in
//   weight     (K,C)     in
//   bias       (K)       in
//   labels     (N,S)     in      0 .. K - 1, or ignore_index; any other makes the loss NaN
//   parts      (B)       out     what each of B blocks adds to the mean; softmax_cross_entropy_mean adds them up
//   dlogits    (N,K,S)   out
//   dx         (N,C,S)   out
//
//   kernel                 grid                          block   global reads a thread      writes
//   linear_cross_entropy   ceil(N*S/256) <= 512          256     2*C + 1 for a position,    C + K, and 1 a block
//                          few positions: ceil(N*S/32)   32      and K*C/block weights
//
// A position's logits need that position's channels alone. So a thread computes logits, loss, dlogits and dx of its
// position: no logit is stored, and no dlogit is read again. For 16 images of 64x84 with 16 channels and 11 classes that
// moves 15 MB in one launch, and 32 MB in three.
//
//   x[0..C-1] --weight, bias--> logits[0..K-1] --softmax, label--> loss, dlogits[0..K-1] --weight--> dx[0..C-1]
//
// All threads read the same float4 at once, the weights of four classes, which shared memory serves like one thread's.
//
// There is no naive form: the operations that this kernel fuses are it.
//
// Read next: adam.cu.

template <int K, int C>
__global__ void __launch_bounds__(LOSS_THREADS, 1)  // registers enough that none is spilled
    linear_cross_entropy(const float* __restrict__ x, const float* __restrict__ weight, const float* __restrict__ bias,
                         const int* __restrict__ labels, float* __restrict__ parts, float* __restrict__ dlogits,
                         float* __restrict__ dx, int N, int S, int ignore_index, float unlabelled, int through_relu) {
    constexpr int FOURS = (K + 3) / 4, CLASSES = 4 * FOURS;  // float4s that hold a channel's weights, 0 from K on
    __shared__ float4 weights[C * FOURS];
    const unsigned int positions = N * S;
    for (int k = threadIdx.x; k < C * CLASSES; k += blockDim.x) {
        int c = k / CLASSES, of = k % CLASSES;  // the class may be surplus
        reinterpret_cast<float*>(weights)[k] = of < K ? weight[of * C + c] : 0.0f;
    }
    __syncthreads();  // until all weights are there

    float mine = 0.0f;  // the sum of this thread's losses
    for (unsigned int position = thread_number(); position < positions; position += gridDim.x * blockDim.x) {
        const int pixel = position / S * C * S + position % S;   // its x: pixel, pixel + S, pixel + 2*S, ...
        const int output = position / S * K * S + position % S;  // and likewise its dlogits
        float logit[CLASSES] = {}, dlogit[CLASSES] = {};
#pragma unroll
        for (int k = 0; k < K; ++k) logit[k] = bias[k];
#pragma unroll 8
        for (int c = 0; c < C; ++c) {
            float value = x[pixel + c * S];
#pragma unroll
            for (int k = 0; k < CLASSES; k += 4) {
                float4 w = weights[c * FOURS + k / 4];
                logit[k] += w.x * value;
                if (k + 1 < K) logit[k + 1] += w.y * value;
                if (k + 2 < K) logit[k + 2] += w.z * value;
                if (k + 3 < K) logit[k + 3] += w.w * value;
            }
        }
        mine += loss_and_gradient<K>(logit, dlogit, labels[position], ignore_index, unlabelled, positions);
#pragma unroll
        for (int k = 0; k < K; ++k) dlogits[output + k * S] = dlogit[k];
#pragma unroll 4
        for (int c = 0; c < C; ++c) {
            float sum = 0.0f;
#pragma unroll
            for (int k = 0; k < CLASSES; k += 4) {
                float4 again = weights[c * FOURS + k / 4];
                sum += again.x * dlogit[k];
                if (k + 1 < K) sum += again.y * dlogit[k + 1];
                if (k + 2 < K) sum += again.z * dlogit[k + 2];
                if (k + 3 < K) sum += again.w * dlogit[k + 3];
            }
            bool is_open = !through_relu || !(x[pixel + c * S] <= 0.0f);  // a NaN passes
            dx[pixel + c * S] = is_open ? sum : 0.0f;
        }
    }
    add_up_losses(mine, parts, positions);
}
