// Defines CUDA's functions of arithmetic, bits and cached memory in C++. cuda_on_cpu.h includes this file.
#pragma once

// --- Functions that are C's under another name. glibc reserves names such as __expf, so they are macros here. ---
#define __expf(x) exp(x)
#define __exp10f(x) pow(10.0f, x)
#define __logf(x) log(x)
#define __log2f(x) log2(x)
#define __log10f(x) log10(x)
#define __powf(x, y) pow(x, y)
#define __sinf(x) sin(x)
#define __cosf(x) cos(x)
#define __tanf(x) tan(x)
#define __tanhf(x) tanh(x)
#define __sincosf(x, sine, cosine) (*(sine) = sin(x), static_cast<void>(*(cosine) = cos(x)))
#define __fdividef(x, y) ((x) / (y))

// One rounding mode: the processor's, to nearest. The others differ in the last bit.
#define EMULATOR_ROUNDED(type, prefix, suffix) \
    inline type prefix##add_##suffix(type a, type b) { return a + b; } \
    inline type prefix##sub_##suffix(type a, type b) { return a - b; } \
    inline type prefix##mul_##suffix(type a, type b) { return a * b; } \
    inline type prefix##div_##suffix(type a, type b) { return a / b; } \
    inline type prefix##sqrt_##suffix(type a) { return sqrt(a); } \
    inline type prefix##rcp_##suffix(type a) { return 1 / a; }
EMULATOR_ROUNDED(float, __f, rn)
EMULATOR_ROUNDED(double, __d, rn)
inline float __fmaf_rn(float a, float b, float c) { return fma(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
inline float __frsqrt_rn(float x) { return 1 / sqrt(x); }

inline float rsqrtf(float x) { return 1 / sqrt(x); }
template <typename T>
T rsqrt(T x) {
    return 1 / sqrt(x);
}
inline float exp10f(float x) { return pow(10.0f, x); }
inline float fdividef(float x, float y) { return x / y; }
constexpr double EMULATOR_PI = 3.14159265358979323846;
inline double erfinv(double y) {  // Winitzki's approximation, then Newton's steps
    if (!(y > -1 && y < 1)) return y == 1 || y == -1 ? y * __builtin_huge_val() : __builtin_nan("");
    const double log_rest = log(1 - y * y), t = 2 / (EMULATOR_PI * 0.147) + log_rest / 2;
    double x = copysign(sqrt(sqrt(t * t - log_rest / 0.147) - t), y);
    for (int step = 0; step < 4; step++) x -= (erf(x) - y) * sqrt(EMULATOR_PI) / 2 * exp(x * x);
    return x;
}
// Each for float under a name that ends with f, and for double without.
#define EMULATOR_REAL(type, f) \
    inline type rcbrt##f(type x) { return 1 / cbrt(x); } \
    inline type sinpi##f(type x) { return sin(EMULATOR_PI * x); } \
    inline type cospi##f(type x) { return cos(EMULATOR_PI * x); } \
    inline void sincospi##f(type x, type* sine, type* cosine) { *sine = sinpi##f(x), *cosine = cospi##f(x); } \
    inline type normcdf##f(type x) { return 0.5 * erfc(-x * 0.70710678118654752); } \
    inline type erfcinv##f(type y) { return erfinv(1 - double(y)); } \
    inline type normcdfinv##f(type y) { return 1.4142135623730951 * erfinv(2 * double(y) - 1); } \
    inline type erfcx##f(type x) { return exp(double(x) * x) * erfc(double(x)); } \
    inline type rhypot##f(type x, type y) { return 1 / sqrt(x * x + y * y); } \
    inline type norm3d##f(type x, type y, type z) { return sqrt(x * x + y * y + z * z); } \
    inline type rnorm3d##f(type x, type y, type z) { return 1 / sqrt(x * x + y * y + z * z); } \
    inline type norm4d##f(type x, type y, type z, type w) { return sqrt(x * x + y * y + z * z + w * w); } \
    inline type rnorm4d##f(type x, type y, type z, type w) { return 1 / sqrt(x * x + y * y + z * z + w * w); }
EMULATOR_REAL(float, f)
EMULATOR_REAL(double, )
inline float erfinvf(float y) { return erfinv(y); }
inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1) : 0; }  // NaN becomes 0

