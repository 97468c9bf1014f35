"""Finds the `.cu` files, prepends `common.cuh` to each, and reads the name and the parameters of every kernel.

Both devices compile the text that this module returns, so the emulator compiles the same code as a GPU. With the
parameters, `launch.py` checks each launch against the declaration of its kernel.

A file in another folder, with kernels of its own, is taken as one that nvcc compiles: it may hold the host's code too.

A file that cannot be read is an error when it is compiled, or when a launch names a kernel that no other file has.
"""

import re
from bisect import bisect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice, pairwise
from pathlib import Path
from typing import NamedTuple

import tinyfcn.kernels
from tinyfcn import files
from tinyfcn.devices.declarations import Declarations, Function, full_name
from tinyfcn.devices.declarations import Parameter as Parameter
from tinyfcn.devices.tokens import PREDEFINED, PREDEFINED_BY_NVCC, Unreadable, tokenise
from tinyfcn.errors import KernelError

KERNELS = Path(tinyfcn.kernels.__file__).parent
COOPERATIVE_GROUPS = "cooperative_groups"  # how the names of the headers begin that NVRTC is given
COMMON = "common.cuh"
_HEADER = re.compile(r"[ \t]*([<\"])([^>\"\n]+)[>\"]")
_INCLUDE_BESIDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"\n]+)".*$', re.MULTILINE)
_LINE = re.compile(r'^#line (\d+) "((?:\\.|[^"\\\n])*)"\n', re.MULTILINE)


@dataclass(frozen=True)
class Kernel:
    """A `__global__` function: its name, its operation (the name of its file), its line, and its parameters.

    `template` names the template parameters of a kernel that is a C++ template; the last ones have `defaults`.
    Such a kernel is compiled for each `instance`: the values of these parameters in a launch, in C++. `scope`: the
    namespaces around the kernel, "a::b::". `is_c`: whether it is an extern "C" function, which a compiled file calls by
    its plain name.
    """

    name: str
    operation: str
    line: int
    parameters: tuple[Parameter, ...]
    template: tuple[str, ...] = ()
    instance: tuple[str, ...] = ()
    scope: str = ""
    is_c: bool = True
    defaults: tuple[str, ...] = ()

    @property
    def required(self) -> int:
        """How many template parameters have no default."""
        return len(self.template) - len(self.defaults)

    def instantiated(self, template: Sequence[int | str]) -> "Kernel":
        """The instance of a template. Its parameters have the types that the template is given."""
        instance = tuple(str(each).lower() if isinstance(each, bool) else str(each) for each in template)
        types = dict(zip(self.template, instance, strict=False))
        defaults = dict(zip(self.template[self.required :], self.defaults, strict=True))
        for name in self.template[len(instance) :]:
            default = defaults.get(name, name)
            types[name] = types.get(default, default)  # typename U = T
        if not (instance or self.required):
            instance = tuple(types.get(default, default) for default in self.defaults)
        parameters = tuple(replace(each, type=full_name(types.get(each.type, each.type))) for each in self.parameters)
        return replace(self, instance=instance, parameters=parameters)

    @property
    def expression(self) -> str:
        """The kernel or its instance in C++: "relu_forward", "fast_conv_forward<8, 16, ...>"."""
        arguments = f"<{', '.join(self.instance)}>" if self.instance else ""
        return f"{self.scope}{self.name}{arguments}"


class Include(NamedTuple):
    """text[start:end] is `#include <name>`, or `#include "name"` where it is quoted."""

    name: str
    is_quoted: bool
    start: int
    end: int


class Edit(NamedTuple):
    """A text that replaces text[start:end]."""

    start: int
    end: int
    new: str


def edited(text: str, edits: Iterable[Edit]) -> str:
    """The text with all edits. An edit within another one is dropped. The number of lines stays the same."""
    parts, done = [], 0
    for start, end, new in sorted(edits, key=lambda edit: (edit.start, -edit.end)):
        if start >= done:
            parts += [text[done:start], new, "\n" * (text.count("\n", start, end) - new.count("\n"))]
            done = end
    return "".join([*parts, text[done:]])


