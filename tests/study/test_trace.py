"""A look inside a network: what each element depends on, against the truth, and the gradients of all layers."""

from dataclasses import replace

import numpy as np
import pytest

from tinyfcn.checks import gradcheck
from tinyfcn.errors import TinyfcnError
from tinyfcn.networks import Design, Network
from tinyfcn.operations import on
from tinyfcn.study.layers import IMAGE, Layers, Window, boxes, field, output_gradients, record
from tinyfcn.study.trace import Trace

DESIGNS = {
    "classifier": Design("classifier"),
    "skip": Design("skip"),
    "skip, binary": Design("skip", labels="binary"),
    "early": Design("early"),
    "early, article's skip": Design("early", article_skip=True),
    "early, reduce last, once": Design("early", reduce="last", upsample="once"),
    "corrected": Design("corrected"),
    "corrected, reduce last": Design("corrected", reduce="last"),
    "corrected, once": Design("corrected", upsample="once"),
    "corrected, decoder's ReLUs": Design("corrected", decoder_relu=True),
}
SIZE = 48, 56  # higher and wider than skip's receptive field
DRAWS = 4  # of weights and images: a ReLU and a maximum hide some of what an element depends on
every_design = pytest.mark.parametrize("name", DESIGNS)


def network(design: Design, seed: int = 0) -> Network:
    """A network in float64, whose biases are positive, so that few ReLUs are closed."""
    made = design.build(on("cpu"), seed, dtype=np.float64)
    random = np.random.default_rng(seed)
    made.load({each: random.uniform(0.5, 1, value.shape) for each, value in made.parameter.items() if "bias" in each})
    return made


def dependence(design: Design, axis: int) -> dict[str, np.ndarray]:
    """By layer: whether each row (axis 0) or column of the image changes each position, bool (rows, H, W).

    Everything in a row is changed at once, so that hardly any of its effects cancel.
    """
    found: dict[str, np.ndarray] = {}
    for seed in range(DRAWS):
        random = np.random.default_rng([seed, axis])
        made = network(design, seed)
        x = random.standard_normal((1, 1, *SIZE))
        base = {layer: each.output for layer, each in record(made, x).items()}
        for line in range(SIZE[axis]):
            changed = x.copy()
            np.moveaxis(changed, 2 + axis, 0)[line] += random.choice((-3, 3)) + random.standard_normal()
            for layer, each in record(made, changed).items():
                apart = np.abs(each.output - base[layer]).max(axis=(0, 1)) > 1e-9 * np.abs(base[layer]).max()
                found.setdefault(layer, np.zeros((SIZE[axis], *apart.shape), bool))[line] |= apart
    return found


@pytest.mark.slow
@every_design
def test_boxes_are_what_elements_depend_on(name: str) -> None:
    """Changes each row and each column of the image: for every layer and position, those that matter are the box's."""
    design = DESIGNS[name]
    layers = record(network(design), np.zeros((1, 1, *SIZE)))
    for axis in (0, 1):
        for layer, mask in dependence(design, axis).items():
            lines = mask.any(axis=2 - axis)  # (lines of the image, lines of the layer)
            for position in range(lines.shape[1]):
                at = (position, 0) if axis == 0 else (0, position)
                box = boxes(layers, layer, *at)[IMAGE]
                expected = np.flatnonzero(lines[:, position])
                found = (box.rows, box.columns)[axis]
                assert [*found] == [*range(expected[0], expected[-1] + 1)], f"{layer}: axis {axis}, {position}"


@every_design
def test_the_receptive_field_is_what_the_design_declares(name: str) -> None:
    made = network(DESIGNS[name])
    layers = record(made, np.zeros((1, 1, *SIZE)))
    seen = field(layers, next(reversed(layers)))
    assert max(side for sides in seen.sides for side in sides) == made.receptive_field


@every_design
def test_tracing_leaves_the_network_alone_and_finds_its_logits(name: str) -> None:
    made = network(DESIGNS[name])
    x = np.random.default_rng(0).standard_normal((1, 1, *SIZE))
    logits = made.forward(x)
    outputs = dict(made.outputs)
    layers = record(made, x)
    assert gradcheck.relative_error(layers[next(reversed(layers))].output, logits) <= 1e-12
    assert made.outputs.keys() == outputs.keys() and all(made.outputs[each] is outputs[each] for each in outputs)
    for each, output in outputs.items():
        if each in layers:
            assert gradcheck.relative_error(layers[each].output, output) <= 1e-12, each
    assert {each for each in outputs if not each.startswith("max_index")} <= {*layers}


@every_design
def test_the_gradient_by_the_image_against_finite_differences(name: str) -> None:
    # With ink_start, weights of 127 make differences of 1e-5 cross many kinks.
    design = DESIGNS[name]
    made = network(replace(design, ink_start=False) if design.name == "skip" else design)
    x = np.random.default_rng(1).standard_normal((1, 1, 28, 28))
    layers = record(made, x)
    dlogits = np.random.default_rng(2).standard_normal(layers[next(reversed(layers))].output.shape)
    found = output_gradients(made.ops, layers, dlogits)
    assert found.keys() == layers.keys()
    assert all(found[each].shape == layers[each].output.shape for each in layers)

    def function() -> float:
        return float((made.forward(x) * dlogits).sum())

    assert gradcheck.check_gradient(function, x, found[IMAGE]) <= gradcheck.TOLERANCES["finite differences"]


def test_windows() -> None:
    assert Window(3, 1, 1).read(range(4, 5)) == range(3, 6)
    assert Window(2, 2).read(range(3, 5)) == range(6, 10)
    assert Window(4, 2, transposed=True).read(range(5, 6)) == range(1, 3)  # 5 = 2 * 1 + 3 = 2 * 2 + 1
    assert Window(1, 2, transposed=True).read(range(5, 6)) == range(3, 3)  # no input reaches it


def test_boxes_at_a_corner_tell_what_lies_beyond() -> None:
    layers: Layers = record(network(DESIGNS["skip"]), np.zeros((1, 1, 64, 84)))
    corner, middle = (boxes(layers, "score", *at)[IMAGE] for at in ((0, 0), (31, 40)))
    assert corner.rows.start == 0 and len(corner.rows) < len(corner.field[0])
    assert (middle.rows, middle.columns) == middle.field and len(middle.rows) == 44
    assert boxes(layers, "score", 0, 0)["pool2"].padding and not boxes(layers, "score", 31, 40)["pool2"].padding


def test_a_spread_over_the_middle() -> None:
    x = np.random.default_rng(0).standard_normal((1, 1, 64, 84)).astype(np.float32)
    spread = Trace(DESIGNS["skip"].build(on("cpu")), x).spread(31, 40)
    outside = spread.gradient.copy()
    rows, columns = spread.box.rows, spread.box.columns
    assert np.abs(outside[rows.start : rows.stop, columns.start : columns.stop]).sum() > 0
    outside[rows.start : rows.stop, columns.start : columns.stop] = 0
    assert not outside.any()
    assert 0 < spread.area < 0.5 and 0 < spread.share <= 1


def test_a_design_that_computes_outside_of_ops_is_refused() -> None:
    made = network(DESIGNS["classifier"])
    forward = made.forward
    made.forward = lambda x: forward(x) * 2  # type: ignore[method-assign]
    with pytest.raises(TinyfcnError, match=r"computes an array .* by none of the operations of `ops`"):
        record(made, np.zeros((1, 1, 28, 28)))
