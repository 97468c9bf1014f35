"""A look inside a network while it reads one image: what each layer holds, what a pixel depends on, and how much."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tinyfcn.images import class_names
from tinyfcn.networks import Network
from tinyfcn.study.layers import IMAGE, Box, Layers, boxes, field, output_gradients, record

TOP = 3  # classes that are named at a pixel


@dataclass(frozen=True)
class Measures:
    """What a map holds. zeros: the share of its elements that are 0. norm: the root of the sum of their squares.

    dead: the channels that are 0 at every position of this image.
    """

    minimum: float
    maximum: float
    zeros: float
    norm: float
    dead: list[int]

    @classmethod
    def of(cls, values: np.ndarray) -> "Measures":
        """The measures of a map (C, H, W)."""
        dead = np.flatnonzero(~values.any(axis=(1, 2)))
        norm = float(np.sqrt(np.square(values, dtype=np.float64).sum()))
        return cls(float(values.min()), float(values.max()), float((values == 0).mean()), norm, dead.tolist())


@dataclass(frozen=True)
class Spread:
    """How the gradient of a logit by the image spreads over the box that the logit depends on.

    gradient: (H, W). box: of the image. middle: the rows and columns in the middle of the field, half as high and half
    as wide, those on the image. share: of the sum of the gradient's absolute values, what lies there. area: of the box,
    what lies there, which is the share that an even spread would have.

    Luo, Li, Urtasun & Zemel, "Understanding the effective receptive field in deep convolutional neural networks"
    (2016).
    """

    gradient: np.ndarray
    box: Box
    middle: tuple[range, range]
    share: float
    area: float


class Trace:
    """A network, an image and all that the network computes of it.

    layers: see `record`. maps: each layer's output on the host, (C, H, W). labels: the class of each position of the
    logits, (H, W). probabilities: (classes, H, W).

    Args:
        network: its parameters are read, and it stays as it is.
        x: the image, float32 (1, 1, H, W), (byte - 127) / 127.

    Raises:
        TinyfcnError: as `record`.
    """

    def __init__(self, network: Network, x: np.ndarray) -> None:
        self.network, self.ops = network, network.ops
        self.layers: Layers = record(network, self.ops.asarray(x))
        self.maps = {name: self.ops.to_numpy(layer.output)[0] for name, layer in self.layers.items()}
        self.logits = self.layers[next(reversed(self.layers))]
        self.probabilities = self.ops.to_numpy(self.ops.softmax(self.logits.output))[0]
        self.labels = self.probabilities.argmax(axis=0)
        self.names = class_names(len(self.probabilities))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the logits' map."""
        return self.logits.size

    def measures(self) -> dict[str, Measures]:
        """What each layer's map holds."""
        return {name: Measures.of(values) for name, values in self.maps.items()}

    def top(self, h: int, w: int) -> list[tuple[str, float]]:
        """The likeliest classes at a position, each with its probability."""
        likeliest = np.argsort(-self.probabilities[:, h, w], kind="stable")[:TOP]
        return [(self.names[k], float(self.probabilities[k, h, w])) for k in likeliest]

    def boxes(self, h: int, w: int) -> dict[str, Box]:
        """What the logits at a position depend on, in every layer."""
        return boxes(self.layers, self.logits.name, h, w)

    def spread(self, h: int, w: int) -> Spread:
        """The gradient by the image of the logit of the predicted class at a position."""
        dlogits = np.zeros(self.logits.output.shape, self.logits.output.dtype)
        dlogits[0, self.labels[h, w], h, w] = 1
        found = output_gradients(self.ops, self.layers, self.ops.asarray(dlogits))
        gradient = self.ops.to_numpy(found[IMAGE])[0, 0]
        box = self.boxes(h, w)[IMAGE]
        rows, columns = (
            range(max(side.start + len(side) // 4, 0), min(side.stop - len(side) // 4, size))
            for side, size in zip(box.field, gradient.shape, strict=True)
        )
        inside = gradient[rows.start : rows.stop, columns.start : columns.stop]
        share = float(np.abs(inside).sum() / max(np.abs(gradient).sum(), np.finfo(np.float32).tiny))
        return Spread(gradient, box, (rows, columns), share, inside.size / (len(box.rows) * len(box.columns)))

    def gradients(
        self, labels: np.ndarray, ignore_index: int | None, unlabelled: str = "zero"
    ) -> tuple[float, dict[str, np.ndarray]]:
        """The loss against labels (H, W) and its gradient by the output of each layer, (C, H, W), by name.

        ignore_index, unlabelled: as in softmax_cross_entropy.
        """
        ops = self.ops
        given = ops.asarray(labels[None].astype(np.int32))
        loss, dlogits = ops.softmax_cross_entropy(self.logits.output, given, ignore_index, unlabelled)
        found = output_gradients(ops, self.layers, dlogits)
        return float(ops.to_numpy(loss)[0]), {name: ops.to_numpy(each)[0] for name, each in found.items()}

    def layers_as_json(self) -> list[dict[str, Any]]:
        """Each layer for a JSON file: how it is made, what it holds, its receptive field in pixels."""
        found = []
        for name, measures in self.measures().items():
            layer, seen = self.layers[name], field(self.layers, name)
            sizes = {"shape": list(self.maps[name].shape), "bytes": layer.nbytes, "kept": layer.is_kept}
            sees = {"field": seen.sides, "step": [float(step) for step in seen.step]}
            found.append({"name": name, **layer.facts, **sizes, **asdict(measures), **sees})
        return found

    def position_as_json(self, h: int, w: int, spread: Spread) -> dict[str, Any]:
        """A position of the logits for a JSON file. Of rows and columns it has the first and the last."""

        def ends(spans: tuple[range, range]) -> dict[str, list[int]]:
            rows, columns = ([span[0], span[-1]] for span in spans)
            return {"rows": rows, "columns": columns}

        seen = {
            name: {**ends((box.rows, box.columns)), "field": ends(box.field), "padding": box.padding}
            for name, box in self.boxes(h, w).items()
        }
        middle = {**ends(spread.middle), "share": spread.share, "area": spread.area}
        return {
            "position": [h, w],
            "label": self.names[self.labels[h, w]],
            "top": self.top(h, w),
            "boxes": seen,
            "middle": middle,
            "gradient": spread.gradient.tolist(),
        }
