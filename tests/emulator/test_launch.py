"""Tests launches: kernels are found, arguments checked, devices chosen, and no test is skipped."""

import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.closeness import on_device
from helpers.kernel_folders import folder_with

from tinyfcn.devices import cuda, kernel_source
from tinyfcn.devices.emulator import Emulator
from tinyfcn.devices.kernel_source import KERNELS, Parameter, Source
from tinyfcn.devices.launch import DTYPES, as_dim3, ceil_div, checked_arguments
from tinyfcn.errors import DeviceError, KernelError
from tinyfcn.operations import on, operation_names
from tinyfcn.ops import Operations
from tinyfcn.ops.compose_m2nist import HEIGHT, SIDE, WIDTH
from tinyfcn.ops.launcher import SUM_THREADS

TEXT = """
// extern "C" __global__ void only_a_comment(float* x) {}
/* extern "C" __global__ void
   another_comment(float* x) {} */
__device__ float helper(float x) { return x; }

extern "C" __global__ void scale(const float* __restrict__ x,  // what to scale
                                 float *__restrict__ y, float factor, int count) {
    int i = threadIdx.x;
    if (i < count) y[i] = factor * x[i];
}
extern "C"  __global__   void __launch_bounds__(256, 2)
no_arrays(unsigned int u, unsigned char b, unsigned long long l) {}
extern "C" __global__ __launch_bounds__(64) void nothing() {}
"""


@pytest.fixture
def scale(ops: Operations, tmp_path_factory: pytest.TempPathFactory) -> Operations:
    """A device with the kernel `scale` of TEXT."""
    folder = tmp_path_factory.mktemp("kernels")
    (folder / "common.cuh").write_text("")
    (folder / "scale.cu").write_text(TEXT)
    return Operations(type(ops.device)(folder))


def test_kernels_and_parameters_are_parsed_from_the_text() -> None:
    kernels = Source(TEXT, "scale").kernels
    assert [kernel.name for kernel in kernels] == ["scale", "no_arrays", "nothing"]
    assert {kernel.operation for kernel in kernels} == {"scale"}
    assert kernels[0].parameters == (
        Parameter("x", "float", is_array=True, is_const=True),
        Parameter("y", "float", is_array=True, is_const=False),
        Parameter("factor", "float", is_array=False, is_const=False),
        Parameter("count", "int", is_array=False, is_const=False),
    )
    assert [parameter.type for parameter in kernels[1].parameters] == [
        "unsigned int",
        "unsigned char",
        "unsigned long long",
    ]
    assert kernels[2].parameters == ()


def test_every_kernel_of_the_package_is_found() -> None:
    found = kernel_source.kernels()
    for operation in kernel_source.operations():
        text = (KERNELS / f"{operation}.cu").read_text()
        named = [name for name, kernel in found.items() if kernel.operation == operation]
        assert len(named) == len(re.findall(r"^[^/\n]*__global__", text, re.MULTILINE)) > 0, operation
        for name in named:
            others = "softmax_cross_entropy", "adam", "gather_normalise", "peak"
            assert name.startswith(operation) or operation in others, name
    for kernel in found.values():
        assert all(parameter.type in DTYPES for parameter in kernel.parameters), kernel


def test_every_kernel_is_in_the_table_of_its_header() -> None:
    for name, kernel in kernel_source.kernels().items():
        header = (KERNELS / f"{kernel.operation}.cu").read_text().split("\nextern", 1)[0]
        assert re.search(rf"^//   {name} +\S.*\S +\S+", header, re.MULTILINE), f"{name} is not in the table of its file"


def test_the_text_to_compile_has_line_directives() -> None:
    lines = kernel_source.source("relu").text.split("\n")
    assert lines[0] == '#line 1 "common.cuh"'
    second = lines.index('#line 1 "relu.cu"')
    assert lines[1:second] == (KERNELS / "common.cuh").read_text().split("\n")
    assert lines[second + 1 : -1] == (KERNELS / "relu.cu").read_text().split("\n")


def test_two_kernels_of_the_same_name_are_refused(ops: Operations, tmp_path: Path) -> None:
    same = 'extern "C" __global__ void same(int* x) {}'
    folder_with(tmp_path, one=same, two=same)
    with pytest.raises(KernelError, match=r"kernel same is defined in both one\.cu and two\.cu: rename one of them"):
        type(ops.device)(tmp_path)


