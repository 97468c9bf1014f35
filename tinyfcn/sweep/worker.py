"""A worker of a study: a process that imports the program once and runs one training after another."""

import signal
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from optuna.exceptions import TrialPruned
from optuna.trial import TrialState

from tinyfcn.errors import DataError, TinyfcnError
from tinyfcn.runs import Run
from tinyfcn.sweep.space import ONCE, Space
from tinyfcn.sweep.study import ERROR, METRICS, RESULT, WORKER, DatabaseError, Study, Taken, patiently
from tinyfcn.training import Interrupted, Reporter, Trainer, start

# What a worker tells its parent: ("started", trial id, number, item, options), ("stepped", trial id, share),
# ("ended", trial id, state, figures or error), ("notice", text), ("failed", text).
Message = tuple[Any, ...]


class WorkerReporter(Reporter):
    """Tells the parent how a training proceeds, and the study its evaluations; raises TrialPruned if it is behind."""

    def __init__(self, study: Study, taken: Taken, connection: Connection) -> None:
        self.study, self.taken, self.connection = study, taken, connection
        self.steps, self.parameters = 1, 0
        self.value = 0.0  # of the objective, at the last evaluation
        self.lines: list[dict[str, Any]] = []
        self.objective = study.space.objectives[0]
        self.compared = len(study.space.objectives) == 1 and self.objective not in ONCE

    def notice(self, text: str) -> None:
        tell(self.connection, "notice", text)

    def started(self, run: Run, trainer: Trainer, step: int) -> None:
        self.steps, self.parameters = trainer.steps, int(trainer.network.parameters.size)

    def stepped(self, step: int, loss: float) -> None:
        tell(self.connection, "stepped", self.taken.id, step / self.steps)

    def evaluated(self, line: dict[str, Any]) -> None:
        self.lines.append({name: value for name, value in line.items() if name != "iou_per_class"})
        if not self.compared:
            return
        # The loss and the accuracy are of the test images.
        trial, value = self.taken.trial, line.get(self.objective, line.get(f"test_{self.objective}"))
        if value is not None:
            self.value = float(value)
            # Counted in evaluations, of which Hyperband's smallest bracket has one.
            patiently(lambda: trial.report(value, len(self.lines)))
            if line["step"] < self.steps and patiently(trial.should_prune):
                raise TrialPruned


def work(
    space: Space, url: str, name: str, folder: Path, threads: int, newest: Path | None, connection: Connection
) -> None:
    """Runs trainings of the study until none is left, each in a run folder of its own below `folder`.

    The terminal's Ctrl-C is the parent's, which sends SIGTERM: the training then ends after its current step. It also
    sends a message, for a training that ends just then, and takes no notice. A parent that died counts as one.
    """
    for number in (signal.SIGINT, getattr(signal, "SIGHUP", signal.SIGINT)):
        signal.signal(number, signal.SIG_IGN)
    try:
        study = Study(space, url, name)
        while not connection.poll() and (taken := study.take(connection.poll)) is not None:
            _train(study, taken, folder, threads, newest, connection)
    except Interrupted:
        pass  # its trial is released: the next worker tries it again
    except TinyfcnError as error:
        tell(connection, "failed", str(error))


def _train(study: Study, taken: Taken, folder: Path, threads: int, newest: Path | None, connection: Connection) -> None:
    """One training, from its settings to its result in the study."""
    number = taken.trial.number
    tell(connection, "started", taken.id, number, taken.item, taken.options)
    reporter = WorkerReporter(study, taken, connection)
    state, values, found = TrialState.FAIL, None, {}
    with study.alive(taken.id):
        run = folder / f"trial-{number:04}"
        study.note(taken.id, **{WORKER: str(run)})
        try:
            settings = replace(study.space.settings(taken.options, newest), threads=threads)
            _, result = start(settings, run, reporter)
            found = {**{k: v for k, v in result.items() if k != "iou_per_class"}, "parameters": reporter.parameters}
            missing = [each for each in study.space.objectives if found.get(each) is None]
            if missing:
                raise DataError(f"the result has no {missing[0]}")
            state, values = TrialState.COMPLETE, [float(found[each]) for each in study.space.objectives]
        except TrialPruned:
            state = TrialState.PRUNED
            values = [reporter.value]
        except Interrupted:
            study.release(taken.id)
            raise
        except DatabaseError:
            raise  # it says nothing about the training
        except (TinyfcnError, ValueError, MemoryError) as error:
            found = {ERROR: str(error)}
            study.note(taken.id, **found)
        study.note(taken.id, **{METRICS: reporter.lines, RESULT: found})
        kept = study.finish(taken.id, state, values)
    tell(connection, "ended", taken.id, state.name, found if kept else {})


def tell(connection: Connection, *message: Any) -> None:
    """Sends the parent a message; where it has ended, nothing."""
    with suppress(OSError):
        connection.send(message)
