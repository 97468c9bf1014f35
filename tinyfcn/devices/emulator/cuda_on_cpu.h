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

#ifndef EMULATOR_NVCC  // build.py: a file that is compiled as nvcc would, which has the C library's names
// NVRTC does not define INFINITY and NAN, so a kernel that uses them must not compile on the emulator either.
#undef INFINITY
#undef NAN
#else
#define register  // C++17 has no such word, and nvcc only warns
#endif

#ifdef EMULATOR_DOUBLE  // widens the types; build.py replaces the functions and literals
#define float double
#endif

// --- Where functions and variables live. Blocks run one at a time, so shared memory can be static. ---
#define __global__ __attribute__((noinline))  // check mode watches the accesses of a kernel, but not of its caller
#define __device__
#define __host__
#define __constant__ __attribute__((used))  // not known when it is compiled: the host may store in it
#define __managed__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __maxnreg__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
// `used`: after a barrier the compiler must read a variable again, because another thread may have written to it. A gap
// separates variables, so that an index one past the end does not reach the next one. It also ends where a variable
// that is not declared __align__(16) lies at no multiple of 16, as it may on a GPU.
#define EMULATOR_GAP \
    static __attribute__((used, aligned(16))) char EMULATOR_UNIQUE(__COUNTER__)[16 + alignof(float)];
#define EMULATOR_SHARED(...) EMULATOR_GAP static __attribute__((used, aligned(alignof(__VA_ARGS__))))
// In a file for nvcc, which lays variables one behind the other: `bytes` of them stand before this one.
#define EMULATOR_SHARED_AFTER(bytes, ...) \
    EMULATOR_GAP static __attribute__((used, aligned((bytes) % 16 ? alignof(__VA_ARGS__) : 16)))
#define __shared__ EMULATOR_GAP static __attribute__((used, aligned(16)))
#define EMULATOR_UNIQUE(number) EMULATOR_JOIN(emulator_gap_, number)
#define EMULATOR_JOIN(a, b) a##b

// --- Vectors, aligned as on the GPU. uint3 is in runtime.h. ---
#ifdef EMULATOR_PROFILE  // a vector is read and written as a whole
extern "C" void emulator_copy(void* to, const void* from, size_t bytes);
#define EMULATOR_COPIES(type, parameters, members, copies, assignments) \
    type() = default; \
    constexpr type parameters : members {} \
    __forceinline__ type(const type& other) { emulator_copy(this, &other, sizeof other); } \
    __forceinline__ type& operator=(const type& other) { \
        emulator_copy(this, &other, sizeof other); \
        return *this; \
    }
#elif defined __clang__  // tests the alignment of a reference, but not that of a struct which is copied whole
#define EMULATOR_COPIES(type, parameters, members, copies, assignments) \
    type() = default; \
    constexpr type parameters : members {} \
    constexpr type(const type& other) : copies {} \
    type& operator=(const type& other) { assignments; return *this; }
#else
#define EMULATOR_COPIES(...)
#endif
#define EMULATOR_COMMA ,
#define EMULATOR_VECTORS(type, name, align2, align4) \
    struct name##1 { type x; }; \
    struct __align__(align2) name##2 { \
        type x, y; \
        EMULATOR_COPIES(name##2, (type a, type b), x(a) EMULATOR_COMMA y(b), x(other.x) EMULATOR_COMMA y(other.y), \
                        (x = other.x, y = other.y)) \
    }; \
    struct __align__(align4) name##4 { \
        type x, y, z, w; \
        EMULATOR_COPIES(name##4, (type a, type b, type c, type d), \
                        x(a) EMULATOR_COMMA y(b) EMULATOR_COMMA z(c) EMULATOR_COMMA w(d), \
                        x(other.x) EMULATOR_COMMA y(other.y) EMULATOR_COMMA z(other.z) EMULATOR_COMMA w(other.w), \
                        (x = other.x, y = other.y, z = other.z, w = other.w)) \
    }; \
    inline name##1 make_##name##1(type x) { return {x}; } \
    inline name##2 make_##name##2(type x, type y) { return {x, y}; } \
    inline name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; } \
    inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
