"""PyTorch's way to do what a part of a training step does, on the same arrays: what our kernels are compared with.

In float32, cuDNN choosing its fastest algorithm for the shapes. Several launches of one part are captured into a CUDA
graph, as ours are.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from tinyfcn.bench.kernels import FEWEST_LAUNCHES, Part
from tinyfcn.bench.torch_steps import Mode, settings
from tinyfcn.operations import Operations

Given = Mapping[str, Any]
Results = tuple[Any, ...]  # in the order of Part.results; None: not to be compared


def _convolution(torch: Any, given: Given) -> Results:
    function = torch.nn.functional.conv2d
    y = function(given["x"], given["weight"], given["bias"], given["stride"], given["padding"])
    return (torch.relu_(y) if given["relu"] else y,)


def _transposed(torch: Any, given: Given) -> Results:
    function = torch.nn.functional.conv_transpose2d
    y = function(given["x"], given["weight"], given["bias"], given["stride"], given["padding"])
    if given["add"] is not None:
        y = y.add_(given["add"])
    return (torch.relu_(y) if given["relu"] else y,)


def _pooled(torch: Any, given: Given) -> Results:
    y = torch.relu_(torch.nn.functional.conv2d(given["x"], given["weight"], given["bias"]))
    return (*torch.nn.functional.max_pool2d(y, 2, return_indices=True),)


def _convolution_backward(torch: Any, given: Given, dout: Any, what: str, transposed: bool = False) -> Results:
    stride, padding = [given.get("stride", 1)] * 2, [given.get("padding", 0)] * 2
    x, weight, is_dx = given["x"], given["weight"], what == "dx"
    mask = [is_dx, not is_dx, not is_dx]
    channels = [weight.shape[1 if transposed else 0]]
    rest = ([1, 1], transposed, [0, 0], 1, mask)
    dx, dweight, dbias = torch.ops.aten.convolution_backward(dout, x, weight, channels, stride, padding, *rest)
    if not is_dx:
        return dweight, dbias
    if given.get("add") is not None:
        dx = dx.add_(given["add"])
    return (torch.ops.aten.threshold_backward(dx, x, 0) if given["through_relu"] else dx,)


def _pooled_backward(torch: Any, given: Given, what: str) -> Results:
    """With dx goes the way back through the pooling, as it does in ours; without dx, with dweight."""
    dout = given["dout"]
    if what == "dx" or not given["need_dx"]:
        rest = ([2, 2], [2, 2], [0, 0], [1, 1], False, given["winner"])
        dout = torch.ops.aten.max_pool2d_with_indices_backward(given["dsum"], dout, *rest)
    return _convolution_backward(torch, given, dout, what)


def _cross_entropy(torch: Any, given: Given) -> Results:
    loss = torch.nn.functional.cross_entropy(given["logits"], given["labels"])
    return loss.reshape(1), *torch.autograd.grad(loss, given["logits"])


def _adam(torch: Any, given: Given) -> Results:
    """Every layer's parameters are arrays of their own, as PyTorch has them, but Adam is one launch."""
    torch._foreach_add_(given["steps"], 1)
    rates = {"lr": given["rate"], "beta1": given["beta1"], "beta2": given["beta2"], "eps": given["epsilon"]}
    rest = {"weight_decay": 0, "amsgrad": False, "maximize": False}
    torch._fused_adam_(
        given["values"], given["grads"], given["means"], given["squares"], [], given["steps"], **rates, **rest
    )
    return ()


FUNCTIONS: dict[str, Callable[[Any, Given, str], Results]] = {
    "conv2d": lambda torch, given, what: _convolution(torch, given),
    "conv2d_backward": lambda torch, given, what: _convolution_backward(torch, given, given["dout"], what),
    "conv2d_pool": lambda torch, given, what: _pooled(torch, given),
    "conv2d_pool_backward": _pooled_backward,
    "conv_transpose2d": lambda torch, given, what: _transposed(torch, given),
    "conv_transpose2d_backward": lambda torch, given, what: _convolution_backward(
        torch, given, given["dout"], what, transposed=True
    ),
    "softmax_cross_entropy": lambda torch, given, what: _cross_entropy(torch, given),
    "adam_step": lambda torch, given, what: _adam(torch, given),
}


