"""How the time of a step grows, drawn: with the batch, and with the size of the images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tinyfcn.bench.report import PIXELS, described, growth_lines, in_words
from tinyfcn.figures import HEADER, INK, LINES, Axes, add_axes, new_page


def step_times(path: Path, machine: Mapping[str, Any], growths: Sequence[Mapping[str, Any]]) -> Path:
    """The time of a training step against the batch, and against the size of the images, all axes logarithmic.

    Dots were measured. Through them goes the line constant + slope * size that fits best; of ours its summands too.
    """
    with new_page(path, 1800, 900, "How the time of a training step grows", f"skip on {described(machine)}") as figure:
        for x, growth in zip((150, 1040), growths, strict=True):
            _draw(add_axes(figure, x, HEADER + 30, 720, 580), growth)
    return path


def _draw(axes: Axes, growth: Mapping[str, Any]) -> None:
    by_batch = growth["by"] == "batch"
    unit = 1 if by_batch else PIXELS
    measured = [seconds for series in growth["series"].values() for seconds in series["seconds"]]
    lowest = min(measured, default=1e-3)
    axes.set(xscale="log", yscale="log")
    for number, (name, label) in enumerate(growth_lines(growth).items()):
        series, colour = growth["series"][name], LINES[number]
        sizes = np.array(series["sizes"], float) / unit
        axes.plot(sizes, series["seconds"], "o", color=colour, markersize=5, label=label, zorder=4)
        if "slope" in series:
            constant, dense = series["constant"], np.geomspace(sizes[0], sizes[-1], 200)
            grows = series["slope"] * unit * dense
            axes.plot(dense, constant + grows, color=colour, linewidth=1.4 if number else 2.2)
            if name == "ours":
                axes.plot(dense, np.full(200, constant), "--", color=colour, linewidth=1.2, label="ours: constant")
                axes.plot(dense, grows, ":", color=colour, linewidth=1.8, label="ours: what grows with the size")
                lowest = max(min(lowest, constant), lowest / 20)  # a constant of next to nothing gets no room
    axes.set_ylim(lowest / 3, max(measured, default=1) * 30)  # the legend has its place above
    axes.yaxis.set_major_formatter(lambda seconds, _: in_words(seconds).replace(".00", "").replace(".0", ""))
    axes.set_title("against the batch" if by_batch else f"against the size of the images, batch {growth['batch']}")
    axes.set_xlabel("images a batch" if by_batch else "pixels of an image, in multiples of 64x84")
    axes.xaxis.set_major_formatter(lambda size, _: f"{size:,.0f}")
    ticks = sorted({size / unit for series in growth["series"].values() for size in series["sizes"]})
    axes.set_xticks(ticks[:: 2 if len(ticks) > 8 else 1])
    axes.minorticks_off()
    axes.grid(True)
    axes.legend(loc="upper left", fontsize=9, labelcolor=INK, frameon=True, facecolor="white", edgecolor="none")
