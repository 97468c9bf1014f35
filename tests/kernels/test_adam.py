"""Tests kernels/adam.cu against its reference, and the reference against the algorithm as printed in the paper."""

import math
from dataclasses import dataclass, field

import numpy as np
import pytest
from helpers.bugs import NAN, OUTSIDE, RACE, WRONG, Bug, Planted
from helpers.closeness import assert_close, on_device
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyfcn.adam_state import RING, AdamState
from tinyfcn.operations import on
from tinyfcn.ops import Operations

reference = on("cpu")

# Rounding 0.999 to float32 changes 1 - 0.999 by 5e-5, which is not an error of the kernel. So kernel and reference both
# start from the rounded numbers.
ROUNDED = {name: float(np.float32(value)) for name, value in (("beta1", 0.9), ("beta2", 0.999))}


@dataclass(frozen=True)
class Run:
    """Some steps of Adam over `count` parameters, with its settings."""

    count: int
    steps_done: int = 4
    base_rate: float = 0.01
    steps: int = 10
    warmup: int = 0
    l2: float = 0.0
    settings: dict = field(default_factory=dict)
    seed: int = 0

    def inputs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Parameters (P,), gradients (steps_done, P), l2 (P,): some with a penalty, some without."""
        random = np.random.default_rng(self.seed)
        gradients = random.standard_normal((self.steps_done, self.count))
        penalised = random.integers(0, 2, self.count)
        arrays = 0.1 * random.standard_normal(self.count), gradients, self.l2 * penalised
        return tuple(array.astype(np.float32) for array in arrays)


def trained(ops: Operations, run: Run, dtype: type, **settings: float) -> tuple[np.ndarray, AdamState]:
    """The change of the parameters, and the state after the last step."""
    start, gradients, l2 = (array.astype(dtype) for array in run.inputs())
    parameters = ops.asarray(start)
    state = AdamState.create(ops, l2, run.base_rate, run.steps, warmup=run.warmup, **run.settings, **settings)
    for number, gradient in enumerate(gradients):
        ops.adam_schedule(state)
        ops.adam_step(parameters, ops.asarray(gradient), state, ops.asarray(np.array([number + 0.5], dtype)))
    return ops.to_numpy(parameters) - start, state


def check_adam(ops: Operations, run: Run) -> None:
    """Compares parameters and state of the kernels with the reference."""
    moved, state = trained(ops, run, np.float32, **ROUNDED)
    expected, expected_state = trained(on("cpu"), run, np.float64, **ROUNDED)
    # Subtracting the start from a parameter leaves the rounding of the parameter, some 1e-5 of its change.
    assert_close(moved, expected, "kernel", "parameters")
    for name in ("m", "v", "rates", "losses", "l2"):
        found = ops.to_numpy(getattr(state, name))
        assert_close(found, getattr(expected_state, name), "one kernel", name)
    assert ops.to_numpy(state.step).tolist() == [run.steps_done]
    assert state.last_losses(ops, run.steps_done).tolist() == [number + 0.5 for number in range(run.steps_done)]


@settings(max_examples=25)
@given(
    st.builds(
        Run,
        count=st.integers(1, 700),
        steps_done=st.integers(1, 6),
        base_rate=st.sampled_from([0.01, 0.5]),
        steps=st.integers(3, 8),
        warmup=st.integers(0, 5),
        l2=st.sampled_from([0.0, 2.0]),
        seed=st.integers(0, 999),
    )
)
def test_kernels_against_reference(ops: Operations, run: Run) -> None:
    check_adam(ops, run)


@pytest.mark.parametrize("count", [1, 255, 256, 257, 1000])
def test_full_and_partial_blocks(ops: Operations, count: int) -> None:
    check_adam(ops, Run(count, warmup=2, l2=2.0))


def by_the_paper(run: Run) -> np.ndarray:
    """Algorithm 1 of Kingma & Ba for one parameter after another, with penalty, warm-up and cosine."""
    beta1, beta2, epsilon = 0.9, 0.999, 1e-8
    moved = []
    for start, gradients, l2 in zip(*(array.astype(np.float64).T for array in run.inputs()), strict=True):
        theta, m, v = start, 0.0, 0.0
        for t, gradient in enumerate(gradients, 1):
            alpha = run.base_rate
            if t < run.warmup:
                alpha *= t / run.warmup
            alpha *= (1 + math.cos(math.pi * min(t - 1, run.steps) / run.steps)) / 2
            g = gradient + l2 * theta
            m = beta1 * m + (1 - beta1) * g
            v = beta2 * v + (1 - beta2) * g**2
            theta -= alpha * (m / (1 - beta1**t)) / (math.sqrt(v / (1 - beta2**t)) + epsilon)
        moved.append(theta - start)
    return np.array(moved)


@pytest.mark.parametrize(
    "run",
    [
        Run(7, steps_done=1),
        Run(7, steps_done=10),
        Run(7, steps_done=10, warmup=1),
        Run(7, steps_done=10, warmup=6),
        Run(7, steps_done=10, warmup=30),
        Run(7, steps_done=10, l2=3.0),
        Run(7, steps_done=6, warmup=3, l2=3.0, base_rate=0.5),
    ],
    ids=str,
)
def test_reference_equals_the_papers_algorithm(run: Run) -> None:
    assert_close(trained(on("cpu"), run, np.float64)[0], by_the_paper(run), "float64")


def test_the_rate_rises_to_the_base_rate_and_falls_to_zero(ops: Operations) -> None:
    for each in (ops, on("cpu")):
        parameters, gradient = on_device(each, np.zeros(1, np.float32), np.ones(1, np.float32))
        state = AdamState.create(each, np.zeros(1, np.float32), base_rate=2.0, steps=40, warmup=4)
        rates = []
        for _ in range(43):
            each.adam_schedule(state)
            each.adam_step(parameters, gradient, state, gradient)
            rates.append(each.to_numpy(state.rates)[0])
        cosine = 1 + np.cos(np.pi * np.minimum(np.arange(43), 40) / 40)
        climb = np.minimum(np.arange(1, 44) / 4, 1)
        assert_close(np.array(rates) + 1, climb * cosine + 1, "one kernel")
        assert max(rates) == rates[3] and abs(rates[-1]) < 1e-6, "the rate stays 0 after the last step"


def test_the_last_losses_are_recorded(ops: Operations) -> None:
    for each in (ops, on("cpu")):
        parameters, gradient, loss = on_device(each, *np.zeros((3, 1), np.float32))
        state = AdamState.create(each, np.zeros(1, np.float32), base_rate=1.0, steps=0)
        for step in range(RING + 3):
            loss[...] = step
            each.adam_schedule(state)
            each.adam_step(parameters, gradient, state, loss)
            if step in (0, 5, RING - 1):
                assert state.last_losses(each, step + 1).tolist() == [*range(step + 1)]
        assert state.last_losses(each, 5).tolist() == [*range(RING - 2, RING + 3)]
        assert state.last_losses(each, RING).tolist() == [*range(3, RING + 3)]


def test_the_first_step_moves_by_the_rate_against_the_gradient(ops: Operations) -> None:
    for each in (ops, on("cpu")):
        gradient = np.array([3, -0.2, 1e-3, 0], np.float32)
        parameters, given = on_device(each, np.zeros(4, np.float32), gradient)
        state = AdamState.create(each, np.zeros(4, np.float32), base_rate=0.125, steps=100)
        each.adam_schedule(state)
        each.adam_step(parameters, given, state, given[:1])
        assert_close(each.to_numpy(parameters), -0.125 * np.sign(gradient), "kernel")
        np.testing.assert_array_equal(each.to_numpy(given), gradient)


def test_other_settings_take_effect(ops: Operations) -> None:
    run = Run(300, settings={"epsilon": 0.25})
    check_adam(ops, run)
    shorter, usual = (trained(ops, each, np.float32)[0] for each in (run, Run(300)))
    assert np.linalg.norm(shorter) < 0.9 * np.linalg.norm(usual)


def test_parameters_may_be_part_of_a_longer_array(ops: Operations) -> None:
    start, gradients, l2 = Run(300).inputs()
    whole, alone = on_device(ops, np.concatenate([[9], start, [9]]).astype(np.float32), start)
    for parameters in (whole[1:-1], alone):
        gradient = ops.asarray(gradients[0])
        state = AdamState.create(ops, l2, 0.01, 10)
        ops.adam_schedule(state)
        ops.adam_step(parameters, gradient, state, gradient[:1])
    np.testing.assert_array_equal(ops.to_numpy(whole), np.concatenate([[9], ops.to_numpy(alone), [9]]))


def test_reference_keeps_the_dtype() -> None:
    for dtype in (np.float32, np.float64):
        moved, state = trained(on("cpu"), Run(5, warmup=2, l2=2.0), dtype)
        assert {moved.dtype, state.m.dtype, state.v.dtype, state.rates.dtype} == {np.dtype(dtype)}
        assert reference.adam_step(moved, moved.copy(), state, moved[:1]) is None and moved.dtype == dtype
        assert state.losses.dtype == dtype


def test_mismatched_shapes_are_reported(ops: Operations) -> None:
    five, six = on_device(ops, np.zeros(5, np.float32), np.zeros(6, np.float32))
    state = AdamState.create(ops, np.zeros(5, np.float32), 0.1, 10)
    with pytest.raises(ValueError, match=r"adam_step: gradients must have shape \(5\), got \(6,\)"):
        ops.adam_step(five, six, state, five[:1])
    with pytest.raises(ValueError, match=r"adam_step: state.m must have shape \(6\), got \(5,\)"):
        ops.adam_step(six, six, state, five[:1])
    with pytest.raises(ValueError, match=r"adam_step: loss must have shape \(1\), got \(2,\)"):
        ops.adam_step(five, five, state, five[:2])


def check_steps(ops: Operations) -> None:
    check_adam(ops, Run(300, warmup=3, l2=2.0))
    check_adam(ops, Run(300, settings={"epsilon": 0.25}))


PLANTED = {
    "adam_schedule": Planted(
        check_steps,
        [
            ("the same bias correction at each step", "-expm1f(t * logf(beta1))", "1.0f - beta1"),
            ("the second correction is a step ahead", "t * logf(beta2)", "(t + 1) * logf(beta2)"),
            ("the cosine is a step ahead", "(float)(t - 1) / steps", "(float)t / steps"),
            ("the first step has the rate 0", "(float)t / warmup", "(float)(t - 1) / warmup"),
        ],
    ),
    "adam_step": Planted(
        check_steps,
        [
            ("the mean is not corrected", "m[element] / rates[1]", "m[element]"),
            ("the corrections are swapped", "v[element] / rates[2]", "v[element] / rates[1]"),
            ("epsilon is added under the root", "(sqrtf(v_hat) + epsilon)", "sqrtf(v_hat + epsilon)"),
            ("the penalty does not depend on the parameter", "l2[element] * parameters[element]", "l2[element]"),
            ("the gradient is not squared", "gradient * gradient;", "gradient;"),
            ("the parameters move uphill", "parameters[element] -=", "parameters[element] +="),
            ("steps are not counted", "step[0] += 1;", ""),
            ("the loss is stored one element too far", "losses[step[0] % R]", "losses[(step[0] + 1) % R]"),
            ("only the first loss is stored", "if (element == 0)", "if (element == 0 && step[0] == 0)"),
        ],
    ),
}

ZOO = {
    "adam_schedule": [
        Bug("the progress divides by 0 steps",
            {"steps == 0 ? 0.0f : t <= steps ? (float)(t - 1) / steps : 1.0f": "fminf((float)(t - 1) / steps, 1.0f)"},
            "check", NAN, ("float progress = ",)),
    ],
    "adam_step": [
        Bug("one thread writes the correction of the next step while others read that of this step",
            {"const float* __restrict__ rates": "float* __restrict__ rates",
             "+ epsilon);": "+ epsilon);\nif (element == 0) rates[1] = 1.0f - beta1 * (1.0f - rates[1]);"},
            "check", RACE, ("m[element] / rates[1]", "if (element == 0) rates[1] = ")),
        Bug("the block index is forgotten: threads of several blocks update one mean",
            {"m[element] = beta1 * m[element]": "m[threadIdx.x] = beta1 * m[threadIdx.x]"},
            "check", "nothing orders blocks", ("m[threadIdx.x] = ",)),
        Bug("the surplus threads of the last block do not return", {"if (element >= count) return;": ""},
            "trap", OUTSIDE, ("float gradient = ",), "memcheck"),
        Bug("every thread counts the step", {"if (element == 0) {": "{"}, "check", RACE, ("step[0] += 1;",)),
        Bug("the corrections are swapped", {"m[element] / rates[1]": "m[element] / rates[2]"},
            "double", WRONG, ("parameters[element] -= ",)),
    ],
}  # fmt: skip