@dataclass
class Equivalents:
    """What PyTorch does instead of each part; `layers` are the shapes of a network's parameters."""

    torch: Any
    ops: Operations
    layers: Sequence[tuple[int, ...]]

    def of(self, part: Part) -> "Equivalent | None":
        """Its equivalent, if PyTorch has one."""
        return Equivalent(self, part) if part.operation in FUNCTIONS else None


class Equivalent:
    """PyTorch's way to do a part."""

    def __init__(self, all_: Equivalents, part: Part) -> None:
        self.torch, self.part, self.all = all_.torch, part, all_
        self.on_gpu = all_.ops.device_name == "cuda"
        self.function = partial(FUNCTIONS[part.operation], all_.torch)
        self.mode = Mode("kernels")

    def given(self) -> dict[str, Any]:
        """The part's arguments as tensors of PyTorch's own, those that it wants in its way."""
        torch, part = self.torch, self.part
        device = "cuda" if self.on_gpu else "cpu"

        def tensor(value: Any) -> Any:
            if not hasattr(value, "shape") or not value.shape:
                return value
            found = torch.tensor(self.all.ops.to_numpy(value), device=device)
            return found if found.is_floating_point() else found.long()

        if part.operation == "adam_step":
            sizes = [int(np.prod(shape)) for shape in self.all.layers]
            state = part.given["state"]

            def split(array: Any) -> list[Any]:
                pieces = tensor(array).split(sizes)
                return [piece.clone().reshape(shape) for piece, shape in zip(pieces, self.all.layers, strict=True)]

            return {
                "values": split(part.given["parameters"]),
                "grads": split(part.given["gradients"]),
                "means": split(state.m),
                "squares": split(state.v),
                "steps": [torch.ones((), device=device) for _ in sizes],
                "rate": torch.tensor(state.base_rate, device=device),
                **{name: getattr(state, name) for name in ("beta1", "beta2", "epsilon")},
            }
        given = {name: tensor(value) for name, value in part.given.items() if name != "out"}
        if part.operation == "softmax_cross_entropy":
            given["logits"].requires_grad_()
        if part.operation == "conv2d_pool_backward":  # the gradient of what the pooling took
            full = torch.nn.functional.conv2d(given["x"], given["weight"])
            rest = ([2, 2], [2, 2], [0, 0], [1, 1], False, given["winner"])
            given["dout"] = torch.ops.aten.max_pool2d_with_indices_backward(given["dsum"], full, *rest)
        return given

    def results(self) -> list[np.ndarray | None]:
        """What it gives, to be compared with ours; None where the two are not alike."""
        if self.part.operation == "adam_step":
            return [None] * len(self.part.results)
        with settings(self.torch, self.mode, 1):
            found = self.function(self.given(), self.part.what)
        return [result.detach().cpu().numpy() for result in found]

    def repeated(self, copies: int) -> tuple[Callable[[], None], int]:
        """Runs it many times over, on copies of the arrays by turns; and how many times."""
        first = self.given()
        sets = [first, *({name: _copy(value) for name, value in first.items()} for _ in range(copies - 1))]
        times = -(-FEWEST_LAUNCHES // copies)

        def work() -> None:
            for _ in range(times):
                for given in sets:
                    self.function(given, self.part.what)

        if not self.on_gpu:
            return work, times * copies
        cuda, stream = self.torch.cuda, self.torch.cuda.Stream()
        with settings(self.torch, self.mode, 1):
            stream.wait_stream(cuda.current_stream())
            with cuda.stream(stream):
                work()
            cuda.current_stream().wait_stream(stream)
            graph = cuda.CUDAGraph()
            with cuda.graph(graph, stream=stream):
                work()

        return partial(_replay, graph, sets), times * copies


def _copy(value: Any) -> Any:
    """A tensor of its own, or a list of such; a number as it is."""
    if isinstance(value, list):
        return [_copy(each) for each in value]
    return value.detach().clone().requires_grad_(value.requires_grad) if hasattr(value, "detach") else value


def _replay(graph: Any, kept: Any) -> None:
    """Runs a graph; `kept` is what it reads and writes, which must not go before it."""
    graph.replay()
