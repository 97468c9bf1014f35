"""Tests `tinyfcn check`: right operations pass, and a fault in a kernel, a launcher or a reference ends it with 1."""

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from helpers.planting import line_of, plant

from tinyfcn.checks import gradcheck
from tinyfcn.checks.pieces import LAUNCHERS, SHARED, affected, cases_of, operations
from tinyfcn.checks.watched import launches_of
from tinyfcn.cli import main
from tinyfcn.devices.emulator import Emulator
from tinyfcn.devices.kernel_source import KERNELS
from tinyfcn.errors import DeviceError

SCRIPT = Path(__file__).parents[2] / "scripts" / "mutate.py"


def check(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["check", *arguments])


@pytest.fixture
def with_kernels(monkeypatch: pytest.MonkeyPatch):
    """A function that lets the command check the kernels of another folder."""

    def use(kernels: Path) -> None:
        for module in ("check", "sanitize"):
            monkeypatch.setattr(import_module(f"tinyfcn.cli.{module}"), "KERNELS", kernels)

    return use


HOST_FILE = """#include <stdio.h>
#include <cfloat>
__global__ void twice(float* x, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) x[i] = 2.0f * x[i];
}
int main() { twice<<<1, 1>>>(nullptr, 0); printf("done\\n"); return 0; }
"""


@pytest.mark.cupy
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, "NVRTC      compiles own.cu for sm_75"),
        ({"2.0f *": "FLT_MAX *"}, "refuses what nvcc may take, since it has no code and no headers of the host:"),
    ],
)
def test_a_file_with_host_code_and_headers_of_the_host(tmp_path: Path, change: dict[str, str], says: str) -> None:
    text = HOST_FILE
    for before, after in change.items():
        text = text.replace(before, after)
    (tmp_path / "own.cu").write_text(text)
    launch = ["--grid", "4", "--block", "256", "--arg", "n=1000", "--arg", "x=ones:1000"]
    result = check(str(tmp_path / "own.cu"), *launch)
    assert result.exit_code == 0, result.output
    assert says in result.output
    (tmp_path / "own.cu").write_text("".join(text.splitlines(keepends=True)[2:]).replace("2.0f", "FLT_MAX"))
    assert "refuses it" in check(str(tmp_path / "own.cu"), *launch).output


@pytest.mark.cupy
def test_a_right_operation() -> None:
    result = check("relu_forward", "--seeds", "4")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "relu: right",
        "  gradients  1 of the reference, 0 differ from finite differences",
        "  kernels    0 findings; launches in check mode: 30",
        "  NVRTC      compiles relu.cu for sm_75",
    ]


@pytest.mark.parametrize(
    ("kernel", "text", "replacement", "message", "where"),
    [
        # Numbers of a kernel that has no gradient.
        ("gather_normalise", "/ 127.0f", "/ 128.0f", r"batch\[.*\] is \S+, should be \S+: stored by", "/ 128.0f"),
        ("relu_backward", "y[element] > 0.0f", "y[element] >= 0.0f", r"dx\[.*\] is \S+, should be 0.0", ">= 0.0f"),
        ("block_sum", "__syncthreads();", "", "a race: .* partial", "total += partial"),
        # More than 32 parts of a loss.
        ("softmax_cross_entropy_mean", "first += 32", "first += 31", r"loss\[0\] is \S+, should be", None),
    ],
)
def test_a_fault_of_a_kernel_is_named_with_its_line(
    with_kernels, tmp_path: Path, kernel: str, text: str, replacement: str, message: str, where: str | None
) -> None:
    name = "softmax_cross_entropy" if kernel == "block_sum" else kernel
    kernels = plant(kernel, {text: replacement}, tmp_path / "kernels")
    with_kernels(kernels)
    result = check(name, "--seeds", "10")
    assert result.exit_code == 1 and result.exception.code == 1, result.output
    assert re.search(message, result.stdout), result.stdout
    operation = name.removesuffix("_backward").removesuffix("_mean")
    assert result.stdout.startswith(f"{operation}: WRONG\n")
    assert where is None or line_of(where, operation, kernels) in result.stdout


@pytest.mark.cupy
def test_nvrtc_refuses_what_a_host_compiler_takes(with_kernels, tmp_path: Path) -> None:
    kernels = plant("relu_forward", {}, tmp_path / "kernels")
    file = kernels / "relu.cu"
    text = file.read_text()
    start = text.index('extern "C"')
    file.write_text(
        text[:start] + "float twice(float x) { return 2 * x; }\n" + text[start:].replace("0.0f", "0.0f * twice(0)")
    )
    with_kernels(kernels)
    result = check("relu", "--seeds", "1")
    assert result.exit_code == 1
    assert re.search(r"NVRTC +refuses it: relu\.cu does not compile for sm_75:", result.stdout)
    assert "host functions are not allowed in JIT mode" in result.stdout and "float twice(float x)" in result.stdout