def test_launchers_and_kernels_have_the_same_constants() -> None:
    def defined(name: str, file: str) -> int:
        return int(re.search(rf"^constexpr int {name} = (\d+);$", (KERNELS / file).read_text(), re.MULTILINE)[1])

    numpy = importlib.import_module("tinyfcn.reference.compose_m2nist")
    assert defined("SUM_THREADS", "common.cuh") == SUM_THREADS
    for name, value in (("HEIGHT", HEIGHT), ("WIDTH", WIDTH), ("SIDE", SIDE)):
        assert defined(name, "compose_m2nist.cu") == value == getattr(numpy, name)
    assert defined("TRIES", "compose_m2nist.cu") == numpy.TRIES


def test_a_launch_runs_over_all_threads(scale: Operations) -> None:
    x, y = on_device(scale, np.arange(5, dtype=np.float32), np.zeros(5, np.float32))
    scale.device.launch("scale", 1, 5, (x, y, 0.5, 4))
    np.testing.assert_array_equal(scale.to_numpy(y), [0, 0.5, 1, 1.5, 0])


@pytest.mark.parametrize(
    ("number", "factor"),
    [
        (2, 2),
        (2.5, 2.5),
        (np.float64(2.5), 2.5),
        (np.float32(0.1), np.float32(0.1)),
        (np.int64(3), 3),
        (0.1, np.float32(0.1)),
    ],
)
def test_numbers_become_the_declared_type(scale: Operations, number: object, factor: float) -> None:
    x, y = on_device(scale, np.ones(1, np.float32), np.zeros(1, np.float32))
    scale.device.launch("scale", 1, 1, (x, y, number, np.int64(1)))
    assert scale.to_numpy(y)[0] == factor


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": np.zeros(4)}, TypeError, "scale: argument 'x' expects float32, got float64"),
        ({"y": np.zeros(4, np.int32)}, TypeError, "scale: argument 'y' expects float32, got int32"),
        ({"x": 3.0}, TypeError, "scale: argument 'x' expects an array .*ndarray.*, got float"),
        ({"x": [1.0, 2.0]}, TypeError, "scale: argument 'x' expects an array .*, got list"),
        ({"x": None}, TypeError, "scale: argument 'x' expects an array .*, got NoneType"),
        ({"factor": np.zeros(1, np.float32)}, TypeError, "scale: argument 'factor' expects one number of type float32"),
        ({"factor": True}, TypeError, "scale: argument 'factor' expects one number of type float32, got bool"),
        ({"count": 4.0}, TypeError, r"scale: argument 'count' expects an integer, got float 4\.0"),
        ({"count": np.True_}, TypeError, "scale: argument 'count' expects one number of type int32, got bool"),
        ({"count": 2**31}, ValueError, "scale: argument 'count' is 2147483648, which does not fit int32"),
        ({"count": -(2**31) - 1}, ValueError, "scale: argument 'count' is -2147483649, which does not fit int32"),
    ],
)
def test_mismatched_arguments_are_refused(scale: Operations, change: dict, error: type, message: str) -> None:
    given = {"x": np.zeros(4, np.float32), "y": np.zeros(4, np.float32), "factor": 1.0, "count": 4} | change
    arguments = [scale.asarray(a) if isinstance(a, np.ndarray) else a for a in given.values()]
    with pytest.raises(error, match=message):
        scale.device.launch("scale", 1, 4, arguments)


def test_views_that_are_not_contiguous_are_refused(scale: Operations) -> None:
    y = scale.asarray(np.zeros(4, np.float32))
    for view in (scale.asarray(np.zeros((4, 4), np.float32)).T[:3], scale.asarray(np.zeros(8, np.float32))[::2]):
        with pytest.raises(ValueError, match=r"scale: argument 'x' must be C-contiguous, got strides \("):
            scale.device.launch("scale", 1, 4, (view, y, 1.0, 4))


def test_contiguous_views_are_accepted(scale: Operations) -> None:
    x, y = on_device(scale, np.arange(8, dtype=np.float32), np.zeros((2, 4), np.float32))
    scale.device.launch("scale", 1, 4, (x[4:], y[1], 1.0, 4))
    np.testing.assert_array_equal(scale.to_numpy(y), [[0, 0, 0, 0], [4, 5, 6, 7]])


