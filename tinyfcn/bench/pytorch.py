"""PyTorch's side: the same training steps in each of the ways that make them fast there, and the same operations.

PyTorch is not a dependency of tinyfcn: it is imported only here, which takes seconds, and only where it is installed.
"""

import contextlib
import importlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from tinyfcn.bench.kernels import Form
from tinyfcn.bench.parts import Part
from tinyfcn.bench.steps import BETA1, BETA2, EPSILON, RATE, SETS, Batches, Task, Trace
from tinyfcn.bench.timing import Run

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


@contextlib.contextmanager
def switched(mode: Mode, threads: int) -> Iterator[None]:
    """PyTorch's global switches as a mode wants them, then as they were. Without PyTorch: nothing.

    Its warnings are off: that TF32 is off, and that an Adam which can be captured also runs outside of a graph.
    """
    if torch is None:
        yield
        return
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark, torch.get_num_threads()
    cudnn.allow_tf32 = matmul.allow_tf32 = mode.tf32
    cudnn.benchmark = mode.tuned
    torch.set_num_threads(threads)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark, threads = before
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
    relu, max_pool2d = torch.relu, torch.nn.functional.max_pool2d

    def conv(layer: str, x: Any, padding: int = 0) -> Any:
        return torch.nn.functional.conv2d(x, p[f"{layer}.weight"], p[f"{layer}.bias"], padding=padding)

    def up(layer: str, x: Any) -> Any:
        return torch.nn.functional.conv_transpose2d(x, p[f"{layer}.weight"], p[f"{layer}.bias"], stride=2)

    pool1 = max_pool2d(relu(conv("conv1", x)), 2)
    pool2 = max_pool2d(relu(conv("conv2", pool1)), 2)
    if design == "classifier":
        return conv("dense10", relu(conv("dense32", pool2))).flatten(1)
    context = relu(conv("context", relu(conv("dense32", pool2, padding=2)), padding=1))
    half = relu(up("up1", context) + conv("skip1", pool1))
    whole = relu(up("up2", half) + conv("skip0", x))
    return conv("score", whole)


