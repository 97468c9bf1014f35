"""Studies on one machine: their folders, resumed and killed ones, and the answer's files."""

import csv
import json
import multiprocessing
import os
import re
import signal
import time
from dataclasses import replace

import optuna
import pytest
from click.testing import CliRunner
from helpers.killing import Machine
from helpers.studies import write_study
from optuna.trial import TrialState

from tinyfcn.cli import main
from tinyfcn.errors import TinyfcnError
from tinyfcn.fields import counted
from tinyfcn.runs import Run
from tinyfcn.sweep import study as studies
from tinyfcn.sweep.page import Answer
from tinyfcn.sweep.run import default_workers, new_folder, run_study, saved_folder
from tinyfcn.sweep.space import read_space
from tinyfcn.sweep.study import Study
from tinyfcn.training import start
from tinyfcn.training.classifier import ClassifierTrainer

GRID = {"keys": "seeds = [0, 1]", "space": "epochs = [1, 2]\nlearning_rate = [1e-2, 1e-3]"}


def sweep(*arguments):
    return CliRunner().invoke(main, ["sweep", *map(str, arguments)])


def until(true, what, seconds=90):
    """Waits until true() is true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def forked():
    """Workers that have imported everything and draw no figures. Those of `Machine` are spawned and draw."""
    context = multiprocessing.get_context("fork")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multiprocessing, "get_context", lambda method: context)
        patch.setattr(ClassifierTrainer, "draw", lambda trainer, run: None)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory, forked):
    """The folder of a finished study, and what its command printed."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        result = sweep(write_study(folder, **GRID), "--workers", "2")
    assert result.exit_code == 0, result.output
    return folder / "runs" / "sweep-1", result


def threads(printed):
    """What each worker took: on a machine with more cores than workers, several."""
    return int(re.search(r" workers? of (\d+) threads?", printed)[1])


@pytest.mark.slow
def test_every_training_of_a_study_is_a_run_like_any_other(finished):
    folder, result = finished
    study = saved_folder(folder).open()
    assert [trial.state for trial in study.trials()] == [TrialState.COMPLETE] * 8
    assert (
        len(re.findall(r"^trial \d  epochs \d, learning_rate 0.0+1, seed \d: test accuracy ", result.stdout, re.M)) == 8
    )
    assert f"8 trainings, 2 workers of {counted(threads(result.stdout), 'thread')}" in result.stdout
    for trial in study.trials():
        run = Run(folder / f"trial-{trial.number:04}")
        config = run.config()
        assert {name: config[name] for name in trial.params} == trial.params
        assert trial.values == [run.result()["accuracy"]]
        assert [line["test_accuracy"] for line in run.metrics()] == [*trial.intermediate_values.values()]


@pytest.mark.slow
def test_a_training_of_a_study_ends_in_the_bits_of_the_same_training_alone(finished, tmp_path):
    folder, result = finished
    expect_bits_of_it_alone(folder, saved_folder(folder).open().trials()[3], threads(result.stdout), tmp_path)


def expect_bits_of_it_alone(folder, trial, threads, tmp_path):
    settings = replace(read_space(folder / "SPACE.toml").settings({**trial.params}, None), threads=threads)
    run, _ = start(settings, tmp_path / "alone")
    there = folder / f"trial-{trial.number:04}"
    assert (run.folder / "state.safetensors").read_bytes() == (there / "state.safetensors").read_bytes()


def test_optuna_itself_reads_the_study(finished):
    folder, _ = finished
    (summary,) = optuna.get_all_study_summaries(f"sqlite:///{folder}/study.db")
    study = optuna.load_study(study_name=summary.study_name, storage=f"sqlite:///{folder}/study.db")
    assert study.metric_names == ["accuracy"]
    assert study.best_value == max(trial.values[0] for trial in study.trials)