struct float3 { float x, y, z; };
EMULATOR_VECTORS(float, float, 2 * sizeof(float), 16)
struct int3 { int x, y, z; };
EMULATOR_VECTORS(int, int, 8, 16)
EMULATOR_VECTORS(unsigned int, uint, 8, 16)
struct double3 { double x, y, z; };
EMULATOR_VECTORS(double, double, 16, 16)
struct char3 { signed char x, y, z; };
EMULATOR_VECTORS(signed char, char, 2, 4)
struct uchar3 { unsigned char x, y, z; };
EMULATOR_VECTORS(unsigned char, uchar, 2, 4)
struct short3 { short x, y, z; };
EMULATOR_VECTORS(short, short, 4, 8)
struct ushort3 { unsigned short x, y, z; };
EMULATOR_VECTORS(unsigned short, ushort, 4, 8)
struct long3 { long x, y, z; };
EMULATOR_VECTORS(long, long, 16, 16)
struct ulong3 { unsigned long x, y, z; };
EMULATOR_VECTORS(unsigned long, ulong, 16, 16)
struct longlong3 { long long x, y, z; };
EMULATOR_VECTORS(long long, longlong, 16, 16)
struct ulonglong3 { unsigned long long x, y, z; };
EMULATOR_VECTORS(unsigned long long, ulonglong, 16, 16)

// --- Threads that wait for each other ---
using emulator::SourceLocation;

inline void __syncthreads(SourceLocation location = SourceLocation()) {
    emulator::wait("__syncthreads", location, 0, emulator::BARRIER, 0);
}
inline int __syncthreads_count(int predicate, SourceLocation location = SourceLocation()) {
    return static_cast<int>(emulator::wait("__syncthreads_count", location, 0, emulator::BARRIER, predicate != 0));
}
inline int __syncthreads_or(int predicate, SourceLocation location = SourceLocation()) {
    return emulator::wait("__syncthreads_or", location, 0, emulator::BARRIER, predicate != 0) != 0;
}
inline int __syncthreads_and(int predicate, SourceLocation location = SourceLocation()) {
    return emulator::wait("__syncthreads_and", location, 0, emulator::BARRIER, predicate == 0) == 0;
}
inline void __threadfence() { emulator::fence(); }
inline void __threadfence_system() { emulator::fence(); }
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

inline unsigned __activemask(SourceLocation location = SourceLocation()) {
    return static_cast<unsigned>(emulator::wait("__activemask", location, 0, emulator::ACTIVE, 0));
}

// Calls `use(lane, value)` for each lane of the mask. Returns the mask without lanes that there are not.
template <typename T, typename Use>
unsigned emulator_gather(const char* operation, SourceLocation location, unsigned mask, T value, Use use) {
    unsigned long long values[warpSize] = {};
    memcpy(&values[emulator::lane()], &value, sizeof value);
    const auto buffer = reinterpret_cast<unsigned long long>(values);
    const unsigned lanes = static_cast<unsigned>(emulator::wait(operation, location, mask, emulator::GATHER, buffer));
    for (int lane = 0; lane < warpSize; lane++)
        if (lanes >> lane & 1) {
            memcpy(&value, &values[lane], sizeof value);
            use(lane, value);
        }
    return lanes;
}
template <typename T>
unsigned __match_any_sync(unsigned mask, T value, SourceLocation location = SourceLocation()) {
    unsigned same = 0;
    emulator_gather("__match_any_sync", location, mask, value, [&](int lane, T other) {
        if (!memcmp(&other, &value, sizeof value)) same |= 1u << lane;
    });
    return same;
}
template <typename T>
unsigned __match_all_sync(unsigned mask, T value, int* all, SourceLocation location = SourceLocation()) {
    *all = 1;
    const unsigned lanes = emulator_gather("__match_all_sync", location, mask, value, [&](int, T other) {
        if (memcmp(&other, &value, sizeof value)) *all = 0;
    });
    return *all ? lanes : 0;
}
#define EMULATOR_REDUCE(name, combined) \
    template <typename T> \
    T name(unsigned mask, T value, SourceLocation location = SourceLocation()) { \
        T all = value; \
        emulator_gather(#name, location, mask, value, [&](int lane, T other) { \
            if (lane != emulator::lane()) all = combined; \
        }); \
        return all; \
    }
EMULATOR_REDUCE(__reduce_add_sync, all + other)
EMULATOR_REDUCE(__reduce_min_sync, other < all ? other : all)
EMULATOR_REDUCE(__reduce_max_sync, other > all ? other : all)
EMULATOR_REDUCE(__reduce_and_sync, all & other)
EMULATOR_REDUCE(__reduce_or_sync, all | other)
EMULATOR_REDUCE(__reduce_xor_sync, all ^ other)

