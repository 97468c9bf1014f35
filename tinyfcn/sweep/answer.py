"""What a study found: its best configurations, how much each option matters, and how certain a difference is.

A difference between two values of an option is called one only if its 95 % interval leaves out 0. Where trainings are
equal but for that option, they are compared in pairs, and the interval comes of a bootstrap over the seeds: trainings
with one seed have their initial weights and batches in common, so they are drawn together. The interval is the
difference plus and minus Student's t times the bootstrap's standard error. The percentiles of so few seeds would be too
narrow. Hesterberg, "What teachers should know about the bootstrap" (2015), 4.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import hypot
from typing import Any

import numpy as np

from tinyfcn.sweep.space import SEED, Space, Values

RESAMPLES = 2000
BINS = 4  # of equal count, into which the drawn numbers of a range are put
# The 97.5th percentile of Student's t for 1 .. 30 degrees of freedom.
# fmt: off
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
           2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)
# fmt: on


@dataclass(frozen=True)
class Training:
    """A finished training. state: Optuna's. values: of the objectives; () if it failed. lines: its evaluations."""

    number: int
    state: str
    options: Mapping[str, Any]
    values: tuple[float, ...]
    figures: Mapping[str, Any]
    lines: Sequence[Mapping[str, Any]]
    error: str = ""

    @property
    def configuration(self) -> dict[str, Any]:
        """The options without the seed."""
        return {name: value for name, value in self.options.items() if name != SEED}


@dataclass(frozen=True)
class Configuration:
    """Trainings that differ in nothing but the seed. means: of each objective. spread: the first one's over the seeds.

    spread is the sample standard deviation; None of a single training.
    """

    options: Mapping[str, Any]
    trainings: Sequence[Training]
    means: tuple[float, ...]
    spread: float | None


@dataclass(frozen=True)
class Effect:
    """What trainings with one value of an option came to. spread: over the seeds, pooled over the configurations."""

    option: str
    value: str
    trainings: int
    mean: float
    spread: float | None
    best: float


