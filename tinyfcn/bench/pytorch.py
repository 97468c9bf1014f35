"""PyTorch's side: the same training steps in each of the ways that make them fast there, and the same operations.

PyTorch is not a dependency of tinyfcn: it is imported only here, which takes seconds, and only where it is installed.
"""

import contextlib
import importlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np

from tinyfcn.bench.agreement import COMPARED, Trace, trace_of
from tinyfcn.bench.parts import Form
from tinyfcn.bench.timing import Run
from tinyfcn.checks.parts import Part, changed
from tinyfcn.training.step import BETA1, BETA2, EPSILON, RATE, Step

torch: Any = None
with contextlib.suppress(ImportError, OSError):
    torch = importlib.import_module("torch")


@dataclass(frozen=True)
class Mode:
    """A way to run a step.

    compiled: torch.compile's mode for forward, loss and backward, or None. graph: the whole step is captured as CUDA
    graphs, one for each batch. tuned: cuDNN tries its algorithms and takes the fastest, and Adam is one fused launch.
    tf32: factors are rounded to TF32.
    """

    name: str
    compiled: str | None = None
    graph: bool = False
    channels_last: bool = False
    tuned: bool = True
    tf32: bool = False


EAGER = Mode("eager", tuned=False)
GRAPH = Mode("CUDA graph", graph=True)
OPERATIONS = Mode("single operations")
CHANNELS_LAST = Mode("channels_last", channels_last=True)
FAST_ON_GPU = GRAPH, Mode("compiled, CUDA graph", "default", graph=True), Mode("reduce-overhead", "reduce-overhead")


def modes_on(device: str) -> Sequence[Mode]:
    """The modes on "cpu" or "cuda"; none where PyTorch is not installed, or cannot compute there."""
    if torch is None or (device == "cuda" and not torch.cuda.is_available()):
        return ()
    if device == "cpu":
        return EAGER, CHANNELS_LAST
    with_channels_last = [replace(mode, name=f"{mode.name}, channels_last", channels_last=True) for mode in FAST_ON_GPU]
    return EAGER, *FAST_ON_GPU, *with_channels_last


def switch(mode: Mode, threads: int) -> None:
    """Sets PyTorch's global switches as a mode wants them. Without PyTorch it does nothing.

    Warnings are off: that TF32 is off, and that an Adam which can be captured also runs outside of a graph.
    """
    if torch is not None:
        warnings.filterwarnings("ignore", category=UserWarning)
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = mode.tf32
        torch.backends.cudnn.benchmark = mode.tuned
        torch.set_num_threads(threads)


def captured(works: Sequence[Run], before_each: Run = lambda: None) -> list[Run]:
    """Replays a CUDA graph of each work. They share memory, so they must be replayed in this order.

    All are run once before, to compile, tune and allocate, which a capture may not. All run on one stream, so that
    nothing is passed between streams.
    """
    cuda = torch.cuda
    stream, pool, graphs = cuda.Stream(), cuda.graph_pool_handle(), []
    stream.wait_stream(cuda.current_stream())
    with cuda.stream(stream):
        for work in works:
            work()
    cuda.current_stream().wait_stream(stream)
    for work in works:
        before_each()
        graphs.append(cuda.CUDAGraph())
        with cuda.graph(graphs[-1], pool=pool, stream=stream):
            work()
    return [graph.replay for graph in graphs]


def numpy(tensor: Any) -> np.ndarray:
    """A copy on the host."""
    return tensor.detach().cpu().contiguous().numpy().copy()


