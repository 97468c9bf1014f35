"""Training the classifier on MNIST."""

from dataclasses import asdict
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from tinyfcn.data import Digits, load_digits
from tinyfcn.networks import Classifier, Network
from tinyfcn.operations import on
from tinyfcn.reference import compose_m2nist
from tinyfcn.runs import Run
from tinyfcn.training.loop import Reporter, Trainer
from tinyfcn.training.parallel import ParallelNetwork
from tinyfcn.training.settings import ClassifierSettings
from tinyfcn.training.sources import TEST_SEED, Stored, as_bytes

EVALUATION_BATCH = 250


class ClassifierTrainer(Trainer):
    """MNIST's digits, or the built-in ones, and the classifier."""

    kind = "cnn"

    def __init__(self, settings: ClassifierSettings, reporter: Reporter) -> None:
        self.settings = settings
        data_dir = Path(settings.data_dir) if settings.data_dir else None
        train = load_digits("train", settings.dataset, data_dir, reporter.notice)
        self.test = load_digits("test", train.source, data_dir, reporter.notice)
        self.source = train.source
        ops = on(settings.device)
        self.network = Classifier(ops, settings.seed)
        self.parallel = ParallelNetwork(self.network, settings.threads)
        self.digits = Stored(ops, train.images, train.labels.astype(np.int32), settings.batch, settings.seed)
        self.steps = ceil(settings.epochs * len(train) / settings.batch)
        self.evaluate_every = ceil(len(train) / settings.batch)
        no_l2 = np.zeros(self.network.parameters.shape, np.float32)
        self.state = self.adam_state(no_l2)

    def batch(self, step: int) -> tuple[Any, Any]:
        return self.digits.batch(step)

    def evaluate(self) -> dict[str, Any]:
        result, self.probabilities = evaluate_classifier(self.parallel, self.test)
        return result

    def record(self, result: dict[str, Any]) -> dict[str, Any]:
        return {"test_loss": result["loss"], "test_accuracy": result["accuracy"]}

    def draw(self, run: Run) -> None:
        from tinyfcn import figures  # matplotlib takes its time to import

        figures.learning_curves(run.folder / "learning-curves.png", run.metrics())
        predicted = self.probabilities.argmax(axis=1)
        confidence = self.probabilities.max(axis=1)
        figures.mistakes(run.folder / "mistakes.png", self.test.images, self.test.labels, predicted, confidence)
        pictures, _ = compose_m2nist(self.test.images, self.test.labels, TEST_SEED, 0, 1)
        ops = self.network.ops
        scores = ops.to_numpy(ops.softmax(self.network.forward(ops.asarray(pictures))))
        figures.score_map(run.folder / "score-map.png", as_bytes(pictures)[0], scores[0])

    def config(self) -> dict[str, Any]:
        return {
            "command": "train-cnn",
            **asdict(self.settings),
            "dataset": self.source,
            "device": self.network.ops.device_name,
            "parameters": int(self.network.parameters.size),
        }


def evaluate_classifier(parallel: ParallelNetwork, test: Digits) -> tuple[dict[str, Any], np.ndarray]:
    """{"accuracy", "loss"} on the test digits, and the probabilities, float32 (N, 10)."""
    ops = parallel.ops
    images = ops.asarray(test.images)

    def work(network: Network, part: slice) -> tuple[np.ndarray, float]:
        indices = np.arange(part.start, part.stop, dtype=np.int32)
        logits = network.forward(ops.gather_normalise(images, ops.asarray(indices)))[:, :, 0, 0]
        labels = ops.asarray(test.labels[part].astype(np.int32))
        loss, _ = ops.softmax_cross_entropy(logits, labels)
        return ops.to_numpy(ops.softmax(logits)), float(ops.to_numpy(loss)[0]) * len(indices)

    done = parallel.map(work, len(test), EVALUATION_BATCH)
    probabilities = np.concatenate([part for part, _ in done])
    accuracy = float((probabilities.argmax(axis=1) == test.labels).mean())
    return {"accuracy": accuracy, "loss": sum(loss for _, loss in done) / len(test)}, probabilities
