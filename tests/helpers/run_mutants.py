"""Run folders with one fault each: every field of every file with values of wrong types, extremes and deep nesting.

`python tests/helpers/run_mutants.py DATA_DIR FOLDER COUNT` tries COUNT mutants and prints what became of them.
"""

import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from tinyfcn import figures, training
from tinyfcn.errors import TinyfcnError
from tinyfcn.model import load
from tinyfcn.runs import CONFIG, METRICS, STATE, Run
from tinyfcn.training import ClassifierSettings, FcnSettings, Reporter, Trainer, resume, start

MAX_LENGTH = 1000  # of a message
RAW = [  # JSON, or what somebody may take for JSON
    *("null", "true", "false", "0", "-0.0", "1", "2", "-1", "0.5", "1e-400", "1e39", "1e400", "-1e400"),
    *("NaN", "Infinity", "-Infinity", "2147483648", "4294967296", "1" + "0" * 400, "1" + "0" * 5000, "1.", "01", ""),
    *('""', '"x"', '"1"', '"nan"', '"skip"', '"auto"', '"\\u0000"', '"\\ud800"', '"a\\nb"', f'"{"x" * 100_000}"'),
    *("[]", "[null]", "[1, 2]", '["a"]', "{}", '{"a": 1}', '{"name": []}', '{"name": "early", "freeze": 0}'),
    *("[" * depth + "]" * depth for depth in (2, 100, 900, 5000, 100_000)),
    '{"a":' * 900 + "1" + "}" * 900,
]
SHAPES: list[tuple[int, ...]] = [(), (0,), (1,), (2,), (1, 1), (3, 1), (7554,), (2, 0)]
DTYPES = ["float16", "float32", "float64", "int8", "int32", "int64", "uint64", "bool"]
VALUES = [0, 1, -1, np.nan, np.inf, -np.inf, 1e38, 2**31 - 1, -(2**31)]


class Loop:
    """Stands in for the loop of training: reads all that it reads, and trains nothing."""

    def __init__(self, run: Run, trainer: Trainer, reporter: Reporter, resumed: bool) -> None:
        trainer.restore(run)
        lines = run.metrics()
        for metric in figures.METRICS:
            figures._series(lines, metric)


def exercise(folder: Path) -> None:
    """Reads a run folder by every way there is, but trains nothing and builds nothing of gigabytes."""
    load(folder, "cpu")
    settings = training.settings_of(Run(folder))
    large = settings.threads > 8 or settings.batch > 1000 or getattr(settings, "fixed", None) is not None
    Run(folder).metrics()
    Run(folder).result()
    if not large:
        shutil.move(folder / "result.json", folder / "put-aside")
        try:
            with mock.patch.object(training, "train", Loop):
                resume(folder, device="cpu")
        finally:
            shutil.move(folder / "put-aside", folder / "result.json")


def mutants(whole: Path, folder: Path, seed: int) -> Iterator[str]:
    """Copies of the run `whole` in `folder`, each with a fault, which is named. They never end."""
    random = np.random.default_rng(seed)
    contents = {path.name: path.read_bytes() for path in whole.iterdir()}
    names = [CONFIG, METRICS, "result.json", STATE]

    def draw(choices: list[Any]) -> Any:
        return choices[random.integers(len(choices))]

    while True:
        for path, content in contents.items():
            (folder / path).write_bytes(content)
        name = draw(names)
        content = contents[name]
        if random.random() < 0.15:
            at = int(random.integers(len(content)))
            fault = draw(["cut", "byte", "insert"])
            middle = {"cut": b"", "byte": random.bytes(1) + content[at + 1 :], "insert": random.bytes(3) + content[at:]}
            (folder / name).write_bytes(content[:at] + middle[fault])
            yield f"{name}: {fault} at {at}"
        elif name == STATE:
            yield f"{name}: {_spoil_state(folder, draw)}"
        else:
            lines = content.decode().splitlines() if name == METRICS else [content.decode()]
            number = int(random.integers(len(lines)))
            lines[number], fault = _spoil_json(json.loads(lines[number]), draw)
            (folder / name).write_bytes("\n".join(lines).encode())
            yield f"{name}: {fault}"


