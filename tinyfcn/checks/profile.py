"""What launches ask of a GPU's memory, counted on the emulator. docs/profile.md says how, and what it cannot tell."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from tinyfcn.checks.conflicts import launched_before
from tinyfcn.checks.own_file import Call, launch_calls
from tinyfcn.checks.parts import Part
from tinyfcn.checks.pieces import cases_of
from tinyfcn.devices import nvrtc, sass
from tinyfcn.devices.device import MULTIPROCESSORS, Launch
from tinyfcn.devices.emulator import Emulator
from tinyfcn.devices.emulator.profile import LANES, SAMPLE, SECTOR, LaunchProfile, Requests, Sample, Traffic
from tinyfcn.devices.kernel_source import KERNELS
from tinyfcn.devices.launch import ceil_div
from tinyfcn.ops import Operations

BANKS, WORD = 32, 4  # of shared memory; bytes
# A line is marked if it costs more than the fewest parts by this factor. Rows of an image seldom begin at a sector.
WASTEFUL = {False: 1.5, True: 1.05}  # by whether the memory is shared
COUNTED = "counted on the emulator from the source; no time was measured"


@dataclass
class Profiled:
    """The profile of a launch.

    name: the part of a step that it belongs to. multiply_adds: that its results need. Only with nvdisasm: about how
    many instructions its warps execute, and the multiply-adds for each shared load in the block that has the most.
    """

    name: str
    profile: LaunchProfile
    multiply_adds: int = 0
    instructions: float | None = None
    products_of_a_load: float | None = None

    @property
    def launch(self) -> Launch:
        return self.profile.launch

    @property
    def scale(self) -> float:
        """How many blocks each block that was run stands for."""
        return self.profile.block_count / self.profile.blocks

    def sum(self, count: str, shared: bool | None = None) -> float:
        """The sum of a count of all lines, for the whole launch: of shared memory, of global memory, or of both."""
        lines = (line for line in self.profile.requests if shared in (None, line.is_shared))
        return self.scale * sum(getattr(line, count) for line in lines)

    def dram_bytes(self, traffic: Traffic) -> float:
        """The bytes of an array that come from memory, or go there, if the L2 cache holds what blocks share.

        If only some of the blocks were run, their sum over all blocks is limited by the size of the array.
        """
        if self.scale == 1:
            return SECTOR * traffic.of_launch
        return min(SECTOR * self.scale * traffic.of_blocks, -(-traffic.size // SECTOR) * SECTOR)

    def totals(self) -> dict[str, float]:
        """Sums for the whole launch. l1_bytes: of all sectors. l2_bytes: of the sectors that differ, for each block."""
        in_memory = [each for each in self.profile.traffic if not each.is_shared]
        return {
            "requests": self.sum("requests"),
            "sectors": self.sum("parts", shared=False),
            "sectors_ideal": self.sum("fewest", shared=False),
            "shared_wavefronts": self.sum("parts", shared=True),
            "shared_wavefronts_ideal": self.sum("fewest", shared=True),
            "l1_bytes": SECTOR * self.sum("parts", shared=False),
            "l2_bytes": SECTOR * self.scale * sum(each.of_blocks for each in in_memory),
            "dram_bytes": sum(map(self.dram_bytes, in_memory)),
            "multiply_adds": self.multiply_adds,
        }

    def wasteful(self) -> list[Requests]:
        """The lines that cost more than they would have to, those with the most to win first."""
        lines = [line for line in self.profile.requests if is_wasteful(line)]
        return sorted(lines, key=lambda line: line.fewest - line.parts)

    def as_json(self) -> dict[str, Any]:
        profile, launch = self.profile, self.launch
        return {
            "for": self.name,
            "kernel": launch.kernel.expression,
            "file": f"{launch.kernel.operation}.cu",
            "grid": launch.grid,
            "block": launch.block,
            "blocks_counted": profile.blocks,
            "blocks": profile.block_count,
            "total": _rounded(self.totals()),
            "instructions": None if self.instructions is None else round(self.instructions),
            "multiply_adds_a_shared_load": self.products_of_a_load,
            "lines": [self._line_as_json(line) for line in profile.requests],
            "arrays": [self._traffic_as_json(traffic) for traffic in profile.traffic],
        }

    def _line_as_json(self, line: Requests) -> dict[str, Any]:
        unit = "wavefronts" if line.is_shared else "sectors"
        return {
            "line": line.place,
            "caller": line.caller or None,
            "array": line.array,
            "memory": "shared" if line.is_shared else "global",
            "access": line.kind,
            "bytes": line.bytes,
            **_rounded({"requests": self.scale * line.requests}),
            "lanes_active": line.lanes / line.requests,
            **_rounded({unit: self.scale * line.parts, f"{unit}_ideal": self.scale * line.fewest}),
            "worst_request": {unit: line.worst, "offsets": line.worst_at},
            "wrong": what_is_wrong(line) or None,
        }

    def _traffic_as_json(self, traffic: Traffic) -> dict[str, Any]:
        found: dict[str, Any] = {
            "array": traffic.array,
            "memory": "shared" if traffic.is_shared else "global",
            "access": traffic.kind,
            "size": traffic.size,
        }
        counts = {"bytes_by_lanes": self.scale * traffic.by_lanes}
        if traffic.is_shared:
            return found | _rounded({**counts, "wavefronts": self.scale * traffic.parts})
        l1, l2 = SECTOR * self.scale * traffic.parts, SECTOR * self.scale * traffic.of_blocks
        return found | _rounded({**counts, "l1_bytes": l1, "l2_bytes": l2, "dram_bytes": self.dram_bytes(traffic)})


class Profiler(Emulator):
    """The emulator in profile mode. After a launch its results are complete, though only some blocks were counted."""

    def __init__(self, kernels: Path = KERNELS, naive: bool = False, sample: Sample = SAMPLE) -> None:
        super().__init__(kernels, mode="profile", naive=naive, sample=sample)
        self.plain = Emulator(kernels)

    def _launch(self, launch: Launch) -> None:
        given = zip(launch.kernel.parameters, launch.arguments, strict=True)
        written = [array for parameter, array in given if parameter.is_array and not parameter.is_const]
        before = [(array, array.copy()) for array in written if array is not None]
        super()._launch(launch)
        for array, values in before:
            array[...] = values
        self.plain._launch(launch)


def compile_parts(parts: Iterable[Part]) -> None:
    """Compiles the fast kernels of some parts on all cores, so that profile_part need not wait for the compiler."""
    Emulator(mode="profile").compile(launch.kernel for part in parts for launch in part.launches)


def profile_part(
    part: Part, naive: bool, sample: Sample, kernels: Path = KERNELS, multiprocessors: int = MULTIPROCESSORS
) -> list[Profiled]:
    """The launches of a part of a step, whose arguments are those of the step, as a GPU gets them."""
    device = Emulator(kernels, mode="profile", naive=naive, sample=sample)
    device.multiprocessors = multiprocessors
    function, arguments = getattr(Operations(device), part.operation), part.copied_arguments(device.asarray)
    recording = device.record(lambda: function(**arguments))
    recording.launches[:] = part.own(recording.launches)
    recording.replay()
    profiles = [Profiled(str(part), each) for each in device.profiles]
    profiles[0].multiply_adds = part.products()  # by its first launch; others add up what that has left
    return profiles


def profile_operation(operation: str, naive: bool, sample: Sample) -> list[Profiled]:
    """The launches of an operation on the largest of some random inputs."""
    random = np.random.default_rng(0)
    all_cases = [case for _ in range(20) for case in cases_of(operation).sanitize_cases(random)]
    cases = [case for case in all_cases if case.naive == naive]
    largest = max(cases or all_cases, key=lambda case: sum(np.size(value) for value in case.inputs.values()))
    device = Profiler(naive=naive, sample=sample)
    largest.run(Operations(device))
    shapes = ", ".join(f"{name} {np.shape(value)}" for name, value in largest.inputs.items() if np.ndim(value))
    return [Profiled(f"{operation}: {shapes}", each) for each in device.profiles]


def profile_calls(file: Path, calls: Sequence[Call], sample: Sample) -> list[Profiled]:
    """The launches of a person's own file. Raises as check_calls."""
    device = Profiler(file, sample=sample)
    for _ in launch_calls(device, calls):
        pass
    return [Profiled(each.launch.kernel.name, each) for each in device.profiles]