def test_show_prints_and_writes_the_answer(finished, tmp_path):
    folder, _ = finished
    result = sweep("show", folder, "--csv", tmp_path / "a.csv", "--json", tmp_path / "a.json")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("8 of 8 trainings are finished\n")
    for title in ("best configurations", "importance for accuracy", "effect on accuracy"):
        assert title in result.stdout
    assert re.search(r"^epochs: \d (is better than|and) \d .*2 seeds, 4 pairs\)$", result.stdout, re.M)
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    answer = json.loads((tmp_path / "a.json").read_text())
    assert len(rows) == len(answer["trainings"]) == 8
    assert {float(row["accuracy"]) for row in rows} == {each["values"][0] for each in answer["trainings"]}
    assert answer["configurations"][0]["seeds"] == 2
    page = (folder / "answer.html").read_text()
    assert page.count("data:image/png;base64,") == len(list(folder.glob("*.png"))) == 3
    assert not re.search(r'(src|href)="(?!data:)', page), "the page needs other files"
    assert all(sentence.replace("&", "&amp;") in page for sentence in answer["sentences"])


def test_a_finished_study_has_nothing_left_to_run(finished, monkeypatch):
    folder, _ = finished
    monkeypatch.chdir(folder.parents[1])
    result = sweep("study.toml", "--resume")
    assert (result.exit_code, "8 of them finished, 0 workers" in result.stdout) == (0, True), result.output


@pytest.mark.slow
def test_a_study_grows_when_it_is_resumed(tmp_path, monkeypatch, forked):
    monkeypatch.chdir(tmp_path)
    text = {"keys": "sampler = 'random'\nseeds = [0, 1]", "fixed": "epochs = 1"}
    path = write_study(tmp_path, space="learning_rate = {low = 1e-4, high = 1e-2, log = true}", **text)
    assert sweep(path, "--trials", "3").exit_code == 0
    assert sweep("runs/sweep-1", "--resume", "--trials", "4").exit_code == 0
    trials = saved_folder(tmp_path / "runs/sweep-1").open().trials()
    rates = [trial.params["learning_rate"] for trial in trials]
    assert [trial.params["seed"] for trial in trials] == [0, 1, 0, 1]
    assert rates[0] == rates[1] != rates[2] == rates[3]
    again = new_folder(path, out=tmp_path / "again")
    run_study(again, 1, trials=1)
    assert again.open().trials()[0].params["learning_rate"] == rates[0], "a random study draws the same whoever draws"


@pytest.mark.slow
def test_a_diverging_training_is_reported_and_not_tried_again(tmp_path, monkeypatch, forked):
    monkeypatch.chdir(tmp_path)
    path = write_study(tmp_path, fixed="epochs = 1", space="learning_rate = [1e-3, 1e30]")
    result = sweep(path, "--workers", "1")
    assert result.exit_code == 0, result.output
    assert re.search(r"^trial 1 .*: fail: the loss became (nan|inf) near step", result.stdout, re.M)
    assert len(saved_folder(tmp_path / "runs/sweep-1").open().trials()) == 2
    assert "the loss became" in sweep("show", "runs/sweep-1").stdout


@pytest.mark.slow
def test_pruning_ends_what_is_behind(tmp_path, monkeypatch, forked):
    monkeypatch.chdir(tmp_path)
    rates = ", ".join(f"{rate:.3f}" for rate in (0.01, 0.011, 0.009, 0.012, 0.008))
    path = write_study(tmp_path, "pruner = 'median'", "epochs = 4", f"learning_rate = [{rates}, 1e-9]")
    assert sweep(path, "--workers", "1").exit_code == 0
    *_, last = saved_folder(tmp_path / "runs/sweep-1").open().trials()
    assert last.state == TrialState.PRUNED and len(last.intermediate_values) < 4
    assert not (tmp_path / "runs/sweep-1/trial-0005/result.json").exists()


@pytest.mark.slow
def test_hyperband_ends_what_learns_nothing(tmp_path, monkeypatch, forked):
    """Which bracket a training is in, one that compares early, late or never, depends on the study's name alone."""
    monkeypatch.chdir(tmp_path)
    rates = ", ".join(f"{rate}e-9" for rate in range(1, 6))
    path = write_study(tmp_path, "pruner = 'hyperband'", "epochs = 9", f"learning_rate = [0.01, 0.009, {rates}]")
    path.write_text(path.read_text().replace(str(tmp_path / "digits"), "digits"))  # the name is made of the content
    assert sweep(path, "--workers", "1").exit_code == 0
    best, *others = saved_folder(tmp_path / "runs/sweep-1").open().trials()
    pruned = [each for each in others if each.state == TrialState.PRUNED]
    assert best.state == TrialState.COMPLETE and len(best.intermediate_values) == 9
    assert len(pruned) >= 2 and all(len(each.intermediate_values) in (1, 3) for each in pruned)


