"""Compiles kernel files into shared libraries with the machine's C++ compiler, and keeps the libraries in a cache."""

import hashlib
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from tinyfcn import environment, files
from tinyfcn.devices import kernel_source
from tinyfcn.devices.emulator import binutils
from tinyfcn.devices.emulator.translate import explained, translate, without_namespaces
from tinyfcn.errors import DataError, DeviceError, KernelError

if sys.platform != "win32":  # where the emulator can be imported, but does not run
    import fcntl

FOLDER = Path(__file__).parent
RUNTIME = files.visible(FOLDER, "*.cpp")

# -fno-strict-aliasing: kernels read the bits of a float as an int. -ffp-contract=off: a * b + c rounds twice on every
# CPU. -g1: messages need the lines, and nothing else of the debug information. DWARF 4 is what most tools read.
FLAGS = shlex.split(
    "-std=c++17 -O2 -g1 -gdwarf-4 -fno-strict-aliasing -ffp-contract=off -fno-exceptions -fno-threadsafe-statics "
    "-fPIC -fvisibility=hidden -fdiagnostics-color=never"
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
# For an instance of a template, whose variables would not stay in their order, each behind its gap.
GCC_INSTANCE_FLAGS = ["-fno-toplevel-reorder"]
# Flags that g++ does not know. A call of faults.cpp in place of a trap; and nothing that clang would only trap for.
# Three optimisations would make one access of two, which then has no line. `y += x` reads y, which is of interest if
# nothing was written there.
CLANG_FLAGS = shlex.split(
    "-fno-sanitize-trap=all -fno-sanitize=local-bounds -fno-vectorize -fno-slp-vectorize "
    "-mllvm -simplifycfg-sink-common=false -mllvm -simplifycfg-hoist-common=false -mllvm -enable-tail-merge=false "
    "-mllvm -tsan-instrument-read-before-write=1"
)
# The runtime is needed even if a kernel uses nothing of it. An unknown function is an error here, not at the launch.
LINK_FLAGS = ["-Wl,--no-as-needed,-z,defs"] if sys.platform == "linux" else []
# The kernels of tinyfcn need nothing of the C++ library, which takes the linker four times as long as all the rest.
# Other people's files may: <iostream> alone does.
GCC_LIBRARIES = ["-nodefaultlibs", "-lm", "-lc", "-lgcc"] if sys.platform == "linux" else []
CHECK_FLAGS = ["-fsanitize=thread"]  # calls of the functions in shadow.cpp
# Calls of the functions in profile.cpp too. No basic block is copied or joined with another one.
PROFILE_FLAGS = [*CHECK_FLAGS, "-fsanitize-coverage=trace-pc", "-DEMULATOR_PROFILE=1"]
CLANG_PROFILE_FLAGS = ["-fsanitize-coverage=no-prune", "-fno-unroll-loops"]
GCC_PROFILE_FLAGS = shlex.split(
    "-fno-reorder-blocks -fno-reorder-blocks-and-partition -fno-crossjumping -fno-tree-tail-merge -fno-thread-jumps "
    "-fno-peel-loops -fno-split-paths -fno-code-hoisting -fno-guess-branch-probability -fno-if-conversion "
    "-fno-tree-loop-if-convert -Wno-error=maybe-uninitialized"
)
DOUBLE_FLAGS = ["-DEMULATOR_DOUBLE"]

ZIG = ["-m", "ziglang", "c++"]
SUPPLY = "xcode-select --install" if sys.platform == "darwin" else "apt install g++, dnf install gcc-c++"
SUPPLY += ", or pip install ziglang (no root needed)"
COMPILER_SECONDS, VERSION_SECONDS = 600, 30  # a compiler that takes longer hangs


def compiler() -> list[str]:
    """The command of the C++ compiler: $CXX, which may hold options, or the first of c++, g++, clang++, and ziglang.

    Raises:
        DeviceError: no compiler was found, and the message names the command that installs one; or CXX is no command.
    """
    cxx = os.environ.get("CXX", "")
    try:
        chosen = shlex.split(cxx)
    except ValueError as error:
        reason = str(error).lower()
        raise DeviceError(f"CXX is {cxx!r}, which is no command ({reason}): set it to a C++ compiler") from None
    for name, *options in [chosen] if chosen else [["c++"], ["g++"], ["clang++"]]:
        found = shutil.which(name)
        if found:
            return [os.path.abspath(found), *options]  # since the compiler runs in another working directory
    if not chosen and find_spec("ziglang"):
        return [sys.executable, *ZIG]
    missing = f"{chosen[0]!r}, which CXX names, was not found" if chosen else "none was found"
    raise DeviceError(f"the emulator needs a C++ compiler and {missing}: {SUPPLY}, or set CXX to one")


@cache
def version(*command: str) -> str:
    """The text that a compiler prints about itself.

    Raises:
        DeviceError: the command fails, or does not end.
    """
    failure, output = _run(*command, "--version", seconds=VERSION_SECONDS)
    if failure:
        raise DeviceError(f"the C++ compiler {shlex.join(command)} does not run: {failure.splitlines()[0]}")
    return output


def cache_folder() -> Path:
    """The folder of compiled kernels, in $TINYFCN_CACHE or in the platform's cache folder.

    If that folder cannot be written to: a temporary folder, which is removed when the program ends.
    """
    return _writable(environment.cache_folder() / "emulator")


@cache
def _writable(folder: Path) -> Path:
    try:
        return environment.writable_cache(folder)
    except DataError as error:
        return environment.temporary_cache(str(error))


def library(
    operation: str,
    kernels: Path,
    mode: str = "trap",
    double: bool = False,
    instance: kernel_source.Kernel | None = None,
) -> Path:
    """The shared library with the kernels of one operation; `translate` says which kernels. Compiled only once.

    Beside the library lies a list of its symbols, with the suffix .symbols. `mode` is one of the emulator's.

    Several threads and several processes may call this at the same time. If they ask for the same library, the first
    one compiles it and the others wait.

    Raises:
        DeviceError: there is no C++ compiler, or it cannot compile the emulator's own files.
        KernelError: the kernel file does not compile; the message is the compiler's, with the file and the lines.
    """
    source, runtime = translate(operation, kernels, double, instance), _runtime()
    parsed = kernel_source.source(operation, kernels)
    is_clang = "clang" in version(*compiler())
    of_profile = [*PROFILE_FLAGS, *(CLANG_PROFILE_FLAGS if is_clang else GCC_PROFILE_FLAGS)]
    of_mode = {"check": CHECK_FLAGS, "trace": CHECK_FLAGS, "profile": of_profile}.get(mode, [])
    of_compiler = CLANG_FLAGS if is_clang else [*GCC_FLAGS, *GCC_INSTANCE_FLAGS * bool(instance)]
    flags = [*FLAGS, *KERNEL_FLAGS, *of_compiler, *of_mode, *DOUBLE_FLAGS * double]
    libraries = [] if is_clang or parsed.for_nvcc else GCC_LIBRARIES

    def compile_kernels(path: Path) -> None:
        cpp, compiled = path.with_suffix(".cpp"), path.with_suffix(".o")
        cpp.write_text(source, encoding="utf-8")
        # In the kernels' folder the compiler finds the lines that it quotes.
        error = _run_compiler(
            *flags, "-c", str(cpp), "-o", str(compiled), cwd=kernels.parent if kernels.is_file() else kernels
        )
        if error:
            raise KernelError(f"{operation}.cu does not compile:\n{explained(parsed, error)}")
        # Without the flags: with them, the compiler would add its own sanitizer libraries to the emulator's runtime.
        # -O2: zig would add its own where nothing is optimised.
        error = _run_compiler("-shared", "-O2", *LINK_FLAGS, str(compiled), str(runtime), *libraries, "-o", str(path))
        if error:
            raise KernelError(f"{operation}.cu does not link:\n{without_namespaces(error)}")
        path.with_suffix(".symbols").write_text(binutils.nm(path), encoding="utf-8")
        if mode == "profile":
            binutils.write_lines(path, path.with_suffix(binutils.LINES))

    suffixes = [".symbols", *[binutils.LINES] * (mode == "profile")]
    return _build_once(
        _cache_path(operation, source, str(runtime), *flags, *LINK_FLAGS, *libraries), compile_kernels, *suffixes
    )


def _runtime() -> Path:
    """The shared library of the emulator itself, which the libraries of all kernel files use."""

    def compile_runtime(path: Path) -> None:
        if compiler()[-3:] == ZIG:
            environment.print_notice("zig prepares itself and compiles the emulator, once: this takes a minute or two")
        arguments = [*FLAGS, "-fvisibility=default", "-shared", *map(str, RUNTIME), "-ldl", "-o", str(path)]
        error = _run_compiler(*arguments)
        if error:
            raise DeviceError(f"the C++ compiler {shlex.join(compiler())} cannot compile the emulator:\n{error}")

    return _build_once(_cache_path("runtime", *FLAGS), compile_runtime)


def _cache_path(name: str, *inputs: str) -> Path:
    """The path of a library in the cache: its name and a hash of everything that the library is made from."""
    text = "\0".join([*inputs, *_own_sources(), *compiler(), version(*compiler()), platform.machine()])
    plain = re.sub(r"[^\w.-]", "_", name)  # zig takes no quotes in a path
    return cache_folder() / f"{plain}-{hashlib.sha256(text.encode()).hexdigest()[:24]}.so"


@cache
def _own_sources() -> tuple[str, ...]:
    return tuple(path.read_text(encoding="utf-8") for path in [*files.visible(FOLDER, "*.h"), *RUNTIME])


def _build_once(path: Path, build: Callable[[Path], None], *suffixes: str) -> Path:
    """Makes a library with `build` unless a sound one exists. `suffixes`: of the other files that `build` writes.

    `build` writes into a temporary folder, so no other process ever loads half a library. The checksum of the files is
    kept beside them: loading a library that a full disk cut short would end the program.
    """
    made = [path.with_suffix(suffix) for suffix in (*suffixes, path.suffix)]
    checksum = path.with_suffix(".sha256")

    def is_sound() -> bool:
        try:
            return checksum.is_file() and checksum.read_bytes() == _checksum(made)
        except OSError:
            return False

    if is_sound():
        return path
    try:
        with _lock(path.with_suffix(".lock")) as is_alone:
            if not is_sound():  # another thread or process may have made them meanwhile
                for left in path.parent.glob(f"{path.stem}-*") if is_alone else ():  # by a process that was killed
                    shutil.rmtree(left, ignore_errors=True)
                with tempfile.TemporaryDirectory(dir=path.parent, prefix=f"{path.stem}-") as folder:
                    new = Path(folder) / f"{path.stem.rpartition('-')[0]}{path.suffix}"
                    build(new)
                    new.with_suffix(checksum.suffix).write_bytes(_checksum([new.with_suffix(f.suffix) for f in made]))
                    for file in [*made, checksum]:
                        if file.is_dir():
                            shutil.rmtree(file)
                        os.replace(new.with_suffix(file.suffix), file)
    except OSError as error:
        reason = error.strerror or error
        raise DeviceError(f"no library can be kept in {path.parent} ({reason}): {environment.CACHE_WAY_OUT}") from None
    return path


def _checksum(paths: list[Path]) -> bytes:
    return "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}\n" for path in paths).encode()


