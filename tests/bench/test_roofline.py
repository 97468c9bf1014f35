"""Peaks of kernels that are right, cards that are known, and what kernels use."""

import numpy as np
import pytest

from tinyfcn import on
from tinyfcn.bench.parts import Recorder, note_calls, split
from tinyfcn.bench.roofline import CARDS, MEASURED, kernel_resources, measure_peaks
from tinyfcn.bench.timing import TimeBudget, wall_clock
from tinyfcn.devices.emulator import Emulator
from tinyfcn.devices.nvrtc import MULTIPROCESSORS, Resources
from tinyfcn.errors import TinyfcnError
from tinyfcn.ops import peak


def test_cards_and_rooflines():
    for card in CARDS.values():
        assert card.architecture in MULTIPROCESSORS and card.source != MEASURED
        assert 1e11 < card.bandwidth < 1e13 and 1e12 < card.flops < 1e15
    assert CARDS["h200"].least_seconds(4.8e12, 1) == 1 and CARDS["h200"].least_seconds(1, 134e12) == 2


def test_what_kernels_use():
    logits, ops = np.zeros((2, 10, 40, 40), np.float32), on("cpu")
    calls = note_calls(ops)
    ops.softmax_cross_entropy(logits, np.zeros((2, 40, 40), np.int32))
    ops.softmax(logits)
    ops.softmax(logits[:1].copy())
    loss, mean, softmax = kernel_resources([part for call in calls for part in split(call, Recorder())], "sm_90")
    assert loss["kernel"] == "softmax_cross_entropy<10>" and mean["kernel"] == "softmax_cross_entropy_mean"
    assert softmax["blocks"] == 13 and softmax["threads"] == 256 and softmax["for"] == ["", ""]
    assert loss["registers"] > 10 and loss["shared_bytes"] == 32 and loss["spilled_bytes"] == 0
    expected = Resources("softmax", softmax["registers"], 0, 0).occupancy("sm_90", 256)
    assert (softmax["blocks_at_once"], softmax["occupancy"]) == expected


def test_peaks():
    budget = TimeBudget(0.01, 2, 0)
    assert min(measure_peaks(Emulator(), wall_clock, budget, copied=4096, threads=512, rounds=16)) > 1e6


@pytest.mark.parametrize("kernel", ["copy", "multiply_add"])
def test_a_wrong_kernel_is_not_timed(monkeypatch, kernel):
    right = getattr(peak, kernel)

    def wrong(device, x, *rest):
        result = right(device, x, *rest)
        result[-1] += 1
        return result

    monkeypatch.setattr(peak, kernel, wrong)
    with pytest.raises(TinyfcnError, match=f"peak_{kernel} gives a wrong"):
        measure_peaks(Emulator(), None, None, copied=64, threads=64, rounds=4)
