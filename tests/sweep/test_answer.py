"""What a study's answer calls better, on synthetic results, and its importance and Pareto front."""

import numpy as np
import pytest

from tinyfcn.sweep.answer import (
    Training,
    comparisons,
    configurations,
    effects,
    front,
    importance,
    in_words,
    seed_spread,
    student,
)
from tinyfcn.sweep.space import Range, Space, Values


def space(sampler="grid", objectives=("accuracy",), **options):
    return Space("s", "train-cnn", {}, options, sampler, "none", tuple(objectives))


def trainings(made, value):
    """One training for each member of a grid, of the value that value(options) gives."""
    options = [dict(zip(made.space, (each[name] for name in made.space), strict=True)) for each in made.members]
    return [Training(n, "COMPLETE", each, tuple(np.atleast_1d(value(each))), {}, []) for n, each in enumerate(options)]


def grid(seeds=3):
    return space(batch=Values((8, 16)), epochs=Values((1, 2, 3)), seed=Values(tuple(range(seeds)), crossed=True))


def test_a_difference_that_every_seed_shows_is_called_better():
    random = np.random.default_rng(0)
    made = grid()
    found = trainings(made, lambda o: 0.5 + 0.1 * (o["batch"] == 16) + 0.01 * random.standard_normal())
    first, *rest = comparisons(made, found)
    assert (first.option, first.value, first.other, first.pairs, first.units) == ("batch", "16", "8", 9, 3)
    assert first.low < 0.1 < first.high
    assert in_words(made, first).startswith("batch: 16 is better than 8 (accuracy +0.1")
    assert [each.certain for each in rest] == [False, False]
    assert "not told apart" in in_words(made, rest[0])


def test_of_an_objective_that_should_be_small_less_is_better():
    made = space(objectives=["loss"], batch=Values((8, 16)), seed=Values((0, 1, 2), crossed=True))
    found = trainings(made, lambda o: 1.0 + (o["batch"] == 16) + 0.01 * o["seed"])
    (only,) = comparisons(made, found)
    assert in_words(made, only).startswith("batch: 8 is better than 16 (loss -1.0000")


def test_one_seed_cannot_tell():
    made = grid(seeds=1)
    (first, *_) = comparisons(made, trainings(made, lambda o: float(o["batch"])))
    assert (first.certain, first.low) == (False, None)
    assert "one seed alone cannot tell" in in_words(made, first)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 3, 5, 8])
def test_chance_is_called_a_difference_in_about_one_study_of_twenty(seeds):
    """Of two values that do the same. The better one is compared, so both ends of the interval can be wrong."""
    made = space(batch=Values((8, 16)), seed=Values(tuple(range(seeds)), crossed=True))
    random = np.random.default_rng(0)
    wrong = [comparisons(made, trainings(made, lambda o: random.standard_normal()))[0].certain for _ in range(600)]
    assert 0.02 < np.mean(wrong) < 0.085  # 0.05 with a standard error of 0.009


@pytest.mark.slow
def test_what_a_seed_does_to_all_configurations_is_no_difference_of_the_option():
    """Trainings with one seed are drawn together: nine pairs of three seeds are not nine observations."""
    made, random, wrong = grid(), np.random.default_rng(0), []
    for _ in range(300):
        by_seed = random.standard_normal((3, 2))
        found = trainings(made, lambda o, by_seed=by_seed: by_seed[o["seed"], int(o["batch"] == 16)])
        wrong.append(comparisons(made, found)[0].certain)
    assert np.mean(wrong) < 0.1


def test_drawn_configurations_are_compared_without_pairs():
    made = space("random", learning_rate=Range(0.0, 1.0, False, False), seed=Values((0, 1), crossed=True))
    random = np.random.default_rng(0)
    drawn = random.random(12)
    found = [
        Training(n, "COMPLETE", {"learning_rate": drawn[n // 2], "seed": n % 2}, (float(drawn[n // 2] > 0.5),), {}, [])
        for n in range(24)
    ]
    first = comparisons(made, found)[0]
    assert (first.option, first.pairs, first.units) == ("learning_rate", 0, 3)
    assert "at least 3 configurations each" in in_words(made, first)


def test_importance_is_the_share_of_variance():
    random = np.random.default_rng(0)
    made = grid()
    found = trainings(made, lambda o: 2.0 * (o["batch"] == 16) + 0.1 * random.standard_normal())
    shares = importance(made, found)
    assert next(iter(shares)) == "batch" and shares["batch"] > 0.98
    assert shares["epochs"] < 0.1 and shares["seed"] < 0.1


def test_what_one_option_explains_is_no_noise_for_another():
    """Of equally spaced effects the squares are 4 * 2 / 3 and 0.25, and every seed has the same noise."""
    made = grid(seeds=4)
    noise = {0: 0.1, 1: -0.1, 2: 0.1, 3: -0.1}
    found = trainings(made, lambda o: 2.0 * o["epochs"] + 1.0 * (o["batch"] == 16) + noise[o["seed"]])
    shares = importance(made, found)
    whole = 8 / 3 + 0.25 + 0.01
    assert list(shares) == ["epochs", "batch", "seed"]
    assert shares["epochs"] == pytest.approx(8 / 3 / whole) and shares["batch"] == pytest.approx(0.25 / whole)
    assert shares["seed"] == pytest.approx(0.01 / whole)


def test_effects_and_spread_over_seeds():
    made = space(batch=Values((8, 16)), seed=Values((0, 1), crossed=True))
    found = trainings(made, lambda o: float(o["batch"]) + o["seed"])
    rows = {
        (each.option, each.value): (each.trainings, each.mean, each.spread, each.best) for each in effects(made, found)
    }
    assert rows["batch", "16"] == (2, 16.5, pytest.approx(np.sqrt(0.5)), 17.0)
    assert rows["seed", "1"] == (2, 13.0, None, 17.0)
    assert seed_spread(configurations(made, found)) == pytest.approx(np.sqrt(0.5))
    assert [each.means for each in configurations(made, found)] == [(16.5,), (8.5,)]


def test_the_front_holds_what_nothing_beats():
    made = space(objectives=["accuracy", "seconds"], epochs=Values((1, 2, 3, 4)), seed=Values((0,), crossed=True))
    found = trainings(made, lambda o: {1: (0.5, 1.0), 2: (0.9, 2.0), 3: (0.8, 3.0), 4: (0.9, 2.0)}[o["epochs"]])
    best = front(made, configurations(made, found))
    assert sorted(each.options["epochs"] for each in best) == [1, 2, 4]


def test_pruned_and_failed_trainings_are_in_no_mean():
    made = space(batch=Values((8, 16)), seed=Values((0,), crossed=True))
    found = trainings(made, lambda o: 0.5)
    found.append(Training(9, "PRUNED", {"batch": 8, "seed": 0}, (0.1,), {}, []))
    found.append(Training(10, "FAIL", {"batch": 8, "seed": 0}, (), {}, [], "the loss became nan"))
    assert {each.mean for each in effects(made, found)} == {0.5}


def test_students_t():
    assert student(1) == 12.706 and student(30) == 2.042
    assert abs(student(60) - 2.000) < 0.003 and abs(student(1000) - 1.962) < 0.001
