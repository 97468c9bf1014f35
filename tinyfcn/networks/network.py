"""What all networks share: what a design declares, flat arrays of parameters and gradients, every layer's output."""

import copy
import inspect
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from tinyfcn.devices.device import Array
from tinyfcn.networks.options import LABELS, OPTIONS, UNLABELLED, Option
from tinyfcn.ops import Operations
from tinyfcn.packed_weight import FlatWeight, PackedWeight, packed_index, unpacked

if TYPE_CHECKING:
    from tinyfcn.networks.design import Design

Shapes = Mapping[str, tuple[tuple[int, ...], int]]  # a layer's name -> its weight's shape, its bias's length

LAST_LAYER = 0.1  # the last layer's initial weights, as a share of He's scale

DESIGNS: dict[str, type["Network"]] = {}  # the class of each design by its name, entered when the class is defined

# The declarations of a network's class, each with its meaning, for the message when one is missing.
DECLARATIONS = {
    "name": 'the design\'s name in Design and --design, such as name = "skip"',
    "summary": 'what the design is, in one line of the help, such as summary = "with skip connections"',
    "options": "the options of networks/options.py that it takes, such as options = (LABELS, L2), or ()",
    "recipe": "the settings that it trains best with, such as recipe = Recipe(learning_rate=1e-2)",
    "has_background": "whether its last class is the background, such as has_background = True",
    "receptive_field": "the side in pixels of the square of input that an output sees, such as receptive_field = 44",
}


@dataclass(frozen=True)
class Recipe:
    """The settings that a design trains best with: the defaults of its training, see training/settings.py.

    freeze: whether the pretrained layers keep the classifier's weights.
    """

    learning_rate: float
    warmup: int = 0
    beta2: float = 0.999
    schedule: str = "cosine"
    freeze: bool = False


