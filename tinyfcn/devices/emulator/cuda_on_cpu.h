// Defines CUDA's keywords and functions in C++ for a CPU. The emulator includes it before the text of a kernel file.
//
// This file holds only what a kernel can name. The code that runs the threads is in threads.cpp.
#pragma once

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#undef _GLIBCXX_USE_STD_SPEC_FUNCS  // without Bessel functions and the like, which take longer to parse than a kernel
#include <math.h>

#include "runtime.h"

// Constant for a kernel, so the compiler may keep them in registers. When a thread goes on after a wait, the runtime
// has restored the thread's own values.
extern const uint3 threadIdx, blockIdx;
extern const dim3 blockDim, gridDim;

// NVRTC does not define INFINITY and NAN, so a kernel that uses them must not compile on the emulator either.
#undef INFINITY
#undef NAN

#ifdef EMULATOR_DOUBLE  // widens the types; build.py replaces the functions and literals
#define float double
#endif

// --- Where functions and variables live. Blocks run one at a time, so shared memory can be static. ---
#define __global__ __attribute__((noinline))  // check mode watches the accesses of a kernel, but not of its caller
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
// `used`: after a barrier the compiler must read a variable again, because another thread may have written to it. A gap
// separates variables, so that an index one past the end does not reach the next one. It also ends where a variable
// that is not declared __align__(16) lies at no multiple of 16, as it may on a GPU.
#define EMULATOR_GAP \
    static __attribute__((used, aligned(16))) char EMULATOR_UNIQUE(__COUNTER__)[16 + alignof(float)];
#define EMULATOR_SHARED(...) EMULATOR_GAP static __attribute__((used, aligned(alignof(__VA_ARGS__))))
#define __shared__ EMULATOR_GAP static __attribute__((used, aligned(16)))
#define EMULATOR_UNIQUE(number) EMULATOR_JOIN(emulator_gap_, number)
#define EMULATOR_JOIN(a, b) a##b

// --- Vectors, aligned as on the GPU ---
#define EMULATOR_VECTORS(type, name, align2, align4) \
    struct __align__(align2) name##2 { type x, y; }; \
    struct __align__(align4) name##4 { type x, y, z, w; }; \
    inline name##2 make_##name##2(type x, type y) { return {x, y}; } \
    inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
EMULATOR_VECTORS(float, float, 2 * sizeof(float), 16)
EMULATOR_VECTORS(int, int, 8, 16)
EMULATOR_VECTORS(unsigned int, uint, 8, 16)
EMULATOR_VECTORS(unsigned char, uchar, 2, 4)

// --- Threads that wait for each other ---
using emulator::SourceLocation;

inline void __syncthreads(SourceLocation location = SourceLocation()) {
    emulator::wait("__syncthreads", location, 0, emulator::BARRIER, 0);
}
inline void __threadfence() {}
inline void __threadfence_block() {}

constexpr unsigned EMULATOR_ALL_LANES = 0xffffffff;

inline unsigned emulator_vote(const char* operation, SourceLocation location, unsigned mask, bool mine) {
    return static_cast<unsigned>(emulator::wait(operation, location, mask, emulator::VOTE, mine));
}
inline void __syncwarp(unsigned mask = EMULATOR_ALL_LANES, SourceLocation location = SourceLocation()) {
    emulator_vote("__syncwarp", location, mask, true);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, SourceLocation location = SourceLocation()) {
    return emulator_vote("__ballot_sync", location, mask, predicate);
}
inline int __any_sync(unsigned mask, int predicate, SourceLocation location = SourceLocation()) {
    return emulator_vote("__any_sync", location, mask, predicate) != 0;
}
inline int __all_sync(unsigned mask, int predicate, SourceLocation location = SourceLocation()) {
    return emulator_vote("__all_sync", location, mask, !predicate) == 0;
}

// The lanes of a shuffle form groups of `width`. If the source lane would lie outside its group, a thread gets its own
// value.
template <typename T>
T emulator_shuffle(const char* operation, SourceLocation location, unsigned mask, T value, int source) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move values of 4 or 8 bytes");
    unsigned long long bits = 0;
    memcpy(&bits, &value, sizeof value);
    bits = emulator::wait(operation, location, mask, source, bits);
    memcpy(&value, &bits, sizeof value);
    return value;
}
template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize, SourceLocation location = SourceLocation()) {
    const int group = emulator::lane() & -width;
    return emulator_shuffle("__shfl_sync", location, mask, value, group + (source & (width - 1)));
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize,
                   SourceLocation location = SourceLocation()) {
    const int lane = emulator::lane(), source = lane + delta, last = lane | (width - 1);
    return emulator_shuffle("__shfl_down_sync", location, mask, value, source <= last ? source : lane);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize,
                 SourceLocation location = SourceLocation()) {
    const int lane = emulator::lane(), source = lane - delta, first = lane & -width;
    return emulator_shuffle("__shfl_up_sync", location, mask, value, source >= first ? source : lane);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = warpSize,
                  SourceLocation location = SourceLocation()) {
    const int lane = emulator::lane(), source = lane ^ lanes, last = lane | (width - 1);
    return emulator_shuffle("__shfl_xor_sync", location, mask, value, source <= last ? source : lane);
}

