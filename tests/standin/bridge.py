"""Puts the stand-in in the place of a GPU in this process: CuPy finds a device, and its kernels run on the emulator.

run.py sets the environment that this module reads, and Python imports it at its start (site/sitecustomize.py).
"""

import atexit
import ctypes
import importlib.util
import os
import re
import sys
import traceback
from collections import Counter
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

if "STANDIN_MODULE" not in os.environ:
    raise ImportError("this runs on the stand-in for a GPU alone: python tests/standin/run.py")

MODULE = "cupy_backends.cuda.api.runtime"
ORDERS = ("eager", "lazy", "random")  # numbered as in standin.cpp
LAUNCH_FAILED, NOT_SUPPORTED = 719, 801
RUNNER = ctypes.CFUNCTYPE(
    *(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.POINTER(ctypes.c_uint)),
    *(ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_uint), ctypes.c_int),
)

launched: Counter[str] = Counter()  # how often each kernel ran
emulators: dict[int, Any] = {}  # a function of the driver -> the emulator of the device that compiled the function
faults: list[str] = []  # messages of kernels that failed; the driver's own error is only a number


def start(order: str, seed: int = 0) -> None:
    """Chooses when queued work runs."""
    driver.standin_start(_runner, ORDERS.index(order), seed)


def take_reports() -> list[str]:
    """What is wrong though no call said so, and every call that was refused, since the last call of this function."""
    found, faults[:] = [*faults], []
    return found + driver.standin_take(False).decode().splitlines()


def take_calls() -> dict[str, int]:
    """How often each function of the driver was called since the last call of this function."""
    lines = (line.split() for line in driver.standin_take(True).decode().splitlines())
    return {name: int(count) for name, count in lines}


def kernel_of(text: str, declared: dict[str, Any]) -> Any:
    """tinyfcn's kernel for a name in a cubin: "relu_forward", "void a::fast_conv<8, true>(float const*)"; or None."""
    found = re.match(r"(?:void )?(?:\w+::)*(\w+)(?:<(.*?)>)?(?:\(|$)", text)
    if not found or found[1] not in declared:
        return None
    return declared[found[1]].instantiated(re.findall(r"\w+", found[2] or ""))


def array_at(address: int, dtype: np.dtype) -> np.ndarray:
    """All memory from an address on, as far as it may hold one array."""
    size = driver.standin_bytes(address) // dtype.itemsize
    if not size:
        raise MemoryError(f"{address:#x} is not an address in the memory of the device")
    return np.frombuffer((ctypes.c_char * (size * dtype.itemsize)).from_address(address), dtype)


def run_cupys_own(name: str, arguments: Any, sizes: Any) -> None:
    """The kernels that CuPy makes of `x[...] = y`, `x[...] = 1` and `x + 1`, which tests use."""

    def strided(number: int, dtype: Any) -> np.ndarray:
        """The array of CuPy's struct CArray: address, size, shape, strides."""
        words = np.frombuffer(ctypes.string_at(arguments[number], sizes[number]), np.int64)
        shape, strides = np.split(words[2:], 2)
        return as_strided(array_at(int(words[0]), np.dtype(dtype)), shape, strides)

    if found := re.fullmatch(r"cupy_copy__(\w+)_(\w+)", name):
        strided(1, found[2])[...] = strided(0, found[1])
    elif found := re.fullmatch(r"cupy_add__(\w+)_(float|int)_\1", name):
        number = np.frombuffer(ctypes.string_at(arguments[1], sizes[1]), f"{found[2][0]}{sizes[1]}")[0]
        strided(2, found[1])[...] = strided(0, found[1]) + np.dtype(found[1]).type(number)
    elif name == "cupy_fill":
        pattern = f"V{sizes[0]}"
        strided(1, pattern)[...] = np.frombuffer(ctypes.string_at(arguments[0], sizes[0]), pattern)[0]
    else:
        raise LookupError(f"{name} is not a kernel of tinyfcn")


