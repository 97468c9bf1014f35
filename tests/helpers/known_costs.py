"""Launches whose requests, sectors and wavefronts can be told by hand. The kernels stand in known_costs.cu."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinyfcn.devices import kernel_source
from tinyfcn.devices.device import Device

SOURCE = Path(__file__).with_name("known_costs.cu")
WARPS = 8  # of 2 blocks of 128 threads


def floats(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.float32)


def numbers(count: int, kind: type = np.int32) -> np.ndarray:
    return (np.arange(count) % 100).astype(kind)


@dataclass(frozen=True)
class Cost:
    """What the accesses of one kind to one array cost: the sums of all its lines. None: it is not said."""

    requests: int
    lanes: int
    parts: int
    fewest: int | None = None


@dataclass(frozen=True)
class Known:
    """A launch, and what it costs: {"read x": Cost(...)}."""

    kernel: str
    what: str
    grid: Any
    block: Any
    arguments: list[Any]
    costs: dict[str, Cost]
    shared_bytes: int = 0


def each(parts: int, fewest: int | None = None, lanes: int = 32) -> Cost:
    """The cost of the 8 warps, each of which makes one request."""
    return Cost(WARPS, WARPS * lanes, WARPS * parts, None if fewest is None else WARPS * fewest)


def two(kernel: str, what: str, arguments: list[Any], **costs: Cost) -> Known:
    """A launch of 2 blocks of 128 threads."""
    return Known(kernel, what, 2, 128, arguments, {name.replace("_", " "): cost for name, cost in costs.items()})


def warp(kernel: str, arguments: list[Any], what: str = "", block: Any = 32, shared: int = 0, **costs: Cost) -> Known:
    named = {name.replace("_", " "): cost for name, cost in costs.items()}
    return Known(kernel, what, 1, block, arguments, named, shared)


SHUFFLED = np.random.default_rng(0).permutation(256).astype(np.int32)
SHUFFLED_SECTORS = sum(len({*(warp // 8)}) for warp in SHUFFLED.reshape(8, 32))

KNOWN = [
    *(
        two(
            "strided",
            f"by {stride}",
            [floats(256 * stride), floats(256), stride],
            read_x=each(parts, 4),
            write_y=each(4),
        )
        for stride, parts in ((1, 4), (2, 8), (3, 12), (4, 16), (8, 32), (9, 32), (32, 32))
    ),
    *(
        two("shifted", f"by {by}", [floats(256 + by), floats(256), by], read_x=each(parts, 4), write_y=each(4, 4))
        for by, parts in ((0, 4), (1, 5), (7, 5), (8, 4))
    ),
    two("one_for_all", "", [floats(2), floats(256)], read_x=each(1, 1), write_y=each(4, 4)),
    two("reversed", "", [floats(256), floats(256)], read_x=each(4, 4)),
    two(
        "shuffled",
        "",
        [floats(256), SHUFFLED, floats(256)],
        read_x=Cost(8, 256, SHUFFLED_SECTORS, 32),
        read_index=each(4),
    ),
    two("bytes", "", [numbers(256, np.uint8), numbers(256, np.uint8)], read_x=each(1, 1), write_y=each(1, 1)),
    two("shorts", "", [numbers(256, np.int16), numbers(256, np.int16)], read_x=each(2, 2), write_y=each(2, 2)),
    two("longs", "", [numbers(256, np.int64), numbers(256, np.int64)], read_x=each(8, 8), write_y=each(8, 8)),
    two("by_two", "", [floats(512), floats(512)], read_x=each(8, 8), write_y=each(8, 8)),
    two("by_four", "", [floats(1024), floats(1024), 0], read_x=each(16, 16), write_y=each(16, 16)),
    two("by_four", "16 bytes on", [floats(1028), floats(1024), 1], read_x=each(17, 16), write_y=each(16, 16)),
    two("first_of_four", "", [floats(1024), floats(256)], read_x=each(16, 4)),
    two("points", "", [floats(768), floats(256)], read_x=Cost(24, 768, 8 * 36, 8 * 12)),
    # 256 bytes a lane: 16 requests of 16 bytes, each lane in sectors of its own
    warp("copied", [floats(2048), floats(2048), 256], read_x=Cost(16, 512, 512, 256), write_y=Cost(16, 512, 512, 256)),
    # 28 bytes: 16, 8 and 4
    warp("copied", [floats(2048), floats(2048), 28], "28 bytes", read_x=Cost(3, 96, 96, 16 + 8 + 4)),
    *(
        Known(
            "rows_of_16",
            f"pitch {pitch}",
            1,
            (16, 16),
            [floats(16 * pitch), floats(256), pitch],
            {"read x": each(parts, 4), "write y": each(4, 4)},
        )
        for pitch, parts in ((16, 4), (20, 5), (1000, 4))
    ),
    Known(
        "cubes", "", 1, (4, 4, 4), [floats(1024), floats(64)], {"read x": Cost(2, 64, 16, 8), "write y": Cost(2, 64, 8)}
    ),
    Known(
        "transposed",
        "",
        1,
        (32, 32),
        [floats(1024), floats(1024)],
        {"read x": Cost(32, 1024, 1024, 128), "write y": Cost(32, 1024, 128, 128)},
    ),
    Known(
        "grid_stride",
        "",
        2,
        32,
        [floats(200), floats(200), 200],  # 6 whole warps and 8 lanes
        {"read x": Cost(7, 200, 25, 25), "write y": Cost(7, 200, 25, 25)},
    ),
    warp("either", [floats(32), floats(32), floats(32)], read_x=Cost(1, 16, 2, 2), read_z=Cost(1, 16, 2, 2)),
    Known(
        "transposed_by_tile",
        "",
        1,
        (32, 32),
        [floats(1024), floats(1024)],
        {"write tile": Cost(32, 1024, 32, 32), "read tile": Cost(32, 1024, 1024, 32), "write y": Cost(32, 1024, 128)},
    ),
    Known(
        "transposed_by_odd_tile",
        "",
        1,
        (32, 32),
        [floats(1024), floats(1024)],
        {"write tile": Cost(32, 1024, 32, 32), "read tile": Cost(32, 1024, 32, 32), "read x": Cost(32, 1024, 128)},
    ),
    *(
        warp(
            "from_shared",
            [floats(32), stride],
            f"by {stride}",
            shared=4 * 1056,
            read_tile=Cost(1, 32, parts, 1),
            write_tile=Cost(33, 1056, 33, 33),
        )
        for stride, parts in ((0, 1), (1, 1), (2, 2), (3, 1), (4, 4), (5, 1), (16, 16), (32, 32), (33, 1))
    ),
    *(
        warp("from_shared_by_two", [floats(32), stride], f"by {stride}", read_tile=Cost(1, 32, parts, fewest))
        for stride, parts, fewest in ((0, 1, 1), (1, 2, 2), (2, 4, 2), (3, 2, 2), (8, 16, 2), (16, 32, 2))
    ),
    *(
        warp("from_shared_by_four", [floats(32), stride], f"by {stride}", read_tile=Cost(1, 32, parts, fewest))
        for stride, parts, fewest in ((0, 2, 2), (1, 4, 4), (2, 8, 4), (3, 4, 4), (8, 32, 4), (9, 4, 4), (16, 32, 4))
    ),
    warp("from_shared_bytes", [numbers(32, np.uint8)], write_tile=Cost(1, 32, 1, 1), read_tile=Cost(1, 32, 1, 1)),
    two("count_all", "", [numbers(1)], atomic_y=each(1, 1)),
    two("count_each", "", [numbers(128)], atomic_y=each(4, 4)),
    warp(
        "histogram",
        [numbers(8)],
        atomic_bins=Cost(1, 32, 4, 1),
        write_bins=Cost(1, 8, 1, 1),
        read_bins=Cost(1, 8, 1, 1),
        write_y=Cost(1, 8, 1, 1),
    ),
    Known(
        "early_return",
        "",
        4,
        64,
        [floats(200), floats(200), 200],
        {"read x": Cost(7, 200, 25), "write y": Cost(7, 200, 25)},
    ),
    Known(
        "early_return",
        "partial warps",
        2,
        40,
        [floats(80), floats(80), 70],  # warps of 32, 8, 30 lanes and none
        {"read x": Cost(3, 70, 4 + 1 + 4)},
    ),
    warp(
        "return_before_barrier",
        [floats(32), floats(32)],
        read_x=Cost(1, 20, 3),
        write_tile=Cost(1, 20, 1),
        read_tile=Cost(1, 20, 1),
        write_y=Cost(1, 20, 3),
    ),
    warp("late_lanes", [floats(80), floats(32), 10], read_x=Cost(10, 9 * 32 + 24, 10, 10), write_y=Cost(1, 32, 4)),
    warp("triangle", [floats(512), floats(64)], read_x=Cost(64, 2 * 528, 64), write_y=Cost(2, 64, 8)),
    warp("two_arms", [floats(64), floats(32)], read_x=Cost(2, 32, 8), write_y=Cost(2, 32, 8)),
    warp(
        "four_arms",
        [floats(64), floats(32), floats(32)],
        read_x=Cost(4, 32, 16),
        read_z=Cost(1, 32, 4),
        write_y=Cost(1, 32, 4),
    ),
    warp("arm_in_a_loop", [floats(128), floats(32), floats(32)], read_x=Cost(4, 32, 16), read_z=Cost(4, 128, 4)),
    warp(
        "breaks",
        [floats(256), floats(32), floats(32)],
        read_x=Cost(28, 4 * 4 * (7 + 6 + 5 + 4 + 3 + 2 + 1), 28),
        read_z=Cost(4, 128, 4),
        write_y=Cost(1, 32, 4),
    ),
    warp(
        "breaks_of_two_loops",
        [floats(128), floats(1), floats(32)],
        read_x=Cost(16, sum(range(1, 17)) + 16 * 16, 16),
        read_z=Cost(1, 32, 1),
        write_y=Cost(1, 32, 4),
    ),
    warp("do_while", [numbers(33) + 1, numbers(32)], read_x=Cost(32, 528, 8 * (4 + 3 + 2 + 1)), write_y=Cost(1, 32, 4)),
    warp("three_loops", [floats(128), floats(32)], read_x=Cost(16, 2 * (8 * (1 + 2 + 3 + 4) + 8 * (2 + 4)), 16)),
    warp(
        "barrier_in_a_loop",
        [floats(256), floats(64)],
        block=64,
        read_x=Cost(6, 120, 3 * 5),
        write_tile=Cost(6, 120, 6),
        read_tile=Cost(18, 3 * (2 * 64 + 32), 18),
        write_y=Cost(2, 64, 8),
    ),
    warp(
        "warps_of_their_own",
        [floats(32), floats(64), floats(64)],
        block=64,
        read_x=Cost(1, 32, 4),
        read_z=Cost(1, 32, 4),
        write_y=Cost(2, 64, 8),
    ),
    warp(
        "shuffles",
        [floats(32), floats(1), floats(1)],
        read_x=Cost(1, 32, 4),
        read_z=Cost(1, 1, 1),
        write_y=Cost(1, 1, 1),
    ),
    warp(
        "two_calls",
        [floats(32), floats(32), floats(32)],
        read_x=Cost(1, 32, 4),
        read_z=Cost(1, 32, 4),
        write_y=Cost(1, 32, 4),
    ),
    warp("call_in_an_arm", [floats(32), floats(32), floats(32)], read_x=Cost(1, 8, 1), read_z=Cost(1, 32, 4)),
    warp("calls_of_calls", [floats(128), floats(32)], read_x=Cost(4, 128, 16), write_y=Cost(1, 32, 4)),
    warp(
        "calls_in_a_loop", [floats(32), floats(32), floats(32)], read_x=Cost(12, 3 * 8 * 10, 12), read_z=Cost(3, 96, 3)
    ),
    warp("recursion", [floats(32), floats(32)], read_x=Cost(3, 63, 3 + 2 + 1), write_y=Cost(1, 32, 4)),
]


def known_folder(folder: Path) -> Path:
    """Copies known_costs.cu, and what it includes, into a folder of kernels."""
    shutil.copy(SOURCE, folder)
    shutil.copy(kernel_source.KERNELS / kernel_source.COMMON, folder)
    return folder


def launch_known(device: Device, known: Known) -> None:
    arguments = [device.asarray(a) if isinstance(a, np.ndarray) else a for a in known.arguments]
    device.launch(known.kernel, known.grid, known.block, arguments, known.shared_bytes)