@pytest.mark.slow
def test_a_killed_worker_loses_no_training(tmp_path):
    """kill -9 of a worker in the middle, then SIGTERM to the command, then --resume: each training once."""
    path = write_study(tmp_path, "seeds = [0, 1]", "epochs = 8", "learning_rate = [1e-2, 1e-3]")
    machine = Machine(tmp_path, path, "--workers", "2")
    log = tmp_path / "runs/sweep-1/log.txt"

    def running():
        text = log.read_text() if log.exists() else ""
        return text.count(", training ") - len(re.findall(r"COMPLETE|died", text))

    until(lambda: running() == 2, "both workers train")
    os.kill(machine.workers()[0], signal.SIGKILL)
    until(lambda: "died (SIGKILL): it is tried again" in log.read_text(), "the death is noticed")
    until(lambda: running() == 2, "it is tried again")
    machine.process.send_signal(signal.SIGTERM)
    assert machine.process.wait(60) == 128 + signal.SIGTERM
    assert "to resume: tinyfcn sweep runs/sweep-1 --resume" in machine.printed()
    assert machine.workers() == []
    again = Machine(tmp_path, path, "--resume", "--workers", "1")
    assert again.process.wait(120) == 0, again.printed()
    study = saved_folder(tmp_path / "runs/sweep-1").open()
    expect_each_once(study, 4)
    last = study.trials()[-1]
    assert len([*(log.parent / f"trial-{last.number:04}").glob("*.png")]) == 3
    expect_bits_of_it_alone(log.parent, last, default_workers(study.space), tmp_path)


def expect_each_once(study, size):
    """Every item has one completed trial; all other trials failed, without an error of the training."""
    done = sorted(trial.user_attrs["item"] for trial in study.trials() if trial.state == TrialState.COMPLETE)
    assert done == list(range(size))
    for trial in study.trials():
        assert trial.state == TrialState.COMPLETE or (trial.state, trial.user_attrs.get("error")) == (
            TrialState.FAIL,
            None,
        )


@pytest.mark.slow
def test_the_trial_of_a_machine_that_is_gone_is_found_stale(tmp_path, monkeypatch):
    """Without its heartbeat a running trial is failed, and its item given to the next worker, once."""
    monkeypatch.setattr(studies, "HEARTBEAT", 1)
    monkeypatch.setattr(studies, "GRACE", 2)
    folder = new_folder(write_study(tmp_path, space="epochs = [1]"), out=tmp_path / "study")
    gone, other = folder.open(create=True), folder.open()
    gone.enlarge(1)
    lost = gone.take(lambda: True)
    assert lost is not None and other.take(lambda: True) is None, "the trial runs: there is nothing to take"
    time.sleep(3.5)
    found = other.take(lambda: True)
    assert found is not None and (found.item, found.trial.number) == (0, 1)
    assert gone.take(lambda: True) is None
    with other.alive(found.id):
        time.sleep(3.5)
        assert gone.take(lambda: True) is None, "its heart beats"
    assert other.finish(found.id, TrialState.COMPLETE, [0.5])
    assert not gone.finish(lost.id, TrialState.COMPLETE, [0.4]), "the first worker came back, too late"
    expect_each_once(other, 1)


def test_of_two_trials_of_one_item_the_first_one_counts(tmp_path):
    """Two workers found an item without a trial at the same time."""
    folder = new_folder(write_study(tmp_path, space="epochs = [1]"), out=tmp_path / "study")
    one = folder.open(create=True)
    one.enlarge(1)
    one._add(0)
    taken = one.take(lambda: True)
    assert taken is not None and taken.trial.number == 0
    assert one.take(lambda: True) is None
    assert [trial.state for trial in one.trials()] == [TrialState.RUNNING, TrialState.FAIL]


