"""What all networks share: parameters and gradients in one flat array each, and every layer's output kept."""

import copy
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from math import prod
from typing import Any, Self

import numpy as np

from tinyfcn.ops import Operations

Shapes = Mapping[str, tuple[tuple[int, ...], int]]  # a layer's name -> its weight's shape, its bias's length


LAST_LAYER = 0.1  # of He's scale


class Network(ABC):
    """A network whose forward and backward passes are written out by its subclasses.

    parameter["conv1.weight"] and gradient["conv1.weight"] are views of the flat arrays `parameters` and `gradients`,
    so that Adam updates all of them in one launch. After `forward`, outputs["pool1"] is what a layer put out; after
    `backward`, output_gradients["pool1"] is the loss's gradient with respect to what its ReLU took (of a pooling: at
    the max indices), or to its output where it has no ReLU.

    Args:
        ops: where to compute.
        seed: of the initial weights, which are made on the host and so are the same on every device.
        dtype: float64 is for gradient checks on the cpu.
    """

    shapes: Shapes  # in the order in which they are kept; the last one gives the logits
    strides: Mapping[str, int] = {}  # of the transposed convolutions
    pretrained: tuple[str, ...] = ()  # the layers whose weights come from the classifier; they stand first

    def __init__(self, ops: Operations, seed: int, dtype: Any = np.float32) -> None:
        self.ops = ops
        values = initial_parameters(self.shapes, self.strides, seed)
        flat = np.concatenate([value.ravel() for value in values.values()]).astype(dtype)
        self.parameters = ops.asarray(flat)
        self.parameter = views(self.parameters, {name: value.shape for name, value in values.items()})
        self._own_gradients()

    def _own_gradients(self) -> None:
        self.gradients = self.ops.asarray(np.zeros(self.parameters.shape, self.parameters.dtype))
        self.gradient = views(self.gradients, self.parameter_shapes())
        self.outputs: dict[str, Any] = {}
        self.output_gradients: dict[str, Any] = {}

    def replica(self) -> Self:
        """The same network, parameters shared, with gradients and outputs of its own: for another thread."""
        twin = copy.copy(self)
        twin._own_gradients()
        return twin

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """All parameters' shapes by name."""
        return {name: value.shape for name, value in self.parameter.items()}

    def first_trained(self, freeze: bool) -> int:
        """Where in `parameters` those begin that training changes: the pretrained layers stand first."""
        if not freeze:
            return 0
        return sum(value.size for name, value in self.parameter.items() if name.split(".")[0] in self.pretrained)

    @abstractmethod
    def forward(self, x: Any) -> Any:
        """Logits from x (N, 1, H, W), (byte - 127) / 127."""

    @abstractmethod
    def backward(self, dlogits: Any) -> None:
        """Fills `gradients`, given the gradient of the logits of the last `forward`."""

    def weights(self, layer: str) -> tuple[Any, Any]:
        """A layer's weight and bias."""
        return self.parameter[f"{layer}.weight"], self.parameter[f"{layer}.bias"]

    def gradient_out(self, layer: str) -> tuple[Any, Any]:
        """Where a layer's dweight and dbias are to be written."""
        return self.gradient[f"{layer}.weight"], self.gradient[f"{layer}.bias"]

    def numpy_parameters(self) -> dict[str, np.ndarray]:
        """All parameters by name, on the host."""
        return {name: self.ops.to_numpy(value) for name, value in self.parameter.items()}

    def load(self, values: Mapping[str, np.ndarray]) -> None:
        """Sets the parameters named in `values`, NumPy arrays of the right shapes."""
        for name, value in values.items():
            self.ops.write(self.parameter[name], value.astype(self.parameters.dtype))

    def l2_coefficients(self, l2: float) -> np.ndarray:
        """`l2` for each weight of a transposed convolution, 0 elsewhere: the flat array that Adam takes."""
        return np.concatenate(
            [
                np.full(value.size, l2 * (name.endswith(".weight") and name.split(".")[0] in self.strides))
                for name, value in self.parameter.items()
            ]
        ).astype(np.float32)

    def activation_bytes(self) -> int:
        """The memory that the outputs of the last `forward` take."""
        return sum(output.nbytes for output in self.outputs.values())


def views(flat: Any, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Views of consecutive parts of a flat array, by name."""
    parts, start = {}, 0
    for name, shape in shapes.items():
        parts[name] = flat[start : start + prod(shape)].reshape(shape)
        start += prod(shape)
    return parts


def initial_parameters(shapes: Shapes, strides: Mapping[str, int], seed: int) -> dict[str, np.ndarray]:
    """Weights drawn from a normal distribution of variance 2 / fan-in, biases 0, by name.

    He et al., "Delving deep into rectifiers" (2015). Fan-in is the number of products that an output sums: in a
    transposed convolution of stride s each output meets one in s * s of the kernel's weights. The last layer's are
    LAST_LAYER times that, so that all classes begin about equally likely, with a loss near the logarithm of their
    number. Each layer has a generator of its own, from (seed, name), so that its weights do not depend on what other
    layers there are.
    """
    values = {}
    for layer, (shape, channels) in shapes.items():
        inputs = shape[0] / strides[layer] ** 2 if layer in strides else shape[1]
        fan_in = inputs * prod(shape[2:])
        generator = np.random.default_rng([seed, zlib.crc32(layer.encode())])
        scale = LAST_LAYER if layer == list(shapes)[-1] else 1
        values[f"{layer}.weight"] = generator.normal(0, scale * np.sqrt(2 / fan_in), shape)
        values[f"{layer}.bias"] = np.zeros(channels)
    return values
