"""What was measured, in words, tables and figures; the README's table and nothing else of it is rewritten."""

import re
from pathlib import Path

import pytest

from tinyfcn.bench import plots, report
from tinyfcn.errors import DataError


def test_in_words():
    words = {None: "-", 0: "0 s", 3.2e-8: "0.03 µs", 9.531e-5: "95.3 µs", 1.234e-3: "1.23 ms", 71.3: "71.3 s"}
    assert {seconds: report.in_words(seconds) for seconds in words} == words
    assert [*map(report.times, (None, 0.871, 3.14, 33.3))] == ["-", "0.87x", "3.1x", "33x"]
    assert [*map(report.percent, (None, 0.053, 0.66))] == ["-", "5.3 %", "66 %"]


def timing(seconds):
    return {"seconds": seconds, "low": seconds, "high": seconds, "turns": 5, "runs": 1}


def steps_found(equal_bits=True):
    step = {"design": "skip", "batch": 16, "ours": timing(1e-4), "trained": timing(1.1e-4)}
    step |= {"torch": {"eager": timing(3e-3), "CUDA graph": timing(4e-4)}, "best": "CUDA graph"}
    step |= {"tf32": timing(3e-4), "eager_ratio": 30.0, "best_ratio": 4.0, "failed": {}, "equal_bits": equal_bits}
    alone = {"batch": 64, "torch": {}, "best": None, "tf32": None, "eager_ratio": None, "best_ratio": None}
    return [step, {**step, **alone, "equal_bits": None}]


MACHINE = {"name": "NVIDIA Card", "device": "cuda", "torch": "2.11", "quick": False}
README = f"# title\n\nbefore ä\n{report.BEGIN}\nold\n{report.END}\nafter\n"


def test_the_readmes_table():
    path = Path("README.md")
    path.write_text(README, encoding="utf-8")
    report.update_readme(path, MACHINE, steps_found())
    text = path.read_text(encoding="utf-8")
    assert text.startswith(f"# title\n\nbefore ä\n{report.BEGIN}\nOn NVIDIA Card; PyTorch 2.11, by `tinyfcn bench`;")
    assert text.endswith(f"\n{report.END}\nafter\n") and "old" not in text
    assert "| skip, batch 16 | 100 µs | 110 µs | 3.00 ms | 400 µs | CUDA graph | 300 µs | 30x | 4.0x |\n" in text
    assert "| skip, batch 64 | 100 µs | 110 µs | - | - | - | - | - | - |\n" in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1 and len(table) == 4
    assert not re.search(r"20\d\d-|\d:\d\d", text)  # no date
    report.update_readme(path, MACHINE, steps_found())
    assert path.read_text(encoding="utf-8") == text
    report.update_readme(path, MACHINE, steps_found(equal_bits=False))
    assert "DIFFERENT BITS" in path.read_text(encoding="utf-8") and [*Path().iterdir()] == [path]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("# title\n", "has no place for the table.*<!-- bench -->"),
        (f"{report.END}\n{report.BEGIN}\n", "has no place"),
        (README + README, "once each"),
        (None, "cannot be read"),
    ],
)
def test_a_readme_without_markers(text, words):
    path = Path("README.md")
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=words):
        report.update_readme(path, MACHINE, steps_found())
    assert text is None or path.read_text() == text


PART = {"operation": "conv2d_backward", "what": "dx", "layer": "a", "sizes": "1x2, 3", "flops": 2e6, "bytes": 3e6}


def test_times_of_kernels():
    part = PART | {"roofline": 1e-6, "fast": timing(2e-6), "naive": timing(9e-6), "numpy": None, "torch": None}
    part |= {"of_bandwidth": 0.5, "of_flops": 0.052}
    kernels = {"parts": [part, part], "peaks": {"bandwidth": 3e12, "flops": 6e13, "source": "measured in this run"}}
    first, _, total = report.part_rows(kernels)
    assert "|".join(first.values()) == "conv2d dx|a|1x2|1.00 µs|2.00 µs|9.00 µs|-|50 %|5.2 %"
    assert "|".join(total.values()) == "all of them|||2.00 µs|4.00 µs|18.0 µs|-|-|-"
    assert "3.00 TB/s and 60.0 TFLOP/s, measured in this run" in report.about_rooflines(kernels)


def test_times_in_numpy():
    part = PART | {"roofline": 1e-6, "numpy": timing(4e-3), "torch": timing(3e-3), "ratio": 0.75}
    other = part | {"what": "dweight", "numpy": None, "torch": None, "ratio": None}
    alone = part | {"operation": "compose_m2nist", "what": "", "torch": None, "ratio": None}
    rows = report.part_rows({"parts": [part, other, alone], "peaks": {"source": "H200 datasheet"}})
    assert ["|".join([*row.values()][-4:]) for row in rows] == [
        "1.00 µs|4.00 ms|3.00 ms|0.75x",
        "1.00 µs|with dx|-|-",
        "1.00 µs|4.00 ms|-|-",
        "3.00 µs|8.00 ms|-|-",
    ]


def test_the_plot():
    line = {"sizes": [5376, 4 * 5376], "seconds": [1e-3, 2e-3], "constant": 5e-4, "slope": 1e-3 / 5376}
    dot = {"sizes": [5376], "seconds": [1e-3]}
    sweep = [{"by": by, "batch": 16, "series": {"ours": line, "eager": line, "CUDA graph": dot}} for by in "bp"]
    assert report.growth_lines(sweep[1]) == {
        "ours": "ours: 500 µs + 1.00 ms for each 64x84 pixels",
        "eager": "PyTorch, eager: 500 µs + 1.00 ms for each 64x84 pixels",
        "CUDA graph": "PyTorch, CUDA graph",
    }
    path = plots.step_times(Path("made/plot.png"), MACHINE, sweep)
    assert path.read_bytes().startswith(b"\x89PNG") and [*path.parent.iterdir()] == [path]
    nothing = {"by": "batch", "series": {"ours": {"sizes": [], "seconds": []}}}
    assert plots.step_times(Path("plot.png"), MACHINE, [nothing, nothing]).exists()
