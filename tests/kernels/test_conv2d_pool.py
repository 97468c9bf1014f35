"""Tests conv2d_pool against the operations that it fuses, including every max_index; and its gradients."""

import itertools
from typing import Any

import numpy as np
import pytest
from helpers.closeness import assert_close, assert_equal, float64, on_device, positive
from helpers.instances import compile_for

from tinyfcn.checks.conflicts import conflicts
from tinyfcn.operations import on
from tinyfcn.ops import Operations, fast_conv

reference = on("cpu")

WEIGHT = (5, 3, 3, 2)
# The convolutions' outputs are 7x11, 6x19 and 2x2: 3x5, 3x9 and 1x1 windows.
SIZES = [(2, 3, 9, 12), (1, 3, 8, 20), (3, 3, 4, 3)]


def few_levels(seed: int, *shapes: tuple[int, ...]) -> list[np.ndarray]:
    """Small integers: sums of their products are exact, and many are equal."""
    random = np.random.default_rng(seed)
    return [random.integers(-1, 2, shape).astype(np.float32) for shape in shapes]


def check_composition(ops: Operations, size: tuple[int, ...]) -> None:
    """Compares conv2d_pool with conv2d, ReLU and max_pool2d of the references: y and max_index must be equal."""
    for seed in range(10):
        x, weight, bias = few_levels(seed, size, WEIGHT, WEIGHT[:1])
        found = ops.conv2d_pool(*on_device(ops, x, weight, bias))
        expected = reference.max_pool2d(reference.conv2d(x, weight, bias, relu=True))
        for name, a, b in zip(("y", "max_index"), found, expected, strict=True):
            assert_equal(ops.to_numpy(a), b, name)
        if size == SIZES[0]:
            windows = reference.conv2d(x, weight, bias, relu=True)[:, :, :6, :10].reshape(2, 5, 3, 2, 5, 2)
            assert (windows.max(axis=(3, 5)) == windows.min(axis=(3, 5))).any(), "some windows must have equal elements"


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_result_equals_the_composition_with_the_same_max_indices(either: Operations, size: tuple[int, ...]) -> None:
    check_composition(either, size)


def test_inputs_that_are_not_integers(either: Operations) -> None:
    random = np.random.default_rng(0)
    x, weight, bias = (random.standard_normal(shape).astype(np.float32) for shape in (SIZES[0], WEIGHT, WEIGHT[:1]))
    y, max_index = either.conv2d_pool(*on_device(either, x, weight, bias))
    expected, expected_max_index = reference.conv2d_pool(*float64(x, weight, bias))
    assert_close(either.to_numpy(y), expected, "one kernel")
    assert_equal(either.to_numpy(max_index), expected_max_index)


def test_the_fast_kernel_stores_no_full_size_map(ops: Operations) -> None:
    given = on_device(ops, *few_levels(0, SIZES[0], WEIGHT, WEIGHT[:1]))
    launches = ops.device.record(lambda: ops.conv2d_pool(*given)).launches
    assert [launch.kernel.name for launch in launches] == ["gather", "fast_conv_forward"]


def backward_inputs() -> tuple[np.ndarray, ...]:
    """dout, max_index, x, weight, add; x has zeros like the output of a ReLU."""
    random = np.random.default_rng(1)
    x = np.maximum(random.standard_normal(SIZES[0]), 0).astype(np.float32)
    weight, bias = positive(random, *WEIGHT), positive(random, WEIGHT[0])
    y, max_index = reference.conv2d_pool(x, weight, bias)
    return positive(random, *y.shape), max_index, x, weight, positive(random, *x.shape)


@pytest.mark.parametrize(("through_relu", "adds"), [*itertools.product([False, True], repeat=2)])
def test_gradients(either: Operations, through_relu: bool, adds: bool) -> None:
    *given, add = backward_inputs()
    device = on_device(either, *given)
    options = {"through_relu": through_relu, "add": either.asarray(add) if adds else None}
    compile_for(either.device, lambda: either.conv2d_pool_backward(*device, **options))
    found = either.conv2d_pool_backward(*device, **options)
    dout, max_index, x, weight = given
    dconv = reference.max_pool2d_backward(dout, max_index, (2, 5, 7, 11)).astype(np.float64)
    dx, *expected = reference.conv2d_backward(dconv, *float64(x, weight))
    dx = dx + add if adds else dx
    dx = np.where(x > 0, dx, 0) if through_relu else dx
    for name, a, b in zip(("dx", "dweight", "dbias"), found, (dx, *expected), strict=True):
        assert_close(either.to_numpy(a), b, "one kernel", name)
    if through_relu:
        assert (either.to_numpy(found[0])[x == 0] == 0).all()
    for before, after in zip(given, device, strict=True):
        np.testing.assert_array_equal(either.to_numpy(after), before, "inputs must not be modified")