def test_without_nvrtc_the_rest_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise DeviceError("CuPy cannot be imported: pip install cupy-cuda12x")

    monkeypatch.setattr("tinyfcn.devices.nvrtc.compile_for", missing)
    result = check("relu", "--seeds", "1")
    assert result.exit_code == 0
    assert result.stdout.endswith("  NVRTC      not asked: CuPy cannot be imported: pip install cupy-cuda12x\n")


def test_a_fault_of_a_reference_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def half(dout: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.where(y > 0, dout, dout / 2)

    monkeypatch.setattr("tinyfcn.reference.relu.relu_backward", half)
    monkeypatch.setattr("tinyfcn.operations.ReferenceOperations.relu_backward", staticmethod(half))
    result = check("relu", "--seeds", "1")
    assert result.exit_code == 1
    assert "gradients  1 of the reference, 1 differ from finite differences" in result.stdout
    assert re.search(r"dx: relative error \d", result.stdout)


@pytest.mark.slow
def test_a_fault_of_a_launcher_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread too few: only a size with a remainder of 1 shows it."""
    launch = Emulator.launch_for_each
    monkeypatch.setattr(
        Emulator, "launch_for_each", lambda device, name, count, arguments: launch(device, name, count - 1, arguments)
    )
    for operation in ("add", "adam", "max_pool2d"):
        assert check(operation).exit_code == 1


def test_an_edit_of_a_shared_file_affects_all_operations() -> None:
    assert affected("common") == affected("tiles") == operations()
    assert affected("relu") == ["relu"]
    assert not SHARED & {*operations()}


def test_the_operations_that_launch_kernels_of_another_one_are_known() -> None:
    """All others launch those of their own file, or naive ones of a file of which they have no cases."""
    launchers: dict[str, set[str]] = {}
    for operation in operations():
        for launch in launches_of(gradcheck.cases(operation), KERNELS):
            if launch.kernel.operation != operation and cases_of(launch.kernel.operation):
                launchers.setdefault(launch.kernel.operation, set()).add(operation)
    for operation, others in LAUNCHERS.items():
        assert {*others} == launchers[operation]


@pytest.mark.parametrize(("name", "message"), [("rellu", "did you mean relu"), ("conv3d", "did you mean conv2d")])
def test_an_unknown_name_says_what_it_may_mean(name: str, message: str) -> None:
    result = check(name)
    assert result.exit_code == 2 and message in result.output


SAXPY = """__global__ void saxpy(int n, float a, const float* x, float* y) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = a * x[i] + y[i];
}
"""
CALLS = """import numpy as np
from tinyfcn.checks.own_file import Call

def calls(random):
    x, y = random.standard_normal((2, 1000))
    yield Call("saxpy", grid=4, block=256, arguments=[1000, 2.0, x, y], expected={"y": 2 * x + y})