def logits(design: str, p: Mapping[str, Any], x: Any) -> Any:
    """As tinyfcn/networks: (N, 10) of the design "classifier", (N, 11, H, W) of "skip"; p: parameters by our names."""
    relu, functional = torch.relu, torch.nn.functional

    def conv(layer: str, x: Any, **size: int) -> Any:
        convolve = functional.conv_transpose2d if layer.startswith("up") else functional.conv2d
        return convolve(x, p[f"{layer}.weight"], p[f"{layer}.bias"], **size)

    pool1 = functional.max_pool2d(relu(conv("conv1", x)), 2)
    pool2 = functional.max_pool2d(relu(conv("conv2", pool1)), 2)
    if design == "classifier":
        return conv("dense10", relu(conv("dense32", pool2))).flatten(1)
    context = relu(conv("context", relu(conv("dense32", pool2, padding=2)), padding=1))
    half = relu(conv("up1", context, stride=2) + conv("skip1", pool1))
    return conv("score", relu(conv("up2", half, stride=2) + conv("skip0", x)))


class TorchStep:
    """The step of ours in PyTorch, on the same device; call it to run it. The loss stays on the device."""

    def __init__(self, ours: Step, mode: Mode) -> None:
        device, layout = ours.ops.device_name, torch.channels_last if mode.channels_last else torch.contiguous_format

        def tensor(array: np.ndarray) -> Any:
            made = torch.tensor(array, device=device)
            return made.contiguous(memory_format=layout) if made.dim() == 4 else made

        self.sets = [(tensor(x), tensor(labels.astype(np.int64))) for x, labels in ours.batches(COMPARED)]
        self.initial, self.mode, self.done = ours.initial, mode, 0
        # torch.compile knows that a Parameter stays where it is; another tensor it would copy before each step.
        self.parameters = {name: torch.nn.Parameter(tensor(value)) for name, value in self.initial.items()}
        fused = {"fused": True, "capturable": mode.graph} if mode.tuned and device == "cuda" else {}
        self.optimiser = torch.optim.Adam(self.parameters.values(), RATE, (BETA1, BETA2), EPSILON, **fused)

        def loss(x: Any, labels: Any) -> Any:
            return torch.nn.functional.cross_entropy(logits(ours.design.name, self.parameters, x), labels)

        self.forward = torch.compile(loss, mode=mode.compiled, dynamic=False) if mode.compiled else loss
        self.losses: list[Any] = [None] * COMPARED  # of each batch's last step
        self.works: list[Run] = [partial(self._step, which) for which in range(COMPARED)]
        if mode.graph:
            self.works = captured(self.works, self.optimiser.zero_grad)

    def _step(self, which: int) -> None:
        """Forward, backward and update with one of the batches."""
        if self.mode.compiled == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()
        self.optimiser.zero_grad()
        loss = self.forward(*self.sets[which])
        loss.backward()
        self.optimiser.step()
        self.losses[which] = loss.detach()

    def __call__(self) -> None:
        self.works[self.done % COMPARED]()
        self.done += 1

    def trace(self) -> Trace:
        """What the first steps do. It starts again from the initial parameters, in the same memory."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(torch.from_numpy(self.initial[name]))
            for value in (value for state in self.optimiser.state.values() for value in state.values()):
                value.zero_()
        self.done, losses = 0, []
        for which in range(COMPARED):
            self()
            losses.append(self.losses[which].item())
        means = {name: numpy(self.optimiser.state[value]["exp_avg"]) for name, value in self.parameters.items()}
        parameters = {name: numpy(value) for name, value in self.parameters.items()}
        return trace_of(self.initial, np.array(losses), means, parameters)


class TorchForm(Form):
    """PyTorch's way to do parts, with our arguments. It has neither images to compose nor rates to schedule."""

    def does(self, part: Part) -> bool:
        return part.operation.startswith(("conv", "softmax_cross_entropy", "linear_cross_entropy", "adam_step"))

    def copy(self, array: Any) -> Any:
        tensor = torch.tensor(self.ops.to_numpy(array), device=self.ops.device_name)
        return tensor if tensor.is_floating_point() else tensor.long()

    def to_numpy(self, result: Any) -> np.ndarray:
        return numpy(result)

    def prepared(self, part: Part) -> Run:
        given = part.copied_arguments(self.copy)
        if part.operation.endswith("_backward"):
            return gradients(part, **given)
        if part.operation.startswith("conv"):
            return lambda: part.chosen(convolution(part.operation, **given))
        if part.operation == "linear_cross_entropy":
            return partial(linear_cross_entropy, **given)
        if part.operation == "softmax_cross_entropy":
            return partial(loss_and_gradient, given["logits"].requires_grad_(), given["labels"])
        return partial(adam_step, given, torch.zeros((), device=self.ops.device_name))

    def record(self, part: Part, work: Run) -> Run:
        [replay] = captured([work])
        return partial(lambda kept: replay(), work)  # with its arrays, which must live as long as the graph


