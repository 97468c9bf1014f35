"""`tinyfcn bench`: counts against counting one by one, known occupancies, nothing timed that is wrong, files whole."""

import itertools
import json
import re
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

from tinyfcn import on, reference
from tinyfcn.bench import kernels, plots, report, run, steps, torch_kernels, torch_steps
from tinyfcn.bench.kernels import Call, Part, Recorder, Traced
from tinyfcn.bench.resources import CARDS, MULTIPROCESSORS, blocks_at_once, floor_seconds, occupancy
from tinyfcn.bench.steps import Step, Task, Trace, batches_of
from tinyfcn.bench.timing import Patience, in_turn, line_through, wall_clock
from tinyfcn.cli import main
from tinyfcn.data import Digits
from tinyfcn.devices import kernel_source, nvrtc
from tinyfcn.devices.device import address
from tinyfcn.devices.emulator import Emulator
from tinyfcn.errors import DataError, TinyfcnError
from tinyfcn.operations import Operations
from tinyfcn.reference.adam import AdamState

TORCH = torch_steps.import_torch("cpu")  # no dependency: where it is not there, the tests of it are not either


@pytest.fixture(autouse=True)
def few_digits(monkeypatch, tmp_path):
    """A folder for each test, and digits of noise instead of drawn ones."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    digits = Digits(random.integers(0, 256, (30, 28, 28)).astype(np.uint8), (np.arange(30) % 10).astype(np.uint8), "")
    monkeypatch.setattr(steps, "drawn_digits", lambda: digits)
    monkeypatch.setattr(steps, "MIN_PICTURES", 8)


# Time


def test_ways_take_turns_and_the_median_counts():
    order, taken = [], {"a": iter([9, 1, 2, 30, 4, 5]), "b": itertools.repeat(2)}

    def clock(way, count):
        order.append(way)
        return float(next(taken[way]))

    timings = in_turn({"a": "a", "b": "b"}, clock, Patience(seconds=10, turns=50, shortest=0))
    assert order[-10:] == ["a", "b"] * 5
    assert timings["a"].seconds == 4 and (timings["a"].low, timings["a"].high) == (2, 5)
    assert timings["b"].turns == 5 and timings["b"].runs == 1


def test_what_is_fast_is_repeated_in_a_turn():
    timing = in_turn({"a": None}, lambda way, count: 1e-4 * count, Patience(seconds=0.5, turns=20, shortest=0.01))["a"]
    assert timing.runs == 100 and timing.turns == 20
    assert timing.seconds == pytest.approx(1e-4)


def test_the_wall_clock_counts_all_runs():
    runs = []
    assert wall_clock(lambda: runs.append(1), 7) > 0 and len(runs) == 7


def test_lines():
    sizes = [1, 4, 16, 4096]
    assert line_through(sizes, [3e-3 + 2e-6 * size for size in sizes]) == pytest.approx((3e-3, 2e-6))
    assert line_through([1, 2, 4], [1, 4, 16])[0] == 0  # never below nothing
    assert line_through([1, 2, 4], [3, 2, 1])[1] == 0


# What a kernel could do


@pytest.mark.parametrize(
    ("architecture", "threads", "registers", "shared", "blocks", "share"),
    [  # as CUDA's occupancy calculator has it
        ("sm_75", 256, 32, 0, 4, 1.0),
        ("sm_75", 256, 64, 0, 4, 1.0),
        ("sm_75", 64, 255, 0, 4, 0.25),
        ("sm_75", 32, 16, 0, 16, 0.5),  # no more than 16 blocks
        ("sm_75", 256, 32, 16385, 3, 0.75),
        ("sm_80", 256, 32, 0, 8, 1.0),
        ("sm_80", 256, 33, 0, 6, 0.75),  # 5 registers of 8 more for each warp than at 32
        ("sm_80", 256, 64, 0, 4, 0.5),
        ("sm_80", 128, 40, 0, 12, 0.75),
        ("sm_80", 1024, 64, 0, 1, 0.5),
        ("sm_80", 64, 255, 0, 4, 0.125),
        ("sm_80", 32, 96, 0, 20, 0.3125),  # 5 in each quarter, though all its registers together would do for 21
        ("sm_80", 128, 32, 48 * 1024, 3, 0.1875),  # 49 KB of 164 each: CUDA takes one
        ("sm_80", 100, 32, 0, 16, 1.0),  # 100 threads are four warps
        ("sm_86", 256, 32, 0, 6, 1.0),
        ("sm_90", 32, 32, 0, 32, 0.5),
        ("sm_90", 256, 32, 48 * 1024, 4, 0.5),
        ("sm_120", 256, 32, 0, 6, 1.0),
        ("sm_120", 256, 80, 0, 3, 0.5),
        ("sm_120", 128, 32, 100 * 1024, 0, 0.0),  # nothing is left for CUDA
    ],
)
def test_occupancy(architecture, threads, registers, shared, blocks, share):
    assert blocks_at_once(architecture, threads, registers, shared) == blocks
    assert occupancy(architecture, threads, registers, shared) == share


def test_cards_and_floors():
    assert {*nvrtc.ARCHITECTURES} <= {*MULTIPROCESSORS}
    for card in CARDS.values():
        assert card.architecture in MULTIPROCESSORS and card.source
        assert 1e11 < card.bandwidth < 1e13 and 1e12 < card.operations < 1e15
    assert floor_seconds(4.8e12, 1, 4.8e12, 67e12) == 1 and floor_seconds(1, 134e12, 4.8e12, 67e12) == 2


# What a part must do


def a_part(operation, what="", given=None, results=()):
    call = Call(operation, given or {}, [*results], [])
    return Part(what, "", call, call)


def products_by_counting(fine, coarse, kernel, stride, padding):
    """How many products a convolution of one channel sums up, found by looking at each."""
    places = itertools.product(*map(range, (*coarse, *kernel)))
    inside = [
        0 <= i * stride + u - padding < fine[0] and 0 <= j * stride + v - padding < fine[1] for i, j, u, v in places
    ]
    return sum(inside)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"),
    [
        ((7, 9), (3, 4), 1, 2),
        ((6, 5), (4, 3), 2, 1),
        ((5, 5), (5, 5), 1, 2),
        ((4, 6), (1, 1), 3, 0),
    ],
)
def test_products_of_convolutions(transposed, size, kernel, stride, padding):
    name, weight = ("conv_transpose2d", (3, 5, *kernel)) if transposed else ("conv2d", (5, 3, *kernel))
    given = {"x": np.zeros((2, 3, *size)), "weight": np.zeros(weight), "stride": stride, "padding": padding}
    y = getattr(reference, name)(**given, bias=np.zeros(5))
    fine, coarse = (y.shape[2:], size) if transposed else (size, y.shape[2:])
    products = 2 * 3 * 5 * products_by_counting(fine, coarse, kernel, stride, padding)
    given["dout"] = y
    assert kernels.operations_of(a_part(name, "", given)) == 2 * products
    assert kernels.operations_of(a_part(f"{name}_backward", "dx", given)) == 2 * products
    assert kernels.operations_of(a_part(f"{name}_backward", "dweight", given)) == 2 * products + y.size


def test_other_operations():
    x, weight, dsum = np.zeros((2, 3, 9, 8)), np.zeros((5, 3, 3, 3)), np.zeros((2, 5, 3, 3))
    pooled = a_part("conv2d_pool_backward", "dx", {"x": x, "weight": weight, "dsum": dsum})
    assert kernels.operations_of(pooled) == 2 * dsum.size * 3 * 9  # the winners alone have gradients
    assert kernels.operations_of(a_part("adam_step", "", {"parameters": np.zeros(100)})) == 1600
    given = {"logits": np.zeros((2, 10, 3, 3)), "labels": np.zeros((2, 3, 3))}
    assert kernels.operations_of(a_part("softmax_cross_entropy", "", given)) == 6 * 180 + 3 * 18
    assert kernels.operations_of(a_part("relu", "", {}, [np.zeros(7)])) == 7


def test_least_bytes():
    device, random = Recorder(), np.random.default_rng(0)
    ops = Traced(device, runs=False)
    x, weight, bias, dy = (
        random.random(shape, np.float32) for shape in ((2, 3, 9, 8), (5, 3, 2, 3), (5,), (2, 5, 4, 3))
    )
    _, max_index = ops.conv2d_pool(x, weight, bias)
    ops.conv2d_pool_backward(dy, max_index, x, weight)
    ops.conv2d_pool_backward(dy, max_index, x, weight, through_relu=True, add=x.copy())
    ops.compose_m2nist(np.zeros((99, 28, 28), np.uint8), np.zeros(99, np.uint8), 0, np.zeros(1, np.int32), 2)
    ops.adam_step(bias, bias.copy(), AdamState.create(ops, bias, 1.0, 1), bias[:1].copy())
    found = [
        kernels.least_bytes(Part(what, "", part, part)) for call in ops.calls for what, part in call.parts().items()
    ]
    x, weight, bias, dy = (4 * array.size for array in (x, weight, bias, dy))
    assert found == [
        x + weight + bias + 2 * dy,  # y and max_index
        2 * dy + weight + x,  # dsum and max_index; dx
        2 * dy + x + weight + bias,
        2 * dy + weight + 3 * x,  # and x for the ReLU, add
        2 * dy + x + weight + bias,
        8 * 2 * 64 * 84 + 2 * 64 * 84 + 99 + 4,  # a picture's float and label, and a byte for each pixel at the most
        (5 + 3) * bias,  # read, and written
    ]


def test_arrays_that_are_read_in_part_are_kernels_parameters():
    read = {parameter.name for kernel in kernel_source.kernels().values() for parameter in kernel.parameters}
    assert read >= kernels.READ_IN_PART


@pytest.mark.parametrize("task", [Task("classifier", 2), Task("skip", 1)], ids=str)
def test_every_launch_of_a_step_is_in_one_part(task):
    device, batches = Recorder(), batches_of(task)
    parts = kernels.parts_of(task, batches, device, runs=False)
    step = Step(task, batches, Operations(device), "composed" if task.design == "skip" else "gathered", record=False)
    launches = device.record(step.work).launches
    found = [launch.kernel.expression for part in parts for launch in part.fast.launches]
    assert sorted(found) == sorted(launch.kernel.expression for launch in launches)
    for part in parts:
        assert part.naive.launches and part.naive.operation == part.fast.operation
        assert [array.shape for array in part.naive.results if array is not None] == [
            array.shape for array in part.fast.results if array is not None
        ]
        # What gives dweight writes it, in both forms.
        for call in (part.fast, part.naive) if part.what else ():
            written = {
                address(argument)
                for launch in call.launches
                for parameter, argument in zip(launch.kernel.parameters, launch.arguments, strict=True)
                if parameter.is_array and not parameter.is_const and argument is not None
            }
            assert {address(result) for result in call.results} <= written
    layers = {name.split(".")[0] for name in step.network.parameter}
    assert {part.layer for part in parts} == layers | {""}
    for layer in layers:
        kinds = sorted(part.what for part in parts if part.layer == layer)
        assert kinds == (["", "dweight"] if layer in ("conv1", "skip0") else ["", "dweight", "dx"])
    assert (1 if task.design == "skip" else 0.01) * 1e8 < sum(map(kernels.operations_of, parts)) < 1.3e8


def parts_on_the_emulator():
    """Parts that need no template to be compiled."""
    device = Emulator()
    ops, x = Traced(device, runs=True), np.random.default_rng(0).standard_normal(300).astype(np.float32)
    ops.add(ops.relu(device.asarray(x)), device.asarray(x))
    return device, [Part("", "", call, replace(call, results=[*call.results])) for call in ops.calls]


def test_parts_are_timed(monkeypatch):
    monkeypatch.setattr(kernels, "COPIED_BYTES", 1)
    device, parts = parts_on_the_emulator()
    for timed in kernels.time_parts(parts, device, wall_clock, run.HASTE, lambda part: None):
        assert {*timed} == {"fast", "naive"} and timed["fast"].seconds > 0
        assert timed["fast"].runs == 20  # in one graph


def test_a_wrong_kernel_is_not_timed():
    device, parts = parts_on_the_emulator()
    parts[1].naive.results[0] = parts[1].fast.results[0] * np.float32(1.01)
    with pytest.raises(TinyfcnError, match=r"add, .*the fast form and the naive differ by 9.9e-03"):
        kernels.time_parts(parts, device, None, run.HASTE, lambda part: None)
    other = SimpleNamespace(results=lambda: [np.zeros(300)])
    with pytest.raises(TinyfcnError, match=r"relu, .*the fast form and PyTorch's differ by"):
        kernels.time_parts(parts[:1], device, None, run.HASTE, lambda part: other)


def skip_on_the_cpu():
    """The parts of a step, as a card would do it, and a step whose operations are NumPy's."""
    task = Task("skip", 1)
    batches = batches_of(task)
    step = Step(task, batches, Traced(None, runs=True), "composed")
    return kernels.parts_of(task, batches, Recorder(), runs=False), step


