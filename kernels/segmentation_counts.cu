// Segmentation counts: for each image the numbers that all scores are made of, predicted against true classes.
//
//   confusion[n, t, p] = the number of pixels of image n with label t whose largest logit is in channel p
//   overlap[n]         = |claimed and true|, |claimed or true|     over all (pixel s, channel k) with k < F
//
//   Among equal logits the first counts as the largest.
//   claimed(s, k): softmax(logits[n, :, s])[k] > threshold         true(s, k): labels[n, s] = k
//
//   array        shape     type     in or out
//   logits       (N,K,S)   float    in          S: H*W; K at most 32
//   labels       (N,S)     int      in          others than 0 .. K - 1 have no channel and no row in confusion
//   confusion    (N,K,K)   int      out
//   overlap      (N,2)     int      out
//
//   kernel                 grid   block   global reads a thread   writes
//   segmentation_counts    N      256     (2K + F + 1) * S/256    (K*K + 2)/256
//
//   K 3, F 2, threshold .4   logits of a pixel  5 4.8 1   softmax  .55 .45 .01   label 1:
//   confusion[n, 1, 0] += 1; claimed 1 1, true 0 1: one for both, two for either
//
// A block counts one image in shared memory, and its threads share the pixels. The counters are integers, so atomics
// give the same result in any order of the threads; floats would not. Of an image's K * 5,376 numbers at most K*K + 2
// travel to the host. A thread reads its pixel's logits three times, but a block works on only a few kilobytes of them
// at once: the second and third reads hit the cache.
//
// Read next: tinyfcn/metrics.py, which turns the counts into scores.

constexpr int MAX_CLASSES = 32;

extern "C" __global__ void segmentation_counts(const float* __restrict__ logits, const int* __restrict__ labels,
                                               int* __restrict__ confusion, int* __restrict__ overlap, int K, int S,
                                               int F, float threshold) {
    __shared__ int pixels[MAX_CLASSES * MAX_CLASSES];
    __shared__ int pairs[2];
    int n = blockIdx.x;  // 0 .. N - 1
    for (int cell = threadIdx.x; cell < K * K; cell += blockDim.x) pixels[cell] = 0;
    if (threadIdx.x < 2) pairs[threadIdx.x] = 0;
    __syncthreads();  // until all counters are 0

    int both = 0;
    int either = 0;
    for (int s = threadIdx.x; s < S; s += blockDim.x) {
        const float* pixel = logits + n * K * S + s;  // its logits lie S apart
        int predicted = 0;
        float largest = pixel[0];
        for (int k = 1; k < K; ++k) {
            if (pixel[k * S] > largest) {
                largest = pixel[k * S];
                predicted = k;
            }
        }
        float sum = 0.0f;
        for (int k = 0; k < K; ++k) sum += expf(pixel[k * S] - largest);

        int label = labels[n * S + s];
        for (int k = 0; k < F; ++k) {
            bool claimed = expf(pixel[k * S] - largest) / sum > threshold;
            both += claimed && k == label;
            either += claimed || k == label;
        }
        if (label >= 0 && label < K) atomicAdd(&pixels[label * K + predicted], 1);
    }
    atomicAdd(&pairs[0], both);
    atomicAdd(&pairs[1], either);
    __syncthreads();  // until every thread has counted its pixels

    for (int cell = threadIdx.x; cell < K * K; cell += blockDim.x) confusion[n * K * K + cell] = pixels[cell];
    if (threadIdx.x < 2) overlap[n * 2 + threadIdx.x] = pairs[threadIdx.x];
}
