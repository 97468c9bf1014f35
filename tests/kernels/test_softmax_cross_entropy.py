"""Tests kernels/softmax_cross_entropy.cu against its reference, and the reference against the formula."""

import math
import re
from dataclasses import dataclass

import numpy as np
import pytest
from helpers.bugs import NAN, OUTSIDE, RACE, WRONG, Bug, Planted
from helpers.closeness import assert_close, on_device
from hypothesis import given
from hypothesis import strategies as st

from tinyfcn.checks import gradcheck
from tinyfcn.devices.emulator import Emulator
from tinyfcn.devices.kernel_source import KERNELS
from tinyfcn.operations import on
from tinyfcn.ops import Operations
from tinyfcn.ops.softmax_cross_entropy import LOSS_THREADS, MAX_CLASSES, MAX_PARTS

reference = on("cpu")

# A fast kernel is compiled for each number of classes: these tests have few.
CLASSES = (1, 3, 10, 11)


@pytest.fixture
def ops(either: Operations) -> Operations:
    """All tests of this file run both forms of the kernels."""
    return either


@dataclass(frozen=True)
class Loss:
    """The logits' shape, (N, K) or (N, K, H, W), the options of the loss, and its inputs: logits, labels."""

    logits: tuple[int, ...]
    ignore_index: int | None = None
    unlabelled: str = "zero"
    spread: float = 1.0
    seed: int = 0

    def inputs(self) -> tuple[np.ndarray, np.ndarray]:
        random = np.random.default_rng(self.seed)
        logits = random.normal(0, self.spread, self.logits).astype(np.float32)
        possible = {*range(self.logits[1]), *([] if self.ignore_index is None else [self.ignore_index])}
        return logits, random.choice(sorted(possible), (self.logits[0], *self.logits[2:])).astype(np.int32)


@st.composite
def losses(draw: st.DrawFn, side: int = 9) -> Loss:
    n, k = draw(st.integers(1, 4)), draw(st.sampled_from(CLASSES))
    image = draw(st.sampled_from([(), (draw(st.integers(1, side)), draw(st.integers(1, side)))]))
    ignore_index = draw(st.sampled_from([None, 0, k - 1, k]))  # k is no class, like 10 in the design early
    unlabelled = draw(st.sampled_from(["zero", "softmax"]))
    # If a single position is nearly certain of its label, p - 1 and the loss have few correct digits in float32. So
    # only SEVERAL_BLOCKS has widely spread logits.
    spread = draw(st.sampled_from([0.1, 1.0]))
    return Loss((n, k, *image), ignore_index, unlabelled, spread, draw(st.integers(0, 999)))


# More positions than several blocks, none a multiple of 256.
SEVERAL_BLOCKS = [
    Loss((3, 10, 13, 17)),
    Loss((3, 10, 13, 17), 10, "softmax"),
    Loss((3, 10, 13, 17), 10, "zero"),
    Loss((601, 10), spread=30.0),
]
AS_IN_TRAINING = [Loss((128, 10)), Loss((2, 11, 64, 84))]


def check_loss(ops: Operations, case: Loss) -> None:
    """Compares loss and gradient of the kernels with the reference."""
    logits, labels = case.inputs()
    options = {"ignore_index": case.ignore_index, "unlabelled": case.unlabelled}
    loss, dlogits = ops.softmax_cross_entropy(*on_device(ops, logits, labels), **options)
    expected_loss, expected = reference.softmax_cross_entropy(logits.astype(np.float64), labels, **options)
    assert ops.to_numpy(loss).shape == (1,)
    assert_close(ops.to_numpy(dlogits), expected, "one kernel", "dlogits")
    assert_close(ops.to_numpy(loss), expected_loss, "one kernel", "loss")


def check_softmax(ops: Operations, case: Loss) -> None:
    """Compares the kernel's probabilities with the reference."""
    logits, _ = case.inputs()
    p = ops.to_numpy(ops.softmax(ops.asarray(logits)))
    assert_close(p, reference.softmax(logits.astype(np.float64)), "one kernel", "p")
    assert_close(p.sum(axis=1), np.ones_like(p[:, 0]), "one kernel", "their sum")


