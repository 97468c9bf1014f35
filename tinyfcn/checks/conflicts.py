"""Whether launches that may run at the same time leave each other's arrays alone.

A recording on a GPU trusts `Device.side_stream`: launches on different streams may overlap. If two launches without an
order between them touch the same memory, and one of them writes it, the result of a step depends on chance.
"""

from collections.abc import Sequence
from itertools import combinations

from tinyfcn.devices.device import Launch, address


def conflicts(launches: Sequence[Launch]) -> list[str]:
    """The conflicts between a recording's launches, a line for each pair of arrays."""
    before = launched_before(launches)
    memory = [_memory(launch) for launch in launches]
    return [
        f"{_name(launches, j)} takes '{second}' and {_name(launches, i)} takes '{first}', the same memory, "
        "which one of them writes: nothing orders the two"
        for i, j in combinations(range(len(launches)), 2)
        if i not in before[j]
        for first, start, end, writes in memory[i]
        for second, other_start, other_end, writes_too in memory[j]
        if (writes or writes_too) and start < other_end and other_start < end
    ]


def launched_before(launches: Sequence[Launch]) -> list[frozenset[int]]:
    """For each launch, the numbers of the launches that must have ended when it begins; see Launch."""
    main: frozenset[int] = frozenset()  # what has ended when the next launch of the main stream begins
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
    """Each array argument of a launch: the parameter's name, where it begins and ends, whether it may be written."""
    given = zip(launch.kernel.parameters, launch.arguments, strict=True)
    arrays = [(parameter, array) for parameter, array in given if parameter.is_array and array is not None]
    return [(p.name, address(a), address(a) + a.nbytes, not p.is_const) for p, a in arrays]


def _name(launches: Sequence[Launch], number: int) -> str:
    return f"launch {number} ({launches[number].kernel.name})"
