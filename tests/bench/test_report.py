"""What was measured, in words, tables and figures; the README's table and nothing else of it is rewritten."""

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
    return {"seconds": seconds, "low": seconds / 2, "high": seconds * 2, "turns": 5, "runs": 1}


def steps_found(equal_bits=True):
    step = {"design": "skip", "batch": 16, "ours": timing(1e-4), "trained": timing(1.1e-4), "equal_bits": equal_bits}
    step |= {"torch": {"eager": timing(3e-3), "CUDA graph": timing(4e-4)}, "best": "CUDA graph", "failed": {}}
    step |= {"tf32": timing(3e-4), "eager_ratio": 30.0, "best_ratio": 4.0}
    alone = {"batch": 64, "torch": {}, "equal_bits": None} | dict.fromkeys(
        ("best", "tf32", "eager_ratio", "best_ratio")
    )
    return [step, step | alone]


MACHINE = {"name": "NVIDIA Card", "device": "cuda", "torch": "2.11", "quick": False}
README = f"# title\n\nbefore ä\n{report.BEGIN}\nold\n{report.END}\nafter\n"


def test_the_readmes_table():
    path = Path("README.md")
    path.write_text(README, encoding="utf-8")
    for _ in range(2):
        report.update_readme(path, MACHINE, steps_found())
        assert path.read_text(encoding="utf-8") == README.replace(
            "old\n",
            "On NVIDIA Card; PyTorch 2.11, by `tinyfcn bench`; two runs with one seed: equal bits.\n\n"
            "| training step | ours | composing | PyTorch eager | PyTorch best | which is | TF32 | eager / ours "
            "| best / ours |\n| --- | --: | --: | --: | --: | --- | --: | --: | --: |\n"
            "| skip, batch 16 | 100 µs | 110 µs | 3.00 ms | 400 µs | CUDA graph | 300 µs | 30x | 4.0x |\n"
            "| skip, batch 64 | 100 µs | 110 µs | - | - | - | - | - | - |\n",
        )
    report.update_readme(path, MACHINE, steps_found(equal_bits=False))
    assert "DIFFERENT BITS" in path.read_text(encoding="utf-8") and [*Path().iterdir()] == [path]


def test_a_readme_keeps_the_ends_of_its_lines():
    path = Path("README.md")
    path.write_bytes(README.replace("\n", "\r\n").encode())
    report.update_readme(path, MACHINE, steps_found())
    assert b"\n" not in path.read_bytes().replace(b"\r\n", b"")


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
PART |= {"roofline": 1e-6, "fast": None, "naive": None, "numpy": None, "torch": None}


def test_times_of_kernels():
    part = PART | {"fast": timing(2e-6), "naive": timing(9e-6), "of_bandwidth": 0.5, "of_flops": 0.052}
    kernels = {"parts": [part, part], "peaks": {"bandwidth": 3e12, "flops": 6e13, "source": "measured in this run"}}
    first, _, total = report.part_rows(kernels)
    assert "|".join(first.values()) == "conv2d dx|a|1x2|1.00 µs|2.00 µs|9.00 µs|-|50 %|5.2 %"
    assert "|".join(total.values()) == "all of them|||2.00 µs|4.00 µs|18.0 µs|-|-|-"
    assert "3.00 TB/s and 60.0 TFLOP/s, measured in this run" in report.about_rooflines(kernels)


def test_times_in_numpy():
    part = PART | {"numpy": timing(4e-3), "torch": timing(3e-3), "ratio": 0.75}
    alone = PART | {"operation": "compose_m2nist", "what": "", "numpy": timing(4e-3)}
    rows = report.part_rows({"parts": [part, PART | {"what": "dweight"}, alone], "peaks": {"source": "a datasheet"}})
    assert ["|".join([*row.values()][3:]) for row in rows] == [
        "2.0|3.00|1.00 µs|4.00 ms|3.00 ms|0.75x",
        "2.0|3.00|1.00 µs|with dx|-|-",
        "2.0|3.00|1.00 µs|4.00 ms|-|-",
        "6.0|9.00|3.00 µs|8.00 ms|-|-",
    ]


def test_the_plot():
    line = {"sizes": [5376, 4 * 5376], "seconds": [1e-3, 2e-3], "constant": 5e-4, "slope": 1e-3 / 5376}
    dot = {"sizes": [5376], "seconds": [1e-3]}
    growths = [{"by": by, "batch": 16, "series": {"ours": line, "eager": line, "CUDA graph": dot}} for by in "bp"]
    assert report.growth_lines(growths[1]) == {
        "ours": "ours: 500 µs + 1.00 ms for each 64x84 pixels",
        "eager": "PyTorch, eager: 500 µs + 1.00 ms for each 64x84 pixels",
        "CUDA graph": "PyTorch, CUDA graph",
    }
    path = plots.step_times(Path("made/plot.png"), MACHINE, growths)
    assert path.read_bytes().startswith(b"\x89PNG") and [*path.parent.iterdir()] == [path]
    nothing = {"by": "batch", "series": {"ours": {"sizes": [], "seconds": []}}}
    assert plots.step_times(Path("plot.png"), MACHINE, [nothing, nothing]).exists()