@given(losses())
def test_loss_and_gradient(ops: Operations, case: Loss) -> None:
    check_loss(ops, case)


@given(losses())
def test_softmax(ops: Operations, case: Loss) -> None:
    check_softmax(ops, case)


@pytest.mark.parametrize("case", SEVERAL_BLOCKS, ids=str)
def test_several_blocks(ops: Operations, case: Loss) -> None:
    positions = case.inputs()[1].size
    assert positions > 512 and positions % 256
    check_loss(ops, case)
    check_softmax(ops, case)


@pytest.mark.parametrize("positions", [1, 31, 32, 33, 255, 256, 257])
def test_full_and_partial_blocks(ops: Operations, positions: int) -> None:
    check_loss(ops, Loss((positions, 3)))
    check_loss(ops, Loss((1, 3, 1, positions), 0, "softmax"))


@pytest.mark.parametrize("case", AS_IN_TRAINING, ids=str)
def test_sizes_of_training(ops: Operations, case: Loss) -> None:
    check_loss(ops, case)


def check_more_positions_than_threads(ops: Operations) -> None:
    """With 140,000 positions, some threads of the fast kernel have two positions, and some have one."""
    case = Loss((4, 3, 5, 7000), 0)
    positions = case.inputs()[1].size
    assert MAX_PARTS * LOSS_THREADS < positions < 2 * MAX_PARTS * LOSS_THREADS
    check_loss(ops, case)


def test_more_positions_than_threads(ops: Operations) -> None:
    check_more_positions_than_threads(ops)
    check_more_positions_than_threads(Operations(Emulator(mode="check", order="random", naive=ops.device.naive)))


@pytest.mark.falls_back
def test_more_classes_than_registers(ops: Operations) -> None:
    check_loss(ops, Loss((3, MAX_CLASSES + 1, 4, 5), 0))


@pytest.mark.parametrize(
    ("shape", "launched"),
    [
        ((128, 10), ["softmax_cross_entropy"]),
        ((1, 10, 16, 16), ["softmax_cross_entropy"]),
        ((1, 10, 1, 257), ["softmax_cross_entropy", "softmax_cross_entropy_mean"]),
        pytest.param(
            (4, MAX_CLASSES + 1),
            ["softmax_cross_entropy_naive", "softmax_cross_entropy_mean_naive"],
            marks=pytest.mark.falls_back,
        ),
    ],
)
def test_which_kernels_are_launched(ops: Operations, shape: tuple[int, ...], launched: list[str]) -> None:
    given = on_device(ops, *Loss(shape).inputs())
    recording = ops.device.record(lambda: ops.softmax_cross_entropy(*given))
    if ops.device.naive:
        launched = ["softmax_cross_entropy_naive", "softmax_cross_entropy_mean_naive"]
    assert [launch.kernel.name for launch in recording.launches] == launched


def test_launcher_and_kernels_have_the_same_constants() -> None:
    for file, name, number in (
        ("common.cuh", "LOSS_THREADS", LOSS_THREADS),
        ("softmax_cross_entropy.cu", "MAX_PARTS", MAX_PARTS),
    ):
        text = (KERNELS / file).read_text()
        assert re.search(rf"^constexpr int {name} = (\d+);", text, re.MULTILINE)[1] == str(number)


@pytest.mark.parametrize("image", [(), (3, 5)])
@pytest.mark.parametrize("k", [3, 10, 11])
def test_equal_logits_lose_ln_k(ops: Operations, k: int, image: tuple[int, ...]) -> None:
    labels = np.random.default_rng(0).integers(0, k, (4, *image)).astype(np.int32)
    for each in (ops, on("cpu")):
        for logit in (0, 7):
            logits = np.full((4, k, *image), logit, np.float32)
            loss, dlogits = each.softmax_cross_entropy(*on_device(each, logits, labels))
            assert_close(each.to_numpy(loss), np.array([math.log(k)]), "one kernel", "loss")
            assert_close(each.to_numpy(dlogits).sum(axis=1) + 1, np.ones_like(labels), "one kernel", "sum of dlogits")