def test_operations_are_timed_in_numpy(monkeypatch):
    """A backward pass once, in the row of dx; beside what has an equivalent; each of the layer and operation named."""
    monkeypatch.setattr(kernels, "COPIED_BYTES", 1)
    (parts, step), said, whole = skip_on_the_cpu(), [], []

    def equivalent(part):
        whole.append(part)
        given = [result for result in part.fast.results if result is not None]
        again = SimpleNamespace(results=lambda: given, repeated=lambda copies: (lambda: None, 1))
        return again if part.fast.operation.startswith("conv") else None

    times = kernels.time_operations(parts, step, wall_clock, run.HASTE, equivalent, said.append)
    for part, timed in zip(parts, times, strict=True):
        if part.what == "dweight" and part.layer not in ("conv1", "skip0"):
            assert timed == {}
        else:
            assert {*timed} == {"numpy", *(["torch"] if part.layer else [])} and timed["numpy"].seconds > 0
    timed = [part for part, found in zip(parts, times, strict=True) if found]
    assert [part.fast.operation for part in timed] == [part.fast.operation for part in whole]
    for part, mine in zip(timed, whole, strict=True):
        weight = part.fast.given.get("weight")
        assert weight is None or mine.fast.given["weight"].shape == weight.shape
        assert mine.layer == part.layer
        assert mine.what == ("dweight" if part.what == "dweight" else "")
    assert len(said) == len(whole) and said[2] == "3 of 22: conv2d_pool conv1"


