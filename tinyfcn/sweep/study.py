"""A study in a database, from which any number of workers take trainings: none is lost, and none is run twice.

A study has items 0 .. N - 1: its trainings. An item is of the configuration item // M and is member item % M of it, of
M combinations of the crossed options and the seeds. A trial of Optuna is one attempt at an item. The trial that counts
is the first one that did not fail. A worker that dies leaves a trial whose heartbeat stops. Any other worker then fails
that trial, and adds another one for the item. Where two workers add one at the same time, the second of the two trials
is never the first, and is failed before it runs.
"""

import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import DuplicatedStudyError, ExperimentalWarning, StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage, fail_stale_trials
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError

from tinyfcn.errors import DataError, in_brief
from tinyfcn.sweep.space import Options, Range, Space, Values

HEARTBEAT = 5  # seconds between two signs of life of a trial; after GRACE without one it is taken for dead
GRACE = 30
PATIENCE = 120.0  # seconds to wait for a database that is restarted
MAX_ATTEMPTS = 10  # at an item whose workers die
ITEM, ERROR, METRICS, RESULT, WORKER = "item", "error", "metrics", "result", "worker"
DONE = (TrialState.COMPLETE, TrialState.PRUNED)

Result = TypeVar("Result")


class DatabaseError(DataError):
    """The study's database does not answer."""


@dataclass(frozen=True)
class Taken:
    """A training that a worker took: its trial in the study, and its options beside the fixed ones."""

    item: int
    trial: Trial
    options: Options

    @property
    def id(self) -> int:
        """The trial's number in the database."""
        return self.trial._trial_id


