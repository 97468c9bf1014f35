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
from tinyfcn.bench.kernels import Part, Recorder, Traced
from tinyfcn.bench.resources import CARDS, MULTIPROCESSORS, blocks_at_once, floor_seconds, occupancy
from tinyfcn.bench.steps import Adam, Step, Task, Trace, batches_of
from tinyfcn.bench.timing import Patience, in_turn, line_through, wall_clock
from tinyfcn.cli import main
from tinyfcn.data import Digits
from tinyfcn.devices import kernel_source, nvrtc
from tinyfcn.devices.emulator import Emulator
from tinyfcn.errors import DataError, TinyfcnError
from tinyfcn.operations import Operations
from tinyfcn.reference.adam import AdamState, adam_schedule

TORCH = torch_steps.import_torch("cpu")  # no dependency: where it is not there, the tests of it are not either
HASTE = Patience(0.001, 2, 0)


@pytest.fixture(autouse=True)
def few_digits(monkeypatch, tmp_path):
    """A folder for each test, and digits of noise instead of drawn ones."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    digits = Digits(random.integers(0, 256, (30, 28, 28)).astype(np.uint8), (np.arange(30) % 10).astype(np.uint8), "")
    monkeypatch.setattr(steps, "drawn_digits", lambda: digits)
    monkeypatch.setattr(steps, "FEWEST_PICTURES", 8)


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


def test_the_cards_and_the_architectures_that_are_tested_are_known():
    assert {*nvrtc.ARCHITECTURES} <= {*MULTIPROCESSORS}
    for card in CARDS.values():
        assert card.architecture in MULTIPROCESSORS and card.source
        assert 1e11 < card.bandwidth < 1e13 and 1e12 < card.operations < 1e15


def test_floors():
    assert floor_seconds(4.8e12, 1, 4.8e12, 67e12) == 1
    assert floor_seconds(1, 134e12, 4.8e12, 67e12) == 2


# What a kernel must do


def convolution_by_counting(x, weight, stride, padding, transposed):
    """How many products a convolution sums up, found by looking at each."""
    (n, _, height, width), (a, b, kernel_height, kernel_width) = x.shape, weight.shape
    if transposed:
        coarse = height, width
        fine = (height - 1) * stride + kernel_height - 2 * padding, (width - 1) * stride + kernel_width - 2 * padding
    else:
        fine = height, width
        coarse = (
            (height + 2 * padding - kernel_height) // stride + 1,
            (width + 2 * padding - kernel_width) // stride + 1,
        )
    products = 0
    for i, j, u, v in itertools.product(*map(range, (*coarse, kernel_height, kernel_width))):
        h, w = i * stride + u - padding, j * stride + v - padding
        products += 0 <= h < fine[0] and 0 <= w < fine[1]
    return n * a * b * products


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"),
    [
        ((7, 9), (3, 2), 1, 0),
        ((7, 9), (3, 4), 1, 2),
        ((6, 5), (4, 3), 2, 1),
        ((5, 5), (5, 5), 1, 2),
        ((4, 6), (1, 1), 3, 0),
    ],
)
def test_products_of_convolutions(transposed, size, kernel, stride, padding):
    x, weight = np.zeros((2, 3, *size)), np.zeros((3, 5, *kernel) if transposed else (5, 3, *kernel))
    name = "conv_transpose2d" if transposed else "conv2d"
    given = {"x": x, "weight": weight, "stride": stride, "padding": padding}
    products = convolution_by_counting(x, weight, stride, padding, transposed)
    assert kernels.operations_of(name, given, ())[""] == 2 * products
    dout = np.zeros((2, 5, 3, 3))
    counted = kernels.operations_of(f"{name}_backward", given | {"dout": dout}, ())
    assert counted == {"dx": 2 * products, "dweight": 2 * products + dout.size}


def test_a_poolings_winners_alone_have_gradients():
    x, weight, dsum = np.zeros((2, 3, 9, 8)), np.zeros((5, 3, 3, 3)), np.zeros((2, 5, 3, 3))
    counted = kernels.operations_of("conv2d_pool_backward", {"x": x, "weight": weight, "dsum": dsum}, ())
    assert counted["dx"] == 2 * dsum.size * 3 * 9


def test_other_operations_are_counted_by_their_size():
    count = kernels.operations_of
    assert count("adam_step", {"parameters": np.zeros(100)}, ())[""] == 1600
    logits, labels = np.zeros((2, 10, 3, 3)), np.zeros((2, 3, 3))
    assert count("softmax_cross_entropy", {"logits": logits, "labels": labels}, ())[""] == 6 * 180 + 3 * 18
    assert count("relu", {}, (np.zeros(7),))[""] == 7


def traced(device, runs=False):
    """What a ReLU, a pooled convolution, and its backward pass ask for: calls of three operations."""
    ops = Traced(device, runs)
    random = np.random.default_rng(0)
    x, weight, bias, dy = (
        device.asarray(random.standard_normal(shape).astype(np.float32))
        for shape in ((2, 3, 9, 8), (5, 3, 2, 3), (5,), (2, 5, 4, 3))
    )
    ops.relu(x)
    _, winner = ops.conv2d_pool(x, weight, bias)
    ops.conv2d_pool_backward(dy, winner, x, weight)
    return ops.calls


def test_least_bytes():
    relu, pool, backward = traced(Recorder(naive=True))
    floats = 2 * 3 * 9 * 8, 5 * 3 * 2 * 3, 5, 2 * 5 * 4 * 3  # x; weight; bias; y, winner and dsum
    assert kernels.least_bytes(relu.recording.launches) == 4 * 2 * floats[0]
    assert len(pool.recording.launches) == 3  # the two arrays between them count for nothing
    assert kernels.least_bytes(pool.recording.launches) == 4 * (sum(floats) + floats[3])
    parts = backward.parts()
    assert [*parts] == ["dx", "dweight"]
    (_, dx), (_, dweight) = parts.values()
    assert len(dx) + len(dweight) == len(backward.recording.launches)
    assert kernels.least_bytes(dx) == 4 * (2 * floats[3] + floats[1] + floats[0])  # dsum, winner, weight; dx


def test_bytes_of_what_is_read_in_part_and_of_what_is_changed():
    device = Recorder()
    ops = Traced(device, runs=False)
    digits = device.asarray(np.zeros((1000, 28, 28), np.uint8)), device.asarray(np.zeros(1000, np.uint8))
    ops.compose_m2nist(*digits, 0, device.asarray(np.zeros(1, np.int32)), 2)
    pixels = 2 * 64 * 84
    assert 8 * pixels <= kernels.least_bytes(ops.calls[0].recording.launches) <= 9 * pixels + 2000
    state = AdamState.create(ops, np.zeros(1000, np.float32), 1.0, 1)
    one = device.asarray(np.zeros(1000, np.float32))
    ops.adam_step(one, one.copy(), state, device.asarray(np.zeros(1, np.float32)))
    assert 32000 <= kernels.least_bytes(ops.calls[1].recording.launches) <= 33000  # five arrays read, three written


def test_names_that_kernels_have():
    """Those that are read and written, or read in part, are named by the kernels' parameters."""
    declared = kernel_source.kernels()
    for name, parameters in kernels.READ_AND_WRITTEN.items():
        assert parameters <= {parameter.name for parameter in declared[name].parameters if not parameter.is_const}
    read = {parameter.name for kernel in declared.values() for parameter in kernel.parameters if parameter.is_const}
    assert read >= kernels.READ_IN_PART


