"""Compiles every kernel with NVRTC, without a GPU. Each must fit a multiprocessor and spill no registers."""

import platform
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinyfcn.devices import kernel_source, nvrtc
from tinyfcn.devices.cards import CARDS, Card
from tinyfcn.devices.kernel_source import KERNELS
from tinyfcn.devices.launch import ceil_div
from tinyfcn.errors import DeviceError, KernelError
from tinyfcn.training.step import Task, launches_of_step

pytestmark = pytest.mark.cupy

# The machines for which pyproject.toml installs CuPy and NVRTC. There a missing NVRTC is a failure.
HAS_WHEELS = (sys.platform, platform.machine()) in {("linux", "x86_64"), ("linux", "aarch64"), ("win32", "AMD64")}
if not HAS_WHEELS:
    try:
        nvrtc.load_nvrtc()
    except DeviceError as error:
        reason = f"NO KERNEL WAS COMPILED FOR A GPU: {error} ({sys.platform}, {platform.machine()} has no such wheel)"
        pytest.skip(reason, allow_module_level=True)

MAX_REGISTERS = 64  # 65,536 in a multiprocessor: four blocks of 256 threads, or 16 of 64, fit at once


@pytest.mark.parametrize(
    "architecture",
    [pytest.param(each, marks=[] if each == "sm_90" else pytest.mark.slow) for each in nvrtc.ARCHITECTURES],
)
@pytest.mark.parametrize("operation", kernel_source.operations())
def test_kernels_compile_and_spill_nothing(operation: str, architecture: str) -> None:
    found = nvrtc.compile_for(operation, architecture)
    declared = kernel_source.source(operation).kernels
    plain = [kernel.name for kernel in declared if not kernel.template]
    assert sorted(kernel.kernel for kernel in found) == sorted(plain)
    for kernel in found:
        assert kernel.spilled_bytes == 0, kernel
        assert 0 < kernel.registers <= MAX_REGISTERS, kernel


# The fast kernels of the steps of small and large batches, whose tiles differ.
STEPS = [Task("skip", batch) for batch in (1, 2, 5, 16, 64, 200, 1024)] + [
    Task("classifier", 1),
    Task("classifier", 128),
]
SMALL_AND_LARGE = CARDS["t4"], CARDS["h200"]  # sm_75 and sm_90


@pytest.mark.slow
@pytest.mark.parametrize("card", SMALL_AND_LARGE, ids=lambda card: card.architecture)
def test_the_fast_kernels_of_steps_fit_a_multiprocessor_and_spill_nothing(card: Card) -> None:
    steps = [launches_of_step(task, card.multiprocessors) for task in STEPS]
    launches = {each.kernel.expression: each for step in steps for each in step if each.kernel.template}
    assert {"fast_conv_forward", "fast_conv_backward_input"} <= {launch.kernel.name for launch in launches.values()}
    found = nvrtc.compile_launched(launches.values(), card.architecture)
    wrong = []
    for name, launch in launches.items():
        warps = ceil_div(int(np.prod(launch.block)), 32)
        registers = 8 * ceil_div(found[name].registers, 8) * 32 * warps  # as a multiprocessor allocates them
        if found[name].spilled_bytes or found[name].shared_bytes > 48 * 1024 or registers > 65536:
            wrong.append((found[name], launch.block))
    assert not wrong


def test_all_promised_architectures_are_compiled_for() -> None:
    assert {"sm_75", "sm_80", "sm_90", "sm_120"} <= {*nvrtc.ARCHITECTURES}


def test_shared_memory_is_reported() -> None:
    (bias,) = (each for each in nvrtc.compile_for("conv2d", "sm_80") if each.kernel == "conv2d_backward_bias_naive")
    assert bias.shared_bytes == 64 * 4
    (relu, _) = nvrtc.compile_for("relu", "sm_80")
    assert relu.shared_bytes == 0


