"""Every function of the driver that a training calls is made to fail: a user sees one clear line, or nothing."""

import gc
from functools import cache

import cupy
import numpy as np
import pytest
from standin import bridge
from standin.test_device import Step

from tinyfcn.devices.cuda import Cuda
from tinyfcn.errors import KernelError
from tinyfcn.ops import Operations

# Where one of these fails, nothing is lost: CuPy asks again, or leaves behind what it could not free.
PASSED_OVER = ["cudaEventDestroy", "cudaEventQuery", "cudaFree", "cudaFreeHost", "cudaGraphDestroy"]
PASSED_OVER += ["cudaGraphExecDestroy", "cudaMalloc", "cudaStreamDestroy"]
# Where one of these fails, no graph can be made, and the kernels are launched one by one.
OF_A_CAPTURE = ["cudaGraphInstantiate", "cudaStreamBeginCapture", "cudaStreamCreateWithFlags", "cudaStreamEndCapture"]
OF_A_CAPTURE += ["cudaStreamWaitEvent"]
# Where one of these fails within a capture, likewise; elsewhere the work ends with one line.
REFUSED = ["cuLaunchKernel", "cuModuleGetFunction", "cuModuleLoadData", "cuModuleUnload", "cudaEventCreateWithFlags"]
REFUSED += [
    "cudaEventRecord",
    "cudaGetDeviceCount",
    "cudaGetDeviceProperties_v2",
    "cudaGraphLaunch",
    "cudaHostAlloc",
    "cudaMemGetInfo",
    "cudaMemcpyAsync",
]
REFUSED += ["cudaPointerGetAttributes", "cudaSetDevice", "cudaStreamIsCapturing", "cudaStreamSynchronize"]
OF_THE_BRIDGE = {"cudaGetDevice"}  # which calls it itself, at every allocation
NO_GRAPH = "the step does not become a graph, and its kernels are launched one by one, which is slower"


def work() -> list[np.ndarray]:
    """What a training does: uploads, a recorded step and its replays, a write, downloads."""
    ops = Operations(Cuda())
    step = Step(ops)
    recording = ops.device.record(step)
    for _ in range(3):
        recording.replay()
    ops.write(step.total, np.ones((3, 2, 9, 11), np.float32))
    recording.replay()
    return [*step.result()]


def forget() -> None:
    """Empties CuPy's pools and its list of loaded kernels, so that the next work calls all functions again."""
    gc.collect()
    cupy.clear_memo()
    cupy.get_default_memory_pool().free_all_blocks()
    cupy.get_default_pinned_memory_pool().free_all_blocks()
    bridge.take_calls()


@cache
def calls() -> dict[str, int]:
    """How often `work` and the end of its arrays call each function."""
    work()
    forget()
    work()
    gc.collect()
    return bridge.take_calls()


def test_the_lists_are_complete() -> None:
    called = {*calls(), "cuModuleUnload"}  # which Python's garbage collection calls sooner or later
    assert {*PASSED_OVER, *OF_A_CAPTURE, *REFUSED, *OF_THE_BRIDGE} >= called >= {*OF_A_CAPTURE, *REFUSED}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of CuPy's destructors
@pytest.mark.parametrize("which", [0.0, 0.5, 1.0], ids=["first call", "a call between", "last call"])
@pytest.mark.parametrize("name", [*PASSED_OVER, *OF_A_CAPTURE, *REFUSED])
def test_a_call_that_fails(name: str, which: float, capsys: pytest.CaptureFixture[str]) -> None:
    count = calls().get(name, 1)
    forget()
    expected = work()
    forget()
    bridge.driver.standin_fail(name.encode(), 1 + round(which * (count - 1)), 2 if name == "cudaMalloc" else 719)
    try:
        found = work()
    except KernelError as error:
        assert name in REFUSED and "\n" not in str(error) and len(str(error)) < 200 and ": cudaError" in str(error)
    else:
        np.testing.assert_array_equal(found, expected)
        notice = capsys.readouterr().err
        assert name not in OF_A_CAPTURE or (NO_GRAPH in notice and notice.count("\n") == 1), notice
    finally:
        bridge.driver.standin_fail(b"", 0, 0)
    assert bridge.take_calls().get("cudaStreamBeginCapture", 0) <= 1, "a capture that failed is not tried again"
    forget()
    if name != "cudaStreamEndCapture":
        assert "a stream is destroyed while it is captured" not in bridge.take_reports()
    bridge.take_reports()
    np.testing.assert_array_equal(work(), expected, "the device works as before")


def test_no_memory_left() -> None:
    with pytest.raises(KernelError, match=r"memory for an array: Out of memory allocating .* a smaller --batch"):
        Operations(Cuda()).device.empty((1 << 33,))


def test_a_kernel_that_fails_while_it_runs() -> None:
    """The driver tells it at a later call, and at all that follow."""
    ops = Operations(Cuda())
    x, count = ops.asarray(np.ones(8, np.float32)), 1 << 24
    ops.device.launch_for_each("relu_forward", count, (x, x, count))
    for _ in range(2):
        with pytest.raises(KernelError, match="a kernel before this copy: cudaErrorLaunchFailure"):
            ops.to_numpy(x)
    assert any("relu_forward in relu.cu" in report for report in bridge.take_reports())