def check_large_logits(ops: Operations) -> None:
    """Logits of 1e4 and -1e4 do not overflow, and the loss, up to 20,000, is accurate."""
    logits = np.array([[1e4, -1e4, 0], [-1e4, -1e4, -1e4], [1e4, 1e4, -1e4]], np.float32)
    labels = np.array([1, 2, 0], np.int32)
    p = ops.to_numpy(ops.softmax(ops.asarray(logits)))
    expected = np.array([[1, 0, 0], [1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0]])
    assert_close(p, expected, "one kernel", "p")
    loss, dlogits = ops.softmax_cross_entropy(*on_device(ops, logits, labels))
    assert_close(ops.to_numpy(loss), np.array([(20000 + math.log(3) + math.log(2)) / 3]), "one kernel", "loss")
    assert_close(ops.to_numpy(dlogits), (expected - np.eye(3)[labels]) / 3, "one kernel", "dlogits")


def test_large_logits(ops: Operations) -> None:
    check_large_logits(ops)
    check_large_logits(on("cpu"))


def check_unlabelled(ops: Operations) -> None:
    """Positions without a label add no loss, the mean counts them, and their gradient is 0 or the softmax."""
    logits, labels = Loss((2, 3, 5, 4), ignore_index=3, seed=2).inputs()
    ignored = labels == 3
    assert ignored.any() and not ignored.all()
    p = reference.softmax(logits.astype(np.float64))
    onehot = np.eye(4)[labels][..., :3].transpose(0, 3, 1, 2)  # all zero where ignored
    expected_loss = -np.sum(onehot * np.log(p)) / labels.size
    for unlabelled, weight in (("zero", 0), ("softmax", 1)):
        options = {"ignore_index": 3, "unlabelled": unlabelled}
        loss, dlogits = ops.softmax_cross_entropy(*on_device(ops, logits, labels), **options)
        expected = (p - onehot) * np.where(ignored, weight, 1)[:, None] / labels.size
        assert_close(ops.to_numpy(loss), np.array([expected_loss]), "one kernel", f"loss, {unlabelled}")
        assert_close(ops.to_numpy(dlogits), expected, "one kernel", f"dlogits, {unlabelled}")


def test_unlabelled_positions(ops: Operations) -> None:
    check_unlabelled(ops)
    check_unlabelled(on("cpu"))


def test_all_positions_unlabelled(ops: Operations) -> None:
    logits, labels = np.ones((2, 3, 2, 2), np.float32), np.full((2, 2, 2), 3, np.int32)
    for each in (ops, on("cpu")):
        for unlabelled, expected in (("zero", 0), ("softmax", 1 / 3 / 8)):
            loss, dlogits = each.softmax_cross_entropy(*on_device(each, logits, labels), 3, unlabelled)
            assert each.to_numpy(loss) == 0
            assert_close(each.to_numpy(dlogits), np.full(logits.shape, expected), "one kernel")


def test_inputs_are_not_modified(ops: Operations) -> None:
    logits, labels = SEVERAL_BLOCKS[1].inputs()
    for each in (ops, on("cpu")):
        given = on_device(each, logits, labels)
        each.softmax_cross_entropy(*given, 10, "zero")
        each.softmax(given[0])
        np.testing.assert_array_equal(each.to_numpy(given[0]), logits)
        np.testing.assert_array_equal(each.to_numpy(given[1]), labels)