class Network(ABC):
    """A network whose forward and backward passes are written out by its subclasses.

    A subclass is a design: it declares what DECLARATIONS lists, and is then found by its name in DESIGNS.

    parameter["conv1.weight"] and gradient["conv1.weight"] are views of the flat arrays `parameters` and `gradients`,
    so that Adam updates all of them in one launch. After `forward`, outputs["pool1"] is a layer's output. After
    `backward`, output_gradients["pool1"] is the gradient of the layer's pre-activation, of a pooling at the max
    indices; of a layer without ReLU it is the gradient of its output.

    copy.deepcopy and pickle give a network with parameters and gradients of its own, copy.copy one that shares them.
    Neither has the outputs of a `forward`.

    Args:
        ops: where to compute.
        design: the options. Only those that the class takes differ from their defaults.
        seed: of the initial weights, which are made on the host and so are the same on every device.
        dtype: float64 is for gradient checks.

    Raises:
        TypeError: when a class is defined that lacks a declaration.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    options: ClassVar[tuple[Option, ...]]
    recipe: ClassVar[Recipe]
    has_background: ClassVar[bool]
    receptive_field: int  # of the class; a network whose options change it has its own
    per_pixel: ClassVar[bool] = True  # False: its logits are of windows of the image, as the classifier's are
    pretrained: ClassVar[tuple[str, ...]] = ()  # the layers whose weights come from the classifier; they stand first

    shapes: Shapes  # in the order of `parameters`; the last one gives the logits
    strides: Mapping[str, int] = {}  # of the transposed convolutions

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if inspect.isabstract(cls):
            return
        who = f"{cls.__module__}.{cls.__qualname__}"
        # A name is a class's own: one that inherits it would take its parent's place in DESIGNS.
        missing = [
            each for each in DECLARATIONS if not hasattr(cls, each) or (each == "name" and each not in vars(cls))
        ]
        if missing:
            means = "; ".join(f"{each}, {DECLARATIONS[each]}" for each in missing)
            raise TypeError(f"{who} is a network and must declare {means}")
        if not isinstance(cls.receptive_field, int) or cls.receptive_field < 1:
            raise TypeError(f"{who}: receptive_field must be a number of pixels from 1, got {cls.receptive_field!r}")
        for option in cls.options:
            if option not in OPTIONS:
                raise TypeError(
                    f"{who} takes an unknown option, {option!r}: add it to OPTIONS in networks/options.py "
                    "and as a field to Design in networks/design.py"
                )
        contradicting = UNLABELLED if cls.has_background else LABELS
        if contradicting in cls.options:
            flag, takers = contradicting.flag, contradicting.takers
            raise TypeError(f"{who} takes {flag}, an option for designs that have {takers}; see has_background")
        if cls.name in DESIGNS:
            taken = DESIGNS[cls.name]
            raise TypeError(f"{who}: the name {cls.name!r} is taken by {taken.__module__}.{taken.__qualname__}")
        DESIGNS[cls.name] = cls

    @classmethod
    def validate(cls, design: "Design") -> None:
        """ValueError if the design has options that exclude each other."""
        return

    def __init__(self, ops: Operations, design: "Design", seed: int = 0, dtype: Any = np.float32) -> None:
        self.ops, self.design = ops, design
        self.classes, self.freeze = design.classes, design.freeze
        values = initial_parameters(self.shapes, self.strides, seed)
        flat = np.concatenate([value.ravel() for value in values.values()]).astype(dtype)
        self.parameters = ops.asarray(flat)
        self.gradients = ops.asarray(np.zeros_like(flat))
        self.packs = ops.device.runs_kernels and not ops.device.naive
        self._name_parts()

    def _name_parts(self) -> None:
        """The views of the flat arrays, and no outputs."""
        self.parameter = views(self.parameters, self.parameter_shapes())
        self.gradient = views(self.gradients, self.parameter_shapes())
        self.outputs: dict[str, Array] = {}
        self.output_gradients: dict[str, Array] = {}
        self.packed: dict[str, PackedWeight] = {}
        self.joins = False

    def __getstate__(self) -> dict[str, Any]:
        """All but the views, which would become arrays of their own, and the outputs."""
        derived = {"parameter", "gradient", "outputs", "output_gradients", "packed", "joins"}
        return {name: value for name, value in vars(self).items() if name not in derived}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._name_parts()

    def replica(self) -> Self:
        """A network with the same parameters, shared, and its own gradients and outputs: for another thread."""
        twin = copy.copy(self)
        twin.gradients = self.ops.asarray(np.zeros(self.parameters.shape, self.parameters.dtype))
        twin._name_parts()
        return twin

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """All parameters' shapes by name, in the order of `parameters`."""
        return {
            name: shape
            for layer, (weight, channels) in self.shapes.items()
            for name, shape in ((f"{layer}.weight", weight), (f"{layer}.bias", (channels,)))
        }

    def _flat_weights(self) -> tuple[FlatWeight, ...]:
        """Where each layer's weight stands in `parameters`."""
        numbers = views(np.arange(self.parameters.size), self.parameter_shapes())
        starts = {layer: int(numbers[f"{layer}.weight"].flat[0]) for layer in self.shapes}
        return tuple(
            FlatWeight(starts[layer], shape, self.strides.get(layer, 1)) for layer, (shape, _) in self.shapes.items()
        )

    def first_trained(self, freeze: bool) -> int:
        """The index in `parameters` of the first one that training changes: the pretrained layers stand first."""
        if not freeze:
            return 0
        return sum(value.size for name, value in self.parameter.items() if name.split(".")[0] in self.pretrained)

    @abstractmethod
    def forward(self, x: Array) -> Array:
        """Logits from x (N, 1, H, W), (byte - 127) / 127."""

    @abstractmethod
    def backward(self, dlogits: Array) -> None:
        """Fills `gradients`, given the gradient of the last `forward`'s logits."""

    def loss(self, x: Array, labels: Array, ignore_index: int | None = None, unlabelled: str = "zero") -> Array:
        """The mean loss of a batch, shape (1,); fills `gradients`. labels: (N,), or (N, H, W) of each pixel.

        ignore_index and unlabelled are as in softmax_cross_entropy.
        """
        logits = self.forward(x)
        logits = logits.reshape(logits.shape[:2] + labels.shape[1:])
        loss, dlogits = self.ops.softmax_cross_entropy(logits, labels, ignore_index, unlabelled)
        self.backward(dlogits.reshape(*dlogits.shape, *[1] * (4 - dlogits.ndim)))
        return loss

    @contextmanager
    def packed_weights(self) -> Iterator[None]:
        """Packs all weights for the fast convolutions in one launch, on a side stream that the first layer joins.

        Elsewhere each convolution packs its own weight. The parameters must not change inside.
        """
        if self.packs:
            weights = self._flat_weights()
            with self.ops.side_stream():
                flat = self.ops.gather(self.parameters, self.ops.device.constant(packed_index(weights)))
            self.packed = dict(zip(self.shapes, unpacked(flat, weights), strict=True))
            self.joins = True
        try:
            yield
        finally:
            self.packed, self.joins = {}, False

    def weights(self, layer: str) -> dict[str, Any]:
        """A layer's weight, bias and packed weight: the arguments of its convolution, which is launched next."""
        if self.joins:
            self.ops.join()
            self.joins = False
        return {
            "weight": self.parameter[f"{layer}.weight"],
            "bias": self.parameter[f"{layer}.bias"],
            "packed": self.packed.get(layer),
        }

    def backward_weights(self, layer: str) -> dict[str, Any]:
        """A layer's weight, where its gradients go, and its packed weight: the arguments of its backward pass."""
        return {
            "weight": self.parameter[f"{layer}.weight"],
            "out": (self.gradient[f"{layer}.weight"], self.gradient[f"{layer}.bias"]),
            "packed": self.packed.get(layer),
        }

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


