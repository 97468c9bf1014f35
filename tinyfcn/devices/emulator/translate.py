"""Turns a kernel file into C++ for a CPU: the text that build.py compiles, and words for what the emulator lacks."""

import re
from collections.abc import Iterator
from itertools import accumulate, pairwise
from pathlib import Path

from tinyfcn.devices import kernel_source, nvrtc
from tinyfcn.devices.declarations import Shared
from tinyfcn.devices.kernel_source import Edit, edited
from tinyfcn.devices.launch import is_structure
from tinyfcn.devices.tokens import PREDEFINED, PREDEFINED_BY_NVCC
from tinyfcn.errors import KernelError

# The namespaces that `translate` puts around a kernel, as g++ and clang++ write them in their messages.
_NAMESPACES = re.compile(r"[{(]anonymous( namespace)?[)}]::kernels::")
# Headers whose names nvcc knows without an #include; and those of CUDA, which cuda_on_cpu.h takes the place of.
NVCC_HEADERS = ("stdlib.h", "stdint.h", "limits.h", "float.h", "math.h")
_CUDA = re.compile(
    "cu[a-z]+[._/]|cub/|thrust/|nv[a-z]*[./]|mma|cooperative_groups|device_|vector_|sm_|helper_|math_(const|func)"
)
# Things that kernels name and the emulator does not have, and what to do.
_HALF = "the emulator computes in float and double, and not in half precision: try the kernel in float"
_TEXTURES = ("cudaTextureObject_t", "cudaSurfaceObject_t", "CUtexObject", "tex1D", "tex2D", "tex3D", "texture")
_OF_A_WARP = ("__shfl", "__shfl_up", "__shfl_down", "__shfl_xor", "__any", "__all", "__ballot")
_MISSING = {
    **dict.fromkeys(_OF_A_WARP, "GPUs since Volta have this only with a mask: __shfl_down_sync(0xffffffff, ...)"),
    **dict.fromkeys(("asm", "__asm__", "__asm"), "the emulator does not understand inline PTX: write it in C++"),
    **dict.fromkeys(("half", "__half", "half2", "__half2", "__nv_bfloat16", "nv_bfloat16", "__nv_bfloat162"), _HALF),
    **dict.fromkeys(("wmma", "nvcuda"), "the emulator has no tensor cores"),
    **dict.fromkeys(_TEXTURES, "the emulator has no textures and no surfaces"),
    **dict.fromkeys(("curandState", "curandState_t", "curand_init"), "the emulator has no cuRAND"),
    **dict.fromkeys(("cuda", "cub", "thrust"), "the emulator has none of the CUDA Core Compute Libraries"),
    **dict.fromkeys(("cudaMalloc", "cudaStream_t", "cudaDeviceSynchronize"), "a kernel launches no kernels here"),
}
# In double precision expf becomes exp, and 1.0f, .5f, 1e-8f, 0x1p-3f lose their f.
_FLOAT_FUNCTION = re.compile(
    r"(a?(?:sin|cos|tan)h?|atan2|sincos|exp|exp2|exp10|expm1|log|log2|log10|log1p|pow|sqrt|cbrt|hypot|erfc?|tgamma|lgamma|"
    r"fabs|fmax|fmin|fma|fmod|fdim|copysign|rint|nearbyint|round|trunc|floor|ceil|ldexp|frexp)f"
)
_FLOAT_LITERAL = re.compile(
    r"(?:(?:[\d']+\.[\d']*|\.[\d']+)(?:[eE][-+]?\d+)?|[\d']+[eE][-+]?\d+|0[xX][\da-fA-F'.]+[pP][-+]?\d+)[fF]"
)


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
    edits = [*_edits_of_shared(source), *_edits_of_bounds(source)]
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
    if any(include.name.startswith(kernel_source.COOPERATIVE_GROUPS) for include in source.includes):
        headers.append(f'#include "{kernel_source.COOPERATIVE_GROUPS}.h"')
    if source.for_nvcc:
        library = (
            include.name for include in source.includes if not include.is_quoted and not _CUDA.match(include.name)
        )
        found = (f"#if __has_include(<{name}>)\n#include <{name}>\n#endif" for name in [*NVCC_HEADERS, *library])
        headers, predefined = ["#define EMULATOR_NVCC", *found, *headers], PREDEFINED_BY_NVCC
        edits += _edits_for_nvcc(source)
    edits += (Edit(include.start, include.end, "") for include in _left_out(source))
    text = edited(source.text, edits)
    defined = "".join(f"#define {name} {value}\n" for name, value in predefined.items())
    before = "\n".join(headers)
    inside = f'{text}\nEMULATOR_GAP\n#line 1 "exports"\n{entries}'
    return f"{before}\n{defined}namespace {{ namespace kernels {{\n{inside}}} }}\n{exports}"