def test_reference_is_the_formula() -> None:
    logits, labels = (array.astype(float) for array in Loss((3, 4, 2, 5), seed=3).inputs())
    loss, dlogits = reference.softmax_cross_entropy(logits, labels.astype(np.int32))
    total, expected = 0.0, np.zeros(logits.shape)
    for n, h, w in np.ndindex(*labels.shape):
        powers = [math.exp(logit) for logit in logits[n, :, h, w]]
        label = int(labels[n, h, w])
        total -= math.log(powers[label] / sum(powers)) / labels.size
        for k in range(4):
            expected[n, k, h, w] = (powers[k] / sum(powers) - (k == label)) / labels.size
    assert_close(loss, np.array([total]), "float64", "loss")
    assert_close(dlogits, expected, "float64", "dlogits")


@given(losses(side=2))  # a mean over more positions has derivatives too small for finite differences
def test_reference_gradient_by_finite_differences(case: Loss) -> None:
    logits, labels = case.inputs()
    logits = logits.astype(np.float64)
    _, dlogits = reference.softmax_cross_entropy(logits, labels, case.ignore_index, "zero")

    def function() -> float:
        return float(reference.softmax_cross_entropy(logits, labels, case.ignore_index, "zero")[0][0])

    assert gradcheck.check_gradient(function, logits, dlogits) <= gradcheck.TOLERANCES["finite differences"]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_reference_keeps_the_dtype(dtype: type) -> None:
    logits, labels = SEVERAL_BLOCKS[1].inputs()
    for options in ({}, {"ignore_index": 10}, {"ignore_index": 10, "unlabelled": "softmax"}):
        given = np.minimum(labels, 9) if not options else labels
        loss, dlogits = reference.softmax_cross_entropy(logits.astype(dtype), given, **options)
        assert loss.dtype == dlogits.dtype == dtype and loss.shape == (1,)
    assert reference.softmax(logits.astype(dtype)).dtype == dtype


def test_mismatched_shapes_are_reported(ops: Operations) -> None:
    logits, labels = on_device(ops, np.zeros((2, 3, 4, 5), np.float32), np.zeros((2, 5, 4), np.int32))
    with pytest.raises(ValueError, match=r"softmax_cross_entropy: labels must have shape \(2, 4, 5\), got \(2, 5, 4\)"):
        ops.softmax_cross_entropy(logits, labels)


def test_logits_without_classes_are_refused(ops: Operations) -> None:
    labels = ops.asarray(np.zeros(2, np.int32))
    with pytest.raises(ValueError, match=r"softmax_cross_entropy: logits must not be empty, got shape \(2, 0\)"):
        ops.softmax_cross_entropy(ops.asarray(np.zeros((2, 0), np.float32)), labels)
    for shape in ((2,), (2, 3, 4)):
        with pytest.raises(ValueError, match=r"softmax: logits must have shape \(any, any\), got "):
            ops.softmax(ops.asarray(np.zeros(shape, np.float32)))


def test_an_unknown_gradient_for_unlabelled_positions_is_refused(ops: Operations) -> None:
    logits, labels = np.zeros((2, 3), np.float32), np.zeros(2, np.int32)
    for each in (ops, on("cpu")):
        with pytest.raises(ValueError, match="unlabelled must be one of zero, softmax, got 'none'"):
            each.softmax_cross_entropy(*on_device(each, logits, labels), 0, "none")


def test_labels_of_another_type_are_refused(ops: Operations) -> None:
    logits, labels = on_device(ops, np.zeros((2, 3), np.float32), np.zeros(2, np.int64))
    with pytest.raises(TypeError, match="softmax_cross_entropy: labels must hold int32, got int64"):
        ops.softmax_cross_entropy(logits, labels)


def check_several_blocks(ops: Operations) -> None:
    check_softmax(ops, SEVERAL_BLOCKS[0])
    check_large_logits(ops)


def check_losses(ops: Operations) -> None:
    one_class_ignored = Loss((3, 10, 13, 17), 0, "softmax")
    for case in (one_class_ignored, *SEVERAL_BLOCKS):
        check_loss(ops, case)
    check_more_positions_than_threads(ops)
    check_unlabelled(ops)
    check_large_logits(ops)


