"""Training an FCN on M2NIST images, which are composed afresh for every step, composed once, or read from files."""

from dataclasses import asdict, replace
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from tinyfcn.data import load_digits, read_m2nist, split_indices
from tinyfcn.devices.device import Array
from tinyfcn.errors import CheckpointError
from tinyfcn.metrics import SegmentationScore
from tinyfcn.model import saved_design
from tinyfcn.networks import Design, Network
from tinyfcn.operations import on
from tinyfcn.reference.compose_m2nist import compose_m2nist
from tinyfcn.runs import RESULT, Run, checked_parameters, load_tensors, state_file
from tinyfcn.training.loop import Reporter, Trainer
from tinyfcn.training.parallel import ParallelNetwork
from tinyfcn.training.settings import FcnSettings, same_data, settings_of
from tinyfcn.training.sources import (
    Composed,
    Stored,
    as_bytes,
    composed_test,
    design_labels,
    digest,
    digits_digest,
    m2nist_part,
    m2nist_test,
)

EVALUATION_BATCH = {"cpu": 20, "emulator": 20, "cuda": 200}  # the layers' outputs of such a batch take some 200 MB
SHOWN = 10  # images in the figure of masks; the figure of labels shows half as many, twice as large


class FcnTrainer(Trainer):
    """Trains a network that names the digit at every pixel of M2NIST images."""

    kind = "fcn"
    settings: FcnSettings

    def __init__(self, settings: FcnSettings, reporter: Reporter) -> None:
        self.settings = settings
        design = settings.design
        ops = on(settings.device)
        self.network = design.build(ops, settings.seed)
        self._load_images(reporter)
        self.parallel = ParallelNetwork(self.network, settings.threads)
        self.steps = settings.steps
        self.evaluate_every = ceil(settings.steps / settings.evaluations)
        self.first_trained = self.network.first_trained(design.freeze)
        self.state = self.adam_state(self.network.l2_coefficients(settings.l2)[self.first_trained :])
        self.ignore_index = design.ignore_index
        self.unlabelled = settings.unlabelled

    def _load_images(self, reporter: Reporter) -> None:
        settings, ops, design = self.settings, self.network.ops, self.settings.design
        chosen = (settings.batch, settings.seed)
        self.dataset = settings.dataset
        if settings.m2nist is not None:
            files = read_m2nist(Path(settings.m2nist), reporter.notice)
            train, _ = split_indices(len(files))
            self.batches = Stored(ops, *m2nist_part(design, files, train), *chosen)
            self.test_images, self.test_labels = m2nist_test(ops, design, files)
            self.data = digest(files.images, files.labels)
            return
        data_dir = Path(settings.data_dir) if settings.data_dir else None
        digits = load_digits("train", settings.dataset, data_dir, reporter.notice)
        self.dataset = digits.source
        test_digits = load_digits("test", digits.source, data_dir, reporter.notice)
        self.test_images, self.test_labels = composed_test(ops, design, test_digits)
        self.data = digits_digest(digits, test_digits)
        if settings.fixed is None:
            self.batches = Composed(ops, digits, design, *chosen)
        else:
            images, labels = compose_m2nist(digits.images, digits.labels, settings.seed, 0, settings.fixed)
            self.batches = Stored(ops, as_bytes(images), design_labels(design, labels), *chosen)

    def begin(self) -> None:
        if self.settings.cnn is not None:
            self.network.load(pretrained_weights(self.network, Path(self.settings.cnn)))

    def measure(self) -> None:
        design, part = self.settings.design, slice(EVALUATION_BATCH[self.network.ops.device_name])
        score = SegmentationScore(design.classes, design.background)
        count_pixels(self.network, score, design.ignore_index, self.test_images[part], self.test_labels[part])
        self._shown()

    def _shown(self) -> Array:
        """The probabilities of the images in the figures, (N, classes, H, W)."""
        return self.network.ops.softmax(self.network.forward(self.test_images[:SHOWN]))

    def evaluate(self) -> dict[str, Any]:
        return evaluate_fcn(self.parallel, self.settings.design, self.test_images, self.test_labels)

    def metrics(self, result: dict[str, Any]) -> dict[str, Any]:
        rest = {name: value for name, value in result.items() if name != "loss"}
        return {"test_loss": result["loss"], **rest}

    def draw(self, run: Run) -> None:
        from tinyfcn import figures  # late, since matplotlib is slow to import

        ops, design = self.network.ops, self.settings.design
        p = ops.to_numpy(self._shown())
        images, labels = as_bytes(ops.to_numpy(self.test_images[:SHOWN])), ops.to_numpy(self.test_labels[:SHOWN])
        figures.learning_curves(run.folder / "learning-curves.png", run.metrics())
        true = np.stack([labels == channel for channel in range(p.shape[1])], axis=1).astype(np.float32)
        figures.mask_grid(run.folder / "masks.png", images, p, true)
        if not design.network_class.has_background:
            figures.mask_grid(run.folder / "masks-scaled-by-panel.png", images, p, true, scale="panel")
        few = slice(0, SHOWN // 2)
        figures.label_overview(
            run.folder / "labels.png",
            images[few],
            labels[few],
            p[few].argmax(axis=1),
            max(design.classes, design.background + 1),
        )
        self._draw_pretraining(run)

    def _draw_pretraining(self, run: Run) -> None:
        """Draws how much pretraining helps, if a run in the same folder differs in nothing else."""
        from tinyfcn import figures

        def compared(settings: FcnSettings) -> FcnSettings:
            # Without pretraining there are no weights to freeze.
            design = replace(settings.design, freeze=False)
            return replace(settings, cnn=None, design=design, device="auto", threads=1, data_dir=None)

        mine = replace(self.settings, dataset=self.dataset)
        beside = [Run(path.parent) for path in run.folder.parent.glob("*/result.json")]
        others = []
        for other in beside:
            try:
                theirs = settings_of(other)
                other.metrics()
            except CheckpointError:
                continue  # the folder may hold other things than runs of this program
            if not isinstance(theirs, FcnSettings) or (theirs.cnn is None) == (mine.cnn is None):
                continue
            if compared(theirs) == compared(mine) and same_data(other, self.data):
                others.append(other)
        if not others:
            return
        newest = max(others, key=lambda other: (other.folder / RESULT).stat().st_mtime)
        pair = (run, newest) if mine.cnn else (newest, run)
        curves = dict(zip(("pretrained", "from scratch"), (each.metrics() for each in pair), strict=True))
        metric = "ink_iou" if self.settings.design.labels == "binary" else "digit_miou"
        figures.learning_curves(run.folder / "pretraining.png", curves, metric=metric)

    def config(self) -> dict[str, Any]:
        return {
            "command": "train-fcn",
            **asdict(self.settings),
            "dataset": self.dataset,
            "device": self.network.ops.device_name,
            "data": self.data,
            "parameters": int(self.network.parameters.size),
        }


def pretrained_weights(network: Network, path: Path) -> dict[str, np.ndarray]:
    """The classifier's weights with which a network begins, from a run folder or a safetensors file.

    Raises:
        CheckpointError: no such file, another network than a classifier, a wrong shape, NaN.
    """
    source = state_file(path)
    tensors, metadata = load_tensors(source)
    design = saved_design(metadata, source)
    if design != Design("classifier"):
        raise CheckpointError(
            f"{source} holds no classifier but the design {design.name}: give --cnn a run of train-cnn"
        )
    shapes = network.parameter_shapes()
    wanted = {name: shape for name, shape in shapes.items() if name.split(".")[0] in network.pretrained}
    return checked_parameters(tensors, wanted, source)


def evaluate_fcn(parallel: ParallelNetwork, design: Design, images: Array, labels: Array) -> dict[str, Any]:
    """All figures of SegmentationScore, measured on network inputs (N, 1, H, W) and labels int32 (N, H, W)."""
    ops = parallel.ops
    score = SegmentationScore(design.classes, design.background)

    def work(network: Network, part: slice) -> tuple[Array, Array, Array]:
        return count_pixels(network, score, design.ignore_index, images[part], labels[part])

    for confusion, overlap, loss in parallel.map(work, len(labels), EVALUATION_BATCH[ops.device_name]):
        score.add(ops.to_numpy(confusion), ops.to_numpy(overlap), float(ops.to_numpy(loss)[0]))
    return score.result()


def count_pixels(
    network: Network, score: SegmentationScore, ignore_index: int | None, images: Array, labels: Array
) -> tuple[Array, Array, Array]:
    """What `score` counts in a batch of test images, and the loss."""
    logits = network.forward(images)
    loss, _ = network.ops.softmax_cross_entropy(logits, labels, ignore_index)
    return *score.count(network.ops, logits, labels), loss
