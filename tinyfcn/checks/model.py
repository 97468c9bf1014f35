"""How long a launch should take on a GPU: a model of four terms, from what profile mode counts.

A launch takes its start, and then as long as the busiest multiprocessor needs: for its instructions, for its wavefronts
of shared memory or for the L2 cache to move its bytes, whichever takes longest, and for its warps to wait for their
loads. docs/speed.md tells how far to trust it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from tinyfcn.checks.conflicts import launched_before
from tinyfcn.checks.parts import Part
from tinyfcn.checks.profile import Profiled, compile_parts, profile_part
from tinyfcn.devices.cards import Card
from tinyfcn.devices.device import Launch
from tinyfcn.devices.emulator.profile import LANES, SAMPLE
from tinyfcn.devices.launch import ceil_div

# Fitted by least squares to the instructions and times of the 39 launches in docs/measured/h200-step.csv, whose counts
# stand beside them: those of the kernels that were measured, which have changed since. A warp's
# instructions: for each multiply-add, each request to global memory, each to shared memory, and for the warp itself.
INSTRUCTIONS = {"multiply-add": 1.08, "global": 4.4, "shared": 7.15, "warp": 49.0}
SCHEDULERS = 4  # of a multiprocessor: each issues an instruction of a warp in a cycle
START = 2.6e-6  # seconds
SLOWER = 1.53  # than at full rate: warps wait for each other and for results
LOAD_CYCLES = 105.0  # that a load of a block's warps delays the block, those that overlap taken off
L2_BYTES_OF_A_CYCLE = 20.0  # for each multiprocessor


@dataclass(frozen=True)
class Prediction:
    """Seconds that a launch should take, and of what: `issue`, `shared` and `l2` at the rate that is reached."""

    issue: float
    shared: float
    l2: float
    waiting: float

    @property
    def seconds(self) -> float:
        return START + max(self.issue, self.shared, self.l2) + self.waiting

    @property
    def bound(self) -> str:
        """What takes longest: "start", "issue", "shared", "l2" or "waiting"."""
        terms = {"start": START, **vars(self)}
        return max(terms, key=lambda name: terms[name])


@dataclass(frozen=True)
class Counts:
    """What the model takes of a launch: its blocks and warps, and sums over all of them."""

    blocks: int
    warps: int
    multiply_adds: float
    global_requests: float
    shared_requests: float
    global_loads: float
    shared_wavefronts: float
    l2_bytes: float


def counts_of(profiled: Profiled) -> Counts:
    blocks, totals = prod(profiled.launch.grid), profiled.totals()
    loads = (line.requests for line in profiled.profile.requests if line.kind == "read" and not line.is_shared)
    return Counts(
        blocks,
        blocks * ceil_div(prod(profiled.launch.block), LANES),
        profiled.multiply_adds,
        profiled.sum("requests", shared=False),
        profiled.sum("requests", shared=True),
        profiled.scale * sum(loads),
        totals["shared_wavefronts"],
        totals["l2_bytes"],
    )


def predict(counts: Counts, card: Card) -> Prediction:
    """How long a launch should take on a card."""
    products = counts.multiply_adds / LANES
    instructions = (
        INSTRUCTIONS["multiply-add"] * products
        + INSTRUCTIONS["global"] * counts.global_requests
        + INSTRUCTIONS["shared"] * counts.shared_requests
        + INSTRUCTIONS["warp"] * counts.warps
    )
    of_the_busiest = ceil_div(counts.blocks, card.multiprocessors)  # blocks
    busiest = of_the_busiest / counts.blocks / card.clock  # of a sum over all blocks, in seconds of a cycle each
    l2_rate = L2_BYTES_OF_A_CYCLE * card.multiprocessors * card.clock
    return Prediction(
        SLOWER * max(instructions / SCHEDULERS, products / (card.lanes / LANES)) * busiest,
        SLOWER * counts.shared_wavefronts * busiest,
        SLOWER * counts.l2_bytes / l2_rate,
        LOAD_CYCLES * counts.global_loads / counts.warps * of_the_busiest / card.clock,
    )


def predict_step(parts: Sequence[Part], launches: Sequence[Launch], card: Card) -> tuple[list[float], float]:
    """The seconds of each part of a step, its launches one after another, and of the step with these launches.

    Both as a GPU with as many multiprocessors gets them. Raises DeviceError where there is no C++ compiler.
    """
    compile_parts(parts)
    profiled = [profile_part(part, False, SAMPLE, multiprocessors=card.multiprocessors) for part in parts]
    of_parts = [sum(predict(counts_of(each), card).seconds for each in found) for found in profiled]
    return of_parts, step_seconds(launches, [each for found in profiled for each in found], card)


def step_seconds(launches: Sequence[Launch], profiled: Sequence[Profiled], card: Card) -> float:
    """How long a step should take as a graph: its longest chain of launches, each of which waits for the one before."""
    waiting = list(profiled)
    ends: list[float] = []
    for launch, before in zip(launches, launched_before(launches), strict=True):
        key = launch.kernel.expression, launch.grid
        same = next(each for each in waiting if (each.launch.kernel.expression, each.launch.grid) == key)
        waiting.remove(same)
        ends.append(predict(counts_of(same), card).seconds + max((ends[number] for number in before), default=0.0))
    return max(ends)