def _edits_of_shared(source: kernel_source.Source) -> Iterator[Edit]:
    """Dynamic shared memory becomes a pointer: a local one, or one in the file that each launch sets.

    The declaration of other variables gets their type, and a gap before each.
    """
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
        elif shared.word:
            yield Edit(shared.word.start, shared.word.end, _shared_word(source, shared, 0))
            type_ = f"{'volatile ' * shared.is_volatile}{shared.type}"
            for number, comma in enumerate(shared.commas, 1):  # a gap before each variable
                yield Edit(comma, comma + 1, f"; {_shared_word(source, shared, number)} {type_} ")
    declared = [(shared.start, shared.end) for shared in source.shared if not shared.is_dynamic]
    for token in source.tokens:  # __shared__ stands for `static`, which alignas may not follow
        if token.text in ("alignas", "static") and any(start <= token.start < end for start, end in declared):
            yield Edit(token.start, token.end, "__align__" if token.text == "alignas" else "")


def _shared_word(source: kernel_source.Source, shared: Shared, number: int) -> str:
    """What stands in place of __shared__ for one of the variables of a declaration."""
    if not source.for_nvcc:
        return f"EMULATOR_SHARED({shared.type})"
    before = [*_shared_before(source, shared), *shared.names[:number]]
    return f"EMULATOR_SHARED_AFTER(({' + '.join(f'sizeof({name})' for name in before) or '0'}), {shared.type})"


def _shared_before(source: kernel_source.Source, shared: Shared) -> Iterator[str]:
    """The shared variables of the same function that are declared before one of them, in blocks that are still open."""
    function = next((each for each in source.functions if each.body <= shared.start < each.end), None)
    first = function.body if function else shared.start
    for other in source.shared:
        if other.word and not other.is_dynamic and first <= other.start < shared.start:
            braces = [token.text for token in source.tokens if other.end <= token.start < shared.start]
            depths = accumulate((text == "{") - (text == "}") for text in braces)
            if min(depths, default=0) >= 0:
                yield from other.names


def _edits_of_bounds(source: kernel_source.Source) -> Iterator[Edit]:
    """A kernel with __launch_bounds__ begins with a check of the block's threads."""
    for function in source.functions:
        if function.bounds:
            within = source.text[slice(*function.bounds)].replace("\n", " ")
            yield Edit(function.body, function.body, f"emulator::launch_bounds({within});")


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
        if not source.for_nvcc and not include.name.startswith(kernel_source.COOPERATIVE_GROUPS):
            raise KernelError(
                f"{source.place(include.start)}: #include {include.name}: NVRTC, which compiles the kernels of tinyfcn "
                "for GPUs, has no such header"
            )
        yield include


def explained(source: kernel_source.Source, error: str) -> str:
    """The compiler's message, after a line for each thing in the file that the emulator does not have."""
    found: dict[str, str] = {}
    named = {*re.findall(r"\w+", error), "asm", "__asm__", "__asm"}  # compilers do not name the last ones
    undeclared = {*re.findall(r"\w+", "".join(line for line in error.splitlines() if "declared" in line))}
    for place, name in re.findall(r"(\S+:\d+):\d+: error: (?:variable )?.(\w+). (?:may be|is) (?:used )?uninit", error):
        found.setdefault(
            name, f"{place}: {name}: it may be read before it has a value: give it one where it is declared\n"
        )
    for token in source.compiled:
        what = _MISSING.get(token.text) or (not source.for_nvcc and nvrtc.INSTEAD.get(token.text))
        if what and token.text in named:
            found.setdefault(what, f"{source.place(token.start)}: {token.text}: {what}\n")
    for host in source.functions if source.for_nvcc else ():
        if not host.is_device and host.name in undeclared:
            what = "only the host can call this function: write __device__ before it"
            found.setdefault(host.name, f"{source.place(host.start)}: {host.name}: {what}\n")
    for include in source.includes:
        if include.is_quoted and not _CUDA.match(include.name):
            what = "this header is not in the folder of the kernel file: put it there"
            found.setdefault(include.name, f'{source.place(include.start)}: #include "{include.name}": {what}\n')
    return "".join(found.values()) + without_namespaces(error)


def without_namespaces(error: str) -> str:
    """A compiler's message without the namespaces that `translate` adds."""
    return _NAMESPACES.sub("", error)
