// Softmax, and softmax followed by the cross-entropy with integer labels, forward and backward in one.
//
//   p[n,k,s] = exp(logits[n,k,s]) / sum over q of exp(logits[n,q,s])          s: a place in the picture, or the only one
//   loss     = mean over all n,s of -log p[n, label[n,s], s]                  a place labelled ignore_index adds 0
//   dlogits  = (p - onehot(label)) / (N*S)
//   an ignored place: dlogits = unlabelled * p / (N*S)                        unlabelled 0: as mathematics says;
//                                                                             1: as TensorFlow's op, see below
//   array      shape     softmax   cross-entropy
//   logits     (N,K,S)   in        in
//   p          (N,K,S)   out
//   labels     (N,S)               in       0 .. K - 1, or ignore_index
//   losses     (N,S)               out      naive: of each place, before the mean
//   parts      (B)                 out      of B blocks: what each adds to the mean
//   dlogits    (N,K,S)             out
//   loss       (1)                 out      of softmax_cross_entropy_mean
//
//   kernel                             grid                   block   global reads a thread   writes
//   softmax                            ceil(N*S/256)          256     3*K                     K
//   softmax_cross_entropy_naive        ceil(N*S/256)          256     3*K + 2                 K + 1
//   softmax_cross_entropy_mean_naive   1                      64      N*S / 64                1
//   softmax_cross_entropy              ceil(N*S/256) <= 512   256     K + 1 for each place    K, and 1 a block
//   softmax_cross_entropy_mean         1                      32      16 at most              1
//
// Subtracting the largest logit first changes nothing in p, as exp(a - m) / exp(b - m) = exp(a) / exp(b), and keeps
// exp from overflowing: logits of 1e4 are harmless.
//
//   logits  1   2   3      p  .09  .24  .67      label 2:  loss -log .665 = .41,  dlogits  .09  .24  -.33
//
// The gradient sums to 0 over the classes where there is a label. TensorFlow's softmax_cross_entropy_with_logits returns
// p - labels whatever the labels add up to: for a one-hot row of zeros that is p, all of it positive, although the loss of
// such a row is 0. Every step pushes all its logits down, for ever. The article's white backgrounds come of it.
//
// What the naive form pays: the logits are read three times and exp is taken twice of each, as a loop over any number
// of classes has nowhere to keep them; and 64 threads of one block, the other 131 multiprocessors idle, read the losses
// of all N*S places one after another.
//
// What the fast form saves: the compiler knows K (a template's, 1 .. 32; for more classes the naive form is launched),
// so that a place's logits stay in registers, all K reads under way at once; exp is taken once. Each block adds up its
// own losses, in a fixed order:
//
//   thread      0 .. 31   32 .. 63   ...   224 .. 255      one loss each (several, if there are more than 512 * 256)
//                  |          |                |           shuffles: the sum of a warp, in its first lane
//               in_warp[0]  [1]       ...     [7]          shared memory
//                  +----------+-------...------+           thread 0: the sum of the block, over N*S -> parts[block]
//
// One warp adds up the parts. Where a single block sees all places, as of the classifier's 128 pictures, its part is
// the loss. Neighbouring threads take neighbouring places, so a warp reads whole lines; but for S = 1, where they lie K
// apart: of so few numbers the cache keeps the rest of a line until the next k wants it.
//
// Read next: adam.cu.

constexpr int LOSS_THREADS = 256;  // a block of softmax_cross_entropy
constexpr int MAX_PARTS = 512;    // blocks: 4 on each of 132 multiprocessors, and 16 parts for each lane of one warp

extern "C" __global__ void softmax(const float* __restrict__ logits, float* __restrict__ p, int N, int K, int S) {
    int place = thread_number();  // 0 .. N*S - 1, and the last block's surplus
    if (place >= N * S) return;
    int first = place / S * K * S + place % S;  // this place's logits: first, first + S, first + 2*S, ...

    float largest = logits[first];
    for (int k = 1; k < K; ++k) largest = fmaxf(largest, logits[first + k * S]);
    float sum = 0.0f;
    for (int k = 0; k < K; ++k) sum += expf(logits[first + k * S] - largest);
    for (int k = 0; k < K; ++k) p[first + k * S] = expf(logits[first + k * S] - largest) / sum;
}

