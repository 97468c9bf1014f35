"""A network on several threads: each computes forward and backward of a part of the batch.

NumPy lets other threads run while it computes, so two threads use two cores. On a GPU one thread is enough: the
kernels are parallel themselves.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import threadpoolctl

from tinyfcn.devices.device import Array
from tinyfcn.errors import DeviceError
from tinyfcn.networks import Network

Result = TypeVar("Result")


class ParallelNetwork:
    """A network and its replicas, which share its parameters: one for each thread."""

    def __init__(self, network: Network, threads: int) -> None:
        self.network = network
        self.ops = network.ops
        on_cpu = self.ops.device_name == "cpu"
        self.networks = [network, *(network.replica() for _ in range(threads - 1 if on_cpu else 0))]
        self.pool = ThreadPoolExecutor(len(self.networks)) if len(self.networks) > 1 else None

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Limits each matrix product to one thread, so that they do not compete for the cores.

        NumPy's warnings of overflow are off: the loop reports a loss that is NaN or infinite, in one line.
        """
        with threadpoolctl.threadpool_limits(1, "blas"), _overflow():
            yield

    def gradients(self, x: Array, labels: Array, ignore_index: int | None, unlabelled: str) -> Array:
        """The mean loss of a batch, shape (1,). Its gradients are written to `network.gradients`.

        The parts are added in their order, so the same number of threads gives the same bits.
        """
        count = len(labels)
        parts = [slice(*bounds) for bounds in _bounds(count, len(self.networks))]

        def work(network: Network, part: slice) -> Array:
            return network.loss(x[part], labels[part], ignore_index, unlabelled)

        losses = self._each(work, list(zip(self.networks, parts, strict=False)))
        if len(parts) == 1:
            return losses[0]
        shares = [(part.stop - part.start) / count for part in parts]
        self.network.gradients *= shares[0]
        for network, share in zip(self.networks[1:], shares[1:], strict=False):
            self.network.gradients += share * network.gradients
        return sum(share * loss for share, loss in zip(shares, losses, strict=True))

    def map(self, function: Callable[[Network, slice], Result], count: int, batch: int) -> list[Result]:
        """function(network, slice) over 0 .. count in slices of `batch`, the results in order."""
        slices = [slice(start, min(start + batch, count)) for start in range(0, count, batch)]

        def work(network: Network, mine: Sequence[slice]) -> list[Result]:
            return [function(network, part) for part in mine]

        threads = len(self.networks)
        done = self._each(work, [(self.networks[i], slices[i::threads]) for i in range(threads)])
        return [done[i % threads][i // threads] for i in range(len(slices))]

    def _each(self, work: Callable[..., Result], arguments: list[tuple[Any, ...]]) -> list[Result]:
        if self.pool is None:
            return [work(*some) for some in arguments]

        def quietly(some: tuple[Any, ...]) -> Result:
            with _overflow():  # NumPy keeps this setting by thread
                return work(*some)

        try:
            results = self.pool.map(quietly, arguments)
        except RuntimeError as error:  # the system gives no more threads
            raise DeviceError(f"{len(arguments)} threads cannot be started ({error}): choose fewer") from None
        return list(results)


def _overflow() -> np.errstate:
    return np.errstate(over="ignore", invalid="ignore")


def _bounds(count: int, parts: int) -> list[tuple[int, int]]:
    """0 .. count in at most `parts` nearly equal, non-empty ranges."""
    parts = min(parts, count)
    edges = [count * i // parts for i in range(parts + 1)]
    return list(pairwise(edges))
