"""The file of a study, SPACE.toml, read and checked before any training.

    command = "train-fcn"                           or "train-cnn"
    sampler = "grid"                                or "random", or "tpe", which learns from the trainings so far
    pruner = "none"                                 or "median", or "hyperband": ends what is behind at an evaluation
    objectives = ["digit_miou", "parameters"]       of several, the answer is a Pareto front
    seeds = [0, 1, 2]                               every configuration is trained with each of them

    [fixed]
    steps = 600

    [space]
    batch = [8, 16]                                 one of these
    learning_rate = {low = 1e-3, high = 1e-1, log = true}
    reduce = {grid = ["first", "last"]}             every one of these for each configuration of the others

The options are those of the command, by their names in config.json.
"""

import difflib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import combinations, product
from pathlib import Path
from typing import Any, Literal

from tinyfcn.errors import CheckpointError, DataError, TinyfcnError
from tinyfcn.fields import expect_choice, expect_number, shown
from tinyfcn.networks import DESIGNS, OPTIONS, Design
from tinyfcn.networks.design import foreign
from tinyfcn.runs import newest_finished, state_file
from tinyfcn.training import ClassifierSettings, FcnSettings
from tinyfcn.training.settings import BOUNDS, PATHS, fcn_settings

SAMPLERS = ("grid", "random", "tpe")
PRUNERS = ("none", "median", "hyperband")
# The figures that an objective may be: of which more is better, by the command, and less.
OBJECTIVES = {
    "train-cnn": ("accuracy",),
    "train-fcn": ("digit_miou", "miou", "ink_iou", "pixel_accuracy", "article_iou"),
}
LESS_IS_BETTER = ("loss", "parameters", "seconds")
ONCE = ("parameters", "seconds")  # objectives that no evaluation on the way measures
KEYS = ("command", "sampler", "pruner", "objectives", "seeds", "fixed", "space")
GROUPS = 20  # configurations to draw unless --trials says how many trainings
SEED, FROM_SCRATCH, DESIGN = "seed", "from_scratch", "design"

Options = dict[str, Any]
Direction = Literal["maximize", "minimize"]


@dataclass(frozen=True)
class Values:
    """Listed values of an option. crossed: each of them is tried with every configuration of the other options."""

    values: tuple[Any, ...]
    crossed: bool = False


@dataclass(frozen=True)
class Range:
    """A range of numbers, whole ones if `whole`; log: drawn evenly in the logarithm."""

    low: float
    high: float
    log: bool
    whole: bool


@dataclass(frozen=True)
class Space:
    """What SPACE.toml says. space: by option, the values to try; the seed is the last of them."""

    name: str
    command: str
    fixed: Mapping[str, Any]
    space: Mapping[str, Values | Range]
    sampler: str
    pruner: str
    objectives: tuple[str, ...]

    @property
    def directions(self) -> list[Direction]:
        """ "maximize" or "minimize" for each objective."""
        figures = OBJECTIVES[self.command]
        return ["maximize" if each in figures else "minimize" for each in self.objectives]

    @cached_property
    def members(self) -> list[Options]:
        """The crossed options' values, every combination of them, with the first seed's before the second's."""
        crossed = {
            name: each.values for name, each in self.space.items() if isinstance(each, Values) and self.is_crossed(name)
        }
        return [dict(zip(crossed, reversed(values), strict=True)) for values in product(*reversed(crossed.values()))]

    @property
    def drawn(self) -> list[str]:
        """The options that the sampler draws, once for all members of a group."""
        return [name for name in self.space if not self.is_crossed(name)]

    def is_crossed(self, name: str) -> bool:
        """Whether an option's values are all tried, rather than drawn."""
        each = self.space[name]
        return isinstance(each, Values) and (each.crossed or self.sampler == "grid")

    def default_trials(self) -> int:
        """How many trainings a study has unless it is told: the whole grid, or GROUPS configurations."""
        return len(self.members) * (1 if self.sampler == "grid" else GROUPS)

    def settings(self, options: Mapping[str, Any], newest: Path | None) -> ClassifierSettings | FcnSettings:
        """The settings of a training: `options` over the fixed ones. newest: the classifier if none is named.

        Raises:
            ValueError: an option has no such value, or options exclude each other.
        """
        chosen = {**self.fixed, **options}
        for name in PATHS:
            if isinstance(chosen.get(name), str) and name != "cnn":
                chosen[name] = str(Path(chosen[name]).resolve())
        if self.command == "train-cnn":
            return ClassifierSettings(**chosen)
        from_scratch = chosen.pop(FROM_SCRATCH, False)
        expect_choice(FROM_SCRATCH, from_scratch, (False, True))
        design, cnn = chosen.pop(DESIGN, Design.name), chosen.pop("cnn", None)
        expect_choice(DESIGN, design, [name for name, network in DESIGNS.items() if network.per_pixel])
        if cnn is not None and not isinstance(cnn, str):
            raise ValueError(f"cnn must be the path of a run, got {shown(cnn)}")
        named = Path(cnn) if cnn and not from_scratch else None  # a study may name it for its pretrained half alone
        return fcn_settings(design, chosen, named, from_scratch, lambda: newest or Path())

    def combinations(self, most: int = 3) -> Iterator[Options]:
        """Every combination of the listed values of up to `most` options, the others at their first."""
        listed = {n: each.values for n, each in self.space.items() if n != SEED and isinstance(each, Values)}
        first = {n: each.values[0] if isinstance(each, Values) else each.low for n, each in self.space.items()}
        for names in combinations(listed, min(most, len(listed))):
            for values in product(*(listed[name] for name in names)):
                yield {**first, **dict(zip(names, values, strict=True))}

    def classifier(self) -> Path | None:
        """The newest finished classifier in runs/, where trainings begin with one and none is named.

        Raises:
            CheckpointError: there is none, or one that is named does not exist.
        """
        if self.command == "train-cnn":
            return None
        settings = [self.settings(options, None) for options in self.combinations()]
        wanted = {each.cnn for each in settings if isinstance(each, FcnSettings)}
        missing = str(Path().resolve())
        for path in sorted(each for each in wanted if each is not None and each != missing):
            if not state_file(Path(path)).is_file():
                raise CheckpointError(f"{path} is no trained classifier: train it first, see tinyfcn train-cnn --help")
        if missing not in wanted:
            return None
        run = newest_finished("cnn")
        if run is None:
            raise CheckpointError(
                "there is no finished classifier in runs/: run tinyfcn train-cnn first, or name one: [fixed] cnn"
            )
        return run.folder.resolve()


