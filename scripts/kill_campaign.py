"""Kills commands at random moments, and checks that nothing is lost and nothing half-written is taken for whole.

    python scripts/kill_campaign.py [--data-dir FOLDER_WITH_MNIST] [--kills 200] [--seed 0]

Each job is run to its end once. Then it is started again and again, and killed with SIGKILL after a random time, until
it has survived; a training is resumed where it can be. Its end must be the bytes of the undisturbed job, however often
it was killed. The files that kills leave behind are counted. Exits with 1 if anything is wrong. Without MNIST's files,
which a mirror on this machine serves, downloads are left out.
"""

import argparse
import contextlib
import functools
import hashlib
import http.server
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tinyfcn.data import mnist
from tinyfcn.data.builtin_digits import draw_digits
from tinyfcn.runs import RESULT, STATE, Run

TINYFCN = [sys.executable, "-m", "tinyfcn"]
DOWNLOAD = "from tinyfcn.data import mnist; mnist.MIRRORS = ({!r},); mnist.load_mnist('train', None, print)"


@dataclass(frozen=True)
class Job:
    """command(folder) gives the command, which may go on where an earlier one was killed; end(folder) what it made."""

    name: str
    command: Callable[[Path], list[str]]
    end: Callable[[Path], str]


def digest(*paths: Path) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def trained(folder: Path) -> str:
    """The weights, Adam's state and the figures of a finished run, without its seconds."""
    run = Run(folder / "run")
    tensors, _ = run.load()
    figures = [{name: value for name, value in line.items() if name != "seconds"} for line in run.metrics()]
    assert run.is_finished, "no result"
    content = b"".join(np.ascontiguousarray(tensors[name]).tobytes() for name in sorted(tensors))
    return hashlib.sha256(content + json.dumps(figures).encode()).hexdigest()


def training(*arguments: str) -> Callable[[Path], list[str]]:
    """A training in FOLDER/run, resumed once it was saved; a run that never was is begun again."""

    def command(folder: Path) -> list[str]:
        run = folder / "run"
        if (run / RESULT).exists():  # finished, and killed while it drew its figures
            return [sys.executable, "-c", "pass"]
        if (run / STATE).exists():
            return [*TINYFCN, arguments[0], "--resume", str(run)]
        number = len([*folder.glob("unsaved-*")])
        if run.exists() and not (run / STATE).exists():
            run.rename(folder / f"unsaved-{number}")
        return [*TINYFCN, *arguments, "--out", str(run)]

    return command


def jobs(work: Path, mirror: str | None) -> list[Job]:
    """All jobs. Each has a folder of its own, which is also its cache. `mirror`: where MNIST is downloaded from."""
    small = work / "digits"
    for prefix, count, seed in (("train", 600, 0), ("t10k", 100, 1)):
        images, labels = draw_digits(count, seed)
        small.mkdir(exist_ok=True)
        for array, name in ((images, f"{prefix}-images-idx3-ubyte"), (labels, f"{prefix}-labels-idx1-ubyte")):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            (small / name).write_bytes(header + array.tobytes())
    cnn = ["train-cnn", "--data-dir", str(small), "--epochs", "8", "--batch", "8", "--threads", "1", "--device", "cpu"]
    few = ["make-m2nist", str(work / "few"), "--count", "20", "--data-dir", str(small)]  # so that evaluation is short
    subprocess.run([*TINYFCN, *few], check=True, capture_output=True)
    undisturbed_cnn, undisturbed_fcn = (str(work / f"{number}-whole" / "run") for number in (0, 1))
    fcn = ["train-fcn", "--cnn", undisturbed_cnn, "--m2nist", str(work / "few"), "--steps", "30", "--batch", "2"]
    fcn += ["--evaluations", "10", "--threads", "1", "--device", "cpu"]
    made = ("combined.npy", "segmented.npy")

    def make(folder: Path) -> list[str]:
        # What is there is whole: the command refuses to overwrite it.
        there = [(folder / "files" / name).exists() for name in made]
        if all(there):
            return [sys.executable, "-c", "pass"]
        assert not any(there), "one of the two files without the other"
        return [*TINYFCN, "make-m2nist", str(folder / "files"), "--count", "2000", "--data-dir", str(small)]

    scan = work / "scan.png"
    Image.fromarray(draw_digits(9, 5)[0].reshape(3, 3, 28, 28).swapaxes(1, 2).reshape(84, 84)).save(scan)

    def predict(folder: Path) -> list[str]:
        return [*TINYFCN, "predict", undisturbed_fcn, str(scan), "--out", str(folder / "predictions")]

    def predicted(folder: Path) -> str:
        newest = max((folder / "predictions").glob("scan*"), key=lambda path: path.stat().st_mtime)
        return digest(*sorted(newest.iterdir()))

    def cache(folder: Path) -> str:
        return digest(*sorted(path for path in (folder / "cache").rglob("*") if path.suffix in (".npz", ".gz")))

    builtin = [*TINYFCN, "make-m2nist", "--dataset", "builtin", "--count", "1", "--split", "test"]
    return [
        Job("train-cnn", training(*cnn), trained),
        Job("train-fcn", training(*fcn), trained),
        Job("make-m2nist", make, lambda folder: digest(*(folder / "files" / name for name in made))),
        Job("predict", predict, predicted),
        Job("built-in digits", lambda folder: [*builtin, str(folder / f"m-{time.time_ns()}")], cache),
        Job("emulator", lambda folder: [*TINYFCN, "gradcheck", "relu"], lambda folder: "right"),
        *[Job("download", lambda folder: [sys.executable, "-c", DOWNLOAD.format(mirror)], cache)] * bool(mirror),
    ]


