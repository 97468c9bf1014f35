"""The machine code that NVRTC makes of kernels, as nvdisasm lists it: its basic blocks, and how often each is executed.

nvdisasm comes with CUDA's toolkit, and in the triton wheel. Nothing but this module needs it.
"""

import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from tinyfcn.errors import DeviceError

# /*0d20*/               @P0 BRA `(.L_x_1) ;
_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\w*)([^;]*);")
_FUNCTION = re.compile(r"^\s*\.text\.(\S+):")
_LABEL = re.compile(r"^\s*(\.L_\S+):")
_LINE = re.compile(r'//## File "(?:[^"]*[/\\])?([^"]+)", line (\d+)')
_TARGET = re.compile(r"`\((\.L_\S+?)\)")
# What an instruction does to memory: the kind of access, and whether the memory is shared.
MEMORY = {
    "LDG": ("read", False),
    "STG": ("write", False),
    "LDS": ("read", True),
    "STS": ("write", True),
    "LDGSTS": ("read", False),  # cp.async, which writes to shared memory too
    "ATOMG": ("atomic", False),
    "RED": ("atomic", False),
    "ATOMS": ("atomic", True),
}
Access = tuple[str, str, bool]  # a source line, and a value of MEMORY
PTX_LINES = 6  # the C++ that the emulator compiles instead of inline PTX stands at most so many lines below it


@dataclass
class Block:
    """Instructions that follow each other. accesses: how many of them access memory, by what they do.

    loop: the first and the last block of the innermost loop around it, or None. products: its multiply-adds.
    """

    instructions: int = 0
    products: int = 0
    accesses: Counter[Access] = field(default_factory=Counter)
    targets: list[str] = field(default_factory=list)
    loop: tuple[int, int] | None = None


def nvdisasm() -> str | None:
    """The path of nvdisasm, or None."""
    triton = find_spec("triton")
    folders = triton.submodule_search_locations if triton else None
    own = [str(Path(folder) / "backends/nvidia/bin/nvdisasm") for folder in folders or ()]
    return next((found for name in ["nvdisasm", *own] if (found := shutil.which(name))), None)


def disassemble(cubin: bytes) -> dict[str, list[Block]]:
    """The basic blocks of each kernel of a cubin that was compiled with -lineinfo, by its mangled name.

    Raises:
        DeviceError: there is no nvdisasm, or it fails.
    """
    program = nvdisasm()
    if program is None:
        raise DeviceError("instructions are counted by nvdisasm, which is not here: pip install triton brings it")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([program, "-c", "-g", file.name], capture_output=True, text=True, check=False)
    if done.returncode:
        raise DeviceError(f"{program} fails: {done.stderr.strip().splitlines()[-1:]}")
    return parse(done.stdout)


def parse(listing: str) -> dict[str, list[Block]]:
    """The basic blocks of each function of nvdisasm's listing."""
    functions: dict[str, list[Block]] = {}
    labels: dict[str, dict[str, int]] = {}  # of each function: the number of the block that begins with a label
    name, line = "", ""
    for text in listing.splitlines():
        if match := _FUNCTION.match(text):
            name = match[1]
            functions[name], labels[name] = [Block()], {}
        elif not name:
            continue
        elif match := _LINE.search(text):
            line = f"{match[1]}:{match[2]}"
        elif match := _LABEL.match(text):
            if functions[name][-1].instructions:
                functions[name].append(Block())
            labels[name][match[1]] = len(functions[name]) - 1
        elif match := _INSTRUCTION.match(text):
            block = functions[name][-1]
            block.instructions += 1
            block.products += match[1] == "FFMA"
            if match[1] in MEMORY:
                block.accesses[line, *MEMORY[match[1]]] += 1
            if match[1] in ("BRA", "EXIT", "RET"):
                block.targets = _TARGET.findall(match[2])
                functions[name].append(Block())
    for name, blocks in functions.items():
        _find_loops(blocks, labels[name])
    return functions


def _find_loops(blocks: list[Block], labels: Mapping[str, int]) -> None:
    """A jump back makes a loop of all blocks between."""
    for last, block in enumerate(blocks):
        for first in (labels[target] for target in block.targets if labels.get(target, last + 1) <= last):
            if first == last and block.instructions == 1:
                continue  # the endless loop after the end
            for each in blocks[first : last + 1]:
                if each.loop is None or last - first < each.loop[1] - each.loop[0]:
                    each.loop = first, last


def executed(blocks: list[Block], requests: Mapping[Access, float], warps: float) -> float:
    """About how many instructions all warps of a launch execute.

    A block that accesses memory is executed as often as the counted requests of its source lines say. Another one is
    executed as often as its neighbours in the same loop, or once a warp.

    Args:
        requests: of the launch, by source line and access.
    """
    in_code = sum((block.accesses for block in blocks), Counter[Access]())
    known: list[float | None] = []
    for block in blocks:
        count = sum(block.accesses.values())
        sums = sum(times * _requests(requests, access) / in_code[access] for access, times in block.accesses.items())
        known.append(sums / count if count else None)
    total = 0.0
    for number, block in enumerate(blocks):
        near = [known[number]] if known[number] is not None else _neighbours(blocks, known, number)
        times = max((each for each in near if each is not None), default=warps)
        total += block.instructions * (times if block.loop else min(times, warps))
    return total


def _requests(requests: Mapping[Access, float], access: Access) -> float:
    """The requests of a source line, or of the C++ below it where it is inline PTX."""
    place, kind, is_shared = access
    file, _, line = place.rpartition(":")
    near = ((f"{file}:{int(line) + further}", kind, is_shared) for further in range(PTX_LINES + 1))
    return next((requests[each] for each in near if each in requests), 0)


def _neighbours(blocks: list[Block], known: list[float | None], number: int) -> list[float | None]:
    """The executions of the next known blocks of the same loop, before and after."""
    same = [k for k, block in enumerate(blocks) if known[k] is not None and block.loop == blocks[number].loop]
    before, after = (k for k in reversed(same) if k < number), (k for k in same if k > number)
    return [known[k] for k in (next(before, None), next(after, None)) if k is not None]


def products_of_a_shared_load(blocks: list[Block]) -> float | None:
    """In the block with the most multiply-adds: how many there are for each load from shared memory."""
    block = max(blocks, key=lambda each: each.products)
    loads = sum(count for (_, kind, is_shared), count in block.accesses.items() if is_shared and kind == "read")
    return block.products / loads if block.products and loads else None
