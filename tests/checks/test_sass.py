"""Instructions, counted from the listing of nvdisasm and the requests of the emulator."""

import csv
from collections import Counter
from pathlib import Path

import pytest

from tinyfcn.checks.profile import count_instructions, profile_part
from tinyfcn.devices import sass
from tinyfcn.devices.emulator.profile import SAMPLE
from tinyfcn.errors import DeviceError
from tinyfcn.operations import on
from tinyfcn.training.step import Task, parts_of

MEASURED = Path(__file__).parents[2] / "docs" / "measured" / "h200-step.csv"

# A kernel that copies: a guard, a loop of a load and a multiply-add over shared memory, a store, an end.
LISTING = """
	.headerflags	@"EF_CUDA_SM90"
.text.copy:
        //## File "/folder/copy.cu", line 2
        /*0000*/                   S2R R0, SR_TID.X ;
        /*0010*/              @!P0 EXIT ;
        //## File "/folder/copy.cu", line 3 inlined at "/folder/copy.cu", line 9
        /*0020*/                   LDG.E R2, [R4.64] ;
        /*0030*/                   MOV R1, RZ ;
.L_x_1:
        //## File "/folder/copy.cu", line 4
        /*0040*/                   LDS.128 R8, [R3] ;
        /*0050*/                   FFMA R1, R8, R2, R1 ;
        /*0060*/                   FFMA R1, R9, R2, R1 ;
        /*0070*/               @P0 BRA `(.L_x_1) ;
        //## File "/folder/copy.cu", line 5
        /*0080*/                   STG.E [R6.64], R1 ;
        /*0090*/                   EXIT ;
.L_x_2:
        /*00a0*/                   BRA `(.L_x_2);
.text.empty:
        /*0000*/                   EXIT ;
"""
REQUESTS = {("copy.cu:3", "read", False): 6.0, ("copy.cu:4", "read", True): 60.0, ("copy.cu:5", "write", False): 6.0}


def test_a_listing_is_read_block_by_block() -> None:
    functions = sass.parse(LISTING)
    assert [*functions] == ["copy", "empty"]
    blocks = functions["copy"]
    assert [block.instructions for block in blocks] == [2, 2, 4, 2, 1, 0]
    assert [block.products for block in blocks] == [0, 0, 2, 0, 0, 0]
    assert [block.loop for block in blocks] == [None, None, (2, 2), None, None, None]
    assert blocks[2].accesses == Counter({("copy.cu:4", "read", True): 1})
    assert sass.products_of_a_shared_load(blocks) == 2.0
    assert sass.products_of_a_shared_load(functions["empty"]) is None


def test_a_block_is_executed_as_often_as_its_requests_say() -> None:
    """8 warps, of which 2 end at the guard: 6 go on, each with 10 rounds of the loop."""
    blocks = sass.parse(LISTING)["copy"]
    first, after_the_end = 2 * 6, 1 * 6  # neither accesses memory: as often as the next block that does
    assert sass.executed(blocks, REQUESTS, warps=8) == first + 2 * 6 + 4 * 60 + 2 * 6 + after_the_end
    assert sass.executed(sass.parse(LISTING)["empty"], {}, warps=8) == 8


def test_a_branch_that_no_lane_takes_counts_nothing() -> None:
    blocks = sass.parse(LISTING)["copy"]
    without_loop = {access: count for access, count in REQUESTS.items() if access[0] != "copy.cu:4"}
    assert sass.executed(blocks, REQUESTS, 8) - sass.executed(blocks, without_loop, 8) == 4 * 60


@pytest.mark.cupy
def test_instructions_are_nearly_those_of_the_gpu() -> None:
    """Of kernels that were measured on an H200 as they are, where nvdisasm is found; elsewhere it is said."""
    with open(MEASURED, encoding="utf-8") as file:
        measured = {row["kernel"]: int(row["instructions"]) for row in csv.DictReader(file)}
    parts = [
        part for part in parts_of(Task("skip", 16), on("cpu")) if part.operation in ("compose_m2nist", "adam_step")
    ]
    profiled = [each for part in parts for each in profile_part(part, naive=False, sample=SAMPLE)]
    if sass.nvdisasm() is None:
        with pytest.raises(DeviceError, match="nvdisasm, which is not here: pip install triton brings it"):
            count_instructions(profiled, "sm_90")
        return
    count_instructions(profiled, "sm_90")
    for each in profiled:
        assert each.instructions == pytest.approx(measured[each.launch.kernel.name], rel=0.25), each.name


def test_inline_ptx_is_executed_as_often_as_the_cpp_below_it() -> None:
    requests = {("copy.cu:7", "read", False): 5.0}
    assert sass._requests(requests, ("copy.cu:3", "read", False)) == 5
    assert sass._requests(requests, ("copy.cu:7", "read", False)) == 5
    for other in (("copy.cu:8", "read", False), ("copy.cu:3", "write", False), ("others.cu:3", "read", False)):
        assert sass._requests(requests, other) == 0
