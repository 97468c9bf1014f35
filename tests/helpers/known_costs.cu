// Kernels whose requests, sectors and wavefronts can be told by hand: see known_costs.py.

// --- Which sectors of global memory ---
extern "C" __global__ void strided(const float* x, float* y, int stride) {
    int i = thread_number();
    y[i] = x[i * stride];
}
extern "C" __global__ void shifted(const float* x, float* y, int by) {
    int i = thread_number();
    y[i] = x[i + by];
}
extern "C" __global__ void one_for_all(const float* x, float* y) { y[thread_number()] = x[blockIdx.x]; }
extern "C" __global__ void reversed(const float* x, float* y) { y[thread_number()] = x[255 - thread_number()]; }
extern "C" __global__ void shuffled(const float* x, const int* index, float* y) {
    y[thread_number()] = x[index[thread_number()]];
}
extern "C" __global__ void bytes(const unsigned char* x, unsigned char* y) { y[thread_number()] = x[thread_number()]; }
extern "C" __global__ void shorts(const short* x, short* y) { y[thread_number()] = x[thread_number()]; }
extern "C" __global__ void longs(const long long* x, long long* y) { y[thread_number()] = x[thread_number()]; }
extern "C" __global__ void by_two(const float* x, float* y) {
    int i = thread_number();
    reinterpret_cast<float2*>(y)[i] = reinterpret_cast<const float2*>(x)[i];
}
extern "C" __global__ void by_four(const float* x, float* y, int shift) {
    int i = thread_number();
    float4 four = reinterpret_cast<const float4*>(x)[i + shift];
    four.x += 1.0f;
    reinterpret_cast<float4*>(y)[i] = four;
}
extern "C" __global__ void first_of_four(const float4* x, float* y) { y[thread_number()] = x[thread_number()].x; }
struct Point {
    float x, y, z;
};
extern "C" __global__ void points(const float* x, float* y) {
    const Point& point = reinterpret_cast<const Point*>(x)[thread_number()];
    y[thread_number()] = point.x + point.y * point.z;
}
extern "C" __global__ void copied(const float* x, float* y, int bytes) {
    memcpy(y + 64 * threadIdx.x, x + 64 * threadIdx.x, bytes);
}
extern "C" __global__ void rows_of_16(const float* x, float* y, int pitch) {  // blocks of 16 x 16
    y[threadIdx.y * 16 + threadIdx.x] = x[threadIdx.y * pitch + threadIdx.x];
}
extern "C" __global__ void cubes(const float* x, float* y) {  // blocks of 4 x 4 x 4
    int i = (threadIdx.z * 4 + threadIdx.y) * 4 + threadIdx.x;
    y[i] = x[(threadIdx.z * 16 + threadIdx.y) * 16 + threadIdx.x];
}
extern "C" __global__ void transposed(const float* x, float* y) {
    y[threadIdx.y * 32 + threadIdx.x] = x[threadIdx.x * 32 + threadIdx.y];
}
extern "C" __global__ void grid_stride(const float* x, float* y, int n) {
    for (int i = thread_number(); i < n; i += gridDim.x * blockDim.x) y[i] = x[i];
}
extern "C" __global__ void either(const float* x, const float* z, float* y) {
    const float* from = threadIdx.x < 16 ? x : z;
    y[threadIdx.x] = from[threadIdx.x];
}

