"""A study's folder, and its run on one machine: workers that share the cores, replaced when they die.

runs/sweep-1/
    SPACE.toml      a copy of the study's file
    study.json      where the study's database is, and its name there
    study.db        the database, unless it is a server's
    log.txt         what happened, with the time
    trial-0007/     the run folder of one training
"""

import hashlib
import json
import multiprocessing
import os
import shlex
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from tinyfcn.devices import cuda
from tinyfcn.errors import CheckpointError, DataError, TinyfcnError
from tinyfcn.files import new_file
from tinyfcn.runs import SPACE as SPACE_ON_DISK
from tinyfcn.runs import new_run, parsed_object
from tinyfcn.sweep.space import Space, read_space
from tinyfcn.sweep.study import Study, shown_url
from tinyfcn.sweep.worker import work
from tinyfcn.training import Interrupted
from tinyfcn.training.loop import stop_signals

SPACE, STUDY, DATABASE, LOG = "SPACE.toml", "study.json", "study.db", "log.txt"
GPU_WORKERS = 4  # trainings of this size leave most of a GPU idle
MAX_DEATHS = 10  # of workers in a row before any of them took a training


class SweepReporter:
    """Is told how a study proceeds. This one prints nothing; the command line has one that does."""

    def notice(self, text: str) -> None:
        """Takes a message for the user."""

    def began(self, folder: "Folder", size: int, finished: int, workers: int, threads: int) -> None:
        """The workers start, when `finished` of the study's `size` trainings are finished."""

    def progressed(self, finished: int, shares: list[float]) -> None:
        """So many trainings are finished. shares: how much is done of each of those that run here."""

    def ended(self, number: int, options: Mapping[str, Any], state: str, figures: Mapping[str, Any]) -> None:
        """A trial ended in a state of Optuna."""


@dataclass(frozen=True)
class Folder:
    """A study's folder. url: of the database, with the password if there is one."""

    path: Path
    space: Space
    url: str
    name: str

    def open(self, create: bool = False) -> Study:
        """The study in its database."""
        return Study(self.space, self.url, self.name, create)

    def log(self, text: str) -> None:
        """Adds a line to the log. A full disk does not stop a study."""
        with suppress(OSError), open(self.path / LOG, "a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}\n")


def new_folder(file: Path, storage: str | None = None, out: Path | None = None) -> Folder:
    """The folder of a new study, or of another machine's that joins the study in the database `storage`.

    Raises:
        TinyfcnError: the file has faults, see read_space; the classifier is missing; the folder is taken.
    """
    space = read_space(file)
    space.classifier()  # before a folder is made for nothing
    content = file.read_bytes()
    run = new_run("sweep", out)
    with new_file(run.folder / SPACE, SPACE_ON_DISK) as copy:
        copy.write(content)
    # Of the content: the same command on another machine means the same study.
    name = f"{file.stem}-{hashlib.sha256(content).hexdigest()[:8]}"
    run.write_json(STUDY, {"study": name, "storage": storage and shown_url(storage)})
    return Folder(run.folder, space, storage or _database(run.folder), name)


def saved_folder(path: Path, storage: str | None = None) -> Folder:
    """The folder of a study that was begun. storage: its database, where its URL has a password, which is not saved.

    Raises:
        CheckpointError: this is no study's folder.
    """
    file = path / STUDY
    try:
        saved = parsed_object(file.read_text(encoding="utf-8"), str(file))
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(
            f"{path} is no study of tinyfcn: it has no {STUDY}; tinyfcn sweep makes studies"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from None
    name, url = saved.get("study"), saved.get("storage")
    if not isinstance(name, str) or not isinstance(url, str | None):
        raise CheckpointError(f"{file} names no study and database as tinyfcn writes them")
    return Folder(path, read_space(path / SPACE), storage or url or _database(path), name)


def folder_to_resume(path: Path, storage: str | None = None) -> Folder:
    """The study in a folder; or the newest one in runs/ that was made from the file `path`."""
    if path.is_dir():
        return saved_folder(path, storage)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): name SPACE.toml or a study's folder") from None
    made = [copy for copy in Path("runs").glob(f"sweep-*/{SPACE}") if copy.read_bytes() == content]
    if not made:
        raise CheckpointError(f"no study in runs/ was made from {path}: start one without --resume, or name its folder")
    return saved_folder(max(made, key=lambda copy: copy.stat().st_mtime).parent, storage)


def _database(folder: Path) -> str:
    return f"sqlite:///{(folder / DATABASE).resolve()}"


