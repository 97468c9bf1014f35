"""Measures what a study's workers win: trainings of `tinyfcn train-fcn` one after another against `tinyfcn sweep`.

    python scripts/measure_sweep.py --cnn runs/cnn-1 [--ways 1 4]

The same trainings are run in four ways: one command after another with one thread, and with all threads; by a study
with one worker, whose time over the first way's is the study's own; and by a study with a worker for each core. The
ways take turns, so that a machine that is busy with other things slows all of them alike. The study's times include
the start of its workers. The cores' time says what a way costs even where other programs take turns on the cores.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tinyfcn.training import available_threads

SPACE = "seeds = {seeds}\n[fixed]\nsteps = {steps}\nevaluations = 1\ndevice = 'cpu'\ncnn = {cnn!r}\n"


def seconds(commands: list[list[str]], folder: Path) -> tuple[float, float]:
    """The time of commands of tinyfcn, one after another, and the cores' time that they took."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    for command in commands:
        subprocess.run([sys.executable, "-m", "tinyfcn", *command], cwd=folder, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cores = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - start, cores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cnn", type=Path, required=True, help="the classifier to begin with")
    parser.add_argument("--trainings", type=int, default=24)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument(
        "--ways", type=int, nargs="+", default=[1, 2, 3, 4], help="which of the four; the first always runs"
    )
    parser.add_argument("--rounds", type=int, default=3, help="the trainings are divided among so many turns")
    options = parser.parse_args()
    cores, cnn = available_threads(), str(options.cnn.resolve())
    each = -(-options.trainings // options.rounds)
    found: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for turn in range(options.rounds):
            seeds = [turn * each + number for number in range(each)]
            (folder / "space.toml").write_text(SPACE.format(seeds=seeds, steps=options.steps, cnn=cnn))
            fcn = ["train-fcn", "--steps", f"{options.steps}", "--evaluations", "1", "--device", "cpu", "--cnn", cnn]
            ways = {
                "commands, 1 thread": [[*fcn, "--seed", f"{seed}", "--threads", "1"] for seed in seeds],
                f"commands, {cores} threads": [[*fcn, "--seed", f"{seed}", "--threads", f"{cores}"] for seed in seeds],
                "study, 1 worker": [["sweep", "space.toml", "--workers", "1"]],
                f"study, {cores} workers": [["sweep", "space.toml", "--workers", f"{cores}"]],
            }
            for number, (name, commands) in enumerate(ways.items(), 1):
                if number not in {1, *options.ways}:
                    continue
                found.setdefault(name, []).append(seconds(commands, folder))
                wall, busy = found[name][-1]
                print(f"turn {turn + 1}: {each} trainings, {name}: {wall:.1f} s, {busy:.1f} s of a core", flush=True)
    alone = found["commands, 1 thread"]
    for name, times in found.items():
        ratio = statistics.median(one[0] / other[0] for one, other in zip(alone, times, strict=True))
        busy = statistics.median(other[1] / one[1] for one, other in zip(alone, times, strict=True))
        mean = sum(wall for wall, _ in times) / options.rounds / each
        print(f"{name:<22}{mean:6.2f} s a training, {ratio:.2f} times as fast as 1 thread, {busy:.2f} of its core time")


if __name__ == "__main__":
    main()
