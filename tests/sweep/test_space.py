"""SPACE.toml: what it means, and one line for each of its faults, before anything is trained."""

from pathlib import Path

import pytest

from tinyfcn.cli import main
from tinyfcn.errors import TinyfcnError
from tinyfcn.sweep.space import Range, Values, read_space

ROOT = Path(__file__).parents[2]


def space_of(folder, text):
    path = folder / "study.toml"
    path.write_text(text)
    return read_space(path)


def faults_of(folder, text):
    """The lines about a file's faults, without the file's name."""
    with pytest.raises(TinyfcnError) as caught:
        space_of(folder, text)
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"{folder / 'study.toml'}: ") for line in lines)
    return [line.partition(": ")[2] for line in lines]


def test_a_space_says_what_it_means(tmp_path):
    space = space_of(
        tmp_path,
        """
        sampler = "tpe"
        objectives = ["digit_miou", "parameters"]
        seeds = [3, 4]
        [fixed]
        steps = 600
        [space]
        batch = [8, 16]
        learning_rate = {low = 1e-3, high = 0.1, log = true}
        warmup = {low = 0, high = 200}
        labels = {grid = ["digits"]}
        """,
    )
    assert space.space == {
        "batch": Values((8, 16)),
        "learning_rate": Range(1e-3, 0.1, log=True, whole=False),
        "warmup": Range(0, 200, log=False, whole=True),
        "labels": Values(("digits",), crossed=True),
        "seed": Values((3, 4), crossed=True),
    }
    assert space.directions == ["maximize", "minimize"]
    assert space.drawn == ["batch", "learning_rate", "warmup"]
    assert space.members == [{"labels": "digits", "seed": 3}, {"labels": "digits", "seed": 4}]
    assert space.default_trials() == 40


def test_a_grid_crosses_every_list_and_takes_the_first_seed_first(tmp_path):
    space = space_of(tmp_path, "seeds = [0, 1]\n[fixed]\nfrom_scratch = true\n[space]\nbatch = [8, 16]\nl2 = [0, 1e-3]")
    found = [(each["batch"], each["l2"], each["seed"]) for each in space.members]
    assert found == [(b, l2, seed) for seed in (0, 1) for l2 in (0, 1e-3) for b in (8, 16)]
    assert (space.drawn, space.default_trials()) == ([], 8)


