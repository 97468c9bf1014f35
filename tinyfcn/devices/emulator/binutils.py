"""The symbols of a library and the lines of its instructions, as nm and addr2line print them.

pyelftools reads them, since an image with Python alone has no binutils. It reads ELF files. For those of macOS the
tools themselves are called, which is untried.
"""

import bisect
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from elftools.dwarf.ranges import BaseAddressEntry
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from tinyfcn.errors import DeviceError

_LETTERS = {".bss": "b", ".data": "d", ".rodata": "r", ".data.rel.ro": "r", ".text": "t"}
LINES = ".lines"  # the suffix of the file that `write_lines` writes beside a library

# addr2line prints "/the folder/conv2d.cu:57", or "/the folder/conv2d.cu:57 (discriminator 3)".
_LOCATION = re.compile(r"([^/\n]+):(\d+)(?: \(discriminator \d+\))?$", re.MULTILINE)
_COMPONENT = re.compile(r"L?(\d+)")


def nm(library: Path) -> str:
    """As nm --print-size --demangle: offset, size, letter and name of each kernel, each variable and the like.

    A name has the names of its scopes, but neither template arguments nor parameters.
    """
    if sys.platform == "darwin":
        return _output("nm", "--print-size", "--demangle", str(library))
    lines = []
    with open(library, "rb") as file:
        elf = ELFFile(file)
        sections = [_LETTERS.get(section.name, "?") for section in elf.iter_sections()]
        table = elf.get_section_by_name(".symtab")
        assert isinstance(table, SymbolTableSection), "a library that was just linked has its symbols"
        for symbol in table.iter_symbols():
            if symbol["st_size"] and isinstance(symbol["st_shndx"], int):
                letter = sections[symbol["st_shndx"]]
                letter = letter.upper() if symbol["st_info"]["bind"] == "STB_GLOBAL" else letter
                lines.append(f"{symbol['st_value']:016x} {symbol['st_size']:016x} {letter} {_plain(symbol.name)}")
    return "\n".join([*lines, ""])


def _plain(name: str) -> str:
    """ "(anonymous namespace)::kernels::block_sum::partial" of _ZZN12_GLOBAL__N_17kernels9block_sumEfE7partial."""
    if not name.startswith("_Z"):
        return name
    path = name[2:].lstrip("Z")  # a Z for each function that the name is local to; a lambda is one
    found, _ = _components(path, 0)
    if name.startswith("_ZZ"):
        name = path
        of_function = name.rfind("E")
        while of_function > 0 and not (last := _components(name, of_function + 1)[0]):
            of_function = name.rfind("E", 0, of_function)
        found += last[:1] if of_function > 0 else []
    return "::".join(found).replace("_GLOBAL__N_1", "(anonymous namespace)")


def _components(name: str, at: int) -> tuple[list[str], int]:
    """The names, each after its length, that begin at a position of a mangled name; and where they end."""
    found = []
    at += name[at : at + 1] == "N"
    while match := _COMPONENT.match(name, at):
        end = match.end() + int(match[1])
        found.append(name[match.end() : end])
        at = end
    return found, at


class Code(NamedTuple):
    """A range of instructions, and the places "file:line" that they come from: the innermost of inlined calls first."""

    start: int
    end: int
    places: tuple[str, ...]


def write_lines(library: Path, file: Path) -> None:
    """Keeps what `places` needs, which takes a while to find."""
    file.write_text(json.dumps(_codes(library)), encoding="utf-8")


def places(library: Path, address: int) -> tuple[str, ...]:
    """As addr2line --inlines: "file:line" of an instruction, and of the calls by which it was inlined.

    The innermost comes first.
    """
    if sys.platform == "darwin":
        text = _output("addr2line", "--exe", str(library), "--inlines", hex(address))
        return tuple(f"{file}:{line}" for file, line in _LOCATION.findall(text))
    codes = _lines_of(library)
    code = codes[bisect.bisect_right(codes, address, key=lambda code: code.start) - 1] if codes else None
    return code.places if code and code.start <= address < code.end else ()


@cache
def _lines_of(library: Path) -> list[Code]:
    kept = library.with_suffix(LINES)
    if kept.is_file():
        return [Code(start, end, tuple(of)) for start, end, of in json.loads(kept.read_text(encoding="utf-8"))]
    return _codes(library)


def _codes(library: Path) -> list[Code]:
    """The instructions of a library, in order."""
    codes = []
    with open(library, "rb") as file:
        elf = ELFFile(file)
        dwarf: Any = elf.get_dwarf_info() if elf.has_dwarf_info() else None
        for unit in dwarf.iter_CUs() if dwarf else ():
            program = dwarf.line_program_for_CU(unit)
            calls = [
                (start, end, f"{_file(program, die.attributes['DW_AT_call_file'].value)}:"
                 f"{die.attributes['DW_AT_call_line'].value}")
                for die in unit.iter_DIEs() if _is_call(die) for start, end in _ranges(dwarf, die, unit)
            ]  # fmt: skip
            before = None
            for state in (entry.state for entry in program.get_entries() if entry.state):
                if before and before.address < state.address:
                    # Those within others come after them.
                    outer = [place for start, end, place in reversed(calls) if start <= before.address < end]
                    own = f"{_file(program, before.file)}:{before.line}"
                    codes.append(Code(before.address, state.address, (own, *outer)))
                before = None if state.end_sequence else state
    return sorted(codes)


def _file(program: Any, number: int) -> str:
    first = 1 if program.header.version < 5 else 0
    return str(program.header.file_entry[number - first].name.decode(errors="replace").rpartition("/")[2])


def _is_call(die: Any) -> bool:
    return die.tag == "DW_TAG_inlined_subroutine" and "DW_AT_call_line" in die.attributes


def _ranges(dwarf: Any, die: Any, unit: Any) -> Iterator[tuple[int, int]]:
    """The instructions of an inlined call, from a start to an end."""
    attributes = die.attributes
    if "DW_AT_ranges" in attributes:
        base = unit.get_top_DIE().attributes.get("DW_AT_low_pc")
        start = base.value if base else 0
        for entry in dwarf.range_lists().get_range_list_at_offset(attributes["DW_AT_ranges"].value, unit):
            if isinstance(entry, BaseAddressEntry):
                start = entry.base_address
            else:
                yield start + entry.begin_offset, start + entry.end_offset
    elif "DW_AT_low_pc" in attributes:
        low, high = attributes["DW_AT_low_pc"].value, attributes["DW_AT_high_pc"]
        yield low, high.value if high.form == "DW_FORM_addr" else low + high.value


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise DeviceError(f"the emulator needs {command[0]}, and it failed: {error}") from None
