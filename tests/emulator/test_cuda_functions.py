"""CUDA's functions of arithmetic, bits, warps and atomics: each against a result that is known without the emulator."""

import math
from pathlib import Path

import numpy as np
import pytest
from helpers.kernel_folders import folder_with

from tinyfcn.devices import nvrtc
from tinyfcn.devices.emulator import Emulator

# An expression of x (1.75f), i (-5), u (0xf0000003) and its value.
VALUES: dict[str, float] = {
    "__expf(x)": math.exp(1.75),
    "__exp10f(x)": 10**1.75,
    "exp10f(x)": 10**1.75,
    "__logf(x) + __log2f(x) + __log10f(x)": math.log(1.75) + math.log2(1.75) + math.log10(1.75),
    "__powf(x, 3)": 1.75**3,
    "__sinf(x) + __cosf(x) + __tanf(x)": math.sin(1.75) + math.cos(1.75) + math.tan(1.75),
    "sine_and_cosine(x)": math.sin(1.75) - math.cos(1.75),
    "rsqrtf(x) + rsqrt(x) + rsqrt(4.0) + __frsqrt_rn(x)": 3 / math.sqrt(1.75) + 0.5,
    "rcbrtf(8.0f) + normcdff(0.0f) + norm3df(2, 3, 6)": 0.5 + 0.5 + 7,
    "sinpif(0.5f) + cospif(1.0f)": 0,
    "sinpi(0.25) + cospi(0.25) + sine_and_cosine_of_pi(0.25f)": 3 * math.sqrt(0.5) - math.sqrt(0.5),
    "rcbrt(8.0) + normcdf(0.0) + norm3d(2.0, 3.0, 6.0) + rnorm3df(2, 3, 6)": 0.5 + 0.5 + 7 + 1 / 7,
    "norm4df(1, 1, 1, 1) + rnorm4df(1, 1, 1, 1) + rhypotf(3, 4) + rhypot(3.0, 4.0)": 2 + 0.5 + 0.2 + 0.2,
    "erfinvf(0.5f) + erfinv(-0.5) + erfinv(erf(1.75))": 1.75,
    "erfcinvf(0.5f) + normcdfinvf(0.5f) + normcdfinv(0.9772498680518208)": 0.4769362762044699 + 2,
    "erfcxf(x) + fdividef(x, 7)": math.exp(1.75**2) * math.erfc(1.75) + 0.25,
    "__fsqrt_rn(x) + __frcp_rn(x) + __fdiv_rn(x, 7) + __fdividef(x, 7)": math.sqrt(1.75) + 1 / 1.75 + 0.5,
    "__fadd_rn(x, 1) + __fsub_rn(x, 1) + __fmul_rn(x, 2) + __fmaf_rn(x, 2, 1)": 2.75 + 0.75 + 3.5 + 4.5,
    "__dadd_rn(x, 1) + __ddiv_rn(1, 4) + __dsqrt_rn(4) + __fma_rn(2, 3, 4)": 2.75 + 0.25 + 2 + 10,
    "fmaf(x, 2, 1) + fdimf(x, 1) + fminf(x, 1) + fmaxf(x, 1)": 4.5 + 0.75 + 1 + 1.75,
    "__saturatef(x) + __saturatef(-x) + __saturatef(0.25f)": 1.25,
    "__float2int_rn(2.5f) + 10 * __float2int_rz(-x) + 100 * __float2int_rd(-x) + 1000 * __float2int_ru(x)": 1792,
    "__float2uint_rn(3e9f) + __float2ll_rz(-4e9f) + __double2int_rn(3.5)": 3e9 - 4e9 + 4,
    "__int2float_rn(i) + __uint2float_rn(u) + __ll2float_rn(7) + __int2double_rn(i)": 4026531840 + 7 - 5 - 5,
    "__float_as_int(x) == 0x3fe00000 && __uint_as_float(0x3fe00000u) == x": 1,
    "__double_as_longlong(2.0) == 1ll << 62 && __longlong_as_double(1ll << 62) == 2": 1,
    "__double2hiint(2.0) == 1 << 30 && __double2loint(2.0) == 0 && __hiloint2double(1 << 30, 0) == 2": 1,
    "__popc(u) + 100 * __clz(u >> 4) + 10000 * __ffs(u << 1)": 6 + 400 + 20000,
    "__popcll(1ull << 40 | 5) + 100 * __clzll(1) + 10000 * __ffsll(1ll << 40)": 3 + 6300 + 410000,
    "__brev(u)": 0xC000000F,
    "__brevll(3) >> 62": 3,
    "__byte_perm(0x33221100, 0x77665544, 0x4702)": 0x44770022,
    "__byte_perm(0x80, 0, 0x111a)": 0,
    "__byte_perm(0x8000, 0, 0x2209)": 0xFF,
    "__mul24(i, 3) + __umul24(u, 2) + __mulhi(i, 4) + __umulhi(u, 16)": -15 + 6 - 1 + 15,
    "__sad(i, 3, 1) + __usad(2, 9, 1) + __hadd(i, 2) + __rhadd(i, 2)": 9 + 8 - 2 - 1,
    "__funnelshift_l(0x80000000, 1, 1) + __funnelshift_r(0x80000000, 1, 31)": 3 + 3,
    "__funnelshift_lc(0x80000000, 1, 1) + __funnelshift_lc(7, 1, 40) + __funnelshift_rc(1, 9, 32)": 3 + 7 + 9,
    "__mul64hi(-1, 1) + __mul64hi(1ll << 62, 8) + __uhadd(u, u) + __urhadd(2, 3)": -1 + 2 + 4026531843 + 3,
    "llmax(i, 3) + llmin(i, 3) + ullmax(1, 5) + ullmin(1, 5)": 3 - 5 + 5 + 1,
    "__vadd4(0x01ff0203, 0x01010101) == 0x02000304 && __vsub4(0x01000203, 0x01010101) == 0x00ff0102": 1,
    "__vmaxu4(0x01800203, 0x02010302) == 0x02800303 && __vminu4(0x01800203, 0x02010302) == 0x01010202": 1,
    "__vcmpeq4(0x01020304, 0x01ff03ff) == 0xff00ff00 && __vavgu4(0x00010203, 0x00030301) == 0x00020302": 1,
    "__vabsdiffu4(0x01800203, 0x02010302) == 0x017f0101 ? __vsadu4(0x01800203, 0x02010302) : 0": 1 + 127 + 1 + 1,
    "__dp4a(0x01ff0203, 0x02020304, 100) + __dp4a(0x01ff0203u, 0x02020304u, 100u)": (2 - 2 + 6 + 12 + 100)
    + (2 + 510 + 18 + 100),
    "max(i, 3) + min(2.5, 3.0f) + umax(2u, u) + umin(2u, u)": 3 + 2.5 + 4026531843 + 2,
    "__ldcs(&numbers[0]) + __ldcg(&numbers[1]) + __ldca(&numbers[2]) + __ldg(&numbers[3])": 1 + 2 + 3 + 4,
    "stored_in_caches(numbers)": 4 + 5 + 6,
    "clock64() < clock64() || clock() < 0": 1,
    "make_int3(1, 2, 3).z + make_uint3(1, 2, 3).y + make_double2(1, 2).y + make_char4(1, 2, 3, -4).w": 3,
    "make_float1(2).x + make_short2(1, 2).y + make_ulonglong2(1, 2).x + make_uchar3(1, 2, 3).z": 8,
    "(sizeof(float3) * 100 + sizeof(float4)) * 100 + sizeof(double2)": 121616,
    "(alignof(float3) * 100 + alignof(float2)) * 100 + alignof(short4)": 40808,
    "dim3(3).y + dim3(3, 4).z + dim3(3, 4, 5).z": 7,
}
FUNCTIONS = (
    """
__device__ float sine_and_cosine_of_pi(float x) {
    float sine, cosine;
    sincospif(x, &sine, &cosine);
    __builtin_assume(x > 0);
    return sine - cosine;
}
__device__ float sine_and_cosine(float x) {
    float sine, cosine;
    __sincosf(x, &sine, &cosine);
    return sine - cosine;
}
__device__ float stored_in_caches(float* p) {
    __stcs(&p[0], 4.0f), __stcg(&p[1], 5.0f), __stwt(&p[2], 6.0f), __nanosleep(5);
    return p[0] + p[1] + p[2];
}
extern "C" __global__ void values(double* out, float* numbers, float x, int i, unsigned u) {
"""
    + "".join(f"    out[{n}] = {expression};\n" for n, expression in enumerate(VALUES))
    + "}\n"
)