def _spoil_json(content: dict[str, Any], draw: Any) -> tuple[str, str]:
    """The object as JSON, with one field spoilt, and what was done."""
    inner = draw([content, *(value for value in content.values() if isinstance(value, dict))])
    key, raw = draw([*inner, *inner, "unknown"]), draw(RAW)
    fault = draw(["replace", "replace", "replace", "remove", "twice", "list", "whole"])
    if fault == "whole":
        return raw, f"all is {raw[:40]}"
    if fault == "remove":
        inner.pop(key, None)
        return json.dumps(content), f"no {key}"
    inner[key] = "MUTANT"
    text = json.dumps(content)
    kept = {"replace": raw, "list": f"[0.5, {raw}]", "twice": f'{raw}, "{key}": {raw}'}[fault]
    return text.replace('"MUTANT"', kept), f"{key} {fault} {raw[:40]}"


def _spoil_state(folder: Path, draw: Any) -> str:
    tensors, metadata = Run(folder).load()
    if draw([True, False]):
        key, value = draw(["design", "seconds", "unknown"]), draw([*RAW, "1_0", " 3 ", "-5", "nan", "inf"])
        metadata[key] = value
        fault = f"{key} is {value[:40]}"
    else:
        key = draw([*tensors, "adam.step", "loop.losses", "unknown"])
        fault = draw(["remove", "shape", "value"])
        if fault == "remove":
            tensors.pop(key, None)
        elif fault == "shape":
            tensors[key] = np.ones(draw(SHAPES), draw(DTYPES))
            fault = f"{tensors[key].dtype} {tensors[key].shape}"
        elif key in tensors and tensors[key].size:
            value = draw(VALUES)
            with np.errstate(all="ignore"):
                tensors[key].flat[0] = np.float64(value).astype(tensors[key].dtype)
            fault = f"value {value}"
        fault = f"{key} {fault}"
    Run(folder).save(tensors, {name: text for name, text in metadata.items() if name != "format"})
    return fault


def outcome(folder: Path) -> str:
    """What becomes of a mutant: "read", "refused", or a fault of ours."""
    began = time.perf_counter()
    try:
        exercise(folder)
        verdict = "read"
    except TinyfcnError as error:
        message = str(error)
        verdict = "refused" if "\n" not in message and len(message) < MAX_LENGTH else f"message {message[:2000]!r}"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        verdict = f"{type(error).__name__}: {error}"[:500]
    seconds = time.perf_counter() - began
    return verdict if seconds < 10 else f"{verdict} after {seconds:.0f} s"


def whole_runs(data: Path, folder: Path) -> list[Path]:
    """A classifier's run and an FCN's, both finished, with a state in the middle of training."""
    common: dict[str, Any] = {"data_dir": str(data), "threads": 1, "device": "cpu"}

    made = []
    with mock.patch.object(training.ClassifierTrainer, "draw"), mock.patch.object(training.FcnTrainer, "draw"):
        for name, settings in (
            ("cnn", ClassifierSettings(batch=20, epochs=2, **common)),
            ("fcn", FcnSettings(batch=2, steps=6, evaluations=2, cnn=str(folder / "cnn"), **common)),
        ):
            run, _ = start(settings, folder / name)
            tensors, metadata = run.load()
            tensors["adam.step"] -= 1
            since = training.trainer_of(run, Reporter()).evaluate_every - 1
            tensors["loop.losses"] = np.full(since, 0.5)
            run.save(tensors, {"design": metadata["design"], "seconds": "1.5"})
            made.append(run.folder)
    return made


if __name__ == "__main__":
    data, folder, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    counted: Counter[str] = Counter()
    with mock.patch("tinyfcn.training.sources.TEST_COUNT", 2):
        for number, run_folder in enumerate(whole_runs(data, folder)):
            spoilt = folder / f"mutant-{number}"
            spoilt.mkdir()
            for _, fault in zip(range(count // 2), mutants(run_folder, spoilt, number), strict=False):
                verdict = outcome(spoilt)
                counted[verdict if verdict in ("read", "refused") else "FAULT"] += 1
                if verdict not in ("read", "refused"):
                    print(f"{run_folder.name} {fault}: {verdict}", flush=True)
    print(dict(counted))
