// Softmax and cross-entropy, forward and backward in one kernel. Labels are integers. Softmax alone has a kernel too.
//
//   p[n,k,s] = exp(logits[n,k,s]) / sum over q of exp(logits[n,q,s])          s: a pixel, or the only position
//   loss     = mean over all n,s of -log p[n, label[n,s], s]                  a position labelled ignore_index adds 0
//   dlogits  = (p - onehot(label)) / (N*S)
//   dlogits of an ignored position = unlabelled * p / (N*S)                   unlabelled 0: the loss's gradient;
//                                                                             1: what TensorFlow returns, see below
//
//   array      shape     softmax   cross-entropy
//   logits     (N,K,S)   in        in
//   p          (N,K,S)   out
//   labels     (N,S)               in              0 .. K - 1, or ignore_index; any other makes the loss NaN
//   losses     (N,S)               out             naive: the loss of each position, before the mean
//   parts      (B)                 out             what each of B blocks adds to the mean
//   dlogits    (N,K,S)             out
//   loss       (1)                 out             by softmax_cross_entropy_mean
//
//   kernel                             grid                   block   global reads a thread    writes
//   softmax                            ceil(N*S/256)          256     3*K                      K
//   softmax_cross_entropy_naive        ceil(N*S/256)          256     3*K + 2                  K + 1
//   softmax_cross_entropy_mean_naive   1                      64      N*S / 64                 1
//   softmax_cross_entropy              ceil(N*S/256) <= 512   256     K + 1 for a position     K, and 1 a block
//   softmax_cross_entropy_mean         1                      32      16 at most               1
//
// The largest logit is subtracted first. That changes nothing in p, as exp(a - m) / exp(b - m) = exp(a) / exp(b), and
// exp cannot overflow: logits of 1e4 are harmless.
//
//   logits  1   2   3      p  .09  .24  .67      label 2:  loss -log .665 = .41,  dlogits  .09  .24  -.33
//
// Where there is a label, the gradient sums to 0 over the classes. TensorFlow's softmax_cross_entropy_with_logits
// returns p - labels whatever the labels add up to. For a one-hot row of zeros that is p, all of it positive, although
// the loss of such a row is 0: every step pushes all its logits down, for ever. The article's white backgrounds come
// from this.
//
// Why the naive form is slow. It reads the logits three times and computes each exp twice, because a loop over any
// number of classes has no registers to keep them in. And 64 threads of one block read the losses of all N*S positions
// one after another, while the other 131 multiprocessors idle.
//
// What the fast form does about it. K is a template parameter (1 .. 32; the naive form serves more classes), so a
// position's logits stay in registers, all K reads are in flight at once, and each exp is computed once. Each block
// adds up its own losses in a fixed order:
//
//   thread      0 .. 31   32 .. 63   ...   224 .. 255      one loss each (several, if there are more than 512 * 256)
//                  |          |                |           shuffles: the sum of a warp, in its first lane
//               in_warp[0]  [1]       ...     [7]          shared memory
//                  +----------+-------...------+           thread 0: the sum of the block, over N*S -> parts[block]
//
// One warp then adds up the parts. Where a single block covers all positions, as for the classifier's 128 images, its
// part is the loss. Neighbouring threads take neighbouring positions, so a warp reads whole cache lines. With S = 1 the
// positions lie K apart, but they are so few that the cache keeps the rest of each line for the next k.
//
// Read next: linear_cross_entropy.cu.

constexpr int MAX_PARTS = 512;     // blocks: 4 on each of 132 multiprocessors, and 16 parts for each lane of one warp

extern "C" __global__ void softmax(const float* __restrict__ logits, float* __restrict__ p, int N, int K, int S) {
    int position = thread_number();  // 0 .. N*S - 1, and the last block's surplus
    if (position >= N * S) return;
    int first = position / S * K * S + position % S;  // its logits: first, first + S, first + 2*S, ...

    float largest = logits[first];
    for (int k = 1; k < K; ++k) largest = fmaxf(largest, logits[first + k * S]);
    float sum = 0.0f;
    for (int k = 0; k < K; ++k) sum += expf(logits[first + k * S] - largest);
    for (int k = 0; k < K; ++k) p[first + k * S] = expf(logits[first + k * S] - largest) / sum;
}

extern "C" __global__ void softmax_cross_entropy_naive(const float* __restrict__ logits, const int* __restrict__ labels,
                                                       float* __restrict__ losses, float* __restrict__ dlogits, int N,
                                                       int K, int S, int ignore_index, float unlabelled) {
    int position = thread_number();  // 0 .. N*S - 1, and the last block's surplus
    if (position >= N * S) return;
    int first = position / S * K * S + position % S;  // its logits: first, first + S, first + 2*S, ...
    int label = labels[position];
    bool ignored = label == ignore_index;

    float largest = logits[first];
    for (int k = 1; k < K; ++k) largest = fmaxf(largest, logits[first + k * S]);
    float sum = 0.0f;
    for (int k = 0; k < K; ++k) sum += expf(logits[first + k * S] - largest);

    // log(sum) - (logit - largest) is -log p without ever forming p, which could round to 0.
    float chosen = label >= 0 && label < K ? logits[first + label * S] : nanf("");
    losses[position] = ignored ? 0.0f : logf(sum) - (chosen - largest);
    float scale = (ignored ? unlabelled : 1.0f) / (N * S);
    for (int k = 0; k < K; ++k) {
        float p = expf(logits[first + k * S] - largest) / sum;
        dlogits[first + k * S] = scale * (k == label && !ignored ? p - 1.0f : p);
    }
}

extern "C" __global__ void softmax_cross_entropy_mean_naive(const float* __restrict__ losses, float* __restrict__ loss,
                                                            int count) {
    float sum = 0.0f;
    for (int position = threadIdx.x; position < count; position += SUM_THREADS) sum += losses[position];
    float total = block_sum(sum);
    if (threadIdx.x == 0) loss[0] = total / count;
}

template <int K>
__global__ void __launch_bounds__(LOSS_THREADS)
    softmax_cross_entropy(const float* __restrict__ logits, const int* __restrict__ labels, float* __restrict__ parts,
                          float* __restrict__ dlogits, int N, int S, int ignore_index, float unlabelled) {
    const unsigned int positions = N * S;  // unsigned: `position` may exceed it by all threads
    float mine = 0.0f;                     // the sum of this thread's losses

    for (unsigned int position = thread_number(); position < positions; position += gridDim.x * LOSS_THREADS) {
        const int first = position / S * K * S + position % S;  // its logits: first, first + S, first + 2*S, ...
        const int label = labels[position];
        float logit[K], dlogit[K];
#pragma unroll
        for (int k = 0; k < K; ++k) logit[k] = logits[first + k * S];
        mine += loss_and_gradient<K>(logit, dlogit, label, ignore_index, unlabelled, positions);
#pragma unroll
        for (int k = 0; k < K; ++k) dlogits[first + k * S] = dlogit[k];
    }
    add_up_losses(mine, parts, positions);
}

extern "C" __global__ void softmax_cross_entropy_mean(const float* __restrict__ parts, float* __restrict__ loss,
                                                      int count) {
    float sum = 0.0f;
#pragma unroll  // all reads in flight at once
    for (int first = 0; first < MAX_PARTS; first += 32) {
        int part = first + threadIdx.x;  // 0 .. MAX_PARTS - 1
        sum += part < count ? parts[part] : 0.0f;
    }
    for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_down_sync(0xffffffff, sum, distance);
    if (threadIdx.x == 0) loss[0] = sum;
}