@dataclass(frozen=True)
class Comparison:
    """Two values of an option, `value` with the better mean. difference: its mean minus the other's.

    low, high: the 95 % interval of the difference; None where it cannot be known. pairs: trainings that differ in the
    option alone; 0 if there are none, and then drawn configurations are compared that differ in other options too.
    units: the seeds, or the fewer configurations of the two values, over which the bootstrap went.
    """

    option: str
    value: str
    other: str
    difference: float
    low: float | None
    high: float | None
    pairs: int
    units: int

    @property
    def certain(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def completed(trainings: Sequence[Training]) -> list[Training]:
    """Those that ran to their end."""
    return [each for each in trainings if each.state == "COMPLETE"]


def configurations(space: Space, trainings: Sequence[Training]) -> list[Configuration]:
    """The configurations of the completed trainings, the best mean of the first objective first."""
    grouped: dict[Hashable, list[Training]] = {}
    for each in completed(trainings):
        grouped.setdefault(_key(each.configuration), []).append(each)
    found = []
    for group in grouped.values():
        values = np.array([each.values for each in group])
        spread = float(values[:, 0].std(ddof=1)) if len(group) > 1 else None
        found.append(Configuration(group[0].configuration, group, tuple(values.mean(axis=0).tolist()), spread))
    return sorted(found, key=lambda each: _worse(space, 0) * each.means[0])


def front(space: Space, found: Sequence[Configuration]) -> list[Configuration]:
    """The Pareto front: those that no other configuration equals or beats in every objective, and beats in one."""
    signs = np.array([_worse(space, objective) for objective in range(len(space.objectives))])

    def beats(one: Configuration, other: Configuration) -> bool:
        a, b = signs * one.means, signs * other.means
        return bool((a <= b).all() and (a < b).any())

    return [each for each in found if not any(beats(other, each) for other in found)]


def seed_spread(found: Sequence[Configuration], objective: int = 0) -> float | None:
    """The standard deviation over the seeds, pooled over configurations; None where none has two trainings."""
    return _pooled([np.array([each.values[objective] for each in one.trainings]) for one in found])


def effects(space: Space, trainings: Sequence[Training], objective: int = 0) -> list[Effect]:
    """What each value of each option came to, in the options' order; a range's values in bins of equal count."""
    found = []
    for option in space.space:
        labels = _labels(space, completed(trainings), option)
        for label in dict.fromkeys(labels.values()):
            group = [each for each in completed(trainings) if labels[each.number] == label]
            values = np.array([each.values[objective] for each in group])
            ordered = sorted(group, key=lambda each: repr(_key(each.configuration)))
            by_seed = [
                np.array([each.values[objective] for each in one])
                for _, one in groupby(ordered, key=lambda each: _key(each.configuration))
            ]
            best = float(values.max() if space.directions[objective] == "maximize" else values.min())
            found.append(Effect(option, label, len(group), float(values.mean()), _pooled(by_seed), best))
    return found


def importance(space: Space, trainings: Sequence[Training], objective: int = 0) -> dict[str, float]:
    """The share of the objective's variance that each option explains alone: omega squared, from 0 to 1, largest first.

    What all options together do not explain, as a sum of an effect of each, counts as noise. Hays, "Statistics" (1963).
    In a study that TPE drew, the shares are of the trainings that it chose.
    """
    rows = completed(trainings)
    values = np.array([each.values[objective] for each in rows])
    total = float(((values - values.mean()) ** 2).sum()) if rows else 0.0
    members: dict[str, np.ndarray] = {}  # of each option: which of its values a training has, (trainings, values)
    for option in space.space:
        labels = _labels(space, rows, option)
        names = list(dict.fromkeys(labels.values()))
        if 2 <= len(names) < len(rows) and total > 0:
            members[option] = np.array([[labels[each.number] == name for name in names] for each in rows], float)

    def left(*options: str) -> tuple[float, int]:
        """The squares that a sum of an effect of each option does not explain, and the trainings beyond its effects."""
        design = np.hstack([np.ones((len(rows), 1)), *(members[option] for option in options)])
        fitted, _, rank, _ = np.linalg.lstsq(design, values, rcond=None)
        return float(((values - design @ fitted) ** 2).sum()), len(rows) - int(rank)

    shares = {}
    unexplained, freedom = left(*members)
    for option, of_values in members.items():
        within, freedom_within = left(option)
        noise = unexplained / freedom if freedom else within / freedom_within
        shares[option] = max(0.0, (total - within - (of_values.shape[1] - 1) * noise) / (total + noise))
    return dict(sorted(shares.items(), key=lambda each: -each[1]))


def comparisons(space: Space, trainings: Sequence[Training], objective: int = 0) -> list[Comparison]:
    """Of each option, the value with the best mean against each other value."""
    found = []
    for option in space.space:
        means = {each.value: each.mean for each in effects(space, trainings, objective) if each.option == option}
        if option == SEED or len(means) < 2:
            continue
        best = min(means, key=lambda value: _worse(space, objective) * means[value])
        found += [_compare(space, trainings, objective, option, best, value) for value in means if value != best]
    return found


def in_words(space: Space, each: Comparison, objective: int = 0) -> str:
    """A comparison as a sentence, which calls nothing better that may be chance."""
    figure = space.objectives[objective]
    values = f"{each.option}: {each.value}"
    how = f"{each.units} seeds, {each.pairs} pairs" if each.pairs else f"at least {each.units} configurations each"
    if each.low is None or each.high is None:
        few = "seed" if each.pairs else "configuration"
        return f"{values} against {each.other}: one {few} alone cannot tell ({figure} {each.difference:+.4f})"
    interval = f"{figure} {each.difference:+.4f}, 95 % interval {each.low:+.4f} to {each.high:+.4f}; {how}"
    if not each.certain:
        return f"{values} and {each.other} are not told apart ({interval})"
    better = (each.difference > 0) == (space.directions[objective] == "maximize")
    return f"{values} is {'better' if better else 'worse'} than {each.other} ({interval})"


def _compare(
    space: Space, trainings: Sequence[Training], objective: int, option: str, value: str, other: str
) -> Comparison:
    rows = completed(trainings)
    labels = _labels(space, rows, option)
    sides = [[each for each in rows if labels[each.number] == label] for label in (value, other)]
    rest = [{_key(each.options, option): each for each in side} for side in sides]
    shared = [key for key in rest[0] if key in rest[1]] if isinstance(space.space[option], Values) else []
    random = np.random.default_rng(0)
    if shared:
        by_seed: dict[Any, list[float]] = {}
        for key in shared:
            with_value, with_other = rest[0][key], rest[1][key]
            gain = with_value.values[objective] - with_other.values[objective]
            by_seed.setdefault(with_value.options[SEED], []).append(gain)
        difference = float(np.mean([each for group in by_seed.values() for each in group]))
        error, units = _standard_error(list(by_seed.values()), random), len(by_seed)
    else:
        means = [[[value] for value in _means_by_draw(space, side, objective)] for side in sides]
        difference = float(np.mean(means[0]) - np.mean(means[1]))
        one, two = (_standard_error(side, random) for side in means)
        error, units = None if one is None or two is None else hypot(one, two), min(map(len, means))
    if error is None:
        return Comparison(option, value, other, difference, None, None, len(shared), units)
    reach = student(units - 1) * error
    return Comparison(option, value, other, difference, difference - reach, difference + reach, len(shared), units)


def _standard_error(groups: Sequence[Sequence[float]], random: np.random.Generator) -> float | None:
    """The standard error of the mean of all numbers, by a bootstrap that draws whole groups; None of a single group."""
    n = len(groups)
    if n < 2:
        return None
    sums, counts = np.array([sum(group) for group in groups]), np.array([len(group) for group in groups])
    drawn = random.integers(0, n, (RESAMPLES, n))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    return float(means.std() * np.sqrt(n / (n - 1)))  # a resample of n draws has (n - 1) / n of the variance


def student(freedom: int) -> float:
    """The 97.5th percentile of Student's t."""
    return STUDENT[freedom - 1] if freedom <= len(STUDENT) else 1.96 + 2.5 / freedom


def _means_by_draw(space: Space, trainings: Sequence[Training], objective: int) -> list[float]:
    """The mean of the trainings of each drawn configuration: its members are not independent of each other."""
    grouped: dict[Hashable, list[float]] = {}
    for each in trainings:
        drawn = {name: each.options[name] for name in space.drawn}
        grouped.setdefault(_key(drawn), []).append(each.values[objective])
    return [float(np.mean(group)) for group in grouped.values()]


def _labels(space: Space, trainings: Sequence[Training], option: str) -> dict[int, str]:
    """The value of an option as text, by the training's number; of a range, the bin."""
    values = {each.number: each.options[option] for each in trainings}
    if isinstance(space.space[option], Values) or not values:
        order = {shown_value(value): None for value in getattr(space.space[option], "values", ())}
        labels = {number: shown_value(value) for number, value in values.items()}
        return dict(sorted(labels.items(), key=lambda each: list(order).index(each[1])))
    distinct = np.array(sorted({*values.values()}), float)
    labels = {}
    for some in np.array_split(distinct, min(BINS, len(distinct))):
        name = f"{some[0]:.3g} .. {some[-1]:.3g}" if len(some) > 1 else f"{some[0]:.3g}"
        labels |= {number: name for number, value in values.items() if some[0] <= value <= some[-1]}
    return labels


def shown_value(value: object) -> str:
    """An option's value in a table: true, 0.01, skip."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _key(options: Mapping[str, Any], without: str = "") -> Hashable:
    return tuple((name, value) for name, value in sorted(options.items()) if name != without)


def _pooled(groups: Sequence[np.ndarray]) -> float | None:
    """The standard deviation within groups; None if no group has two values."""
    several = [group for group in groups if len(group) > 1]
    if not several:
        return None
    squares = sum(float(((group - group.mean()) ** 2).sum()) for group in several)
    return float(np.sqrt(squares / sum(len(group) - 1 for group in several)))


def _worse(space: Space, objective: int) -> int:
    """1 if more of the objective is worse, else -1."""
    return -1 if space.directions[objective] == "maximize" else 1
