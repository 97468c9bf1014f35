"""The layers of a network as its forward pass makes them, what each element reads, and what that adds up to.

Nothing here is declared: `record` notes the operations that `forward` calls, with their kernels, strides and paddings.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import prod
from typing import Any

from tinyfcn.checks.parts import Part, note_calls
from tinyfcn.devices.device import Array
from tinyfcn.errors import TinyfcnError
from tinyfcn.networks import Network
from tinyfcn.ops import Operations
from tinyfcn.packed_weight import PackedWeight

IMAGE = "x"  # the name of the input in Network.outputs


@dataclass(frozen=True)
class Window:
    """The elements that an output element reads along one axis.

    Output i reads the inputs i * stride - padding + k, for k = 0 .. kernel - 1. Where transposed, input i adds to the
    outputs i * stride - padding + k.
    """

    kernel: int = 1
    stride: int = 1
    padding: int = 0
    transposed: bool = False

    def read(self, outputs: range) -> range:
        """The inputs that some neighbouring outputs read, also those that lie beyond the map; may be empty."""
        if not outputs:
            return outputs
        first, last = outputs[0] + self.padding, outputs[-1] + self.padding
        if self.transposed:
            return range(-((self.kernel - 1 - first) // self.stride), last // self.stride + 1)
        start = outputs[0] * self.stride - self.padding
        return range(start, outputs[-1] * self.stride - self.padding + self.kernel)


POINT = Window(), Window()  # along rows and columns, of an operation that reads one element


def windows_of(call: Part) -> dict[str, tuple[Window, Window]]:
    """For each argument that is a map, what an output element reads of it, along rows and along columns.

    Raises:
        TinyfcnError: nothing is known of the operation.
    """
    arguments = call.arguments
    if call.operation in ("conv2d", "conv_transpose2d"):
        stride, padding, transposed = arguments["stride"], arguments["padding"], call.operation != "conv2d"
        rows, columns = (Window(kernel, stride, padding, transposed) for kernel in arguments["weight"].shape[2:])
        return {"x": (rows, columns)} | ({"add": POINT} if arguments.get("add") is not None else {})
    if call.operation == "max_pool2d":
        window = Window(arguments["size"], arguments["stride"])
        return {"x": (window, window)}
    if call.operation == "relu":
        return {"x": POINT}
    if call.operation == "add":
        return {"a": POINT, "b": POINT}
    raise TinyfcnError(f"nothing is known of what {call.operation} reads: add it to windows_of in {__file__}")


def input_gradients(ops: Operations, layer: "Layer", dout: Array) -> dict[str, Array]:
    """The gradient of each argument that is a map, by its name, from that of the layer's output."""
    call = layer.call
    assert call is not None  # the image has no inputs
    arguments = call.arguments
    if arguments.get("relu"):
        dout = ops.relu_backward(dout, layer.output)
    if call.operation in ("conv2d", "conv_transpose2d"):
        backward = getattr(ops, f"{call.operation}_backward")
        dx, _, _ = backward(dout, arguments["x"], arguments["weight"], arguments["stride"], arguments["padding"])
        return {"x": dx, "add": dout}
    if call.operation == "max_pool2d":
        return {
            "x": ops.max_pool2d_backward(
                dout, call.outputs[1], arguments["x"].shape, arguments["size"], arguments["stride"]
            )
        }
    if call.operation == "relu":
        return {"x": ops.relu_backward(dout, layer.output)}
    da = ops.add_backward(dout, arguments["scale"])
    return {"a": da, "b": da}