// --- Atomics. No other thread runs at the same time, so plain arithmetic is enough. Each returns the old value. ---
#define EMULATOR_UNWATCHED __attribute__((noinline, no_sanitize_thread))
#define EMULATOR_ON_ACCESS emulator::on_access(address, sizeof *address, emulator::ATOMIC, __builtin_return_address(0))
#define EMULATOR_ATOMIC(name, updated) \
    template <typename T, typename V> \
    EMULATOR_UNWATCHED T name(T* address, V v) { \
        EMULATOR_ON_ACCESS; \
        const T old = *address, value = T(v); \
        *address = updated; \
        return old; \
    }
EMULATOR_ATOMIC(atomicAdd, old + value)
EMULATOR_ATOMIC(atomicSub, old - value)
EMULATOR_ATOMIC(atomicAnd, old & value)
EMULATOR_ATOMIC(atomicOr, old | value)
EMULATOR_ATOMIC(atomicMin, value < old ? value : old)
EMULATOR_ATOMIC(atomicMax, value > old ? value : old)
EMULATOR_ATOMIC(atomicExch, value)
template <typename T, typename U, typename V>
EMULATOR_UNWATCHED T atomicCAS(T* address, U expected, V value) {
    EMULATOR_ON_ACCESS;
    const T old = *address;
    if (old == T(expected)) *address = T(value);
    return old;
}

// --- Arithmetic. glibc reserves names such as __expf, so they are macros here. ---
#define __expf(x) exp(x)
#define __logf(x) log(x)
#define __log2f(x) log2(x)
#define __powf(x, y) pow(x, y)
#define __sinf(x) sin(x)
#define __cosf(x) cos(x)
#define __fdividef(x, y) ((x) / (y))
#define __ldg(address) (*(address))

inline float rsqrtf(float x) { return 1 / sqrt(x); }
inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1) : 0; }  // NaN becomes 0
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return fma(a, b, c); }
inline int __float2int_rn(float x) { return static_cast<int>(rint(x)); }

// The result has the common type of the two. If one argument is a NaN, the result is the other one.
template <typename A, typename B, typename Common = decltype(A() + B())>
Common min(A a, B b) {
    return Common(a) < Common(b) || b != b ? a : b;
}
template <typename A, typename B, typename Common = decltype(A() + B())>
Common max(A a, B b) {
    return Common(a) > Common(b) || b != b ? a : b;
}

inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>((1ull * a * b) >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return static_cast<unsigned long long>((static_cast<unsigned __int128>(a) * b) >> 64);
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }

#ifndef EMULATOR_DOUBLE  // a function that reads the 32 bits of a float cannot be widened
template <typename To, typename From>
To emulator_same_bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
inline int __float_as_int(float x) { return emulator_same_bits<int>(x); }
inline unsigned __float_as_uint(float x) { return emulator_same_bits<unsigned>(x); }
inline float __int_as_float(int x) { return emulator_same_bits<float>(x); }
inline float __uint_as_float(unsigned x) { return emulator_same_bits<float>(x); }
#endif

// --- Memory functions, which check mode sees as reads and writes. ---
EMULATOR_UNWATCHED inline void* emulator_memset(void* to, int byte, size_t bytes) {
    if (bytes) emulator::on_access(to, bytes, emulator::WRITE, __builtin_return_address(0));
    return memset(to, byte, bytes);
}
EMULATOR_UNWATCHED inline void* emulator_memcpy(void* to, const void* from, size_t bytes) {
    if (bytes) emulator::on_access(from, bytes, emulator::READ, __builtin_return_address(0));
    if (bytes) emulator::on_access(to, bytes, emulator::WRITE, __builtin_return_address(0));
    return memcpy(to, from, bytes);
}
#define memset emulator_memset
#define memcpy emulator_memcpy

// --- For Python: one exported function per kernel. Like cuLaunchKernel, it takes pointers to the arguments. ---
struct EmulatorCall {
    template <typename... T>
    EMULATOR_UNWATCHED EmulatorCall(void (*kernel)(T...), T... arguments) {
        kernel(arguments...);
    }
};
template <typename... T>
EMULATOR_UNWATCHED void emulator_call(void (*kernel)(T...), void** list) {
    EmulatorCall{kernel, *static_cast<T*>(*list++)...};  // braces evaluate the arguments from left to right
}

#define EMULATOR_EXPORT(name, ...) \
    extern "C" __attribute__((visibility("default"))) void kernel_##name(void** arguments) { \
        emulator_call(&kernels::__VA_ARGS__, arguments); \
    }