def default_workers(space: Space) -> int:
    """As many as there are cores; on a GPU GPU_WORKERS, each of which wants a core.

    Threads share a step's small parts, and wait for each other at its end; trainings do not. See
    scripts/measure_sweep.py.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    device = space.fixed.get("device", "auto")
    on_gpu = device == "cuda" or (device == "auto" and cuda.why_not() is None)
    return min(GPU_WORKERS, cores) if on_gpu else cores


@dataclass
class Worker:
    """A worker process, this end of its pipe, and the trial that it runs: its id in the database, number, options."""

    process: SpawnProcess
    connection: Connection
    trial: tuple[int, int, Mapping[str, Any]] | None = None
    share: float = 0.0
    told: bool = False  # it has taken a training, or said why it cannot


def run_study(folder: Folder, workers: int, trials: int | None = None, reporter: SweepReporter | None = None) -> Study:
    """Runs a study's trainings in `workers` processes until all are finished. Returns the study.

    trials: the study's number of trainings; None: as many as it has, of a new one the space's default.

    Raises:
        Interrupted: Ctrl-C was pressed, or a signal asked to stop. The study can be resumed.
        TinyfcnError: the classifier is missing, the database stays away, no worker comes to life.
    """
    return _Machine(folder, workers, reporter or SweepReporter()).run(trials)


class _Machine:
    """The workers of one machine."""

    def __init__(self, folder: Folder, workers: int, reporter: SweepReporter) -> None:
        self.folder, self.reporter = folder, reporter
        self.newest = folder.space.classifier()
        self.study = folder.open(create=True)
        self.count = workers
        self.threads = max(1, default_workers(folder.space) // workers)
        self.workers: list[Worker] = []
        self.faults: list[str] = []
        self.deaths = 0
        self.stopping = False

    def run(self, trials: int | None) -> Study:
        study, folder = self.study, self.folder
        grid = folder.space.default_trials()
        if folder.space.sampler == "grid" and trials and trials > grid:
            self._notice(f"the grid has {grid:,} trainings, so --trials {trials:,} runs those")
            trials = grid
        if not study.is_filled() or (trials or 0) > study.size:
            study.enlarge(trials or grid)
        left = study.size - len(study.finished())
        self.reporter.began(folder, study.size, study.size - left, min(self.count, left), self.threads)
        folder.log(f"began: {left} of {study.size} trainings left, {min(self.count, left)} workers")
        looked = 0.0
        with stop_signals() as received:
            try:
                for _ in range(min(self.count, left)):
                    self._start()
                while self.workers:
                    if received and not self.stopping:
                        self.stopping = True
                        for worker in self.workers:
                            with suppress(OSError):  # it ended a moment ago
                                worker.connection.send("stop")
                            worker.process.terminate()
                    ready = wait([worker.connection for worker in self.workers], timeout=0.5)
                    for worker in [each for each in self.workers if each.connection in ready]:
                        self._hear(worker)
                    if time.monotonic() - looked > 2:  # other machines finish trainings too
                        finished = len(study.finished())
                        looked = time.monotonic()
                    self.reporter.progressed(finished, [each.share for each in self.workers if each.trial])
            finally:
                for worker in self.workers:
                    worker.process.kill()
        done = len(study.finished())
        folder.log(f"ended: {done} of {study.size} trainings finished")
        if self.faults:
            raise TinyfcnError(self.faults[0])
        if received and done < study.size:
            raise Interrupted(
                f"stopped: {done} of {study.size} trainings are finished, in {folder.path}; "
                f"to resume: tinyfcn sweep {shlex.quote(str(folder.path))} --resume",
                received[0],
            )
        return study

    def _start(self) -> None:
        context, folder = multiprocessing.get_context("spawn"), self.folder
        ours, theirs = context.Pipe()
        arguments = (folder.space, folder.url, folder.name, folder.path, self.threads, self.newest, theirs)
        process = context.Process(target=work, args=arguments, daemon=True)
        process.start()
        theirs.close()  # so that its death is seen as the pipe's end
        self.workers.append(Worker(process, ours))

    def _hear(self, worker: Worker) -> None:
        """One message of a worker, or its end."""
        try:
            kind, *rest = worker.connection.recv()
        except (EOFError, OSError):
            return self._bury(worker)
        if kind == "started":
            trial_id, number, item, options = rest
            worker.trial, worker.share, worker.told = (trial_id, number, options), 0.0, True
            self.deaths = 0
            self.folder.log(f"trial {number}, training {item}: {json.dumps(options)}")
        elif kind == "stepped":
            worker.share = rest[1]
        elif kind == "ended" and worker.trial:
            _, number, options = worker.trial
            worker.trial = None
            self.folder.log(f"trial {number}: {rest[1]} {json.dumps(rest[2])}")
            self.reporter.ended(number, options, *rest[1:])
        elif kind == "notice":
            self._notice(rest[0])
        elif kind == "failed":
            worker.told = True
            self.faults.append(rest[0])

    def _bury(self, worker: Worker) -> None:
        """Replaces a worker that died. Its trial is failed at once: no need to wait until its heartbeat is missed."""
        self.workers.remove(worker)
        worker.process.join()
        code = worker.process.exitcode or 0
        if worker.trial:
            self.study.release(worker.trial[0])
            if not self.stopping:
                self._notice(f"the worker of trial {worker.trial[1]} died ({_in_words(code)}): it is tried again")
        if code and not self.stopping:
            self.deaths += not worker.told
            if self.deaths < MAX_DEATHS:
                self._start()
            else:
                self.faults.append(f"{self.deaths} workers died before they took a training ({_in_words(code)})")

    def _notice(self, text: str) -> None:
        self.folder.log(text)
        self.reporter.notice(text)


def _in_words(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
