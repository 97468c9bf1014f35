"""Training the classifier on MNIST."""

from dataclasses import asdict
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from tinyfcn.data import load_digits
from tinyfcn.devices.device import Array
from tinyfcn.networks import Design, Network
from tinyfcn.operations import on
from tinyfcn.runs import Run
from tinyfcn.training.loop import Reporter, Trainer
from tinyfcn.training.parallel import ParallelNetwork
from tinyfcn.training.settings import ClassifierSettings
from tinyfcn.training.sources import TEST_SEED, Stored, as_bytes, digits_digest, digits_test

EVALUATION_BATCH = {"cpu": 250, "emulator": 250, "cuda": 2500}  # the layers' outputs of such a batch take some 90 MB


class ClassifierTrainer(Trainer):
    """Trains the classifier on MNIST's digits or the built-in ones."""

    kind = "cnn"
    settings: ClassifierSettings

    def __init__(self, settings: ClassifierSettings, reporter: Reporter) -> None:
        self.settings = settings
        data_dir = Path(settings.data_dir) if settings.data_dir else None
        train = load_digits("train", settings.dataset, data_dir, reporter.notice)
        self.test = load_digits("test", train.source, data_dir, reporter.notice)
        self.source = train.source
        self.data = digits_digest(train, self.test)
        ops = on(settings.device)
        self.test_images, self.test_labels = digits_test(ops, self.test)
        self.network = Design("classifier").build(ops, settings.seed)
        self.parallel = ParallelNetwork(self.network, settings.threads)
        self.batches = Stored(ops, train.images, train.labels, settings.batch, settings.seed)
        self.steps = ceil(settings.epochs * len(train) / settings.batch)
        self.evaluate_every = ceil(len(train) / settings.batch)
        no_l2 = np.zeros(self.network.parameters.shape, np.float32)
        self.state = self.adam_state(no_l2)

    def measure(self) -> None:
        part, device = slice(EVALUATION_BATCH[self.network.ops.device_name]), self.network.ops.device
        classify(self.network, self.test_images[part], self.test_labels[part])
        digits, labels = (device.empty(array.shape, np.uint8) for array in (self.test.images, self.test.labels))
        self._scored(digits, labels, device.empty((1,), np.int32))

    def _scored(self, digits: Array, labels: Array, step: int | Array = 0) -> tuple[Array, Array]:
        """An image composed of digits, (1, 1, 64, 84), and the probabilities at its positions, (1, 10, h, w)."""
        images, _ = self.network.ops.compose_m2nist(digits, labels, TEST_SEED, step, 1)
        return images, self.network.ops.softmax(self.network.forward(images))

    def evaluate(self) -> dict[str, Any]:
        result, self.probabilities = evaluate_classifier(self.parallel, self.test_images, self.test_labels)
        return result

    def metrics(self, result: dict[str, Any]) -> dict[str, Any]:
        return {"test_loss": result["loss"], "test_accuracy": result["accuracy"]}

    def draw(self, run: Run) -> None:
        from tinyfcn import figures  # late, since matplotlib is slow to import

        figures.learning_curves(run.folder / "learning-curves.png", run.metrics())
        predicted = self.probabilities.argmax(axis=1)
        confidence = self.probabilities.max(axis=1)
        figures.mistakes(run.folder / "mistakes.png", self.test.images, self.test.labels, predicted, confidence)
        ops = self.network.ops
        images, scores = map(ops.to_numpy, self._scored(ops.asarray(self.test.images), ops.asarray(self.test.labels)))
        figures.score_map(run.folder / "score-map.png", as_bytes(images)[0], scores[0])

    def config(self) -> dict[str, Any]:
        return {
            "command": "train-cnn",
            **asdict(self.settings),
            "dataset": self.source,
            "device": self.network.ops.device_name,
            "data": self.data,
            "parameters": int(self.network.parameters.size),
        }


def evaluate_classifier(parallel: ParallelNetwork, images: Array, labels: Array) -> tuple[dict[str, Any], np.ndarray]:
    """{"accuracy", "loss"} on test digits (N, 1, 28, 28), and the probabilities, float32 (N, 10)."""
    ops = parallel.ops

    def work(network: Network, part: slice) -> tuple[Array, Array]:
        return classify(network, images[part], labels[part])

    done = parallel.map(work, len(labels), EVALUATION_BATCH[ops.device_name])
    probabilities = np.concatenate([ops.to_numpy(part) for part, _ in done])
    accuracy = float((probabilities.argmax(axis=1) == ops.to_numpy(labels)).mean())
    loss = sum(float(ops.to_numpy(loss)[0]) * len(part) for part, loss in done) / len(labels)
    return {"accuracy": accuracy, "loss": loss}, probabilities


def classify(network: Network, images: Array, labels: Array) -> tuple[Array, Array]:
    """The probabilities (N, 10) of a batch of test digits, and the loss."""
    logits = network.forward(images)[:, :, 0, 0]
    loss, _ = network.ops.softmax_cross_entropy(logits, labels)
    return network.ops.softmax(logits), loss