// --- Which banks of shared memory ---
extern "C" __global__ void transposed_by_tile(const float* x, float* y) {
    __shared__ float tile[32][32];
    tile[threadIdx.y][threadIdx.x] = x[threadIdx.y * 32 + threadIdx.x];
    __syncthreads();
    y[threadIdx.y * 32 + threadIdx.x] = tile[threadIdx.x][threadIdx.y];
}
extern "C" __global__ void transposed_by_odd_tile(const float* x, float* y) {
    __shared__ float tile[32][33];
    tile[threadIdx.y][threadIdx.x] = x[threadIdx.y * 32 + threadIdx.x];
    __syncthreads();
    y[threadIdx.y * 32 + threadIdx.x] = tile[threadIdx.x][threadIdx.y];
}
extern "C" __global__ void from_shared(float* y, int stride) {
    extern __shared__ float tile[];
    for (int k = threadIdx.x; k < 1056; k += 32) tile[k] = k;
    __syncthreads();
    y[threadIdx.x] = tile[threadIdx.x * stride];
}
extern "C" __global__ void from_shared_by_two(float* y, int stride) {
    __shared__ __align__(16) float tile[1024];
    for (int k = threadIdx.x; k < 1024; k += 32) tile[k] = k;
    __syncthreads();
    float2 two = reinterpret_cast<float2*>(tile)[threadIdx.x * stride];
    y[threadIdx.x] = two.x + two.y;
}
extern "C" __global__ void from_shared_by_four(float* y, int stride) {
    __shared__ __align__(16) float tile[2048];
    for (int k = threadIdx.x; k < 2048; k += 32) tile[k] = k;
    __syncthreads();
    float4 four = reinterpret_cast<float4*>(tile)[threadIdx.x * stride];
    y[threadIdx.x] = four.x + four.w;
}
extern "C" __global__ void from_shared_bytes(unsigned char* y) {
    __shared__ unsigned char tile[32];
    tile[threadIdx.x] = threadIdx.x;
    __syncwarp();
    y[threadIdx.x] = tile[31 - threadIdx.x];
}

// --- Atomics ---
extern "C" __global__ void count_all(int* y) { atomicAdd(y, 1); }
extern "C" __global__ void count_each(int* y) { atomicAdd(y + threadIdx.x, 1); }
extern "C" __global__ void histogram(int* y) {
    __shared__ int bins[8];
    if (threadIdx.x < 8) bins[threadIdx.x] = 0;
    __syncthreads();
    atomicAdd(bins + threadIdx.x % 8, 1);
    __syncthreads();
    if (threadIdx.x < 8) y[threadIdx.x] = bins[threadIdx.x];
}

