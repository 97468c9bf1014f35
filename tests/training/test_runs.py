"""Run folders: their numbers, what survives a full disk, and the errors for a damaged or foreign checkpoint."""

import errno
import io
import json
import math
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tinyfcn import files
from tinyfcn.errors import CheckpointError, DataError, TinyfcnError
from tinyfcn.runs import FORMAT, RESULT, STATE, Run, checked_parameters, load_tensors, new_run, newest_finished

LINE = {"step": 1, "seconds": 0.5, "train_loss": 1 / 3, "test_loss": 0.25}
SHAPES = {"conv1.weight": (8, 1, 5, 5), "conv1.bias": (8,)}


def tensors(seed=0):
    random = np.random.default_rng(seed)
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}


def saved(folder, values=None, **metadata):
    """A run in `folder` with a state in it."""
    run = Run(folder)
    run.save(values or tensors(), {"design": "{}", **metadata})
    return run


def finish(folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULT).write_text("{}")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Numbers


def test_runs_are_numbered_from_1(here):
    assert [new_run("cnn").folder for _ in range(3)] == [Path(f"runs/cnn-{n}") for n in (1, 2, 3)]
    assert new_run("fcn").folder == Path("runs/fcn-1")  # each kind has numbers of its own
    assert names(here / "runs") == ["cnn-1", "cnn-2", "cnn-3", "fcn-1"]


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        (["cnn-1", "cnn-3"], "cnn-4"),  # a gap is not filled: the newest run has the highest number
        (["cnn-9", "cnn-10"], "cnn-11"),  # by number, not by alphabet
        (["cnn-007"], "cnn-8"),
        (["cnn-long", "cnn-", "cnn--5", "cnn-1.5", "cnn-2-old", "cnn-1e3", "cnn- 7", "cnnx-9", "fcn-12"], "cnn-1"),
        (["cnn-2", "cnn-best"], "cnn-3"),
        (["cnn-²"], "cnn-1"),  # a digit to some functions, but no number
    ],
)
def test_the_next_number(here, there, expected):
    for name in there:
        (here / "runs" / name).mkdir(parents=True)
    assert new_run("cnn").folder == Path("runs") / expected