@contextmanager
def _lock(path: Path) -> Iterator[bool]:
    """Holds a lock that one thread of one process can hold at a time. The system releases it if the process dies.

    Yields whether the lock is held. A file system without locks makes no difference to the result: a library may then
    be compiled twice.
    """
    if sys.platform == "win32" or path.is_dir():
        yield False
        return
    with open(path, "wb") as file:
        is_held = False
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
            is_held = True
        try:
            yield is_held
        finally:
            # Removed first: a thread that waits holds the same file open and finds the library when it goes on.
            path.unlink(missing_ok=True)
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_UN)


def _run_compiler(*arguments: str, cwd: Path = FOLDER) -> str:
    """Runs the compiler, whose last argument is the file to write. Returns its errors, or an empty text."""
    # Where the headers are is no part of FLAGS, so that copies of the package share the cache.
    failure, _ = _run(*compiler(), f"-I{FOLDER}", *arguments, seconds=COMPILER_SECONDS, cwd=cwd)
    if not failure and not Path(arguments[-1]).is_file():
        failure = f"it reports no error, and wrote no {Path(arguments[-1]).name}"
    return failure


def _run(*command: str, seconds: int, cwd: Path = FOLDER) -> tuple[str, str]:
    """Runs a command without input. Returns why it failed, or an empty text; and its output."""
    own_cache = {"ZIG_GLOBAL_CACHE_DIR": str(cache_folder() / "zig")} if seconds > VERSION_SECONDS else {}
    try:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=os.environ | {"LC_ALL": "C", **own_cache},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            process_group=0,
        )
    except OSError as error:
        return f"{command[0]} cannot be run: {error.strerror}", ""
    with process:
        try:
            output, errors = process.communicate(timeout=seconds)
        except BaseException as error:  # Ctrl-C too: nothing that the command has started goes on
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                return f"it did not end within {seconds} seconds", ""
            raise
    return (errors.strip() or f"exit code {process.returncode}") if process.returncode else "", output
