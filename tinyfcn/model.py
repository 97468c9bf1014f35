"""A trained network, loaded from its run: it names the digits in images."""

import copy
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tinyfcn.errors import CheckpointError
from tinyfcn.images import predict_image
from tinyfcn.networks import Design, Network
from tinyfcn.operations import on
from tinyfcn.runs import STATE, Run, checked_parameters, load_tensors, parsed_object, state_file


class Model:
    """A network with trained weights. `network` gives access to every layer, `design` says which one it is.

    Threads may share a model: its answers do not depend on what other threads ask. Afterwards network.outputs are those
    of the last answer.
    """

    def __init__(self, design: Design, network: Network) -> None:
        self.design = design
        self.network = network

    def probabilities(self, x: np.ndarray) -> np.ndarray:
        """Softmax of the network's output, float32 (N, classes, h, w), for x (N, 1, H, W), (byte - 127) / 127.

        H and W must be multiples of 4 for an FCN; a classifier has one output position for every 4 pixels.
        """
        network, ops = copy.copy(self.network), self.network.ops  # a copy keeps its own outputs
        logits = network.forward(ops.asarray(x.astype(np.float32)))
        self.network.outputs = network.outputs
        return ops.to_numpy(ops.softmax(logits))

    def predict(self, image: np.ndarray, name: str = "the image") -> tuple[np.ndarray, np.ndarray]:
        """Labels uint8 (H, W) and masks uint8 (classes, H, W), 255 for certain, of an image of any size.

        Args:
            image: uint8 (H, W), white digits on black, each about 20 pixels high as in MNIST.
            name: the name of the image in errors.

        Raises:
            DataError: the image is too small to hold a digit.
            CheckpointError: the network is a classifier, which has no masks.
        """
        if not self.network.per_pixel:
            raise CheckpointError("a classifier names whole digits and makes no masks: predict with an FCN's run")
        return predict_image(self.probabilities, image, self.network.receptive_field, name=name)


def load(run: str | Path, device: str = "auto") -> Model:
    """The network of a run folder, or of a state.safetensors, with its weights.

    Raises:
        CheckpointError: not a run, a truncated or foreign file, a tensor of a wrong shape or with NaN.
        DeviceError: the device is not available on this machine.
    """
    path = Path(run)
    is_folder = os.path.isdir(path)
    if is_folder and not os.path.exists(path / STATE):
        Run(path).config()  # raises if this is not a run at all
        raise CheckpointError(f"{path} has no {STATE} yet: its training has not been saved once")
    source = state_file(path)
    tensors, metadata = load_tensors(source)
    design = saved_design(metadata, source)
    network = design.build(on(device))
    network.load(checked_parameters(tensors, network.parameter_shapes(), source))
    return Model(design, network)


def saved_design(metadata: Mapping[str, str], source: Path) -> Design:
    """The design that the metadata of a state.safetensors describe; CheckpointError if they do not."""
    fault = f"{source} does not say which network it holds: its design"
    if "design" not in metadata:
        raise CheckpointError(f"{fault} is missing")
    try:
        return Design.saved(parsed_object(metadata["design"], fault))
    except ValueError as error:
        raise CheckpointError(f"{fault}: {error}") from None
