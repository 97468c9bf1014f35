"""Elements of every output of every kernel: one owner, products that add up, a formula that gives the stored value."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from helpers.planting import plant

from tinyfcn.devices import kernel_source
from tinyfcn.errors import KernelError
from tinyfcn.study.element import Element, NoSuchElement, Output, element, outputs
from tinyfcn.study.examples import EXAMPLES, launches_of
from tinyfcn.study.formulas import FORMULAS, SUMS, Given

Index = tuple[int, ...]
EACH = 4  # random elements of each output, besides its corners
TEN = 10


def forms(operation: str) -> list[bool]:
    """Whether the fast form is asked for: both, where there are two."""
    names = [{each.kernel.name for each in launches_of(operation, naive)} for naive in (True, False)]
    return [False, True] if names[0] != names[1] else [False]


# fast_conv has the example of conv2d.
RUNS = [(operation, fast) for operation in EXAMPLES if operation != "fast_conv" for fast in forms(operation)]


@cache
def example(name: str, fast: bool = False, stride: int | None = None) -> dict[str, Output]:
    return outputs(name, fast, stride)


def random_elements(output: Output, count: int) -> list[Index]:
    """Elements that the launch writes: random ones."""
    random = np.random.default_rng(len(output.name))
    written = sorted({each.element for each in output.trace.stores(output.parameter)})
    chosen = random.choice(written, min(count, len(written)), replace=False)
    return [tuple(map(int, np.unravel_index(each, output.values.shape))) for each in chosen]


def corners(output: Output) -> list[Index]:
    """The first and the last element, where a window reaches beyond the image."""
    written = [each.element for each in output.trace.stores(output.parameter)]
    return [tuple(map(int, np.unravel_index(each, output.values.shape))) for each in (min(written), max(written))]


def is_sound(found: Element) -> bool:
    key = found.output.kernel.name, found.output.parameter
    is_sum = key not in SUMS or (found.follows_formula and bool(found.rows))
    return found.is_unique and found.adds_up and found.agrees and is_sum and found.explained is not None


def test_every_output_of_every_kernel_is_launched_and_has_a_formula() -> None:
    declared = {
        (kernel.name, parameter.name)
        for kernel in kernel_source.kernels().values()
        for parameter in kernel.parameters
        if parameter.is_array and not parameter.is_const
    }
    launched = {
        (launch.kernel.name, parameter.name)
        for operation in EXAMPLES
        for naive in (True, False)
        for launch in launches_of(operation, naive)
        for parameter, argument in zip(launch.kernel.parameters, launch.arguments, strict=True)
        if parameter.is_array and not parameter.is_const and argument is not None
    }
    assert launched == declared
    assert {*FORMULAS} == declared


@pytest.mark.slow
@pytest.mark.parametrize(("operation", "fast"), RUNS)
def test_the_owner_is_unique_and_the_element_is_what_the_formula_gives(operation: str, fast: bool) -> None:
    for output in example(operation, fast).values():
        for index in [*corners(output), *random_elements(output, EACH)]:
            found = element(output, index)
            assert is_sound(found), (output.name, index, found.total, found.explained, found.stored, found.owners)
            block, thread = found.owners[0]
            assert all((each.block, each.thread) == (block, thread) for each in found.reads)
            assert found.unread == 0, (output.name, index)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("operation", "stride"), [("conv2d", 2), ("conv2d", 3), ("conv_transpose2d", 1), ("max_pool2d", 1)]
)
def test_other_strides(operation: str, stride: int) -> None:
    for output in example(operation, False, stride).values():
        for index in [*corners(output), *random_elements(output, EACH)]:
            assert is_sound(element(output, index)), (output.name, index)


# --- Against sums that are computed here, in plain loops ---


def conv2d_y(given: Given, index: Index, stride: int, padding: int) -> float:
    x, weight, bias = given["x"], given["weight"], given["bias"]
    n, o, i, j = index
    total = float(bias[o])
    for c in range(x.shape[1]):
        for u in range(weight.shape[2]):
            for v in range(weight.shape[3]):
                h, w = i * stride + u - padding, j * stride + v - padding
                if 0 <= h < x.shape[2] and 0 <= w < x.shape[3]:
                    total += float(x[n, c, h, w]) * float(weight[o, c, u, v])
    return total


def conv2d_dx(given: Given, index: Index, stride: int, padding: int) -> float:
    """By going through all outputs that read the pixel."""
    dout, weight = given["dout"], given["weight"]
    n, c, h, w = index
    total = 0.0
    for o, i, j in np.ndindex(dout.shape[1:]):
        u, v = h - i * stride + padding, w - j * stride + padding
        if 0 <= u < weight.shape[2] and 0 <= v < weight.shape[3]:
            total += float(dout[n, o, i, j]) * float(weight[o, c, u, v])
    return total


def conv2d_dweight(given: Given, index: Index, stride: int, padding: int) -> float:
    dout, x = given["dout"], given["x"]
    o, c, u, v = index
    total = 0.0
    for n, i, j in np.ndindex(dout.shape[0], *dout.shape[2:]):
        h, w = i * stride + u - padding, j * stride + v - padding
        if 0 <= h < x.shape[2] and 0 <= w < x.shape[3]:
            total += float(dout[n, o, i, j]) * float(x[n, c, h, w])
    return total


def dbias(given: Given, index: Index, stride: int, padding: int) -> float:
    return sum(float(given["dout"][n, index[0], h, w]) for n, h, w in np.ndindex(2, *given["dout"].shape[2:]))


def transpose_y(given: Given, index: Index, stride: int, padding: int) -> float:
    """By scattering: all inputs that add to the output."""
    x, weight, bias = given["x"], given["weight"], given["bias"]
    n, o, h, w = index
    total = float(bias[o])
    for c, i, j in np.ndindex(x.shape[1:]):
        u, v = h + padding - i * stride, w + padding - j * stride
        if 0 <= u < weight.shape[2] and 0 <= v < weight.shape[3]:
            total += float(x[n, c, i, j]) * float(weight[c, o, u, v])
    return total


def transpose_dx(given: Given, index: Index, stride: int, padding: int) -> float:
    dout, weight = given["dout"], given["weight"]
    n, c, i, j = index
    total = 0.0
    for o, u, v in np.ndindex(weight.shape[1:]):
        h, w = i * stride + u - padding, j * stride + v - padding
        if 0 <= h < dout.shape[2] and 0 <= w < dout.shape[3]:
            total += float(dout[n, o, h, w]) * float(weight[c, o, u, v])
    return total


def transpose_dweight(given: Given, index: Index, stride: int, padding: int) -> float:
    dout, x = given["dout"], given["x"]
    c, o, u, v = index
    total = 0.0
    for n, i, j in np.ndindex(x.shape[0], *x.shape[2:]):
        h, w = i * stride + u - padding, j * stride + v - padding
        if 0 <= h < dout.shape[2] and 0 <= w < dout.shape[3]:
            total += float(x[n, c, i, j]) * float(dout[n, o, h, w])
    return total


def pool_y(given: Given, index: Index, stride: int, padding: int) -> float:
    n, c, i, j = index
    return max(float(given["x"][n, c, i * stride + u, j * stride + v]) for u in range(2) for v in range(2))


def pool_dx(given: Given, index: Index, stride: int, padding: int) -> float:
    n, c, h, w = index
    at = h * given["dx"].shape[3] + w
    return sum(
        float(d) for d, m in zip(given["dout"][n, c].flat, given["max_index"][n, c].flat, strict=True) if m == at
    )


def relu_y(given: Given, index: Index, stride: int, padding: int) -> float:
    return max(float(given["x"][index]), 0.0)


def relu_dx(given: Given, index: Index, stride: int, padding: int) -> float:
    return float(given["dout"][index]) * (given["y"][index] > 0)


def probabilities(given: Given, index: Index) -> list[float]:
    n, _, *pixel = index
    powers = [np.exp(float(given["logits"][(n, k, *pixel)])) for k in range(3)]
    return [power / sum(powers) for power in powers]


def softmax_p(given: Given, index: Index, stride: int, padding: int) -> float:
    return probabilities(given, index)[index[1]]


def softmax_dlogits(given: Given, index: Index, stride: int, padding: int) -> float:
    """Positions labelled 2 are ignored; 280 positions in all."""
    label = int(given["labels"][(index[0], *index[2:])])
    return 0.0 if label == 2 else (probabilities(given, index)[index[1]] - (label == index[1])) / 280


def softmax_losses(given: Given, index: Index, stride: int, padding: int) -> float:
    label = int(given["labels"][index])
    return 0.0 if label == 2 else -np.log(probabilities(given, (index[0], 0, *index[1:]))[label])


def adam(name: str) -> Callable[..., float]:
    def step(given: Given, index: Index, stride: int, padding: int) -> float:
        """The second step: base rate 1/2, two steps of warm-up, half a cosine over four."""
        p, g, m, v = (float(given[array][index]) for array in ("parameters", "gradients", "m", "v"))
        g += 0.5 * p
        m, v = 0.75 * m + 0.25 * g, 0.875 * v + 0.125 * g**2
        rate = 0.5 * (1 + np.cos(np.pi / 4)) / 2
        p -= rate * (m / (1 - 0.75**2)) / (np.sqrt(v / (1 - 0.875**2)) + 0.25)
        return {"parameters": p, "m": m, "v": v}[name]

    return step


BY_HAND: dict[tuple[str, str], tuple[Callable[..., float], int, int]] = {  # with stride and padding
    ("conv2d", "y"): (conv2d_y, 1, 1),
    ("conv2d", "dx"): (conv2d_dx, 1, 1),
    ("conv2d", "dweight"): (conv2d_dweight, 1, 1),
    ("conv2d", "dbias"): (dbias, 1, 1),
    ("conv_transpose2d", "y"): (transpose_y, 2, 1),
    ("conv_transpose2d", "dx"): (transpose_dx, 2, 1),
    ("conv_transpose2d", "dweight"): (transpose_dweight, 2, 1),
    ("conv_transpose2d", "dbias"): (dbias, 2, 1),
    ("max_pool2d", "y"): (pool_y, 2, 0),
    ("max_pool2d", "dx"): (pool_dx, 2, 0),
    ("relu", "y"): (relu_y, 1, 0),
    ("relu", "dx"): (relu_dx, 1, 0),
    ("softmax_cross_entropy", "p"): (softmax_p, 1, 0),
    ("softmax_cross_entropy", "losses"): (softmax_losses, 1, 0),
    ("softmax_cross_entropy", "dlogits"): (softmax_dlogits, 1, 0),
    **{("adam", name): (adam(name), 1, 0) for name in ("parameters", "m", "v")},
}


@pytest.mark.slow
@pytest.mark.parametrize(("operation", "name"), BY_HAND)
def test_ten_elements_against_plain_loops(operation: str, name: str) -> None:
    by_hand, stride, padding = BY_HAND[operation, name]
    output = example(operation)[name]
    given = Given(output.trace)
    indices = random_elements(output, TEN)
    assert len(indices) == min(TEN, output.values.size)
    for index in indices:
        found = element(output, index)
        expected = by_hand(given, index, stride, padding)
        assert found.stored == pytest.approx(expected, rel=1e-5, abs=1e-9), index
        assert found.explained is not None and found.explained.value == pytest.approx(expected, rel=1e-6, abs=1e-9)
        if found.total is not None:
            assert found.total == pytest.approx(expected, rel=1e-9, abs=1e-12), index
            assert found.total == found.stored, "sums of the example's numbers are exact in float32"


# --- What is told of it ---


def test_the_owner_and_its_line_of_an_element_of_conv2d() -> None:
    found = element(example("conv2d")["y"], (1, 3, 2, 4))
    number = ((1 * 4 + 3) * 8 + 2) * 9 + 4
    assert found.owners == [(number // 256, number % 256)] and found.lane == (0, 14)
    lines = (kernel_source.KERNELS / "conv2d.cu").read_text().splitlines()
    assert lines[int(found.place.removeprefix("conv2d.cu:")) - 1].strip() == "y[element] = sum;"
    assert [name for name, _ in found.rows[0].factors] == ["x[1,0,1,3]", "weight[3,0,0,0]"]
    assert len(found.rows) == 27 and found.start is not None and found.start[0] == "bias[3]"


def test_lanes_beside_it_read_the_next_pixel_and_the_same_weights() -> None:
    below, above = element(example("conv2d")["y"], (1, 3, 2, 4)).neighbours
    assert [below.lane, above.lane] == [13, 15]
    assert below.shifts["x"] == (-1, 27, 27) and above.shifts["x"] == (1, 27, 27)
    assert above.shifts["weight"] == (0, 27, 27)
    (only,) = element(example("conv2d")["y"], (0, 0, 0, 0)).neighbours
    assert only.lane == 1 and only.shifts["x"] == (1, 12, 18), "18 of 27 are inside, 12 of them at the same weights"


def test_a_loop_that_skips_is_told_why() -> None:
    rows = element(example("conv2d", False, 2)["dx"], (0, 2, 0, 4)).rows
    reasons = {row.skipped for row in rows}
    assert len(rows) == 36 and reasons == {"", "between positions"}
    corner = element(example("conv2d")["y"], (0, 0, 0, 0)).rows
    assert [row.skipped for row in corner[:4]] == ["outside x"] * 4 and not corner[4].skipped
    other_pixel = {row.skipped for row in element(example("max_pool2d")["dx"], (0, 0, 0, 1)).rows}
    assert other_pixel <= {"", "between positions", "outside dout"} | {
        reason for reason in other_pixel if reason.startswith("max_index is")
    }


def test_a_kernel_is_taken_by_its_own_name() -> None:
    found = outputs("gather_normalise", fast=False)
    assert [*found] == ["batch", "labels", "alone"], "a name that an operation has is the operation"
    assert [*outputs("gather_batch", fast=False)] == ["batch", "labels"]
    assert outputs("softmax_cross_entropy_mean", fast=False)["loss"].kernel.name == "softmax_cross_entropy_mean"


@pytest.mark.parametrize("index", [(1, 3, 2), (1, 3, 2, 9), (1, 3, 2, 4, 0)])
def test_an_element_that_there_is_not(index: Index) -> None:
    with pytest.raises(NoSuchElement, match=r"y has the shape \(2, 4, 8, 9\): no element .*; the last is 1,3,7,8"):
        element(example("conv2d")["y"], index)


def test_an_element_that_nobody_writes() -> None:
    with pytest.raises(KernelError, match=r"adam_step writes losses\[1\] alone, and not losses\[5\]"):
        element(example("adam")["losses"], (5,))


# --- Wrong kernels are noticed ---

WRONG: dict[str, tuple[str, str, str, dict[str, str], Callable[[Element], bool]]] = {
    "subtracts": (
        "conv2d",
        "y",
        "conv2d_forward_naive",
        {"sum += x[": "sum -= x["},
        lambda e: not e.adds_up and not e.agrees and e.follows_formula,
    ),
    "mirrored kernel": (
        "conv2d",
        "y",
        "conv2d_forward_naive",
        {"* KH + u) * KW + v]": "* KH + KH - 1 - u) * KW + v]"},
        lambda e: e.adds_up and not e.agrees and not e.follows_formula,
    ),
    "two owners": (
        "relu",
        "y",
        "relu_forward",
        {"y[element] = x[element] < 0.0f ? 0.0f : x[element];": "y[element] = 1.0f; if (element < 3) y[7] = 1.0f;"},
        lambda e: not e.is_unique and len(e.owners) == 4,
    ),
    "fast: wrong bias": (
        "conv2d",
        "y",
        "fast_conv_forward",
        {"bias ? bias[channel] : 0.0f": "0.0f"},
        lambda e: not e.agrees,
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_kernel_is_noticed(tmp_path: Path, what: str) -> None:
    operation, name, kernel, changes, is_noticed = WRONG[what]
    folder = plant(kernel, changes, tmp_path / "kernels")
    output = outputs(operation, kernel.startswith("fast"), kernels=folder)[name]
    index = (0, 0, 0, 7) if operation == "relu" else (1, 3, 2, 4)
    assert is_noticed(element(output, index)), what
    assert not is_noticed(element(example(operation, kernel.startswith("fast"))[name], index))
