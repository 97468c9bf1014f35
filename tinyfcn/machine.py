"""Which devices, tools and data this machine has for tinyfcn, and how to supply a missing one."""

import platform
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from tinyfcn.data import find_data
from tinyfcn.devices import cuda
from tinyfcn.devices.emulator import build
from tinyfcn.environment import cache_folder, can_be_written
from tinyfcn.errors import TinyfcnError
from tinyfcn.runs import newest_finished
from tinyfcn.training import available_threads


@dataclass(frozen=True)
class Finding:
    """One line of `tinyfcn info`. `remedy` says how to supply what is missing."""

    name: str
    text: str
    remedy: str | None = None


def findings(data_dir: Path | None = None) -> list[Finding]:
    """All lines of `tinyfcn info`. Nothing that is missing raises an error."""
    # First, since CuPy is given another folder if it cannot have this one.
    kernel_cache = _found("kernel cache", lambda: _cache(cuda.cache_folder()), "export CUPY_CACHE_DIR=FOLDER")
    return [
        _found("GPU", _gpu, "an NVIDIA GPU and its driver; without one, --device cpu trains everything"),
        _found("NVRTC", _nvrtc, "pip install cupy-cuda12x 'cuda-toolkit[nvrtc,cudart]==12.*'"),
        _found("C++ compiler", _compiler, build.SUPPLY),
        Finding("CPU", f"{available_threads()} threads are used, {platform.machine()}, {platform.system()}"),
        _found("digits", lambda: find_data(data_dir).text, "--data-dir FOLDER, or --dataset builtin: no files needed"),
        _found("cache", lambda: _cache(cache_folder()), "export TINYFCN_CACHE=FOLDER"),
        kernel_cache,
        Finding("classifier", _newest("cnn"), None if newest_finished("cnn") else "tinyfcn train-cnn"),
        Finding("FCN", _newest("fcn"), None if newest_finished("fcn") else "tinyfcn train-fcn"),
    ]


def _found(name: str, find: Callable[[], str], remedy: str) -> Finding:
    try:
        return Finding(name, find())
    except TinyfcnError as error:
        return Finding(name, f"not usable: {error}", remedy)


def gpu() -> tuple[str, str]:
    """The current GPU's name and architecture, "sm_90"."""
    runtime = cuda.import_cupy().cuda.runtime
    properties = runtime.getDeviceProperties(runtime.getDevice())
    return properties["name"].decode(), f"sm_{properties['major']}{properties['minor']}"


def processor() -> str:
    """The processor's name."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _gpu() -> str:
    reason = cuda.why_not()
    if reason:
        raise TinyfcnError(reason)
    runtime = cuda.import_cupy().cuda.runtime
    name, architecture = gpu()
    version = runtime.driverGetVersion()
    memory = f"{runtime.getDeviceProperties(runtime.getDevice())['totalGlobalMem'] / 2**30:.0f} GiB"
    driver = f"driver for CUDA {version // 1000}.{version % 1000 // 10}"
    return f"{name}, {architecture}, {memory}, {driver}"


def _nvrtc() -> str:
    major, minor = cuda.load_nvrtc().getVersion()
    return f"{major}.{minor}, CuPy {cuda.import_cupy().__version__}; compiles kernels even without a GPU"


def _compiler() -> str:
    command = build.compiler()
    name = next(iter(build.version(*command).splitlines()), shlex.join(command))
    name = f"zig {metadata.version('ziglang')}, from PyPI ({name})" if command[-3:] == build.ZIG else name
    return f"{name}: runs the kernels on the emulator"


def _cache(folder: Path) -> str:
    if not can_be_written(folder):
        raise TinyfcnError(f"{folder} cannot be written to")
    return f"{folder}" if folder.exists() else f"{folder} (not made yet)"


def _newest(kind: str) -> str:
    run = newest_finished(kind)
    return f"newest finished run: {run.folder}" if run else "no finished run in runs/"
