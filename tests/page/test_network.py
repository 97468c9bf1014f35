"""network.js in node against Python: maps, boxes, gradients and the sums behind a number, for every design."""

from math import prod
from typing import Any

import numpy as np
import pytest
from helpers.page import ALL_DESIGNS, CPU, array, as_input, assert_same_maps, encoded, random_network, run_node

from tinyfcn.networks.network import views
from tinyfcn.study.layers import IMAGE, Layers, boxes, output_gradients, record
from tinyfcn.study.page import graph

pytestmark = pytest.mark.browser
SIZES = [(32, 36), (28, 28), (36, 52)]  # taken in turn; the page's own size is seen in Chromium


class Odd:
    """What no design has: pooling with ties, a stride, a wide kernel, a lone ReLU, a transposed one with padding."""

    def __init__(self) -> None:
        shapes = {"a.weight": (5, 1, 3, 5), "a.bias": (5,), "b.weight": (5, 3, 5, 4), "b.bias": (3,)}
        shapes |= {"c.weight": (3, 3, 1, 1), "c.bias": (3,)}
        count = sum(map(prod, shapes.values()))
        self.ops, self.outputs = CPU, dict[str, Any]()
        self.parameters = np.random.default_rng(3).standard_normal(count).astype(np.float32)
        self.parameter = views(self.parameters, shapes)

    def forward(self, x: np.ndarray) -> np.ndarray:
        ops, p = self.ops, self.parameter
        y, _ = ops.max_pool2d(x)  # of bytes, many of which are 0
        y = ops.relu(ops.conv2d(y, p["a.weight"], p["a.bias"], stride=2, padding=1))
        y = ops.conv_transpose2d(y, p["b.weight"], p["b.bias"], stride=3, padding=1)
        return ops.add(y, ops.conv2d(y, p["c.weight"], p["c.bias"], relu=True), scale=0.25)


NETWORKS: dict[str, Any] = {
    **{name: lambda design=design: random_network(design) for name, design in ALL_DESIGNS.items()},
    "operations that no design has": Odd,
}


def positions(layers: Layers) -> list[tuple[str, int, int, int]]:
    """Elements of every layer: corners, edges and the middle; of the last layer some more."""
    random = np.random.default_rng(1)
    found = []
    for layer in layers.values():
        _, channels, height, width = layer.output.shape
        is_last = layer.name == next(reversed(layers))
        places = {(0, 0), (height - 1, width - 1), (height // 2, width // 2), (height // 3, 0)}
        places |= {(int(random.integers(height)), int(random.integers(width))) for _ in range(8 if is_last else 1)}
        found += [(layer.name, int(random.integers(channels)), *place) for place in sorted(places)]
    return found


@pytest.fixture(scope="module")
def inspected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Layers, dict[str, Any]]]:
    """For each network its layers in Python, and what node finds; all in one run of node."""
    random = np.random.default_rng(0)
    traced, cases = {}, []
    for number, (name, make) in enumerate(NETWORKS.items()):
        network, (height, width) = make(), SIZES[number % len(SIZES)]
        drawing = (random.integers(0, 256, (height, width)) * (random.random((height, width)) < 0.4)).astype(np.uint8)
        layers = record(network, CPU.asarray(as_input(drawing)))
        traced[name] = layers
        case = {"drawing": encoded(drawing), "height": height, "width": width, "positions": positions(layers)}
        cases.append({"network": graph(network), **case})
    found = run_node("inspect.mjs", {"cases": cases}, tmp_path_factory.mktemp("node"))
    return {name: (layers, each) for (name, layers), each in zip(traced.items(), found, strict=True)}


@pytest.fixture(params=NETWORKS)
def case(request: pytest.FixtureRequest, inspected: dict[str, Any]) -> tuple[Layers, dict[str, Any]]:
    """One network's layers, and what node finds."""
    return inspected[request.param]


def test_every_layer_equals_pythons(case: tuple[Layers, dict[str, Any]]) -> None:
    layers, found = case
    assert_same_maps(found["maps"], {name: layer.output[0] for name, layer in layers.items()})


def test_labels_and_probabilities_equal_pythons(case: tuple[Layers, dict[str, Any]]) -> None:
    layers, found = case
    logits = layers[next(reversed(layers))].output
    expected = CPU.softmax(logits)[0]
    assert np.abs(array(found["probabilities"]).reshape(expected.shape) - expected).max() < 1e-4
    labels = array(found["labels"], "u1").reshape(expected.shape[1:])
    top = np.sort(expected, axis=0)
    is_clear = top[-1] - top[-2] > 1e-3
    assert is_clear.any() and (labels == expected.argmax(axis=0))[is_clear].all()


def test_boxes_equal_pythons(case: tuple[Layers, dict[str, Any]]) -> None:
    layers, found = case
    for (name, _, row, column), each in zip(positions(layers), found["positions"], strict=True):
        expected = {
            layer: [box.rows[0], box.columns[0], box.rows[-1], box.columns[-1]]
            for layer, box in boxes(layers, name, row, column).items()
        }
        assert each["boxes"] == expected, (name, row, column)


def test_gradients_equal_pythons(case: tuple[Layers, dict[str, Any]]) -> None:
    layers, found = case
    for (name, channel, row, column), each in zip(positions(layers), found["positions"], strict=True):
        upstream = {layer: layers[layer] for layer in boxes(layers, name, row, column)}
        dout = np.zeros(layers[name].output.shape, np.float32)
        dout[0, channel, row, column] = 1
        expected = (
            output_gradients(CPU, upstream, dout)[IMAGE] if IMAGE in upstream else np.zeros((1, 1, *layers[IMAGE].size))
        )
        gradient = array(each["gradient"], "<f8").reshape(expected[0, 0].shape)
        assert np.abs(gradient - expected[0, 0]).max() <= 1e-4 * max(np.abs(expected).max(), 1e-6), (name, row, column)


def test_the_products_add_up_to_each_value(case: tuple[Layers, dict[str, Any]]) -> None:
    layers, found = case
    for (name, channel, row, column), each in zip(positions(layers), found["positions"], strict=True):
        layer, value = layers[name], float(layers[name].output[0, channel, row, column])
        close = pytest.approx(value, rel=1e-4, abs=1e-4)
        assert each["value"] == close and each["areTrue"], (name, row, column)
        if layer.call is None:
            continue
        arguments = layer.call.arguments
        if layer.call.operation == "max_pool2d":
            assert each["products"] == arguments["size"] ** 2
        else:
            passes = arguments.get("relu") or layer.call.operation == "relu"
            assert (max(each["total"], 0) if passes else each["total"]) == close, (name, row, column)
        if layer.call.operation == "conv2d":  # with those that met the zeros around the map
            assert each["products"] == prod(arguments["weight"].shape[1:])