@pytest.mark.parametrize("count", [0, 3, 5])
def test_the_number_of_arguments_is_checked(scale: Operations, count: int) -> None:
    arguments = [*on_device(scale, *[np.zeros(4, np.float32)] * 2), 1.0, 4, 5][:count]
    with pytest.raises(
        KernelError, match=f"scale at scale.cu:.* takes 4 arguments, and its launch gives {count}: .*test_launch.py:"
    ):
        scale.device.launch("scale", 1, 4, arguments)


@pytest.mark.parametrize(
    ("kernel", "file", "operation"),
    [
        ("relu_forward", "relu", "relu"),
        ("fast_conv_forward", "fast_conv", "conv2d"),
        ("fast_conv_backward_input", "fast_conv", "conv_transpose2d"),
        ("fast_conv_backward_weight", "fast_conv", "conv_transpose2d_backward"),
        ("conv2d_backward_bias_naive", "conv2d", "conv_transpose2d_backward"),
        ("max_pool2d_forward", "max_pool2d", "conv2d_pool"),
    ],
)
def test_the_launching_file_is_reported(kernel: str, file: str, operation: str, tmp_path: Path) -> None:
    """With a new parameter of the kernel or of its template, the error names the file that launches it."""
    ones = np.ones((1, 2, 5, 5), np.float32)
    weight, bias = np.ones((2, 2, 3, 3), np.float32), np.ones(2, np.float32)
    arguments = {
        "relu": (ones,),
        "conv_transpose2d_backward": (np.ones((1, 2, 7, 7), np.float32), ones, weight),
    }.get(operation, (ones, weight, bias))
    kernels = tmp_path / "kernels"
    shutil.copytree(KERNELS, kernels)
    source = kernels / f"{file}.cu"
    text = source.read_text()
    edits = [(rf"\b({kernel}\()", r"\1int more, ", "takes .* arguments, and its launch gives")]
    if kernel_source.kernels()[kernel].template:
        edits.append(
            (rf"template <(?=[^<>]*>\s*__global__[^{{]*\b{kernel}\()", "template <int MORE, ", "template parameters")
        )
    for pattern, replacement, message in edits:
        source.write_text(re.sub(pattern, replacement, text))
        naive = kernel.endswith("_naive") or kernel == "max_pool2d_forward"
        ops = Operations(Emulator(kernels, naive=naive))
        with pytest.raises(KernelError, match=rf"{kernel} at {file}\.cu.*{message}.*\(tinyfcn/ops/{file}\.py:\d+\)"):
            getattr(ops, operation)(*on_device(ops, *arguments))


def test_arrays_of_another_device_are_refused() -> None:
    (kernel, *_) = Source(TEXT, "scale").kernels

    class Elsewhere:
        pass

    arrays = [np.zeros(4, np.float32)] * 2
    with pytest.raises(TypeError, match=r"argument 'x' expects an array \(.*test_launch\.Elsewhere\), got ndarray"):
        checked_arguments(kernel, [*arrays, 1.0, 4], Elsewhere)


@pytest.mark.parametrize(
    ("grid", "block"),
    [
        *[(0, 1), (1, 0), (-1, 1), ((1, 0), 1), (1, (1, 1, 0)), (1, 1025), (1, (32, 33)), (1, (8, 8, 17))],
        *[(1 << 31, 1), ((1, 65536), 1), ((1, 1, 65536), 1), (1, (1, 1, 65))],
    ],
)
def test_grids_and_blocks_that_a_gpu_refuses_are_refused(scale: Operations, grid: object, block: object) -> None:
    x, y = on_device(scale, *[np.zeros(4, np.float32)] * 2)
    with pytest.raises(
        ValueError, match=r"scale: grid .* and block .* must be positive, the grid at most \(2147483647,"
    ):
        scale.device.launch("scale", grid, block, (x, y, 1.0, 4))


def test_an_unknown_kernel_is_reported(ops: Operations) -> None:
    with pytest.raises(KernelError, match="no kernel named conv3d in "):
        ops.device.launch("conv3d", 1, 1, ())


def test_the_device_determines_the_float_type(ops: Operations) -> None:
    (kernel, *_) = Source(TEXT, "scale").kernels
    double = DTYPES | {"float": np.dtype(np.float64)}
    arrays = [np.zeros(4), np.zeros(4)]
    *_, factor, count = checked_arguments(kernel, [*arrays, np.float32(0.5), 4], np.ndarray, double)
    assert (type(factor), type(count)) == (np.float64, np.int32)
    with pytest.raises(TypeError, match="argument 'x' expects float64, got float32"):
        checked_arguments(kernel, [arrays[0].astype(np.float32), arrays[1], 0.5, 4], np.ndarray, double)
    assert ops.device.dtypes["float"] == ops.device.empty((3,)).dtype == np.float32
    assert ops.device.empty((3,), np.int32).dtype == np.int32


