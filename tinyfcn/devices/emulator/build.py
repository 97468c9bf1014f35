"""Makes a shared library of a kernel file with the machine's C++ compiler, and keeps it for the next time."""

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
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from tinyfcn import files
from tinyfcn.devices import kernel_source
from tinyfcn.errors import DeviceError, KernelError

HERE = Path(__file__).parent
RUNTIME = sorted(HERE.glob("*.cpp"))

# No strict aliasing: kernels look at a float's bits as an int's. No contraction: a * b + c rounds twice, on
# every CPU. Of the debug information only the lines, in the version that most tools read.
FLAGS = shlex.split(
    "-std=c++17 -O2 -g1 -gdwarf-4 -fno-strict-aliasing -ffp-contract=off -fno-exceptions "
    f"-fPIC -fvisibility=hidden -fdiagnostics-color=never -I{shlex.quote(str(HERE))}"
)
# For the kernels alone. Calls of the functions in faults.cpp; an accumulator without a first value is an error; no
# stack grows past the page below it unnoticed; a caller stays to be named.
KERNEL_FLAGS = shlex.split(
    "-fsanitize=bounds,alignment,signed-integer-overflow,integer-divide-by-zero,shift-exponent "
    "-Werror=uninitialized -fstack-clash-protection -fno-optimize-sibling-calls"
)
# No access moves away from its line, or from under its `if` (clang does not know these).
GCC_FLAGS = shlex.split("-Werror=maybe-uninitialized -fno-schedule-insns2 -fno-tree-loop-im -fno-tree-sink")
CHECK_FLAGS = ["-fsanitize=thread"]  # calls of the functions in shadow.cpp
DOUBLE_FLAGS = ["-DEMULATOR_DOUBLE"]

# The namespaces that `translate` puts around a kernel, as the messages of g++ and clang++ write them.
_NAMESPACES = re.compile(r"[{(]anonymous( namespace)?[)}]::kernels::")
# extern __shared__ float tile[];
_DYNAMIC_SHARED = re.compile(r"extern\s+__shared__\s+((?:__align__\s*\(\d+\)\s*)?)([\w\s]+?)\s*\b(\w+)\s*\[\s*\]\s*;")
# In double precision: expf(x) becomes exp(x); and 1.0f, .5f, 1e-8f lose their f.
_FLOAT_FUNCTION = re.compile(
    r"\b(a?(?:sin|cos|tan)h?|atan2|sincos|exp|exp2|exp10|expm1|log|log2|log10|log1p|pow|sqrt|cbrt|hypot|erfc?|tgamma|lgamma|"
    r"fabs|fmax|fmin|fma|fmod|fdim|copysign|rint|nearbyint|round|trunc|floor|ceil|ldexp|frexp)f(?=\s*\()"
)
_FLOAT_LITERAL = re.compile(r"(?<![\w.])((?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+)[fF]\b")


def compiler() -> list[str]:
    """The command of the C++ compiler: $CXX (which may hold options), or the first of c++, g++, clang++.

    Raises:
        DeviceError: there is none; the message names the command that supplies one.
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
    said = subprocess.run([*command, "--version"], capture_output=True, text=True)
    if said.returncode:
        raise DeviceError(f"the C++ compiler {shlex.join(command)} does not run: {said.stderr.strip()}")
    return said.stdout


def cache_folder() -> Path:
    """Where compiled kernels are kept: in $TINYFCN_CACHE, or in the platform's cache folder.

    Where that cannot be written: a temporary folder, removed when the program ends.
    """
    # Absolute, because the compiler runs in another folder than this program.
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
    """The C++ file for one kernel file. Each line keeps its number, for the compiler's messages.

    It exports the kernels that are no templates, or the one `instance` of a template.

    Inside namespaces, a kernel's functions may have names that the C library uses for its own.
    """
    text = kernel_source.read(operation, kernels)
    plain = [kernel for kernel in kernel_source.parse(text, operation) if not kernel.template]
    exported = [instance] if instance else plain
    exports = "".join(f"EMULATOR_EXPORT({kernel.name}, {kernel.expression})\n" for kernel in exported)
    for found in _DYNAMIC_SHARED.finditer(text):
        if text.count("{", 0, found.start()) == text.count("}", 0, found.start()):
            raise KernelError(
                f"{operation}.cu: {found[0]!r} stands outside of any function; the emulator wants it inside"
            )
    text = _DYNAMIC_SHARED.sub(r"\1\2* \3 = reinterpret_cast<\2*>(emulator::dynamic_shared());", text)
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
    """The compiled kernels of one operation, from the cache or made now; see `translate`.

    Raises:
        DeviceError: no C++ compiler, or it does not take the emulator itself.
        KernelError: the file does not compile; the message is the compiler's, with the file and its lines.
    """
    source, runtime = translate(operation, kernels, double, instance), _runtime()
    is_gcc = "clang" not in _version(*compiler())
    flags = [*FLAGS, *KERNEL_FLAGS, *GCC_FLAGS * is_gcc, *CHECK_FLAGS * check, *DOUBLE_FLAGS * double]
    path = _product(f"{operation}.so", source, str(runtime), *flags)
    if not path.exists():
        with _made(path) as new:
            cpp, compiled = new.with_name(f"{operation}.cpp"), new.with_suffix(".o")
            cpp.write_text(source, encoding="utf-8")
            # In the kernels' folder the compiler finds the lines that it quotes.
            refused = _run(*flags, "-c", str(cpp), "-o", str(compiled), cwd=kernels)
            if refused:
                raise KernelError(f"{operation}.cu does not compile:\n{_NAMESPACES.sub('', refused)}")
            # Without the flags, which would bring in the compiler's own libraries in place of the runtime.
            refused = _run("-shared", str(compiled), str(runtime), "-o", str(new))
            if refused:
                raise KernelError(f"{operation}.cu does not link:\n{_NAMESPACES.sub('', refused)}")
    return path


def _runtime() -> Path:
    """The emulator's own library, which those of all kernel files share."""
    path = _product("runtime.so", *FLAGS)
    if not path.exists():
        with _made(path) as new:
            refused = _run(*FLAGS, "-fvisibility=default", "-shared", *map(str, RUNTIME), "-ldl", "-o", str(new))
            if refused:
                raise DeviceError(f"the C++ compiler {shlex.join(compiler())} does not take the emulator:\n{refused}")
    return path


def _product(name: str, *made_of: str) -> Path:
    """Where a product lies in the cache: under a hash of all that it is made of."""
    own = [path.read_text(encoding="utf-8") for path in [*sorted(HERE.glob("*.h")), *RUNTIME]]
    text = "\0".join([*made_of, *own, *compiler(), _version(*compiler()), platform.machine()])
    stem, suffix = name.split(".")
    return cache_folder() / f"{stem}-{hashlib.sha256(text.encode()).hexdigest()[:24]}.{suffix}"


@contextmanager
def _made(path: Path) -> Iterator[Path]:
    """A path in a folder of its own to make a product at. It becomes `path` when done: nobody ever loads half of it."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f"{path.stem}-") as folder:
        yield Path(folder) / path.name
        os.replace(Path(folder) / path.name, path)


def _run(*arguments: str, cwd: Path = HERE) -> str:
    """Runs the compiler. Returns what it said if it failed, else an empty text."""
    environment = os.environ | {"LC_ALL": "C"}
    done = subprocess.run([*compiler(), *arguments], cwd=cwd, env=environment, capture_output=True, text=True)
    return (done.stderr.strip() or f"exit code {done.returncode}") if done.returncode else ""
