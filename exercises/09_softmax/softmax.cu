// p[k] = exp(logit[k]) / sum over q of exp(logit[q]);  losses[n] = -log p[label];  dlogits[n][k] = p[k] - (k == label)

extern "C" __global__ void softmax_cross_entropy(const float* logits, const int* labels, float* losses, float* dlogits,
                                                 int N, int K) {
    int n = blockIdx.x * blockDim.x + threadIdx.x;
    if (n >= N) return;
    const float* logit = logits + n * K;  // the K logits of this position
    float* dlogit = dlogits + n * K;
    int label = labels[n];

    // hole: about 6 lines
    float largest = logit[0];
    for (int k = 1; k < K; ++k) largest = fmaxf(largest, logit[k]);
    float sum = 0.0f;
    for (int k = 0; k < K; ++k) sum += expf(logit[k] - largest);
    losses[n] = logf(sum) - (logit[label] - largest);
    for (int k = 0; k < K; ++k) dlogit[k] = expf(logit[k] - largest) / sum - (k == label ? 1.0f : 0.0f);
    // end of hole
}