PLANTED = {
    "softmax": Planted(
        check_several_blocks,
        [
            ("the largest logit is not subtracted", "float sum = 0.0f;", "largest = 0.0f; float sum = 0.0f;"),
            ("the result is not normalised", "/ sum;", ";"),
            ("images overlap", "position / S * K * S", "position / S * S"),
        ],
    ),
    "softmax_cross_entropy_naive": Planted(
        check_losses,
        [
            ("the largest logit is not subtracted", "float sum = 0.0f;", "largest = 0.0f; float sum = 0.0f;"),
            ("the label is off by one", "k == label &&", "k == label + 1 &&"),
            ("the mean divides by images only", "/ (N * S)", "/ N"),
            ("ignored positions add to the loss", "ignored ? 0.0f : logf", "logf"),
            ("the label of ignored positions is subtracted too", "k == label && !ignored", "k == label"),
            ("ignored positions have a gradient by default", "ignored ? unlabelled : 1.0f", "1.0f"),
        ],
        naive=True,
    ),
    "softmax_cross_entropy_mean_naive": Planted(
        check_losses,
        [
            ("a sum in place of the mean", "total / count", "total"),
            ("some positions are left out", "position += SUM_THREADS", "position += 2 * SUM_THREADS"),
            ("the first position is left out", "position = threadIdx.x", "position = threadIdx.x + 1"),
        ],
        naive=True,
    ),
    "softmax_cross_entropy": Planted(
        check_losses,
        [
            ("only the last position of a thread counts", "mine += loss", "mine = loss"),
            ("images overlap", "position / S * K * S", "position / S * S"),
        ],
    ),
    "loss_and_gradient": Planted(
        check_losses,
        [
            ("the largest logit is not subtracted", "expf(logit[k] - largest)", "expf(logit[k])"),
            ("the label is off by one", "k == label &&", "k == label + 1 &&"),
            ("the gradient divides by one position more", "1.0f) / positions", "1.0f) / (positions + 1)"),
            ("ignored positions add to the loss", "ignored ? 0.0f : logf", "logf"),
            ("the label of ignored positions is subtracted too", "k == label && !ignored", "k == label"),
            ("ignored positions have a gradient by default", "ignored ? unlabelled : 1.0f", "1.0f"),
        ],
    ),
    "add_up_losses": Planted(
        check_losses,
        [
            ("a sum in place of the mean", "total / positions", "total"),
            ("a missing barrier", "__syncthreads();", ""),
            ("the last warp is left out", "warp < blockDim.x / 32", "warp < blockDim.x / 32 - 1"),
            ("odd lanes are left out", "distance > 0", "distance > 1"),
        ],
    ),
    "softmax_cross_entropy_mean": Planted(
        check_losses,
        [
            ("only one part a lane is summed", "first < MAX_PARTS", "first < 32"),
            ("the first part is left out", "first + threadIdx.x", "first + threadIdx.x + 1"),
            ("odd lanes are left out", "distance > 0", "distance > 1"),
        ],
    ),
}