class Source:
    """The text to compile for one operation: `common`, the text of common.cuh, then `text`, that of its own file.

    for_nvcc: whether the file is one that nvcc compiles, and not NVRTC. Then `host_code` lists the start and end of
    each function and declaration that only the host needs. `files`: the names of all files that the text comes from.

    Raises:
        KernelError: a part is not understood, or two kernels have one name. The message names the file and the line.
    """

    def __init__(self, text: str, operation: str, common: str = "", for_nvcc: bool = False) -> None:
        before = f"{_line_directive(COMMON)}{common}\n{_line_directive(f'{operation}.cu')}"
        self.text = f"{before}{text}\n"
        self.for_nvcc = for_nvcc
        self._operation, self._start = operation, len(before)
        self._parts = [
            (match.end(), int(match[1]), re.sub(r"\\(.)", r"\1", match[2])) for match in _LINE.finditer(self.text)
        ]
        self.files = frozenset(name for _, _, name in self._parts)
        try:
            predefined = PREDEFINED_BY_NVCC if for_nvcc else PREDEFINED
            self.tokens, self.compiled = tokenise(self.text, predefined)
            declarations = Declarations(self.compiled)
        except Unreadable as error:
            raise KernelError(f"{self.place(error.position)}: {error}") from None
        self.functions, self.shared = declarations.functions, declarations.shared
        hosts = ((each.first, each.end) for each in self.functions if not each.is_device)
        self.host_code = [*hosts, *declarations.host_statements] if for_nvcc else []
        self.kernels = [self._kernel(each) for each in self.functions if each.is_kernel and each.first >= self._start]
        self.includes = [*self._includes()]
        names: dict[str, Kernel] = {}
        for kernel in self.kernels:
            other = names.setdefault(kernel.name, kernel)
            if other is not kernel:
                raise KernelError(
                    f"{operation}.cu:{kernel.line}: kernel {kernel.name} stands on line {other.line} too: rename one"
                )

    def _kernel(self, function: Function) -> Kernel:
        return Kernel(
            function.name,
            self._operation,
            int(self.place(function.first).rpartition(":")[2]),
            function.parameters,
            function.template,
            scope=function.scope,
            is_c=function.is_c,
            defaults=function.defaults,
        )

    def _includes(self) -> Iterator[Include]:
        for mark, word in pairwise(self.tokens):
            is_include = (mark.text, word.text) == ("#", "include")
            header = _HEADER.match(self.text, word.end) if is_include else None
            if header:
                yield Include(header[2], header[1] == '"', mark.start, header.end())

    def place(self, position: int) -> str:
        """The file and line of a position in the text: "conv2d.cu:57"."""
        start, line, name = self._parts[max(bisect(self._parts, position, key=lambda part: part[0]) - 1, 0)]
        return f"{name}:{line + self.text.count(chr(10), start, position)}"

    @property
    def for_nvrtc(self) -> str:
        """The text without the code of the host and the headers of its libraries, in as many lines."""
        if not self.for_nvcc:
            return self.text
        headers = (each for each in self.includes if not each.name.startswith(COOPERATIVE_GROUPS))
        left_out = [*((each.start, each.end) for each in headers), *self.host_code]
        return edited(self.text, (Edit(start, end, "") for start, end in left_out))

    def line(self, place: str) -> str:
        """The text of a line, "conv2d.cu:57"; "" if there is none."""
        file, _, number = place.rpartition(":")
        for start, first, name in reversed(self._parts):
            if name == file and first <= int(number):
                return next(islice(self.text[start:].splitlines(), int(number) - first, None), "").strip()
        return ""


def operations(folder: Path = KERNELS) -> list[str]:
    """The names of all `.cu` files, sorted: "add", "conv2d", ... In place of a folder, a single file may be given."""
    return [folder.stem] if folder.is_file() else [path.stem for path in files.visible(folder, "*.cu")]


