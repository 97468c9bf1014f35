"""Feeds damaged files to everything that reads files: each must be read right, or refused in one line.

    python scripts/fuzz.py [--inputs 10000] [--seed 0] [--only KIND ...] [--guided]

A good file of each kind is damaged at random: bytes changed, cut, repeated, joined with another file, and words that
break parsers put in. A reader fails if it raises anything but a TinyfcnError, writes a message of several lines or of
more than 1,000 characters, computes for more than ten seconds, or needs more than 2 GB. The script exits with 1 if one
fails, and leaves the input in --failures.

With --guided, atheris (pip install atheris) draws the inputs: it goes on from those that reached new lines of tinyfcn.
"""

import argparse
import contextlib
import gzip
import io
import json
import os
import re
import resource
import signal
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import save

import tinyfcn
from tinyfcn.adam_state import AdamState
from tinyfcn.data.m2nist_files import read_m2nist
from tinyfcn.data.mnist import load_mnist
from tinyfcn.devices import kernel_source
from tinyfcn.errors import TinyfcnError
from tinyfcn.images import read_image
from tinyfcn.networks import Design
from tinyfcn.runs import Run

SECONDS, BYTES, LENGTH = 10, 2 * 1024**3, 1000  # the most that one input may take, and that a message may be long

# Words that mean something to one of the readers.
WORDS = [
    *(b"NaN", b"-1", b"1e999", b"null", b"true", b"[" * 300, b'{"a":' * 50, b'""', b"\\u0000", b"\xff\xfe"),
    *(b"/*", b"*/", b"//", b'"', b"'", b"\\\n", b"#if 0\n", b'R"(', b"template <", b'extern "C" {', b"__global__ void"),
    *(b"\x93NUMPY", b"'descr': '|O'", b"'shape': (99999999999,)", b"(" * 300, b"\x00" * 8, b"\xff" * 8),
]

Reader = Callable[[Path, bytes], object]


def idx(array: np.ndarray) -> bytes:
    """An array as an IDX file."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.astype(np.uint8).tobytes()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def picture(kind: str, mode: str = "L") -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40), np.uint8)
    Image.fromarray(pixels).convert(mode).save(file, kind)
    return file.getvalue()


def read_mnist_images(folder: Path, content: bytes) -> None:
    zipped = content[:2] == b"\x1f\x8b"
    (folder / f"t10k-images-idx3-ubyte{'.gz' if zipped else ''}").write_bytes(content)
    (folder / "t10k-labels-idx1-ubyte").write_bytes(idx(np.arange(3)))
    load_mnist("test", folder, lambda text: None)


def read_m2nist_images(folder: Path, content: bytes) -> None:
    (folder / "combined.npy").write_bytes(content)
    (folder / "segmented.npy").write_bytes(npy(np.full((5, 64, 84), 10, np.uint8)))
    data = read_m2nist(folder)
    data.batch(np.arange(len(data)))


def read_m2nist_masks(folder: Path, content: bytes) -> None:
    (folder / "combined.npy").write_bytes(npy(np.zeros((5, 64, 84), np.uint8)))
    (folder / "segmented.npy").write_bytes(content)
    data = read_m2nist(folder)
    data.batch(np.arange(len(data)))


def read_weights(folder: Path, content: bytes) -> None:
    (folder / "state.safetensors").write_bytes(content)
    tinyfcn.load(folder / "state.safetensors", "cpu")


def read_config(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    Run(folder).config()


def read_metrics(folder: Path, content: bytes) -> None:
    (folder / "metrics.jsonl").write_bytes(content)
    Run(folder).metrics()


def read_picture(folder: Path, content: bytes) -> None:
    (folder / "picture").write_bytes(content)
    read_image(folder / "picture", notice=lambda text: None)


def read_kernels(folder: Path, content: bytes) -> None:
    (folder / "fuzzed.cu").write_bytes(content)
    (folder / "common.cuh").write_text("")
    kernel_source.kernels(folder)


def state() -> bytes:
    design = Design("early")
    network = design.build(tinyfcn.on("cpu"))
    adam = AdamState.create(network.ops, network.l2_coefficients(0), 1e-3, 10)
    tensors = {**network.numpy_parameters(), "adam.m": adam.m, "adam.v": adam.v}
    return save(tensors, {"design": json.dumps(design.as_dict())})


def targets() -> dict[str, tuple[Reader, list[bytes]]]:
    """The readers by the kind of file, each with good files."""
    digits, images = np.zeros((3, 28, 28), np.uint8), np.zeros((5, 64, 84), np.uint8)
    labels = np.full((5, 64, 84), 10, np.uint8)
    one_hot = np.eye(11, dtype=np.uint8)[labels]
    config = {"command": "train-fcn", "design": Design().as_dict(), "seed": 0, "learning_rate": 0.01, "device": "cpu"}
    metrics = b"\n".join(json.dumps({"step": k, "loss": 1 / k, "seconds": k}).encode() for k in range(1, 5))
    sources = [path.read_bytes() for path in sorted(kernel_source.KERNELS.glob("*.cu"))]
    pictures = [picture(kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")]
    return {
        "idx": (read_mnist_images, [idx(digits), gzip.compress(idx(digits), mtime=0)]),
        "npy": (read_m2nist_images, [npy(images), npy(np.asfortranarray(images)), npy(images.astype(np.float32))]),
        "masks": (read_m2nist_masks, [npy(labels), npy(one_hot)]),
        "weights": (read_weights, [state()]),
        "config": (read_config, [json.dumps(config).encode()]),
        "metrics": (read_metrics, [metrics]),
        "picture": (read_picture, [*pictures, picture("PNG", "RGBA"), picture("PNG", "P"), picture("TIFF", "1")]),
        "kernels": (read_kernels, sources),
    }


def damaged(random: np.random.Generator, good: list[bytes]) -> bytes:
    """One of the good files after one to four damages."""
    content = bytearray(good[random.integers(len(good))])
    for _ in range(random.integers(1, 5)):
        # Headers decide most of what happens: half of the damages are in the first 200 bytes.
        end = len(content) if random.random() < 0.5 else min(len(content), 200)
        at, upto = sorted(random.integers(0, end + 1, 2))
        match random.integers(7):
            case 0 if content:
                content[min(at, len(content) - 1)] = random.integers(256)
            case 1:
                del content[at:upto]
            case 2:
                content[at:at] = content[at:upto] * int(random.integers(1, 4))
            case 3:
                content[at:at] = WORDS[random.integers(len(WORDS))]
            case 4:
                other = good[random.integers(len(good))]
                content[at:] = other[random.integers(len(other) + 1) :]
            case 5:
                del content[upto:]
            case 6:
                content[at:upto] = random.bytes(int(upto - at))
    return bytes(content)


@contextlib.contextmanager
def limits() -> Iterator[None]:
    """Ends what runs for more than SECONDS, or asks for more than BYTES of memory beyond what is taken."""

    def too_long(*_: object) -> None:
        raise TimeoutError(f"more than {SECONDS} s")

    signal.signal(signal.SIGPROF, too_long)  # of the processor's time: another program may have it meanwhile
    with open("/proc/self/statm", encoding="ascii") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + BYTES, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def problem(reader: Reader, content: bytes) -> str | None:
    """What is wrong with how a reader takes an input; None if it reads it or refuses it as it should."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            reader(Path(folder), content)
        except TinyfcnError as error:
            text = str(error).replace(folder, "")
            lines = len(text.strip().splitlines())
            return f"a message of {len(text)} characters in {lines} lines" if lines != 1 or len(text) > LENGTH else None
        except BaseException as error:
            return f"{type(error).__name__}: {error}"[:300]
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    return None