WARPS = """
extern "C" __global__ void warps(unsigned* out, int n) {
    int lane = threadIdx.x % 32, all;
    unsigned* mine = out + 16 * threadIdx.x;
    mine[0] = __reduce_add_sync(0xffffffff, lane);
    mine[1] = __reduce_max_sync(0xffffffff, lane - 40) + 40;
    mine[2] = __reduce_min_sync(0xffffffff, (unsigned)lane + 3);
    mine[3] = __reduce_and_sync(0xffffffff, lane | 8u) + __reduce_or_sync(0xffffffff, (unsigned)lane);
    mine[4] = __reduce_xor_sync(0xffffffff, lane == 5 ? 6u : 0u);
    mine[5] = __match_any_sync(0xffffffff, lane / 8);
    mine[6] = __match_all_sync(0xffffffff, n, &all) + all;
    mine[7] = __match_all_sync(0xffffffff, lane, &all) + all;
    mine[8] = __syncthreads_count(lane < n);
    mine[9] = __syncthreads_or(threadIdx.x == n) * 10 + __syncthreads_and(threadIdx.x < n);
    mine[10] = __shfl_sync(0xffffffff, (long long)lane << 40, 3) >> 40;
    mine[11] = __shfl_xor_sync(0xffffffff, (unsigned long long)lane, 1);
    mine[12] = lane < 8 ? __reduce_add_sync(0xff, 2) : 7;
}
"""
ATOMICS = """
extern "C" __global__ void atomics(unsigned* out, double* sum, unsigned long long* big, int n) {
    atomicInc(&out[0], n);
    atomicDec(&out[1], n);
    atomicXor(&out[2], 1u << threadIdx.x % 32);
    atomicMin(&out[3], threadIdx.x + 5), atomicMax(&out[4], threadIdx.x + 5);
    atomicAdd_block(&out[5], 2u), atomicAdd_system(&out[5], 1u);
    atomicCAS_system(&out[6], threadIdx.x, threadIdx.x + 1);
    atomicAnd(&out[7], ~(1u << threadIdx.x % 32)), atomicOr(&out[8], 1u << threadIdx.x % 32);
    atomicSub(&out[9], 1u), atomicExch_block(&out[10], 3u);
    atomicAdd(sum, 0.5), atomicAdd(&big[0], 1ull << 33), atomicMax(&big[1], (unsigned long long)threadIdx.x << 40);
}
"""