def open_storage(url: str, patience: float = 5.0) -> RDBStorage:
    """The database of a URL. Raises DataError if it cannot be used."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", ExperimentalWarning)  # the heartbeat, which is in Optuna since 2021
    try:
        return patiently(lambda: _storage(url), patience)
    except ImportError as error:
        raise DataError(f"{shown_url(url)} needs a package: {error}; pip install -e '.[sweep]'") from None
    except (StorageInternalError, SQLAlchemyError, ValueError) as error:
        cause = error.__cause__ or error
        raise DataError(f"the database {shown_url(url)} cannot be used: {in_brief(cause)}") from None


class Study:
    """A study in the database of a URL.

    Raises:
        DataError: the database cannot be reached.
    """

    def __init__(self, space: Space, url: str, name: str, create: bool = False) -> None:
        self.space, self.name = space, name
        file = url.removeprefix("sqlite:///")
        if not create and file != url and not Path(file).is_file():
            raise DataError(f"the database {url} is not there")
        self.storage = open_storage(url, PATIENCE if not create else 5.0)
        self.is_new = False
        if create:
            try:
                made = optuna.create_study(study_name=name, storage=self.storage, directions=space.directions)
                made.set_metric_names([*space.objectives])
                self.is_new = True
            except DuplicatedStudyError:
                pass
        try:
            self.study = patiently(lambda: optuna.load_study(study_name=name, storage=self.storage))
        except KeyError:
            raise DataError(f"the database {shown_url(url)} has no study {name}") from None
        self.study.pruner = _pruner(space.pruner)
        self.storage_id = self.storage.get_study_id_from_name(name)
        self.distributions = {option: _distribution(each) for option, each in space.space.items()}

    @property
    def size(self) -> int:
        """The number of items."""
        return int(self.study.user_attrs["trials"])

    def is_filled(self) -> bool:
        """Whether the study has a size; waits for it a while, where another machine has just made the study."""
        for _ in range(0 if self.is_new else 50):
            if "trials" in patiently(lambda: self.study.user_attrs):
                return True
            time.sleep(0.1)
        return False

    def enlarge(self, size: int) -> None:
        """Makes the study have at least `size` items, and adds the trials that are missing."""
        if size > int(self.study.user_attrs.get("trials", 0)):
            patiently(lambda: self.study.set_user_attr("trials", size))
        live = {trial.user_attrs[ITEM] for trial in self.trials() if not _failed(trial)}
        for item in (item for item in range(size) if item not in live):
            self._add(item)

    def trials(self) -> list[FrozenTrial]:
        """All attempts, by their numbers."""
        found = patiently(lambda: self.study.get_trials(deepcopy=False))
        return sorted((trial for trial in found if ITEM in trial.user_attrs), key=lambda trial: trial.number)

    def counting(self) -> dict[int, FrozenTrial]:
        """The trial that counts of each item: the first one that did not fail."""
        found: dict[int, FrozenTrial] = {}
        for trial in self.trials():
            if not _failed(trial):
                found.setdefault(trial.user_attrs[ITEM], trial)
        return found

    def finished(self) -> list[FrozenTrial]:
        """The trials that count and ended: completed, pruned, or refused by an error of the training."""
        return [trial for trial in self.counting().values() if trial.state.is_finished()]

    def take(self, waited: Callable[[], bool]) -> Taken | None:
        """The next training, once there is one. None if all are finished, or if `waited`, called every second, says so.

        Raises:
            DatabaseError: the database stays away.
        """
        while True:
            patiently(lambda: fail_stale_trials(self.study))
            trials, size = self.trials(), self.size
            first: dict[int, FrozenTrial] = {}
            attempts: Counter[int] = Counter()
            for trial in trials:
                if _failed(trial):
                    attempts[trial.user_attrs[ITEM]] += 1
                elif first.setdefault(trial.user_attrs[ITEM], trial) is not trial and not trial.state.is_finished():
                    self.release(trial._trial_id)  # the second of two trials of one item
            if len(first) == size and all(trial.state.is_finished() for trial in first.values()):
                return None
            for item, trial in sorted(first.items()):
                if trial.state == TrialState.WAITING:
                    group = self._drawn(item, trials)
                    if group is not None and self._claim(trial._trial_id):
                        return self._with_options(item, trial._trial_id, group)
            missing = [item for item in range(size) if item not in first]
            if missing:
                self._add(
                    missing[0], f"{MAX_ATTEMPTS} workers died of it" if attempts[missing[0]] >= MAX_ATTEMPTS else ""
                )
                continue
            if waited():
                return None
            time.sleep(1)

    def _claim(self, trial_id: int) -> bool:
        """Whether a waiting trial is now this worker's. Its heart beats first, so that it is never without one."""

        def claim() -> bool:
            self.storage.record_heartbeat(trial_id)
            return self.storage.set_trial_state_values(trial_id, TrialState.RUNNING)

        try:
            return patiently(claim)
        except UpdateFinishedTrialError:
            return False

    def _drawn(self, item: int, trials: list[FrozenTrial]) -> Options | None:
        """The drawn options of the item's configuration; {}: to be drawn; None: another worker draws them.

        The first member of a configuration draws, and the others follow.
        """
        space, members = self.space, len(self.space.members)
        if not space.drawn:
            return {}
        group = [trial for trial in trials if trial.user_attrs[ITEM] // members == item // members]
        for trial in group:
            if all(option in trial.params for option in space.drawn):
                return {option: trial.params[option] for option in space.drawn}
        return {} if item % members == 0 else None

    def _with_options(self, item: int, trial_id: int, drawn: Options) -> Taken:
        """The training of a claimed trial. Draws what is not drawn, and writes all options to the trial."""
        members = self.space.members
        seed = item // len(members)  # so that a random study draws the same whoever draws
        self.study.sampler = (
            optuna.samplers.TPESampler(seed=seed, constant_liar=True)
            if self.space.sampler == "tpe"
            else optuna.samplers.RandomSampler(seed=seed)
        )
        known = {**drawn, **members[item % len(members)]}

        def write() -> Taken:
            trial = Trial(self.study, trial_id)
            for option, value in known.items():
                if option in trial.params:
                    continue  # written before the database went away
                distribution = self.distributions[option]
                self.storage.set_trial_param(trial_id, option, distribution.to_internal_repr(value), distribution)
            options = {
                option: known[option] if option in known else self._draw(trial, option) for option in self.distributions
            }
            return Taken(item, trial, options)

        return patiently(write)

    def _draw(self, trial: Trial, option: str) -> Any:
        each = self.space.space[option]
        if isinstance(each, Values):
            return trial.suggest_categorical(option, each.values)
        if each.whole:
            return trial.suggest_int(option, int(each.low), int(each.high), log=each.log)
        return trial.suggest_float(option, each.low, each.high, log=each.log)

    def _add(self, item: int, error: str = "") -> None:
        """Adds a waiting trial; with an error, one that ended."""
        attributes = {ITEM: item, ERROR: error} if error else {ITEM: item}
        state = TrialState.FAIL if error else TrialState.WAITING
        new = create_trial(state=state, user_attrs=attributes)
        patiently(lambda: self.storage.create_new_trial(self.storage_id, template_trial=new))

    def note(self, trial_id: int, **attributes: Any) -> None:
        """Writes attributes of a trial that runs."""

        def write() -> None:
            for name, value in attributes.items():
                self.storage.set_trial_user_attr(trial_id, name, value)

        patiently(write)

    def finish(self, trial_id: int, state: TrialState, values: list[float] | None = None) -> bool:
        """Ends a trial. False if it was ended already: its worker was taken for dead, and another one has the item."""
        try:
            return patiently(lambda: self.storage.set_trial_state_values(trial_id, state, values))
        except UpdateFinishedTrialError:
            ended = self.storage.get_trial(trial_id)
            return ended.state == state and ended.values == values  # written, though the database's answer was lost

    def release(self, trial_id: int) -> None:
        """Gives up a trial, so that its item is tried again."""
        self.finish(trial_id, TrialState.FAIL)

    @contextmanager
    def alive(self, trial_id: int) -> Iterator[None]:
        """Shows that the trial's worker lives, until the block ends."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.wait(HEARTBEAT):
                with suppress(StorageInternalError, SQLAlchemyError):  # restarted: the next beat comes soon
                    self.storage.record_heartbeat(trial_id)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _failed(trial: FrozenTrial) -> bool:
    """Whether a trial is to be tried again: its worker died or was stopped. An error of the training would recur."""
    return trial.state == TrialState.FAIL and ERROR not in trial.user_attrs


def patiently(call: Callable[[], Result], patience: float | None = None) -> Result:
    """call(), again and again while the database is away, for `patience` seconds.

    Raises:
        DatabaseError: it stays away. StorageInternalError or SQLAlchemyError, if `patience` is given.
    """
    give_up = time.monotonic() + (PATIENCE if patience is None else patience)
    pause = 0.1
    while True:
        try:
            return call()
        except (StorageInternalError, SQLAlchemyError) as error:
            if time.monotonic() > give_up:
                if patience is not None:
                    raise
                raise DatabaseError(
                    f"the study's database does not answer ({in_brief(error.__cause__ or error)}): "
                    "once it does, --resume continues the study"
                ) from None
        time.sleep(pause)
        pause = min(2 * pause, 2.0)


def _storage(url: str) -> RDBStorage:
    """The database. On SQLite, which knows no locks of rows, a transaction locks all of the file."""
    sqlite = url.startswith("sqlite")
    engine = {"connect_args": {"timeout": 60}} if sqlite else {"pool_pre_ping": True}
    storage = RDBStorage(with_driver(url), engine, heartbeat_interval=HEARTBEAT, grace_period=GRACE)
    if sqlite:

        @sqlalchemy.event.listens_for(storage.engine, "connect")
        def leave_transactions_to_us(connection: Any, record: Any) -> None:
            connection.isolation_level = None

        @sqlalchemy.event.listens_for(storage.engine, "begin")
        def lock(connection: Any) -> None:
            connection.exec_driver_sql("BEGIN IMMEDIATE")

        storage.engine.dispose()  # of the connections from before
    return storage


def with_driver(url: str) -> str:
    """The URL with the driver that the extra `sweep` installs."""
    for scheme in ("postgresql://", "postgres://"):
        if url.startswith(scheme):
            return f"postgresql+psycopg://{url.removeprefix(scheme)}"
    return url


def shown_url(url: str) -> str:
    """The URL without its password."""
    try:
        parts = sqlalchemy.make_url(url)
    except SQLAlchemyError:
        return url
    return parts._replace(password=None).render_as_string()


def _distribution(each: Values | Range) -> BaseDistribution:
    if isinstance(each, Values):
        return CategoricalDistribution(each.values)
    if each.whole:
        return IntDistribution(int(each.low), int(each.high), log=each.log)
    return FloatDistribution(each.low, each.high, log=each.log)


def _pruner(name: str) -> optuna.pruners.BasePruner:
    if name == "median":
        return optuna.pruners.MedianPruner()
    return optuna.pruners.HyperbandPruner() if name == "hyperband" else optuna.pruners.NopPruner()
