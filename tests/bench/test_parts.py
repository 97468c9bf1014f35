"""The parts of a step as they are timed: none that is wrong is."""

from dataclasses import replace

import numpy as np
import pytest

from tinyfcn import Operations, on
from tinyfcn.adam_state import AdamState
from tinyfcn.bench import parts
from tinyfcn.bench.parts import Form, time_parts
from tinyfcn.bench.peaks import measure_peaks
from tinyfcn.bench.timing import TimeBudget, wall_clock
from tinyfcn.checks.parts import Part, note_calls, split
from tinyfcn.devices.cards import CARDS, MEASURED
from tinyfcn.devices.device import address
from tinyfcn.devices.emulator import Emulator
from tinyfcn.devices.nvrtc import MULTIPROCESSORS
from tinyfcn.errors import TinyfcnError
from tinyfcn.ops import peak
from tinyfcn.training.step import Task, parts_of

HASTE = TimeBudget(0.01, 2, 0)


def noted(ops, device, *work):
    """The parts of what `work` asks of the operations."""
    calls = note_calls(ops)
    for each in work:
        each(ops)
    return [part for call in calls for part in split(call, device)]


class Wrong(Form):
    """A form of which one operation's results are 1 % too large."""

    def __init__(self, ops, operation):
        super().__init__(ops)
        self.operation = operation

    def prepared(self, part):
        run, factor = super().prepared(part), np.float32(1.01 if part.operation == self.operation else 1)
        return lambda: [result * factor for result in run()]


def on_the_emulator():
    """Parts that need no template to be compiled."""
    ops, x = Operations(Emulator()), np.random.default_rng(0).standard_normal(300).astype(np.float32)
    return noted(ops, ops.device, lambda ops: ops.add(ops.relu(ops.asarray(x)), ops.asarray(x)))


def test_parts_are_timed(monkeypatch):
    monkeypatch.setattr(parts, "COPIED_BYTES", 1)
    forms, messages = {"fast": Form(on("emulator")), "naive": Form(on("emulator", naive=True))}, []
    for timed in time_parts(on_the_emulator(), forms, wall_clock, HASTE, messages.append):
        assert {*timed} == {"fast", "naive"} and timed["fast"]["seconds"] > 0
        assert timed["fast"]["runs"] == 20  # in one graph
    assert messages == ["1 of 2: relu 300", "2 of 2: add 300"]


def test_a_wrong_form_is_not_timed(monkeypatch):
    monkeypatch.setattr(parts, "in_turn", lambda *arguments: pytest.fail("timed"))

    def time(which, **forms):
        time_parts(which, forms, None, HASTE, print)

    some, emulator = on_the_emulator(), on("emulator", naive=True)
    with pytest.raises(TinyfcnError, match=r"add 300: fast and naive differ by 1.0e-02, .* so none is timed"):
        time(some, fast=Form(on("emulator")), naive=Wrong(emulator, "add"))
    nan = replace(some[0], arguments={"x": np.full(300, np.nan, np.float32)})
    with pytest.raises(TinyfcnError, match=r"relu 300: fast and naive differ by inf"):
        time([nan], fast=Form(on("emulator")), naive=Form(emulator))
    step = parts_of(Task("skip", 1), on("cpu"))
    for wrong in ("conv_transpose2d_backward up2", "adam_step"):
        with pytest.raises(TinyfcnError, match=rf"{wrong}.*: numpy and torch differ by 1.0e-02"):
            time(step, numpy=Form(on("cpu")), torch=Wrong(on("cpu"), wrong.split()[0]))


def test_numpy_takes_turns_with_copies(monkeypatch):
    parameters, places, cpu = np.ones(3, np.float32), [], on("cpu")
    state = AdamState.create(cpu, parameters, 1.0, 1)

    def adam_step(parameters, gradients, state, loss):
        places.append((address(parameters), address(state.m)))
        parameters -= gradients
        state.m += 1

    monkeypatch.setattr(cpu, "adam_step", adam_step)
    arguments = {"parameters": parameters, "gradients": parameters.copy(), "state": state, "loss": parameters[:1]}
    once = Form(cpu).program(Part("adam_step", "", "", arguments, None), copies=2, rounds=9)
    for _ in range(4):
        once()
    assert places == places[:2] * 3 and len({*places}) == 2  # each once before
    assert (address(parameters), address(state.m)) not in places and (parameters == 1).all()


def test_cards_and_rooflines():
    for card in CARDS.values():
        assert card.architecture in MULTIPROCESSORS and card.source != MEASURED
        assert 1e11 < card.bandwidth < 1e13 and 1e12 < card.flops < 1e15
    assert CARDS["h200"].least_seconds(4.8e12, 1) == 1 and CARDS["h200"].least_seconds(1, 134e12) == 2


def test_peaks():
    assert min(measure_peaks(Emulator(), wall_clock, HASTE, copied=4096, threads=512, rounds=16)) > 1e6


@pytest.mark.parametrize("kernel", ["copy", "multiply_add"])
def test_a_wrong_peak_is_not_timed(monkeypatch, kernel):
    right = getattr(peak, kernel)

    def wrong(device, x, *rest):
        result = right(device, x, *rest)
        result[-1] += 1
        return result

    monkeypatch.setattr(peak, kernel, wrong)
    with pytest.raises(TinyfcnError, match=f"peak_{kernel} gives a wrong"):
        measure_peaks(Emulator(), None, None, copied=64, threads=64, rounds=4)