@dataclass(frozen=True)
class Layer:
    """A map of the network and the call that made it; the image has none.

    name: that in Network.outputs; else that of the weights, or of the operation. sources: the layer that each argument
    is, by the argument's name. output: (N, C, H, W) on the device. is_kept: whether `forward` keeps it for `backward`.
    """

    name: str
    call: Part | None
    sources: Mapping[str, str]
    output: Array
    is_kept: bool

    @property
    def reads(self) -> list[tuple[str, tuple[Window, Window]]]:
        """The layers that an element reads, each with what it reads of them."""
        windows = windows_of(self.call) if self.call else {}
        return [(self.sources[argument], window) for argument, window in windows.items()]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the map."""
        height, width = self.output.shape[2:]
        return height, width

    @property
    def facts(self) -> dict[str, Any]:
        """How it is made: operation, kernel, stride, padding, relu, and the layers that it reads."""
        if self.call is None:
            return {"operation": None, "of": []}
        rows, columns = next(iter(windows_of(self.call).values()))
        return {
            "operation": self.call.operation,
            "kernel": [rows.kernel, columns.kernel],
            "stride": rows.stride,
            "padding": rows.padding,
            "relu": self.call.operation == "relu" or bool(self.call.arguments.get("relu")),
            "of": list(self.sources.values()),
        }

    @property
    def made_by(self) -> str:
        """ "conv2d 5x5, padding 2, ReLU", "conv_transpose2d 4x4/2 + skip1, ReLU", "0.5 (up1 + skip1)"."""
        if self.call is None:
            return "the image"
        facts, arguments = self.facts, self.call.arguments
        first, *others = facts["of"]
        if self.call.operation == "add":
            return f"{arguments['scale']:g} ({first} + {others[0]})"
        if self.call.operation == "relu":
            return "ReLU"
        stride = f"/{facts['stride']}" if facts["stride"] > 1 else ""
        size = "x".join(map(str, facts["kernel"]))
        words = [" + ".join([f"{self.call.operation} {size}{stride}", *others])]
        words += [f"padding {facts['padding']}"] if facts["padding"] else []
        return ", ".join(words + ["ReLU"] * facts["relu"])

    @property
    def nbytes(self) -> int:
        """The bytes of the output, and of a pooling's max indices, which `forward` keeps too."""
        outputs = self.call.outputs if self.call is not None else self.output
        return sum(array.nbytes for array in (outputs if isinstance(outputs, tuple) else (outputs,)))


Layers = dict[str, Layer]  # by name, each after those that it reads; the image first, the logits last


def record(network: Network, x: Array) -> Layers:
    """The layers that `network.forward(x)` computes, x (N, 1, H, W) on the device of the network.

    A convolution that is fused with its pooling is computed as a layer of its own, so that its map is seen too. The
    network itself is not changed.

    Raises:
        TinyfcnError: the forward pass computes something outside of `ops`, or by an operation that is not known here.
    """
    network = copy.copy(network)  # a copy keeps its own outputs
    network.ops = ops = copy.copy(network.ops)
    calls = note_calls(ops)

    def conv2d_pool(x: Array, weight: Array, bias: Array, packed: PackedWeight | None) -> Any:
        return ops.max_pool2d(ops.conv2d(x, weight, bias, relu=True, packed=packed))

    vars(ops)["conv2d_pool"] = conv2d_pool
    logits = network.forward(x)
    kept = {id(array): name for name, array in network.outputs.items()}
    of_weight = {id(value): name.split(".")[0] for name, value in network.parameter.items()}
    made = {id(_output(call)): call for call in calls}
    layers: dict[str, Layer] = {}
    names = {id(x): IMAGE}

    def add(array: Array) -> str:
        """Enters the layer of an array, after those that it reads; its name."""
        if id(array) in names:
            return names[id(array)]
        if id(array) not in made:
            raise TinyfcnError(
                f"the design {network.design.name} computes an array {tuple(array.shape)} by none of the operations of "
                "`ops`, so it cannot be traced: let forward call an operation"
            )
        call = made[id(array)]
        sources = {argument: add(call.arguments[argument]) for argument in windows_of(call)}
        weight = of_weight.get(id(call.arguments.get("weight")))
        name = kept.get(id(array)) or _free_name(call.operation, weight, {*layers, *network.outputs})
        layers[name] = Layer(name, call, sources, array, id(array) in kept)
        names[id(array)] = name
        return name

    layers[IMAGE] = Layer(IMAGE, None, {}, x, is_kept=True)
    add(logits)
    return layers


def _output(call: Part) -> Array:
    return call.outputs[0] if isinstance(call.outputs, tuple) else call.outputs


def _free_name(operation: str, weight: str | None, taken: set[str]) -> str:
    """A name for a layer that is not kept: that of its weights or its operation, or of both, or with a number."""
    wanted = [weight, f"{weight} {operation}"] if weight else [operation]
    numbered = (f"{wanted[-1]} {number}" for number in range(2, len(taken) + 3))
    return next(name for name in (*wanted, *numbered) if name not in taken)