@pytest.fixture(scope="module", params=["trap", "check"])
def device(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Emulator:
    folder = folder_with(tmp_path_factory.mktemp("functions"), values=FUNCTIONS, warps=WARPS, atomics=ATOMICS)
    return Emulator(folder, request.param)


def test_arithmetic(device: Emulator) -> None:
    out = device.empty((len(VALUES),), np.float64)
    numbers = device.asarray(np.array([1, 2, 3, 4], np.float32))
    device.launch("values", 1, 1, [out, numbers, 1.75, -5, 0xF0000003])
    wrong = {
        e: (f, v)
        for (e, v), f in zip(VALUES.items(), out, strict=True)
        if not math.isclose(f, v, rel_tol=1e-6, abs_tol=1e-6)
    }
    assert not wrong


def test_warps(device: Emulator) -> None:
    out = device.asarray(np.zeros((64, 16), np.uint32))
    device.launch("warps", 1, 64, [out, 20])
    full = 0xFFFFFFFF
    for thread, row in enumerate(out.tolist()):
        lane = thread % 32
        expected = [496, 31, 3, 8 + 31, 6, 0xFF << lane // 8 * 8, (full + 1) % (1 << 32), 0, 40, 10, 3, lane ^ 1]
        assert row[:13] == [*expected, 16 if lane < 8 else 7], thread


def test_atomics(device: Emulator) -> None:
    out = device.asarray(np.array([0, 3, 0, 99, 0, 0, 0, 0xFFFFFFFF, 0, 100, 0], np.uint32))
    total, big = device.asarray(np.zeros(1)), device.asarray(np.zeros(2, np.uint64))
    device.launch("atomics", 1, 64, [out, total, big, 9])

    assert out.tolist() == [64 % 10, (3 - 64) % 10, 0, 5, 68, 3 * 64, 64, 0, 0xFFFFFFFF, 36, 3]
    assert total[0] == 32 and big.tolist() == [64 << 33, 63 << 40]


@pytest.mark.cupy
@pytest.mark.parametrize("text", [FUNCTIONS, WARPS, ATOMICS], ids=["values", "warps", "atomics"])
def test_a_gpus_compiler_knows_the_same_functions(tmp_path: Path, text: str) -> None:
    assert nvrtc.compile_for("functions", "sm_90", folder_with(tmp_path, functions=text))