@pytest.mark.parametrize("task", [Task("classifier", 2), Task("skip", 1)], ids=str)
def test_every_launch_of_a_step_is_in_one_part(task):
    device, batches = Recorder(), batches_of(task)
    parts = kernels.parts_of(task, batches, device, runs=False)
    step = Step(task, batches, Operations(device), "composed" if task.design == "skip" else "gathered", record=False)
    launches = device.record(step.work).launches
    found = [launch.kernel.expression for part in parts for launch in part.fast]
    assert sorted(found) == sorted(launch.kernel.expression for launch in launches)
    assert all(part.naive for part in parts)
    layers = {name.split(".")[0] for name in step.network.parameter}
    assert {part.layer for part in parts} == layers | {""}
    for layer in layers:
        kinds = sorted(part.what for part in parts if part.layer == layer)
        assert kinds == (["", "dweight"] if layer in ("conv1", "skip0") else ["", "dweight", "dx"])
    products = sum(part.operations for part in parts)
    assert (1 if task.design == "skip" else 0.01) * 1e8 < products < 1.3e8


def parts_on_the_emulator():
    """Parts that need no template to be compiled."""
    device = Emulator()
    ops, x = Traced(device, runs=True), np.random.default_rng(0).standard_normal(300).astype(np.float32)
    ops.add(ops.relu(device.asarray(x)), device.asarray(x))
    same = [call.recording.launches for call in ops.calls]
    return device, [
        Part(call.operation, "", "", "", 1, 1, call.given, [*call.results], launches, launches, [*call.results])
        for call, launches in zip(ops.calls, same, strict=True)
    ]


