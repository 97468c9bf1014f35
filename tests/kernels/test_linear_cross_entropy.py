"""Tests kernels/linear_cross_entropy.cu against the operations that it fuses, and its reference's gradients."""

import numpy as np
import pytest
from helpers.bugs import OUTSIDE, RACE, Bug, Planted
from helpers.closeness import assert_close, float64, on_device
from helpers.linear_head import Head, check_head, check_many_positions
from hypothesis import given
from hypothesis import strategies as st

from tinyfcn.checks import gradcheck
from tinyfcn.operations import on
from tinyfcn.ops import Operations
from tinyfcn.ops.linear_cross_entropy import MAX_CHANNELS
from tinyfcn.ops.softmax_cross_entropy import MAX_CLASSES

reference = on("cpu")

SIZES = ((4, 3), (5, 7), (16, 11), (32, 10))  # channels and classes; a fast kernel is compiled for each


@st.composite
def heads(draw: st.DrawFn, side: int = 12) -> Head:
    channels, classes = draw(st.sampled_from(SIZES))
    size = draw(st.integers(1, 3)), channels, draw(st.integers(1, side)), draw(st.integers(1, side))
    ignore_index, unlabelled = draw(st.sampled_from([(None, "zero"), (0, "softmax"), (255, "zero"), (255, "softmax")]))
    return Head(size, classes, ignore_index, unlabelled, draw(st.booleans()), draw(st.integers(0, 999)))


@given(heads())
def test_it_is_the_composition(either: Operations, head: Head) -> None:
    check_head(either, head)


def test_more_positions_than_threads(ops: Operations) -> None:
    check_many_positions(ops)


def test_one_launch_computes_all_but_the_mean(ops: Operations) -> None:
    inputs = on_device(ops, *Head((2, 4, 19, 21), 3).inputs())
    launches = ops.device.record(lambda: ops.linear_cross_entropy(*inputs)).launches
    assert [each.kernel.name for each in launches] == ["linear_cross_entropy", "softmax_cross_entropy_mean"]


def test_more_channels_than_registers_hold(ops: Operations) -> None:
    """Then the operations that it fuses are launched one after another."""
    check_head(ops, Head((2, MAX_CHANNELS + 1, 3, 5), 3, through_relu=True))


@pytest.mark.falls_back
def test_more_classes_than_registers_hold(ops: Operations) -> None:
    check_head(ops, Head((2, 4, 3, 5), MAX_CLASSES + 1, through_relu=True))


def test_a_nan_in_x_makes_the_loss_nan(either: Operations) -> None:
    x, *rest = Head((2, 4, 3, 3), 3).inputs()
    x[1, 2, 0, 1] = np.nan
    loss, _, dx = either.linear_cross_entropy(*on_device(either, x, *rest))
    assert np.isnan(either.to_numpy(loss)).all() and np.isnan(either.to_numpy(dx)[1, :, 0, 1]).all()


@pytest.mark.slow
@pytest.mark.parametrize("unlabelled", ["zero", "softmax"])
def test_a_network_s_loss_is_its_forward_and_backward(either: Operations, unlabelled: str) -> None:
    """Network.loss against forward, softmax_cross_entropy and backward: the loss and all gradients."""
    from tinyfcn.networks import Design

    random = np.random.default_rng(0)
    for name, shape in (("skip", (2, 1, 20, 24)), ("classifier", (3, 1, 28, 28))):
        network = Design(name).build(either)
        x = either.asarray(random.uniform(-1, 1, shape).astype(np.float32))
        size = (shape[0], *shape[2:]) if network.per_pixel else (shape[0],)
        labels = either.asarray(random.integers(0, 10, size).astype(np.int32))
        loss = either.to_numpy(network.loss(x, labels, 3, unlabelled))
        either.join()
        gradients = either.to_numpy(network.gradients)
        super_loss = super(type(network).__mro__[1], network).loss(x, labels, 3, unlabelled)
        either.join()
        assert_close(loss, either.to_numpy(super_loss), "one kernel", f"{name}: loss")
        assert gradients.any()
        assert_close(gradients, either.to_numpy(network.gradients), "kernel", f"{name}: gradients")


