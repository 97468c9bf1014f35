"""Compiles kernel files into shared libraries with the machine's C++ compiler, and keeps the libraries in a cache."""

import atexit
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from tinyfcn import files
from tinyfcn.devices import kernel_source
from tinyfcn.errors import DeviceError, KernelError

if sys.platform != "win32":  # where the emulator can be imported, but does not run
    import fcntl

FOLDER = Path(__file__).parent
RUNTIME = sorted(FOLDER.glob("*.cpp"))

# -fno-strict-aliasing: kernels read the bits of a float as an int. -ffp-contract=off: a * b + c rounds twice on every
# CPU. -g1: messages need the lines, and nothing else of the debug information. DWARF 4 is what most tools read.
FLAGS = shlex.split(
    "-std=c++17 -O2 -g1 -gdwarf-4 -fno-strict-aliasing -ffp-contract=off -fno-exceptions "
    f"-fPIC -fvisibility=hidden -fdiagnostics-color=never -I{shlex.quote(str(FOLDER))}"
)
# For kernels only. -fsanitize: calls of the functions in faults.cpp. -Werror=uninitialized: an accumulator without an
# initial value is an error. -fstack-clash-protection: a stack that grows too far touches the page below it.
# -fno-optimize-sibling-calls: every caller stays on the stack, so that a message can name its line.
KERNEL_FLAGS = shlex.split(
    "-fsanitize=bounds,alignment,signed-integer-overflow,integer-divide-by-zero,shift-exponent "
    "-Werror=uninitialized -fstack-clash-protection -fno-optimize-sibling-calls"
)
# Flags that clang does not know. Three optimisations would move an access away from its line, or out of the `if` that
# guards it. Tracking where variables live would take a fifth of the time, and no message names them.
GCC_FLAGS = shlex.split(
    "-Werror=maybe-uninitialized -fno-schedule-insns2 -fno-tree-loop-im -fno-tree-sink "
    "-fno-var-tracking -fno-var-tracking-assignments"
)
CHECK_FLAGS = ["-fsanitize=thread"]  # calls of the functions in shadow.cpp
DOUBLE_FLAGS = ["-DEMULATOR_DOUBLE"]

# The namespaces that `translate` puts around a kernel, as g++ and clang++ write them in their messages.
_NAMESPACES = re.compile(r"[{(]anonymous( namespace)?[)}]::kernels::")
# extern "C" __global__
_C_KERNEL = re.compile(r'extern(\s+)"C"(?=\s*__global__)')
# extern __shared__ float tile[];
_DYNAMIC_SHARED = re.compile(r"extern\s+__shared__\s+((?:__align__\s*\(\d+\)\s*)?)([\w\s]+?)\s*\b(\w+)\s*\[\s*\]\s*;")
# In double precision expf(x) becomes exp(x), and 1.0f, .5f, 1e-8f lose their f.
_FLOAT_FUNCTION = re.compile(
    r"\b(a?(?:sin|cos|tan)h?|atan2|sincos|exp|exp2|exp10|expm1|log|log2|log10|log1p|pow|sqrt|cbrt|hypot|erfc?|tgamma|lgamma|"
    r"fabs|fmax|fmin|fma|fmod|fdim|copysign|rint|nearbyint|round|trunc|floor|ceil|ldexp|frexp)f(?=\s*\()"
)
_FLOAT_LITERAL = re.compile(r"(?<![\w.])((?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+)[fF]\b")


def compiler() -> list[str]:
    """The command of the C++ compiler: $CXX (which may hold options), or the first found of c++, g++, clang++.

    Raises:
        DeviceError: no compiler was found; the message names the command that installs one.
    """
    chosen = shlex.split(os.environ.get("CXX", ""))
    for command in [chosen] if chosen else [["c++"], ["g++"], ["clang++"]]:
        if shutil.which(command[0]):
            return command
    supply = "xcode-select --install" if sys.platform == "darwin" else "apt install g++ or dnf install gcc-c++"
    missing = f"{chosen[0]!r}, which CXX names, was not found" if chosen else "none was found"
    raise DeviceError(f"the emulator needs a C++ compiler and {missing}: {supply}, or set CXX to one")


@cache
def _version(*command: str) -> str:
    done = subprocess.run([*command, "--version"], capture_output=True, text=True)
    if done.returncode:
        raise DeviceError(f"the C++ compiler {shlex.join(command)} does not run: {done.stderr.strip()}")
    return done.stdout


def cache_folder() -> Path:
    """The folder of compiled kernels, in $TINYFCN_CACHE or in the platform's cache folder.

    If that folder cannot be written to: a temporary folder, which is removed when the program ends.
    """
    # Absolute, because the compiler runs in another working directory than this program.
    return _writable(files.cache_folder().absolute() / "emulator")


@cache
def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix="tinyfcn-emulator-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def translate(operation: str, kernels: Path, double: bool = False, instance: kernel_source.Kernel | None = None) -> str:
    """The C++ text for one kernel file. Every line keeps its number, so the compiler's messages name the right one.

    Without an `instance`, the text exports every kernel that is not a template. With an `instance` of a template, it
    exports that instance alone.

    The kernels stand inside namespaces, so a function of theirs may have the name of a function of the C library.

    Raises:
        KernelError: the file declares dynamic shared memory outside of any function.
    """
    text = kernel_source.read(operation, kernels)
    plain = [kernel for kernel in kernel_source.parse(text, operation) if not kernel.template]
    exported = [instance] if instance else plain
    exports = "".join(f"EMULATOR_EXPORT({kernel.name}, {kernel.expression})\n" for kernel in exported)
    for declaration in _DYNAMIC_SHARED.finditer(text):
        before = declaration.start()
        if text.count("{", 0, before) == text.count("}", 0, before):
            raise KernelError(
                f"{operation}.cu: {declaration[0]!r} stands outside of any function; the emulator wants it inside"
            )
    text = _DYNAMIC_SHARED.sub(r"\1\2* \3 = reinterpret_cast<\2*>(emulator::dynamic_shared());", text)
    if instance:  # The compiler drops a static function that is not used: half of the text, in some files.
        text = _C_KERNEL.sub(r"static\1   ", text)  # as long as before, for the columns in the compiler's messages
    if double:
        text = _FLOAT_LITERAL.sub(r"\1", _FLOAT_FUNCTION.sub(r"\1", text))
    return f'#include "cuda_on_cpu.h"\nnamespace {{ namespace kernels {{\n{text}\n}} }}\n{exports}'