def test_parts_are_timed(monkeypatch):
    monkeypatch.setattr(kernels, "COPIED_BYTES", 1)
    device, parts = parts_on_the_emulator()
    for timed in kernels.time_parts(parts, device, wall_clock, HASTE):
        assert timed.fast.seconds > 0 and timed.naive.seconds > 0 and timed.torch is None
        assert timed.fast.runs == 20  # in one graph


def test_a_wrong_kernel_is_not_timed(monkeypatch):
    device, parts = parts_on_the_emulator()
    parts[1].naive_results = [parts[1].results[0] * np.float32(1.01)]
    with pytest.raises(TinyfcnError, match=r"add, .*the fast kernel and the naive differ by 9.9e-03"):
        kernels.time_parts(parts, device, None, HASTE)


def test_what_kernels_use():
    device = Recorder()
    ops = Traced(device, runs=False)
    logits = device.asarray(np.zeros((2, 10, 40, 40), np.float32))
    ops.softmax_cross_entropy(logits, device.asarray(np.zeros((2, 40, 40), np.int32)))
    ops.softmax(logits)
    loss, mean, softmax = kernels.used([launch for call in ops.calls for launch in call.recording.launches], "sm_90")
    assert (loss.kernel, mean.kernel, softmax.kernel) == (
        "softmax_cross_entropy<10>",
        "softmax_cross_entropy_mean",
        "softmax",
    )
    assert softmax.blocks == 13 and softmax.threads == 256 and softmax.launches == 1
    assert loss.registers > 10 and loss.shared_bytes == 32 and loss.spilled_bytes == 0
    assert softmax.occupancy == occupancy("sm_90", 256, softmax.registers, 0)


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


def test_the_rate_is_that_of_training():
    for design in ("classifier", "skip"):
        adam = Adam.of(design)
        state = AdamState.create(on("cpu"), np.zeros(1), **vars(adam))
        for step in (1, 2, 50, 150, 9000, 20000):
            state.step[0] = step - 1
            adam_schedule(state)
            assert adam.rate(step) == pytest.approx(state.rates[0], abs=1e-12)
    assert Adam.of("skip").warmup == 100 and Adam.of("classifier").warmup == 0


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
    monkeypatch.setattr(run, "settings", lambda *mode: nullcontext())
    monkeypatch.setattr(run, "TorchStep", OtherStep)


def bench(**changes):
    return run.Bench(replace(run.QUICK, device="cpu", threads=1, **changes), lambda text: None)


def test_a_step_beside_another(other_step):
    found = bench().step(Task("classifier", 2))
    assert found["best"] == "eager" and found["best_ratio"] == found["eager_ratio"] > 0.1
    assert found["failed"] == {"channels_last": "no such thing here"}
    assert found["torch"]["eager"]["seconds"] > 0 and found["tf32"] is None
    assert set(found["differences"]["eager"].values()) == {0.0}


