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
//   losses     (N,S)               out      of each place, before the mean
//   dlogits    (N,K,S)             out
//   loss       (1)                 out      of softmax_cross_entropy_mean
//
//   kernel                        grid             block   global reads a thread   writes
//   softmax                       ceil(N*S/256)    256     3*K                     K
//   softmax_cross_entropy         ceil(N*S/256)    256     3*K + 2                 K + 1
//   softmax_cross_entropy_mean    1                64      N*S / 64                1
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
// Read next: adam.cu.

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

extern "C" __global__ void softmax_cross_entropy(const float* __restrict__ logits, const int* __restrict__ labels,
                                                 float* __restrict__ losses, float* __restrict__ dlogits, int N, int K,
                                                 int S, int ignore_index, float unlabelled) {
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

extern "C" __global__ void softmax_cross_entropy_mean(const float* __restrict__ losses, float* __restrict__ loss,
                                                      int count) {
    float sum = 0.0f;
    for (int place = threadIdx.x; place < count; place += SUM_THREADS) sum += losses[place];
    float total = block_sum(sum);
    if (threadIdx.x == 0) loss[0] = total / count;
}