// The lanes of a shuffle form groups of `width`. If the source lane would lie outside its group, a thread gets its own
// value.
template <typename T>
T emulator_shuffle(const char* operation, SourceLocation location, unsigned mask, T value, int source) {
    static_assert(sizeof(T) <= 8, "shuffles move values of at most 8 bytes");
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
#if EMULATOR_PROFILE && __has_attribute(no_sanitize_coverage)
#define EMULATOR_UNWATCHED __attribute__((noinline, no_sanitize_thread, no_sanitize_coverage))
#else
#define EMULATOR_UNWATCHED __attribute__((noinline, no_sanitize_thread))
#endif
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
EMULATOR_ATOMIC(atomicXor, old ^ value)
EMULATOR_ATOMIC(atomicInc, old >= value ? 0 : old + 1)
EMULATOR_ATOMIC(atomicDec, old == 0 || old > value ? value : old - 1)
EMULATOR_ATOMIC(atomicMin, value < old ? value : old)
EMULATOR_ATOMIC(atomicMax, value > old ? value : old)
EMULATOR_ATOMIC(atomicExch, value)
template <typename T, typename U, typename V>
EMULATOR_UNWATCHED T atomicCAS(T* address, U expected, V value) {
    emulator::on_access(address, sizeof *address, emulator::COMPARE, __builtin_return_address(0));
    const T old = *address;
    if (old == T(expected)) *address = T(value);
    return old;
}
// Only one block runs at a time, so the scope of an atomic makes no difference.
#define EMULATOR_SCOPES(name) \
    template <typename... T> \
    __forceinline__ auto name##_block(T... arguments) { return name(arguments...); } \
    template <typename... T> \
    __forceinline__ auto name##_system(T... arguments) { return name(arguments...); }
EMULATOR_SCOPES(atomicAdd)
EMULATOR_SCOPES(atomicSub)
EMULATOR_SCOPES(atomicAnd)
EMULATOR_SCOPES(atomicOr)
EMULATOR_SCOPES(atomicXor)
EMULATOR_SCOPES(atomicInc)
EMULATOR_SCOPES(atomicDec)
EMULATOR_SCOPES(atomicMin)
EMULATOR_SCOPES(atomicMax)
EMULATOR_SCOPES(atomicExch)
EMULATOR_SCOPES(atomicCAS)

#include "cuda_math.h"

// --- Faults that a kernel asks for ---
#undef assert
#define assert(...) \
    ((__VA_ARGS__) ? static_cast<void>(0) \
                   : emulator::stop("finds the assertion '" #__VA_ARGS__ "' false", emulator::SourceLocation()))
inline void __trap(SourceLocation location = SourceLocation()) { emulator::stop("executes __trap()", location); }
inline void __brkpt() {}

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
// First to the stack, which is not watched: where a vector is copied by a function, the compiler watches that.
template <typename T>
EMULATOR_UNWATCHED T emulator_argument(const void* from) {
    struct Bytes {
        alignas(T) char bytes[sizeof(T)];
    };
    Bytes copy = *static_cast<const Bytes*>(from);
    return *reinterpret_cast<T*>(&copy);
}
template <typename... T>
EMULATOR_UNWATCHED void emulator_call(void (*kernel)(T...), void** list) {
    EmulatorCall{kernel, emulator_argument<T>(*list++)...};  // braces evaluate the arguments from left to right
}

// The bytes of each parameter of a kernel or, for an array, of an element.
template <typename T> constexpr size_t emulator_bytes = sizeof(T);
template <typename T> constexpr size_t emulator_bytes<T*> = sizeof(T);
template <> constexpr size_t emulator_bytes<void*> = 1;
template <> constexpr size_t emulator_bytes<const void*> = 1;
template <typename... T>
size_t emulator_bytes_of(void (*)(T...), int parameter) {
    const size_t bytes[] = {emulator_bytes<T>..., 0};
    return bytes[parameter];
}

// build.py names each kernel, or instance of a template, within the namespace of the kernel file.
#define EMULATOR_ENTRY(name, ...) constexpr auto emulator_entry_##name = &__VA_ARGS__;
#define EMULATOR_EXPORT(name) \
    extern "C" __attribute__((visibility("default"))) void kernel_##name(void** arguments) { \
        emulator_call(kernels::emulator_entry_##name, arguments); \
    }
#define EMULATOR_EXPORT_BYTES(name) \
    extern "C" __attribute__((visibility("default"))) size_t bytes_##name(int parameter) { \
        return emulator_bytes_of(kernels::emulator_entry_##name, parameter); \
    }

// A kernel file may overload these names. Its namespace would hide them otherwise.
namespace {
namespace kernels {
using ::min, ::max, ::atomicAdd, ::atomicMin, ::atomicMax, ::atomicCAS, ::atomicExch, ::rsqrt;
using ::make_float2, ::make_float3, ::make_float4, ::make_int2, ::make_int3, ::make_int4, ::make_uint2, ::make_uint3,
    ::make_uint4, ::make_double2, ::make_uchar4;
}  // namespace kernels
}  // namespace