"""
ON_COMMAND_LINE = ["--grid", "4", "--block", "256", "--arg", "a=2", "--arg", "x=1000", "--arg", "y=random:1000"]


@pytest.fixture
def saxpy(tmp_path: Path) -> Path:
    file = tmp_path / "saxpy.cu"
    file.write_text(SAXPY)
    return file


def test_a_file_of_ones_own_with_calls_in_python(saxpy: Path) -> None:
    saxpy.with_suffix(".py").write_text(CALLS)
    result = check(str(saxpy))
    assert result.exit_code == 0, result.output
    first, launches, results, y, *_ = result.stdout.splitlines()
    assert first == "saxpy.cu: right" and launches == "  kernels    0 findings; launches in check mode: 3"
    assert results == "  results    1 compared" and y.startswith("    y float32 (1000,): from -")

    saxpy.write_text(SAXPY.replace("+ y[i]", "- y[i]"))
    result = check(str(saxpy))
    assert result.exit_code == 1
    assert re.search(r"y\[\d+\] is \S+, should be \S+: stored by saxpy at saxpy\.cu:3.*forward order", result.stdout)


def test_a_file_of_ones_own_launched_on_the_command_line(saxpy: Path) -> None:
    result = check(str(saxpy), *ON_COMMAND_LINE, "--arg", "n=1000")
    assert result.exit_code == 0, result.output
    assert "results    not compared: --cases says what they should be" in result.stdout
    result = check(str(saxpy), *ON_COMMAND_LINE, "--arg", "n=1001")
    assert result.exit_code == 1
    assert "reads x[1000] (x has 1000 elements) at saxpy.cu:3" in result.stdout


def test_two_calls_share_an_array(saxpy: Path) -> None:
    saxpy.with_suffix(".py").write_text(
        CALLS + "    yield Call('saxpy', 4, 256, [1000, 1.0, x, y], {'y': 3 * x + y})\n"
    )
    assert check(str(saxpy)).exit_code == 0


FILTER = """__constant__ float c_Kernel[3];
__global__ void filter(const float* x, float* y) {
    y[threadIdx.x] = threadIdx.x < 2 ? 0.0f : c_Kernel[0] * x[threadIdx.x] + c_Kernel[2] * x[threadIdx.x - 2];
}
"""


def test_a_constant_that_the_host_fills(tmp_path: Path) -> None:
    file = tmp_path / "filter.cu"
    file.write_text(FILTER)
    launch = "--block", "8", "--arg", "x=ones:8", "--arg", "y=8"
    silent = check(str(file), *launch)
    assert "y float32 (8,): from 0 to 0" in silent.output
    assert "c_Kernel holds zeros, since the host has to fill it: --constant c_Kernel=random:SHAPE" in silent.output
    filled = check(str(file), *launch, "--constant", "c_Kernel=range:3")
    assert "y float32 (8,): from 0 to 2" in filled.output and "holds zeros" not in filled.output
    for given, message in (
        ("c_Kernel=range:4", "c_Kernel has 12 bytes, and 16 are given: float32 (4,)"),
        ("c=range:3", f"no constant c that the host fills in {file}: it has c_Kernel"),
        ("c_Kernel=empty:3", "c_Kernel=empty:3: a constant takes random:, zeros:, ones: or range:"),
    ):
        refused = check(str(file), *launch, "--constant", given)
        assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1) and message in refused.stderr


def test_a_constant_in_python_changes_between_calls(tmp_path: Path) -> None:
    file = tmp_path / "filter.cu"
    file.write_text(FILTER)
    file.with_suffix(".py").write_text(
        "import numpy as np\nfrom tinyfcn.checks.own_file import Call, Empty\n"
        "def calls(random):\n"
        "    for factor in (1, 5):\n"
        "        taps, y = np.arange(3, dtype=np.float32) * factor, np.float32([0, 0, 2, 2]) * factor\n"
        "        arguments = [np.ones(4, np.float32), Empty(4)]\n"
        "        yield Call('filter', 1, 4, arguments, {'y': y}, constants={'c_Kernel': taps})\n"
    )
    assert "filter.cu: right" in check(str(file)).output


@pytest.mark.cupy
def test_names_that_nvcc_knows_without_a_header_are_no_fault(tmp_path: Path) -> None:
    file = tmp_path / "least.cu"
    file.write_text("__global__ void least(float* y) { y[0] = INFINITY; }")
    result = check(str(file), "--arg", "y=1")
    assert result.exit_code == 0 and "refuses what nvcc may take" in result.output
    file.write_text("__global__ void least(float* y) { y[0] = INFINITY; std::min(1, 2); }")
    assert check(str(file), "--arg", "y=1").exit_code == 1


@pytest.mark.cupy
@pytest.mark.parametrize(
    ("before", "value", "says"),
    [
        ("const float* reference = nullptr;", "x[i] + 1", ":1: a variable without __device__: kernels cannot use it"),
        ("struct Timer { void start() { } };", "x[i] + 1", ":1: a function without __device__: kernels cannot use it"),
        ("", "__reduce_add_sync(0xffffffffu, (unsigned)x[i])", ':2: identifier "__reduce_add_sync" is undefined'),
        ("", "fmax(x[i], 0.0)", ":2: more than one instance of overloaded function"),
        ("", "(uint)x[i]", ':2: identifier "uint" is undefined'),
    ],
)
def test_what_nvrtc_alone_refuses_is_no_fault(tmp_path: Path, before: str, value: str, says: str) -> None:
    text = f"{before}\n__global__ void k(float* x) {{ int i = threadIdx.x; x[i] = {value}; }}\n"
    for includes in ("", "#include <cuda_runtime.h> "):  # the verdict is the same
        file = tmp_path / "own.cu"
        file.write_text(includes + "\n" * bool(includes) + text)
        result = check(str(file), "--block", "32", "--arg", "x=ones:32")
        assert result.exit_code == 0, result.output
        assert includes or f"    own.cu{says}" in result.output


@pytest.mark.cupy
def test_many_errors_of_nvrtc_are_told_in_brief(tmp_path: Path) -> None:
    file = tmp_path / "own.cu"
    file.write_text(
        "".join(f"const float* a{n} = nullptr;\n" for n in range(9)) + "__global__ void k(float* x) { x[0] = 1; }\n"
    )
    lines = check(str(file), "--arg", "x=1").stdout.splitlines()
    assert lines[-1] == "    and 6 more" and len(lines) < 12


def test_a_variable_that_may_have_no_value_is_named(tmp_path: Path) -> None:
    file = tmp_path / "own.cu"
    file.write_text(
        "__global__ void k(float* x, int n) {\n    float sum;\n"
        "    for (int i = 0; i < n; ++i) sum += x[i];\n    x[0] = sum;\n}\n"
    )
    result = check(str(file), "--arg", "x=ones:4", "--arg", "n=4")
    assert result.exit_code == 1
    assert re.search(r"own.cu:\d: sum: it may be read before it has a value: give it one where", result.stderr)


PARTICLES = """struct Particle { float x, v; };
__global__ void push(Particle* p, int n, float dt) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) p[i].x += dt * p[i].v;
}
"""
PARTICLES_CALLS = """import numpy as np
from tinyfcn.checks.own_file import Call
def calls(random):
    p = np.zeros(100, np.dtype([("x", "f4"), ("v", "f4")]))
    p["v"] = random.standard_normal(100)
    right = p.copy()
    right["x"] += np.float32(0.5) * p["v"]
    yield Call("push", 1, 128, [p, 100, 0.5], expected={"p": right})