// --- Conversions ---
#define EMULATOR_TO_INTEGER(suffix, rounded) \
    inline int __float2int_##suffix(float x) { return static_cast<int>(rounded(x)); } \
    inline unsigned __float2uint_##suffix(float x) { return static_cast<unsigned>(rounded(x)); } \
    inline long long __float2ll_##suffix(float x) { return static_cast<long long>(rounded(x)); } \
    inline int __double2int_##suffix(double x) { return static_cast<int>(rounded(x)); } \
    inline unsigned __double2uint_##suffix(double x) { return static_cast<unsigned>(rounded(x)); } \
    inline long long __double2ll_##suffix(double x) { return static_cast<long long>(rounded(x)); }
EMULATOR_TO_INTEGER(rn, rint)
EMULATOR_TO_INTEGER(rz, trunc)
EMULATOR_TO_INTEGER(rd, floor)
EMULATOR_TO_INTEGER(ru, ceil)
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint2float_rn(unsigned x) { return static_cast<float>(x); }
inline float __ll2float_rn(long long x) { return static_cast<float>(x); }
inline float __double2float_rn(double x) { return static_cast<float>(x); }
inline double __int2double_rn(int x) { return x; }
inline double __uint2double_rn(unsigned x) { return x; }
inline double __ll2double_rn(long long x) { return static_cast<double>(x); }

template <typename To, typename From>
To emulator_same_bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
inline long long __double_as_longlong(double x) { return emulator_same_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return emulator_same_bits<double>(x); }
inline int __double2hiint(double x) { return static_cast<int>(__double_as_longlong(x) >> 32); }
inline int __double2loint(double x) { return static_cast<int>(__double_as_longlong(x)); }
inline double __hiloint2double(int high, int low) {
    return __longlong_as_double(static_cast<long long>(high) << 32 | static_cast<unsigned>(low));
}
#ifndef EMULATOR_DOUBLE  // a function that reads the 32 bits of a float cannot be widened
inline int __float_as_int(float x) { return emulator_same_bits<int>(x); }
inline unsigned __float_as_uint(float x) { return emulator_same_bits<unsigned>(x); }
inline float __int_as_float(int x) { return emulator_same_bits<float>(x); }
inline float __uint_as_float(unsigned x) { return emulator_same_bits<float>(x); }
#endif

