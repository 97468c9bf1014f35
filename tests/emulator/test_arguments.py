"""Every device refuses the same arguments, in the same words, before it computes anything."""

import inspect
from typing import Any

import numpy as np
import pytest

from tinyfcn import on
from tinyfcn.adam_state import AdamState
from tinyfcn.operations import ReferenceOperations, operation_names
from tinyfcn.ops import Operations
from tinyfcn.packed_weight import PackedWeight, orders
from tinyfcn.reference.softmax_cross_entropy import softmax_cross_entropy


def floats(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def ints(*shape: int, value: int = 0) -> np.ndarray:
    return np.full(shape, value, np.int32)


X, W, B = floats(2, 3, 7, 6), floats(4, 3, 3, 3), floats(4)
T = floats(3, 4, 3, 3)  # the weight of a transposed convolution of X
BYTES = np.zeros((5, 4, 4), np.uint8)
DIGITS = np.zeros((5, 28, 28), np.uint8), np.zeros(5, np.uint8)

# (operation, arguments, keywords, what is said)
REFUSED: list[tuple[str, tuple[Any, ...], dict[str, Any], str]] = [
    ("conv2d", (X, W, B), {"padding": -1}, "ValueError: conv2d: padding must be at least 0, got -1"),
    ("conv2d", (X, W, B), {"padding": 2**31}, f"ValueError: conv2d: padding must be 0 to {2**31 - 1}, got {2**31}"),
    ("conv2d", (X, W, B), {"stride": 0}, "ValueError: conv2d: stride must be at least 1, got 0"),
    ("conv2d", (X, W, B), {"stride": (2, 2)}, "TypeError: conv2d: stride must be an integer, got (2, 2)"),
    ("conv2d", (X, W, B), {"stride": 2.0}, "TypeError: conv2d: stride must be an integer, got 2.0"),
    ("conv2d", (X, W, B), {"stride": True}, "TypeError: conv2d: stride must be an integer, got True"),
    ("conv2d", (X[:0], W, B), {}, "ValueError: conv2d: x must not be empty, got shape (0, 3, 7, 6)"),
    ("conv2d", (X, W[:0], B[:0]), {}, "ValueError: conv2d: weight must not be empty, got shape (0, 3, 3, 3)"),
    ("conv2d", (X[0], W, B), {}, "ValueError: conv2d: x must have shape (any, any, any, any), got (3, 7, 6)"),
    ("conv2d", (X[:, :2], W, B), {}, "ValueError: conv2d: weight must have shape (any, 2, any, any), got (4, 3, 3, 3)"),
    ("conv2d", (X, W, B[:1]), {}, "ValueError: conv2d: bias must have shape (4), got (1,)"),
    ("conv2d", (X.astype(float), W, B), {}, "TypeError: conv2d: weight must hold float64, got float32"),
    ("conv2d", (X.astype(int), W, B), {}, "TypeError: conv2d: x must hold float32, got int64"),
    (
        "conv2d",
        ([1.0], W, B),
        {},
        "TypeError: conv2d: x must be an array of this device, as asarray makes it, got list",
    ),
    (
        "conv2d",
        (X[..., :2], W, B),
        {},
        "ValueError: conv2d: the output's width would be 0: a 3x3 kernel over 7x2 pixels, padding 0",
    ),
    (
        "conv2d_backward",
        (floats(2, 4, 3, 2), X, W),
        {"padding": -1},
        "ValueError: conv2d: padding must be at least 0, got -1",
    ),
    (
        "conv2d_backward",
        (floats(2, 4, 5, 5), X, W),
        {},
        "ValueError: conv2d_backward: dout must have shape (2, 4, 5, 4), got (2, 4, 5, 5)",
    ),
    (
        "conv_transpose2d",
        (X, T, B),
        {"padding": -1},
        "ValueError: conv_transpose2d: padding must be at least 0, got -1",
    ),
    (
        "conv_transpose2d",
        (X[:0], T, B),
        {},
        "ValueError: conv_transpose2d: x must not be empty, got shape (0, 3, 7, 6)",
    ),
    (
        "conv_transpose2d",
        (X, T, B),
        {"add": floats(2, 4, 9, 1)},
        "ValueError: conv_transpose2d: add must have shape (2, 4, 9, 8), got (2, 4, 9, 1)",
    ),
    (
        "conv_transpose2d_backward",
        (floats(2, 4, 11, 10), X, T),
        {"padding": -1},
        "ValueError: conv_transpose2d: padding must be at least 0, got -1",
    ),
    ("conv2d_pool", (X[:0], W, B), {}, "ValueError: conv2d: x must not be empty, got shape (0, 3, 7, 6)"),
    (
        "conv2d_pool",
        (X[:, :, :3], W, B),
        {},
        "ValueError: max_pool2d: the output's height would be 0: a 2x2 window over 1x4 pixels",
    ),
    (
        "conv2d_pool_backward",
        (floats(2, 4, 2, 2), np.zeros((2, 4, 2, 2), np.int64), X, W),
        {},
        "TypeError: conv2d_pool_backward: max_index must hold int32, got int64",
    ),
    ("max_pool2d", (X,), {"size": 0}, "ValueError: max_pool2d: size must be at least 1, got 0"),
    ("max_pool2d", (X[:0],), {}, "ValueError: max_pool2d: x must not be empty, got shape (0, 3, 7, 6)"),
    (
        "max_pool2d_backward",
        (floats(2, 3, 3, 3), ints(2, 3, 3, 3), (3, 7, 6)),
        {},
        "ValueError: max_pool2d_backward: input_shape must be (N, C, H, W), got (3, 7, 6)",
    ),
    ("relu", (X[:0],), {}, "ValueError: relu: x must not be empty, got shape (0, 3, 7, 6)"),
    ("relu_backward", (X, X[:1]), {}, "ValueError: relu_backward: dout must have shape (1, 3, 7, 6), got (2, 3, 7, 6)"),
    ("add", (X, X[:1]), {}, "ValueError: add: b must have shape (2, 3, 7, 6), got (1, 3, 7, 6)"),
    ("add", (X, X), {"scale": "1"}, "TypeError: add: scale must be a number, got '1'"),
    ("softmax", (floats(0, 3),), {}, "ValueError: softmax: logits must not be empty, got shape (0, 3)"),
    ("softmax", (floats(2, 3, 4),), {}, "ValueError: softmax: logits must have shape (any, any), got (2, 3, 4)"),
    (
        "softmax_cross_entropy",
        (floats(2, 3), np.zeros(2, np.uint8)),
        {},
        "TypeError: softmax_cross_entropy: labels must hold int32, got uint8",
    ),
    (
        "softmax_cross_entropy",
        (floats(2, 3), ints(2)),
        {"ignore_index": 2**31},
        f"ValueError: softmax_cross_entropy: ignore_index must be {-(2**31)} to {2**31 - 1}, got {2**31}",
    ),
    (
        "segmentation_counts",
        (floats(1, 3, 2, 2), ints(1, 2, 2), 4, 0.5),
        {},
        "ValueError: segmentation_counts: foreground must be 0 to 3, got 4",
    ),
    (
        "gather_normalise",
        (BYTES, ints(0)),
        {},
        "ValueError: gather_normalise: indices must not be empty, got shape (0,)",
    ),
    (
        "gather_batch",
        (BYTES, np.zeros(4, np.uint8), ints(1, 2), ints(1)),
        {},
        "ValueError: gather_batch: labels must have shape (5), got (4,)",
    ),
    ("compose_m2nist", (*DIGITS, 0, 0, 0), {}, "ValueError: compose_m2nist: count must be at least 1, got 0"),
    ("compose_m2nist", (*DIGITS, 0, -1, 1), {}, f"ValueError: compose_m2nist: step must be 0 to {2**32 - 1}, got -1"),
    ("compose_m2nist", (*DIGITS, 0.5, 0, 1), {}, "TypeError: compose_m2nist: seed must be an integer, got 0.5"),
]


def outcome(ops: Operations, name: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """The results on the host, or what the call raised."""

    def given(argument: Any) -> Any:
        return ops.asarray(argument) if isinstance(argument, np.ndarray) else argument

    try:
        results = getattr(ops, name)(*map(given, arguments), **{key: given(value) for key, value in keywords.items()})
    except (TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    results = results if isinstance(results, tuple) else (results,)
    return [ops.to_numpy(each) for each in results]


@pytest.mark.parametrize(
    ("name", "arguments", "keywords", "message"), REFUSED, ids=lambda value: value if isinstance(value, str) else ""
)
def test_what_is_refused_is_refused_in_the_same_words(
    either: Operations, name: str, arguments: tuple[Any, ...], keywords: dict[str, Any], message: str
) -> None:
    assert outcome(either, name, arguments, keywords) == message
    assert outcome(on("cpu"), name, arguments, keywords) == message


def test_arrays_that_are_not_contiguous_are_refused(either: Operations) -> None:
    message = "conv2d: x must be C-contiguous, as asarray makes it, got strides"
    for ops in (either, on("cpu")):
        x, weight, bias = map(ops.asarray, (floats(2, 3, 7, 12), W, B))
        with pytest.raises(ValueError, match=message):
            ops.conv2d(x[..., ::2], weight, bias)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("softmax_cross_entropy", (floats(1, 3, 2, 2), 3), "labels must be 0 to 2, got 3 at (0, 0, 0)"),
        ("softmax_cross_entropy", (floats(1, 3, 2, 2), 255), "labels must be 0 to 2, got 255 at (0, 0, 0)"),
        ("softmax_cross_entropy", (floats(1, 3, 2, 2), -1), "labels must be 0 to 2, got -1 at (0, 0, 0)"),
        ("softmax_cross_entropy", (floats(1, 3, 2, 2), -1, 255), "labels must be 0 to 2, or 255, got -1 at (0, 0, 0)"),
        ("gather_normalise", (BYTES, 5), "indices must be 0 to 4, got 5 at (0,)"),
        ("gather_normalise", (BYTES, -1), "indices must be 0 to 4, got -1 at (0,)"),
        ("gather_batch", (BYTES, DIGITS[1], 7, ints(1)), "order must be 0 to 4, got 7 at (0, 0)"),
    ],
)
def test_labels_and_indices_that_do_not_exist_are_refused(
    either: Operations, name: str, arguments: tuple[Any, ...], message: str
) -> None:
    """On a GPU the host does not read them."""
    shapes = {"softmax_cross_entropy": (1, 2, 2), "gather_normalise": (3,), "gather_batch": (1, 3)}
    at = 2 if name == "gather_batch" else 1
    arguments = (*arguments[:at], ints(*shapes[name], value=arguments[at]), *arguments[at + 1 :])
    for ops in (on("cpu"), *([either] if either.device_name == "emulator" else [])):
        assert outcome(ops, name, arguments, {}).partition(";")[0] == f"ValueError: {name}: {message}"


@pytest.mark.parametrize("label", [3, 255, -1, -100])
def test_a_label_that_no_class_has_makes_the_loss_nan(either: Operations, label: int) -> None:
    """Where the host cannot read it: here in a recording."""
    logits, labels = either.asarray(floats(2, 3)), either.asarray(ints(2))
    kept: list[Any] = []
    step = either.device.record(lambda: kept.append(either.softmax_cross_entropy(logits, labels)))
    either.write(labels, np.array([0, label], np.int32))
    step.replay()
    loss, _ = map(either.to_numpy, kept[0])
    assert np.isnan(loss).all()
    assert np.isnan(softmax_cross_entropy(floats(2, 3), np.array([0, label], np.int32))[0]).all()


def test_counts_leave_out_labels_that_no_class_has(either: Operations) -> None:
    logits, labels = floats(1, 3, 2, 2), np.array([[[0, -1], [255, -(2**31)]]], np.int32)
    arguments = (logits, labels, 3, 0.5)
    found, expected = (outcome(ops, "segmentation_counts", arguments, {}) for ops in (either, on("cpu")))
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert found[0].sum() == 1


def test_numpy_numbers_are_numbers(either: Operations) -> None:
    for ops in (either, on("cpu")):
        for number in (np.int64, np.int32, np.uint8):
            plain = outcome(ops, "conv2d", (X, W, B), {"stride": 2, "padding": 1})
            numpy = outcome(ops, "conv2d", (X, W, B), {"stride": number(2), "padding": number(1)})
            np.testing.assert_array_equal(plain[0], numpy[0])
        np.testing.assert_array_equal(
            outcome(ops, "add", (X, X), {"scale": np.float64(0.5)})[0], outcome(ops, "add", (X, X), {"scale": 0.5})[0]
        )


def test_every_operation_has_a_check_of_its_own_arguments() -> None:
    for name in operation_names():
        launcher, reference = getattr(Operations, name), getattr(ReferenceOperations, name)
        assert launcher.check is reference.check, name
        assert {*inspect.signature(launcher.check).parameters} <= {*inspect.signature(launcher).parameters}, name


def test_a_packed_weight_of_another_weight_is_refused(either: Operations) -> None:
    for ops in (either, on("cpu")):
        x, w, b = map(ops.asarray, (X, W, B))
        y = ops.conv2d(x, w, b)
        forward, backward = (ops.asarray(np.zeros(order.size, np.float32)) for order in orders(W.shape, 1))
        ops.conv2d(x, w, b, packed=PackedWeight(forward, backward))
        with pytest.raises(ValueError, match=rf"conv2d: packed.forward must have shape \({forward.size}\), got "):
            ops.conv2d(x, w, b, packed=PackedWeight(forward[:-4], backward))
        with pytest.raises(ValueError, match=r"conv2d_backward: packed.backward_input must have shape"):
            ops.conv2d_backward(y, x, w, packed=PackedWeight(forward, backward[:-4]))
        with pytest.raises(ValueError, match=r"conv_transpose2d: packed.backward_input must have shape"):
            ops.conv_transpose2d(y, w, ops.asarray(np.zeros(W.shape[1], np.float32)), packed=PackedWeight(forward, y))


def test_a_wrong_call_is_reported_as_by_any_function(either: Operations) -> None:
    for ops in (either, on("cpu")):
        with pytest.raises(TypeError, match="missing 1 required positional argument: 'bias'"):
            ops.conv2d(ops.asarray(X), ops.asarray(W))
        with pytest.raises(TypeError, match="unexpected keyword argument 'strides'"):
            ops.conv2d(*map(ops.asarray, (X, W, B)), strides=2)


def test_adam_checks_its_state(either: Operations) -> None:
    for ops in (either, on("cpu")):
        state = AdamState.create(ops, np.zeros(6, np.float32), 1e-3, steps=0)
        parameters, loss = ops.asarray(floats(6)), ops.asarray(floats(1))
        with pytest.raises(ValueError, match=r"adam_step: gradients must have shape \(6\), got \(5,\)"):
            ops.adam_step(parameters, ops.asarray(floats(5)), state, loss)
        state.v = ops.asarray(np.zeros(5, np.float32))
        with pytest.raises(ValueError, match=r"adam_step: state.v must have shape \(6\), got \(5,\)"):
            ops.adam_step(parameters, parameters, state, loss)