"""


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("", ""), r"    p\.v float32 \(100,\): from "),
        # The two fields are read in the compiler's order.
        (("i < n", "i <= n"), r"reads \(char\*\)p\[80[04]\] \(\(char\*\)p has 800 elements\) at own.cu:4"),
        (("dt * p", "2 * dt * p"), "should be -1.1625154: stored by push at own.cu:4"),
    ],
)
def test_arrays_of_structures(tmp_path: Path, change: tuple[str, str], says: str) -> None:
    file = tmp_path / "own.cu"
    file.write_text(PARTICLES.replace(*change))
    file.with_suffix(".py").write_text(PARTICLES_CALLS)
    result = check(str(file))
    assert result.exit_code == (change != ("", "")) and re.search(says, result.output), result.output


BODIES = """struct Body { int id; float at[3]; };
__global__ void move(Body* b, int n) {
    int i = threadIdx.x;
    if (i < n) for (int k = 0; k < 3; ++k)
        if (k < 2) b[i].at[k] += 1;
        else b[i].at[k] += 2;
}
"""
BODIES_CALLS = """import numpy as np
from tinyfcn.checks.own_file import Call
def calls(random):
    b = np.zeros(5, np.dtype([("id", "i4"), ("at", "f4", 3)]))
    right = b.copy()
    right["at"] += 1
    yield Call("move", 1, 32, [b, 5], expected={"b": EXPECTED})