@dataclass(frozen=True)
class Box:
    """The rectangle of a layer's map that an element depends on.

    rows, columns: those that lie on the map. field: what the rows and columns would be if no map had an edge. padding:
    whether a convolution reads zeros around the map too.
    """

    rows: range
    columns: range
    field: tuple[range, range]
    padding: bool


def boxes(layers: Layers, name: str, h: int, w: int) -> dict[str, Box]:
    """For each layer that element (h, w) of the layer `name` depends on, the smallest rectangle that holds all of it.

    In the order of `layers`; the last one is the element itself.
    """
    clipped = [_spans(layers, name, axis, position) for axis, position in enumerate((h, w))]
    whole = [_spans(layers, name, axis, position, edges=False)[0] for axis, position in enumerate((h, w))]
    (rows, padded_rows), (columns, padded_columns) = clipped
    return {
        each: Box(rows[each], columns[each], (whole[0][each], whole[1][each]), each in padded_rows | padded_columns)
        for each in layers
        if each in rows and each in columns
    }


def _spans(
    layers: Layers, name: str, axis: int, position: int, edges: bool = True
) -> tuple[dict[str, range], set[str]]:
    """The rows (axis 0) or columns of each layer that a position depends on, and the layers whose padding it reads.

    edges: whether the maps end where they do. What lies beyond is then not followed any further.
    """
    spans, padded = {name: range(position, position + 1)}, set()
    for layer in reversed(layers.values()):
        for source, windows in layer.reads if layer.name in spans else ():
            window = windows[axis]
            span = window.read(spans[layer.name])
            if edges:
                on_map = range(max(span.start, 0), min(span.stop, layers[source].size[axis]))
                if on_map != span and not window.transposed:  # a transposed convolution reads no zeros there
                    padded.add(source)
                span = on_map
            if span:
                before = spans.get(source, span)
                spans[source] = range(min(before.start, span.start), max(before.stop, span.stop))
    return spans, padded


@dataclass(frozen=True)
class Field:
    """The receptive field of a layer's elements in the image, away from the edges.

    sides: the least and the greatest height, and the least and the greatest width, in pixels. They differ where a
    transposed convolution's kernel is not a multiple of its stride: there some elements read more than others. step: by
    how many pixels the field of the next element lies further down, and further right.
    """

    sides: tuple[tuple[int, int], tuple[int, int]]
    step: tuple[Fraction, Fraction]

    def __str__(self) -> str:
        """ "44/1": a square of 44 pixels, 1 further for the next element. "40-44/1", "44x20/1x2" where they differ."""
        sides = [f"{least}" if least == most else f"{least}-{most}" for least, most in self.sides]
        return "/".join("x".join(dict.fromkeys(map(str, each))) for each in (sides, self.step))


def field(layers: Layers, name: str) -> Field:
    """The receptive field of a layer's elements."""
    rows, columns = (_sides(layers, name, axis) for axis in (0, 1))
    return Field((rows, columns), (_step(layers, name, 0), _step(layers, name, 1)))


def _sides(layers: Layers, name: str, axis: int) -> tuple[int, int]:
    """The least and the greatest side."""
    windows = [each[axis] for layer in layers.values() for _, each in layer.reads]
    period = prod(window.stride for window in windows if window.transposed)  # after so many elements, all is repeated
    spans = (_spans(layers, name, axis, position, edges=False)[0] for position in range(period))
    sides = [len(span.get(IMAGE, ())) for span in spans]
    return min(sides), max(sides)


def _step(layers: Layers, name: str, axis: int) -> Fraction:
    """The distance in pixels of two neighbours' fields; all ways to the image agree."""
    if name == IMAGE:
        return Fraction(1)
    source, windows = layers[name].reads[0]
    window = windows[axis]
    return _step(layers, source, axis) * (Fraction(1, window.stride) if window.transposed else window.stride)


def output_gradients(ops: Operations, layers: Layers, dlogits: Array) -> dict[str, Array]:
    """The gradient of each layer's output, the image's among them, given that of the logits. By the chain rule."""
    gradients = {next(reversed(layers)): dlogits}
    for layer in reversed(layers.values()):
        if layer.call is not None:
            found = input_gradients(ops, layer, gradients[layer.name])
            for argument, source in layer.sources.items():
                before = gradients.get(source)  # from another layer that reads it
                gradients[source] = found[argument] if before is None else ops.add(before, found[argument])
    return {name: gradients[name] for name in layers}
