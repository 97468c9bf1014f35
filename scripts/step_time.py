"""How long a training step of the design skip takes in NumPy, beside PyTorch on the same cores, in one run.

    python scripts/step_time.py [--threads 2] [--batch 16]

Needs torch, which is no dependency of tinyfcn. Both take the same batch through forward, loss, backward and Adam, and
take turns, so that what else the machine does meets both. Their losses are compared first.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from tinyfcn import on
from tinyfcn.networks import Design, Network
from tinyfcn.reference.adam import AdamState
from tinyfcn.training.parallel import ParallelNetwork

Step = Callable[[], float]


def numpy_step(network: Network, threads: int, x: np.ndarray, labels: np.ndarray) -> tuple[Step, ParallelNetwork]:
    """A step of tinyfcn's training, and the network on its threads."""
    parallel = ParallelNetwork(network, threads)
    no_l2 = np.zeros(network.parameters.shape, np.float32)
    state = AdamState.create(network.ops, no_l2, base_rate=1e-3, steps=10**6)

    def step() -> float:
        loss = parallel.gradients(x, labels, None, "zero")
        network.ops.adam_step(network.parameters, network.gradients, state)
        return float(loss[0])

    return step, parallel


def torch_step(network: Network, x: np.ndarray, labels: np.ndarray) -> Step:
    """The same step in PyTorch, from the same weights."""
    p = {name: torch.tensor(value, requires_grad=True) for name, value in network.numpy_parameters().items()}
    adam = torch.optim.Adam(p.values(), lr=1e-3)
    picture, truth = torch.from_numpy(x), torch.from_numpy(labels).long()

    def conv(layer: str, x: torch.Tensor, padding: int = 0) -> torch.Tensor:
        return F.conv2d(x, p[f"{layer}.weight"], p[f"{layer}.bias"], padding=padding)

    def up(layer: str, x: torch.Tensor) -> torch.Tensor:
        return F.conv_transpose2d(x, p[f"{layer}.weight"], p[f"{layer}.bias"], stride=2)

    def step() -> float:
        adam.zero_grad()
        pool1 = F.max_pool2d(F.relu(conv("conv1", picture)), 2)
        pool2 = F.max_pool2d(F.relu(conv("conv2", pool1)), 2)
        context = F.relu(conv("context", F.relu(conv("dense32", pool2, padding=2)), padding=1))
        half = F.relu(up("up1", context) + conv("skip1", pool1))
        whole = F.relu(up("up2", half) + conv("skip0", picture))
        loss = F.cross_entropy(conv("score", whole), truth)
        loss.backward()
        adam.step()
        return loss.item()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    random = np.random.default_rng(0)
    x = random.uniform(-1, 1, (options.batch, 1, 64, 84)).astype(np.float32)
    labels = random.integers(0, 11, (options.batch, 64, 84)).astype(np.int32)
    network = Design("skip", ink_start=False).build(on("cpu"))
    theirs = torch_step(network, x, labels)
    ours, parallel = numpy_step(network, options.threads, x, labels)

    with parallel.computing():
        for _ in range(5):  # warms up, and checks that both do the same
            mine, other = ours(), theirs()
            assert abs(mine - other) < 1e-3 * other, f"the losses differ: {mine} and {other}"
        times = []
        for _ in range(options.repeats):
            start = time.perf_counter()
            ours()
            middle = time.perf_counter()
            theirs()
            times.append((middle - start, time.perf_counter() - middle))
    numpy_ms, torch_ms = np.median(times, axis=0) * 1e3
    print(f"skip, batch {options.batch}, {options.threads} threads, medians of {options.repeats} steps in turn:")
    print(f"NumPy {numpy_ms:.1f} ms, PyTorch {torch.__version__} {torch_ms:.1f} ms: {numpy_ms / torch_ms:.2f} times")


if __name__ == "__main__":
    main()
