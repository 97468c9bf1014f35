"""How the time of a step grows, drawn: with the batch, and with the pictures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from tinyfcn.bench.report import described, in_words, who
from tinyfcn.figures import GREY, HEADER, LINES, _axes, _page

PIXELS = 64 * 84  # of an M2NIST picture


def step_times(path: Path, result: Mapping[str, Any]) -> Path:
    """The time of a training step against the batch, and against the pictures' size, both axes by factors of ten.

    Dots were measured. Through ours goes the line constant + slope * size that fits them best; its two parts, the floor
    that even the smallest step has and what grows with the size, are drawn dashed.
    """
    note = f"design skip, on {described(result['machine'])}; dashed: the floor of ours, and what grows with the size"
    with _page(path, 1800, 880, "How the time of a training step grows", note) as figure:
        for x, growth in zip((150, 1040), result["sweep"], strict=True):
            axes = _axes(figure, x, HEADER + 20, 720, 570)
            _draw(axes, growth)
    return path


def _draw(axes: Axes, growth: Mapping[str, Any]) -> None:
    by_batch = growth["by"] == "batch"
    each = "a picture" if by_batch else "for each 64x84 pixels"
    axes.set(xscale="log", yscale="log")
    everything = [seconds for series in growth["series"].values() for seconds in series["seconds"]]
    for number, (name, series) in enumerate(growth["series"].items()):
        sizes = np.array(series["sizes"], float) / (1 if by_batch else PIXELS)
        if not len(sizes):
            continue
        line = growth["lines"].get(name)
        label = who(name)
        if line:
            slope = line["slope"] * (1 if by_batch else PIXELS)
            label += f": {in_words(line['constant'])} + {in_words(slope)} {each}"
        axes.plot(sizes, series["seconds"], "o", color=LINES[number], markersize=5, label=label, zorder=4)
        if line:
            dense = np.geomspace(sizes[0], sizes[-1], 200)
            axes.plot(dense, line["constant"] + slope * dense, color=LINES[number], linewidth=2 if not number else 1.2)
            if not number:
                for part in (np.full(200, line["constant"]), slope * dense):
                    axes.plot(dense, part, "--", color=LINES[0], linewidth=1, alpha=0.7)
    axes.set_ylim(min(everything) / 3, max(everything) * 6)  # the legend has its place above
    axes.yaxis.set_major_formatter(lambda seconds, _: in_words(seconds).replace(".00", "").replace(".0", ""))
    axes.set_title("against the batch" if by_batch else f"against the pictures' size, batch {growth['batch']}")
    axes.set_xlabel("pictures a batch" if by_batch else "pixels of a picture, in multiples of 64x84")
    axes.xaxis.set_major_formatter(lambda size, _: f"{size:,.0f}")
    if len(everything):
        ticks = sorted(
            {size / (1 if by_batch else PIXELS) for series in growth["series"].values() for size in series["sizes"]}
        )
        axes.set_xticks(ticks[:: 2 if len(ticks) > 8 else 1])
    axes.minorticks_off()
    axes.grid(True, which="major")
    axes.legend(
        loc="upper left", fontsize=9, labelcolor=GREY, frameon=True, facecolor="white", edgecolor="none", framealpha=1
    )
