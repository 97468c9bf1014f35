"""Trace mode keeps every access of a launch, in order, with the value that was there."""

from pathlib import Path

import numpy as np
import pytest
from helpers.kernel_folders import folder_with

from tinyfcn.devices.emulator import Emulator
from tinyfcn.devices.emulator.emulator import ORDERS
from tinyfcn.devices.emulator.trace import LaunchTrace
from tinyfcn.errors import KernelError

# Thread t of block (bx, by) adds up its two numbers and its neighbour's; thread 0 counts.
KERNEL = """extern "C" __global__ void pairs(const float* x, float* y, int* count, int rows) {
    __shared__ float held[2];
    __shared__ unsigned char marks[2];
    extern __shared__ int extra[];
    int t = threadIdx.x, block = blockIdx.x + gridDim.x * blockIdx.y;
    float2 two = reinterpret_cast<const float2*>(x)[block * 2 + t];
    held[t] = two.x + two.y;
    marks[t] = 7 + t;
    extra[t] = 100 * t;
    __syncthreads();
    y[block * 2 + t] = held[1 - t] + marks[1 - t] + extra[1 - t];
    if (t == 0) atomicAdd(count, rows);
}
"""
LINES = {"x": "pairs.cu:6", "held": "pairs.cu:7", "y": "pairs.cu:11", "count": "pairs.cu:12"}


def traced(folder: Path, **settings: str) -> LaunchTrace:
    """One launch of six blocks of two threads."""
    device = Emulator(folder_with(folder, pairs=KERNEL), mode="trace", **settings)
    dtype = device.dtypes["float"]
    x, y = device.asarray(np.arange(24).astype(dtype)), device.empty((12,))
    count = device.asarray(np.array([5], np.int32))
    device.launch("pairs", (3, 2), 2, [x, y, count, 10], shared_bytes=8)
    (trace,) = device.traces
    return trace


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("precision", ["single", "double"])
def test_every_access_has_its_thread_its_element_its_value_and_its_line(
    tmp_path: Path, order: str, precision: str
) -> None:
    trace = traced(tmp_path, order=order, precision=precision)
    for block in range(6):
        for thread in range(2):
            found = [(e.array, e.element, e.kind, e.value) for e in trace.of_block(block, thread)]
            own, other = block * 2 + thread, 1 - thread
            # The values are what was there: nothing yet in y, held, marks and extra when they are written.
            assert [each[:3] for each in found if each[2] == "write"] == [
                ("held", thread, "write"),
                ("marks", thread, "write"),
                ("extra", thread, "write"),
                ("y", own, "write"),
            ]
            reads = [(array, element, value) for array, element, kind, value in found if kind == "read"]
            assert reads[:2] == [("x", 2 * own, 2.0 * own), ("x", 2 * own + 1, 2.0 * own + 1)]
            sum_of_other = 2 * (2 * block * 2 + 2 * other) + 1
            expected = [("held", other, sum_of_other), ("marks", other, 7 + other), ("extra", other, 100 * other)]
            assert sorted(reads[2:]) == sorted(expected)
    counted = [each for each in trace.accesses() if each.kind == "atomic"]
    assert sorted((each.block, each.thread) for each in counted) == [(block, 0) for block in range(6)]
    assert sorted(each.value for each in counted) == [5 + 10 * done for done in range(6)]
    places = {(each.array, each.place) for each in trace.accesses() if each.array in LINES and each.kind != "read"}
    assert places == {(array, LINES[array]) for array in ("held", "y", "count")}
    assert {each.place for each in trace.accesses() if each.array == "x"} == {LINES["x"]}


def test_the_stores_of_an_element_and_the_arrays_before_and_after(tmp_path: Path) -> None:
    trace = traced(tmp_path)
    (store,) = trace.stores("y", 7)
    assert (store.block, store.thread, store.place) == (3, 1, "pairs.cu:11")
    assert len(trace.stores("count", 0)) == 6 and not trace.stores("x")
    y, count = trace.array("y"), trace.array("count")
    assert y.after is not None and y.before is not None and np.isnan(y.before).all()
    assert y.after[7] == 25 + 7 + 0
    assert (count.before, count.after) == ([5], [65])


def test_trace_mode_finds_what_check_mode_finds(tmp_path: Path) -> None:
    device = Emulator(folder_with(tmp_path, pairs=KERNEL.replace("__syncthreads();", "")), mode="trace")
    given = [device.asarray(np.zeros(4, np.float32)), device.empty((2,)), device.asarray(np.zeros(1, np.int32)), 1]
    with pytest.raises(KernelError, match=r"a race: .*held\[\d\]"):
        device.launch("pairs", 1, 2, given, shared_bytes=8)
    assert not device.traces


def test_check_mode_keeps_no_accesses(tmp_path: Path) -> None:
    device = Emulator(folder_with(tmp_path, pairs=KERNEL), mode="check")
    given = [device.asarray(np.zeros(4, np.float32)), device.empty((2,)), device.asarray(np.zeros(1, np.int32)), 1]
    device.launch("pairs", 1, 2, given, shared_bytes=8)
    assert not device.traces and device.statistics["pairs"].accesses > 0