def test_nothing_is_timed_in_numpy_that_differs_from_pytorch(monkeypatch):
    monkeypatch.setattr(kernels, "in_turn", lambda *given: pytest.fail("timed"))
    parts, step = skip_on_the_cpu()

    def equivalent(part):
        wrong = [result * 1.01 if part.layer == "up2" else result for result in part.fast.results if result is not None]
        return SimpleNamespace(results=lambda: wrong)

    with pytest.raises(TinyfcnError, match=r"conv_transpose2d, up2: NumPy's results and PyTorch's differ by 9.9e-03"):
        kernels.time_operations(parts, step, None, run.HASTE, equivalent, lambda text: None)


def test_numpy_takes_turns_with_copies(monkeypatch):
    parameters, gradients = np.ones(3, np.float32), np.ones(3, np.float32)
    given, seen = {"parameters": parameters, "gradients": gradients, "state": "of Adam", "loss": None}, []

    def adam_step(parameters, gradients, state, loss):
        seen.append(address(parameters))
        parameters -= gradients
        assert state == "of Adam" and loss is None

    monkeypatch.setattr(reference, "adam_step", adam_step)
    once = kernels.in_numpy(Call("adam_step", given, [], []), 2)
    for _ in range(4):
        once()
    assert seen[:2] == seen[2:] and len({*seen, address(parameters)}) == 3 and parameters.tolist() == [1, 1, 1]


