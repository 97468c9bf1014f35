"""The symbols of a library and the lines of its instructions, as nm and addr2line print them.

pyelftools reads them, since an image with Python alone has no binutils. It reads ELF files. For those of macOS the
tools themselves are called, which is untried.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from elftools.dwarf.ranges import BaseAddressEntry
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from tinyfcn.errors import DeviceError

_LETTERS = {".bss": "b", ".data": "d", ".rodata": "r", ".data.rel.ro": "r", ".text": "t"}
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


def addr2line(library: Path, offsets: list[str]) -> str:
    """As addr2line --inlines: "/file:line" of each instruction, and of the calls by which it was inlined.

    The innermost comes first.
    """
    if sys.platform == "darwin":
        return _output("addr2line", "--exe", str(library), "--inlines", *offsets)
    with open(library, "rb") as file:
        elf = ELFFile(file)
        dwarf = elf.get_dwarf_info() if elf.has_dwarf_info() else None
        return "\n".join(line for offset in offsets for line in _lines(dwarf, int(offset, 16))) if dwarf else ""


def _lines(dwarf: Any, address: int) -> Iterator[str]:
    for unit in dwarf.iter_CUs():
        program = dwarf.line_program_for_CU(unit)
        before = None
        for state in (entry.state for entry in program.get_entries() if entry.state):
            if before and before.address <= address < state.address:
                yield f"{_file(program, before.file)}:{before.line}"
                calls = [die for die in unit.iter_DIEs() if _is_call(die) and _holds(dwarf, die, unit, address)]
                for call in reversed(calls):  # those within others come after them
                    attributes = call.attributes
                    yield f"{_file(program, attributes['DW_AT_call_file'].value)}:{attributes['DW_AT_call_line'].value}"
                return
            before = None if state.end_sequence else state


def _file(program: Any, number: int) -> str:
    first = 1 if program.header.version < 5 else 0
    return "/" + program.header.file_entry[number - first].name.decode(errors="replace").rpartition("/")[2]


def _is_call(die: Any) -> bool:
    return die.tag == "DW_TAG_inlined_subroutine" and "DW_AT_call_line" in die.attributes


def _holds(dwarf: Any, die: Any, unit: Any, address: int) -> bool:
    """Whether an instruction belongs to an inlined call."""
    attributes = die.attributes
    if "DW_AT_ranges" in attributes:
        base = unit.get_top_DIE().attributes.get("DW_AT_low_pc")
        start = base.value if base else 0
        for entry in dwarf.range_lists().get_range_list_at_offset(attributes["DW_AT_ranges"].value, unit):
            if isinstance(entry, BaseAddressEntry):
                start = entry.base_address
            elif start + entry.begin_offset <= address < start + entry.end_offset:
                return True
        return False
    if "DW_AT_low_pc" not in attributes:
        return False
    low, high = attributes["DW_AT_low_pc"].value, attributes["DW_AT_high_pc"]
    return bool(low <= address < (high.value if high.form == "DW_FORM_addr" else low + high.value))


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise DeviceError(f"the emulator needs {command[0]}, and it failed: {error}") from None
