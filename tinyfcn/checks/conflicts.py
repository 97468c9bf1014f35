"""Finds launches that may run at the same time and access the same memory.

In a recording on a GPU, launches on different streams may overlap (see `Device.side_stream`). If nothing orders two
launches that access the same memory, and one of them writes it, the result of a step depends on chance.
"""

from collections.abc import Sequence
from itertools import combinations

from tinyfcn.devices.device import Launch, address


def conflicts(launches: Sequence[Launch]) -> list[str]:
    """The conflicts between the launches of a recording, one line for each pair of arrays."""
    before = launched_before(launches)
    memory = [_memory(launch) for launch in launches]
    return [
        f"{_name(launches, j)} takes '{second}' and {_name(launches, i)} takes '{first}': both are the same memory, "
        "at least one launch writes it, and nothing orders the two"
        for i, j in combinations(range(len(launches)), 2)
        if i not in before[j]
        for first, start, end, writes in memory[i]
        for second, other_start, other_end, writes_too in memory[j]
        if (writes or writes_too) and start < other_end and other_start < end
    ]


def launched_before(launches: Sequence[Launch]) -> list[frozenset[int]]:
    """For each launch, the numbers of the launches that must have ended when it begins; see Launch."""
    main: frozenset[int] = frozenset()  # the launches that have ended when the next one of the main stream begins
    sides: dict[int, frozenset[int]] = {}
    before = []
    for number, launch in enumerate(launches):
        if launch.joins:
            main = main.union(*sides.values())
            sides.clear()
        if launch.stream:
            ended = sides.setdefault(launch.stream, main)
            sides[launch.stream] = ended | {number}
        else:
            ended, main = main, main | {number}
        before.append(ended)
    return before


def _memory(launch: Launch) -> list[tuple[str, int, int, bool]]:
    """Each array argument of a launch: its name, its first address, its end, and whether the kernel may write it."""
    given = zip(launch.kernel.parameters, launch.arguments, strict=True)
    arrays = [(parameter, array) for parameter, array in given if parameter.is_array and array is not None]
    return [(p.name, address(a), address(a) + a.nbytes, not p.is_const) for p, a in arrays]


def _name(launches: Sequence[Launch], number: int) -> str:
    return f"launch {number} ({launches[number].kernel.name})"
