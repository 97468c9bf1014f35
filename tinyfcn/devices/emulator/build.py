"""Makes a shared library of a kernel file with the machine's C++ compiler, and keeps it for the next time."""

import atexit
import ctypes
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from tinyfcn import files
from tinyfcn.devices import kernel_source
from tinyfcn.errors import DeviceError, KernelError

HEADERS = Path(__file__).parent

# No strict aliasing: kernels look at a float's bits as an int's. No contraction: a * b + c rounds twice, on
# every CPU. Of the debug information only the lines, in the version that most tools read.
FLAGS = shlex.split(
    "-std=c++17 -O2 -g1 -gdwarf-4 -fno-strict-aliasing -ffp-contract=off -fno-exceptions "
    "-fPIC -shared -fvisibility=hidden -fdiagnostics-color=never"
)

# The namespaces that `translate` puts around a kernel, as the messages of g++ and clang++ write them.
_NAMESPACES = re.compile(r"[{(]anonymous( namespace)?[)}]::kernels::")
# extern __shared__ float tile[];
_DYNAMIC_SHARED = re.compile(r"extern\s+__shared__\s+((?:__align__\s*\(\d+\)\s*)?)([\w\s]+?)\s*\b(\w+)\s*\[\s*\]\s*;")


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


def kernel_names(operation: str, kernels: Path) -> list[str]:
    """The kernels in an operation's file."""
    text = (kernels / f"{operation}.cu").read_text(encoding="utf-8")
    return [kernel.name for kernel in kernel_source.parse(text, operation)]


def translate(operation: str, kernels: Path) -> str:
    """The C++ file for one kernel file. Each line keeps its number, for the compiler's messages.

    Inside namespaces, a kernel's functions may have names that the C library uses for its own.
    """
    text = kernel_source.read(operation, kernels)
    text = _DYNAMIC_SHARED.sub(r"\1\2* \3 = reinterpret_cast<\2*>(emulator::dynamic_shared);", text)
    exports = "".join(f"EMULATOR_EXPORT({name})\n" for name in kernel_names(operation, kernels))
    return f'#include "cuda_on_cpu.h"\nnamespace {{ namespace kernels {{\n{text}\n}} }}\n{exports}'


def library(operation: str, kernels: Path) -> ctypes.CDLL:
    """The compiled kernels of one operation, from the cache or made now.

    Raises:
        DeviceError: no C++ compiler, or its product does not load.
        KernelError: the file does not compile; the message is the compiler's, with the file and its lines.
    """
    source = translate(operation, kernels)
    headers = [path.read_text(encoding="utf-8") for path in sorted(HEADERS.glob("*.h"))]
    made_of = [source, *headers, *FLAGS, *compiler(), _version(*compiler()), platform.machine()]
    digest = hashlib.sha256("\0".join(made_of).encode()).hexdigest()[:24]
    path = cache_folder() / f"{operation}-{digest}.so"
    if not path.exists():
        _compile(source, operation, kernels, path)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise DeviceError(f"cannot load {path}: {error}; delete it, or set TINYFCN_CACHE elsewhere") from None


def _compile(source: str, operation: str, kernels: Path, path: Path) -> None:
    """Compiles in a temporary folder beside `path`, then renames: nobody ever loads half a library."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f"{operation}-") as work:
        cpp, product = Path(work) / f"{operation}.cpp", Path(work) / path.name
        cpp.write_text(source, encoding="utf-8")
        done = subprocess.run(
            [*compiler(), *FLAGS, f"-I{HEADERS}", str(cpp), "-o", str(product)],
            cwd=kernels,  # here the compiler finds the lines that it quotes
            env=os.environ | {"LC_ALL": "C"},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise KernelError(f"{operation}.cu does not compile:\n{_NAMESPACES.sub('', done.stderr).strip()}")
        os.replace(product, path)