extern "C" __global__ void softmax_cross_entropy_naive(const float* __restrict__ logits, const int* __restrict__ labels,
                                                       float* __restrict__ losses, float* __restrict__ dlogits, int N,
                                                       int K, int S, int ignore_index, float unlabelled) {
    int place = thread_number();  // 0 .. N*S - 1, and the last block's surplus
    if (place >= N * S) return;
    int first = place / S * K * S + place % S;  // this place's logits: first, first + S, first + 2*S, ...
    int label = labels[place];
    bool ignored = label == ignore_index;

    float largest = logits[first];
    for (int k = 1; k < K; ++k) largest = fmaxf(largest, logits[first + k * S]);
    float sum = 0.0f;
    for (int k = 0; k < K; ++k) sum += expf(logits[first + k * S] - largest);

    // log(sum) - (logit - largest) is -log p without ever forming p, which could round to 0.
    losses[place] = ignored ? 0.0f : logf(sum) - (logits[first + label * S] - largest);
    float scale = (ignored ? unlabelled : 1.0f) / (N * S);
    for (int k = 0; k < K; ++k) {
        float p = expf(logits[first + k * S] - largest) / sum;
        dlogits[first + k * S] = scale * (k == label && !ignored ? p - 1.0f : p);
    }
}

extern "C" __global__ void softmax_cross_entropy_mean_naive(const float* __restrict__ losses, float* __restrict__ loss,
                                                            int count) {
    float sum = 0.0f;
    for (int place = threadIdx.x; place < count; place += SUM_THREADS) sum += losses[place];
    float total = block_sum(sum);
    if (threadIdx.x == 0) loss[0] = total / count;
}

template <int K>
__global__ void __launch_bounds__(LOSS_THREADS)
    softmax_cross_entropy(const float* __restrict__ logits, const int* __restrict__ labels, float* __restrict__ parts,
                          float* __restrict__ dlogits, int N, int S, int ignore_index, float unlabelled) {
    __shared__ float in_warp[LOSS_THREADS / 32];  // the losses of each warp
    const unsigned int places = N * S;            // unsigned, because `place` goes past it by as much as all threads
    float mine = 0.0f;                            // the losses of this thread's places

    for (unsigned int place = thread_number(); place < places; place += gridDim.x * LOSS_THREADS) {
        const int first = place / S * K * S + place % S;  // this place's logits: first, first + S, first + 2*S, ...
        const int label = labels[place];
        const bool ignored = label == ignore_index;
        float logit[K];
#pragma unroll
        for (int k = 0; k < K; ++k) logit[k] = logits[first + k * S];

        float largest = logit[0];
#pragma unroll
        for (int k = 1; k < K; ++k) largest = fmaxf(largest, logit[k]);
        float power[K];
        float sum = 0.0f;
        float chosen = 0.0f;  // the label's logit; `logit[label]` would be an index into registers, which have none
#pragma unroll
        for (int k = 0; k < K; ++k) {
            if (k == label) chosen = logit[k];
            power[k] = expf(logit[k] - largest);
            sum += power[k];
        }
        if (!ignored) mine += logf(sum) - (chosen - largest);
        const float scale = (ignored ? unlabelled : 1.0f) / places;
        const float inverse = 1.0f / sum;
#pragma unroll
        for (int k = 0; k < K; ++k) {
            float p = power[k] * inverse;
            dlogits[first + k * S] = k == label && !ignored ? scale * (p - 1.0f) : scale * p;
        }
    }

    for (int distance = 16; distance > 0; distance /= 2) mine += __shfl_down_sync(0xffffffff, mine, distance);
    if (threadIdx.x % 32 == 0) in_warp[threadIdx.x / 32] = mine;
    __syncthreads();  // until every warp has written its losses
    if (threadIdx.x == 0) {
        float total = 0.0f;
        for (int warp = 0; warp < LOSS_THREADS / 32; ++warp) total += in_warp[warp];
        parts[blockIdx.x] = total / places;
    }
}

extern "C" __global__ void softmax_cross_entropy_mean(const float* __restrict__ parts, float* __restrict__ loss,
                                                      int count) {
    float sum = 0.0f;
#pragma unroll  // all reads under way at once
    for (int first = 0; first < MAX_PARTS; first += 32) {
        int part = first + threadIdx.x;  // 0 .. MAX_PARTS - 1
        sum += part < count ? parts[part] : 0.0f;
    }
    for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_down_sync(0xffffffff, sum, distance);
    if (threadIdx.x == 0) loss[0] = sum;
}