def test_what_kernels_use():
    ops = Traced(Recorder(), runs=False)
    logits = np.zeros((2, 10, 40, 40), np.float32)
    ops.softmax_cross_entropy(logits, np.zeros((2, 40, 40), np.int32))
    ops.softmax(logits)
    ops.softmax(logits[:1].copy())
    loss, mean, softmax = kernels.used([Part("", "a", call, call) for call in ops.calls], "sm_90")
    assert loss["kernel"] == "softmax_cross_entropy<10>" and mean["kernel"] == "softmax_cross_entropy_mean"
    assert softmax["blocks"] == 13 and softmax["threads"] == 256 and softmax["for"] == ["a", "a"]
    assert loss["registers"] > 10 and loss["shared_bytes"] == 32 and loss["spilled_bytes"] == 0
    assert softmax["occupancy"] == occupancy("sm_90", 256, softmax["registers"], 0)


# Steps


def test_batches_are_what_the_network_takes():
    batches = batches_of(Task("skip", 3, scale=2))
    assert batches.pictures.shape == (8, 128, 168) and batches.order.shape == (steps.SETS, 3)
    x, labels = batches.floats()[1]
    assert x.shape == (3, 1, 128, 168) and x.dtype == np.float32 and labels.dtype == np.int32
    assert np.array_equal(np.rint(x[:, 0] * 127 + 127), batches.pictures[batches.order[1]])
    assert np.array_equal(x[:, :, :64, :84], x[:, :, 64:, 84:])
    assert np.array_equal(labels != 10, x[:, 0] > -1)
    assert not np.array_equal(batches.order[0], batches.order[1])


@pytest.mark.parametrize("task", [Task("classifier", 4), Task("skip", 2)], ids=str)
def test_wherever_batches_come_from_the_step_is_the_same(task):
    batches, ops = batches_of(task), on("cpu")
    given, gathered = (Step(task, batches, ops, source).trace() for source in ("given", "gathered"))
    initial = Step(task, batches, ops, "given").initial
    assert set(steps.differences(gathered, given, initial).values()) == {0.0}
    again = steps.differences(Step(task, batches, ops, "given", threads=2).trace(), given, initial)
    assert 0 < again["mean gradients"] < 1e-5


def test_a_composed_step_sees_fresh_pictures():
    task, ops = Task("skip", 2), on("cpu")
    batches = batches_of(task)
    step = Step(task, batches, ops, "composed")
    fresh = [reference.compose_m2nist(batches.digits.images, batches.digits.labels, 0, k, 2) for k in range(steps.SETS)]
    assert step.trace().losses.tolist() == trace_of(task, fresh).losses.tolist()


def trace_of(task, floats):
    """What a step does that is given these batches."""
    batches = SimpleNamespace(floats=lambda: floats)
    return Step(task, batches, on("cpu"), "given").trace()


def test_a_recorded_step_does_what_the_step_does():
    """On the emulator, so that record and replay are tried, with the plain kernels, which need little compiling."""
    task, ops = Task("classifier", 1), Operations(Emulator(naive=True))
    batches = batches_of(task)
    step = Step(task, batches, ops, "gathered")
    assert step.replay is not None
    expected = Step(task, batches, on("cpu"), "given").trace()
    steps.expect_agreement("the emulator", step.trace(), expected, step.initial, steps.TOLERANCES)


def test_equal_bits():
    task = Task("classifier", 2)
    batches, seeds = batches_of(task), iter(range(9))

    def other():
        step = Step(task, batches, on("cpu"), "gathered")
        step.network.parameters[0] += np.float32(1e-7) * next(seeds)
        return step

    assert steps.same_bits(lambda: Step(task, batches, on("cpu"), "gathered"), 3)
    assert not steps.same_bits(other, 3)


def test_disagreement_is_an_error():
    initial = {"a": np.zeros(3), "b": np.zeros(2)}
    right = Trace(np.ones(4), {"a": np.ones(3), "b": np.full(2, 1e-6)}, {"a": np.ones(3), "b": np.ones(2)})
    expect = steps.expect_agreement
    assert expect("it", right, right, initial, steps.TOLERANCES) == dict.fromkeys(steps.TOLERANCES, 0)
    nan = np.array([1, 1, np.nan, 1])
    for wrong, what in (
        (replace(right, losses=np.ones(4) * 1.001), "losses by 1.0e-03, more than 1e-05"),
        (replace(right, losses=nan), "losses by inf"),
        (replace(right, means=right.means | {"b": np.full(2, 2e-6)}), "mean gradients by 1.0e"),  # small, but all wrong
        (replace(right, parameters=right.parameters | {"b": np.zeros(2)}), "parameters by"),
    ):
        with pytest.raises(TinyfcnError, match=f"it and our step do not do the same, so neither is timed.*{what}"):
            expect("it", wrong, right, initial, steps.TOLERANCES)


