// One thread adds up all.
//
// The loss of a batch is the mean over all positions of -log p[label]. A first kernel computes the loss of each
// position, a thread each. A second kernel has a single block. Its threads compute nothing: thread 0 adds up all
// losses.
//
// What it pays: one lane of one warp of one multiprocessor works, and each addition waits for the one before.

extern "C" __global__ void losses_of_positions(const float* __restrict__ logits, const int* __restrict__ labels,
                                               float* __restrict__ losses, int count, int K, int S) {
    int position = thread_number();  // 0 .. count - 1, and the last block's surplus
    if (position >= count) return;
    const float* own = logits + position / S * K * S + position % S;  // its logits are S apart
    float largest = own[0], sum = 0.0f;
    for (int k = 1; k < K; ++k) largest = fmaxf(largest, own[k * S]);
    for (int k = 0; k < K; ++k) sum += expf(own[k * S] - largest);
    losses[position] = logf(sum) - (own[labels[position] * S] - largest);
}

extern "C" __global__ void mean_by_one_thread(const float* __restrict__ losses, float* __restrict__ mean, int count) {
    if (threadIdx.x > 0) return;
    float total = 0.0f;
    for (int position = 0; position < count; ++position) total += losses[position];
    mean[0] = total / count;
}
