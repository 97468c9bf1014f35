"""Runs the page's modules in node and its page in Chromium, and says what they must find."""

import base64
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from helpers.designs import all_designs

from tinyfcn.model import Model
from tinyfcn.networks import Design, Network
from tinyfcn.networks.options import FREEZE, INK_START
from tinyfcn.operations import on

TESTS = Path(__file__).parents[1] / "page"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
TOLERANCE = 1e-4  # of the greatest absolute value: float32 sums in another order

CPU = on("cpu")


ALL_DESIGNS = all_designs(leave_out=(FREEZE, INK_START))  # those change nothing that is computed


def random_network(design: Design, seed: int = 0) -> Network:
    """A network whose weights and biases are random, so that no layer is without effect."""
    network = design.build(CPU, seed)
    random = np.random.default_rng(seed)
    biases = {name: value.shape for name, value in network.parameter.items() if name.endswith("bias")}
    network.load({name: 0.2 * random.standard_normal(shape) for name, shape in biases.items()})
    return network


def random_model(name: str = "skip", **options: Any) -> Model:
    """A model of a random network."""
    design = Design(name, **options)
    return Model(design, random_network(design))


def as_input(drawing: np.ndarray) -> np.ndarray:
    """The network input of a drawing, uint8 (H, W)."""
    return (drawing[None, None].astype(np.float32) - 127) / 127


def run_node(script: str, job: dict[str, Any], folder: Path, timeout: float = 300) -> Any:
    """What a script of tests/page writes for a job, both as JSON. Fails with what to install where node is missing."""
    node = shutil.which("node")
    assert node, "the tests of the page need node 20 or newer: https://nodejs.org"
    (folder / "job.json").write_text(json.dumps(job))
    command = [node, TESTS / script, folder / "job.json", folder / "found.json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=TESTS)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((folder / "found.json").read_text())


def chromium() -> str:
    """The browser: $CHROMIUM, or the one that is installed."""
    assert (TESTS / "node_modules").is_dir(), f"the tests of the page need packages: run `npm ci` in {TESTS}"
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUM)), None)
    assert found, "the tests of the page need Chromium: apt install chromium, or set CHROMIUM to a browser's path"
    return found


def array(text: str, dtype: str = "<f4") -> np.ndarray:
    """An array from base64."""
    return np.frombuffer(base64.b64decode(text), dtype)


def encoded(values: np.ndarray) -> str:
    """The bytes of an array in base64."""
    return base64.b64encode(values.tobytes()).decode()


def assert_same_maps(found: dict[str, str], expected: dict[str, np.ndarray]) -> None:
    """Every layer's map, all finite, within TOLERANCE of the greatest absolute value of the layer."""
    assert list(found) == list(expected)
    for name, right in expected.items():
        values = array(found[name]).reshape(right.shape)
        assert np.isfinite(values).all(), name
        error = np.abs(values - right).max() / max(np.abs(right).max(), 1e-6)
        assert error <= TOLERANCE, f"{name}: {error:.2g} of its greatest value"