// --- The smaller and the larger of two, in their common type. If one of them is a NaN, the result is the other one. ---
template <typename A, typename B, typename Common = decltype(A() + B())>
Common min(A a, B b) {
    return Common(a) < Common(b) || b != b ? a : b;
}
template <typename A, typename B, typename Common = decltype(A() + B())>
Common max(A a, B b) {
    return Common(a) > Common(b) || b != b ? a : b;
}
inline unsigned umin(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned umax(unsigned a, unsigned b) { return a > b ? a : b; }
inline long long llmin(long long a, long long b) { return a < b ? a : b; }
inline long long llmax(long long a, long long b) { return a > b ? a : b; }
inline unsigned long long ullmin(unsigned long long a, unsigned long long b) { return a < b ? a : b; }
inline unsigned long long ullmax(unsigned long long a, unsigned long long b) { return a > b ? a : b; }

// --- Integers ---
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>((1ull * a * b) >> 32); }
inline int __mulhi(int a, int b) { return static_cast<int>((1ll * a * b) >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return static_cast<unsigned long long>((static_cast<unsigned __int128>(a) * b) >> 64);
}
inline long long __mul64hi(long long a, long long b) {
    return static_cast<long long>((static_cast<__int128>(a) * b) >> 64);
}
inline int __mul24(int a, int b) {  // the low 32 bits of the product of the low 24 bits
    return static_cast<int>(static_cast<unsigned>((a << 8 >> 8) * 1ll * (b << 8 >> 8)));
}
inline unsigned __umul24(unsigned a, unsigned b) { return (a & 0xffffff) * (b & 0xffffff); }
inline unsigned __sad(int a, int b, unsigned c) { return c + (a > b ? unsigned(a) - b : unsigned(b) - a); }
inline unsigned __usad(unsigned a, unsigned b, unsigned c) { return c + (a > b ? a - b : b - a); }
inline int __hadd(int a, int b) { return static_cast<int>((1ll * a + b) >> 1); }
inline int __rhadd(int a, int b) { return static_cast<int>((1ll * a + b + 1) >> 1); }
inline unsigned __uhadd(unsigned a, unsigned b) { return static_cast<unsigned>((1ull * a + b) >> 1); }
inline unsigned __urhadd(unsigned a, unsigned b) { return static_cast<unsigned>((1ull * a + b + 1) >> 1); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __brev(unsigned x) {
    unsigned reversed = 0;
    for (int bit = 0; bit < 32; bit++) reversed |= (x >> bit & 1) << (31 - bit);
    return reversed;
}
inline unsigned long long __brevll(unsigned long long x) {
    return static_cast<unsigned long long>(__brev(static_cast<unsigned>(x))) << 32 | __brev(static_cast<unsigned>(x >> 32));
}
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
    const unsigned long long bytes = static_cast<unsigned long long>(y) << 32 | x;
    unsigned chosen = 0;
    for (int i = 0; i < 4; i++) {
        const unsigned choice = selector >> 4 * i, byte = bytes >> 8 * (choice & 7) & 0xff;
        chosen |= (choice & 8 ? 0xff * (byte >> 7) : byte) << 8 * i;  // 8: the byte's sign in all its bits
    }
    return chosen;
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned bits) {
    return static_cast<unsigned>((static_cast<unsigned long long>(high) << 32 | low) << (bits & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned bits) {
    return static_cast<unsigned>((static_cast<unsigned long long>(high) << 32 | low) >> (bits & 31));
}
inline unsigned __funnelshift_lc(unsigned low, unsigned high, unsigned bits) {
    return bits < 32 ? __funnelshift_l(low, high, bits) : low;
}
inline unsigned __funnelshift_rc(unsigned low, unsigned high, unsigned bits) {
    return bits < 32 ? __funnelshift_r(low, high, bits) : high;
}

// --- The four bytes of a word, each by itself ---
#define EMULATOR_BYTES(name, value) \
    inline unsigned name(unsigned x, unsigned y) { \
        unsigned result = 0; \
        for (int shift = 0; shift < 32; shift += 8) { \
            const unsigned a = x >> shift & 0xff, b = y >> shift & 0xff; \
            result |= ((value) & 0xff) << shift; \
        } \
        return result; \
    }
EMULATOR_BYTES(__vadd4, a + b)
EMULATOR_BYTES(__vsub4, a - b)
EMULATOR_BYTES(__vavgu4, (a + b + 1) / 2)
EMULATOR_BYTES(__vminu4, a < b ? a : b)
EMULATOR_BYTES(__vmaxu4, a > b ? a : b)
EMULATOR_BYTES(__vabsdiffu4, a > b ? a - b : b - a)
EMULATOR_BYTES(__vcmpeq4, a == b ? 0xffu : 0u)
inline unsigned __vsadu4(unsigned x, unsigned y) {
    const unsigned all = __vabsdiffu4(x, y);
    return (all & 0xff) + (all >> 8 & 0xff) + (all >> 16 & 0xff) + (all >> 24);
}
template <typename Byte, typename Word>
Word emulator_dp4a(Word x, Word y, Word sum) {
    for (int shift = 0; shift < 32; shift += 8) sum += Word(Byte(x >> shift)) * Byte(y >> shift);
    return sum;
}
inline int __dp4a(int x, int y, int sum) { return emulator_dp4a<signed char>(x, y, sum); }
inline unsigned __dp4a(unsigned x, unsigned y, unsigned sum) { return emulator_dp4a<unsigned char>(x, y, sum); }

// --- Hints to the compiler and the profiler ---
#define __builtin_assume(condition) static_cast<void>(0)
#define __prof_trigger(counter) static_cast<void>(0)

// --- Loads and stores that say what a cache should do: plain ones, so macros, which keep the line for check mode. ---
#define __ldg(address) (*(address))
#define __ldca(address) (*(address))
#define __ldcg(address) (*(address))
#define __ldcs(address) (*(address))
#define __ldcv(address) (*(address))
#define __ldlu(address) (*(address))
#define __stcg(address, value) static_cast<void>(*(address) = (value))
#define __stcs(address, value) static_cast<void>(*(address) = (value))
#define __stwb(address, value) static_cast<void>(*(address) = (value))
#define __stwt(address, value) static_cast<void>(*(address) = (value))

#ifdef EMULATOR_NVCC  // <math_constants.h>
#define CUDART_INF_F __int_as_float(0x7f800000)
#define CUDART_NAN_F __int_as_float(0x7fffffff)
#define CUDART_PI_F 3.141592654f
#define CUDART_PI 3.14159265358979323846
#define CUDART_INF __longlong_as_double(0x7ff0000000000000ll)
#endif

// --- Time: a counter that goes on, and no clock ---
EMULATOR_UNWATCHED inline long long clock64() {
    static long long ticks;
    return ++ticks;
}
#define clock() static_cast<long>(clock64())
inline void __nanosleep(unsigned) {}