def convolution(
    operation: str, x: Any, weight: Any, bias: Any, relu: bool = False, add: Any = None, **sizes: int
) -> Any:
    """The results of conv2d, conv_transpose2d or conv2d_pool."""
    functional, pool = torch.nn.functional, operation == "conv2d_pool"
    convolve = functional.conv_transpose2d if operation.startswith("conv_transpose2d") else functional.conv2d
    y = convolve(x, weight, bias, **sizes)
    y = y if add is None else y.add_(add)
    y = y.relu_() if relu or pool else y
    return functional.max_pool2d(y, 2, return_indices=True) if pool else y


def gradients(
    part: Part, dout: Any, x: Any, weight: Any, need_dx: bool, through_relu: bool, add: Any = None, **rest: Any
) -> Run:
    """Gives those gradients of a convolution that belong to the part, by PyTorch's autograd.

    The way back through the pooling of conv2d_pool is timed with dx, as in ours; without dx, with dweight.
    """
    bias = weight.new_zeros(weight.shape[part.operation.startswith("conv_transpose2d")])
    for leaf in (x, weight, bias):
        leaf.requires_grad_()
    wanted = part.chosen((x if need_dx else None, weight, bias))
    max_index, sizes = rest.pop("max_index", None), rest

    @cache
    def graph() -> tuple[list[Any], Run]:
        """What gradients are asked of, and what gives dconv. Made in the first run, and so on its stream."""
        seen = x.relu() if through_relu else x
        y = convolution(part.operation.replace("_pool", ""), seen, weight, bias, **sizes)
        window = [2, 2], [2, 2], [0, 0], [1, 1], False
        unpool = partial(torch.ops.aten.max_pool2d_with_indices_backward, dout, y.detach(), *window, max_index)
        dconv = dout if max_index is None else unpool()
        again = max_index is not None and not part.comes_with_dx
        return [y] if add is None else [y, seen], unpool if again else lambda: dconv

    def backward() -> Any:
        outputs, unpool = graph()
        return torch.autograd.grad(outputs, wanted, [unpool(), add][: len(outputs)], retain_graph=True)

    return backward


def loss_and_gradient(logits: Any, labels: Any) -> Any:
    """The results of softmax_cross_entropy."""
    loss = torch.nn.functional.cross_entropy(logits, labels)
    return loss.reshape(1), *torch.autograd.grad(loss, logits)


def linear_cross_entropy(x: Any, weight: Any, bias: Any, labels: Any, through_relu: bool, **_: Any) -> Any:
    """The results of linear_cross_entropy."""
    x.requires_grad_()
    logits = torch.nn.functional.conv2d(x.relu() if through_relu else x, weight, bias)
    loss = torch.nn.functional.cross_entropy(logits, labels)
    return loss.detach().reshape(1), *torch.autograd.grad(loss, (logits, x))


def adam_step(given: Mapping[str, Any], steps: Any) -> Any:
    """One launch for all parameters, after one that counts the step."""
    state = given["state"]
    arrays: Any = [given["parameters"]], [given["gradients"]], [state.m], [state.v], [], [steps]
    numbers = {"lr": state.base_rate, "beta1": state.beta1, "beta2": state.beta2, "eps": state.epsilon}
    torch._foreach_add_([steps], 1)
    torch._fused_adam_(*arrays, **numbers, weight_decay=0, amsgrad=False, maximize=False)
    return changed(given)
