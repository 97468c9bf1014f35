"""tinyfcn profile on the command line."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from helpers.planting import line_of
from PIL import Image

from tinyfcn.cli import main
from tinyfcn.devices.cards import CARDS
from tinyfcn.devices.kernel_source import KERNELS

SAXPY = """extern "C" __global__ void saxpy(int n, float a, const float* x, float* y) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i * 2 % n] += a * x[i];
}
"""
LAUNCH = [
    "--grid",
    "4",
    "--block",
    "256",
    "--arg",
    "n=1000",
    "--arg",
    "a=2",
    "--arg",
    "x=1000",
    "--arg",
    "y=random:1000",
]


def profile(*arguments: str) -> Result:
    result = CliRunner().invoke(main, ["profile", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.mark.slow
def test_an_operation_shows_its_lines_its_arrays_and_what_is_wrong(tmp_path: Path) -> None:
    file, picture = tmp_path / "found.json", tmp_path / "warp.png"
    place = line_of("+ thread] = sums[k];", "fast_conv", KERNELS)
    result = profile("conv2d", "--layer", "context", "--json", str(file), "--draw", place, "-o", str(picture))
    assert result.exit_code == 0, result.output
    assert f"{place} < " in result.output and "write shared: 32 words: 16 of 32 banks" in result.output
    assert "112 blocks of 320 threads, 16 of them counted" in result.output
    assert "36,044,800 multiply-adds; for each one of a warp" in result.output
    assert "no time was measured" in result.output
    found = json.loads(file.read_text())
    assert found["launches"][0]["for"] == "conv2d context"
    assert found["total"]["requests"] == pytest.approx(
        sum(each["total"]["requests"] for each in found["launches"]), abs=9
    )
    with Image.open(picture) as image:
        assert image.width > 1000


def test_an_own_file_is_launched_as_the_command_line_says(tmp_path: Path) -> None:
    own = tmp_path / "saxpy.cu"
    own.write_text(SAXPY)
    result = profile(str(own), *LAUNCH)
    assert result.exit_code == 0, result.output
    assert "saxpy.cu:3, write y: 2 floats apart: 8 sectors for 128 bytes" in result.output
    assert "if (i < n) y[i * 2 % n] += a * x[i];" in result.output


def test_an_own_file_without_calls_is_told(tmp_path: Path) -> None:
    (tmp_path / "saxpy.cu").write_text(SAXPY)
    (tmp_path / "saxpy.py").write_text("def calls(random):\n    return []\n")
    result = profile(str(tmp_path / "saxpy.cu"))
    assert result.exit_code == 1
    assert "nothing was launched, so nothing is counted" in result.output


@pytest.mark.slow
def test_fast_beside_naive(tmp_path: Path) -> None:
    result = profile("conv2d", "--layer", "dense32", "--against", "naive", "--blocks", "4")
    assert result.exit_code == 0, result.output
    row = next(line.split() for line in result.output.splitlines() if line.startswith("sectors "))
    assert float(row[-1]) > 2


@pytest.mark.slow
def test_fast_beside_a_rung_of_the_ladder() -> None:
    """Rung 1 is the naive kernel, so the counts are those of the naive form, but for its ReLU."""
    result = profile("conv2d", "--layer", "context", "--against", "1")
    assert result.exit_code == 0, result.output
    rows = {line.split()[0]: line.split() for line in result.output.splitlines() if line.startswith("requests ")}
    assert 11 < float(rows["requests"][-1]) < 13
    assert "conv2d_backward" not in result.output


@pytest.mark.slow
def test_a_step_shows_a_row_for_each_launch_and_its_sums(tmp_path: Path) -> None:
    file = tmp_path / "step.json"
    result = profile("--step", "--blocks", "1", "--json", str(file))
    assert result.exit_code == 0, result.output
    found = json.loads(file.read_text())
    names = {"requests", "sectors", "sectors_ideal", "shared_wavefronts", "shared_wavefronts_ideal", "l1_bytes"}
    names |= {"l2_bytes", "dram_bytes", "multiply_adds", "graph_nodes", "graph_chain", "instructions"}
    assert {*found["total"]} == names
    lines = result.stdout.splitlines()
    assert found["total"]["graph_nodes"] == len(found["launches"])
    (first,) = (number for number, line in enumerate(lines) if line.startswith("for "))
    rows = lines[first + 1 : lines.index("", first)]
    assert [row.split()[0] for row in rows] == [each["for"].split()[0] for each in found["launches"]]
    assert "the lines with the most bank conflicts" in result.output
    model = found["model"]
    assert [each["for"] for each in model["launches"]] == [each["for"] for each in found["launches"]]
    assert {each["bound"] for each in model["launches"]} <= {"start", "issue", "shared", "l2", "waiting"}
    longest = max(model["launches"], key=lambda each: each["seconds"])
    first = next(number for number, line in enumerate(lines) if line.startswith("the longest launches by the model"))
    assert "on an NVIDIA H200 SXM" in lines[first]
    assert lines[first + 1].endswith(f" µs  {longest['for']}: {longest['bound']}")
    assert f"{1e6 * model['step_seconds']:.0f} µs  the step" in result.output


@pytest.mark.slow
@pytest.mark.cupy
def test_the_launches_are_made_for_the_card(tmp_path: Path) -> None:
    blocks = []
    for card in ("h200", "t4"):
        file = tmp_path / f"{card}.json"
        result = profile("conv2d", "--layer", "context", "--card", card, "--json", str(file))
        assert result.exit_code == 0 and f"compiled for {CARDS[card].architecture}\n" in result.output
        found = json.loads(file.read_text())
        blocks.append(found["launches"][0]["blocks"])
        assert found["kernels"][0]["occupancy"] > 0
    assert blocks[0] > blocks[1]


def test_the_batch_is_that_of_the_step(tmp_path: Path) -> None:
    requests = []
    for batch in ("2", "4"):
        file = tmp_path / f"{batch}.json"
        assert profile("compose_m2nist", "--batch", batch, "--json", str(file)).exit_code == 0
        requests.append(json.loads(file.read_text())["total"]["requests"])
    assert requests[1] == pytest.approx(2 * requests[0], rel=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name an OPERATION or a FILE.cu, or ask for a whole step with --step"),
        (["conv2d", "--step"], "name an OPERATION or a FILE.cu, or ask for a whole step with --step, not both"),
        (["folder.cu"], "folder.cu is a folder: name a file"),
        (["relu", "--draw", "relu.cu"], "--draw 'relu.cu': name a file and a line, such as fast_conv.cu:310"),
        (["relu", "-o", "x.png"], "-o is the picture of --draw FILE.cu:LINE"),
        (["relu", "--naive", "--against", "naive"], "compares the naive kernels with themselves: leave one out"),
        (["conv2dd"], "no operation or kernel named 'conv2dd'; did you mean conv2d"),
        (["conv2d", "--layer", "nix"], "conv2d has no layer named nix; skip has"),
        (["relu", "--layer", "context"], "relu has no layer named context; skip has none"),
        (["conv2d", "--all", "--blocks", "3"], "--all counts every block: leave out --blocks"),
        (["none.cu"], "none.cu does not exist"),
        (["relu", "--against", "2"], "relu has no ladder: there is one of conv2d"),
        (["conv2d", "--layer", "context", "--against", "9"], "the ladder of conv2d has 8 rungs, and 9 is none of them"),
        (["conv2d", "--layer", "score", "--against", "2"], "a step of skip has only gradients of conv2d there: choose"),
        (["--step", "--against", "2"], "a whole step has no ladder: there is one of conv2d"),
        (
            ["conv_transpose2d", "--design", "classifier", "--against", "2"],
            "a step of classifier has no conv_transpose2d: choose another --design",
        ),
        (["conv2d", "--against", "fast"], "'fast' is neither 'naive' nor the number of a rung"),
        (["none.cu", "--naive"], "--naive, --layer and --against belong to the operations of tinyfcn"),
        (["relu", "--draw", "relu.cu:1"], "no request at relu.cu:1: there are some at relu.cu:27"),
        (["conv2d", "--kernel", "k"], "--kernel belongs to a file of your own: tinyfcn profile FILE.cu"),
        (["conv2d", "--grid", "4"], "--grid belongs to a file of your own: tinyfcn profile FILE.cu"),
        (["none.cu", "--card", "t4"], "--card chooses the launches of tinyfcn's operations"),
    ],
)
def test_bad_usage_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.cu").mkdir()
    result = profile(*arguments)
    assert result.exit_code == 2, result.output
    assert message in result.output