class NvrtcBesideDriver:
    """NVRTC as it is on a machine with a driver: it caches code, and a cached compilation has an empty log.

    https://github.com/NVIDIA/cuda-python/issues/1124
    """

    def __init__(self, nvrtc: Any) -> None:
        self.nvrtc, self.cached = nvrtc, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.nvrtc, name)

    def compileProgram(self, program: Any, options: tuple[str, ...]) -> None:
        self.cached = self.nvrtc.getVersion() >= (12, 9) and "--no-cache" not in options
        self.nvrtc.compileProgram(program, options)

    def getProgramLog(self, program: Any) -> str:
        return "" if self.cached else self.nvrtc.getProgramLog(program)


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TINYFCN_CACHE", str(tmp_path / "cache"))
    nvrtc._compiled.cache_clear()
    return tmp_path / "cache" / "nvrtc"


@pytest.mark.usefixtures("empty_cache")
def test_what_nvrtc_has_cached_is_reported_too(monkeypatch: pytest.MonkeyPatch) -> None:
    beside_driver = NvrtcBesideDriver(nvrtc.load_nvrtc())
    monkeypatch.setattr(nvrtc, "load_nvrtc", lambda: beside_driver)
    assert {each.kernel for each in nvrtc.compile_for("relu", "sm_80")} == {"relu_forward", "relu_backward"}


class CountedNvrtc:
    """NVRTC that counts what it compiles."""

    def __init__(self, nvrtc: Any) -> None:
        self.nvrtc, self.compiled = nvrtc, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.nvrtc, name)

    def compileProgram(self, program: Any, options: tuple[str, ...]) -> None:
        self.compiled += 1
        self.nvrtc.compileProgram(program, options)


