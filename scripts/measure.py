"""Measures everything that this project claims: tests, trainings, figures. Writes JSON and images.

    python scripts/measure.py --out measured --data-dir FOLDER_WITH_MNIST

On a machine with a GPU the trainings run on it, and the tests run the kernels there as well as on the emulator. It
needs an installed tinyfcn with pytest and hypothesis. If PyTorch is installed, its steps and kernels are timed too.
Writes OUT/measured.json, OUT/bench.json, the images of the README, and with Nsight Compute OUT/counters. What fails is
named in measured.json and at the end; the rest is measured all the same.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tinyfcn import figures, load
from tinyfcn.data import load_digits
from tinyfcn.errors import TinyfcnError
from tinyfcn.machine import findings
from tinyfcn.training import available_threads
from tinyfcn.training.sources import as_bytes, composed_test

ROOT = Path(__file__).resolve().parent.parent
TINYFCN = [sys.executable, "-m", "tinyfcn"]
PARTS = ("trainings", "images", "bench", "counters", "tests")


class CommandFailed(Exception):
    """A command exited with another status than 0. The message names it."""


def run(*command: str, cwd: Path) -> tuple[float, str, int]:
    """Runs a command and shows its output. Returns seconds, output and peak memory in MB.

    Raises:
        CommandFailed: it exits with another status than 0.
    """
    print("+", *command, flush=True)
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = []
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise CommandFailed(f"status {os.waitstatus_to_exitcode(status)}: {' '.join(command)}")
    return time.perf_counter() - start, "".join(lines), usage.ru_maxrss // 1024


def train(work: Path, name: str, *arguments: str) -> dict[str, Any]:
    """Trains into work/name. Returns the result with the command, its seconds and its peak memory."""
    seconds, _, peak = run(*TINYFCN, *arguments, "--out", str(work / name), cwd=work)
    result = json.loads((work / name / "result.json").read_text())
    config = json.loads((work / name / "config.json").read_text())
    return {
        "command": "tinyfcn " + " ".join(arguments),
        "device": config["device"],
        "parameters": config["parameters"],
        "whole_command_seconds": round(seconds, 1),
        "peak_mb": peak,
        **result,
    }


def readme_images(work: Path, out: Path, data_dir: Path | None) -> None:
    """Draws the figures that the README shows, from the runs cnn, skip and early."""
    early, skip = load(work / "early"), load(work / "skip")
    ops = skip.network.ops
    images, _ = composed_test(ops, skip.design, load_digits("test", "auto", data_dir))
    chosen = ops.to_numpy(images)[[1, 3]]
    masks = [model.probabilities(chosen)[:, :10] for model in (early, skip)]
    figures.side_by_side(out / "early-and-skip.png", as_bytes(chosen), *masks)
    for run_name, file in (("cnn", "mistakes"), ("cnn", "score-map"), ("skip", "labels"), ("skip", "learning-curves")):
        shutil.copy(work / run_name / f"{file}.png", out / f"{run_name}-{file}.png")


class Measurement:
    """Measures the parts that are asked for, and keeps OUT/measured.json up to date."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.out, self.work = options.out.resolve(), options.out.resolve() / "runs"
        self.data_dir = options.data_dir.resolve() if options.data_dir else None
        self.data = ["--data-dir", str(self.data_dir)] if self.data_dir else []
        self.measured: dict[str, Any] = {
            "machine": {
                finding.name: finding.text for finding in findings() if finding.name in ("GPU", "NVRTC", "CPU")
            },
            "python": platform.python_version(),
            "numpy": np.__version__,
            "threads": available_threads(),
            "failed": [],
        }

    def keep(self) -> None:
        (self.out / "measured.json").write_text(json.dumps(self.measured, indent=2) + "\n")

    @contextmanager
    def part(self) -> Iterator[None]:
        """Keeps what was measured. A command that fails ends the part, not the measurement."""
        try:
            yield
        except (CommandFailed, TinyfcnError) as error:  # the images, for one, need runs that may have failed
            self.measured["failed"].append(str(error))
        self.keep()

    def tests(self) -> None:
        seconds, output, _ = run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=ROOT)
        self.measured["tests"] = {"seconds": round(seconds, 1), "summary": output.strip().splitlines()[-1]}

    def trainings(self) -> None:
        options, work = self.options, self.work
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        common = ["--device", options.device, *self.data]
        train_fcn = ["train-fcn", *(["--steps", "20", "--evaluations", "1"] if options.quick else [])]
        from_cnn = ["--cnn", str(work / "cnn"), *common]
        trainings = {
            "cnn": ["train-cnn", *(["--epochs", "1"] if options.quick else []), *common],
            "skip": [*train_fcn, *from_cnn],
            "early": [*train_fcn, "--design", "early", *from_cnn],
            "corrected": [*train_fcn, "--design", "corrected", *from_cnn],
            "plain-start": [*train_fcn, "--plain-start", *from_cnn],
            "from-scratch": [*train_fcn, "--from-scratch", *common],
            "m2nist": [*train_fcn, "--m2nist", str(work / "files"), *from_cnn],
            "builtin": ["train-cnn", "--dataset", "builtin", "--device", options.device],
        }
        if options.longer_steps and not options.quick:
            trainings["longer"] = ["train-fcn", "--steps", str(options.longer_steps), *from_cnn]
        with self.part():
            run(*TINYFCN, "make-m2nist", str(work / "files"), *self.data, cwd=work)
        for name, arguments in trainings.items():
            with self.part():
                self.measured[name] = train(work, name, *arguments)
        with self.part():
            _, output, _ = run(*TINYFCN, "evaluate", "builtin", "--dataset", "mnist", "--json", *self.data, cwd=work)
            self.measured["builtin"]["on_mnist"] = json.loads(output)

    def images(self) -> None:
        readme_images(self.work, self.out, self.data_dir)

    def bench(self) -> None:
        out, quick = str(self.out), ["--quick"] if self.options.quick else []
        command = ["bench", "--device", self.options.device, "--growth", "--out", out, "--json", f"{out}/bench.json"]
        run(*TINYFCN, *command, *quick, cwd=self.out)

    def counters(self) -> None:
        """What profile mode counts beside Nsight Compute's counters, where there are any."""
        if self.options.device == "cpu" or shutil.which("ncu") is None:
            print("counters: not compared, since there is no ncu on the PATH or no GPU is measured")
            return
        what = ["--only", "accesses"] if self.options.quick else []
        script = ROOT / "scripts" / "compare_counters.py"
        _, output, _ = run(sys.executable, str(script), "--out", str(self.out / "counters"), *what, cwd=self.out)
        self.measured["counters"] = [line for line in output.splitlines() if line.startswith(("accesses:", "known:"))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("measured"))
    parser.add_argument("--data-dir", type=Path, help="folder with the MNIST files")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--longer-steps", type=int, default=12000, help="steps of the longer training; 0: none")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="images need the trainings before them")
    parser.add_argument("--quick", action="store_true", help="few steps, to try this script")
    measurement = Measurement(parser.parse_args())
    measurement.out.mkdir(parents=True, exist_ok=True)
    for name in measurement.options.only:
        with measurement.part():
            getattr(measurement, name)()
    for failed in measurement.measured["failed"]:
        print(f"failed: {failed}")
    print(f"written to {measurement.out}: measured.json and images")
    sys.exit(1 if measurement.measured["failed"] else 0)


if __name__ == "__main__":
    main()
