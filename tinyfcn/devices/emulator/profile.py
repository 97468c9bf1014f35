"""What profile mode has counted of a launch, as profile.cpp gives it."""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinyfcn.devices.device import Launch

LANES = 32  # of a warp
KINDS = ("read", "write", "atomic")
SECTOR = 32  # bytes
COUNTS = ("requests", "lanes", "parts", "fewest")


class _Count(ctypes.Structure):
    """As in profile.cpp."""

    _fields_ = [
        ("code", ctypes.c_void_p),
        *((name, ctypes.c_longlong) for name in ("context", "region", "kind", "bytes", *COUNTS, "worst")),
        ("worst_at", ctypes.c_longlong * LANES),
    ]


class _Total(ctypes.Structure):
    """As in profile.cpp."""

    _fields_ = [(name, ctypes.c_longlong * 2) for name in ("bytes", "parts", "of_blocks", "of_launch")]


class _Context(ctypes.Structure):
    """As in profile.cpp."""

    _fields_ = [("call", ctypes.c_void_p), ("parent", ctypes.c_longlong)]


class Result(ctypes.Structure):
    """The counts of a launch. As in state.h."""

    _fields_ = [
        ("counts", ctypes.POINTER(_Count)),
        ("totals", ctypes.POINTER(_Total)),
        ("contexts", ctypes.POINTER(_Context)),
        ("count_count", ctypes.c_ulonglong),
        ("context_count", ctypes.c_ulonglong),
    ]


@dataclass(frozen=True)
class Sample:
    """How many of a launch's blocks are run: at least so many of them, until there are so many accesses, and until the
    standard error of the number of requests is 2 %."""

    blocks: int
    accesses: int


SAMPLE = Sample(blocks=16, accesses=500_000)
EVERY_BLOCK = Sample(blocks=1 << 30, accesses=0)


@dataclass
class Requests:
    """The requests to one array by one source line; counts are of the blocks that were run.

    place: "common.cuh:40". caller: the line that calls the function of `place`, or "". kind: one of KINDS. bytes: that
    a lane asks for at once. requests: how often a warp executed the access. lanes: that were active in all requests
    together. parts: what the requests cost, in sectors of global memory or in wavefronts of shared memory. fewest: the
    fewest parts that could do. worst: the parts of the costliest request. worst_at: the bytes from the start of the
    array to each lane's element in that request; None for inactive lanes.
    """

    place: str
    caller: str
    array: str
    is_shared: bool
    kind: str
    bytes: int
    requests: int = 0
    lanes: int = 0
    parts: int = 0
    fewest: int = 0
    worst: int = 0
    worst_at: list[int | None] = field(default_factory=list)


@dataclass
class Traffic:
    """What was read from one array, or written to it, in the blocks that were run.

    size: the bytes of the array. by_lanes: the bytes that lanes asked for. parts: the sectors or wavefronts of all
    requests. of_blocks: the sectors that differ, for each block. of_launch: the sectors that differ.
    """

    array: str
    is_shared: bool
    kind: str
    size: int
    by_lanes: int
    parts: int
    of_blocks: int
    of_launch: int


@dataclass
class LaunchProfile:
    """The counts of one launch. `blocks` of its `block_count` blocks were run."""

    launch: Launch
    kernels: Path  # the folder, or the file
    blocks: int
    block_count: int
    accesses: int
    requests: list[Requests]
    traffic: list[Traffic]


def read(
    result: Result, regions: Sequence[tuple[str, int, bool]], places: Callable[[int], list[str]]
) -> tuple[list[Requests], list[Traffic]]:
    """The counts of a launch by line, in the order of the lines, and by array.

    regions: the name, the bytes, and whether it is shared, of each array. places: the source lines of an instruction,
    the innermost first, which have to be those of kernel files.
    """

    def lines(count: Any) -> tuple[str, str]:
        found, context = places(count.code), count.context
        while context and len(found) < 2:
            found += places(result.contexts[context].call)
            context = result.contexts[context].parent
        own = found[0] if found else "an unknown line"
        return own, next((line for line in found[1:] if line != own), "")

    by_line: dict[tuple[Any, ...], Requests] = {}
    for count in result.counts[: result.count_count]:
        name, _, is_shared = regions[count.region]
        key = (*lines(count), name, is_shared, KINDS[count.kind], count.bytes)
        line = by_line.setdefault(key, Requests(*key))
        for each in COUNTS:
            setattr(line, each, getattr(line, each) + getattr(count, each))
        if count.worst > line.worst:
            line.worst, line.worst_at = count.worst, [None if at < 0 else at for at in count.worst_at]

    traffic = []
    for total, (name, size, is_shared) in zip(result.totals[: len(regions)], regions, strict=True):
        for kind, at in (("read", 0), ("write", 1)):
            if total.bytes[at]:
                counts = total.bytes[at], total.parts[at], total.of_blocks[at], total.of_launch[at]
                traffic.append(Traffic(name, is_shared, kind, size, *counts))
    return sorted(by_line.values(), key=_position), traffic


def _position(line: Requests) -> tuple[Any, ...]:
    file, _, number = (line.caller or line.place).rpartition(":")
    return file, int(number or 0), line.place, line.kind