def serve(folder: Path) -> str:
    """A mirror of MNIST on loopback, as slow as a network; its address."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def copyfile(self, source, output):  # type: ignore[no-untyped-def]
            with contextlib.suppress(ConnectionError):  # who asked was killed
                while block := source.read(1 << 18):
                    output.write(block)
                    time.sleep(0.01)

        def log_message(self, *arguments: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}/"


def run(job: Job, folder: Path, seconds: float | None) -> tuple[int, str]:
    """Runs a job's command; kills it after `seconds`. Returns its exit status and what it printed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TINYFCN_")}
    environment |= {"TINYFCN_CACHE": str(folder / "cache"), "no_proxy": "*"}
    process = subprocess.Popen(
        job.command(folder),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
    return process.returncode, output


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, help="folder with MNIST's four .gz files")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance, wrong, kills = random.Random(options.seed), 0, 0
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        mirror = None
        if options.data_dir:
            missing = [name for name in mnist.SHA256 if not (options.data_dir / f"{name}.gz").exists()]
            assert not missing, f"{options.data_dir} lacks {missing[0]}.gz"
            mirror = serve(options.data_dir.resolve())
        else:
            print("no --data-dir: downloads are not tried")
        all_jobs = jobs(work, mirror)
        for number, job in enumerate(all_jobs):
            whole = work / f"{number}-whole"
            whole.mkdir()
            start = time.perf_counter()
            status, output = run(job, whole, None)
            longest = time.perf_counter() - start
            assert status == 0, f"{job.name}, undisturbed: {output}"
            expected = job.end(whole)
            share = -(-options.kills * (number + 1) // len(all_jobs))
            left: set[str] = set()
            before = kills
            rounds = 0
            while kills < share:
                folder = work / f"{number}-{rounds}"
                folder.mkdir()
                rounds += 1
                status, output = -signal.SIGKILL, ""
                for seconds in (*(chance.uniform(0.1, longest) for _ in range(4)), None):
                    if status == -signal.SIGKILL:
                        status, output = run(job, folder, seconds)
                        kills += status == -signal.SIGKILL
                problem = None
                if status:
                    problem = f"status {status}: {output.strip()[-300:]}"
                elif (found := job.end(folder)) != expected:
                    problem = f"another end: {found}"
                if problem:
                    wrong += 1
                    print(f"{job.name}, round {rounds}: {problem}", flush=True)
                left |= {path.name for path in folder.rglob("*") if path.name.endswith((".tmp", ".part", ".lock"))}
            print(f"{job.name}: {kills - before} kills in {rounds} rounds, {len(left)} files left behind", flush=True)
    print(f"{kills} kills, {wrong} wrong")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
