"""Training an FCN on M2NIST pictures: composed afresh for every step, once, or read from files."""

import json
from dataclasses import asdict
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from tinyfcn.data import load_digits, read_m2nist, split_indices
from tinyfcn.errors import CheckpointError
from tinyfcn.metrics import SegmentationScore
from tinyfcn.networks import BACKGROUND, Design, Network
from tinyfcn.operations import on
from tinyfcn.reference.compose_m2nist import compose_m2nist
from tinyfcn.runs import RESULT, STATE, Run, checked_parameters, load_tensors
from tinyfcn.training.loop import Reporter, Trainer
from tinyfcn.training.parallel import ParallelNetwork
from tinyfcn.training.settings import FcnSettings
from tinyfcn.training.sources import (
    Composed,
    Stored,
    as_bytes,
    composed_test,
    design_labels,
    m2nist_part,
    m2nist_test,
)

EVALUATION_BATCH = {"cpu": 20, "emulator": 20, "cuda": 200}  # whose layers' outputs take some 200 MB
SHOWN = 10  # pictures in the figure of masks; half as many, twice as large, in that of labels


class FcnTrainer(Trainer):
    """M2NIST pictures and a network that names the digit at every pixel."""

    kind = "fcn"

    def __init__(self, settings: FcnSettings, reporter: Reporter) -> None:
        self.settings = settings
        design = settings.design
        ops = on(settings.device)
        self.network = design.build(ops, settings.seed)
        self._load_pictures(reporter)
        self.parallel = ParallelNetwork(self.network, settings.threads)
        self.steps = settings.steps
        self.evaluate_every = ceil(settings.steps / settings.evaluations)
        self.first_trained = self.network.first_trained(design.freeze)
        self.state = self.adam_state(self.network.l2_coefficients(settings.l2)[self.first_trained :])
        self.ignore_index = BACKGROUND if design.name == "early" else None
        self.unlabelled = settings.unlabelled

    def _load_pictures(self, reporter: Reporter) -> None:
        settings, ops, design = self.settings, self.network.ops, self.settings.design
        chosen = (settings.batch, settings.seed)
        self.dataset = settings.dataset
        if settings.m2nist is not None:
            files = read_m2nist(Path(settings.m2nist))
            train, _ = split_indices(len(files))
            self.pictures = Stored(ops, *m2nist_part(design, files, train), *chosen)
            self.test_pictures, self.test_labels = m2nist_test(ops, design, files)
            return
        data_dir = Path(settings.data_dir) if settings.data_dir else None
        digits = load_digits("train", settings.dataset, data_dir, reporter.notice)
        self.dataset = digits.source
        test_digits = load_digits("test", digits.source, data_dir, reporter.notice)
        self.test_pictures, self.test_labels = composed_test(ops, design, test_digits)
        if settings.fixed is None:
            self.pictures = Composed(ops, digits, design, *chosen)
        else:
            pictures, labels = compose_m2nist(digits.images, digits.labels, settings.seed, 0, settings.fixed)
            self.pictures = Stored(ops, as_bytes(pictures), design_labels(design, labels), *chosen)

    def begin(self) -> None:
        if self.settings.cnn is not None:
            self.network.load(pretrained_weights(self.network, Path(self.settings.cnn)))

    def evaluate(self) -> dict[str, Any]:
        return evaluate_fcn(self.parallel, self.settings.design, self.test_pictures, self.test_labels)

    def record(self, result: dict[str, Any]) -> dict[str, Any]:
        rest = {name: value for name, value in result.items() if name != "loss"}
        return {"test_loss": result["loss"], **rest}

    def draw(self, run: Run) -> None:
        from tinyfcn import figures  # matplotlib takes its time to import

        ops, design = self.network.ops, self.settings.design
        shown = self.test_pictures[:SHOWN]
        p = ops.to_numpy(ops.softmax(self.network.forward(shown)))
        pictures, labels = as_bytes(ops.to_numpy(shown)), ops.to_numpy(self.test_labels[:SHOWN])
        figures.learning_curves(run.folder / "learning-curves.png", run.metrics())
        true = np.stack([labels == channel for channel in range(p.shape[1])], axis=1).astype(np.float32)
        figures.mask_grid(run.folder / "masks.png", pictures, p, true)
        if design.name == "early":
            figures.mask_grid(run.folder / "masks-scaled-by-panel.png", pictures, p, true, scale="panel")
        few = slice(0, SHOWN // 2)
        figures.label_overview(
            run.folder / "labels.png",
            pictures[few],
            labels[few],
            p[few].argmax(axis=1),
            max(design.classes, design.background + 1),
        )
        self._draw_pretraining(run)

    def _draw_pretraining(self, run: Run) -> None:
        """Both curves of whether pretraining helps, if a run beside this one differs in just that."""
        from tinyfcn import figures

        def kind(config: dict[str, Any]) -> dict[str, Any]:
            elsewhere = ("cnn", "device", "threads", "data_dir")
            rest = {name: value for name, value in config.items() if name not in elsewhere}
            # Without pretraining there is nothing to freeze.
            return {**rest, "design": {**config["design"], "freeze": None}}

        mine = run.config()
        beside = [Run(path.parent) for path in run.folder.parent.glob("*/result.json")]
        others = []
        for other in beside:
            try:
                theirs = other.config()
                if kind(theirs) == kind(mine) and (theirs["cnn"] is None) != (mine["cnn"] is None):
                    others.append(other)
            except (CheckpointError, KeyError, TypeError):
                continue  # what lies beside a run need not be a run of this program
        if not others:
            return
        newest = max(others, key=lambda other: (other.folder / RESULT).stat().st_mtime)
        pair = (run, newest) if mine["cnn"] else (newest, run)
        records = dict(zip(("pretrained", "from scratch"), (each.metrics() for each in pair), strict=True))
        metric = "ink_iou" if self.settings.design.labels == "binary" else "digit_miou"
        figures.learning_curves(run.folder / "pretraining.png", records, metric=metric)

    def config(self) -> dict[str, Any]:
        return {
            "command": "train-fcn",
            **asdict(self.settings),
            "dataset": self.dataset,
            "device": self.network.ops.device_name,
            "parameters": int(self.network.parameters.size),
        }


def pretrained_weights(network: Network, path: Path) -> dict[str, np.ndarray]:
    """The classifier's weights that a network begins with, from a run folder or a safetensors file.

    Raises:
        CheckpointError: no such file, not of a classifier, a wrong shape, NaN.
    """
    source = path / STATE if path.is_dir() else path
    tensors, metadata = load_tensors(source)
    if metadata.get("design") != json.dumps({"name": "classifier"}):
        raise CheckpointError(
            f"{source} is not of a classifier but of the design {metadata.get('design')}: give --cnn a run of train-cnn"
        )
    shapes = network.parameter_shapes()
    wanted = {name: shape for name, shape in shapes.items() if name.split(".")[0] in network.pretrained}
    return checked_parameters(tensors, wanted, source)


def evaluate_fcn(parallel: ParallelNetwork, design: Design, pictures: Any, labels: Any) -> dict[str, Any]:
    """All figures of SegmentationScore on pictures (N, 1, H, W) and labels int32 (N, H, W) that are on the device."""
    ops = parallel.ops
    ignore_index = BACKGROUND if design.name == "early" else None
    score = SegmentationScore(design.classes, design.background)

    def work(network: Network, part: slice) -> tuple[Any, Any, Any]:
        logits = network.forward(pictures[part])
        loss, _ = ops.softmax_cross_entropy(logits, labels[part], ignore_index)
        return *score.count(ops, logits, labels[part]), loss

    for confusion, overlap, loss in parallel.map(work, len(labels), EVALUATION_BATCH[ops.device_name]):
        score.add(ops.to_numpy(confusion), ops.to_numpy(overlap), float(ops.to_numpy(loss)[0]))
    return score.result()