class TorchStep:
    """A training step in PyTorch, on "cpu" or "cuda"; call it to run it. The loss stays on the device."""

    def __init__(
        self, task: Task, batches: Batches, initial: Mapping[str, np.ndarray], mode: Mode, device: str
    ) -> None:
        layout = torch.channels_last if mode.channels_last else torch.contiguous_format

        def tensor(array: np.ndarray) -> Any:
            made = torch.tensor(array, device=device)
            return made.contiguous(memory_format=layout) if made.dim() == 4 else made

        self.sets = [(tensor(x), tensor(labels.astype(np.int64))) for x, labels in batches.floats()]
        self.initial = {name: tensor(value) for name, value in initial.items()}
        # torch.compile knows that a Parameter stays where it is; another tensor it would copy before each step.
        self.parameters = {name: torch.nn.Parameter(value.clone()) for name, value in self.initial.items()}
        fused = {"fused": True, "capturable": mode.graph} if mode.tuned and device == "cuda" else {}
        self.optimiser = torch.optim.Adam(self.parameters.values(), RATE, (BETA1, BETA2), EPSILON, **fused)

        def loss(x: Any, labels: Any) -> Any:
            return torch.nn.functional.cross_entropy(logits(task.design, self.parameters, x), labels)

        self.forward = torch.compile(loss, mode=mode.compiled, dynamic=False) if mode.compiled else loss
        self.reduces_overhead = mode.compiled == "reduce-overhead"
        self.losses: list[Any] = [None] * SETS  # of each batch's last step
        self.done = 0
        self.works: list[Run] = [partial(self._step, which) for which in range(SETS)]
        if mode.graph:
            self.works = captured(self.works, partial(self.optimiser.zero_grad, set_to_none=True))

    def _step(self, which: int) -> None:
        """Forward, backward and update with one of the batches."""
        if self.reduces_overhead:
            torch.compiler.cudagraph_mark_step_begin()
        self.optimiser.zero_grad(set_to_none=True)
        loss = self.forward(*self.sets[which])
        loss.backward()
        self.optimiser.step()
        self.losses[which] = loss.detach()

    def __call__(self) -> None:
        self.works[self.done % SETS]()
        self.done += 1

    def trace(self) -> Trace:
        """What the first SETS steps do. It starts again from the initial parameters, in the same memory."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(self.initial[name])
            for state in self.optimiser.state.values():
                for value in state.values():
                    value.zero_()
        self.done, losses = 0, []
        for which in range(SETS):
            self()
            losses.append(self.losses[which].item())
        means = {name: numpy(self.optimiser.state[value]["exp_avg"]) for name, value in self.parameters.items()}
        return Trace(np.array(losses), means, {name: numpy(value) for name, value in self.parameters.items()})


class TorchForm(Form):
    """PyTorch's way to do parts: a method for each operation that it has, of our name and with our arguments.

    wanted: for a backward pass, whether dx, dweight and dbias are.
    """

    def to_numpy(self, result: Any) -> np.ndarray:
        return numpy(result)

    def function(self, part: Part) -> Any:
        return getattr(self, part.operation, None)

    def conv2d(
        self, x: Any, weight: Any, bias: Any, relu: bool = False, add: Any = None, transposed: bool = False, **size: int
    ) -> Any:
        convolve = torch.nn.functional.conv_transpose2d if transposed else torch.nn.functional.conv2d
        y = convolve(x, weight, bias, **size)
        y = y if add is None else y.add_(add)
        return y.relu_() if relu else y

    def conv_transpose2d(self, **given: Any) -> Any:
        return self.conv2d(transposed=True, **given)

    def conv2d_backward(self, transposed: bool = False, **given: Any) -> Any:
        x, weight, wanted, sizes = given["x"], given["weight"], given["wanted"], given["weight"].shape
        window = [given.get("stride", 1)] * 2, [given.get("padding", 0)] * 2, [1, 1], transposed, [0, 0], 1
        gradient = torch.ops.aten.convolution_backward
        dx, dweight, dbias = gradient(given["dout"], x, weight, [sizes[transposed]], *window, wanted)
        if wanted[0] and given.get("add") is not None:
            dx = dx.add_(given["add"])
        if wanted[0] and given["through_relu"]:
            dx = torch.ops.aten.threshold_backward(dx, x, 0)
        return dx, dweight, dbias

    def conv_transpose2d_backward(self, **given: Any) -> Any:
        return self.conv2d_backward(transposed=True, **given)

    def conv2d_pool(self, x: Any, weight: Any, bias: Any) -> Any:
        return torch.nn.functional.max_pool2d(self.conv2d(x, weight, bias, relu=True), 2, return_indices=True)

    def conv2d_pool_backward(self, dconv: Any, **given: Any) -> Any:
        """The way back through the pooling comes with dx, as in ours; without dx, with dweight."""
        if given["wanted"][0] or not given["need_dx"]:
            dconv = self._unpool(dconv, **given)
        return self.conv2d_backward(**given | {"dout": dconv})

    def _unpool(self, full: Any, **given: Any) -> Any:
        window = [2, 2], [2, 2], [0, 0], [1, 1], False
        return torch.ops.aten.max_pool2d_with_indices_backward(given["dout"], full, *window, given["max_index"])

    def softmax_cross_entropy(self, logits: Any, labels: Any, **unused: Any) -> Any:
        loss = torch.nn.functional.cross_entropy(logits.requires_grad_(), labels)
        return loss.reshape(1), *torch.autograd.grad(loss, logits)

    def adam_step(self, parameters: Any, gradients: Any, state: Any, steps: Any, **unused: Any) -> None:
        torch._foreach_add_([steps], 1)
        numbers = {"lr": state.base_rate, "beta1": state.beta1, "beta2": state.beta2, "eps": state.epsilon}
        arrays: Any = [parameters], [gradients], [state.m], [state.v], [], [steps]
        torch._fused_adam_(*arrays, **numbers, weight_decay=0, amsgrad=False, maximize=False)

    def copy(self, array: Any) -> Any:
        tensor = torch.tensor(self.ops.to_numpy(array), device=self.ops.device_name)
        return tensor if tensor.is_floating_point() else tensor.long()

    def arguments(self, part: Part) -> dict[str, Any]:
        given = super().arguments(part)
        if part.operation.endswith("_backward"):
            given["wanted"] = [part.what != "dweight", part.what != "dx", part.what != "dx"]
        if part.operation == "conv2d_pool_backward":
            given["dconv"] = self._unpool(self.conv2d(given["x"], given["weight"], None), **given)
        if part.operation == "adam_step":
            given["steps"] = torch.ones((), device=self.ops.device_name)
        return given

    def record(self, part: Part, work: Run) -> Run:
        [replay] = captured([work])

        def run(kept: Run = work) -> None:  # with its arrays, which must live as long as the graph
            replay()

        return run