class OtherStep:
    """In PyTorch's place: a step of ours, with a loss that is wrong by a factor."""

    factor = 1.0

    def __init__(self, torch, task, batches, initial, mode, device):
        if mode.channels_last:
            raise RuntimeError("no such thing here\nfor reasons")
        self.step = Step(task, batches, on("cpu"), "given")

    def __call__(self):
        self.step()

    def trace(self):
        trace = self.step.trace()
        return replace(trace, losses=trace.losses * self.factor)


@pytest.fixture
def other_step(monkeypatch):
    monkeypatch.setattr(run, "import_torch", lambda device: SimpleNamespace(__version__="0.0"))
    monkeypatch.setattr(run, "settings", lambda *given: nullcontext())
    monkeypatch.setattr(run, "TorchStep", OtherStep)


def bench(**changes):
    return run.Bench("cpu", lambda text: None, replace(run.QUICK, **changes))


def test_a_step_beside_another(other_step):
    found = bench().step(Task("classifier", 2))
    assert found["best"] == "eager" and found["best_ratio"] == found["eager_ratio"]
    assert found["best_ratio"] == found["torch"]["eager"]["seconds"] / found["ours"]["seconds"]
    assert found["failed"] == {"channels_last": "no such thing here"} and found["tf32"] is None
    assert max(found["differences"]["eager"].values()) < 1e-4


def test_what_differs_is_not_timed(other_step, monkeypatch):
    monkeypatch.setattr(OtherStep, "factor", 1.001)
    measure = bench()
    found = measure.step(Task("classifier", 2))
    assert found["torch"] == {} and found["best_ratio"] is None and found["ours"]["seconds"] > 0
    [why] = measure.disagreeing
    assert (
        re.match(r"classifier, batch 2: PyTorch \(eager\) .* not do the same", why) and found["failed"]["eager"] == why
    )
    by_batch, _ = measure.sweep()
    assert {*by_batch["series"]} == {"ours"} and "not do the same" in by_batch["stopped"]["eager"]
    result = command("--quick", "--only", "steps", "--device", "cpu")
    assert result.exit_code == 1 and "not do the same" in result.stdout


def test_tf32_is_timed_beside_and_may_differ(other_step, monkeypatch):
    measure, switched = bench(), []
    measure.on_gpu, measure.free, measure.clock = True, lambda: None, wall_clock
    monkeypatch.setattr(run, "ON_GPU", (run.EAGER,))
    monkeypatch.setattr(run, "settings", lambda torch, mode, threads: switched.append(mode.tf32) or nullcontext())
    assert measure.step(Task("classifier", 2))["tf32"]["seconds"] > 0
    assert switched == [False, False, True, True]  # prepared, timed; prepared, timed
    monkeypatch.setattr(run, "TF32_TOLERANCES", {"losses": -1})
    found = measure.step(Task("classifier", 2))
    assert found["tf32"] is None and "not do the same" in found["failed"]["TF32"] and found["best"] == "eager"


def test_a_sweep_ends_where_steps_take_too_long_or_too_much_memory(monkeypatch):
    monkeypatch.setattr(run, "import_torch", lambda device: None)
    slow = bench(longest=0.0).sweep()[0]
    assert slow["series"]["ours"]["sizes"] == [1] and slow["stopped"] == {"ours": "skip, batch 1: slow enough"}
    built = run.Bench.ours

    def too_large(self, task, batches, source):
        if task.batch > 1:
            raise MemoryError("Unable to allocate 5 TiB")
        return built(self, task, batches, source)

    monkeypatch.setattr(run.Bench, "ours", too_large)
    by_batch, by_size = bench(longest=99).sweep()
    assert by_batch["series"]["ours"]["sizes"] == [1] and "slope" not in by_batch["series"]["ours"]
    assert by_batch["stopped"] == {"ours": "skip, batch 2: Unable to allocate 5 TiB"}
    assert by_size["series"]["ours"]["sizes"] == [5376, 4 * 5376] and by_size["series"]["ours"]["slope"] >= 0