"""


@pytest.mark.parametrize(
    ("expected", "says"),
    [
        ("right", "b.at[0, 2] is 2.0, should be 1.0: stored by move at own.cu:6"),
        ("right['at']", "move: b has the fields id, at; expected gives none, since it is no array of structures"),
    ],
)
def test_fields_of_several_numbers(tmp_path: Path, expected: str, says: str) -> None:
    file = tmp_path / "own.cu"
    file.write_text(BODIES)
    file.with_suffix(".py").write_text(BODIES_CALLS.replace("EXPECTED", expected))
    result = check(str(file))
    assert result.exit_code == 1 and says in result.output, result.output


@pytest.mark.parametrize(
    ("kernel", "arguments"),
    [
        ("template <typename T, typename U = float> __global__ void k(const T* a, U* c)", ["--template", "double"]),
        ("template <typename T = double, typename U = T> __global__ void k(const T* a, U* c)", []),
        ("__global__ void k(const float (*a)[16], float (*c)[16])", []),
    ],
)
def test_default_types_and_pointers_to_rows(tmp_path: Path, kernel: str, arguments: list[str]) -> None:
    file = tmp_path / "own.cu"
    file.write_text(f"{kernel} {{ {'c[0][1] = a[0][1]' if '16' in kernel else 'c[1] = a[1]'}; }}")
    result = check(str(file), *arguments, "--arg", "a=ones:2x16", "--arg", "c=zeros:2x16")
    assert result.exit_code == 0 and " (2, 16): from 0 to 1" in result.output, result.output


def test_kernels_in_a_header_that_is_missing(tmp_path: Path) -> None:
    file = tmp_path / "main.cu"
    file.write_text('#include "kernels.cuh"\nint main() { return 0; }\n')
    message = (
        f'no kernel in {file}; it may stand in "kernels.cuh", which is not in the folder of the file: put it there'
    )
    assert message in check(str(file)).stderr


@pytest.mark.parametrize("type_", ["__half", "half", "__half2", "__nv_bfloat16"])
def test_half_precision_is_named(tmp_path: Path, type_: str) -> None:
    file = tmp_path / "halves.cu"
    file.write_text(
        f"#include <cuda_fp16.h>\n__global__ void copy(const {type_}* x, {type_}* y, unsigned n) {{ *y = *x; }}"
    )
    assert "--arg x=1000 --arg y=1000 --arg n=1000" in check(str(file)).stderr
    refused = check(str(file), "--arg", "x=8", "--arg", "y=8", "--arg", "n=8").stderr
    assert f"halves.cu:2: {type_}: the emulator computes in float and double, and not in half precision" in refused


def test_what_depends_on_the_order_of_threads_is_a_finding_but_rounding_is_none(tmp_path: Path) -> None:
    file = tmp_path / "sum.cu"
    file.write_text("__global__ void sum(const float* x, float* y) { atomicAdd(y, x[threadIdx.x]); }")
    launch = "--block", "256", "--arg", "x=256", "--arg", "y=zeros:1"
    result = check(str(file), *launch)
    assert result.exit_code == 0
    assert "note       sum: y depends on the order of threads (reverse), but by rounding alone" in result.stdout
    file.write_text(file.read_text().replace("atomicAdd", "atomicExch"))
    result = check(str(file), *launch)
    assert result.exit_code == 1 and "note" not in result.stdout
    assert "sum: y depends on the order of threads (reverse)" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        ([], 1, "no value for n; for example: --kernel saxpy --grid 4 --block 256 --arg n=1000"),
        (["--arg", "m=1"], 1, "no parameter m; for example"),
        (["--kernel", "k"], 1, "no kernel named k: choose one of saxpy with --kernel"),
        ([*ON_COMMAND_LINE, "--arg", "n=many"], 1, "n=many: int n takes a number"),
        ([*ON_COMMAND_LINE, "--arg", "n=1", "--arg", "x=0y1"], 1, r"x=0y1: float\* x takes a shape such as 1000"),
        ([*ON_COMMAND_LINE, "--arg", "n=1", "--template", "8"], 1, "saxpy is a template of 0 parameters"),
        ([*ON_COMMAND_LINE, "--arg", "n=3.5"], 1, "argument 'n' expects an integer, got float 3.5"),
        (["--grid", "1.5"], 2, "'1.5' is not a list of whole numbers such as 4 or 16,16"),
        (["--cases", "missing.py"], 1, "missing.py fails: FileNotFoundError"),
    ],
)
def test_a_call_that_is_not_understood_is_one_line(
    saxpy: Path, arguments: list[str], exit_code: int, message: str
) -> None:
    result = check(str(saxpy), *arguments)
    assert result.exit_code == exit_code and isinstance(result.exception, SystemExit)
    assert re.search(message, result.output) and "Traceback" not in result.output


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def calls(random):\n    return [nothing]\n", r"saxpy\.py:2 fails: NameError: name 'nothing' is not defined"),
        ("def cases(random): pass\n", r"saxpy\.py needs a function calls\(random\) that yields"),
        ("def calls(random): yield 1\n", r"saxpy\.py needs a function calls\(random\) that yields"),
    ],
)
def test_python_that_fails_is_one_line(saxpy: Path, text: str, message: str) -> None:
    saxpy.with_suffix(".py").write_text(text)
    result = check(str(saxpy))
    assert result.exit_code == 1 and re.search(message, result.output) and "Traceback" not in result.output


@pytest.mark.slow
def test_the_campaign_of_mutants_runs() -> None:
    process = subprocess.run(
        [sys.executable, SCRIPT, "--kernels", "2", "--launchers", "1", "--seed", "229"], capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    assert re.search(
        r"^2 mutants of kernels, \d survived\n1 mutants of launchers, \d survived\n$", process.stdout, re.M
    )