def test_settings_are_those_of_the_command(tmp_path):
    fixed = "objectives = ['ink_iou']\n[fixed]\nsteps = 600\nlabels = 'binary'"
    space = space_of(tmp_path, f"{fixed}\n[space]\nfrom_scratch = [true, false]")
    scratch = space.settings({"from_scratch": True, "seed": 7}, None)
    assert (scratch.cnn, scratch.steps, scratch.design.labels, scratch.seed) == (None, 600, "binary", 7)
    assert scratch.learning_rate == 1e-2  # of the design's recipe
    pretrained = space.settings({"from_scratch": False, "seed": 0}, tmp_path / "cnn-1")
    assert pretrained.cnn == str(tmp_path / "cnn-1")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[space]\nlerning_rate = [1]", "[space] lerning_rate: unknown option; did you mean learning_rate?"),
        ("command = 'train-cnn'\n[space]\nreduce = ['first']", "[space] reduce: unknown option; train-cnn has "),
        ("[fixed]\nseed = 3", "[fixed] seed: list the seeds above all tables instead, such as seeds = [0, 1, 2]"),
        ("[space]\nthreads = [1, 2]", "[space] threads: unknown option"),
        ("[space]\nbatch = ['16']", "[space]: batch must be a whole number from 1 to 8,192, got '16'"),
        ("[fixed]\nsteps = 2.5", "[fixed] steps must be a whole number from 1 to "),
        ("[space]\nschedule = ['linear']", "[space]: schedule must be one of cosine, constant, got 'linear'"),
        ("[space]\nfrom_scratch = [1]", "[space]: from_scratch must be one of False, True, got 1"),
        ("[fixed]\ndesign = 'classifier'", "[fixed] design must be one of early, corrected, skip, got 'classifier'"),
        ("[space]\nbatch = []", "[space] batch: the list is empty: give at least one value"),
        ("[space]\nbatch = [8, 8]", "[space] batch: the values must differ, got [8, 8]"),
        ("[space]\nbatch = [[8]]", "[space] batch: expected numbers, texts, true or false, got [8]"),
        ("[space]\nbatch = 8", "[space] batch: expected a list, {grid = [...]} or {low = ..., high = ...}, got 8"),
        ("sampler = 'tpe'\n[space]\nlearning_rate = {low = 0.1, high = 0.1}",
         "[space] learning_rate: the range is empty: low must be below high, got 0.1 and 0.1"),
        ("sampler = 'tpe'\n[space]\nbatch = {low = 0.5, high = 4}",
         "[space] batch: batch must be a whole number from 1 to "),
        ("sampler = 'tpe'\n[space]\nl2 = {low = 0, high = 1, log = true}",
         "[space] l2: a logarithmic range begins above 0, got 0"),
        ("sampler = 'tpe'\n[space]\nlabels = {low = 1, high = 2}",
         "[space] labels: this option is no number: list its values"),
        ("sampler = 'tpe'\n[space]\nl2 = {low = 1, step = 2}",
         "[space] l2: a range has low, high and perhaps log, and no step"),
        ("[space]\nlearning_rate = {low = 0.1, high = 1}",
         "[space] learning_rate: a grid has no ranges: list values, "),
        ("[space]\nreduce = ['first', 'last']",
         "[space] reduce: --reduce is for the designs early and corrected; skip does not take it"),
        ("[space]\ndesign = ['skip', 'corrected']\nreduce = ['first']",
         "[space] reduce: --reduce is for the designs early and corrected; skip does not take it"),
        ("[fixed]\ndesign = 'corrected'\n[space]\narticle_skip = [false, true]\ndecoder_relu = [false, true]",
         "[space] article_skip True, decoder_relu True: --article-skip and --decoder-relu are two versions"),
        ("[space]\nfrom_scratch = [true, false]\nfreeze = [true, false]",
         "[space] from_scratch True, freeze True: --from-scratch has no classifier's weights"),
        ("[fixed]\nbatch = 8\n[space]\nbatch = [8]", "[fixed] batch is in [space] too: leave out one"),
        ("objectives = ['accuracy']", "objectives: 'accuracy' is none of digit_miou, "),
        ("objectives = []", "objectives must be a list of different figures, got []"),
        ("[fixed]\nlabels = 'binary'", "objectives: digit_miou is not measured with these options"),
        ("pruner = 'median'\nobjectives = ['digit_miou', 'seconds']", "pruner median compares one figure"),
        ("sampler = 'cma'", "sampler must be one of grid, random, tpe, got 'cma'"),
        ("seeds = [0, -1]", "seeds: seed must be a whole number from 0 to "),
        ("seeds = 3", "seeds: expected a list"),
        ("trials = 3", "unknown key 'trials', expected command, "),
        ("space = 3", "space must be a table, [space], got 3"),
        ("sampler = ", "Invalid value"),
    ],
)  # fmt: skip
def test_a_bad_space_is_reported_in_one_line(tmp_path, text, says):
    with pytest.raises(TinyfcnError) as caught:
        space_of(tmp_path, text)
    assert says in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_every_fault_has_its_line(tmp_path):
    text = "sampler = 'cma'\n[fixed]\nstep = 3\n[space]\nbatch = []\nlr = [1]"
    found = faults_of(tmp_path, text)
    assert len(found) == 4
    assert [line.split(":")[0] for line in found] == [
        "sampler must be one of grid, random, tpe, got 'cma'",
        "[fixed] step",
        "[space] lr",
        "[space] batch",
    ]


def test_the_command_reports_a_bad_space_before_it_makes_a_folder(tmp_path, monkeypatch):
    from click.testing import CliRunner

    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.toml").write_text("[space]\nbatch = []\nsteps = [0]")
    result = CliRunner().invoke(main, ["sweep", "bad.toml"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines()[1:] == [
        "Error: bad.toml: [space] batch: the list is empty: give at least one value"
    ]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.toml")), ids=lambda path: path.stem)
def test_the_experiments_are_valid(path):
    space = read_space(path)
    assert 2 <= space.default_trials() <= 60
    assert len(space.space["seed"].values) >= 3
