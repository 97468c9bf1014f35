"""What the profile says of launches, and what the fast kernels may cost."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from helpers.planting import line_of, plant

from tinyfcn.checks.own_file import Call, Empty
from tinyfcn.checks.parts import Part
from tinyfcn.checks.profile import (
    BANKS,
    Profiled,
    chain,
    is_wasteful,
    profile_calls,
    profile_operation,
    profile_part,
    sectors,
    total,
    wavefronts,
    what_is_wrong,
)
from tinyfcn.devices import kernel_source
from tinyfcn.devices.device import Launch
from tinyfcn.devices.emulator.profile import LANES, SAMPLE, Requests, Sample
from tinyfcn.devices.kernel_source import KERNELS, Kernel
from tinyfcn.operations import on
from tinyfcn.training.step import Task, parts_of

CONTEXT = "conv2d context"


@cache
def parts(design: str, batch: int) -> list[Part]:
    return parts_of(Task(design, batch), on("cpu"))


@cache
def profiled(design: str, batch: int) -> list[Profiled]:
    """A whole training step."""
    return [each for part in parts(design, batch) for each in profile_part(part, naive=False, sample=SAMPLE)]


# --- What the fast kernels may cost ---

# What a launch's requests to one array may cost, beyond the fewest sectors or wavefronts, in the steps below. A new
# conflict is either mended, or gets a reason here.
STRIDED = "each thread stores 4 pixels of a row of 19 or 85, whose rows do not begin where a float4 may"
NEIGHBOURS = "threads of a row store 8 pixels each: a float4 of one and the next are 32 bytes apart"
TILES = "where rows have 5 threads, the lanes of two rows, or the ends of two lines, share banks"
GROUPS = "a warp holds several groups of channels, for which it reads 4 bytes each"
DENSE = "an image is one pixel here, and its channels lie apart from those of the next"
SUMS = "sums lie as the threads have them, and neighbouring threads have weights that are KW apart; it is done once"
ONCE = "weights are read class after class and stored channel after channel, once"
BUDGETS: dict[str, tuple[float, str]] = {
    "compose_m2nist read digits": (2.3, "a row of a digit is 28 bytes, of which an image takes those within a row"),
    "fast_conv_backward_input read add": (2.0, NEIGHBOURS),
    "fast_conv_backward_input read bias": (2.0, GROUPS),
    "fast_conv_backward_input read relu_mask": (4.5, STRIDED),
    "fast_conv_backward_input read shared": (1.6, TILES),
    "fast_conv_backward_input write dx": (4.5, STRIDED),
    "fast_conv_backward_input write shared": (2.0, TILES),
    "fast_conv_backward_weight read dout": (8.0, DENSE),
    "fast_conv_backward_weight read shared": (2.0, "a plane's pitch is a multiple of 4, for float4s"),
    "fast_conv_backward_weight read x": (8.0, DENSE),
    "fast_conv_backward_weight write shared": (2.0, TILES),
    "fast_conv_forward read bias": (4.0, GROUPS),
    "fast_conv_forward read relu_mask": (4.5, STRIDED),
    "fast_conv_forward read shared": (3.4, f"{TILES}; or {DENSE}"),
    "fast_conv_forward write max_index": (2.6, "a thread stores 2 pooled pixels"),
    "fast_conv_forward write shared": (2.0, TILES),
    "fast_conv_forward write y": (4.5, STRIDED),
    "fast_conv_reduce_split_k write dweight": (6.0, SUMS),
    "gather read values": (6.0, "a weight's channels lie far apart, which is why they are gathered, once"),
    "gather_batch read images": (1.6, "an image begins within a sector"),
    "linear_cross_entropy read weight": (2.8, ONCE),
    "linear_cross_entropy read x": (8.0, DENSE),
    "linear_cross_entropy write dlogits": (8.0, DENSE),
    "linear_cross_entropy write dx": (8.0, DENSE),
}


def over_budget(found: list[Profiled]) -> list[str]:
    """The lines that cost more than BUDGETS allows."""
    return [
        f"{each.name}: {line.place}, {line.kind} {line.array}: {what_is_wrong(line)}"
        for each in found
        for line in each.profile.requests
        if is_wasteful(line) and line.parts > line.fewest * BUDGETS.get(_budget(each, line), (0.0, ""))[0]
    ]


def _budget(each: Profiled, line: Requests) -> str:
    return f"{each.launch.kernel.name} {line.kind} {line.array}"


@pytest.mark.slow
def test_no_line_of_a_fast_kernel_costs_more_than_its_budget():
    found = [*profiled("skip", 16), *profiled("classifier", 128)]
    assert over_budget(found) == []
    needed = {_budget(each, line) for each in found for line in each.profile.requests if is_wasteful(line)}
    assert needed == {*BUDGETS}, "a budget that no line needs"


@pytest.mark.slow
def test_a_step_costs_no_more_than_today():
    """In wavefronts of shared memory, those that are conflicts among them, and sectors that are not needed."""
    sums = total(profiled("skip", 16))
    assert sums["shared_wavefronts"] < 9.5e6
    assert sums["shared_wavefronts"] - sums["shared_wavefronts_ideal"] < 0.8e6
    assert sums["sectors"] - sums["sectors_ideal"] < 1.19e6


@pytest.mark.slow
def test_an_edit_that_adds_a_conflict_is_named(tmp_path: Path):
    """At an even distance, lines of the tile begin in the same banks."""
    name, change = "fast_conv_backward_weight", {"PITCH = pitch_of(TILE_W)": "PITCH = (TILE_W + 31) / 32 * 32"}
    kernels = plant(name, change, tmp_path / "kernels")
    (part,) = (part for part in parts("skip", 16) if str(part) == "conv2d_backward dweight context")
    found = over_budget(profile_part(part, naive=False, sample=SAMPLE, kernels=kernels))
    place = line_of("float4 four = *reinterpret_cast<const float4*>(from", "fast_conv", kernels)
    assert len(found) == 1 and found[0].startswith(f"{part}: {place}, read shared: "), found


# --- What is said ---


def requests(kind: str, shared: bool, bytes_: int, at: list[int], worst: int, fewest: int) -> Requests:
    lanes: list[int | None] = [*at, *[None] * (LANES - len(at))]
    return Requests("k.cu:1", "", "x", shared, kind, bytes_, 1, len(at), worst, fewest, worst, lanes)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (requests("write", True, 4, [144 * lane for lane in range(32)], 4, 1), "36 floats apart: 8 of 32 banks"),
        (requests("read", True, 4, [128 * lane for lane in range(32)], 32, 1), "32 floats apart: 1 of 32 banks"),
        (requests("read", False, 4, [400 * k for k in range(9)], 9, 2), "100 floats apart: 9 sectors for 36 bytes"),
        (requests("read", False, 1, [8 * lane for lane in range(32)], 8, 1), "8 bytes apart: 8 sectors for 32 bytes"),
        (requests("read", False, 4, [*range(8, 40, 4)], 2, 1), "it begins within a sector: 2 sectors for 32 bytes"),
        (requests("read", False, 4, [0, 4, 400, 404, 800, 804, 1200, 1204], 4, 1), "4 pieces: 4 sectors for 32 bytes"),
        (requests("atomic", True, 4, [0] * 32, 32, 1), "32 lanes update 1 words one after another"),
        (requests("read", True, 4, [4 * lane for lane in range(32)], 1, 1), ""),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_words(line: Requests, expected: str):
    assert what_is_wrong(line) == expected


def test_a_picture_of_memory_has_a_row_for_each_wavefront_and_the_sectors_of_each_line():
    (part,) = (part for part in parts("skip", 16) if str(part) == CONTEXT)
    (each,) = profile_part(part, naive=False, sample=Sample(1, 0))
    for line in each.profile.requests:
        lanes = {lane for lane, offset in enumerate(line.worst_at) if offset is not None}
        rows = wavefronts(line) if line.is_shared else sectors(line)
        cells = [cell for row in rows for cell in row.lanes]
        assert {lane for cell in cells if cell for lane in cell} == lanes
        if line.is_shared:
            assert len(rows) == line.worst
            assert all(len(row.lanes) == BANKS for row in rows)
        else:
            assert sum(cell is not None for cell in cells) == 8 * line.worst


def test_the_numbers_of_a_launch_are_scaled_to_all_blocks_and_written_as_json():
    (part,) = (part for part in parts("skip", 16) if str(part) == CONTEXT)
    (some,) = profile_part(part, naive=False, sample=Sample(28, 0))
    assert (some.profile.blocks, some.profile.block_count, some.scale) == (28, 112, 4)
    found = json.loads(json.dumps(some.as_json()))
    assert found["kernel"].startswith("fast_conv_forward<32, 32, 3, 3")
    assert found["total"]["multiply_adds"] == 36_044_800
    shared = [line for line in found["lines"] if line["memory"] == "shared"]
    assert found["total"]["shared_wavefronts"] == pytest.approx(
        sum(line["wavefronts"] for line in shared), abs=len(shared)
    )
    weight = next(array for array in found["arrays"] if array["array"] == "packed")
    # every block reads all weights, and they come from memory once
    assert (weight["l2_bytes"], weight["dram_bytes"], weight["size"]) == (112 * 36_864, 36_864, 36_864)


def test_a_naive_layer_reads_an_input_for_each_product():
    (part,) = (part for part in parts("skip", 16) if str(part) == CONTEXT)
    each, relu = profile_part(part, naive=True, sample=SAMPLE)
    assert relu.launch.kernel.name == "relu_forward"
    assert each.launch.kernel.name == "conv2d_forward_naive"
    read = sum(line.lanes for line in each.profile.requests if line.kind == "read" and line.array == "x")
    assert each.scale * read == pytest.approx(each.multiply_adds, rel=0.01)


def test_an_own_file_is_profiled_and_its_launches_end_with_all_results(tmp_path: Path):
    """The second launch reads an index that the first one writes, in blocks of which a few are counted."""
    (tmp_path / "own.cu").write_text("""