// --- Which lanes execute together ---
extern "C" __global__ void early_return(const float* x, float* y, int n) {
    int i = thread_number();
    if (i >= n) return;
    y[i] = x[i];
}
extern "C" __global__ void return_before_barrier(const float* x, float* y) {
    __shared__ float tile[32];
    if (threadIdx.x >= 20) return;
    tile[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = tile[19 - threadIdx.x];
}
extern "C" __global__ void late_lanes(const float* x, float* y, int rounds) {  // 8 lanes skip the first round
    float sum = 0.0f;
    for (int k = 0; k < rounds; ++k) {
        if (k == 0 && threadIdx.x < 8) continue;
        sum += x[k * 8];
    }
    y[threadIdx.x] = sum;
}
extern "C" __global__ void triangle(const float* x, float* y) {  // twice as many rounds as the lane's number says
    float sum = 0.0f;
    for (int twice = 0; twice < 2; ++twice) {
        for (int k = 0; k <= threadIdx.x; ++k) sum += x[(twice * 32 + k) * 8];
        y[twice * 32 + threadIdx.x] = sum;
    }
}
extern "C" __global__ void two_arms(const float* x, float* y) {
    if (threadIdx.x % 2) y[threadIdx.x] = x[threadIdx.x];
    else y[threadIdx.x] = x[32 + threadIdx.x];
}
extern "C" __global__ void four_arms(const float* x, const float* z, float* y) {
    float value = 0.0f;
    switch (threadIdx.x % 4) {
        case 0: value = x[threadIdx.x]; break;
        case 1: value = 2.0f * x[threadIdx.x] + 1.0f; break;
        case 2: value = x[threadIdx.x] * x[threadIdx.x + 32]; break;
        default: break;
    }
    y[threadIdx.x] = value + z[threadIdx.x];  // together again
}
extern "C" __global__ void arm_in_a_loop(const float* x, const float* z, float* y) {
    float sum = 0.0f;
    for (int k = 0; k < 4; ++k) {
        if (threadIdx.x % 4 == k) sum += x[k * 32 + threadIdx.x];
        sum += z[k * 8];
    }
    y[threadIdx.x] = sum;
}
extern "C" __global__ void breaks(const float* x, const float* z, float* y) {
    float sum = 0.0f;
    for (int outer = 0; outer < 4; ++outer) {
        for (int k = 0; k < 8; ++k) {
            if ((threadIdx.x + k) % 8 == 7) break;
            sum += x[(outer * 8 + k) * 8];
        }
        sum += z[outer * 8];  // together again
    }
    y[threadIdx.x] = sum;
}
extern "C" __global__ void breaks_of_two_loops(const float* x, const float* z, float* y) {
    float sum = 0.0f;
    bool found = false;
    for (int outer = 0; outer < 4 && !found; ++outer)
        for (int k = 0; k < 4; ++k) {
            sum += x[(outer * 4 + k) * 8];
            found = outer * 4 + k == threadIdx.x;  // lanes 16 to 31 never find theirs
            if (found) break;
        }
    y[threadIdx.x] = sum + z[0];
}
extern "C" __global__ void do_while(const int* x, int* y) {  // x[i] = i + 1: a chain of 32 - i loads
    int at = threadIdx.x, count = 0;
    do {
        at = x[at];
        ++count;
    } while (at < 32);
    y[threadIdx.x] = count;
}
extern "C" __global__ void three_loops(const float* x, float* y) {
    float sum = 0.0f;
    for (int i = 0; i < 2; ++i)
        for (int j = 0; j <= threadIdx.x % 2; ++j)
            for (int k = 0; k <= threadIdx.x % 4; ++k) sum += x[((i * 2 + j) * 4 + k) * 8];
    y[threadIdx.x] = sum;
}
extern "C" __global__ void barrier_in_a_loop(const float* x, float* y) {
    __shared__ float tile[64];
    float sum = 0.0f;
    for (int chunk = 0; chunk < 3; ++chunk) {
        if (threadIdx.x < 40) tile[threadIdx.x] = x[chunk * 64 + threadIdx.x];
        __syncthreads();
        for (int k = 0; k < 2 + threadIdx.x % 2; ++k) sum += tile[k];
        __syncthreads();
    }
    y[threadIdx.x] = sum;
}
extern "C" __global__ void warps_of_their_own(const float* x, const float* z, float* y) {
    y[threadIdx.x] = threadIdx.x < 32 ? x[threadIdx.x] : z[threadIdx.x];
}
extern "C" __global__ void shuffles(const float* x, const float* z, float* y) {
    float sum = x[threadIdx.x];
    for (int apart = 16; apart > 0; apart /= 2) sum += __shfl_down_sync(0xffffffff, sum, apart);
    if (threadIdx.x == 0) y[0] = sum + z[0];
}

// --- Functions that are not inlined ---
__device__ __noinline__ float load(const float* x, int i) { return x[i]; }
__device__ __noinline__ float load_twice(const float* x, int i) { return load(x, i) + load(x, i + 32); }
__device__ __noinline__ float load_some(const float* x, int count) {
    float sum = 0.0f;
    for (int k = 0; k < count; ++k) sum += x[k * 8];
    return sum;
}
__device__ __noinline__ float add_up(const float* x, int n) { return n ? x[n * 8] + add_up(x, n - 1) : 0.0f; }
extern "C" __global__ void two_calls(const float* x, const float* z, float* y) {
    y[threadIdx.x] = load(x, threadIdx.x) + load(z, 31 - threadIdx.x);
}
extern "C" __global__ void call_in_an_arm(const float* x, const float* z, float* y) {
    float sum = 0.0f;
    if (threadIdx.x < 8) sum += load(x, threadIdx.x);
    y[threadIdx.x] = sum + load(z, threadIdx.x);
}
extern "C" __global__ void calls_of_calls(const float* x, float* y) {
    y[threadIdx.x] = load_twice(x, threadIdx.x) + load_twice(x, 64 + threadIdx.x);
}
extern "C" __global__ void calls_in_a_loop(const float* x, const float* z, float* y) {
    float sum = 0.0f;
    for (int k = 0; k < 3; ++k) sum += load_some(x, 1 + threadIdx.x % 4) * z[k * 8];
    y[threadIdx.x] = sum;
}
extern "C" __global__ void recursion(const float* x, float* y) { y[threadIdx.x] = add_up(x, 1 + threadIdx.x % 3); }