class LinearHead(Network):
    """A network whose last layer, `head`, is a 1x1 convolution of the output of a ReLU, that of the layer `features`.

    Its `loss` computes the head, the loss and their gradients in one launch, and stores no logits.
    """

    head: ClassVar[str]
    features: ClassVar[str]

    @abstractmethod
    def forward_features(self, x: Array) -> Array:
        """The output of the layer `features`, from x as `forward` takes it."""

    @abstractmethod
    def backward_features(self, dfeatures: Array) -> None:
        """Fills `gradients` but the head's, given the gradient of that layer's pre-activation."""

    def forward(self, x: Array) -> Array:
        features = self.forward_features(x)
        self.outputs[self.head] = self.ops.conv2d(features, **self.weights(self.head))
        return self.outputs[self.head]

    def backward(self, dlogits: Array) -> None:
        self.output_gradients[self.head] = dlogits
        features = self.outputs[self.features]
        dfeatures, _, _ = self.ops.conv2d_backward(
            dlogits, features, **self.backward_weights(self.head), through_relu=True
        )
        assert dfeatures is not None  # it was asked for
        self.backward_features(dfeatures)

    def loss(self, x: Array, labels: Array, ignore_index: int | None = None, unlabelled: str = "zero") -> Array:
        ops, features = self.ops, self.forward_features(x)
        weight, bias = self.parameter[f"{self.head}.weight"], self.parameter[f"{self.head}.bias"]
        labels = labels.reshape(features.shape[:1] + features.shape[2:])
        loss, dlogits, dfeatures = ops.linear_cross_entropy(
            features, weight, bias, labels, ignore_index, unlabelled, through_relu=True
        )
        self.output_gradients[self.head] = dlogits
        ops.conv2d_backward(dlogits, features, **self.backward_weights(self.head), need_dx=False)
        self.backward_features(dfeatures)
        return loss


def views(flat: Array, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    """Views of consecutive parts of a flat array, by name."""
    parts, start = {}, 0
    for name, shape in shapes.items():
        parts[name] = flat[start : start + prod(shape)].reshape(shape)
        start += prod(shape)
    return parts


def initial_parameters(shapes: Shapes, strides: Mapping[str, int], seed: int) -> dict[str, np.ndarray]:
    """Weights drawn from a normal distribution of variance 2 / fan-in, biases 0, by name.

    He et al., "Delving deep into rectifiers" (2015). Fan-in is the number of products that an output sums: in a
    transposed convolution of stride s, an output is computed from one in s * s of the kernel's weights. The last
    layer's weights are LAST_LAYER times as large as that: all classes begin about equally likely, and the loss near the
    logarithm of their number. Each layer has its own generator, from (seed, name), so its weights do not depend on
    which other layers there are.
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