def test_nothing_is_timed_if_the_losses_differ(other_step, monkeypatch):
    monkeypatch.setattr(OtherStep, "factor", 1.001)
    monkeypatch.setattr(run, "in_turn", lambda *given: pytest.fail("timed"))
    with pytest.raises(TinyfcnError, match=r"classifier, batch 2: PyTorch \(eager\) .* not do the same"):
        bench().step(Task("classifier", 2))
    with pytest.raises(TinyfcnError, match="not do the same"):
        bench().sweep()


def test_a_sweep_ends_where_steps_take_too_long_or_too_much_memory(monkeypatch):
    monkeypatch.setattr(run, "import_torch", lambda device: None)
    series = bench(longest=0.0).sweep()[0]["series"]
    assert series["ours"]["sizes"] == [1]
    built = run.Bench.ours

    def too_large(self, task, batches, source):
        if task.batch > 1:
            raise MemoryError("Unable to allocate 5 TiB")
        return built(self, task, batches, source)

    monkeypatch.setattr(run.Bench, "ours", too_large)
    by_batch, by_size = bench().sweep()
    assert by_batch["series"]["ours"]["sizes"] == [1]
    assert by_batch["stopped"] == {"ours": "skip, batch 2: Unable to allocate 5 TiB"}
    assert by_size["series"]["ours"]["sizes"] == [5376, 4 * 5376]


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
        equivalents = torch_kernels.Equivalents(TORCH, ops, [])

        def normal(*shape):
            return random.standard_normal(shape).astype(np.float32)

        def check(operation, what, given, expected):
            part = Part(operation, what, "", "", 0, 0, given, expected, [], [], [])
            kernels.compare(part, "PyTorch's", expected, equivalents.of(part).results())
            assert equivalents.of(part).repeated(1)[1] >= 20

        x, weight, stamp, bias = normal(2, 3, 10, 8), normal(4, 3, 3, 3), normal(3, 4, 4, 4), normal(4)
        x[x < 0] = 0  # as after a ReLU
        for name, kernel in (("conv2d", weight), ("conv_transpose2d", stamp)):
            given = {"x": x, "weight": kernel, "stride": 2, "padding": 1}
            function, back = getattr(ops, name), getattr(ops, f"{name}_backward")
            y = function(**given, bias=bias)
            more = {"add": normal(*y.shape)} if name == "conv_transpose2d" else {}
            check(
                name,
                "",
                given | {"bias": bias, "relu": True, **more},
                [function(**given, bias=bias, relu=True, **more)],
            )
            given |= {"dout": normal(*y.shape), "need_dx": True, "out": None, "through_relu": True}
            dx, dweight, dbias = back(**given)
            check(f"{name}_backward", "dx", given, [dx])
            check(f"{name}_backward", "dweight", given, [dweight, dbias])
        y, winner = ops.conv2d_pool(x, weight, bias)
        check("conv2d_pool", "", {"x": x, "weight": weight, "bias": bias}, [y, winner])
        given = {"dsum": normal(*y.shape), "winner": winner, "x": x, "weight": weight, "out": None}
        given |= {"need_dx": True, "through_relu": True, "add": normal(*x.shape)}
        dx, dweight, dbias = ops.conv2d_pool_backward(**given)
        check("conv2d_pool_backward", "dx", given, [dx])
        check("conv2d_pool_backward", "dweight", given, [dweight, dbias])
        check("conv2d_pool_backward", "dweight", given | {"need_dx": False}, [dweight, dbias])
        logits, labels = normal(2, 5, 3, 3), random.integers(0, 5, (2, 3, 3)).astype(np.int32)
        check(
            "softmax_cross_entropy",
            "",
            {"logits": logits, "labels": labels},
            [*ops.softmax_cross_entropy(logits, labels)],
        )
        state, parameters = AdamState.create(ops, np.zeros(7, np.float32), 1e-3, 1), normal(7)
        given = {"parameters": parameters, "gradients": normal(7), "state": state}
        update = torch_kernels.Equivalents(TORCH, ops, [(2, 3), (1,)]).of(
            Part("adam_step", "", "", "", 0, 0, given, *[[]] * 4)
        )
        assert update.results() == []
        update.repeated(1)[0]()
        assert equivalents.of(Part("compose_m2nist", "", "", "", 0, 0, {}, *[[]] * 4)) is None