def test_a_number_taken_by_a_file_or_a_moment_ago_is_passed_over(here, monkeypatch):
    (here / "runs").mkdir()
    (here / "runs" / "cnn-1").touch()
    assert new_run("cnn").folder.name == "cnn-2"

    mkdir = Path.mkdir

    def raced(path, *arguments, **options):
        if path.name == "cnn-3" and not path.exists():
            mkdir(path)  # another process was quicker
        mkdir(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", raced)
    assert new_run("cnn").folder.name == "cnn-4"


def test_processes_never_share_a_folder(here):
    program = (
        "import sys; from tinyfcn.runs import new_run\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "for _ in range(50): print(new_run('cnn').folder)"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    started = [subprocess.Popen([sys.executable, "-c", program], **pipes) for _ in range(3)]
    for process in started:
        assert process.stdout.readline() == "ready\n"
    for process in started:
        process.stdin.write("go\n")
        process.stdin.flush()
    folders = [line for process in started for line in process.communicate()[0].split()]
    assert len(folders) == len(set(folders)) == 150


# --out


def test_out_is_made_with_its_parents(here):
    run = new_run("cnn", here / "a" / "b")
    assert run.folder == here / "a" / "b"
    assert run.folder.is_dir()
    assert not (here / "runs").exists()


def test_out_may_be_an_empty_folder(here):
    (here / "empty").mkdir()
    assert new_run("cnn", here / "empty").folder == here / "empty"


def test_out_is_never_overwritten(here):
    run = saved(new_run("cnn", here / "mine").folder)
    before = (run.folder / STATE).read_bytes()
    with pytest.raises(CheckpointError, match=r"mine is there already .* --out"):
        new_run("cnn", here / "mine")
    assert (run.folder / STATE).read_bytes() == before
    (here / "file").write_text("precious")
    with pytest.raises(CheckpointError, match="file is there already"):
        new_run("cnn", here / "file")
    assert (here / "file").read_text() == "precious"


def test_out_that_cannot_be_made_is_a_clear_error(here):
    (here / "file").touch()
    with pytest.raises(TinyfcnError, match=r"file/run .*--out"):
        new_run("cnn", here / "file" / "run")
    with pytest.raises(TinyfcnError, match="--out"):
        new_run("cnn", here / ("n" * 300))


def test_runs_that_is_a_file_is_a_clear_error(here):
    (here / "runs").touch()
    with pytest.raises(DataError, match=r"folder runs .*--out"):
        new_run("cnn")


# The newest finished run


def test_the_newest_finished_run_is_chosen(here):
    assert newest_finished("cnn") is None  # not even runs/ is there
    for name in ("cnn-2", "cnn-9", "cnn-10", "fcn-30", "cnn-best"):
        finish(here / "runs" / name)
    (here / "runs" / "cnn-11").mkdir()  # not finished
    saved(here / "runs" / "cnn-11")
    os.utime(here / "runs" / "cnn-2" / RESULT)  # its number, not its date, says which is newest
    assert newest_finished("cnn").folder == Path("runs/cnn-10")
    assert newest_finished("fcn").folder == Path("runs/fcn-30")


def test_unfinished_runs_alone_are_none(here):
    saved(new_run("cnn").folder)
    assert newest_finished("cnn") is None


# Reading back


def test_what_is_written_is_read_back(tmp_path):
    run = saved(tmp_path, {**tensors(), "adam.step": np.array([7], np.int32)}, seconds="1.5")
    found, metadata = run.load()
    assert metadata == {"format": FORMAT, "design": "{}", "seconds": "1.5"}
    assert found["adam.step"].dtype == np.int32
    for name, value in tensors().items():
        np.testing.assert_array_equal(found[name], value, strict=True)
    records = [LINE | {"digit_miou": None}, LINE | {"step": 2, "digit_miou": 0.1, "iou_per_class": [0.5, None]}]
    run.write_metrics(records)
    assert run.metrics() == records
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    run.write_json("config.json", {"batch": 16, "design": {"name": "skip"}})
    assert run.config() == {"batch": 16, "design": {"name": "skip"}}
    assert not run.is_finished
    result = {"loss": 0.25, "steps": 2, "seconds": 1.5}
    run.write_json(RESULT, result)
    assert run.is_finished
    assert run.result() == result


def test_the_same_state_is_the_same_bytes(tmp_path):
    contents = set()
    for _ in range(8):  # metadata kept in a hash map come in another order every time
        saved(tmp_path, seconds="1.5")
        contents.add((tmp_path / STATE).read_bytes())
    assert len(contents) == 1, f"{len(contents)} different files of one state"


def test_a_run_without_metrics_has_none(tmp_path):
    assert Run(tmp_path).metrics() == []


@pytest.mark.parametrize("content", ['{"step": 1}\n{"st', "[1, 2]\n", "\xff\xfe", '{"no": "step"}\n'])
def test_damaged_metrics_are_a_clear_error(tmp_path, content):
    (tmp_path / "metrics.jsonl").write_bytes(content.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl"):
        Run(tmp_path).metrics()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"step": None}, "step must be a whole number from 1 to 2,147,483,647, got None"),
        ({"step": 10**400}, "step must be"),
        ({"step": True}, "step must be"),
        ({"step": 1.0}, "step must be"),
        ({"seconds": "now"}, "seconds must be a number from 0.0 to .*, got 'now'"),
        ({"seconds": math.nan}, "seconds must be .* got nan"),
        ({"seconds": -1}, "seconds must be"),
        ({"train_loss": math.inf}, "train_loss must be"),
        ({"test_loss": None}, "test_loss must be"),
        ({"digit_miou": "good"}, "digit_miou must be a number from 0.0 to 1.0, got 'good'"),
        ({"digit_miou": [0.5]}, "digit_miou must be"),
        ({"iou_per_class": [0.5, "x"]}, "iou_per_class must be .* got 'x'"),
        ({"note": {"a": 1}}, "note must be"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_figure_is_named(tmp_path, change, words):
    run = Run(tmp_path)
    run.write_metrics([LINE, LINE | change])
    with pytest.raises(CheckpointError, match=rf"metrics\.jsonl, line 2: {words}"):
        run.metrics()
    of_result = {"step": "steps", "train_loss": "loss", "test_loss": "loss"}
    change = {of_result.get(name, name): value for name, value in change.items()}
    run.write_json(RESULT, {"steps": 1, "seconds": 0.5, "loss": 0.25} | change)
    with pytest.raises(CheckpointError, match=rf"result\.json: {next(iter(change))} must be"):
        run.result()


@pytest.mark.parametrize("name", [*LINE])
def test_a_missing_figure_is_named(tmp_path, name):
    Run(tmp_path).write_metrics([{key: value for key, value in LINE.items() if key != name}])
    with pytest.raises(CheckpointError, match=rf"metrics\.jsonl, line 1: the field {name} is missing"):
        Run(tmp_path).metrics()


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '"text"', "<html>", "\xff\xfe", DEEP, '{"a": ' + DEEP + "}"])
def test_a_damaged_config_is_a_clear_error(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"config\.json") as caught:
        Run(tmp_path).config()
    assert len(str(caught.value)) < 300


