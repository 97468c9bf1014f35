"""A look inside a network: what each element depends on, against the truth, and the gradients of all layers."""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from helpers.designs import all_designs

from tinyfcn.checks import gradcheck
from tinyfcn.errors import TinyfcnError
from tinyfcn.networks import Design, Network
from tinyfcn.operations import on
from tinyfcn.study.layers import IMAGE, Layers, Window, boxes, field, output_gradients, record
from tinyfcn.study.trace import Measures, Trace

DESIGNS = {
    "classifier": Design("classifier"),
    "skip": Design("skip"),
    "early": Design("early"),
    "early, article's skip": Design("early", article_skip=True),
    "early, reduce last, once": Design("early", reduce="last", upsample="once"),
    "corrected, decoder's ReLUs": Design("corrected", decoder_relu=True),
    "skip, larger kernels": Design("skip", up1_kernel=8, up2_kernel=8),
}


SIZE = 48, 56  # higher and wider than skip's receptive field
LARGE = 1e15  # a change that goes through every maximum, and is seen behind ten layers
every_design = pytest.mark.parametrize("design", DESIGNS.values(), ids=DESIGNS)


def network(design: Design, seed: int = 0) -> Network:
    """A network in float64, whose biases are positive, so that few ReLUs are closed."""
    made = design.build(on("cpu"), seed, dtype=np.float64)
    random = np.random.default_rng(seed)
    made.load({each: random.uniform(0.5, 1, value.shape) for each, value in made.parameter.items() if "bias" in each})
    return made


def positive(design: Design) -> Network:
    """A network in float64 with weights above 0: where an input grows, so does all that depends on it.

    No ReLU is closed, a pooling passes the change on as its new maximum, and no two changes cancel. So an element
    changes just if it depends on what was changed.
    """
    made = design.build(on("cpu"), dtype=np.float64)
    random = np.random.default_rng(0)
    made.load({each: random.uniform(0.5, 1.5, value.shape) / value[0].size for each, value in made.parameter.items()})
    return made


def positive_image() -> np.ndarray:
    return np.random.default_rng(0).uniform(0.5, 1, (1, 1, *SIZE))


def replayed(layers: Layers, change: Callable[[str, np.ndarray], np.ndarray], count: int) -> dict[str, np.ndarray]:
    """The outputs of all layers, computed anew `count` times at once, where `change` may change each of them."""
    ops, values = on("cpu"), {IMAGE: change(IMAGE, layers[IMAGE].output.repeat(count, axis=0))}
    for name, layer in layers.items():
        if layer.call is not None:
            given = {argument: values[source] for argument, source in layer.sources.items()}
            found = getattr(ops, layer.call.operation)(**layer.call.arguments | given)
            values[name] = change(name, found[0] if isinstance(found, tuple) else found)
    return values


def changed(layers: Layers, source: str, elements: np.ndarray) -> dict[str, np.ndarray]:
    """Which positions of each layer change when an element (h, w) of `source` does: bool (elements, H, W)."""

    def change(name: str, output: np.ndarray) -> np.ndarray:
        output = output.copy()
        if name == source:
            output[np.arange(len(elements)), :, *elements.T] += LARGE
        return output

    found = replayed(layers, change, len(elements))
    return {name: differs(found[name], layers[name].output) for name in layers}