if TORCH:

    @pytest.mark.parametrize("task", [Task("classifier", 4), Task("skip", 2)], ids=str)
    @pytest.mark.parametrize("mode", torch_steps.ON_CPU, ids=lambda mode: mode.name)
    def test_pytorch_does_the_same(task, mode):
        batches = batches_of(task)
        mine = Step(task, batches, on("cpu"), "given")
        with torch_steps.settings(TORCH, mode, 1):
            step = torch_steps.TorchStep(TORCH, task, batches, mine.initial, mode, "cpu")
            apart = steps.differences(step.trace(), mine.trace(), mine.initial)
            step()  # not at the beginning any more
            again = steps.differences(step.trace(), mine.trace(), mine.initial)
        for what, tolerance in steps.TOLERANCES.items():
            assert max(apart[what], again[what]) < tolerance / 3

    def test_switches_are_put_back():
        before = TORCH.backends.cudnn.benchmark, TORCH.backends.cudnn.allow_tf32, TORCH.get_num_threads()
        with torch_steps.settings(TORCH, torch_steps.GRAPH, 1):
            assert TORCH.backends.cudnn.benchmark and not TORCH.backends.cudnn.allow_tf32
            assert not TORCH.backends.cuda.matmul.allow_tf32 and TORCH.get_num_threads() == 1
        assert before == (TORCH.backends.cudnn.benchmark, TORCH.backends.cudnn.allow_tf32, TORCH.get_num_threads())

    def test_equivalents_of_kernels():
        """PyTorch's way to each result, against the references."""
        ops, random = on("cpu"), np.random.default_rng(0)

        def normal(*shape):
            return random.standard_normal(shape).astype(np.float32)

        def check(operation, what, given, expected):
            other = torch_kernels.equivalent(TORCH, ops, a_part(operation, what, given, expected))
            kernels.expect_equal(other.part, "PyTorch's", expected, other.results())
            once, times = other.repeated(2)
            once()
            assert times == 1

        x, weight, stamp, bias = normal(2, 3, 10, 8), normal(4, 3, 3, 3), normal(3, 4, 4, 4), normal(4)
        x[x < 0] = 0  # as after a ReLU
        for name, kernel in (("conv2d", weight), ("conv_transpose2d", stamp)):
            given = {"x": x, "weight": kernel, "stride": 2, "padding": 1}
            function, back = getattr(ops, name), getattr(ops, f"{name}_backward")
            y = function(**given, bias=bias)
            forward = given | {"bias": bias, "relu": True}
            forward |= {"add": normal(*y.shape)} if name == "conv_transpose2d" else {}
            check(name, "", forward, [function(**forward)])
            given |= {"dout": normal(*y.shape), "need_dx": True, "out": None, "through_relu": True}
            dx, dweight, dbias = back(**given)
            check(f"{name}_backward", "dx", given, [dx])
            check(f"{name}_backward", "dweight", given, [dweight, dbias])
            check(f"{name}_backward", "", given, [dx, dweight, dbias])
        y, max_index = ops.conv2d_pool(x, weight, bias)
        check("conv2d_pool", "", {"x": x, "weight": weight, "bias": bias}, [y, max_index])
        given = {"dout": normal(*y.shape), "max_index": max_index, "x": x, "weight": weight, "out": None}
        given |= {"need_dx": True, "through_relu": True, "add": normal(*x.shape)}
        dx, dweight, dbias = ops.conv2d_pool_backward(**given)
        check("conv2d_pool_backward", "dx", given, [dx])
        check("conv2d_pool_backward", "dweight", given, [dweight, dbias])
        check("conv2d_pool_backward", "", given, [dx, dweight, dbias])
        check("conv2d_pool_backward", "dweight", given | {"need_dx": False}, [dweight, dbias])
        given = {"logits": normal(2, 5, 3, 3), "labels": random.integers(0, 5, (2, 3, 3)).astype(np.int32)}
        check("softmax_cross_entropy", "", given, [*ops.softmax_cross_entropy(**given)])
        state = AdamState.create(ops, np.zeros(7, np.float32), 1e-3, 1)
        check("adam_step", "", {"parameters": normal(7), "gradients": normal(7), "state": state}, [])
        assert torch_kernels.equivalent(TORCH, ops, a_part("compose_m2nist")) is None
        assert torch_kernels.equivalent(None, ops, a_part("conv2d")) is None

    def test_the_way_back_through_a_pooling_is_timed_once(monkeypatch):
        """With dx, or with all of the backward pass; with dweight if there is no dx."""
        unpooled, right = [], torch_kernels._unpooled
        monkeypatch.setattr(torch_kernels, "_unpooled", lambda *given: unpooled.append(1) or right(*given))
        x, weight = np.ones((1, 1, 4, 4), np.float32), np.ones((2, 1, 3, 3), np.float32)
        given = {"dout": np.ones((1, 2, 1, 1), np.float32), "max_index": np.zeros((1, 2, 1, 1), np.int32), "x": x}
        given |= {"weight": weight, "through_relu": False, "add": None}
        for what, need_dx, times in (("dx", True, 1), ("dweight", True, 0), ("", True, 1), ("dweight", False, 1)):
            part = a_part("conv2d_pool_backward", what, given | {"need_dx": need_dx})
            once, _ = torch_kernels.equivalent(TORCH, on("cpu"), part).repeated(1)
            unpooled.clear()
            once()
            assert len(unpooled) == times, (what, need_dx)

    def test_operations_beside_pytorchs(monkeypatch):
        """All of a step's results agree, and all but pictures and rates have a time on both sides."""
        monkeypatch.setattr(kernels, "used", lambda parts, architecture: [])
        measure = bench()
        for part in measure.kernels("h200")["parts"]:
            has_torch = part["numpy"] and part["operation"] not in ("compose_m2nist", "adam_schedule")
            assert (part["torch"] is not None) == bool(has_torch) == ("ratio" in part)
            if has_torch:
                assert part["ratio"] == part["torch"]["seconds"] / part["numpy"]["seconds"]


# Words, tables, files


def test_in_words():
    words = {None: "-", 0: "0 s", 3.2e-8: "0.03 µs", 9.531e-5: "95.3 µs", 1.234e-3: "1.23 ms", 71.3: "71.3 s"}
    assert {seconds: report.in_words(seconds) for seconds in words} == words
    assert [*map(report.times, (None, 0.871, 3.14, 33.3))] == ["-", "0.87x", "3.1x", "33x"]
    assert [*map(report.percent, (None, 0.053, 0.66))] == ["-", "5.3 %", "66 %"]


