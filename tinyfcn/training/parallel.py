"""A network on several cores: each computes forward and backward of a part of the batch. On a GPU one is enough.

On Linux each core has a process of its own, forked from this one. Threads would hand the interpreter's lock to each
other at every operation of NumPy, and waking a thread takes as long as an operation of these small networks. Elsewhere,
where a fork is not safe, they do it all the same. Both give the same bits.
"""

import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from itertools import pairwise
from multiprocessing import Pipe
from typing import Any, NoReturn, Protocol, TypeVar

import numpy as np
import threadpoolctl

from tinyfcn.devices.device import Array
from tinyfcn.errors import DeviceError
from tinyfcn.networks import Network

Result = TypeVar("Result")

FORKS = sys.platform == "linux"


class ParallelNetwork:
    """A network that computes on several cores of the device "cpu", at most `threads`."""

    def __init__(self, network: Network, threads: int) -> None:
        self.network = network
        self.ops = network.ops
        self.threads = threads if self.ops.device_name == "cpu" else 1
        self.workers: list[Worker] = []  # for `gradients`, beside this thread
        self.own_share = 1.0  # this thread's, of the last batch

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Limits each matrix product to one thread, so that they do not compete for the cores.

        NumPy's warnings of overflow are off: the loop reports a loss that is NaN or infinite, in one line.
        """
        with threadpoolctl.threadpool_limits(1, "blas"), _overflow():
            try:
                yield
            finally:
                self._close()

    def _close(self) -> None:
        for worker in self.workers:
            worker.close()
        self.workers = []

    def gradients(self, x: Array, labels: Array, ignore_index: int | None, unlabelled: str) -> Array:
        """The mean loss of a batch, shape (1,). Its gradients are written to `network.gradients`.

        The parts are added in their order, so the same number of threads gives the same bits.

        Raises:
            DeviceError: the system gives no more processes, or has ended one.
        """
        count = len(labels)
        parts = [slice(*bounds) for bounds in _bounds(count, self.threads)]
        own, *others = [(x[part], labels[part], ignore_index, unlabelled) for part in parts]
        try:
            while len(self.workers) < len(others):
                self.workers.append(self._worker(_loss_and_gradients))
            for worker, given in zip(self.workers, others, strict=False):
                worker.ask(self.network.parameters, *given)
            loss = self.network.loss(*own)
            answers = [worker.answer() for worker, _ in zip(self.workers, others, strict=False)]
        except BaseException:  # an answer that nobody has read would be taken for the next batch's
            self._close()
            raise
        if not others:
            return loss
        shares = [(part.stop - part.start) / count for part in parts]
        self.own_share = shares[0]
        loss = shares[0] * loss
        self.network.gradients *= shares[0]
        for share, (more, gradients) in zip(shares[1:], answers, strict=True):
            loss += share * more
            self.network.gradients += share * gradients
        return loss

    def activation_bytes(self) -> int:
        """The size of the layers' outputs for the last batch, of all threads together."""
        return round(self.network.activation_bytes() / self.own_share)

    def map(self, function: Callable[[Network, slice], Result], count: int, batch: int) -> list[Result]:
        """function(network, slice) over 0 .. count in slices of `batch`, the results in order.

        Raises:
            DeviceError: the system gives no more processes, or has ended one.
        """

        def each(network: Network, mine: Sequence[slice]) -> list[Result]:
            return [function(network, part) for part in mine]

        slices = [slice(start, min(start + batch, count)) for start in range(0, count, batch)]
        threads = max(1, min(self.threads, len(slices)))
        workers = [self._worker(each) for _ in range(threads - 1)]
        for i, worker in enumerate(workers, 1):
            worker.ask(slices[i::threads])
        done = [each(self.network, slices[::threads]), *(worker.answer() for worker in workers)]
        return [done[i % threads][i // threads] for i in range(len(slices))]

    def _worker(self, function: Callable[..., Any]) -> "Worker":
        """A worker with a network of its own, which calls function(network, ...)."""
        work = partial(function, self.network.replica())
        try:
            return Forked(work) if FORKS else Threaded(work)
        except (OSError, RuntimeError) as error:
            raise DeviceError(f"{self.threads} threads cannot be started ({error}): choose fewer") from None


def _loss_and_gradients(network: Network, parameters: Array, *batch: Any) -> tuple[Array, Array]:
    if parameters is not network.parameters:
        network.parameters[...] = parameters
    return network.loss(*batch), network.gradients


class Worker(Protocol):
    """Computes beside this thread."""

    def ask(self, *arguments: Any) -> None:
        """Begins the work."""

    def answer(self) -> Any:
        """Waits for its result, or raises its exception."""

    def close(self) -> None:
        """Ends it."""


class Threaded:
    """A worker in a thread."""

    def __init__(self, work: Callable[..., Any]) -> None:
        self.work = work
        self.pool = ThreadPoolExecutor(1)
        self.pool.submit(int).result()  # starts it

    def ask(self, *arguments: Any) -> None:
        self.future = self.pool.submit(self._quietly, *arguments)

    def _quietly(self, *arguments: Any) -> Any:
        with _overflow():  # NumPy keeps this setting by thread
            return self.work(*arguments)

    def answer(self) -> Any:
        return self.future.result()

    def close(self) -> None:
        self.pool.shutdown()


class Forked:
    """A worker in a process, a copy of this one as it is now, with which it exchanges pickled messages.

    It ends by itself when this process is gone, and its pipe so closed.
    """

    def __init__(self, work: Callable[..., Any]) -> None:
        self.owner = os.getpid()
        self.pipe, theirs = Pipe()
        with warnings.catch_warnings():  # that other threads are missing in the copy, which needs none
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if self.pid == 0:
            self.pipe.close()
            _serve(theirs, work)
        theirs.close()

    def ask(self, *arguments: Any) -> None:
        with suppress(BrokenPipeError):  # `answer` tells
            self.pipe.send(arguments)

    def answer(self) -> Any:
        try:
            answer = self.pipe.recv()
        except (EOFError, ConnectionError):
            raise DeviceError("a process of this training was ended: is there memory for as many --threads?") from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        if not self.pipe.closed:
            self.pipe.close()
            if os.getpid() == self.owner:  # and not another worker, which has a copy of this object
                os.kill(self.pid, signal.SIGKILL)  # it has nothing to save
                os.waitpid(self.pid, 0)

    def __del__(self) -> None:
        with suppress(AttributeError):  # where the fork failed
            self.close()


def _serve(pipe: Any, work: Callable[..., Any]) -> NoReturn:
    """Answers as long as the process that asks lives. Signals of the terminal or the system are for that one."""
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        while True:
            arguments = pipe.recv()
            try:
                answer = work(*arguments)
            except Exception as error:
                answer = error
            pipe.send(answer)
    except (EOFError, OSError):
        pass
    finally:
        os._exit(0)


def _overflow() -> np.errstate:
    return np.errstate(over="ignore", invalid="ignore")


def _bounds(count: int, parts: int) -> list[tuple[int, int]]:
    """0 .. count in at most `parts` nearly equal, non-empty ranges."""
    parts = min(parts, count)
    edges = [count * i // parts for i in range(parts + 1)]
    return list(pairwise(edges))
