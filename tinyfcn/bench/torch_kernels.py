"""PyTorch's way to do what a part of a training step does, on the same arrays: what our kernels are compared with.

In float32, cuDNN choosing its fastest algorithm for the shapes. Several launches of one part are captured into a CUDA
graph, as ours are. On the CPU a backward pass is one part, as it is NumPy's.
"""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np

from tinyfcn.bench.kernels import MIN_LAUNCHES, Part
from tinyfcn.bench.torch_steps import Mode, settings
from tinyfcn.devices.launch import ceil_div
from tinyfcn.operations import Operations

Given = Mapping[str, Any]
Results = tuple[Any, ...]  # in the order of the part's
TUNED = Mode("kernels")


def _forward(torch: Any, given: Given, what: str, name: str) -> Results:
    function = getattr(torch.nn.functional, name)
    y = function(given["x"], given["weight"], given["bias"], given["stride"], given["padding"])
    if given.get("add") is not None:
        y = y.add_(given["add"])
    return (torch.relu_(y) if given["relu"] else y,)


def _backward(torch: Any, given: Given, what: str, transposed: bool = False) -> Results:
    stride, padding = [given.get("stride", 1)] * 2, [given.get("padding", 0)] * 2
    x, weight, with_dx, with_dweight = given["x"], given["weight"], what != "dweight", what != "dx"
    mask = [with_dx, with_dweight, with_dweight]
    rest = ([weight.shape[1 if transposed else 0]], stride, padding, [1, 1], transposed, [0, 0], 1, mask)
    dx, dweight, dbias = torch.ops.aten.convolution_backward(given["dout"], x, weight, *rest)
    if not with_dx:
        return dweight, dbias
    if given.get("add") is not None:
        dx = dx.add_(given["add"])
    dx = torch.ops.aten.threshold_backward(dx, x, 0) if given["through_relu"] else dx
    return (dx, dweight, dbias) if with_dweight else (dx,)


def _pooled(torch: Any, given: Given, what: str) -> Results:
    y = torch.relu_(torch.nn.functional.conv2d(given["x"], given["weight"], given["bias"]))
    return (*torch.nn.functional.max_pool2d(y, 2, return_indices=True),)


def _pooled_backward(torch: Any, given: Given, what: str) -> Results:
    """With dx goes the way back through the pooling, as it does in ours; without dx, with dweight."""
    dconv = given["dconv"]
    if what != "dweight" or not given["need_dx"]:
        dconv = _unpooled(torch, given, dconv)
    return _backward(torch, {**given, "dout": dconv}, what)


def _unpooled(torch: Any, given: Given, full: Any) -> Any:
    """The gradient of what the pooling took, of the shape of `full`."""
    window = ([2, 2], [2, 2], [0, 0], [1, 1], False)
    return torch.ops.aten.max_pool2d_with_indices_backward(given["dout"], full, *window, given["max_index"])


def _cross_entropy(torch: Any, given: Given, what: str) -> Results:
    loss = torch.nn.functional.cross_entropy(given["logits"], given["labels"])
    return loss.reshape(1), *torch.autograd.grad(loss, given["logits"])


def _adam(torch: Any, given: Given, what: str) -> Results:
    torch._foreach_add_(given["steps"], 1)
    arrays = ([given[name]] for name in ("parameters", "gradients", "m", "v"))
    numbers = {"lr": given["base_rate"], "beta1": given["beta1"], "beta2": given["beta2"], "eps": given["epsilon"]}
    rest = {"weight_decay": 0, "amsgrad": False, "maximize": False}
    torch._fused_adam_(*arrays, [], given["steps"], **numbers, **rest)
    return ()


FUNCTIONS: dict[str, Callable[[Any, Given, str], Results]] = {
    "conv2d": partial(_forward, name="conv2d"),
    "conv2d_backward": _backward,
    "conv2d_pool": _pooled,
    "conv2d_pool_backward": _pooled_backward,
    "conv_transpose2d": partial(_forward, name="conv_transpose2d"),
    "conv_transpose2d_backward": partial(_backward, transposed=True),
    "softmax_cross_entropy": _cross_entropy,
    "adam_step": _adam,
}


def equivalent(torch: Any, ops: Operations, part: Part) -> "Equivalent | None":
    """What PyTorch does instead of a part, if there is a PyTorch and it has such a thing."""
    return Equivalent(torch, ops, part) if torch and part.fast.operation in FUNCTIONS else None


class Equivalent:
    """PyTorch's way to do a part."""

    def __init__(self, torch: Any, ops: Operations, part: Part) -> None:
        self.torch, self.ops, self.part = torch, ops, part
        self.on_gpu = ops.device_name == "cuda"
        self.function = partial(FUNCTIONS[part.fast.operation], torch, what=part.what)

    def given(self) -> dict[str, Any]:
        """The part's arguments as tensors of PyTorch's own, those that it wants in its way."""
        torch, operation = self.torch, self.part.fast.operation
        given = dict(self.part.fast.given)
        if operation == "adam_step":
            given |= vars(given.pop("state")) | {"steps": [np.float32(1)]}
        given = {name: self._tensors(value) for name, value in given.items() if name != "out"}
        if operation == "softmax_cross_entropy":
            given["logits"].requires_grad_()
        if operation == "conv2d_pool_backward":
            given["dconv"] = _unpooled(torch, given, torch.nn.functional.conv2d(given["x"], given["weight"]))
        return given

    def _tensors(self, value: Any) -> Any:
        """An array as a tensor, its integers of 64 bits; the rest as it is."""
        if isinstance(value, list):
            return [self.torch.tensor(each, device="cuda" if self.on_gpu else "cpu") for each in value]
        if not getattr(value, "shape", ()):
            return value
        tensor = self.torch.tensor(self.ops.to_numpy(value), device="cuda" if self.on_gpu else "cpu")
        return tensor if tensor.is_floating_point() else tensor.long()

    def results(self) -> list[np.ndarray]:
        """What it gives, to be compared with ours; nothing of Adam's, which a whole step compares."""
        with settings(self.torch, TUNED, 1):
            return [result.detach().cpu().numpy() for result in self.function(self.given())]

    def repeated(self, copies: int) -> tuple[Callable[[], None], int]:
        """Runs it, on a GPU many times over, on copies of the arrays by turns; and how many times."""
        sets = [self.given() for _ in range(copies)]
        if not self.on_gpu:
            turns = cycle(sets)
            return lambda: self.function(next(turns)), 1
        times = ceil_div(MIN_LAUNCHES, copies)

        def work() -> None:
            for given in sets * times:
                self.function(given)

        cuda, stream = self.torch.cuda, self.torch.cuda.Stream()
        with settings(self.torch, TUNED, 1):
            stream.wait_stream(cuda.current_stream())
            with cuda.stream(stream):
                work()
            cuda.current_stream().wait_stream(stream)
            graph = cuda.CUDAGraph()
            with cuda.graph(graph, stream=stream):
                work()

        def replay(kept: Any = sets) -> None:  # what the graph reads and writes must not go before it
            graph.replay()

        return replay, times * copies
