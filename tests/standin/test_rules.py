"""What the stand-in refuses, with the driver's own codes, and what it reports."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import cupy
import numpy as np
import pytest
from standin import bridge

from tinyfcn.devices import kernel_source
from tinyfcn.devices.cuda import Cuda

Stream, Event, runtime = cupy.cuda.Stream, cupy.cuda.Event, cupy.cuda.runtime
RELU = cupy.RawModule(code=kernel_source.source("relu").text, options=("-std=c++17",)).get_function("relu_forward")

Cuda()._function(kernel_source.kernels()["relu_forward"])  # the same function; now the bridge knows its emulator


def relu(x: Any, y: Any, grid: int = 1, block: int = 256, shared: int = 0) -> None:
    """Launches on the current stream."""
    RELU((grid,), (block,), (x, y, np.int32(x.size)), shared_mem=shared)


def captured(work: Callable[[Any, Any], None], stream: Any = None) -> Any:
    """The graph of what `work` launches; its arguments are two arrays. The capture ends whatever happens."""
    stream = stream or Stream(non_blocking=True)
    x, y = cupy.array(np.arange(-8, 8, dtype=np.float32)), cupy.empty(16, np.float32)
    stream.begin_capture()
    try:
        with stream:
            work(x, y)
    except BaseException:
        with suppress(runtime.CUDARuntimeError):
            stream.end_capture()
        raise
    return stream.end_capture()


def wait(waiting: Any, awaited: Any) -> None:
    waiting.wait_event(awaited.record(Event(disable_timing=True)))


def unjoined(x: Any, y: Any) -> None:
    side = Stream(non_blocking=True)
    wait(side, cupy.cuda.get_current_stream())
    with side:
        relu(x, y)
    unjoined.side = side  # type: ignore[attr-defined]


def in_the_default_stream(x: Any, y: Any) -> None:
    with Stream.null:
        relu(x, y)


EARLIER = Stream(non_blocking=True).record()
MISUSES = [
    ("synchronises", lambda x, y: cupy.cuda.get_current_stream().synchronize(), None, "Unsupported"),
    ("leaves a side stream unjoined", unjoined, None, "Unjoined"),
    (
        "waits for an event from outside",
        lambda x, y: cupy.cuda.get_current_stream().wait_event(EARLIER),
        None,
        "Isolation",
    ),
    ("uses the default stream beside a blocking one", in_the_default_stream, False, "Implicit"),
    ("launches too many threads", lambda x, y: relu(x, y, block=1025), None, "InvalidValue"),
    ("asks for too much shared memory", lambda x, y: relu(x, y, shared=48 * 1024 + 1), None, "InvalidValue"),
]


@pytest.mark.parametrize(
    ("work", "non_blocking", "code"), [each[1:] for each in MISUSES], ids=[each[0] for each in MISUSES]
)
def test_a_capture_that(work: Callable[[Any, Any], None], non_blocking: bool | None, code: str) -> None:
    errors = runtime.CUDARuntimeError, cupy.cuda.driver.CUDADriverError
    with pytest.raises(errors, match=code):
        captured(work, Stream(non_blocking=non_blocking is None))
    assert bridge.take_reports()


def test_pinned_memory_is_read_when_the_copy_runs_and_pageable_memory_at_the_call() -> None:
    bridge.start("lazy")
    for is_pinned, expected in ((True, 2), (False, 1)):
        memory = cupy.cuda.alloc_pinned_memory(64) if is_pinned else bytearray(64)
        values = np.frombuffer(memory, np.float32, 16)
        values[:] = 1
        x = cupy.empty(16, np.float32)
        runtime.memcpyAsync(x.data.ptr, values.ctypes.data, 64, runtime.memcpyHostToDevice, 0)
        values[:] = 2
        assert (cupy.asnumpy(x) == expected).all()


def test_what_a_pool_gives_out_or_takes_back_is_nan() -> None:
    x = cupy.array(np.ones(16, np.float32))
    address = x.data.ptr
    assert np.isnan(cupy.asnumpy(cupy.empty(16, np.float32))).all()
    memory = cupy.cuda.UnownedMemory(address, 64, None)
    seen = cupy.ndarray(16, np.float32, cupy.cuda.MemoryPointer(memory, 0))
    del x
    assert np.isnan(cupy.asnumpy(seen)).all()


def test_memory_that_a_graph_uses_and_a_pool_takes_back() -> None:
    graph = captured(relu)  # whose arrays are gone
    graph.launch()
    assert bridge.take_reports() == ["a graph is launched that uses memory which was given back to its pool"] * 2


def test_a_graph_without_an_edge_runs_in_both_orders() -> None:
    found = set()
    for seed in range(8):
        bridge.start("random", seed)
        y, z = (cupy.array(np.full(16, -1, np.float32)) for _ in range(2))

        def work(x: Any, _: Any, y: Any = y, z: Any = z) -> None:
            side, main = Stream(non_blocking=True), cupy.cuda.get_current_stream()
            wait(side, main)
            with side:
                relu(y, z)
            relu(x, y)
            wait(main, side)
            work.kept = x, side  # type: ignore[attr-defined]

        captured(work).launch()
        found.add(cupy.asnumpy(z).max() > 0)
    assert found == {False, True}
