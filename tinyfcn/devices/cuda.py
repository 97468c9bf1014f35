"""Kernels on an NVIDIA GPU, through CuPy: NVRTC compiles the `.cu` text once, CuPy caches the result on disk.

Importing this module needs neither a GPU nor CuPy. Creating a `Cuda` needs both.
"""

import atexit
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from tinyfcn.devices import kernel_source
from tinyfcn.devices.device import Device, Launch, Recording
from tinyfcn.environment import can_be_written, print_notice
from tinyfcn.errors import DeviceError, KernelError, in_brief


@cache
def import_cupy() -> Any:
    """The module cupy.

    Raises:
        DeviceError: CuPy is not installed; the message names the command that installs it.
    """
    if not can_be_written(cache_folder()):
        # CuPy's import fails if it cannot create its cache folder.
        os.environ["CUPY_CACHE_DIR"] = tempfile.mkdtemp(prefix="tinyfcn-cupy-")
        atexit.register(shutil.rmtree, os.environ["CUPY_CACHE_DIR"], ignore_errors=True)
    try:
        import cupy
    except (ImportError, OSError) as error:
        raise DeviceError(f"CuPy cannot be imported ({in_brief(error)}): pip install cupy-cuda12x") from None
    return cupy


def cache_folder() -> Path:
    """The folder in which CuPy caches compiled kernels."""
    return Path(os.environ.get("CUPY_CACHE_DIR") or os.path.expanduser("~/.cupy/kernel_cache"))


def load_nvrtc() -> Any:
    """CuPy's binding of NVRTC.

    Raises:
        DeviceError: CuPy or NVRTC is missing; the message names the command that installs it.
    """
    import_cupy()
    try:
        from cupy.cuda import nvrtc

        nvrtc.getVersion()
    except (ImportError, RuntimeError, OSError) as error:
        reason, *_ = in_brief(error).split(": No such file")  # which follows for each name that was tried
        raise DeviceError(
            f"NVRTC cannot be loaded ({reason}): pip install 'cuda-toolkit[nvrtc,cudart]==12.*', "
            "or 13.* with a CuPy for CUDA 13"
        ) from None
    return nvrtc


def header_options(text: str) -> tuple[str, ...]:
    """The options by which NVRTC finds CUDA's cooperative groups, if a text includes them.

    CuPy brings a part of the headers, and the package of the CUDA runtime brings the others.
    """
    if "<cooperative_groups" not in text:
        return ()
    packages = [
        Path(folder) for spec in [find_spec("nvidia")] if spec for folder in spec.submodule_search_locations or ()
    ]
    runtime = (header.parent for folder in packages for header in folder.glob("*/include/cooperative_groups.h"))
    own = Path(import_cupy().__file__).parent / "_core/include/cupy/_cccl/libcudacxx"
    return tuple(f"-I{folder}" for folder in (*runtime, own))


def why_not() -> str | None:
    """Why this machine cannot run kernels on a GPU, or None where it can."""
    try:
        cupy = import_cupy()
        try:
            found, hint = cupy.is_available(), "nvidia-smi shows the GPUs that the driver finds"
        except Exception as error:  # CuPy 13 raises its own kind where the driver is missing or too old
            found, hint = False, in_brief(error)
        if not found:
            return f"no NVIDIA GPU with a working driver was found ({hint})"
        load_nvrtc()
    except DeviceError as error:
        return str(error)
    return None


MAX_COMPILERS = 8  # compilations at once; each takes some hundred megabytes
NOTICE_SECONDS = 2  # between two notices of how many kernels are compiled


def streams_at_the_end(launches: Sequence[Launch]) -> set[int]:
    """The side streams that no launch of the main stream follows before they are joined."""
    found: set[int] = set()
    is_end = True
    for launch in reversed(launches):
        if launch.stream and is_end:
            found.add(launch.stream)
        is_end = launch.joins or (is_end and launch.stream > 0)
    return found


@dataclass
class GraphRecording(Recording):
    """A recording that becomes a CUDA graph: one call for all launches, with almost no time between them.

    `pool` owns the memory of the arrays that the recording allocated. It is not reused while the graph exists.
    """

    device: "Cuda"
    pool: Any = None
    graph: Any = None
    cannot_be_captured: bool = False

    def replay(self) -> None:
        """Runs all launches on the current stream, after earlier work: the first time one by one, later as a graph.

        The first replay compiles and runs all kernels, so that the capture does not have to load any. Where no graph
        can be made, a notice says so, and every replay runs the launches one by one.
        """
        if self.graph is not None:
            with self.device.errors("a recorded step"):
                self.graph.launch()
            return
        self.device.compile(launch.kernel for launch in self.launches)
        super().replay()
        if self.cannot_be_captured:
            return
        try:
            self.graph = self.device.capture(self.launches)
        except KernelError as error:
            self.cannot_be_captured = True
            graphless = "the step does not become a graph, and its kernels are launched one by one, which is slower"
            print_notice(f"{in_brief(error)}: {graphless}")