def test_a_folder_that_is_not_a_run(tmp_path):
    with pytest.raises(CheckpointError, match=r"not a run of tinyfcn: it has no config\.json; tinyfcn train-cnn"):
        Run(tmp_path).config()
    with pytest.raises(CheckpointError, match="not a run of tinyfcn"):
        Run(tmp_path / "missing").config()


# A disk that takes nothing


class FullDisk(io.RawIOBase):
    """A file that takes some bytes and then no more."""

    def __init__(self, room):
        self.room = room

    def writable(self):
        return True

    def write(self, data):
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return len(data)


def full_at_replace(monkeypatch):
    def replace(*paths):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", replace)


def full_at_open(monkeypatch):
    def refuse(path, *arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(files, "open", refuse, raising=False)


def full_at_write(monkeypatch):
    def limited(path, mode):
        open(path, mode).close()  # the name is taken, the content is not
        return FullDisk(room=10)

    monkeypatch.setattr(files, "open", limited, raising=False)


def full_at_close(monkeypatch):
    def buffered(path, mode):
        open(path, mode).close()
        return io.BufferedWriter(FullDisk(room=10), buffer_size=1 << 20)  # so that only closing it writes

    monkeypatch.setattr(files, "open", buffered, raising=False)


@pytest.mark.parametrize("full", [full_at_replace, full_at_open, full_at_write, full_at_close])
def test_a_full_disk_leaves_what_was_saved_before(tmp_path, monkeypatch, full):
    run = saved(tmp_path)
    run.write_metrics([{"step": 1}])
    run.write_json("config.json", {"batch": 1})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    writes = {
        STATE: lambda: saved(tmp_path, tensors(seed=1)),
        "metrics.jsonl": lambda: run.write_metrics([{"step": 1}, {"step": 2}]),
        "config.json": lambda: run.write_json("config.json", {"batch": 2}),
        RESULT: lambda: run.write_json(RESULT, {"loss": 1.0}),
    }
    full(monkeypatch)
    for name, write in writes.items():
        with pytest.raises(DataError, match=rf"{name} cannot be written \(No space left on device\): free some"):
            write()
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before  # nor any temporary file
    assert not run.is_finished


def test_a_real_limit_on_the_size_of_files(tmp_path):
    """As with `ulimit -f`: the system itself refuses to write on."""
    program = (
        "import resource, sys; from test_runs import saved, tensors; from pathlib import Path\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))\n"
        "saved(Path(sys.argv[1]), tensors(seed=1))"
    )
    run = saved(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    assert "DataError" in done.stderr
    assert "File too large" in done.stderr
    np.testing.assert_array_equal(run.load()[0]["conv1.bias"], tensors()["conv1.bias"])
    assert names(tmp_path) == [STATE]


def test_ctrl_c_while_saving_leaves_no_temporary_file(tmp_path, monkeypatch):
    run = saved(tmp_path)

    def stopped(*paths):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        saved(tmp_path, tensors(seed=1))
    monkeypatch.undo()
    assert names(tmp_path) == [STATE]
    np.testing.assert_array_equal(run.load()[0]["conv1.bias"], tensors()["conv1.bias"])


def test_a_folder_that_vanished_is_told_truthfully(tmp_path):
    run = Run(tmp_path / "run")
    for write in (lambda: saved(run.folder), lambda: run.write_metrics([LINE]), lambda: run.write_json(RESULT, {})):
        with pytest.raises(DataError, match=r"run folder .*run is no longer there, so .* was not written"):
            write()


# Checkpoints that are damaged or foreign


def test_a_missing_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match=r"gone\.safetensors does not exist"):
        load_tensors(tmp_path / "gone.safetensors")


def safetensors_file(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


NO_CHECKPOINTS = {
    "empty": b"",
    "a few bytes": b"\x01\x02\x03",
    "a web page": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "a zip file, as PyTorch writes": b"PK\x03\x04" + bytes(200),
    "a header that is not JSON": safetensors_file(b"{not json}"),
    "an offset beyond the end": safetensors_file({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}),
    "an unknown type": safetensors_file({"a": {"dtype": "X9", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
}


def test_an_image_is_no_run(tmp_path):
    (tmp_path / "photo.png").write_bytes(b"\x89PNG" + bytes(99))
    with pytest.raises(CheckpointError, match=r"photo\.png is no run: give a run folder that tinyfcn train-cnn or"):
        load_tensors(tmp_path / "photo.png")


@pytest.mark.parametrize("content", NO_CHECKPOINTS.values(), ids=NO_CHECKPOINTS)
def test_a_file_that_is_not_a_safetensors_file(tmp_path, content):
    path = tmp_path / STATE
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"state\.safetensors is not a whole safetensors file"):
        load_tensors(path)


def test_a_checkpoint_truncated_anywhere(tmp_path):
    whole = (saved(tmp_path).folder / STATE).read_bytes()
    header = struct.unpack("<Q", whole[:8])[0]
    for length in (1, 7, 8, 20, 8 + header - 1, 8 + header, len(whole) // 2, len(whole) - 1):
        (tmp_path / STATE).write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"state\.safetensors is not a whole safetensors file"):
            load_tensors(tmp_path / STATE)


def test_a_folder_in_place_of_a_checkpoint(tmp_path):
    (tmp_path / STATE).mkdir()
    with pytest.raises(CheckpointError, match=r"state\.safetensors"):
        load_tensors(tmp_path / STATE)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"format": "tinyfcn 0"}])
def test_another_programs_checkpoint(tmp_path, metadata):
    save_file(tensors(), tmp_path / "foreign.safetensors", metadata)
    format_found = (metadata or {}).get("format")
    with pytest.raises(CheckpointError, match=f"not written by tinyfcn.* {format_found!r}, expected '{FORMAT}'"):
        load_tensors(tmp_path / "foreign.safetensors")


@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3"])
def test_another_programs_checkpoint_of_types_that_numpy_has_not(tmp_path, dtype):
    size = {"BF16": 2, "F8_E4M3": 1}[dtype]
    header = {"__metadata__": {"format": "pt"}, "a": {"dtype": dtype, "shape": [3], "data_offsets": [0, 3 * size]}}
    path = tmp_path / "foreign.safetensors"
    path.write_bytes(safetensors_file(header, bytes(3 * size)))
    with pytest.raises(CheckpointError, match="not written by tinyfcn"):
        load_tensors(path)
    header["__metadata__"]["format"] = FORMAT
    path.write_bytes(safetensors_file(header, bytes(3 * size)))
    with pytest.raises(CheckpointError, match=r"foreign\.safetensors"):
        load_tensors(path)


def test_good_parameters_pass():
    values = tensors()
    checked = checked_parameters({**values, "adam.m": np.zeros(3)}, SHAPES, Path("x"))
    assert checked.keys() == SHAPES.keys()
    for name, value in checked.items():
        np.testing.assert_array_equal(value, values[name])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"conv1.weight": None}, [r"no tensor conv1\.weight", "another network", r"conv1\.bias"]),
        (
            {"conv1.weight": np.zeros((8, 1, 3, 3), np.float32)},
            [r"conv1\.weight", r"float32 \(8, 1, 3, 3\)", r"expected float32 \(8, 1, 5, 5\)"],
        ),
        ({"conv1.bias": np.zeros((8, 1), np.float32)}, [r"conv1\.bias", r"\(8, 1\)", r"\(8,\)"]),
        ({"conv1.bias": np.zeros(8)}, [r"conv1\.bias", "float64", "expected float32"]),
        ({"conv1.bias": np.full(8, np.nan, np.float32)}, [r"conv1\.bias", "8 of 8", "NaN"]),
        ({"conv1.bias": np.array([0, np.inf, 0, -np.inf] * 2, np.float32)}, [r"conv1\.bias", "4 of 8", "infinite"]),
    ],
    ids=["missing", "wrong kernel", "wrong rank", "float64", "NaN", "infinite"],
)
def test_a_wrong_tensor_is_named_with_what_was_expected_and_found(change, words):
    values = {name: value for name, value in {**tensors(), **change}.items() if value is not None}
    with pytest.raises(CheckpointError) as caught:
        checked_parameters(values, SHAPES, Path("runs/cnn-1/state.safetensors"))
    for word in ["runs/cnn-1", *words]:
        assert caught.match(word)
    assert "\n" not in str(caught.value)
