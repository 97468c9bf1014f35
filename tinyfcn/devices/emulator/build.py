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
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from tinyfcn import environment, files
from tinyfcn.devices import kernel_source
from tinyfcn.devices.launch import is_structure
from tinyfcn.devices.tokens import PREDEFINED, PREDEFINED_BY_NVCC
from tinyfcn.errors import DataError, DeviceError, KernelError

if sys.platform != "win32":  # where the emulator can be imported, but does not run
    import fcntl

FOLDER = Path(__file__).parent
RUNTIME = files.visible(FOLDER, "*.cpp")

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
# The runtime is needed even if a kernel uses nothing of it. An unknown function is an error here, not at the launch.
LINK_FLAGS = ["-Wl,--no-as-needed,-z,defs"] if sys.platform == "linux" else []
CHECK_FLAGS = ["-fsanitize=thread"]  # calls of the functions in shadow.cpp
DOUBLE_FLAGS = ["-DEMULATOR_DOUBLE"]

COMPILER_SECONDS, VERSION_SECONDS = 600, 30  # a compiler that takes longer hangs

# The namespaces that `translate` puts around a kernel, as g++ and clang++ write them in their messages.
_NAMESPACES = re.compile(r"[{(]anonymous( namespace)?[)}]::kernels::")
COOPERATIVE_GROUPS = "cooperative_groups"
# Headers whose names nvcc knows without an #include; and those of CUDA, which cuda_on_cpu.h takes the place of.
NVCC_HEADERS = ("stdlib.h", "stdint.h", "limits.h", "float.h", "math.h")
_CUDA = re.compile(
    "cu[a-z]+[._/]|cub/|thrust/|nv[a-z]*[./]|mma|cooperative_groups|device_|vector_|sm_|helper_|math_(const|func)"
)
# Things that kernels name and the emulator does not have, and what to do.
_HALF = "the emulator computes in float and double, and not in half precision: try the kernel in float"
_TEXTURES = ("cudaTextureObject_t", "cudaSurfaceObject_t", "CUtexObject", "tex1D", "tex2D", "tex3D", "texture")
_MISSING = {
    **dict.fromkeys(("asm", "__asm__", "__asm"), "the emulator does not understand inline PTX: write it in C++"),
    **dict.fromkeys(("half", "__half", "half2", "__half2", "__nv_bfloat16", "nv_bfloat16", "__nv_bfloat162"), _HALF),
    **dict.fromkeys(("wmma", "nvcuda"), "the emulator has no tensor cores"),
    **dict.fromkeys(_TEXTURES, "the emulator has no textures and no surfaces"),
    **dict.fromkeys(("curandState", "curandState_t", "curand_init"), "the emulator has no cuRAND"),
    **dict.fromkeys(("cuda", "cub", "thrust"), "the emulator has none of the CUDA Core Compute Libraries"),
    **dict.fromkeys(("cudaMalloc", "cudaStream_t", "cudaDeviceSynchronize"), "a kernel launches no kernels here"),
}
_SHUFFLES = ("__shfl", "__shfl_up", "__shfl_down", "__shfl_xor", "__any", "__all", "__ballot")
_MISSING |= dict.fromkeys(_SHUFFLES, "GPUs since Volta have this only with a mask: __shfl_down_sync(0xffffffff, ...)")
_INFINITY = "NVRTC has no INFINITY and no NAN: write __int_as_float(0x7f800000) and __int_as_float(0x7fc00000)"
_MISSING_IN_NVRTC = {
    **dict.fromkeys(("INFINITY", "NAN"), _INFINITY),
    **dict.fromkeys(("FLT_MAX", "FLT_MIN", "FLT_EPSILON"), "NVRTC has no float.h: write the number, 3.402823466e+38f"),
    **dict.fromkeys(("M_PI", "INT_MAX", "INT_MIN"), "NVRTC has no system headers: write the number"),
}
# In double precision expf becomes exp, and 1.0f, .5f, 1e-8f, 0x1p-3f lose their f.
_FLOAT_FUNCTION = re.compile(
    r"(a?(?:sin|cos|tan)h?|atan2|sincos|exp|exp2|exp10|expm1|log|log2|log10|log1p|pow|sqrt|cbrt|hypot|erfc?|tgamma|lgamma|"
    r"fabs|fmax|fmin|fma|fmod|fdim|copysign|rint|nearbyint|round|trunc|floor|ceil|ldexp|frexp)f"
)
_FLOAT_LITERAL = re.compile(
    r"(?:(?:[\d']+\.[\d']*|\.[\d']+)(?:[eE][-+]?\d+)?|[\d']+[eE][-+]?\d+|0[xX][\da-fA-F'.]+[pP][-+]?\d+)[fF]"
)


