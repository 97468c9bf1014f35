"""PyTorch does the same work as ours. It is not a dependency: where it is not installed, nothing here runs."""

from dataclasses import replace

import numpy as np
import pytest

from tinyfcn import on
from tinyfcn.adam_state import AdamState
from tinyfcn.bench import agreement, pytorch
from tinyfcn.bench.agreement import expect_agreement, trace
from tinyfcn.bench.parts import Form, expect_same_results
from tinyfcn.bench.pytorch import TorchForm, TorchStep, switch
from tinyfcn.checks.parts import Part, Recorder, note_calls, split
from tinyfcn.training.step import Step, Task

pytestmark = pytest.mark.skipif(pytorch.torch is None, reason="PyTorch is not installed")


@pytest.mark.parametrize("task", [Task("classifier", 4), Task("skip", 2)], ids=str)
@pytest.mark.parametrize("mode", [pytorch.EAGER, pytorch.CHANNELS_LAST], ids=lambda mode: mode.name)
def test_pytorch_does_the_same_step(task, mode):
    ours = Step(task, on("cpu"))
    third = {what: tolerance / 3 for what, tolerance in agreement.TOLERANCES.items()}
    switch(mode, 1)
    step = TorchStep(ours, mode)
    expect_agreement("PyTorch", step.trace(), trace(ours), third)
    step()  # not at the beginning any more
    expect_agreement("PyTorch", step.trace(), trace(ours), third)


def normal(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def test_operations_do_the_same():
    """PyTorch's way to each result, whole and in halves, against the references."""
    ops = on("cpu")
    calls = note_calls(ops)
    x, weight, transposed, bias = normal(2, 3, 10, 8), normal(4, 3, 3, 3), normal(3, 4, 4, 4), normal(4)
    x[x < 0] = 0  # as after a ReLU
    size = {"stride": 2, "padding": 1}
    y = ops.conv2d(x, weight, bias, **size, relu=True)
    ops.conv2d_backward(normal(*y.shape), x, weight, **size, through_relu=True)
    y = ops.conv_transpose2d(x, transposed, bias, **size)
    ops.conv_transpose2d(x, transposed, bias, **size, add=normal(*y.shape), relu=True)
    ops.conv_transpose2d_backward(normal(*y.shape), x, transposed, **size, through_relu=True)
    y, max_index = ops.conv2d_pool(x, weight, bias)
    for rest in ({}, {"add": normal(*x.shape)}, {"through_relu": True, "add": normal(*x.shape)}, {"need_dx": False}):
        ops.conv2d_pool_backward(normal(*y.shape), max_index, x, weight, **rest)
    ops.softmax_cross_entropy(normal(2, 5, 3, 3), np.arange(18).reshape(2, 3, 3).astype(np.int32) % 5)
    state = AdamState.create(ops, np.zeros(7, np.float32), 1e-1, 0)
    ops.adam_schedule(state)
    first, state = state, replace(state, m=np.zeros(7, np.float32), v=np.zeros(7, np.float32))
    ops.adam_step(normal(7), normal(7), first, normal(1))
    adam = calls.pop()
    calls[-1] = replace(adam, arguments=adam.arguments | {"parameters": normal(7), "state": state})
    switch(pytorch.OPERATIONS, 1)
    cudnn, matmul = pytorch.torch.backends.cudnn, pytorch.torch.backends.cuda.matmul
    assert cudnn.benchmark and not cudnn.allow_tf32 and not matmul.allow_tf32 and pytorch.torch.get_num_threads() == 1
    forms = {"numpy": Form(on("cpu")), "torch": TorchForm(on("cpu"))}
    for part in (part for call in calls for part in [call, *split(call, Recorder())]):
        expect_same_results(part, forms)
        forms["torch"].program(part, copies=2, rounds=1)()
    assert not forms["torch"].does(Part("compose_m2nist", "", "", {}, ()))


@pytest.mark.parametrize(
    ("what", "need_dx", "times"), [("dx", True, 1), ("dweight", True, 0), ("", True, 1), ("dweight", False, 1)]
)
def test_the_way_back_through_a_pooling_is_timed_once(what, need_dx, times):
    """With dx, or with all of the backward pass; with dweight if there is no dx."""
    arguments = {"dout": normal(1, 2, 1, 1), "max_index": np.zeros((1, 2, 1, 1), np.int32), "x": normal(1, 1, 4, 4)}
    arguments |= {"weight": normal(2, 1, 3, 3), "through_relu": False, "add": None, "need_dx": need_dx}
    once = TorchForm(on("cpu")).program(Part("conv2d_pool_backward", what, "", arguments, ()), 1, 1)
    once()
    with pytorch.torch.profiler.profile() as profile:
        once()
    assert sum(event.count for event in profile.key_averages() if "max_pool2d" in event.key) == times
