"""Which digits are loaded: MNIST, or the built-in ones after a notice nobody can miss."""

import hashlib
import os

import numpy as np
import pytest
from helpers.idx_files import idx_bytes, write_mnist

from tinyfcn.data import builtin_digits, digits, find_data, load_digits, mnist
from tinyfcn.errors import DataError

IMAGES = "train-images-idx3-ubyte"


@pytest.fixture(autouse=True)
def drawn(monkeypatch, tmp_path):
    """An empty cache, no network, a quick stand-in for drawing; gives the (count, seed) of its calls."""
    calls = []

    def draw(count, seed):
        calls.append((count, seed))
        rng = np.random.default_rng(seed)
        return rng.integers(0, 256, (count, 28, 28), np.uint8), (np.arange(count) % 10).astype(np.uint8)

    monkeypatch.delenv("TINYFCN_DATA", raising=False)
    monkeypatch.setenv("TINYFCN_OFFLINE", "1")
    monkeypatch.setenv("TINYFCN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(builtin_digits, "draw_digits", draw)
    monkeypatch.setattr(digits, "BUILTIN_COUNTS", {"train": 30, "test": 20})
    return calls


@pytest.fixture
def notices():
    return []


def builtin_cache(tmp_path):
    (path,) = (tmp_path / "cache").glob("builtin-train-*.npz")
    return path


def test_defaults_of_the_built_in_digits():
    # The fixture makes them smaller; the seeds must differ, or the test set would repeat the training set.
    assert digits.BUILTIN_SEEDS["train"] != digits.BUILTIN_SEEDS["test"]


def test_auto_uses_mnist_where_it_is(tmp_path, notices, drawn):
    arrays = write_mnist(tmp_path / "mine")
    loaded = load_digits("test", data_dir=tmp_path / "mine", notice=notices.append)
    assert loaded.source == "mnist" and len(loaded) == 12 and notices == drawn == []
    np.testing.assert_array_equal(loaded.images, arrays["t10k-images-idx3-ubyte"])


def test_auto_without_mnist_says_so_loudly(notices):
    loaded = load_digits("train", notice=notices.append)
    assert loaded.source == "builtin" and loaded.images.shape == (30, 28, 28)
    loud = notices[0]
    assert len(loud.splitlines()) >= 5 and "NOT FOUND" in loud and "cannot be compared" in loud
    assert "TINYFCN_OFFLINE" in loud and "--data-dir" in loud


def test_the_notice_goes_to_stderr(capsys):
    load_digits("train")
    out, err = capsys.readouterr()
    assert out == "" and "MNIST WAS NOT FOUND" in err


def test_mnist_does_not_fall_back(notices, drawn):
    with pytest.raises(mnist.MnistUnavailable):
        load_digits("train", "mnist", notice=notices.append)
    assert notices == drawn == []


@pytest.mark.parametrize("dataset", ["auto", "mnist"])
def test_bad_files_are_an_error_not_a_fallback(tmp_path, drawn, dataset):
    write_mnist(tmp_path)
    (tmp_path / IMAGES).write_bytes(b"<html>")
    with pytest.raises(DataError, match="web page"):
        load_digits("train", dataset, tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        load_digits("train", dataset, tmp_path / "absent")
    assert drawn == []


def test_builtin_ignores_mnist(tmp_path, notices):
    write_mnist(tmp_path)
    assert load_digits("train", "builtin", tmp_path, notices.append).source == "builtin"
    assert len(notices) == 1 and notices[0].startswith("Drawing 30 built-in train digits")


def test_drawn_once_and_each_split_by_itself(notices, drawn):
    first = load_digits("train", "builtin", notice=notices.append)
    again = load_digits("train", "builtin", notice=notices.append)
    test = load_digits("test", "builtin", notice=notices.append)
    np.testing.assert_array_equal(first.images, again.images)
    np.testing.assert_array_equal(first.labels, again.labels)
    assert len(test) == 20 and not np.array_equal(test.images, first.images[:20])
    assert [count for count, _ in drawn] == [30, 20] and drawn[0][1] != drawn[1][1]


def test_changed_drawing_code_draws_anew(tmp_path, monkeypatch, drawn):
    load_digits("train", "builtin")
    (tmp_path / "changed.py").write_text("# another way to draw")
    monkeypatch.setattr(builtin_digits, "__file__", str(tmp_path / "changed.py"))
    load_digits("train", "builtin")
    assert len(drawn) == 2


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


DAMAGE = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "flipped": flip_a_byte,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("not an archive"),
    "pickle": lambda path: np.savez(path, images=np.array([{}], object), labels=np.zeros(30, np.uint8)),
    "shape": lambda path: np.savez(path, images=np.zeros((29, 28, 28), np.uint8), labels=np.zeros(29, np.uint8)),
    "types": lambda path: np.savez(path, images=np.zeros((30, 28, 28)), labels=np.zeros(30)),
    "label": lambda path: np.savez(path, images=np.zeros((30, 28, 28), np.uint8), labels=np.full(30, 10, np.uint8)),
    "label type": lambda path: np.savez(path, images=np.zeros((30, 28, 28), np.uint8), labels=np.zeros(30)),
    "names": lambda path: np.savez(path, photos=np.zeros(3)),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_cache_is_drawn_again(tmp_path, drawn, case):
    first = load_digits("train", "builtin")
    DAMAGE[case](builtin_cache(tmp_path))
    again = load_digits("train", "builtin")
    np.testing.assert_array_equal(again.images, first.images)
    assert len(drawn) == 2
    load_digits("train", "builtin")
    assert len(drawn) == 2 and [path.suffix for path in (tmp_path / "cache").iterdir()] == [".npz"]


class Trap:
    """Unpickling this creates a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_the_cache_is_never_unpickled(tmp_path):
    load_digits("train", "builtin")
    np.savez(builtin_cache(tmp_path), images=np.array([Trap(tmp_path / "sprung")]), labels=np.zeros(30, np.uint8))
    load_digits("train", "builtin")
    assert not (tmp_path / "sprung").exists()


def test_unwritable_cache(tmp_path, monkeypatch, drawn):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TINYFCN_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"cannot be written to.*set TINYFCN_CACHE"):
        load_digits("train", "builtin")
    assert drawn == []  # found before 15 seconds of drawing, not after


@pytest.mark.parametrize("arguments", [("validation",), ("train", "fashion")])
def test_unknown_names_are_refused(arguments):
    with pytest.raises(ValueError, match=arguments[-1]):
        load_digits(*arguments)


def test_find_data(tmp_path, monkeypatch):
    cache = tmp_path / "cache" / "mnist"
    offline = find_data()
    assert offline.source == "builtin" and "TINYFCN_OFFLINE" in offline.text
    monkeypatch.delenv("TINYFCN_OFFLINE")
    monkeypatch.setattr(mnist, "MIRRORS", ("http://127.0.0.1:9/",))
    to_come = find_data()
    assert (to_come.source, to_come.folder) == ("download", cache) and str(cache) in to_come.text
    assert not cache.exists()
    arrays = write_mnist(cache)
    assert find_data().source == "mnist" and "cache" in find_data().text
    (cache / IMAGES).unlink()
    assert find_data().source == "download"
    write_mnist(tmp_path / "torch" / "MNIST" / "raw", gz=True)
    monkeypatch.setenv("TINYFCN_DATA", str(tmp_path / "torch"))
    found = find_data()
    assert found.source == "mnist" and found.folder == tmp_path / "torch" / "MNIST" / "raw"
    assert "TINYFCN_DATA" in found.text and "--data-dir" in find_data(tmp_path / "torch").text
    (found.folder / f"{IMAGES}.gz").unlink()
    assert f"without {IMAGES}" in find_data().text
    with pytest.raises(DataError, match="--data-dir"):
        find_data(tmp_path / "absent")
    assert len(arrays) == 4


def test_official_sums_are_of_unpacked_files(tmp_path, monkeypatch):
    arrays = write_mnist(tmp_path / "cache" / "mnist", gz=True)
    with pytest.raises(DataError, match="SHA-256"):
        load_digits("train")
    sums = {name: hashlib.sha256(idx_bytes(array)).hexdigest() for name, array in arrays.items()}
    monkeypatch.setattr(mnist, "SHA256", sums)
    assert load_digits("train").source == "mnist"