def compiler() -> list[str]:
    """The command of the C++ compiler: $CXX (which may hold options), or the first found of c++, g++, clang++.

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
    supply = "xcode-select --install" if sys.platform == "darwin" else "apt install g++ or dnf install gcc-c++"
    missing = f"{chosen[0]!r}, which CXX names, was not found" if chosen else "none was found"
    raise DeviceError(f"the emulator needs a C++ compiler and {missing}: {supply}, or set CXX to one")


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


def translate(operation: str, kernels: Path, double: bool = False, instance: kernel_source.Kernel | None = None) -> str:
    """The C++ text for one kernel file. Every line keeps its number, so the compiler's messages name the right one.

    Without an `instance`, the text exports every kernel that is not a template. With an `instance` of a template, it
    exports that instance alone.

    The kernels stand inside namespaces, so a function of theirs may have the name of a function of the C library.

    A file that is not one of tinyfcn's may say what nvcc understands: the host's functions are left out, headers of the
    C++ library come first, and a thread may return before a barrier (see `returns` in runtime.h).

    Raises:
        KernelError: the file cannot be read, or includes a header that NVRTC does not have.
    """
    source = kernel_source.source(operation, kernels)
    exported = [instance] if instance else [kernel for kernel in source.kernels if not kernel.template]
    entries = "".join(f"EMULATOR_ENTRY({kernel.name}, {kernel.expression})\n" for kernel in exported)
    exports = "".join(f"EMULATOR_EXPORT({kernel.name})\n" for kernel in exported)
    with_structures = (each.name for each in exported if any(is_structure(p.type) for p in each.parameters))
    exports += "".join(f"EMULATOR_EXPORT_BYTES({name})\n" for name in with_structures)
    edits = [*_edits_of_shared(source)]
    if instance:  # The compiler drops a static function that is not used: half of the text, in some files.
        for extern, c, kernel in zip(source.tokens, source.tokens[1:], source.tokens[2:], strict=False):
            if (extern.text, c.text, kernel.text) == ("extern", '"C"', "__global__"):
                # As long as before, for the columns in the compiler's messages.
                edits += [Edit(extern.start, extern.end, "static"), Edit(c.start, c.end, "   ")]
    if double:
        for token, after in pairwise(source.tokens):
            function = after.text == "(" and _FLOAT_FUNCTION.fullmatch(token.text)
            if function or (token.kind == "number" and _FLOAT_LITERAL.fullmatch(token.text)):
                edits.append(Edit(token.end - 1, token.end, ""))
    headers, predefined = ['#include "cuda_on_cpu.h"'], PREDEFINED
    if any(include.name.startswith(COOPERATIVE_GROUPS) for include in source.includes):
        headers.append(f'#include "{COOPERATIVE_GROUPS}.h"')
    if source.for_nvcc:
        library = (
            include.name for include in source.includes if not include.is_quoted and not _CUDA.match(include.name)
        )
        found = (f"#if __has_include(<{name}>)\n#include <{name}>\n#endif" for name in [*NVCC_HEADERS, *library])
        headers, predefined = ["#define EMULATOR_NVCC", *found, *headers], PREDEFINED_BY_NVCC
        edits += _edits_for_nvcc(source)
    edits += (Edit(include.start, include.end, "") for include in _left_out(source))
    text = _edited(source.text, edits)
    defined = "".join(f"#define {name} {value}\n" for name, value in predefined.items())
    before = "\n".join(headers)
    return f"{before}\n{defined}namespace {{ namespace kernels {{\n{text}\n{entries}}} }}\n{exports}"


class Edit(NamedTuple):
    """A text that replaces text[start:end]."""

    start: int
    end: int
    new: str


def _edited(text: str, edits: Iterable[Edit]) -> str:
    """The text with all edits, of which the outer ones come first. Each keeps the number of its lines."""
    parts, done = [], 0
    for start, end, new in sorted(edits, key=lambda edit: (edit.start, -edit.end)):
        if start >= done:
            parts += [text[done:start], new, "\n" * (text.count("\n", start, end) - new.count("\n"))]
            done = end
    return "".join([*parts, text[done:]])


def _edits_of_shared(source: kernel_source.Source) -> Iterator[Edit]:
    """Dynamic shared memory becomes a pointer: a local one, or one in the file that each launch sets."""
    outside: set[str] = set()
    for shared in source.shared:
        if shared.is_dynamic and shared.in_function:
            memory = f"reinterpret_cast<{shared.type}*>(emulator::dynamic_shared())"
            yield Edit(shared.start, shared.end, "".join(f"{shared.type}* {name} = {memory};" for name in shared.names))
        elif shared.is_dynamic:
            new = [name for name in shared.names if name not in outside]
            outside.update(new)
            pointers = (
                f"static {shared.type}* {name}; static emulator::DynamicShared {name}_set(&{name});" for name in new
            )
            yield Edit(shared.start, shared.end, "".join(pointers))
    declared = [(shared.start, shared.end) for shared in source.shared if not shared.is_dynamic]
    for token in source.tokens:  # __shared__ stands for `static`, which alignas may not follow
        if token.text in ("alignas", "static") and any(start <= token.start < end for start, end in declared):
            yield Edit(token.start, token.end, "__align__" if token.text == "alignas" else "")


def _edits_for_nvcc(source: kernel_source.Source) -> Iterator[Edit]:
    bodies = [(each.start, each.end) for each in source.functions if each.is_kernel]
    for word, semicolon in pairwise(source.tokens):
        if (word.text, semicolon.text) == ("return", ";") and any(a < word.start < b for a, b in bodies):
            yield Edit(word.end, word.end, " emulator::returns()")
    for mark, word, once in zip(source.tokens, source.tokens[1:], source.tokens[2:], strict=False):
        if (mark.text, word.text, once.text) == ("#", "pragma", "once"):
            yield Edit(mark.start, once.end, "")
    yield from (Edit(start, end, "") for start, end in source.host_code)


def _left_out(source: kernel_source.Source) -> Iterator[kernel_source.Include]:
    for include in source.includes:
        if not source.for_nvcc and not include.name.startswith(COOPERATIVE_GROUPS):
            raise KernelError(
                f"{source.place(include.start)}: #include {include.name}: NVRTC, which compiles the kernels of tinyfcn "
                "for GPUs, has no such header"
            )
        yield include


def _explained(source: kernel_source.Source, error: str) -> str:
    """The compiler's message, after a line for each thing in the file that the emulator does not have."""
    found: dict[str, str] = {}
    named = {word for line in error.splitlines() if "error:" in line for word in re.findall(r"\w+", line)}
    if "Assembler" in error:
        named.update(("asm", "__asm__", "__asm"))
    for token in source.compiled:
        what = _MISSING.get(token.text) or (not source.for_nvcc and _MISSING_IN_NVRTC.get(token.text))
        if what and token.text in named:
            found.setdefault(what, f"{source.place(token.start)}: {token.text}: {what}\n")
    for host in source.functions if source.for_nvcc else ():
        if not host.is_device and re.search(rf"\b{host.name}\b.* (not declared|undeclared)", error):
            what = "only the host can call this function: write __device__ before it"
            found.setdefault(host.name, f"{source.place(host.start)}: {host.name}: {what}\n")
    for include in source.includes:
        if include.is_quoted and not _CUDA.match(include.name):
            what = "a kernel file is compiled alone: copy what it needs of this header into it"
            found.setdefault(include.name, f'{source.place(include.start)}: #include "{include.name}": {what}\n')
    return "".join(found.values()) + _NAMESPACES.sub("", error)


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
    parsed = kernel_source.source(operation, kernels)
    is_gcc = "clang" not in version(*compiler())
    flags = [*FLAGS, *KERNEL_FLAGS, *GCC_FLAGS * is_gcc, *CHECK_FLAGS * check, *DOUBLE_FLAGS * double]

    def compile_kernels(path: Path) -> None:
        cpp, compiled = path.with_suffix(".cpp"), path.with_suffix(".o")
        cpp.write_text(source, encoding="utf-8")
        # In the kernels' folder the compiler finds the lines that it quotes.
        error = _run_compiler(*flags, "-c", str(cpp), "-o", str(compiled), cwd=kernels)
        if error:
            raise KernelError(f"{operation}.cu does not compile:\n{_explained(parsed, error)}")
        # Without the flags: with them, the compiler would add its own sanitizer libraries to the emulator's runtime.
        error = _run_compiler("-shared", *LINK_FLAGS, str(compiled), str(runtime), "-o", str(path))
        if error:
            raise KernelError(f"{operation}.cu does not link:\n{_NAMESPACES.sub('', error)}")
        symbols = tool_output("nm", "--print-size", "--demangle", str(path))
        path.with_suffix(".symbols").write_text(symbols, encoding="utf-8")

    return _build_once(_cache_path(operation, source, str(runtime), *flags, *LINK_FLAGS), compile_kernels, ".symbols")


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
    text = "\0".join([*inputs, *_own_sources(), *compiler(), version(*compiler()), platform.machine()])
    return cache_folder() / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:24]}.so"


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


def tool_output(*command: str) -> str:
    """The output of a tool of the GNU binutils, which come with the compiler.

    Raises:
        DeviceError: the tool is missing, or it failed.
    """
    failure, output = _run(*command, seconds=COMPILER_SECONDS)
    if failure:
        raise DeviceError(f"the emulator needs {command[0]} (apt install binutils), and it failed: {failure}")
    return output


def _run_compiler(*arguments: str, cwd: Path = FOLDER) -> str:
    """Runs the compiler, whose last argument is the file to write. Returns its errors, or an empty text."""
    failure, _ = _run(*compiler(), *arguments, seconds=COMPILER_SECONDS, cwd=cwd)
    if not failure and not Path(arguments[-1]).is_file():
        failure = f"it reports no error, and wrote no {Path(arguments[-1]).name}"
    return failure


def _run(*command: str, seconds: int, cwd: Path = FOLDER) -> tuple[str, str]:
    """Runs a command without input. Returns why it failed, or an empty text; and its output."""
    try:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=os.environ | {"LC_ALL": "C"},
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