def is_wasteful(line: Requests) -> bool:
    return line.parts > WASTEFUL[line.is_shared] * line.fewest


def what_is_wrong(line: Requests) -> str:
    """Why a line costs more than it would have to, from its costliest request; "" if it does not.

    "36 floats apart: 8 of 32 banks", "1024 floats apart: 32 sectors for 128 bytes"
    """
    if not is_wasteful(line):
        return ""
    at = [offset for offset in line.worst_at if offset is not None]
    steps = Counter(int(step) for step in np.diff(at))
    step, times = steps.most_common(1)[0] if steps else (0, 0)
    in_step = times >= len(at) / 2
    if line.is_shared:
        words = {offset // WORD + k for offset in at for k in range(-(-line.bytes // WORD))}
        banks = len({word % BANKS for word in words})
        where = f"{abs(step) / WORD:g} floats apart" if in_step and abs(step) > line.bytes else f"{len(words)} words"
        if line.kind == "atomic" and len(words) < len(at):
            return f"{len(at)} lanes update {len(words)} words one after another"
        return f"{where}: {banks} of {BANKS} banks"
    if in_step and abs(step) > line.bytes:
        unit, size = ("floats", WORD) if line.bytes % WORD == 0 else ("bytes", 1)
        return f"{abs(step) / size:g} {unit} apart: {_sectors(line, at)}"
    pieces = 1 + sum(count for each, count in steps.items() if each not in (0, line.bytes))
    return (
        f"{pieces} pieces: {_sectors(line, at)}" if pieces > 1 else f"it begins within a sector: {_sectors(line, at)}"
    )


def _sectors(line: Requests, at: Sequence[int]) -> str:
    return f"{line.worst} sectors for {len(set(at)) * line.bytes} bytes"


@dataclass
class Row:
    """A row of a picture of memory: 32 words of 4 bytes. lanes: those that want each word; None: nobody fetches it."""

    label: str
    lanes: list[list[int] | None]


def wavefronts(line: Requests) -> list[Row]:
    """The costliest request of a line to shared memory: a row for each wavefront, a column for each bank."""
    phases = max(1, line.bytes // WORD)
    at = line.worst_at
    pairs = (
        all(at[lane] == at[lane ^ apart] for lane in range(LANES) if None not in (at[lane], at[lane ^ apart]))
        for apart in (1, 2)
    )
    phases = phases // 2 if phases > 1 and line.kind == "read" and any(pairs) else phases
    rows: list[Row] = []
    for phase in range(phases):
        words: list[dict[int, list[int]]] = [{} for _ in range(BANKS)]  # of each bank, with the lanes that want them
        for lane in range(phase * LANES // phases, (phase + 1) * LANES // phases):
            offset = at[lane]
            for word in () if offset is None else range(offset // WORD, (offset + line.bytes - 1) // WORD + 1):
                words[word % BANKS].setdefault(word if line.kind != "atomic" else (word << 8) + lane, []).append(lane)
        for number in range(max(map(len, words))):
            cells = [[*bank.values()][number] if number < len(bank) else None for bank in words]
            rows.append(Row(f"{len(rows) + 1}", cells))
    return rows


def sectors(line: Requests) -> list[Row]:
    """The costliest request of a line to global memory: a row for each 128 bytes; fetched are sectors of 8 words."""
    wanted: dict[int, list[int]] = {}
    for lane, offset in enumerate(line.worst_at):
        for word in () if offset is None else range(offset // WORD, (offset + line.bytes - 1) // WORD + 1):
            wanted.setdefault(word, []).append(lane)
    fetched = {word * WORD // SECTOR for word in wanted}
    return [
        Row(
            f"{start * WORD:,}",
            [
                wanted.get(word, []) if word * WORD // SECTOR in fetched else None
                for word in range(start, start + LANES)
            ],
        )
        for start in sorted({word // LANES * LANES for word in wanted})
    ]


def total(profiled: Iterable[Profiled]) -> dict[str, float]:
    """The sums over launches."""
    sums: Counter[str] = Counter()
    for each in profiled:
        sums.update(each.totals())
    return _rounded(sums)


def chain(launches: Sequence[Launch]) -> int:
    """The number of launches in the longest chain in which each has to wait for the one before."""
    lengths: list[int] = []
    for before in launched_before(launches):
        lengths.append(1 + max((lengths[number] for number in before), default=0))
    return max(lengths, default=0)


def count_instructions(profiled: Sequence[Profiled], architecture: str) -> None:
    """Fills in `instructions` and `products_of_a_load` of each launch.

    Raises DeviceError without NVRTC or nvdisasm.
    """
    code = nvrtc.machine_code((each.launch for each in profiled), architecture, profiled[0].profile.kernels)
    for each in profiled:
        blocks = code[each.launch.kernel.expression]
        requests: Counter[sass.Access] = Counter()
        for line in each.profile.requests:
            requests[line.place, line.kind, line.is_shared] += round(each.scale * line.requests)
        warps = prod(each.launch.grid) * ceil_div(prod(each.launch.block), LANES)
        each.instructions = sass.executed(blocks, requests, warps)
        each.products_of_a_load = sass.products_of_a_shared_load(blocks)


def _rounded(counts: Any) -> dict[str, Any]:
    return {name: round(value) for name, value in counts.items()}
