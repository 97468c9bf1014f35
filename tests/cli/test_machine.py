"""What `tinyfcn info` finds: each item, where the machine has it and where it lacks it, with the way to supply it."""

import os
import re
import sys
from types import SimpleNamespace

import pytest
from helpers.tiny_digits import write_tiny_digits

from tinyfcn import machine
from tinyfcn.devices import cuda
from tinyfcn.devices.emulator import build
from tinyfcn.errors import DeviceError
from tinyfcn.runs import RESULT

ITEMS = ["GPU", "NVRTC", "C++ compiler", "CPU", "digits", "cache", "kernel cache", "classifier", "FCN"]


@pytest.fixture
def found(tmp_path, monkeypatch):
    """Makes the findings, by name, in an empty folder with an empty cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TINYFCN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TINYFCN_DATA", raising=False)
    monkeypatch.delenv("TINYFCN_OFFLINE", raising=False)
    return lambda data_dir=None: {finding.name: finding for finding in machine.findings(data_dir)}


def no_gpu():
    raise DeviceError("CuPy is not installed (No module named 'cupy'): pip install cupy-cuda12x")


def test_every_item_is_there_in_order(found):
    assert list(found()) == ITEMS
    assert all(finding.text for finding in found().values())


def test_a_machine_with_nothing(found, monkeypatch, tmp_path):
    monkeypatch.setattr(cuda, "import_cupy", no_gpu)
    monkeypatch.setattr(cuda, "why_not", lambda: "no NVIDIA GPU with a working driver was found")
    monkeypatch.setattr(cuda, "load_nvrtc", no_gpu)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(build, "find_spec", lambda name: None)
    findings = found()
    assert list(findings) == ITEMS
    expected = {
        "GPU": ("no NVIDIA GPU", "--device cpu"),
        "NVRTC": ("CuPy is not installed", "pip install cupy-cuda12x 'cuda-toolkit[nvrtc,cudart]==12.*'"),
        "C++ compiler": ("needs a C++ compiler", "apt install g++"),
        "classifier": ("no finished run", "tinyfcn train-cnn"),
        "FCN": ("no finished run", "tinyfcn train-fcn"),
    }
    for name, (text, remedy) in expected.items():
        assert text in findings[name].text
        assert remedy in findings[name].remedy
        assert "\n" not in findings[name].text


def test_a_machine_with_the_compiler_of_ziglang_alone(found, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert re.fullmatch(
        r"zig [\d.]+, from PyPI \(clang version .+\): runs the kernels on the emulator",
        found()["C++ compiler"].text,
    )


def test_a_CXX_that_is_no_command(found, monkeypatch):
    monkeypatch.setenv("CXX", "g++ '")
    assert found()["C++ compiler"].text.startswith('not usable: CXX is "g++ \'", which is no command')


@pytest.mark.cupy
def test_what_this_machine_has(found):
    findings = found()
    assert "runs the kernels on the emulator" in findings["C++ compiler"].text
    assert findings["C++ compiler"].remedy is None
    assert findings["NVRTC"].remedy is None
    assert findings["NVRTC"].text[0].isdigit()
    assert (findings["GPU"].remedy is None) == (cuda.why_not() is None)
    assert "threads" in findings["CPU"].text


def test_a_gpu_is_named_with_its_driver(found, monkeypatch):
    class Runtime:
        def getDevice(self):
            return 0

        def getDeviceProperties(self, number):
            return {"name": b"NVIDIA H100", "major": 9, "minor": 0, "totalGlobalMem": 80 * 2**30}

        def driverGetVersion(self):
            return 12040

    class Cupy:
        __version__ = "14.1.0"
        cuda = type("cuda", (), {"runtime": Runtime()})

    monkeypatch.setattr(cuda, "why_not", lambda: None)
    monkeypatch.setattr(cuda, "import_cupy", lambda: Cupy)
    assert found()["GPU"].text == "NVIDIA H100, sm_90, 80 GiB, driver for CUDA 12.4"


def test_digits_that_are_found_and_digits_that_are_not(found, tmp_path, monkeypatch):
    assert "training downloads it" in found()["digits"].text
    monkeypatch.setenv("TINYFCN_OFFLINE", "1")
    assert "built-in digits" in found()["digits"].text
    folder = write_tiny_digits(tmp_path / "digits")
    assert found(folder)["digits"].text.startswith(f"MNIST in {folder} (--data-dir)")
    monkeypatch.setenv("TINYFCN_DATA", str(tmp_path / "elsewhere"))
    wrong = found()["digits"]
    assert f"{tmp_path / 'elsewhere'} (from TINYFCN_DATA) is not a folder" in wrong.text
    assert wrong.remedy


def test_the_cache_folder(found, tmp_path, monkeypatch):
    assert found()["cache"].text == f"{tmp_path / 'cache'} (not made yet)"
    (tmp_path / "cache").mkdir()
    assert found()["cache"].text == str(tmp_path / "cache")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "cannot be written to" in found()["cache"].text
    assert "TINYFCN_CACHE" in found()["cache"].remedy


def test_a_cupy_that_raises_without_a_driver(monkeypatch):
    """As CuPy 13 does; CuPy 14 returns False."""

    def is_available():
        raise RuntimeError("cudaErrorInsufficientDriver: CUDA driver version is\ninsufficient")

    monkeypatch.setattr(cuda, "import_cupy", lambda: SimpleNamespace(is_available=is_available))
    reason = "no NVIDIA GPU with a working driver was found (cudaErrorInsufficientDriver: CUDA driver version is insuff"
    assert cuda.why_not().startswith(reason) and "\n" not in cuda.why_not()


@pytest.mark.skipif(sys.platform == "win32", reason="a file has no such parent there")
def test_a_cache_below_a_file_cannot_be_written_to(found, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TINYFCN_CACHE", str(tmp_path / "file" / "cache"))
    assert "cannot be written to" in found()["cache"].text


def test_runs_that_are_there(found, tmp_path):
    for name in ("cnn-3", "fcn-2"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / RESULT).write_text("{}")
    findings = found()
    assert "runs/cnn-3" in findings["classifier"].text
    assert "runs/fcn-2" in findings["FCN"].text
    assert findings["classifier"].remedy is findings["FCN"].remedy is None
