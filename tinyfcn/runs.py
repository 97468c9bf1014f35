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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from tinyfcn.errors import CheckpointError, DataError
from tinyfcn.files import make_folder, new_file

CONFIG, METRICS, STATE, RESULT = "config.json", "metrics.jsonl", "state.safetensors", "result.json"
FORMAT = "tinyfcn 1"
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
        """The last evaluation of a finished run."""
        return self._read_json(RESULT)

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes a JSON file; DataError if that fails."""
        with new_file(self.folder / name, SPACE) as file:
            file.write((json.dumps(content, indent=2) + "\n").encode())

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, one for each evaluation so far."""
        path = self.folder / METRICS
        try:
            lines = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from None
        if not all(isinstance(line, dict) and "step" in line for line in lines):
            raise CheckpointError(f"{path} is not by tinyfcn: expected a step in every line")
        return lines

    def write_metrics(self, lines: list[dict[str, Any]]) -> None:
        """Replaces metrics.jsonl."""
        with new_file(self.folder / METRICS, SPACE) as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines).encode())

    def save(self, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
        """Writes the state."""
        with new_file(self.folder / STATE, SPACE) as file:
            file.write(_in_order(save(dict(tensors), {"format": FORMAT, **metadata})))

    def load(self) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """The state's tensors and metadata, see `load_tensors`."""
        return load_tensors(self.folder / STATE)

    def _read_json(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise CheckpointError(
                f"{self.folder} is not a run of tinyfcn: it has no {name}; tinyfcn train-cnn and train-fcn make runs"
            ) from None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from None
        if not isinstance(content, dict):
            raise CheckpointError(f"{path} is not by tinyfcn: expected an object, found {type(content).__name__}")
        return content


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
                    f"{path} was not written by tinyfcn: its format is {metadata.get('format')!r}, expected {FORMAT!r}"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(
            f"{path} does not exist: give a run folder that tinyfcn train-cnn or train-fcn made"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error})") from None
    except (SafetensorError, ValueError, TypeError, AttributeError) as error:
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
                f"{source} has no tensor {name}, so it belongs to another network; it has {', '.join(sorted(tensors))}"
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
