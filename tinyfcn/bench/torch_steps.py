"""The same training steps in PyTorch, in each of the ways that it has to make them fast.

PyTorch is no dependency of tinyfcn: it is imported only here, and only where it is installed. Networks are functions of
a dictionary of parameters, named and shaped as ours are.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from tinyfcn.bench.steps import BETA1, BETA2, EPSILON, RATE, SETS, Batches, Task, Trace

Parameters = Mapping[str, Any]


def import_torch(device: str) -> Any | None:
    """PyTorch, if it is installed and can compute on "cpu" or "cuda"; None otherwise."""
    try:
        import torch
    except (ImportError, OSError):
        return None
    return torch if device == "cpu" or torch.cuda.is_available() else None


def logits(torch: Any, design: str, p: Parameters, x: Any) -> Any:
    """As tinyfcn/networks: (N, 10) of the design "classifier", (N, 11, H, W) of "skip"."""
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


@dataclass(frozen=True)
class Mode:
    """A way to run a step.

    compiled: torch.compile's mode for forward and loss, and with them backward, or None. graph: the whole step is
    captured by hand as CUDA graphs, one for each batch, with one pool of memory. tuned: cuDNN tries its algorithms and
    takes the fastest, and Adam is one fused launch. tf32: factors are rounded to TF32.
    """

    name: str
    compiled: str | None = None
    graph: bool = False
    channels_last: bool = False
    tuned: bool = True
    tf32: bool = False


EAGER = Mode("eager", tuned=False)
GRAPH = Mode("CUDA graph", graph=True)
ON_GPU = (
    EAGER,
    GRAPH,
    Mode("CUDA graph, channels_last", graph=True, channels_last=True),
    Mode("compiled, CUDA graph", "default", graph=True),
    Mode("compiled, CUDA graph, channels_last", "default", graph=True, channels_last=True),
    Mode("reduce-overhead", "reduce-overhead"),
    Mode("reduce-overhead, channels_last", "reduce-overhead", channels_last=True),
)
ON_CPU = (EAGER, Mode("channels_last", channels_last=True))


@contextmanager
def settings(torch: Any, mode: Mode, threads: int) -> Iterator[None]:
    """PyTorch's switches as a mode wants them, while it is prepared or timed; then as they were. No torch: nothing.

    It warns of what is meant here: that TF32 is off, that an Adam which can be captured also runs outside of a graph.
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


class TorchStep:
    """A training step in PyTorch, on "cpu" or "cuda"; call it to run it. The loss stays on the device."""

    def __init__(
        self, torch: Any, task: Task, batches: Batches, initial: Mapping[str, np.ndarray], mode: Mode, device: str
    ) -> None:
        self.torch, self.mode, self.design, self.initial = torch, mode, task.design, initial
        self.format = torch.channels_last if mode.channels_last else torch.contiguous_format
        on_device = partial(torch.tensor, device=device)
        self.sets = [(self._laid_out(on_device(x)), on_device(labels).long()) for x, labels in batches.floats()]
        # torch.compile knows that a Parameter stays where it is; another tensor it would copy before each step.
        self.parameters = {
            name: torch.nn.Parameter(self._laid_out(on_device(value))) for name, value in initial.items()
        }
        fused = {"fused": True, "capturable": mode.graph} if mode.tuned and device == "cuda" else {}
        self.optimiser = torch.optim.Adam(self.parameters.values(), RATE, (BETA1, BETA2), EPSILON, **fused)
        self.losses: list[Any] = [None] * SETS  # of each batch's last step
        self.done = 0
        self.forward = torch.compile(self._loss, mode=mode.compiled, dynamic=False) if mode.compiled else self._loss
        self.graphs: list[Any] = []
        if mode.graph:
            self._capture()
            self.start_again()

    def _laid_out(self, tensor: Any) -> Any:
        return tensor.contiguous(memory_format=self.format) if tensor.dim() == 4 else tensor

    def _loss(self, x: Any, labels: Any) -> Any:
        return self.torch.nn.functional.cross_entropy(logits(self.torch, self.design, self.parameters, x), labels)

    def _step(self, which: int) -> None:
        """Forward, backward and update with one of the batches."""
        self.optimiser.zero_grad(set_to_none=True)
        loss = self.forward(*self.sets[which])
        loss.backward()
        self.optimiser.step()
        self.losses[which] = loss.detach()

    def _capture(self) -> None:
        """A graph for each batch. They come in the order in which they are replayed, and so can share their memory."""
        cuda = self.torch.cuda
        stream = cuda.Stream()
        stream.wait_stream(cuda.current_stream())
        with cuda.stream(stream):  # the same for all, so that no gradient crosses from one to another
            for which in range(SETS):  # compiles, tunes and allocates, none of which a capture may
                self._step(which)
        cuda.current_stream().wait_stream(stream)
        pool = cuda.graph_pool_handle()
        for which in range(SETS):
            self.optimiser.zero_grad(set_to_none=True)
            graph = cuda.CUDAGraph()
            with cuda.graph(graph, pool=pool, stream=stream):
                self._step(which)
            self.graphs.append(graph)

    def __call__(self) -> None:
        which = self.done % SETS
        self.done += 1
        if self.graphs:
            self.graphs[which].replay()
            return
        if self.mode.compiled == "reduce-overhead":
            self.torch.compiler.cudagraph_mark_step_begin()
        self._step(which)

    def start_again(self) -> None:
        """Back to before the first step, in the same memory."""
        with self.torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(self.torch.tensor(self.initial[name]))
            for state in self.optimiser.state.values():
                for value in state.values():
                    value.zero_()
        self.done = 0

    def trace(self) -> Trace:
        """What the first SETS steps do."""
        self.start_again()
        losses = []
        for which in range(SETS):
            self()
            losses.append(self.losses[which].item())

        def numpy(tensor: Any) -> np.ndarray:
            return tensor.detach().cpu().contiguous().numpy().copy()

        state = self.optimiser.state
        means = {name: numpy(state[parameter]["exp_avg"]) for name, parameter in self.parameters.items()}
        return Trace(np.array(losses), means, {name: numpy(value) for name, value in self.parameters.items()})