def source(operation: str, folder: Path = KERNELS) -> Source:
    """The text to compile for one operation, read anew. Its `#line` directives give compilers the lines of the files.

    Raises:
        KernelError: a file is missing, is not UTF-8, or is not understood. The message names the file and the line.
    """
    path = folder if folder.is_file() else folder / f"{operation}.cu"
    text, for_nvcc = text_of(path), _is_for_nvcc(path)
    if for_nvcc:
        text = _with_headers(text, path, {COMMON})
    common = "" if folder.is_file() else text_of((KERNELS if folder.parent.parent == KERNELS else folder) / COMMON)
    return _parsed(text, operation, common, for_nvcc)


def _with_headers(text: str, path: Path, read: set[str]) -> str:
    """The text of a file with the headers that it includes from its folder, each of which is read only once."""
    parts, done = [], 0
    for include in _INCLUDE_BESIDE.finditer(text):
        header, line = path.parent / include[1], text.count("\n", 0, include.start()) + 2
        if header.is_file() or include[1] in read:
            is_new = include[1] not in read
            read.add(include[1])
            inner = f"{_line_directive(header.name)}{_with_headers(text_of(header), header, read)}\n" if is_new else ""
            parts += [text[done : include.start()], inner, _line_directive(path.name, line).rstrip()]
            done = include.end()
    return "".join([*parts, text[done:]])


def _is_for_nvcc(path: Path) -> bool:
    """Whether a file is somebody's own: not in the folder KERNELS, and not a changed copy of a file there."""
    if KERNELS in path.parents:
        return False
    ours = KERNELS / path.name
    if not ours.is_file():
        return True
    text = text_of(path)
    return not any(kernel.name in text for kernel in source(path.stem).kernels)


def kernels(folder: Path = KERNELS) -> dict[str, Kernel]:
    """All kernels of the folder by name, without those in files that cannot be read. Each call reads the files anew.

    Raises:
        KernelError: two files define a kernel of the same name.
    """
    found: dict[str, Kernel] = {}
    for operation in operations(folder):
        try:
            declared = source(operation, folder).kernels
        except KernelError:
            continue  # `unread` says why
        for kernel in declared:
            if kernel.name in found:
                raise KernelError(
                    f"kernel {kernel.name} is defined in both {found[kernel.name].operation}.cu and {operation}.cu: "
                    "rename one of them"
                )
            found[kernel.name] = kernel
    return found


def unread(folder: Path = KERNELS) -> list[str]:
    """Why files of the folder cannot be read: a line for each."""
    reasons: dict[str, None] = {}
    for operation in operations(folder):
        try:
            source(operation, folder)
        except KernelError as error:
            reasons[str(error)] = None  # once, if it is common.cuh
    return [*reasons]


def no_kernel(name: str | None, folder: Path = KERNELS) -> KernelError:
    """The error for a name that no kernel of the folder has, or for a folder without any kernel."""
    reasons = "; ".join(unread(folder))
    may_be = f"; it may stand in a file that cannot be read: {reasons}" if reasons else ""
    files = folder if folder.is_file() else folder / "*.cu"
    includes = source(folder.stem, folder).includes if folder.is_file() else []
    if left_out := [each.name for each in includes if each.is_quoted]:
        may_be = f'; it may stand in "{left_out[0]}", which is not in the folder of the file: put it there'
    named = f" named {name}" if name else ""
    return KernelError(f"no kernel{named} in {files}{may_be}")


def text_of(path: Path) -> str:
    """A file's text without a byte-order mark, with lines that end in "\\n"."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        lines = error.object[: error.start + 1].splitlines()
        raise KernelError(
            f"{path.name}:{len(lines)}: the byte 0x{error.object[error.start]:02x} is not UTF-8: save the file as UTF-8"
        ) from None
    except OSError as error:
        raise KernelError(f"{path} cannot be read: {error.strerror}") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise KernelError(f"{path.name}:{line}: the byte 0x00 is no text: save the file as UTF-8")
    return text


_parsed = lru_cache(maxsize=32)(Source)


def _line_directive(name: str, line: int = 1) -> str:
    quoted = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'#line {line} "{quoted}"\n'