def a_timing(seconds):
    return {"seconds": seconds, "low": seconds, "high": seconds, "turns": 5, "runs": 1}


def steps_found(equal_bits=True):
    step = {"design": "skip", "batch": 16, "ours": a_timing(1e-4), "trained": a_timing(1.1e-4)}
    step |= {"torch": {"eager": a_timing(3e-3), "CUDA graph": a_timing(4e-4)}, "best": "CUDA graph"}
    step |= {"tf32": a_timing(3e-4), "eager_ratio": 30.0, "best_ratio": 4.0, "failed": {}, "equal_bits": equal_bits}
    alone = {"batch": 64, "torch": {}, "best": None, "tf32": None, "eager_ratio": None, "best_ratio": None}
    return [step, {**step, **alone, "equal_bits": None}]


MACHINE = {"name": "NVIDIA Card", "device": "cuda", "torch": "2.11", "quick": False}
README = f"# title\n\nbefore ä\n{report.BEGIN}\nold\n{report.END}\nafter\n"


def test_the_readmes_table():
    path = Path("README.md")
    path.write_text(README, encoding="utf-8")
    report.update_readme(path, MACHINE, steps_found())
    text = path.read_text(encoding="utf-8")
    assert text.startswith(f"# title\n\nbefore ä\n{report.BEGIN}\nOn NVIDIA Card; PyTorch 2.11, by `tinyfcn bench`;")
    assert text.endswith(f"\n{report.END}\nafter\n") and "old" not in text
    assert "| skip, batch 16 | 100 µs | 110 µs | 3.00 ms | 400 µs | CUDA graph | 300 µs | 30x | 4.0x |\n" in text
    assert "| skip, batch 64 | 100 µs | 110 µs | - | - | - | - | - | - |\n" in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1 and len(table) == 4
    assert not re.search(r"20\d\d-|\d:\d\d", text)  # no date
    report.update_readme(path, MACHINE, steps_found())
    assert path.read_text(encoding="utf-8") == text
    report.update_readme(path, MACHINE, steps_found(equal_bits=False))
    assert "DIFFERENT BITS" in path.read_text(encoding="utf-8") and [*Path().iterdir()] == [path]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("# title\n", "has no place for the table.*<!-- bench -->"),
        (f"{report.END}\n{report.BEGIN}\n", "has no place"),
        (README + README, "once each"),
        (None, "cannot be read"),
    ],
)
def test_a_readme_without_markers(text, words):
    path = Path("README.md")
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=words):
        report.update_readme(path, MACHINE, steps_found())
    assert text is None or path.read_text() == text


def test_the_plot():
    line = {"sizes": [5376, 4 * 5376], "seconds": [1e-3, 2e-3], "constant": 5e-4, "slope": 1e-3 / 5376}
    dot = {"sizes": [5376], "seconds": [1e-3]}
    sweep = [{"by": by, "batch": 16, "series": {"ours": line, "eager": line, "CUDA graph": dot}} for by in "bp"]
    assert report.growth_lines(sweep[1]) == {
        "ours": "ours: 500 µs + 1.00 ms for each 64x84 pixels",
        "eager": "PyTorch, eager: 500 µs + 1.00 ms for each 64x84 pixels",
        "CUDA graph": "PyTorch, CUDA graph",
    }
    path = plots.step_times(Path("made/plot.png"), MACHINE, sweep)
    assert path.read_bytes().startswith(b"\x89PNG") and [*path.parent.iterdir()] == [path]
    nothing = {"by": "batch", "series": {"ours": {"sizes": [], "seconds": []}}}
    assert plots.step_times(Path("plot.png"), MACHINE, [nothing, nothing]).exists()


# The command


def command(*arguments):
    return CliRunner().invoke(main, ["bench", *map(str, arguments)])


@pytest.fixture
def alone(monkeypatch):
    """Without PyTorch, and without a compiler's seconds."""
    monkeypatch.setattr(run, "import_torch", lambda device: None)
    monkeypatch.setattr(kernels, "used", lambda parts, architecture: [])


def test_a_quick_run(alone):
    Path("README.md").write_text(README, encoding="utf-8")
    result = command(
        "--quick", "--sweep", "--device", "cpu", "--json", "made/bench.json", "--update-readme", "--out", "made"
    )
    assert result.exit_code == 0, result.output
    assert "PyTorch is not installed, or not for this device: ours alone" in result.stdout
    assert "on an NVIDIA H200 SXM: 4.80 TB/s" in result.stdout and "A bound, not a measurement" in result.stdout
    assert "skip, batch 1: two runs with one seed: equal bits" in result.stdout
    assert result.stderr.splitlines()[0].endswith(": looking for PyTorch")
    assert sorted(path.name for path in Path("made").iterdir()) == ["bench.json", "step-times.png"]
    readme = Path("README.md").read_text(encoding="utf-8")
    assert "| skip, batch 1 | " in readme and "--quick: too hasty to be quoted, by `tinyfcn bench`" in readme

    found = json.loads(Path("made/bench.json").read_text())
    assert {*found} == {"machine", "steps", "kernels", "sweep"}
    assert found["machine"]["device"] == "cpu" and found["machine"]["torch"] is None
    assert [(step["design"], step["batch"]) for step in found["steps"]] == [("classifier", 4), ("skip", 1)]
    for timing in (step[name] for step in found["steps"] for name in ("ours", "trained")):
        assert {*timing} == {"seconds", "low", "high", "turns", "runs"} and timing["seconds"] > 0
    assert found["kernels"]["threads"] == 1 and found["kernels"]["ceilings"] is None
    assert found["kernels"]["datasheet"]["architecture"] == "sm_90"
    for part in found["kernels"]["parts"]:
        assert part["floor"] >= 0 and part["kernels"] and part["fast"] is None and part["torch"] is None
        assert (
            part["numpy"] is None
            if part["what"] == "dweight" and part["layer"] not in ("conv1", "skip0")
            else (part["numpy"]["seconds"] > 0)
        )
    assert found["sweep"][1]["series"]["ours"]["sizes"][0] == 5376