# Words, tables, files


def test_in_words():
    words = [None, 0, 3.2e-8, 9.531e-5, 1.234e-3, 0.0999, 1.05, 71.3]
    assert [*map(report.in_words, words)] == [
        "-",
        "0 s",
        "0.03 µs",
        "95.3 µs",
        "1.23 ms",
        "99.9 ms",
        "1.05 s",
        "71.3 s",
    ]
    assert [*map(report.times, (None, 0.871, 3.14, 33.3))] == ["-", "0.87x", "3.1x", "33x"]
    assert [*map(report.percent, (None, 0.053, 0.66))] == ["-", "5.3 %", "66 %"]


def a_timing(seconds):
    return {"seconds": seconds, "low": seconds, "high": seconds, "turns": 5, "runs": 1}


def measured(**changes):
    step = {"design": "skip", "batch": 16, "ours": a_timing(1e-4), "trained": a_timing(1.1e-4)}
    step |= {
        "torch": {"eager": a_timing(3e-3), "CUDA graph": a_timing(4e-4)},
        "best": "CUDA graph",
        "tf32": a_timing(3e-4),
    }
    step |= {"eager_ratio": 30.0, "best_ratio": 4.0, "failed": {}}
    alone = {**step, "batch": 64, "torch": {}, "best": None, "tf32": None, "eager_ratio": None, "best_ratio": None}
    machine = {"name": "NVIDIA Card", "device": "cuda", "torch": "2.11"}
    return {"machine": machine, "same_bits": {"skip, batch 16": True}, "steps": [step, alone], **changes}


README = f"# title\n\nbefore ä\n{report.BEGIN}\nold\n{report.END}\nafter\n"


def test_the_readmes_table():
    path = Path("README.md")
    path.write_text(README, encoding="utf-8")
    report.update_readme(path, measured())
    text = path.read_text(encoding="utf-8")
    assert text.startswith(
        f"# title\n\nbefore ä\n{report.BEGIN}\nOn NVIDIA Card; PyTorch 2.11, by `tinyfcn bench`; two runs"
    )
    assert text.endswith(f"\n{report.END}\nafter\n") and "old" not in text
    assert "| skip, batch 16 | 100 µs | 110 µs | 3.00 ms | 400 µs | CUDA graph | 300 µs | 30x | 4.0x |\n" in text
    assert "| skip, batch 64 | 100 µs | 110 µs | - | - | - | - | - | - |\n" in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1 and len(table) == 4
    assert not re.search(r"20\d\d-|\d:\d\d", text)  # no date
    report.update_readme(path, measured())
    assert path.read_text(encoding="utf-8") == text
    report.update_readme(path, measured(same_bits={"skip, batch 16": False}))
    assert "DIFFERENT BITS" in path.read_text(encoding="utf-8")
    assert [*Path().iterdir()] == [path]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("# title\n", "has no place for the table.*<!-- bench -->"),
        (report.BEGIN, "has no place"),
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
        report.update_readme(path, measured())
    assert text is None or path.read_text() == text


def a_sweep(*names):
    growth = []
    for by in ("batch", "pixels"):
        series = {name: {"sizes": [5376, 4 * 5376], "seconds": [1e-3, 2e-3]} for name in names}
        lines = {name: {"constant": 5e-4, "slope": 7e-8} for name in names}
        growth.append({"by": by, "batch": 16, "series": series, "lines": lines, "stopped": {}})
    return growth