@given(heads(side=2).filter(lambda head: head.unlabelled == "zero"))  # see test_softmax_cross_entropy.py
def test_reference_gradients_by_finite_differences(head: Head) -> None:
    *arrays, labels = head.inputs()
    x, weight, bias = float64(*arrays)
    x += 0.01 * head.through_relu  # away from the ReLU's kink
    _, dlogits, dx = reference.linear_cross_entropy(x, weight, bias, labels, *head.options)

    def function() -> float:
        return float(reference.linear_cross_entropy(x, weight, bias, labels, *head.options)[0][0])

    assert gradcheck.check_gradient(function, x, dx) <= gradcheck.TOLERANCES["finite differences"]
    assert gradcheck.check_gradient(function, bias, dlogits.sum(axis=(0, 2, 3))) <= 1e-6


def test_mismatched_shapes_are_reported(either: Operations) -> None:
    x, weight, bias, labels = Head((2, 4, 3, 5), 3).inputs()
    for each in (either, reference):
        given = on_device(each, x, weight, bias)
        with pytest.raises(
            ValueError, match=r"linear_cross_entropy: labels must have shape \(2, 3, 5\), got \(2, 5, 3\)"
        ):
            each.linear_cross_entropy(*given, each.asarray(np.ascontiguousarray(labels.swapaxes(1, 2))))
        with pytest.raises(
            ValueError, match=r"linear_cross_entropy: weight must have shape \(any, 4, 1, 1\), got \(3, 2,"
        ):
            each.linear_cross_entropy(given[0], each.asarray(np.zeros((3, 2, 1, 1), np.float32)), given[2], labels)
        with pytest.raises(
            ValueError, match="linear_cross_entropy: unlabelled must be one of zero, softmax, got 'none'"
        ):
            each.linear_cross_entropy(*given, each.asarray(labels), 0, "none")


PLANTED = {
    "linear_cross_entropy": Planted(
        check_many_positions,
        [
            ("the bias is left out", "logit[k] = bias[k];", "logit[k] = 0.0f;"),
            ("the last classes are left out", "of < K ? weight", "of < K / 4 * 4 ? weight"),
            ("the weights are those of the next class", "weight[of * C + c]", "weight[(of + 1) % K * C + c]"),
            ("a missing barrier", "__syncthreads();  // until all weights", "// until all weights"),
            ("images overlap", "position / S * C * S + position % S", "position / S * S + position % S"),
            ("dlogits of images overlap", "position / S * K * S + position % S", "position / S * S + position % S"),
            ("the ReLU lets all pass", "!through_relu ||", "true ||"),
            (
                "the gradient of the first classes is left out",
                "for (int k = 0; k < CLASSES; k += 4) {\n                float4 again",
                "for (int k = 4; k < CLASSES; k += 4) {\n                float4 again",
            ),
            ("only the first positions count", "position += gridDim.x * blockDim.x", "position += positions"),
        ],
    ),
}

ZOO = {
    "linear_cross_entropy": [
        Bug("no thread waits until all weights are there", {"__syncthreads();  // until all weights are there": ""},
            "check", RACE, ("[k] = of < K ? weight", "float4 again = weights[c * FOURS + k / 4];"), "racecheck"),
        Bug("weights of surplus classes are read", {"of < K ? weight[of * C + c] : 0.0f": "weight[of * C + c]"},
            "check", OUTSIDE, ("= weight[of * C + c];",), "memcheck"),
        Bug("each gradient is written a channel too far", {"dx[pixel + c * S] =": "dx[pixel + (c + 1) * S] ="},
            "check", OUTSIDE, ("dx[pixel + (c + 1) * S] = is_open",), "memcheck"),
    ],
}  # fmt: skip