class Cuda(Device):
    """The current CUDA device.

    Raises:
        DeviceError: no CuPy, no GPU, or no driver.
    """

    name = "cuda"

    def __init__(self, kernels: Path = kernel_source.KERNELS, naive: bool = False) -> None:
        super().__init__(kernels, naive)
        reason = why_not()
        if reason:
            raise DeviceError(f"the device 'cuda' cannot be used: {reason}; --device cpu works everywhere")
        self.cupy = import_cupy()
        self.array_type = self.cupy.ndarray
        runtime = self.cupy.cuda.runtime
        with self.errors("the current GPU"):
            self.multiprocessors = runtime.getDeviceProperties(runtime.getDevice())["multiProcessorCount"]
        self._functions: dict[str, Any] = {}

    def empty(self, shape: Sequence[int], dtype: Any = None) -> Any:
        with self.errors("memory for an array"):
            return self.cupy.empty(shape, self.dtypes["float"] if dtype is None else dtype)

    def asarray(self, array: np.ndarray) -> Any:
        self._expect_no_recording("an array is brought to the device")
        with self.errors("a copy to the GPU"):
            return self.cupy.array(np.ascontiguousarray(array))

    def write(self, array: Any, values: np.ndarray) -> None:
        self._expect_no_recording("an array is brought to the device")
        with self.errors("a copy to the GPU"):
            array.set(np.ascontiguousarray(values))  # `array[...] = values` makes CuPy compile kernels for some dtypes

    def to_numpy(self, array: Any) -> np.ndarray:
        self._expect_no_recording("an array is brought to the host")
        with self.errors("a kernel before this copy"):
            return self.cupy.asnumpy(array)

    def record(self, work: Callable[[], Any]) -> GraphRecording:
        """As Device.record; the recording becomes a CUDA graph when it is replayed."""
        pool = self.cupy.cuda.MemoryPool()
        with self.cupy.cuda.using_allocator(pool.malloc):
            return GraphRecording(self, super().record(work).launches, pool)

    def prepare(self, work: Callable[[], Any]) -> None:
        self.compile(launch.kernel for launch in self.record(work).launches)

    def compile(self, kernels: Iterable[kernel_source.Kernel]) -> None:
        """Compiles kernels, several at once. Says how far it is while it takes long, as when none is cached yet."""
        with self.errors("the current GPU"):
            device = self.cupy.cuda.Device()

        def compile_one(kernel: kernel_source.Kernel) -> None:
            with self.errors("the current GPU"), device:  # a new thread starts on device 0
                self._function(kernel)

        missing = {kernel.expression: kernel for kernel in kernels if kernel.expression not in self._functions}
        with ThreadPoolExecutor(min(os.cpu_count() or 1, MAX_COMPILERS)) as pool:
            said = time.monotonic()
            for done, _ in enumerate(pool.map(compile_one, missing.values()), 1):  # raises the errors of the threads
                if time.monotonic() - said >= NOTICE_SECONDS:
                    said = time.monotonic()
                    print_notice(f"{done} of {len(missing)} kernels are compiled; they are kept in {cache_folder()}")

    def capture(self, launches: list[Launch]) -> Any:
        """A CUDA graph of the launches.

        A capturing stream runs nothing: its launches become nodes of the graph. A stream that waits for an event of a
        capturing stream is captured too.
        """
        cuda = self.cupy.cuda
        # The first launch of each side stream goes to `side`, one after another: more gradients of weights at once
        # would take multiprocessors from the critical path. The later launches go to `tail`, so that the next side
        # stream need not wait for them: they add up the sums of the first. Work that no launch of the main stream
        # follows delays none, and goes to `last` at once.
        with self.errors("the streams of a capture"):
            main, side, tail, last = (cuda.Stream(non_blocking=True) for _ in range(4))
        unfollowed = streams_at_the_end(launches)
        begun: set[int] = set()  # the recording's side streams since the last join
        used: set[Any] = set()  # `side`, `tail` and `last`, if they have launches since then

        def wait(waiting: Any, awaited: Any) -> None:
            waiting.wait_event(awaited.record(cuda.Event(disable_timing=True)))

        def join() -> None:
            for stream in (side, tail, last):
                if stream in used:
                    wait(main, stream)
            begun.clear()
            used.clear()

        def stream_of(launch: Launch) -> Any:
            if not launch.stream:
                return main
            first = launch.stream not in begun
            begun.add(launch.stream)
            stream = last if launch.stream in unfollowed else side if first else tail
            if first or stream is tail:
                wait(stream, main if first else side)
            used.add(stream)
            return stream

        with self.errors("the capture of a step"):
            main.begin_capture()
            try:
                for launch in launches:
                    if launch.joins:
                        join()
                    with stream_of(launch):
                        self._launch(launch)
                join()
            except BaseException:
                with suppress(self.cupy.cuda.runtime.CUDARuntimeError):  # a capture that failed ends with an error
                    main.end_capture()
                raise
            return main.end_capture()

    def _launch(self, launch: Launch) -> None:
        kernel = launch.kernel
        function = self._function(kernel)
        with self.errors(f"{kernel.expression} in {kernel.operation}.cu"):
            function(launch.grid, launch.block, tuple(launch.arguments), shared_mem=launch.shared_bytes)

    @contextmanager
    def errors(self, what: str) -> Iterator[None]:
        """Turns a driver error into a KernelError. Launches are asynchronous: a later call may report their errors."""
        cuda = self.cupy.cuda
        try:
            yield
        except (cuda.runtime.CUDARuntimeError, cuda.driver.CUDADriverError) as error:
            raise KernelError(f"{what}: {in_brief(error)}") from None
        except cuda.memory.OutOfMemoryError as error:
            raise KernelError(f"{what}: {in_brief(error)}; a smaller --batch takes less") from None

    def _function(self, kernel: kernel_source.Kernel) -> Any:
        name = kernel.expression
        if name not in self._functions:
            text = kernel_source.source(kernel.operation, self.kernels).text
            instance = {} if kernel.is_c else {"name_expressions": [name]}
            module = self.cupy.RawModule(code=text, options=("-std=c++17", *header_options(text)), **instance)
            try:
                with self.errors(f"{name} in {kernel.operation}.cu cannot be loaded"):
                    self._functions[name] = module.get_function(kernel.name if kernel.is_c else name)
            except self.cupy.cuda.compiler.CompileException as error:
                raise KernelError(f"{kernel.operation}.cu does not compile:\n{error}") from None
        return self._functions[name]