def test_only_a_part(alone):
    result = command("--quick", "--only", "kernels", "--card", "a100", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "A100 datasheet" in result.stdout and "training step" not in result.stdout
    assert "naive" not in result.stdout  # no kernel was timed, so there is no column of their times
    assert "NumPy  PyTorch  ratio" in result.stdout and "on one thread each" in result.stdout
    assert re.search(r"conv2d dweight +context .*with dx +- +-\n", result.stdout)
    assert "22 of 22: adam_step" in result.stderr
    assert not [*Path().iterdir()]


def test_times_of_kernels_in_words():
    part = {
        "operation": "conv2d_backward",
        "what": "dx",
        "layer": "a",
        "sizes": "1x2, 3",
        "operations": 2e6,
        "bytes": 3e6,
    }
    part |= {"floor": 1e-6, "fast": a_timing(2e-6), "naive": a_timing(9e-6), "torch": None}
    part |= {"of_bandwidth": 0.5, "of_operations": 0.052}
    kernels_found = {"parts": [part, part], "ceilings": {"bandwidth": 3e12, "operations": 6e13}}
    first, _, whole = report.part_rows(kernels_found)
    assert "|".join(first.values()) == "conv2d dx|a|1x2|1.00 µs|2.00 µs|9.00 µs|-|50 %|5.2 %"
    assert "|".join(whole.values()) == "all of them|||2.00 µs|4.00 µs|18.0 µs|-|-|-"
    assert "3.00 TB/s and 60.0 TFLOP/s, measured in this run" in report.about_floors(kernels_found)


def test_times_in_numpy_in_words():
    part = {"operation": "conv2d_backward", "what": "dx", "layer": "a", "sizes": "1x2, 3", "operations": 2e6}
    part |= {"bytes": 3e6, "floor": 1e-6, "numpy": a_timing(4e-3), "torch": a_timing(3e-3), "ratio": 0.75}
    other = part | {"what": "dweight", "numpy": None, "torch": None}
    other.pop("ratio")
    alone = part | {"operation": "compose_m2nist", "what": "", "torch": None, "ratio": None}
    rows = report.part_rows({"parts": [part, other, alone], "ceilings": None})
    assert ["|".join([*row.values()][-4:]) for row in rows] == [
        "1.00 µs|4.00 ms|3.00 ms|0.75x",
        "1.00 µs|with dx|-|-",
        "1.00 µs|4.00 ms|-|-",
        "3.00 µs|8.00 ms|-|-",
    ]


def test_different_bits_are_a_failure(alone, monkeypatch):
    monkeypatch.setattr(run, "same_bits", lambda make: False)
    result = command("--quick", "--only", "steps", "--device", "cpu")
    assert result.exit_code == 1 and "skip, batch 1: two runs with one seed: DIFFERENT BITS" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--batches", "16,x"], "'16,x' is no list of numbers"),
        (["--batches", "0"], "no list of numbers from 1"),
        (["--batches", ""], "no list of numbers"),
        (["--card", "voodoo"], "voodoo"),
        (["--only", "kernels", "--update-readme"], "leave out --only kernels"),
    ],
)
def test_wrong_usage(arguments, words):
    result = command(*arguments)
    assert result.exit_code == 2 and words in result.stderr.splitlines()[-1]


def test_what_cannot_be_written_is_said_before_anything_is_measured(monkeypatch):
    monkeypatch.setattr(run, "Bench", lambda *given: pytest.fail("measured"))
    Path("file").touch()
    Path("README.md").write_text("no markers")
    for arguments, words in (
        (["--update-readme"], "README.md has no place for the table"),
        (["--update-readme", "missing.md"], "missing.md cannot be read"),
        (["--json", "file/bench.json"], "name another file with --json"),
        (["--sweep", "--out", "file/below"], "name another folder with --out"),
    ):
        result = command(*arguments)
        assert result.exit_code == 1 and len(result.stderr.splitlines()) == 1
        assert words in result.stderr


def test_no_gpu(monkeypatch):
    monkeypatch.setattr("tinyfcn.devices.cuda.why_not", lambda: "no NVIDIA GPU with a working driver was found")
    result = command("--device", "cuda")
    assert result.exit_code == 1 and "'cuda' cannot be used: no NVIDIA GPU" in result.stderr
