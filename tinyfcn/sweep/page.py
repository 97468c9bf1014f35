"""A study's answer as tables, figures, CSV, JSON, and one page of HTML that holds everything."""

import base64
import csv
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tinyfcn.figures import GREY, HEADER, INK, LINES, add_axes, learning_curves, new_page
from tinyfcn.files import new_file
from tinyfcn.sweep.answer import (
    Configuration,
    Training,
    comparisons,
    completed,
    configurations,
    effects,
    front,
    importance,
    in_words,
    seed_spread,
    shown_value,
)
from tinyfcn.sweep.space import SEED, Space
from tinyfcn.sweep.study import ERROR, METRICS, RESULT, Study

BEST = 10  # configurations in a table
CURVES = 6  # configurations whose learning curves are drawn
WAY_OUT = "free some space, or name another file"
PAGE = "answer.html"

Rows = list[dict[str, str]]

STYLE = """body{font:16px/1.5 system-ui,sans-serif;color:#22252b;max-width:60rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.2rem .8rem .2rem 0;text-align:left;border-bottom:1px solid
#e2e4e8}th.n,td.n{text-align:right;font-variant-numeric:tabular-nums}img{max-width:100%}pre{background:#f6f7f9;
padding:1rem;overflow:auto}"""


class Answer:
    """What a study found so far."""

    def __init__(self, study: Study) -> None:
        self.space: Space = study.space
        self.name, self.size = study.name, study.size
        self.trainings = [
            Training(
                trial.number,
                trial.state.name,
                {option: trial.params[option] for option in self.space.space if option in trial.params},
                tuple(trial.values or ()),
                {name: value for name, value in trial.user_attrs.get(RESULT, {}).items() if name != ERROR},
                trial.user_attrs.get(METRICS, []),
                trial.user_attrs.get(ERROR, ""),
            )
            for trial in study.finished()
        ]
        self.configurations = configurations(self.space, self.trainings)

    def summary(self) -> str:
        """How many trainings ended how, in a line."""
        states = [each.state for each in self.trainings]
        parts = [f"{len(states)} of {self.size} trainings are finished"]
        parts += [f"{states.count(state)} {word}" for state, word in (("PRUNED", "pruned"), ("FAIL", "failed"))
                  if state in states]  # fmt: skip
        return ", ".join(parts)

    def tables(self) -> dict[str, Rows]:
        """The tables by their titles. A column whose name ends with ">" holds numbers."""
        space, objectives = self.space, self.space.objectives
        found = {"best configurations, means over the seeds": [self._row(each) for each in self.configurations[:BEST]]}
        if len(objectives) > 1:
            best = sorted(front(space, self.configurations), key=lambda each: each.means[-1])
            found["Pareto front"] = [self._row(each) for each in best]
        for number, objective in enumerate(objectives):
            shares = importance(space, self.trainings, number)
            found[f"importance for {objective}"] = [
                {"option": option, "share of variance>": f"{share:.0%}"} for option, share in shares.items()
            ]
            found[f"effect on {objective}"] = [
                {
                    "option": each.option,
                    "value": each.value,
                    "trainings>": f"{each.trainings}",
                    "mean>": _number(each.mean),
                    "spread over seeds>": "" if each.spread is None or each.option == SEED else _number(each.spread),
                    "best>": _number(each.best),
                }
                for each in effects(space, self.trainings, number)
            ]
        failed = [each for each in self.trainings if each.error]
        found["failed"] = [{"trial": f"{each.number}", "why": each.error} for each in failed]
        return {title: rows for title, rows in found.items() if rows}

    def _row(self, each: Configuration) -> dict[str, str]:
        objectives = self.space.objectives
        row = {option: shown_value(value) for option, value in each.options.items()}
        row |= {f"{name}>": _number(value) for name, value in zip(objectives, each.means, strict=True)}
        spread = "" if each.spread is None else _number(each.spread)
        return row | {"spread over seeds>": spread, "seeds>": f"{len(each.trainings)}"}

    def sentences(self) -> list[str]:
        """What can be said, and how certain it is."""
        found = []
        for number, objective in enumerate(self.space.objectives):
            spread = seed_spread(self.configurations, number)
            if spread:
                found.append(f"{objective} moves with the seed by {_number(spread)} (standard deviation)")
            found += [in_words(self.space, each, number) for each in comparisons(self.space, self.trainings, number)]
        if any(each.state == "PRUNED" for each in self.trainings):
            found.append(
                "pruned trainings are in no mean: those of weak values are the means of their better trainings"
            )
        if self.space.sampler == "tpe" and found:
            found.append("TPE drew what it thought good: to be sure of a difference, cross the option, {grid = [...]}")
        return found

    def figures(self, folder: Path) -> list[Path]:
        """Draws the figures into a folder."""
        if not self.configurations:
            return []
        made = [_draw_effects(folder / "effects.png", self.space, completed(self.trainings))]
        shares = importance(self.space, self.trainings)
        if shares:
            made.append(_draw_importance(folder / "importance.png", self.space, shares))
        curves = {
            f"{number}. {_words(each.options)}"[:60]: each.trainings[0].lines
            for number, each in enumerate(self.configurations[:CURVES], 1)
        }
        if all(len(lines) > 0 for lines in curves.values()):
            made.append(
                learning_curves(
                    folder / "learning-curves.png", curves, title="The best configurations, each with its first seed"
                )
            )
        if len(self.space.objectives) > 1:
            made.append(_draw_front(folder / "pareto-front.png", self.space, self.configurations))
        return made

    def as_csv(self) -> str:
        """One line for each finished training."""
        figures = sorted({name for each in self.trainings for name in each.figures})
        names = ["trial", "state", *self.space.space, *figures, "error"]
        text = io.StringIO()
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        for each in self.trainings:
            row = {"trial": each.number, "state": each.state, "error": each.error}
            writer.writerow({**row, **each.options, **each.figures})
        return text.getvalue()

    def as_json(self) -> dict[str, Any]:
        """All of the answer."""
        space = self.space
        return {
            "study": self.name,
            "objectives": dict(zip(space.objectives, space.directions, strict=True)),
            "trainings": [asdict(each) for each in self.trainings],
            "configurations": [
                {"options": each.options, "means": each.means, "spread": each.spread, "seeds": len(each.trainings)}
                for each in self.configurations
            ],
            "importance": [importance(space, self.trainings, number) for number in range(len(space.objectives))],
            "effects": [
                [asdict(each) for each in effects(space, self.trainings, number)]
                for number in range(len(space.objectives))
            ],
            "comparisons": [
                [{**asdict(each), "certain": each.certain} for each in comparisons(space, self.trainings, number)]
                for number in range(len(space.objectives))
            ],
            "sentences": self.sentences(),
        }

    def write_page(self, path: Path, space_text: str, drawn: Sequence[Path]) -> None:
        """One page of HTML that holds tables and figures, and needs no other file."""
        parts = [f"<h1>{html.escape(self.name)}</h1>", f"<p>{html.escape(self.summary())}</p>", "<h2>findings</h2><ul>"]
        parts += [f"<li>{html.escape(sentence)}</li>" for sentence in self.sentences()]
        parts.append("</ul>")
        for title, rows in self.tables().items():
            parts += [f"<h2>{html.escape(title)}</h2>", _html_table(rows)]
        for figure in drawn:
            data = base64.b64encode(figure.read_bytes()).decode()
            name = figure.stem.replace("-", " ")
            parts.append(f'<h2>{name}</h2><img alt="{name}" src="data:image/png;base64,{data}">')
        parts.append(f"<h2>the study</h2><pre>{html.escape(space_text)}</pre>")
        head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(self.name)}</title>'
        with new_file(path, WAY_OUT) as file:
            file.write(f"{head}<style>{STYLE}</style>\n{chr(10).join(parts)}\n</html>\n".encode())