def run_kernel(function: int, name: bytes, configuration: Any, arguments: Any, sizes: Any, count: int) -> int:
    """Called by the driver when a launch's turn comes. Returns an error code, and must not raise."""
    from tinyfcn.devices.device import Launch

    try:
        emulator, text = emulators.get(function), name.decode()
        kernel = emulator and kernel_of(text, emulator._declared)
        if not kernel:
            run_cupys_own(text, arguments, sizes)
            return 0
        given: list[Any] = []
        for i, parameter in enumerate(kernel.parameters):
            value = ctypes.string_at(arguments[i], sizes[i])
            dtype = emulator.dtypes[parameter.type]
            address = int.from_bytes(value, "little")
            if not parameter.is_array:
                given.append(np.frombuffer(value, dtype)[0])
            elif address:
                given.append(array_at(address, dtype))
            else:
                given.append(None if parameter.is_optional else np.empty(0, dtype))
        grid, block, shared = configuration[0:3], configuration[3:6], configuration[6]
        emulator._launch(Launch(kernel, tuple(grid), tuple(block), given, shared))
        launched[kernel.expression] += 1
        return 0
    except BaseException as error:
        faults.append(f"{name.decode()}: {type(error).__name__}: {error}")
        if not isinstance(error, (Exception, KeyboardInterrupt)):
            traceback.print_exc()
        return NOT_SUPPORTED if isinstance(error, LookupError) else LAUNCH_FAILED


class PlantingLoader(SourceFileLoader):
    """Loads a module with one text in it replaced, for test_planted_bugs.py."""

    def get_code(self, fullname: str) -> Any:
        old, new = os.environ["STANDIN_REPLACE"].split("\x1f")
        source = Path(self.path).read_text(encoding="utf-8")
        assert source.count(old) == 1, f"{old!r} stands {source.count(old)} times in {self.path}"
        return compile(source.replace(old, new), self.path, "exec")


class Finder:
    """Finds the rebuilt module in place of the installed one, and begins when it is imported."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name == "tinyfcn.devices.cuda" and "STANDIN_REPLACE" in os.environ:
            file = Path(path[0]) / "cuda.py"
            return importlib.util.spec_from_file_location(name, file, loader=PlantingLoader(name, str(file)))
        if name != MODULE:
            return None
        start(os.environ.get("STANDIN_ORDER", "lazy"), int(os.environ.get("STANDIN_SEED", "0")))
        return importlib.util.spec_from_file_location(name, os.environ["STANDIN_MODULE"])


def watch() -> None:
    """From here on, each function knows its emulator, and what pools give out or take back becomes NaN.

    CuPy calls the hooks of the thread that entered them, so the memory of other threads keeps its content.
    """
    import cupy
    from cupy.cuda import memory_hook

    from tinyfcn.devices.cuda import Cuda
    from tinyfcn.devices.emulator import Emulator

    function_of = Cuda._function
    made: dict[tuple[Path, int], Any] = {}

    def remembered(device: Cuda, kernel: Any) -> Any:
        function = function_of(device, kernel)
        if function.kernel.ptr in emulators:
            return function
        edited = max(file.stat().st_mtime_ns for file in Path(device.kernels).glob("*.cu*"))
        key = device.kernels, edited
        if key not in made:
            made[key] = Emulator(device.kernels)
        emulators[function.kernel.ptr] = made[key]
        return function

    Cuda._function = remembered  # type: ignore[method-assign]

    class Poison(memory_hook.MemoryHook):
        name = "stand-in"

        def malloc_postprocess(self, *, mem_ptr: int, size: int, mem_size: int, **rest: Any) -> None:
            if mem_ptr:
                driver.standin_block(mem_ptr, size, mem_size, True, cupy.cuda.get_current_stream().ptr)

        def free_preprocess(self, *, mem_ptr: int, mem_size: int, **rest: Any) -> None:
            if mem_ptr:
                driver.standin_block(mem_ptr, 0, mem_size, False, cupy.cuda.get_current_stream().ptr)

    hook = Poison()
    hook.__enter__()
    atexit.register(hook.__exit__, None, None, None)


_runner = RUNNER(run_kernel)
# By its name CuPy's own driver module finds this library already loaded.
driver = ctypes.CDLL(str(Path(os.environ["STANDIN_MODULE"]).with_name("libcuda.so.1")), ctypes.RTLD_GLOBAL)
driver.standin_block.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_bool, ctypes.c_void_p
driver.standin_bytes.argtypes, driver.standin_bytes.restype = [ctypes.c_void_p], ctypes.c_size_t
driver.standin_take.argtypes, driver.standin_take.restype = [ctypes.c_bool], ctypes.c_char_p
driver.standin_graphs.restype = ctypes.c_size_t
sys.meta_path.insert(0, Finder())
