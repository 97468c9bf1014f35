"""Every kernel compiled by NVIDIA's own compiler for real GPUs, which needs none: it fits, and spills nothing."""

import platform
import shutil
import sys
from pathlib import Path

import pytest

from tinyfcn.devices import kernel_source, nvrtc
from tinyfcn.devices.kernel_source import KERNELS
from tinyfcn.errors import DeviceError, KernelError

# The machines for which pyproject.toml installs CuPy and NVRTC. There a missing NVRTC is a failure.
HAS_WHEELS = (sys.platform, platform.machine()) in {("linux", "x86_64"), ("linux", "aarch64"), ("win32", "AMD64")}
if not HAS_WHEELS:
    try:
        nvrtc.load_nvrtc()
    except DeviceError as error:
        reason = f"NO KERNEL WAS COMPILED FOR A GPU: {error} ({sys.platform}, {platform.machine()} has no such wheel)"
        pytest.skip(reason, allow_module_level=True)

MOST_REGISTERS = 64  # 65,536 in a multiprocessor: four blocks of 256 threads, or 16 of 64, fit at once


@pytest.mark.parametrize("architecture", nvrtc.ARCHITECTURES)
@pytest.mark.parametrize("operation", kernel_source.operations())
def test_kernels_compile_and_spill_nothing(operation: str, architecture: str) -> None:
    found = nvrtc.compile_for(operation, architecture)
    declared = kernel_source.parse((KERNELS / f"{operation}.cu").read_text(), operation)
    assert sorted(kernel.kernel for kernel in found) == sorted(kernel.name for kernel in declared)
    for kernel in found:
        assert kernel.spilled_bytes == 0, kernel
        assert 0 < kernel.registers <= MOST_REGISTERS, kernel


def test_the_architectures_are_those_promised() -> None:
    assert {"sm_75", "sm_80", "sm_90", "sm_120"} <= {*nvrtc.ARCHITECTURES}


def test_shared_memory_is_read_off() -> None:
    (bias,) = (each for each in nvrtc.compile_for("conv2d", "sm_80") if each.kernel == "conv2d_backward_bias_naive")
    assert bias.shared_bytes == 64 * 4
    (relu, _) = nvrtc.compile_for("relu", "sm_80")
    assert relu.shared_bytes == 0


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


def test_a_kernel_that_spills_is_noticed(tmp_path: Path) -> None:
    """Eighty numbers to keep, and 32 registers to keep them in."""
    (tmp_path / "common.cuh").write_text("")
    (tmp_path / "spills.cu").write_text(SPILLS)
    found = {each.kernel: each for each in nvrtc.compile_for("spills", "sm_80", tmp_path)}
    assert found["hungry"].spilled_bytes > 100 and found["frugal"].spilled_bytes == 0


@pytest.mark.parametrize("place", ["common.cuh", "relu.cu"])
def test_a_kernel_that_does_not_compile_is_named_with_file_and_line(tmp_path: Path, place: str) -> None:
    for name in ("common.cuh", "relu.cu"):
        shutil.copy(KERNELS / name, tmp_path)
    lines = (tmp_path / place).read_text().split("\n")
    lines.insert(4, "int broken = not_declared;")
    (tmp_path / place).write_text("\n".join(lines))
    with pytest.raises(KernelError) as caught:
        nvrtc.compile_for("relu", "sm_90", tmp_path)
    message = str(caught.value)
    assert message.startswith("relu.cu does not compile for sm_90:\n")
    assert f"{place}(5): error" in message and "not_declared" in message


def test_host_words_are_no_cuda(tmp_path: Path) -> None:
    """NVRTC has no INFINITY and no headers of the system: kernels do without, or fail here rather than on a GPU."""
    (tmp_path / "common.cuh").write_text("")
    (tmp_path / "infinite.cu").write_text('extern "C" __global__ void infinite(float* x) { x[0] = INFINITY; }')
    with pytest.raises(KernelError, match=r"infinite\.cu\(1\): error.*INFINITY"):
        nvrtc.compile_for("infinite", "sm_75", tmp_path)
