"""A study on PostgreSQL, with workers on two machines that are killed, and a database that is restarted."""

import os
import random
import signal
import time
from contextlib import suppress

import pytest
from helpers.killing import Machine
from helpers.postgres import Postgres
from helpers.studies import write_study
from optuna.trial import TrialState

from tinyfcn.sweep.run import saved_folder

pytestmark = pytest.mark.postgres
TRIALS, KILLS = (60, 20) if "ALL_KILLS" in os.environ else (18, 6)  # the former takes some minutes


@pytest.fixture
def postgres():
    server = Postgres()
    server.start()
    yield server
    server.remove()


def test_kills_and_a_restart_lose_no_training_and_run_none_twice(postgres, tmp_path):
    """18 or 60 trainings, 6 or 20 kills of workers, one of a whole machine, and the database stopped in between."""
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    path = write_study(tmp_path, "seeds = [0, 1, 2]\nsampler = 'random'", "epochs = 3",
                       "learning_rate = {low = 1e-4, high = 1e-2, log = true}")  # fmt: skip
    start = [path, "--trials", str(TRIALS), "--workers", "2", "--storage", postgres.url]
    machines = [Machine(folder, *start) for folder in folders]
    dice, killed, last = random.Random(0), 0, 0
    deadline = time.monotonic() + 1500
    while not all(machine.ended() for machine in machines):
        assert time.monotonic() < deadline, [machine.printed()[-2000:] for machine in machines]
        time.sleep(dice.uniform(0.5, 3))
        workers = [worker for machine in machines for worker in machine.workers()]
        taken = sum(log.read_text().count(", training ") for log in tmp_path.glob("*/runs/*/log.txt"))
        if killed < KILLS and workers and taken >= last + 2:  # not all kills while the workers start
            with suppress(ProcessLookupError):
                os.kill(dice.choice(workers), signal.SIGKILL)
                killed, last = killed + 1, taken
            if killed == KILLS // 3:
                postgres.stop()
                time.sleep(3)
                postgres.start()
            if killed == 2 * KILLS // 3 and not machines[1].ended():
                machines[1].kill()
                machines[1] = Machine(folders[1], *start)
    assert [machine.process.returncode for machine in machines] == [0, 0], [each.printed() for each in machines]
    assert killed == KILLS, "the study was over before all kills: train longer"
    study = saved_folder(folders[0] / "runs/sweep-1").open()
    done = [trial.user_attrs["item"] for trial in study.trials() if trial.state == TrialState.COMPLETE]
    assert sorted(done) == list(range(TRIALS))
    assert {trial.state for trial in study.trials()} == {TrialState.COMPLETE, TrialState.FAIL}
    assert len(study.trials()) >= TRIALS + 1, "no training was interrupted"
    by_draw = {}
    for trial in study.trials():
        if trial.state == TrialState.COMPLETE:
            by_draw.setdefault(trial.params["learning_rate"], []).append(trial.params["seed"])
    assert all(sorted(seeds) == [0, 1, 2] for seeds in by_draw.values())