def _html_table(rows: Rows) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))

    def line(cell: str, texts: Mapping[str, str]) -> str:
        cells = (
            f"<{cell}{' class=n' if name.endswith('>') else ''}>{html.escape(texts.get(name, ''))}</{cell}>"
            for name in names
        )
        return f"<tr>{''.join(cells)}</tr>"

    head = line("th", {name: name.removesuffix(">") for name in names})
    return f"<table>{head}{''.join(line('td', row) for row in rows)}</table>"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4f}"


def _words(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {shown_value(value)}" for name, value in options.items()) or "as it is"


def _draw_effects(path: Path, space: Space, trainings: Sequence[Training]) -> Path:
    """The first objective of every training over each option: a dot each, and the mean of each value."""
    options, size, gap = list(space.space), 380, 90
    rows = -(-len(options) // 4)
    width = max(900, 130 + min(len(options), 4) * (size + gap))
    title, note = "What each option does", "a dot is a training, a line the mean of a value"
    with new_page(path, width, HEADER + rows * (size + 130) - 90, title, note) as figure:
        for number, option in enumerate(options):
            x, y = 130 + number % 4 * (size + gap), HEADER + 20 + number // 4 * (size + 130)
            axes = add_axes(figure, x, y, size, size - 60)
            labels = [shown_value(value) for value in getattr(space.space[option], "values", ())]
            values = [each.values[0] for each in trainings]
            if labels:
                where = np.array([labels.index(shown_value(each.options[option])) for each in trainings], float)
                for position in np.unique(where):
                    mean = np.mean([value for value, at in zip(values, where, strict=True) if at == position])
                    axes.plot((position - 0.3, position + 0.3), (mean, mean), color=INK, lw=2)
                axes.set_xticks(range(len(labels)), [label[-14:] for label in labels], fontsize=8)
                axes.set_xlim(-0.6, len(labels) - 0.4)
                where += np.linspace(-0.15, 0.15, len(where))  # so that equal dots show
            else:
                where = np.array([float(each.options[option]) for each in trainings])
                axes.set_xscale("log" if getattr(space.space[option], "log", False) else "linear")
            axes.plot(where, values, "o", color=LINES[0], markersize=4, alpha=0.6, mew=0)
            axes.set_title(option)
            axes.grid(True, axis="y")
            if number % 4 == 0:
                axes.set_ylabel(space.objectives[0])
    return path


def _draw_importance(path: Path, space: Space, shares: Mapping[str, float]) -> Path:
    note = f"share of the variance of {space.objectives[0]} that an option explains alone"
    with new_page(path, 1300, HEADER + 80 + 56 * len(shares), "How much each option matters", note) as figure:
        axes = add_axes(figure, 330, HEADER, 800, 56 * len(shares))
        names = [*shares][::-1]
        axes.barh(names, [shares[name] for name in names], color=LINES[0], height=0.6)
        for row, name in enumerate(names):
            axes.text(shares[name], row, f" {shares[name]:.0%}", va="center", color=GREY)
        axes.set_xlim(0, max(*shares.values(), 0.01) * 1.15)
        axes.set_xticks([])
    return path


def _draw_front(path: Path, space: Space, found: Sequence[Configuration]) -> Path:
    """The first two objectives of every configuration; those of the front are joined."""
    best = sorted(front(space, found), key=lambda each: each.means[1])
    with new_page(path, 1300, 900, "Pareto front", "means over the seeds; a line joins what nothing beats") as figure:
        axes = add_axes(figure, 150, HEADER, 1080, 620)
        points = np.array([each.means[:2] for each in found])
        axes.plot(points[:, 1], points[:, 0], "o", color="#98a1ae", markersize=5)
        line = np.array([each.means[:2] for each in best])
        axes.plot(line[:, 1], line[:, 0], "o-", color=LINES[0], markersize=7, lw=1.6)
        axes.set_xlabel(space.objectives[1])
        axes.set_ylabel(space.objectives[0])
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if abs(value) >= 10 else f"{value:g}")
        axes.grid(True)
    return path