def test_gradients_are_written_into_out_and_nowhere_else(either: Operations) -> None:
    dout, max_index, x, weight, _ = backward_inputs()
    _, dweight, dbias = reference.conv2d_pool_backward(dout, max_index, x, weight)
    flat = either.asarray(np.full(3 + weight.size + 5 + 2, 7, np.float32))
    into = flat[3 : 3 + weight.size].reshape(weight.shape), flat[3 + weight.size : -2]
    for each, out in ((either, into), (on("cpu"), (np.zeros_like(weight), np.zeros(5, np.float32)))):
        given = on_device(each, dout, max_index, x, weight)
        dx, *returned = each.conv2d_pool_backward(*given, need_dx=False, out=out, through_relu=True)
        assert dx is None
        assert [id(array) for array in returned] == [id(array) for array in out]
    assert_equal(out[0], dweight)
    assert_equal(out[1], dbias)
    expected = np.concatenate([np.full(3, 7), dweight.ravel(), dbias, np.full(2, 7)])
    assert_close(either.to_numpy(flat), expected, "one kernel")
    assert_equal(either.to_numpy(flat)[[0, 1, 2, -2, -1]], np.full(5, 7, np.float32))


@pytest.mark.parametrize(
    ("x", "weight", "bias", "message"),
    [
        ((2, 3, 9), (4, 3, 3, 3), (4,), r"x must have shape \(any, any, any, any\), got \(2, 3, 9\)"),
        ((2, 3, 9, 9), (4, 2, 3, 3), (4,), r"weight must have shape \(any, 3, any, any\), got \(4, 2, 3, 3\)"),
        ((2, 3, 9, 9), (4, 3, 3, 3), (3,), r"conv2d_pool: bias must have shape \(4\), got \(3,\)"),
        ((2, 3, 2, 9), (4, 3, 3, 3), (4,), "the output's height would be 0: a 3x3 kernel over 2x9 pixels"),
        ((2, 3, 9, 3), (4, 3, 3, 3), (4,), "the output's width would be 0: a 2x2 window over 7x1 pixels"),
    ],
)
def test_mismatched_shapes_are_reported(either: Operations, x, weight, bias, message: str) -> None:
    arrays = [np.ones(shape, np.float32) for shape in (x, weight, bias)]
    with pytest.raises(ValueError, match=message):
        either.conv2d_pool(*on_device(either, *arrays))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dout": (2, 5, 3, 6)}, r"conv2d_pool_backward: dout must have shape \(2, 5, 3, 5\), got \(2, 5, 3, 6\)"),
        ({"max_index": (2, 5, 3, 4)}, r"conv2d_pool_backward: max_index must have shape \(2, 5, 3, 5\)"),
        ({"dweight": (5, 3, 2, 3)}, r"conv2d_pool_backward: dweight must have shape \(5, 3, 3, 2\)"),
        ({"dbias": (3,)}, r"conv2d_pool_backward: dbias must have shape \(5\), got \(3,\)"),
        ({"add": (2, 3, 9, 11)}, r"conv2d_pool_backward: add must have shape \(2, 3, 9, 12\)"),
    ],
)
def test_mismatched_gradients_are_reported(either: Operations, changes: dict, message: str) -> None:
    shapes = {
        "dout": (2, 5, 3, 5),
        "max_index": (2, 5, 3, 5),
        "dweight": WEIGHT,
        "dbias": (5,),
        "add": SIZES[0],
    } | changes
    a = {n: either.asarray(np.ones(s, np.int32 if n == "max_index" else np.float32)) for n, s in shapes.items()}
    x, weight = on_device(either, np.ones(SIZES[0], np.float32), np.ones(WEIGHT, np.float32))
    with pytest.raises(ValueError, match=message):
        either.conv2d_pool_backward(a["dout"], a["max_index"], x, weight, out=(a["dweight"], a["dbias"]), add=a["add"])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_reference_keeps_the_dtype(dtype: type) -> None:
    dout, max_index, x, weight, add = (a.astype(dtype) if a.dtype.kind == "f" else a for a in backward_inputs())
    y, max_index_again = reference.conv2d_pool(x, weight, np.zeros(5, dtype))
    assert y.dtype == dtype and max_index_again.dtype == np.int32
    gradients = reference.conv2d_pool_backward(dout, max_index, x, weight, add=add)
    assert {array.dtype for array in gradients} == {np.dtype(dtype)}


@pytest.mark.falls_back
@pytest.mark.parametrize(("name", "nothing"), [("backward_weight", False), ("backward_input", None)])
def test_if_one_gradient_has_no_fast_form_the_other_still_uses_its_own(
    ops: Operations, monkeypatch: pytest.MonkeyPatch, name: str, nothing: Any
) -> None:
    """Neither gradient is written twice by launches that nothing orders."""
    monkeypatch.setattr(fast_conv, name, lambda *given, **named: nothing)
    inputs = backward_inputs()
    given, results = on_device(ops, *inputs), []
    settings = {"through_relu": True, "add": given[4]}
    recording = ops.device.record(lambda: results.extend(ops.conv2d_pool_backward(*given[:4], **settings)))
    assert not conflicts(recording.launches)
    recording.replay()
    expected = reference.conv2d_pool_backward(*inputs[:4], through_relu=True, add=inputs[4])
    for found, wanted in zip(results, expected, strict=True):
        assert_close(ops.to_numpy(found), wanted, "one kernel")