def test_a_launch_uses_the_dtypes_of_its_device() -> None:
    emulator = Operations(Emulator(precision="double"))
    assert emulator.device.empty((3,)).dtype == np.float64
    x = np.array([1 + 1e-12, -1])
    assert emulator.to_numpy(emulator.relu(emulator.asarray(x))).tolist() == [1 + 1e-12, 0]
    with pytest.raises(TypeError, match="relu_forward: argument 'x' expects float64, got float32"):
        emulator.relu(emulator.asarray(x.astype(np.float32)))


def test_more_elements_than_an_index_can_number_are_refused(scale: Operations) -> None:
    x, y = on_device(scale, *[np.zeros(4, np.float32)] * 2)
    for count in (2**31, 2**31 - 100):
        with pytest.raises(ValueError, match=f"scale: {count} elements are more than a 32-bit index can number"):
            scale.device.launch_for_each("scale", count, (x, y, 1.0, 4))


def test_no_elements_launch_nothing(scale: Operations) -> None:
    scale.device.launch_for_each("scale", 0, ())


def test_sizes_of_launches() -> None:
    assert [ceil_div(a, 256) for a in (0, 1, 255, 256, 257, 512)] == [0, 1, 1, 1, 2, 2]
    assert (as_dim3(7), as_dim3((7,)), as_dim3((7, 8)), as_dim3((7, 8, 9))) == (
        (7, 1, 1),
        (7, 1, 1),
        (7, 8, 1),
        (7, 8, 9),
    )


def test_devices_have_the_same_interface(ops: Operations) -> None:
    for each in (ops, on("cpu")):
        assert all(callable(getattr(each, name)) for name in operation_names())
        array = each.asarray(np.arange(6, dtype=np.int32).reshape(2, 3).T)
        assert array.dtype == np.int32 and array.flags.c_contiguous
        back = each.to_numpy(array)
        array += 1
        np.testing.assert_array_equal(back, [[0, 3], [1, 4], [2, 5]], err_msg="a copy")


def test_devices_are_chosen_by_name(ops: Operations) -> None:
    assert repr(ops) == f"tinyfcn.on('{ops.device_name}')"
    assert on("cpu").device_name == "cpu"
    assert on().device_name == ("cpu" if cuda.why_not() else "cuda")
    with pytest.raises(ValueError, match="no device named 'gpu'; there are auto, cuda, cpu, emulator"):
        on("gpu")


def test_without_a_gpu_the_error_gives_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "why_not", lambda: "no driver here")
    with pytest.raises(DeviceError, match="the device 'cuda' cannot be used: no driver here; --device cpu works"):
        on("cuda")
    assert on("auto").device_name == "cpu"


@pytest.mark.parametrize("file", ["common.cuh", "relu.cu"])
def test_a_compile_error_has_file_and_line(ops: Operations, tmp_path: Path, file: str) -> None:
    for name in ("common.cuh", "relu.cu"):
        shutil.copy(KERNELS / name, tmp_path)
    lines = (tmp_path / file).read_text().split("\n")
    lines.insert(4, "int broken = not_declared;")
    (tmp_path / file).write_text("\n".join(lines))
    with pytest.raises(KernelError, match=rf"(?s)relu\.cu does not compile.*{re.escape(file)}\W+5\W.*not_declared"):
        Operations(type(ops.device)(tmp_path)).relu(ops.asarray(np.ones(3, np.float32)))


@pytest.mark.slow
def test_without_a_compiler_the_kernel_tests_fail_with_the_reason() -> None:
    """Runs this test suite without a compiler: no test may pass, or be skipped."""
    environment = os.environ | {"CXX": "no-such-compiler"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "kernels/test_add.py", "-k", "partial_blocks"]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "the emulator needs a C++ compiler and 'no-such-compiler', which CXX names, was not found" in done.stdout
    assert "skipped" not in done.stdout.splitlines()[-1]
    assert re.search(r"^kernels run on: emulator", done.stdout, re.MULTILINE)