ZOO = {
    "softmax": [
        Bug("the largest logit is not subtracted: exp(1e4) is infinite",
            {"float sum = 0.0f;": "largest = 0.0f;\nfloat sum = 0.0f;"},
            "check", NAN, ("p[first + k * S] = ",)),
        Bug("the stride of channels is K, not S",
            {"fmaxf(largest, logits[first + k * S])": "fmaxf(largest, logits[first + k * K])"},
            "check", OUTSIDE, ("logits[first + k * K]",), "memcheck"),
    ],
    "softmax_cross_entropy_naive": [
        Bug("the logarithm of a probability that rounds to 0",
            {"logf(sum) - (": "-logf(expf(", "- largest);\n    float scale": "- largest) / sum);\n    float scale"},
            "double", WRONG, ("losses[position] = ",)),
        Bug("labels are counted from 1", {"logits[first + label * S]": "logits[first + (label - 1) * S]"},
            "check", OUTSIDE, ("logits[first + (label - 1) * S]",), "memcheck"),
        Bug("the gradient's label is off by one", {"k == label &&": "k == label + 1 &&"},
            "double", WRONG, ("k == label + 1 &&",)),
        Bug("one thread sums losses that others are still writing",
            {"p - 1.0f : p);": """p - 1.0f : p);
    }
    if (position == 0) {
        for (int other = 1; other < N * S; ++other) losses[0] += losses[other];"""},
            "check", RACE, ("losses[position] = ", "losses[0] += losses[other]")),
    ],
    "softmax_cross_entropy_mean_naive": [
        Bug("the first position is left out", {"position = threadIdx.x;": "position = threadIdx.x + 1;"},
            "double", WRONG, ("loss[0] = total / count;",)),
    ],
    "add_up_losses": [
        Bug("no thread waits until all warps have written their sums", {"__syncthreads();": ""},
            "check", RACE, ("in_warp[threadIdx.x / 32] = mine;", "total += in_warp[warp];"), "racecheck"),
        Bug("all warps write their sum to the same element", {"in_warp[threadIdx.x / 32] = mine": "in_warp[0] = mine"},
            "check", RACE, ("in_warp[0] = mine",), "racecheck"),
        Bug("the sum of one warp too many is read", {"warp < blockDim.x / 32": "warp <= blockDim.x / 32"},
            "trap", "the index 8 of an array of type 'float [8]'", ("total += in_warp[warp];",), "memcheck"),
        Bug("the sums of odd lanes never reach the first", {"distance > 0;": "distance > 1;"},
            "double", WRONG, ("parts[blockIdx.x] = ", "loss[0] = sum;")),
    ],
    "loss_and_gradient": [
        Bug("labels are counted from 1", {"if (k == label) chosen": "if (k == label - 1) chosen"},
            "double", WRONG, ("parts[blockIdx.x] = ", "loss[0] = sum;")),
    ],
    "softmax_cross_entropy": [
        Bug("one position too many", {"position < positions;": "position <= positions;"},
            "check", OUTSIDE, ("const int label = labels[position];",), "memcheck"),
        Bug("threads without a position return before the shuffles",
            {"float mine = 0.0f;": "if (thread_number() >= positions) return;\nfloat mine = 0.0f;"},
            "trap", "wait at __shfl_down_sync", ("mine += __shfl_down_sync",)),
        Bug("the shuffles are in a branch that ignored positions do not take",
            {"mine += loss_and_gradient<K>(logit, dlogit, label, ignore_index, unlabelled, positions);": """
        float loss = loss_and_gradient<K>(logit, dlogit, label, ignore_index, unlabelled, positions);
        if (label != ignore_index) {
            for (int d = 16; d > 0; d /= 2) loss += __shfl_down_sync(0xffffffff, loss, d);
            if (threadIdx.x % 32 == 0) mine += loss;
        }"""},
            "trap", "wait at __shfl_down_sync", ("loss += __shfl_down_sync",), "synccheck"),
        Bug("blocks continue at the first position of the next block",
            {"position += gridDim.x * LOSS_THREADS": "position += LOSS_THREADS"},
            "check", "nothing orders blocks", ("dlogits[first + k * S] = dlogit[k];",)),
    ],
    "softmax_cross_entropy_mean": [
        Bug("lanes without a part read one", {"part < count ? parts[part] : 0.0f": "parts[part]"},
            "check", OUTSIDE, ("sum += parts[part]",), "memcheck"),
        Bug("only lanes with a part shuffle", {"for (int distance": "if (threadIdx.x < count)\nfor (int distance"},
            "trap", "wait at __shfl_down_sync", ("sum += __shfl_down_sync",)),
        Bug("all lanes write the sum that only the first one has", {"if (threadIdx.x == 0) loss": "loss"},
            "check", RACE, ("loss[0] = sum;",)),
    ],
}  # fmt: skip
