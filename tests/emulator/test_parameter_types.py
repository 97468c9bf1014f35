"""Parameters of every type, and templates that take types."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.kernel_folders import folder_with

from tinyfcn.devices.emulator import Emulator
from tinyfcn.errors import KernelError

TYPES = """
struct Pair { int first; float second; };
struct alignas(8) Other { char a; double b; };
template <typename T, int COUNT = 2> __global__ void doubled(T* x) { x[threadIdx.x] *= COUNT; }
template <bool TWICE> __global__ void set(int* y) { y[0] = TWICE ? 2 : 1; }
__global__ void numbers(double* y, bool b, char c, short s, unsigned u, long long l, size_t z, double d, float2 v) {
    y[0] = b, y[1] = c, y[2] = s, y[3] = u, y[4] = l, y[5] = z, y[6] = d, y[7] = v.x, y[8] = v.y;
}
__global__ void arrays(bool* b, short x[], const float4* four, float3* three, const void* any) {
    b[0] = x[1] == 7 && ((const double*)any)[0] == 0.5;
    three[1] = make_float3(four[1].x, four[1].w, 9);
}
__global__ void structures(Pair* pairs, Pair one, const Other* others) {
    pairs[1] = {one.first + (int)others[1].b, one.second};
}
__global__ void maybe(float* y, const float* x) { y[0] = x == nullptr ? -1 : x[0]; }
__global__ void pointers(float** x) {}
__global__ void of_halves(half* x) {}
"""
PAIR = np.dtype([("first", np.int32), ("second", np.float32)])
OTHER = np.dtype([("a", np.int8), ("b", np.float64)], align=True)


@pytest.fixture(scope="module", params=["trap", "check"])
def types(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Emulator:
    text = TYPES.replace("__global__ void of_halves(half* x) {}\n", "")
    return Emulator(folder_with(tmp_path_factory.mktemp("types"), types=text), request.param)


def test_parameters_of_every_type_are_given(types: Emulator) -> None:
    y = types.empty((9,), np.float64)
    numbers = [True, -3, 7, 0xFFFFFFFF, -(1 << 40), 1 << 40, 0.1, (1.5, 2.5)]
    types.launch("numbers", 1, 1, [y, *numbers])
    np.testing.assert_array_equal(y, [*map(float, numbers[:-1]), 1.5, 2.5])
    flags, three = types.asarray(np.zeros(1, np.bool_)), types.asarray(np.zeros(6, np.float32))
    four = np.arange(8, dtype=np.float32).reshape(2, 4)
    arrays = [flags, np.array([0, 7], np.int16), four, three, np.full(1, 0.5)]
    types.launch("arrays", 1, 1, [array if i in (0, 3) else types.asarray(array) for i, array in enumerate(arrays)])
    assert flags[0] and three.tolist() == [0, 0, 0, 4, 7, 9]


def test_templates_take_types_numbers_and_defaults(types: Emulator) -> None:
    for name, dtype, template in (
        ("float", np.float32, ("float",)),
        ("unsigned", np.uint32, ("unsigned", 3)),
        ("size_t", np.uint64, ["size_t", 5]),
    ):
        x = types.asarray(np.arange(4, dtype=dtype))
        types.launch("doubled", 1, 4, [x], template=template)
        assert x.tolist() == [i * (template[1] if len(template) > 1 else 2) for i in range(4)], name
    y = types.asarray(np.zeros(1, np.int32))
    types.launch("set", 1, 1, [y], template=(True,))
    assert y[0] == 2
    with pytest.raises(TypeError, match="doubled: argument 'x' expects float64, got int32"):
        types.launch("doubled", 1, 1, [y], template=("double",))
    with pytest.raises(KernelError, match=r"has 2 template parameters \(T, COUNT\), and its launch gives 0"):
        types.launch("doubled", 1, 1, [y])


@pytest.mark.parametrize("form", [lambda one: one, lambda one: one.tobytes(), lambda one: one[()]])
def test_structures_are_given_by_value_and_in_arrays(types: Emulator, form: Callable[[np.ndarray], Any]) -> None:
    pairs, others = types.asarray(np.zeros(2, PAIR)), types.asarray(np.array([(0, 0), (1, 40)], OTHER))
    types.launch("structures", 1, 1, [pairs, form(np.array((2, 0.5), PAIR)), others])
    assert pairs.tolist() == [(0, 0), (42, 0.5)]


def test_an_array_that_the_kernel_compares_with_null_may_be_none(types: Emulator) -> None:
    y = types.asarray(np.zeros(1, np.float32))
    types.launch("maybe", 1, 1, [y, None])
    assert y[0] == -1


@pytest.mark.parametrize(
    ("kernel", "arguments", "error", "message"),
    [
        ("numbers", {1: 2}, TypeError, "'b' expects True or False, got int"),
        ("numbers", {3: 1 << 15}, ValueError, "'s' is 32768, which does not fit int16"),
        ("numbers", {8: (1, 2, 3)}, TypeError, "'v' expects 2 numbers, got tuple"),
        ("numbers", {8: b"123"}, ValueError, "'v' has 3 bytes, and a float2 has 8"),
        ("numbers", {0: 1.0}, TypeError, r"'y' expects an array .*, got float; for one number, write double y"),
        (
            "arrays",
            {2: np.zeros(7, np.float32)},
            ValueError,
            "'four' holds float4: its 7 elements are not a multiple of 4",
        ),
        ("arrays", {2: np.zeros(8)}, TypeError, "'four' expects float32, got float64"),
        (
            "structures",
            {0: np.zeros(2, np.float32)},
            TypeError,
            "'pairs' expects a structured dtype for Pair, got float32",
        ),
        ("structures", {0: np.zeros(2, OTHER)}, ValueError, "'pairs': a Pair has 8 bytes, and a .* has 16"),
        ("structures", {1: b"1234"}, ValueError, "'one': a Pair has 8 bytes, and a .* has 4"),
        ("structures", {1: 3}, TypeError, "'one' expects bytes or a NumPy structure of type Pair, got int"),
        ("maybe", {0: None}, TypeError, "'y' expects an array"),
        ("pointers", {}, TypeError, r"'x' has the type float\*\*, an array of pointers, which a launch cannot give"),
    ],
)
def test_arguments_that_do_not_fit_their_type_are_refused(
    types: Emulator, kernel: str, arguments: dict[int, Any], error: type[Exception], message: str
) -> None:
    right: dict[str, list[Any]] = {
        "numbers": [np.zeros(9), True, 0, 0, 0, 0, 0, 0, (0, 0)],
        "arrays": [
            np.zeros(1, np.bool_),
            np.zeros(2, np.int16),
            np.zeros(8, np.float32),
            np.zeros(6, np.float32),
            np.zeros(1),
        ],
        "structures": [np.zeros(2, PAIR), bytes(8), np.zeros(2, OTHER)],
        "maybe": [np.zeros(1, np.float32), None],
        "pointers": [np.zeros(1)],
    }
    given = [arguments.get(i, each) for i, each in enumerate(right[kernel])]
    with pytest.raises(error, match=f"{kernel}: argument {message}"):
        types.launch(kernel, 1, 1, [types.asarray(a) if isinstance(a, np.ndarray) else a for a in given])


def test_halves_are_refused_with_their_line(tmp_path: Path) -> None:
    device = Emulator(folder_with(tmp_path, halves=TYPES))
    with pytest.raises(
        KernelError, match=r"halves\.cu:18: half: the emulator computes in float and double, and not in"
    ):
        device.launch("of_halves", 1, 1, [device.asarray(np.zeros(1, np.float16))])