def test_the_plot():
    path = plots.step_times(Path("made/plot.png"), measured(sweep=a_sweep("ours", "eager", "CUDA graph")))
    assert path.read_bytes().startswith(b"\x89PNG") and [*path.parent.iterdir()] == [path]


def test_the_plot_of_a_sweep_that_ended_at_once():
    sweep = a_sweep("ours", "eager")
    for growth in sweep:
        growth["series"]["eager"] = {"sizes": [], "seconds": []}
        growth["series"]["ours"] = {"sizes": [5376], "seconds": [1e-3]}
        growth["lines"] = {}
    assert plots.step_times(Path("plot.png"), measured(sweep=sweep)).exists()


# The command


def command(*arguments):
    return CliRunner().invoke(main, ["bench", *map(str, arguments)])


@pytest.fixture
def alone(monkeypatch):
    """Without PyTorch, and without a compiler's seconds."""
    monkeypatch.setattr(run, "import_torch", lambda device: None)
    monkeypatch.setattr(kernels, "used", lambda launches, architecture: [])


def numbers_of(timing):
    return {*timing} == {"seconds", "low", "high", "turns", "runs"} and timing["seconds"] > 0


def test_a_quick_run(alone):
    Path("README.md").write_text(README, encoding="utf-8")
    result = command(
        "--quick", "--sweep", "--device", "cpu", "--json", "made/bench.json", "--update-readme", "--out", "made"
    )
    assert result.exit_code == 0, result.output
    assert "PyTorch is not installed, or not for this device: ours alone" in result.stdout
    assert "times: not measured, no GPU. Floors: of NVIDIA H200 SXM, 4.80 TB/s" in result.stdout
    assert "two runs with one seed, skip, batch 1: equal bits" in result.stdout
    assert result.stderr.splitlines()[0].endswith(": looking for PyTorch")
    assert sorted(path.name for path in Path("made").iterdir()) == ["bench.json", "step-times.png"]
    assert "| skip, batch 1 | " in Path("README.md").read_text(encoding="utf-8")

    found = json.loads(Path("made/bench.json").read_text())
    assert {*found} == {"machine", "same_bits", "steps", "kernels", "sweep"}
    assert (
        found["machine"]["device"] == "cpu" and found["machine"]["torch"] is None and found["machine"]["threads"] >= 1
    )
    assert [(step["design"], step["batch"]) for step in found["steps"]] == [("classifier", 4), ("skip", 1)]
    for step in found["steps"]:
        assert numbers_of(step["ours"]) and numbers_of(step["trained"]) and step["torch"] == {}
    assert found["kernels"]["ceilings"] is None and found["kernels"]["datasheet"]["architecture"] == "sm_90"
    for part in found["kernels"]["parts"]:
        assert part["floor"] >= 0 and part["kernels"] and part["fast"] is None and part["torch"] is None
    by_batch, by_size = found["sweep"]
    assert by_batch["series"]["ours"]["sizes"] == [1, 2] and by_size["series"]["ours"]["sizes"] == [5376, 21504]
    assert {*by_batch["lines"]["ours"]} == {"constant", "slope"}


def test_only_a_part(alone):
    result = command("--quick", "--only", "kernels", "--card", "a100", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "1.0x" not in result.stdout and "A100 datasheet" in result.stdout and "training step" not in result.stdout
    assert not [*Path().iterdir()]


def test_different_bits_are_a_failure(alone, monkeypatch):
    monkeypatch.setattr(run, "same_bits", lambda make: False)
    result = command("--quick", "--only", "steps", "--device", "cpu")
    assert result.exit_code == 1 and "two runs with one seed, skip, batch 1: DIFFERENT BITS" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--batches", "16,x"], "'16,x' is no list of numbers"),
        (["--batches", "0"], "no list of numbers from 1"),
        (["--batches", ""], "no list of numbers"),
        (["--card", "voodoo"], "voodoo"),
        (["--only", "kernels", "--update-readme"], "leave out --only kernels"),
        (["--threads", "0"], "--threads"),
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