def library(
    operation: str,
    kernels: Path,
    check: bool = False,
    double: bool = False,
    instance: kernel_source.Kernel | None = None,
) -> Path:
    """The shared library with the kernels of one operation; `translate` says which kernels. Compiled only once.

    Beside the library lies a list of its symbols, with the suffix .symbols.

    Several threads and several processes may call this at the same time. If they ask for the same library, the first
    one compiles it and the others wait.

    Raises:
        DeviceError: there is no C++ compiler, or it cannot compile the emulator's own files.
        KernelError: the kernel file does not compile; the message is the compiler's, with the file and the lines.
    """
    source, runtime = translate(operation, kernels, double, instance), _runtime()
    is_gcc = "clang" not in _version(*compiler())
    flags = [*FLAGS, *KERNEL_FLAGS, *GCC_FLAGS * is_gcc, *CHECK_FLAGS * check, *DOUBLE_FLAGS * double]

    def compile_kernels(path: Path) -> None:
        cpp, compiled = path.with_suffix(".cpp"), path.with_suffix(".o")
        cpp.write_text(source, encoding="utf-8")
        # In the kernels' folder the compiler finds the lines that it quotes.
        error = _run_compiler(*flags, "-c", str(cpp), "-o", str(compiled), cwd=kernels)
        if error:
            raise KernelError(f"{operation}.cu does not compile:\n{_NAMESPACES.sub('', error)}")
        # Without the flags: with them, the compiler would add its own sanitizer libraries to the emulator's runtime.
        error = _run_compiler("-shared", str(compiled), str(runtime), "-o", str(path))
        if error:
            raise KernelError(f"{operation}.cu does not link:\n{_NAMESPACES.sub('', error)}")
        symbols = tool_output("nm", "--print-size", "--demangle", str(path))
        path.with_suffix(".symbols").write_text(symbols, encoding="utf-8")

    return _build_once(_cache_path(operation, source, str(runtime), *flags), compile_kernels, ".symbols")


def _runtime() -> Path:
    """The shared library of the emulator itself, which the libraries of all kernel files use."""

    def compile_runtime(path: Path) -> None:
        arguments = [*FLAGS, "-fvisibility=default", "-shared", *map(str, RUNTIME), "-ldl", "-o", str(path)]
        error = _run_compiler(*arguments)
        if error:
            raise DeviceError(f"the C++ compiler {shlex.join(compiler())} cannot compile the emulator:\n{error}")

    return _build_once(_cache_path("runtime", *FLAGS), compile_runtime)


def _cache_path(name: str, *inputs: str) -> Path:
    """The path of a library in the cache: its name and a hash of everything that the library is made from."""
    text = "\0".join([*inputs, *_own_sources(), *compiler(), _version(*compiler()), platform.machine()])
    return cache_folder() / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:24]}.so"


@cache
def _own_sources() -> tuple[str, ...]:
    return tuple(path.read_text(encoding="utf-8") for path in [*sorted(FOLDER.glob("*.h")), *RUNTIME])


def _build_once(path: Path, build: Callable[[Path], None], *suffixes: str) -> Path:
    """Makes a library with `build` unless it exists. `suffixes`: of the other files that `build` writes beside it.

    `build` writes into a temporary folder, so no other process ever loads half a library.
    """
    made = [path.with_suffix(suffix) for suffix in (*suffixes, path.suffix)]
    if not all(file.exists() for file in made):
        with _lock(path.with_suffix(".lock")):
            if not all(file.exists() for file in made):  # another thread or process may have made them meanwhile
                with tempfile.TemporaryDirectory(dir=path.parent, prefix=f"{path.stem}-") as folder:
                    new = Path(folder) / f"{path.stem.rpartition('-')[0]}{path.suffix}"
                    build(new)
                    for file in made:
                        os.replace(new.with_suffix(file.suffix), file)
    return path


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Holds a lock that one thread of one process can hold at a time. The system releases it if the process dies.

    A file system without locks makes no difference to the result: a library may then be compiled twice.
    """
    if sys.platform == "win32":
        yield
        return
    with open(path, "wb") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            # Removed first: a thread that waits holds the same file open and finds the library when it goes on.
            path.unlink(missing_ok=True)
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_UN)


def tool_output(*command: str) -> str:
    """The output of a tool of the GNU binutils, which come with the compiler.

    Raises:
        DeviceError: the tool is missing, or it failed.
    """
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise DeviceError(f"the emulator needs {command[0]} (apt install binutils), and it failed: {error}") from None


def _run_compiler(*arguments: str, cwd: Path = FOLDER) -> str:
    """Runs the compiler. Returns its error messages if it failed, else an empty text."""
    environment = os.environ | {"LC_ALL": "C"}
    done = subprocess.run([*compiler(), *arguments], cwd=cwd, env=environment, capture_output=True, text=True)
    return (done.stderr.strip() or f"exit code {done.returncode}") if done.returncode else ""