def differs(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Whether a position differs in any channel, by more than the rounding of another order of sums."""
    return (np.abs(found - expected) > 1e-9 * np.abs(expected)).any(axis=1)


def boxed(layers: Layers, name: str, source: str, elements: np.ndarray) -> np.ndarray:
    """Which positions of the layer `name` have an element (h, w) of `source` in their box: bool (elements, H, W)."""
    inside = []
    for axis, size in enumerate(layers[name].size):
        of_position = [boxes(layers, name, *np.roll((at, 0), axis)).get(source) for at in range(size)]
        spans = [(box.rows, box.columns)[axis] if box else range(0) for box in of_position]
        inside.append(np.array([[element in span for span in spans] for element in elements[:, axis]]))
    return inside[0][:, :, None] & inside[1][:, None]


def expect_truth(layers: Layers, source: str, elements: np.ndarray) -> None:
    """Every element of every layer changes if and only if its box in `source` holds what was changed."""
    truth = [changed(layers, source, part) for part in np.array_split(elements, -(-len(elements) // 64))]
    for name in layers:
        wrong = np.argwhere(np.concatenate([part[name] for part in truth]) != boxed(layers, name, source, elements))
        first = f"{name} at {wrong[0][1:]} and {source} at {elements[wrong[0][0]]}" if len(wrong) else ""
        assert not len(wrong), f"{len(wrong)} positions are wrong, such as {first}"


def expect_truth_of_every_pair(layers: Layers) -> None:
    """Changes the corners and eight random elements of every layer, and looks at every element of all others."""
    random = np.random.default_rng(1)
    for source, layer in layers.items():
        corners = [(h, w) for h in (0, layer.size[0] - 1) for w in (0, layer.size[1] - 1)]
        expect_truth(layers, source, np.concatenate([corners, random.integers(0, layer.size, (8, 2))]))


@pytest.mark.slow
@every_design
def test_a_box_holds_what_an_element_depends_on_and_nothing_else(design: Design) -> None:
    expect_truth_of_every_pair(record(positive(design), positive_image()))


@pytest.mark.slow
def test_boxes_and_field_of_every_design_with_every_option() -> None:
    """Designs that differ in labels or channels alone have the same boxes, which are tried once."""
    tried = set()
    for name, design in all_designs().items():
        made = positive(design)
        layers = record(made, positive_image())
        seen = field(layers, next(reversed(layers)))
        assert max(side for sides in seen.sides for side in sides) == made.receptive_field, name
        kind = tuple((each, *layer.reads) for each, layer in layers.items())
        if kind not in tried:
            tried.add(kind)
            expect_truth_of_every_pair(layers)
    assert len(tried) >= 12


@pytest.mark.slow
@pytest.mark.parametrize("name", ["classifier", "skip", "early, article's skip"])
def test_the_box_in_the_image_against_a_change_of_each_pixel(name: str) -> None:
    expect_truth(record(positive(DESIGNS[name]), positive_image()), IMAGE, np.argwhere(np.ones(SIZE)))


class Irregular:
    """A network whose kernels are no squares and no multiples of the stride, and whose branches join in both orders."""

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        shapes = {"first": (2, 1, 3, 2), "wide": (2, 2, 3, 3), "wider": (2, 2, 3, 3), "up": (2, 2, 5, 3)}
        self.weight = {name: random.uniform(0.5, 1, shape) for name, shape in shapes.items()}
        self.parameter = {"wide.weight": self.weight["wide"]}
        self.ops, self.design, self.outputs = on("cpu"), Design(), dict[str, np.ndarray]()

    def forward(self, x: np.ndarray) -> np.ndarray:
        ops, weight, bias = self.ops, self.weight, np.zeros(2)
        y = ops.relu(ops.conv2d(x, weight["first"], bias, stride=2, padding=1))
        y = ops.add(ops.conv2d(y, weight["wide"], bias, padding=1), y)
        y = ops.add(ops.relu(y), ops.conv2d(y, weight["wider"], bias, padding=1))
        self.outputs["logits"] = ops.conv_transpose2d(y, weight["up"], bias, stride=2, padding=1)
        return self.outputs["logits"]


def test_boxes_names_and_fields_of_an_irregular_network() -> None:
    layers = record(Irregular(), positive_image())
    assert [*layers] == [IMAGE, "conv2d", "relu", "wide", "add", "relu 2", "conv2d 2", "add 2", "logits"]
    assert [layer.made_by for layer in layers.values()] == [
        "the image",
        "conv2d 3x2/2, padding 1",
        "ReLU",
        "conv2d 3x3, padding 1",
        "1 (wide + relu)",
        "ReLU",
        "conv2d 3x3, padding 1",
        "1 (relu 2 + conv2d 2)",
        "conv_transpose2d 5x3/2, padding 1",
    ]
    expect_truth_of_every_pair(layers)
    # Along rows an output adds up two or three inputs, along columns one or two: 2 pixels apart, after two 3x3.
    assert field(layers, "add 2").sides == ((11, 11), (10, 10))
    assert str(field(layers, "logits")) == "13-15x10-12/1"
    expect_fields(layers)


def expect_fields(layers: Layers) -> None:
    """Fields and steps are those of the boxes that no edge cuts."""
    for name, layer in layers.items():
        seen = field(layers, name)
        for axis in (0, 1):
            spans = {}
            for at in range(layer.size[axis]):
                box = boxes(layers, name, *np.roll((at, layer.size[1 - axis] // 2), axis))[IMAGE]
                if (span := (box.rows, box.columns)[axis]) == box.field[axis]:
                    spans[at] = span
            assert seen.sides[axis] == (min(map(len, spans.values())), max(map(len, spans.values()))), name
            first, last = min(spans), max(spans)
            last -= (last - first) % 4  # the phases of two transposed convolutions
            if last > first:
                assert seen.step[axis] == Fraction(spans[last].start - spans[first].start, last - first), name


@every_design
def test_fields_are_the_sizes_of_boxes_far_from_the_edges(design: Design) -> None:
    expect_fields(record(design.build(on("cpu")), np.zeros((1, 1, 72, 76), np.float32)))


@every_design
def test_nothing_outside_of_a_box_matters_to_usual_weights(design: Design) -> None:
    """With weights as they are drawn, and changes of both signs."""
    layers = record(network(design), np.random.default_rng(0).standard_normal((1, 1, *SIZE)))
    elements = np.random.default_rng(2).integers(0, SIZE, (40, 2))
    sign = np.random.default_rng(3).choice((-3.0, 3.0), len(elements))

    def change(each: str, output: np.ndarray) -> np.ndarray:
        output = output.copy()
        if each == IMAGE:
            output[np.arange(len(elements)), 0, *elements.T] += sign
        return output

    found = replayed(layers, change, len(elements))
    for each, layer in layers.items():
        scale = np.abs(layer.output).max()
        moved = (np.abs(found[each] - layer.output) > 1e-9 * scale).any(axis=1)
        assert not (moved & ~boxed(layers, each, IMAGE, elements)).any(), each
        assert moved.any(), each


@every_design
def test_a_box_tells_whether_zeros_around_a_map_are_read(design: Design) -> None:
    """Puts large values around the map in place of the zeros."""
    layers = record(positive(design), positive_image())
    last = next(reversed(layers))
    positions = np.random.default_rng(4).integers(0, layers[last].size, (150, 2))
    found = {source: [boxes(layers, last, *at)[source].padding for at in positions] for source in layers}
    convolutions = {each: layer for each, layer in layers.items() if layer.facts["operation"] == "conv2d"}
    padded = {layer.sources["x"]: each for each, layer in convolutions.items() if layer.facts["padding"]}
    assert {source for source, told in found.items() if any(told)} == {*padded}
    for source, reader in padded.items():
        call = layers[reader].call
        assert call is not None
        padding = call.arguments["padding"]
        around = np.pad(layers[source].output, [(0, 0), (0, 0), *[(padding, padding)] * 2], constant_values=LARGE)
        new = on("cpu").conv2d(**call.arguments | {"x": around, "padding": 0})

        def change(each: str, output: np.ndarray, reader: str = reader, new: np.ndarray = new) -> np.ndarray:
            return new if each == reader else output

        apart = differs(replayed(layers, change, 1)[last], layers[last].output)[0]
        assert [bool(apart[h, w]) for h, w in positions] == found[source], source


@every_design
def test_the_receptive_field_is_what_the_design_declares(design: Design) -> None:
    made = network(design)
    layers = record(made, np.zeros((1, 1, *SIZE)))
    seen = field(layers, next(reversed(layers)))
    assert max(side for sides in seen.sides for side in sides) == made.receptive_field


@every_design
def test_tracing_leaves_the_network_alone_and_finds_its_logits(design: Design) -> None:
    made = network(design)
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
def test_the_gradient_by_the_image_against_finite_differences(design: Design) -> None:
    # With ink_start, weights of 127 make differences of 1e-5 cross many kinks.
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


@every_design
def test_the_gradients_are_those_of_the_backward_pass_written_by_hand(design: Design) -> None:
    made = network(design)
    x = np.random.default_rng(1).standard_normal((1, 1, 28, 32))
    layers = record(made, x)
    logits = layers[next(reversed(layers))]
    dlogits = np.random.default_rng(2).standard_normal(logits.output.shape)
    found = output_gradients(made.ops, layers, dlogits)
    made.forward(x)
    made.backward(dlogits)
    assert {*made.output_gradients} >= {"pool1", "pool2"}
    for each, expected in made.output_gradients.items():
        layer = layers[each]
        is_masked = (
            layer.facts["relu"] or layer.facts["operation"] == "max_pool2d"
        )  # then it is that of the ReLU's input
        mine = found[each] * (layer.output > 0) if is_masked else found[each]
        assert gradcheck.relative_error(mine, expected) <= 1e-12, each


@pytest.mark.parametrize("name", ["skip", "early", "classifier"])
def test_the_loss_and_its_gradient_are_those_of_training(name: str) -> None:
    design = Design(name)
    made = design.build(on("cpu"))
    x = np.random.default_rng(1).standard_normal((1, 1, 28, 28)).astype(np.float32)
    labels = np.random.default_rng(2).integers(0, design.classes + (name == "early"), (1, *made.forward(x).shape[2:]))
    labels = labels.astype(np.int32)
    loss, gradients = Trace(made, x).gradients(labels[0], design.ignore_index, "softmax")
    expected = made.loss(x, labels.reshape(1) if name == "classifier" else labels, design.ignore_index, "softmax")
    assert loss == pytest.approx(float(expected[0]), rel=1e-6)
    last = next(reversed(made.outputs))
    assert gradcheck.relative_error(gradients[last][None], made.output_gradients[last]) <= 1e-6


def test_measures() -> None:
    found = Measures.of(np.array([[[0, 0], [0, 0]], [[-3, 0], [0, 4]], [[1, 0], [0, 0]]], np.float32))
    assert found == Measures(minimum=-3, maximum=4, zeros=9 / 12, norm=pytest.approx(26**0.5), dead=[0])


def test_windows() -> None:
    assert Window(3, 1, 1).read(range(4, 5)) == range(3, 6)
    assert Window(2, 2).read(range(3, 5)) == range(6, 10)
    assert Window(4, 2, transposed=True).read(range(5, 6)) == range(1, 3)  # 5 = 2 * 1 + 3 = 2 * 2 + 1
    assert Window(1, 2, transposed=True).read(range(5, 6)) == range(3, 3)  # no input reaches it


def test_boxes_at_a_corner_tell_what_lies_beyond() -> None:
    layers: Layers = record(network(Design("skip")), np.zeros((1, 1, 64, 84)))
    corner, middle = (boxes(layers, "score", *at)[IMAGE] for at in ((0, 0), (31, 40)))
    assert corner.rows.start == 0 and len(corner.rows) < len(corner.field[0])
    assert (middle.rows, middle.columns) == middle.field and len(middle.rows) == 44
    assert boxes(layers, "score", 0, 0)["pool2"].padding and not boxes(layers, "score", 31, 40)["pool2"].padding


def test_a_spread_over_the_middle() -> None:
    x = np.random.default_rng(0).standard_normal((1, 1, 64, 84)).astype(np.float32)
    spread = Trace(Design("skip").build(on("cpu")), x).spread(31, 40)
    outside = spread.gradient.copy()
    rows, columns = spread.box.rows, spread.box.columns
    assert np.abs(outside[rows.start : rows.stop, columns.start : columns.stop]).sum() > 0
    outside[rows.start : rows.stop, columns.start : columns.stop] = 0
    assert not outside.any()
    assert spread.box.field == (rows, columns) and len(rows) == len(columns) == 44
    assert spread.middle == (range(rows[11], rows[33]), range(columns[11], columns[33]))
    size = np.abs(spread.gradient)
    inside = size[rows[11] : rows[33], columns[11] : columns[33]].sum()
    assert (spread.area, spread.share) == (0.25, pytest.approx(inside / size.sum(), rel=1e-5))


def test_a_design_that_computes_outside_of_ops_is_refused() -> None:
    made = network(Design("classifier"))
    forward = made.forward
    made.forward = lambda x: forward(x) * 2  # type: ignore[method-assign]
    with pytest.raises(TinyfcnError, match=r"computes an array .* by none of the operations of `ops`"):
        record(made, np.zeros((1, 1, 28, 28)))
