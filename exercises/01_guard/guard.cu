extern "C" __global__ void relu(const float* x, float* y, int count) {
    int element = blockIdx.x * blockDim.x + threadIdx.x;
    // hole: about 1 line
    if (element >= count) return;
    // end of hole
    y[element] = x[element] < 0.0f ? 0.0f : x[element];
}