class Failures:
    """Counts how often each kind of failure occurred, prints its first occurrence, and keeps the input."""

    def __init__(self, kind: str, reader: Reader, seed: int, folder: Path) -> None:
        self.kind, self.reader, self.seed, self.folder = kind, reader, seed, folder
        self.inputs, self.slowest, self.start = 0, 0.0, time.perf_counter()
        self.seen: dict[str, int] = {}

    def try_input(self, content: bytes) -> None:
        before = time.perf_counter()
        wrong = problem(self.reader, content)
        self.slowest = max(self.slowest, time.perf_counter() - before)
        if wrong:
            wrong = re.sub(r"\d+", "#", wrong)  # one line for each kind of failure
            if wrong not in self.seen and len(self.seen) < 20:
                self.folder.mkdir(parents=True, exist_ok=True)
                (self.folder / f"{self.kind}-{self.seed}-{self.inputs}").write_bytes(content)
                print(f"{self.kind} {self.inputs}: {wrong}", flush=True)
            self.seen[wrong] = self.seen.get(wrong, 0) + 1
        self.inputs += 1

    def report(self) -> int:
        """Prints a line, and returns the number of failures."""
        failed = sum(self.seen.values())
        print(
            f"{self.kind}: {self.inputs:,} inputs, {failed} failed, the slowest {self.slowest:.2f} s, "
            f"all {time.perf_counter() - self.start:.0f} s",
            flush=True,
        )
        return failed


def guided(failures: Failures, good: list[bytes], inputs: int) -> int:
    """Runs atheris in a process of its own, which ends when it is done. Returns the number of failures, up to 100."""
    with tempfile.TemporaryDirectory() as corpus:
        for number, content in enumerate(good):
            (Path(corpus) / str(number)).write_bytes(content)
        child = os.fork()
        if not child:
            run_atheris(failures, inputs, [f"-max_len={2 * max(map(len, good))}", corpus])
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status)


def run_atheris(failures: Failures, inputs: int, options: list[str]) -> None:
    """Ends the process after so many inputs."""
    import atheris

    for name, module in [*sys.modules.items()]:
        if name.startswith("tinyfcn."):
            classes = [each for each in vars(module).values() if isinstance(each, type) and each.__module__ == name]
            for function in (each for owner in (module, *classes) for each in vars(owner).values()):
                if isinstance(function, types.FunctionType) and function.__module__ == name:
                    atheris.instrument_func(function)

    def one(content: bytes) -> None:
        failures.try_input(content)
        if failures.inputs == inputs:
            os._exit(min(failures.report(), 100))

    quiet = ["-rss_limit_mb=0", "-verbosity=0"]
    atheris.Setup([sys.argv[0], f"-seed={failures.seed + 1}", *quiet, *options], one)
    atheris.Fuzz()


def main() -> None:
    kinds = targets()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=10_000, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=kinds, default=list(kinds))
    parser.add_argument("--guided", action="store_true", help="inputs drawn by atheris, guided by coverage")
    parser.add_argument("--failures", type=Path, default=Path("failures"), help="where inputs that fail are left")
    options = parser.parse_args()
    warnings.simplefilter("error")  # a warning would reach the person as one
    failed = 0
    with limits():
        for kind in options.only:
            reader, good = kinds[kind]
            for content in good:
                assert problem(reader, content) is None, f"a good file of the kind {kind}: {problem(reader, content)}"
            failures = Failures(kind, reader, options.seed, options.failures)
            if options.guided:
                failed += guided(failures, good, options.inputs)
                continue
            random = np.random.default_rng([options.seed, *kind.encode()])
            for _ in range(options.inputs):
                failures.try_input(damaged(random, good))
            failed += failures.report()
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
