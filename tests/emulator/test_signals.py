"""Ctrl-C, and faults in several threads of Python or outside of kernels."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers.kernel_folders import folder_with
from helpers.small_kernels import launch, wrong_folder

from tinyfcn.devices.emulator import Emulator
from tinyfcn.errors import KernelError

ENDLESS = r"""
extern "C" __global__ void endless(float* y, const float* x, int n) {
    volatile float sum = 0;
    while (n > sum) sum = sum + x[0] * 0;  // here
    y[threadIdx.x] = sum;
}
extern "C" __global__ void endless_barriers(float* y, const float* x, int n) {
    while (n > 0) __syncthreads();
}
"""


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["endless", "endless_barriers"])
@pytest.mark.parametrize("mode", ["trap", "check"])
def test_ctrl_c_ends_an_endless_kernel(tmp_path: Path, kernel: str, mode: str) -> None:
    device = Emulator(folder_with(tmp_path, endless=ENDLESS), mode)
    launch(device, kernel, 0)
    ctrl_c = threading.Timer(0.6, os.kill, (os.getpid(), signal.SIGINT))
    ctrl_c.start()
    where = r" at endless\.cu:4; in block \(0,0,0\)" if kernel == "endless" else ""
    with pytest.raises(KeyboardInterrupt, match=f"{kernel} in endless.cu: stopped by Ctrl-C{where}"):
        launch(device, kernel, 1)
    launch(device, kernel, 0)


@pytest.mark.slow
def test_ctrl_c_is_left_to_another_handler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training installs one, which lets the current step finish."""
    device = Emulator(folder_with(tmp_path, endless=ENDLESS.replace("x[0] * 0", "1.0f")))
    launch(device, "endless", 0)
    handled: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: handled.append(number))
    try:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        y = launch(device, "endless", 5_000_000)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (y[:64] == 5_000_000).all() and handled == [signal.SIGINT]


@pytest.mark.slow
def test_ctrl_c_goes_to_python_if_another_thread_launches(tmp_path: Path) -> None:
    device = Emulator(folder_with(tmp_path, endless=ENDLESS.replace("x[0] * 0", "1.0f")))
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(launch, device, "endless", 5_000_000)
        time.sleep(0.2)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        assert not running.done() and (running.result()[:64] == 5_000_000).all()


def test_faults_outside_of_kernels_are_left_to_their_own_handlers(tmp_path: Path) -> None:
    code = f"""
import faulthandler
from pathlib import Path
import numpy as np
from tinyfcn.devices.emulator import Emulator
faulthandler.enable()
device = Emulator(Path({str(wrong_folder(tmp_path))!r}), "check")
x = device.asarray(np.ones(64, np.float32))
device.launch("sound", 1, 64, [x, x, 1])
float("inf") - float("inf")
faulthandler._sigsegv()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGSEGV
    assert done.stderr.startswith("Fatal Python error: Segmentation fault")


# Each kernel ends in another way: by a call in check mode, SIGSEGV, a race and SIGFPE.
FAULTY = r"""
extern "C" __global__ void past_the_end(float* y, const float* x, int n) {
    y[threadIdx.x] = x[threadIdx.x + n];
}
extern "C" __global__ void too_large_for_the_stack(float* y, const float* x, int n) {
    float own[100000];
    for (int i = 0; i < 100000; i++) own[i] = x[i % n];
    for (int i = 0; i < 100000; i++) y[i % n] = own[(i * 7) % 100000];
}
extern "C" __global__ void no_barrier(float* y, const float* x, int n) {
    __shared__ float tile[64];
    tile[threadIdx.x] = x[threadIdx.x];
    y[threadIdx.x] = tile[(threadIdx.x + n) % 64];
}
extern "C" __global__ void infinity_over_infinity(float* y, const float* x, int n) {
    float e = expf(1000.0f * x[0]);
    y[threadIdx.x] = e / (e + n);
}
"""
MESSAGES = {  # kernel -> n, and the message
    "past_the_end": (256, r"reads x\[256\] \(x has 256 elements\)"),
    "too_large_for_the_stack": (256, "needs more memory for its local variables than a thread has"),
    "no_barrier": (1, r"a race: thread \(\d+,0,0\) writes tile\[\d+\].*thread \(\d+,0,0\) read it"),
    "infinity_over_infinity": (1, r"thread \(0,0,0\) computes a NaN"),
}


def test_faults_in_several_python_threads(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, faulty=FAULTY)

    def fault(kernel: str) -> str:
        with pytest.raises(KernelError) as caught:
            launch(Emulator(folder, "check"), kernel, MESSAGES[kernel][0])
        return str(caught.value)

    kernels = [*MESSAGES] * 4
    with ThreadPoolExecutor(4) as pool:
        for kernel, message in zip(kernels, pool.map(fault, kernels), strict=True):
            assert re.search(MESSAGES[kernel][1], message), message