extern "C" __global__ void make_index(int* index, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) index[i] = n - 1 - i;
}
extern "C" __global__ void gather(const float* x, const int* index, float* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = x[index[i]];
}
""")
    x, index = np.arange(4096, dtype=np.float32), Empty(4096)
    calls = [
        Call("make_index", 64, 64, [index, 4096]),
        Call("gather", 64, 64, [x, index, Empty(4096), 4096]),
    ]
    first, second = profile_calls(tmp_path / "own.cu", calls, Sample(4, 0))
    assert (first.profile.blocks, second.profile.blocks) == (4, 4)
    assert second.totals()["sectors"] == 3 * 4096 / 8
    assert (second.launch.arguments[2] == x[::-1]).all()


def test_an_operation_that_no_step_has_is_profiled_on_random_inputs():
    for naive in False, True:
        forward, backward = profile_operation("relu", naive=naive, sample=SAMPLE)
        assert (forward.launch.kernel.name, backward.launch.kernel.name) == ("relu_forward", "relu_backward")


def test_the_longest_chain_of_launches_follows_streams_and_joins():
    kernel = Kernel("k", "relu", 1, [])
    main = Launch(kernel, (1, 1, 1), (1, 1, 1), (), 0)
    side, join = replace(main, stream=1), replace(main, joins=True)
    assert chain([]) == 0
    assert chain([main, main, main]) == 3
    assert chain([main, side, side, main, join]) == 4  # main, side, side, join


def test_a_place_gives_the_text_of_its_line():
    source = kernel_source.source("relu", KERNELS)
    lines = (KERNELS / "relu.cu").read_text().splitlines()
    assert [source.line(f"relu.cu:{n}") for n in (1, 27)] == [lines[0], lines[26].strip()]
    assert source.line("common.cuh:6").startswith("// This thread's number")
    assert source.line("none.cu:7") == ""
