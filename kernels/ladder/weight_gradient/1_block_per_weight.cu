// A block a weight.
//
// The gradient of a weight is a sum over all images and outputs: of what reached the output times the input under the
// weight. A block owns a weight. Each of its threads adds up every 64th product, and thread 0 adds the 64 sums. The
// order is fixed, so the bits are.
//
// What it pays: two loads for each product. Blocks of the same output channel load the same dout, once for each weight.

extern "C" __global__ void weight_gradient_block_per_weight(const float* __restrict__ dout, const float* __restrict__ x,
                                                            float* __restrict__ dweight, int N, int C, int H, int W,
                                                            int O, int OH, int OW, int KH, int KW, int stride,
                                                            int padding) {
    int v = blockIdx.x % KW, u = blockIdx.x / KW % KH, c = blockIdx.x / (KW * KH) % C, o = blockIdx.x / (KW * KH * C);
    float sum = 0.0f;
    for (int position = threadIdx.x; position < N * OH * OW; position += SUM_THREADS) {
        int j = position % OW, i = position / OW % OH, n = position / (OW * OH);
        int h = i * stride + u - padding, w = j * stride + v - padding;
        if (h < 0 || h >= H || w < 0 || w >= W) continue;
        sum += dout[((n * O + o) * OH + i) * OW + j] * x[((n * C + c) * H + h) * W + w];
    }
    float total = block_sum(sum);
    if (threadIdx.x == 0) dweight[blockIdx.x] = total;
}