def read_space(path: Path) -> Space:
    """The study in a file.

    Raises:
        DataError: the file cannot be read.
        TinyfcnError: one line for each fault of the file.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}): name a file such as those in experiments/"
        ) from None
    except ValueError as error:
        raise TinyfcnError(f"{path} is not TOML: {error}") from None
    faults: list[str] = []
    space = _parsed(path.stem, content, faults)
    if space is not None and not faults:
        faults += _refused(space)
    if not (faults or content.get("space") or "seeds" in content):
        faults.append("there is nothing to try: list options in [space], or seeds = [0, 1, 2]")
    if faults:
        raise TinyfcnError("\n".join(f"{path}: {fault}" for fault in dict.fromkeys(faults)))
    assert space is not None
    return space


def _parsed(name: str, content: Mapping[str, Any], faults: list[str]) -> Space | None:
    """The space, whose options have names and kinds that the command knows; None if that cannot be said."""

    def choice(key: str, default: str, choices: Sequence[str]) -> str:
        try:
            expect_choice(key, content.get(key, default), choices)
        except ValueError as error:
            faults.append(str(error))
            return default
        return content.get(key, default)

    faults += [f"unknown key {shown(key)}, expected {', '.join(KEYS)}" for key in content if key not in KEYS]
    command = choice("command", "train-fcn", [*OBJECTIVES])
    sampler, pruner = choice("sampler", "grid", SAMPLERS), choice("pruner", "none", PRUNERS)
    tables = {key: content.get(key, {}) for key in ("fixed", "space")}
    for key, table in tables.items():
        if not isinstance(table, dict):
            faults.append(f"{key} must be a table, [{key}], got {shown(table)}")
            return None
        known = known_options(command)
        for option in table:
            if option == SEED:
                faults.append(f"[{key}] seed: list the seeds above all tables instead, such as seeds = [0, 1, 2]")
            elif option not in known:
                near = difflib.get_close_matches(option, known, 1)
                hint = f"did you mean {near[0]}?" if near else f"{command} has {', '.join(known)}"
                faults.append(f"[{key}] {option}: unknown option; {hint}")
    faults += [
        f"[fixed] {option} is in [space] too: leave out one" for option in tables["fixed"] if option in tables["space"]
    ]
    space: dict[str, Values | Range] = {}
    for option, each in {**tables["space"], SEED: content.get("seeds", [0])}.items():
        try:
            space[option] = _dimension(option, each, sampler)
        except ValueError as error:
            faults.append(f"seeds: {error}" if option == SEED else f"[space] {option}: {error}")
    figures = [*OBJECTIVES[command], *LESS_IS_BETTER]
    objectives = content.get("objectives", figures[:1])
    if not isinstance(objectives, list) or not objectives or len({*map(str, objectives)}) < len(objectives):
        faults.append(f"objectives must be a list of different figures, got {shown(objectives)}")
        objectives = figures[:1]
    faults += [
        f"objectives: {shown(each)} is none of {', '.join(figures)}" for each in objectives if each not in figures
    ]
    if pruner != "none" and (len(objectives) > 1 or objectives[0] in ONCE):
        faults.append(
            f"pruner {pruner} compares one figure at the evaluations: name one objective, not seconds or parameters"
        )
    return Space(name, command, tables["fixed"], space, sampler, pruner, tuple(objectives))


def known_options(command: str) -> list[str]:
    """The options that a study of a command may name."""
    kind = ClassifierSettings if command == "train-cnn" else FcnSettings
    # A worker's threads are its share of the cores.
    names = [each.name for each in fields(kind) if each.name not in (SEED, "threads")]
    if command == "train-fcn":
        names += [*(each.name for each in OPTIONS if each.name not in names), FROM_SCRATCH]
    return names


def _dimension(option: str, each: object, sampler: str) -> Values | Range:
    """The values that the file gives to an option; ValueError if they are none."""
    if isinstance(each, list):
        return _values(each, crossed=option == SEED)
    if not isinstance(each, dict):
        raise ValueError(f"expected a list, {{grid = [...]}} or {{low = ..., high = ...}}, got {shown(each)}")
    if "grid" in each:
        if unknown := [key for key in each if key != "grid"]:
            raise ValueError(f"a grid has no {unknown[0]}")
        if not isinstance(each["grid"], list):
            raise ValueError(f"grid must be a list, got {shown(each['grid'])}")
        return _values(each["grid"], crossed=True)
    if unknown := [key for key in each if key not in ("low", "high", "log")]:
        raise ValueError(f"a range has low, high and perhaps log, and no {unknown[0]}")
    if missing := [key for key in ("low", "high") if key not in each]:
        raise ValueError(f"a range has low and high: {missing[0]} is missing")
    if option not in BOUNDS:
        raise ValueError("this option is no number: list its values")
    if sampler == "grid":
        raise ValueError('a grid has no ranges: list values, or choose sampler = "random" or "tpe"')
    whole = isinstance(BOUNDS[option][0], int)
    low, high = each["low"], each["high"]
    for value in (low, high):
        expect_number(option, value, *BOUNDS[option])
    if low >= high:
        raise ValueError(f"the range is empty: low must be below high, got {low} and {high}")
    log = each.get("log", False)
    expect_choice("log", log, (False, True))
    if log and low <= 0:
        raise ValueError(f"a logarithmic range begins above 0, got {low}")
    return Range(low, high, log, whole)


def _values(values: list[Any], crossed: bool) -> Values:
    if not values:
        raise ValueError("the list is empty: give at least one value")
    if kinds := [value for value in values if not isinstance(value, (bool, int, float, str))]:
        raise ValueError(f"expected numbers, texts, true or false, got {shown(kinds[0])}")
    if len({(type(value), value) for value in values}) < len(values):
        raise ValueError(f"the values must differ, got {shown(values)}")
    return Values(tuple(values), crossed)


def _refused(space: Space) -> list[str]:
    """What the settings and the designs refuse of the values, one line for each."""
    faults = []
    named = {"fixed": space.fixed, "space": {name: each for name, each in space.space.items() if name != SEED}}
    designs = space.space[DESIGN] if DESIGN in space.space else space.fixed.get(DESIGN, Design.name)
    for design in designs.values if isinstance(designs, Values) else [designs]:
        if space.command == "train-fcn" and isinstance(design, str) and design in DESIGNS:
            for key, table in named.items():
                for option in (option for option in OPTIONS if option.name in table):
                    if option not in DESIGNS[design].options:
                        faults.append(f"[{key}] {option.name}: {foreign(option, option.flag, design)}")
    if faults:
        return faults
    for key, value in {**space.fixed, **{SEED: 0}}.items():
        try:
            replace(space, fixed={key: value} if key != SEED else {}, space={}).settings({}, None)
        except ValueError as error:
            if _about(key, error):
                faults.append(f"[fixed] {error}")
    for key, each in space.space.items():
        values = each.values if isinstance(each, Values) else (each.low, each.high)
        for value in values:
            try:
                replace(space, fixed={}).settings({key: value}, None)
            except ValueError as error:
                if _about(key, error):
                    faults.append(f"{'seeds' if key == SEED else '[space]'}: {error}")
    if faults:
        return faults
    for options in space.combinations():
        words = ", ".join(f"{name} {options[name]}" for name in options if name != SEED)
        try:
            settings = space.settings(options, None)
        except ValueError as error:
            return [f"[space] {words}: {error}" if words else str(error)]
        if isinstance(settings, FcnSettings) and (unknown := _unmeasured(space, settings)):
            return [f"objectives: {unknown} is not measured with {words or 'these options'}"]
    return []


def _about(option: str, error: ValueError) -> bool:
    """Whether an error is about the option alone, and not about what it goes together with."""
    return str(error).startswith(f"{option} must")


def _unmeasured(space: Space, settings: FcnSettings) -> str | None:
    """The objective that trainings with such settings have no figure for."""
    none = []
    if settings.design.labels == "binary":
        none.append("digit_miou")
    if not settings.design.network_class.has_background:
        none += ["miou", "ink_iou"]
    return next((each for each in space.objectives if each in none), None)
