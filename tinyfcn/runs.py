"""Run folders: each holds everything about one training, in files that any tool can read.

    runs/fcn-3/
        config.json             every setting, so that a run can be repeated or resumed
        metrics.jsonl           one line for each evaluation
        state.safetensors       weights by layer, and the state of Adam and of the loop, to resume to the same bits
        result.json             the last evaluation: a run that has this file is finished
        *.png                   figures

A file appears completely or not at all: it is written under a temporary name and then renamed.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save

from tinyfcn.adam_state import MAX_STEPS
from tinyfcn.errors import CheckpointError, DataError
from tinyfcn.fields import expect_names, expect_number, shown
from tinyfcn.files import make_folder, new_file

CONFIG, METRICS, STATE, RESULT = "config.json", "metrics.jsonl", "state.safetensors", "result.json"
FORMAT = "tinyfcn 1"
# The least and the greatest value of each figure in metrics.jsonl and result.json; all others are from 0 to 1.
RANGES: Mapping[str, tuple[float, float]] = {
    **dict.fromkeys(("step", "steps"), (1, MAX_STEPS)),
    "seconds": (0.0, 1e12),
    **dict.fromkeys(("loss", "train_loss", "test_loss"), (-1e39, 1e39)),  # of 32 bits, but not infinite
}
SPACE = "free some space or choose another folder with --out; what was saved before is intact"


@dataclass(frozen=True)
class Run:
    """A run folder that exists."""

    folder: Path

    @property
    def is_finished(self) -> bool:
        """Whether training came to its end."""
        return os.path.exists(self.folder / RESULT)  # Path.exists raises where reading is not permitted

    def config(self) -> dict[str, Any]:
        """The settings; CheckpointError if this is not a run folder."""
        return self._read_json(CONFIG)

    def result(self) -> dict[str, Any]:
        """The last evaluation of a finished run, checked as the lines of `metrics` are."""
        return _checked_figures(self._read_json(RESULT), str(self.folder / RESULT), ["steps", "seconds", "loss"])

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes a JSON file; DataError if that fails."""
        with self._new_file(name) as file:
            file.write((json.dumps(content, indent=2) + "\n").encode())

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, one for each evaluation so far.

        Raises:
            CheckpointError: names the line and the field, what was expected and what was found.
        """
        path, required = self.folder / METRICS, ["step", "seconds", "train_loss", "test_loss"]
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from None
        sources = [f"{path}, line {number}" for number in range(1, len(lines) + 1)]
        return [
            _checked_figures(parsed_object(line, source), source, required)
            for line, source in zip(lines, sources, strict=True)
        ]

    def write_metrics(self, lines: list[dict[str, Any]]) -> None:
        """Replaces metrics.jsonl."""
        with self._new_file(METRICS) as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines).encode())

    def save(self, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
        """Writes the state."""
        with self._new_file(STATE) as file:
            file.write(_in_order(save(dict(tensors), {"format": FORMAT, **metadata})))

    def load(self) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """The state's tensors and metadata, see `load_tensors`."""
        return load_tensors(self.folder / STATE)

    @contextmanager
    def _new_file(self, name: str) -> Iterator[BinaryIO]:
        """`new_file` in the folder."""
        try:
            with new_file(self.folder / name, SPACE) as file:
                yield file
        except DataError:
            if os.path.isdir(self.folder):
                raise
            raise DataError(
                f"the run folder {self.folder} is no longer there, so {name} was not written: where it was moved, "
                "--resume goes on from what was saved in it; where it was deleted, start a new run"
            ) from None

    def _read_json(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        try:
            text = path.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            raise CheckpointError(
                f"{self.folder} is not a run of tinyfcn: it has no {name}; tinyfcn train-cnn and train-fcn make runs"
            ) from None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from None
        return parsed_object(text, str(path))


def parsed_object(text: str, source: str) -> dict[str, Any]:
    """The JSON object that a file of a run holds; CheckpointError, which names `source`, if it does not."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{source} is not JSON as tinyfcn writes it: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{source} is not by tinyfcn: expected an object, found {shown(content)}")
    return content


def _checked_figures(figures: dict[str, Any], source: str, required: Sequence[str]) -> dict[str, Any]:
    """The figures of an evaluation, all numbers, or null where one is not required, and the list of IoU per class."""
    try:
        expect_names(figures, required, [*figures])
        for name, value in figures.items():
            for each in value if isinstance(value, list) and name == "iou_per_class" else [value]:
                if each is not None or name in required:
                    expect_number(name, each, *RANGES.get(name, (0.0, 1.0)))
    except ValueError as error:
        raise CheckpointError(f"{source}: {error}") from None
    return figures


def new_run(kind: str, out: Path | None = None) -> Run:
    """A new folder: `out`, or runs/KIND-N with the first number that no run has.

    Raises:
        CheckpointError: `out` is not empty.
        DataError: the folder cannot be made.
    """
    way_out = "choose another folder with --out"
    if out is not None:
        try:
            taken = out.exists() and (not out.is_dir() or any(out.iterdir()))
        except OSError as error:  # a name that is too long, or a folder that may not be read
            raise DataError(f"the folder {out} cannot be used ({error.strerror}): {way_out}") from None
        if taken:
            raise CheckpointError(f"{out} is there already and is not overwritten: {way_out}")
        make_folder(out, way_out)
        return Run(out)
    runs = Path("runs")
    make_folder(runs, way_out)
    number = max((n for n, _ in _numbered(runs, kind)), default=0) + 1
    while True:
        folder = runs / f"{kind}-{number}"
        try:
            folder.mkdir()
        except FileExistsError:  # another training took the number a moment ago
            number += 1
            continue
        return Run(folder)


def newest_finished(kind: str) -> Run | None:
    """The run in runs/ with the highest number that is finished, or None."""
    for _, folder in sorted(_numbered(Path("runs"), kind), reverse=True):
        if Run(folder).is_finished:
            return Run(folder)
    return None


def _numbered(runs: Path, kind: str) -> list[tuple[int, Path]]:
    found = []
    for folder in runs.glob(f"{kind}-*"):
        number = folder.name.removeprefix(f"{kind}-")
        if number.isdecimal():
            found.append((int(number), folder))
    return found


def state_file(path: Path) -> Path:
    """The state that a path means: that of a run folder, or of the run whose config.json, say, it is, or itself."""
    beside = path.parent / STATE
    if path.is_file() and path.suffix != Path(STATE).suffix and beside.exists():
        return beside
    return path / STATE if path.is_dir() else path


def load_tensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """All tensors and the metadata of a safetensors file that tinyfcn wrote.

    Raises:
        CheckpointError: missing, truncated, or another program's.
    """
    try:
        open(path, "rb").close()  # safetensors reports a file without permission as a missing file
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:  # first: NumPy lacks some types of tensors
                raise CheckpointError(
                    f"{path} was not written by tinyfcn: its format is {shown(metadata.get('format'))}, "
                    f"expected {FORMAT!r}"
                )
        # Read, not mapped: where another program cuts a mapped file short, its next access kills the process.
        tensors = load(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(
            f"{path} does not exist: give a run folder that tinyfcn train-cnn or train-fcn made"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error})") from None
    except (SafetensorError, ValueError, TypeError, KeyError, AttributeError) as error:
        if path.suffix != Path(STATE).suffix:
            raise CheckpointError(
                f"{path} is no run: give a run folder that tinyfcn train-cnn or train-fcn made"
            ) from None
        raise CheckpointError(
            f"{path} is not a whole safetensors file ({error}): it may have been cut off; use another run"
        ) from None
    return tensors, metadata


def _in_order(content: bytes) -> bytes:
    """A safetensors file with its metadata sorted, so that equal states are equal files.

    The library writes them in the order of a hash map, which differs every time.
    """
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at multiples of 8
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def checked_parameters(
    tensors: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], source: Path
) -> dict[str, np.ndarray]:
    """The tensors named in `shapes`, after checking that each has its shape and is finite.

    Raises:
        CheckpointError: names the tensor, what was expected and what was found.
    """
    checked = {}
    for name, shape in shapes.items():
        if name not in tensors:
            raise CheckpointError(
                f"{source} has no tensor {name}, so it belongs to another network; it has {shown(sorted(tensors))}"
            )
        tensor = tensors[name]
        if tensor.shape != tuple(shape) or tensor.dtype != np.float32:
            raise CheckpointError(
                f"{source}: tensor {name} is {tensor.dtype} {tensor.shape}, expected float32 {tuple(shape)}: "
                "it belongs to another network"
            )
        if not np.isfinite(tensor).all():
            bad = int((~np.isfinite(tensor)).sum())
            raise CheckpointError(
                f"{source}: tensor {name} has {bad} of {tensor.size} values that are NaN or infinite: "
                "use another run, or train again"
            )
        checked[name] = tensor
    return checked