def test_a_training_that_kills_its_workers_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(studies, "MAX_ATTEMPTS", 2)
    folder = new_folder(write_study(tmp_path, space="epochs = [1]"), out=tmp_path / "study")
    one = folder.open(create=True)
    one.enlarge(1)
    for _ in range(2):
        one.release(one.take(lambda: True).id)
    assert one.take(lambda: True) is None
    assert one.finished()[0].user_attrs["error"] == "2 workers died of it"


@pytest.mark.slow
def test_the_answer_of_several_objectives_has_a_pareto_front(tmp_path):
    """A study whose trainings are made up."""
    keys = "objectives = ['accuracy', 'seconds']\nseeds = [0, 1]"
    folder = new_folder(write_study(tmp_path, keys, space="epochs = [1, 2, 3]"), out=tmp_path / "study")
    study = folder.open(create=True)
    study.enlarge(6)
    for accuracy, seconds in ((0.5, 1.0), (0.9, 2.0), (0.8, 3.0), (0.6, 1.0), (0.9, 2.0), (0.8, 3.0)):
        taken = study.take(lambda: True)
        lines = [{"step": 1, "test_loss": 1.0, "test_accuracy": accuracy}]
        study.note(taken.id, result={"accuracy": accuracy, "seconds": seconds}, metrics=lines)
        assert study.finish(taken.id, TrialState.COMPLETE, [accuracy, seconds])
    answer = Answer(study)
    front = answer.tables()["Pareto front"]
    assert [(row["epochs"], row["accuracy>"], row["seeds>"]) for row in front] == [
        ("1", "0.5500", "2"),
        ("2", "0.9000", "2"),
    ]
    assert {path.name for path in answer.figures(tmp_path)} >= {
        "pareto-front.png",
        "effects.png",
        "learning-curves.png",
    }
    assert any(sentence.startswith("epochs: 1 is better than 3 (seconds -2.0000") for sentence in answer.sentences())


def test_a_missing_classifier_is_reported_before_a_folder_is_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "newest.toml").write_text("[space]\nbatch = [8, 16]")
    (tmp_path / "named.toml").write_text("seeds = [0]\n[fixed]\ncnn = 'runs/none'")
    for name, says in (("newest", "there is no finished classifier in runs/"), ("named", "is no trained classifier")):
        result = sweep(f"{name}.toml")
        assert (result.exit_code, says in result.stderr) == (1, True), result.output
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_errors_of_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_study(tmp_path, space="epochs = [1]")
    (tmp_path / "empty.toml").touch()
    for arguments, code, says in (
        (["none.toml"], 1, "none.toml cannot be read (No such file or directory): name a file such as"),
        (["show", "."], 1, ". is no study of tinyfcn: it has no study.json"),
        ([path, "--resume"], 1, "no study in runs/ was made from "),
        ([path, "--resume", "--out", "x"], 2, "--resume goes on in the study's own folder: leave out --out"),
        ([path, "--storage", "nosql://x", "--out", "a"], 1, "the database nosql://x cannot be used"),
        ([path, "--workers", "0"], 2, "'0' is not a whole number from 1 to 1,024"),
        (["show", "."], 1, "is no study"),
        (["."], 2, ". is a folder: tinyfcn sweep . --resume continues the study in it"),
        (["empty.toml"], 1, "empty.toml: there is nothing to try: list options in [space], or seeds = [0, 1, 2]"),
    ):
        result = sweep(*arguments)
        assert (result.exit_code, says in result.stderr) == (code, True), result.output
    assert not (tmp_path / "a").exists() and not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_to_show_a_study_makes_no_database(finished, tmp_path):
    result = sweep("show", finished[0], "--storage", f"sqlite:///{tmp_path}/none.db")
    assert result.exit_code == 1 and "none.db is not there" in result.stderr and not [*tmp_path.iterdir()]


@pytest.mark.slow
def test_a_password_is_not_saved(tmp_path):
    path = write_study(tmp_path, space="epochs = [1]")
    folder = new_folder(path, "postgresql://me:secret@localhost/studies", tmp_path / "study")
    assert "secret" in folder.url
    assert json.loads((tmp_path / "study/study.json").read_text())["storage"] == "postgresql://me@localhost/studies"
    with pytest.raises(TinyfcnError, match="the database postgresql://me@localhost:1/studies"):
        Study(folder.space, "postgresql://me:secret@localhost:1/studies", folder.name, create=True)