def test_what_was_compiled_is_kept(empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = CountedNvrtc(nvrtc.load_nvrtc())
    monkeypatch.setattr(nvrtc, "load_nvrtc", lambda: counted)
    text = (
        'extern "C" __global__ void one(float* x) { x[0] = 1; }\ntemplate <int N> __global__ void n(int* x) { *x = N; }'
    )
    (tmp_path / "kept.cu").write_text(text)

    def made(kernels: Path = tmp_path / "kept.cu") -> tuple[list[nvrtc.Resources], int]:
        nvrtc._compiled.cache_clear()
        return nvrtc.compile_for("kept", "sm_80", kernels, ["n<3>"]), counted.compiled

    first, count = made()
    assert ({each.kernel for each in first}, count) == ({"one", "n<3>"}, 1)
    assert made() == (first, 1)
    (kept,) = empty_cache.iterdir()
    kept.write_bytes(kept.read_bytes()[:-9])
    assert made() == (first, 2) == made()
    (tmp_path / "kept.cu").write_text(text.replace("= 1", "= 2"))
    assert made()[1] == 3 and len([*empty_cache.iterdir()]) == 2
    (tmp_path / "file").touch()
    monkeypatch.setenv("TINYFCN_CACHE", str(tmp_path / "file" / "cache"))
    assert made()[1] == 4, "and where nothing can be kept it is compiled"


SPILLS = """
extern "C" __global__ void __launch_bounds__(1024, 2) hungry(float* x) {
    float kept[80];
#pragma unroll
    for (int i = 0; i < 80; ++i) kept[i] = x[i * 1024 + threadIdx.x];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 80; ++i) x[(79 - i) * 1024 + threadIdx.x] = kept[i] * kept[(i * 7) % 80];
}
extern "C" __global__ void frugal(float* x) { x[threadIdx.x] = 1; }
"""


def test_spills_are_detected(tmp_path: Path) -> None:
    """The kernel keeps eighty numbers, and has 32 registers."""
    (tmp_path / "common.cuh").write_text("")
    (tmp_path / "spills.cu").write_text(SPILLS)
    found = {each.kernel: each for each in nvrtc.compile_for("spills", "sm_80", tmp_path)}
    assert found["hungry"].spilled_bytes > 100 and found["frugal"].spilled_bytes == 0


@pytest.mark.parametrize("file", ["common.cuh", "relu.cu"])
def test_a_compile_error_has_file_and_line(tmp_path: Path, file: str) -> None:
    for name in ("common.cuh", "relu.cu"):
        shutil.copy(KERNELS / name, tmp_path)
    lines = (tmp_path / file).read_text().split("\n")
    lines.insert(4, "int broken = not_declared;")
    (tmp_path / file).write_text("\n".join(lines))
    with pytest.raises(KernelError) as caught:
        nvrtc.compile_for("relu", "sm_90", tmp_path)
    message = str(caught.value)
    assert message.startswith("relu.cu does not compile for sm_90:\n")
    assert f"{file}(5): error" in message and "not_declared" in message


def test_names_of_host_headers_do_not_compile(tmp_path: Path) -> None:
    """NVRTC has no INFINITY and no system headers. A kernel that uses them must fail here, not only on a GPU."""
    (tmp_path / "common.cuh").write_text("")
    (tmp_path / "infinite.cu").write_text('extern "C" __global__ void infinite(float* x) { x[0] = INFINITY; }')
    with pytest.raises(KernelError, match=r"infinite\.cu\(1\): error.*INFINITY"):
        nvrtc.compile_for("infinite", "sm_75", tmp_path)


@pytest.mark.parametrize(
    ("architecture", "threads", "registers", "shared", "blocks", "share"),
    [  # as CUDA's occupancy calculator has it
        ("sm_75", 256, 32, 0, 4, 1.0),
        ("sm_75", 256, 64, 0, 4, 1.0),
        ("sm_75", 64, 255, 0, 4, 0.25),
        ("sm_75", 32, 16, 0, 16, 0.5),  # no more than 16 blocks
        ("sm_75", 256, 32, 16385, 3, 0.75),
        ("sm_80", 256, 32, 0, 8, 1.0),
        ("sm_80", 256, 33, 0, 6, 0.75),  # 5 registers of 8 more for each warp than at 32
        ("sm_80", 256, 64, 0, 4, 0.5),
        ("sm_80", 128, 40, 0, 12, 0.75),
        ("sm_80", 1024, 64, 0, 1, 0.5),
        ("sm_80", 64, 255, 0, 4, 0.125),
        ("sm_80", 32, 96, 0, 20, 0.3125),  # 5 in each quarter, though all its registers together would do for 21
        ("sm_80", 128, 32, 48 * 1024, 3, 0.1875),  # 49 KB of 164 each: CUDA takes one
        ("sm_80", 100, 32, 0, 16, 1.0),  # 100 threads are four warps
        ("sm_86", 256, 32, 0, 6, 1.0),
        ("sm_90", 32, 32, 0, 32, 0.5),
        ("sm_90", 256, 32, 48 * 1024, 4, 0.5),
        ("sm_120", 256, 32, 0, 6, 1.0),
        ("sm_120", 256, 80, 0, 3, 0.5),
        ("sm_120", 128, 32, 100 * 1024, 0, 0.0),  # nothing is left for CUDA
        ("sm_30", 128, 32, 0, None, None),  # unknown
    ],
)
def test_occupancy(
    architecture: str, threads: int, registers: int, shared: int, blocks: int | None, share: float | None
) -> None:
    for dynamic in (0, shared // 3, shared):
        kernel = nvrtc.Resources("", registers, shared - dynamic, 0)
        assert kernel.occupancy(architecture, threads, dynamic) == (blocks, share)
    assert {*nvrtc.ARCHITECTURES} <= {*nvrtc.MULTIPROCESSORS}


def test_what_to_write_instead_of_a_name_of_the_host_is_said(tmp_path: Path) -> None:
    (tmp_path / "common.cuh").write_text("")
    (tmp_path / "least.cu").write_text('extern "C" __global__ void least(float* y) { y[0] = -INFINITY; }')
    with pytest.raises(KernelError, match=r"INFINITY: NVRTC has no INFINITY and no NAN: write __int_as_float\(0x7f8"):
        nvrtc.compile_for("least", "sm_90", tmp_path)
