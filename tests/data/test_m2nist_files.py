"""M2NIST's two files: written whole or not at all, read in either form, every value checked."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from tinyfcn.data import m2nist_files, read_m2nist, split_indices, write_m2nist
from tinyfcn.errors import DataError

COUNT = 70  # more than one chunk of the reader


def images_and_labels(count=COUNT, seed=0):
    """Random images whose labels are random as well: nothing in the files ties one to the other."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 64, 84), np.uint8)
    return images, rng.integers(0, 11, (count, 64, 84), np.uint8)


def chunks(images, labels, size=30):
    for start in range(0, len(images), size):
        yield images[start : start + size], labels[start : start + size]


def one_hot(labels, dtype=np.uint8):
    return np.eye(11, dtype=dtype)[labels]


def save(folder, images, truth):
    np.save(folder / "combined.npy", images)
    np.save(folder / "segmented.npy", truth)


@pytest.mark.parametrize("as_one_hot", [True, False])
def test_written_files_have_the_published_form(tmp_path, as_one_hot):
    images, labels = images_and_labels()
    write_m2nist(tmp_path / "new" / "m2nist", chunks(images, labels), COUNT, as_one_hot)
    folder = tmp_path / "new" / "m2nist"
    assert sorted(path.name for path in folder.iterdir()) == ["combined.npy", "segmented.npy"]
    combined, segmented = np.load(folder / "combined.npy"), np.load(folder / "segmented.npy")
    np.testing.assert_array_equal(combined, images, strict=True)
    expected = one_hot(labels) if as_one_hot else labels
    np.testing.assert_array_equal(segmented, expected, strict=True)


def test_background_is_the_last_channel(tmp_path):
    images, labels = images_and_labels(1)
    labels[:] = 10
    labels[0, 3, 5] = 7
    write_m2nist(tmp_path, [(images, labels.astype(np.int32))], 1)
    segmented = np.load(tmp_path / "segmented.npy")
    assert segmented[0, 3, 5].tolist() == [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]
    assert segmented[0, 0, 0].tolist() == [0] * 10 + [1]


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, ">i4", np.int64, np.uint64])
@pytest.mark.parametrize("as_one_hot", [True, False])
def test_read_either_form_of_any_width(tmp_path, dtype, as_one_hot):
    images, labels = images_and_labels()
    wide = np.uint8 if np.dtype(dtype).itemsize == 1 else dtype
    truth = one_hot(labels, dtype) if as_one_hot else labels.astype(dtype)
    save(tmp_path, images.astype(wide), truth)
    data = read_m2nist(tmp_path)
    assert len(data) == COUNT
    np.testing.assert_array_equal(data.images, images, strict=True)
    np.testing.assert_array_equal(data.labels, labels, strict=True)
    batch_images, batch_labels = data.batch(np.array([66, 0, 3]))
    np.testing.assert_array_equal(batch_images, images[[66, 0, 3]], strict=True)
    np.testing.assert_array_equal(batch_labels, labels[[66, 0, 3]].astype(np.int32), strict=True)


def strokes(count=30):
    """Images with strokes of ink on black, and their labels."""
    rng = np.random.default_rng(0)
    images = np.zeros((count, 64, 84), np.uint8)
    images[:, 20:40, 30:40] = rng.integers(1, 256, (count, 20, 10))
    labels = np.where(images > 0, rng.integers(0, 10, (count, 1, 1)), 10).astype(np.uint8)
    return images, labels


@pytest.mark.parametrize("as_one_hot", [True, False])
@pytest.mark.parametrize("inverted", [True, False])
@pytest.mark.parametrize("background_first", [True, False])
def test_other_conventions_are_mended_and_told(tmp_path, as_one_hot, inverted, background_first):
    images, labels = strokes()
    truth = (labels + 1) % 11 if background_first else labels
    save(tmp_path, 255 - images if inverted else images, one_hot(truth) if as_one_hot else truth)
    said = []
    data = read_m2nist(tmp_path, said.append)
    np.testing.assert_array_equal(data.images, images, strict=True)
    np.testing.assert_array_equal(data.labels, labels, strict=True)
    mended = [f"{tmp_path / 'combined.npy'} holds dark digits on white, where M2NIST's are white on black: inverted"]
    renumbered = (
        f"{tmp_path / 'segmented.npy'} has the background first, where M2NIST's is last: its labels are renumbered"
    )
    assert said == mended * inverted + [renumbered] * background_first


@pytest.mark.parametrize("background", [0, 3, 9])
def test_a_truth_without_background_is_refused(tmp_path, background):
    images, labels = strokes()
    labels[labels == 10] = background
    save(tmp_path, images, labels)
    message = f"most black pixels have the label {background}, expected 10, the background: write the file again"
    with pytest.raises(DataError, match=message):
        read_m2nist(tmp_path)


def test_read_fortran_order(tmp_path):
    images, labels = images_and_labels()
    save(tmp_path, np.asfortranarray(images), np.asfortranarray(one_hot(labels)))
    np.testing.assert_array_equal(read_m2nist(tmp_path).labels, labels)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory of the process from /proc")
def test_files_are_read_in_parts(tmp_path):
    # 300 images of int64 one-hot are 142 MB; what is kept of them and their images is 3 MB.
    images, labels = images_and_labels(300)
    save(tmp_path, images, one_hot(labels, np.int64))
    script = (
        "import re, sys\n"
        "from pathlib import Path\n"
        "from tinyfcn.data import read_m2nist\n"
        "peak = lambda: int(re.search(r'VmHWM:\\s*(\\d+)', Path('/proc/self/status').read_text())[1])\n"
        "before = peak()\n"
        "assert len(read_m2nist(sys.argv[1])) == 300\n"
        "print((peak() - before) // 1024)\n"
    )
    result = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True)
    assert int(result.stdout) < 100


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("name", ["combined.npy", "segmented.npy"])
def test_a_file_that_is_cut_while_it_is_read_is_an_error(tmp_path, monkeypatch, name, order):
    """A mapped file would end the process with a bus error."""
    images, labels = images_and_labels()
    save(tmp_path, np.asarray(images, order=order), np.asarray(one_hot(labels), order=order))
    header = m2nist_files._header

    def cut(path):
        found = header(path)
        if path.name == name:
            os.truncate(path, path.stat().st_size // 2)
        return found

    monkeypatch.setattr(m2nist_files, "_header", cut)
    with pytest.raises(DataError, match=rf"{name} became shorter while it was read: try again"):
        read_m2nist(tmp_path)


# What is not M2NIST


def change(name, index, value, dtype=None):
    def spoil(folder):
        array = np.load(folder / name)
        array = array.astype(dtype or array.dtype)
        array[index] = value
        np.save(folder / name, array)

    return spoil


def replace(name, make):
    def spoil(folder):
        np.save(folder / name, make(np.load(folder / name)))

    return spoil


def cut(name, end):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:end])


def pickled(folder):
    np.save(folder / "segmented.npy", np.array([{"a": 1}], object), allow_pickle=True)


def bare_pickle(folder):
    (folder / "combined.npy").write_bytes(pickle.dumps([1, 2, 3]))


def make_folder(folder):
    (folder / "combined.npy").unlink()
    (folder / "combined.npy").mkdir()


def with_header(text, content=b"", version=1):
    """Replaces the images by a file with this text for its header."""
    line = text.encode().ljust(118) + b"\n"
    length = len(line).to_bytes(2 if version == 1 else 4, "little")
    npy = b"\x93NUMPY" + bytes([version, 0]) + length + line + content
    return lambda folder: (folder / "combined.npy").write_bytes(npy)


def header(descr="'|u1'", shape="(70, 64, 84)"):
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}"


def announce_fewer(folder):
    content = (folder / "combined.npy").read_bytes()
    (folder / "combined.npy").write_bytes(content.replace(b"(70, 64", b"(40, 64"))


def make_device(folder):
    (folder / "combined.npy").unlink()
    (folder / "combined.npy").symlink_to(os.devnull)


C, S = "combined.npy", "segmented.npy"
AT = (66, 5, 7)  # in the second chunk
BAD = {
    "label": (change(S, AT, 11), S, ["image 66", "holds 11", "row 5, column 7", "0..10"]),
    "negative label": (change(S, AT, -1, np.int64), S, ["image 66", "holds -1", "0..10"]),
    "wide label": (change(S, AT, 2**40, np.int64), S, ["image 66", f"holds {2**40}"]),
    "pixel": (change(C, AT, 256, np.int32), C, ["image 66", "holds 256", "0..255"]),
    "negative pixel": (change(C, AT, -3, np.int16), C, ["image 66", "holds -3"]),
    "lengths": (replace(C, lambda a: a[:-1]), S, ["69 images", "truth for 70"]),
    "size": (replace(C, lambda a: a.reshape(-1, 84, 64)), C, ["(70, 84, 64)", "(N, 64, 84)"]),
    "truth size": (replace(S, lambda a: a.reshape(-1, 84, 64)), S, ["(70, 84, 64)", "(N, 64, 84)"]),
    "channels": (replace(S, lambda a: one_hot(a)[..., :10]), S, ["(70, 64, 84, 10)"]),
    "a number": (replace(C, lambda a: np.array(3)), C, ["shape ()"]),
    "no images": (lambda f: save(f, *images_and_labels(0)), C, []),
    "float": (replace(C, lambda a: a / 255.0), C, ["float64", "expected integers"]),
    "bool": (replace(S, lambda a: one_hot(a) > 0), S, ["bool", "expected integers"]),
    "missing images": (lambda f: (f / C).unlink(), C, ["is missing"]),
    "missing truth": (lambda f: (f / S).unlink(), S, ["is missing"]),
    "objects": (pickled, S, ["not a whole .npy file"]),
    "pickle": (bare_pickle, C, ["not a whole .npy file"]),
    "truncated": (cut(S, -1), S, ["not a whole .npy file"]),
    "truncated header": (cut(C, 40), C, ["not a whole .npy file"]),
    "damaged header": (
        lambda f: (f / C).write_bytes((f / C).read_bytes().replace(b")", b"(")),
        C,
        ["whole .npy"],
    ),
    "long header": (
        lambda f: (f / C).write_bytes(b"\x93NUMPY\1\0\xff\xff" + bytes(70000)),
        C,
        ["whole .npy"],
    ),
    "empty": (cut(C, 0), C, ["not a whole .npy file"]),
    "text": (lambda f: (f / S).write_text("<!DOCTYPE html>" * 20), S, ["not a whole .npy file"]),
    "folder": (make_folder, C, ["is a folder"]),
    "device": (make_device, C, ["a device or pipe"]),
    "fewer announced": (announce_fewer, C, ["161280 bytes left over", "(40, 64, 84)"]),
    "more announced": (with_header(header(), bytes(5376)), C, ["whole .npy"]),
    "huge": (with_header(header(shape=f"({10**30}, 64, 84)")), C, ["whole .npy"]),
    "overflow": (with_header(header(shape=f"({2**62}, 64, 84)")), C, ["whole .npy"]),
    "negative": (with_header(header(shape="(-70, 64, 84)")), C, ["whole .npy"]),
    "two negatives": (with_header(header(shape="(-70, -64, 84)"), bytes(70 * 64 * 84)), C, []),
    "no bytes": (with_header(header(descr="'|V0'")), C, []),
    "structured": (with_header(header(descr=repr([(f"{i:020}", "u1") for i in range(70)]))), C, []),
    "nested": (with_header("(" * 5000 + ")" * 5000), C, ["whole .npy"]),
    "signs": (with_header("-" * 9000 + "1"), C, ["whole .npy"]),
    "long text": (with_header("'" + "a" * 9000 + "'"), C, ["whole .npy"]),
    "escapes": (with_header(r"{'\d': 1}"), C, ["whole .npy"]),
    "nulls": (with_header("\0" * 9000), C, ["whole .npy"]),
    "version 9": (with_header(header(), version=9), C, ["whole .npy"]),
    "version 3": (with_header(header(shape="(0, 64, 84)"), version=3), C, []),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_named(tmp_path, recwarn, case):
    spoil, name, words = BAD[case]
    save(tmp_path, *images_and_labels())
    read_m2nist(tmp_path)
    spoil(tmp_path)
    with pytest.raises(DataError) as caught:
        read_m2nist(tmp_path)
    for word in [str(tmp_path / name), *words]:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    assert not recwarn.list


@pytest.mark.parametrize(
    ("position", "value", "words"),
    [
        ((66, 5, 7, 3), 2, ["image 66 holds 2 at row 5, column 7", "0..1"]),
        ((66, 5, 7, slice(None)), 0, ["image 66 has 0 ones", "row 5, column 7"]),
        ((66, 5, 7, slice(1, 4)), 1, ["image 66 has", "ones"]),
        ((66, 5, 7, 0), -1, ["image 66 holds -1"]),
    ],
)
def test_bad_one_hot_rows_are_named(tmp_path, position, value, words):
    images, labels = images_and_labels()
    truth = one_hot(labels, np.int64)
    truth[position] = value
    save(tmp_path, images, truth)
    with pytest.raises(DataError) as caught:
        read_m2nist(tmp_path)
    for word in [str(tmp_path / S), *words]:
        assert word in str(caught.value)


def test_missing_folder(tmp_path):
    with pytest.raises(DataError, match=r"absent.*is missing: give a folder"):
        read_m2nist(tmp_path / "absent")


# Writing fails


@pytest.mark.parametrize("name", [C, S])
def test_existing_files_are_not_overwritten(tmp_path, name):
    (tmp_path / name).write_text("precious")
    with pytest.raises(DataError, match=f"{name} is there already"):
        write_m2nist(tmp_path, chunks(*images_and_labels()), COUNT)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "precious"


@pytest.mark.parametrize("limit", [100_000, 400_000])
def test_a_full_disk_leaves_nothing(tmp_path, limit):
    # 70 images are 376,448 bytes: the first limit stops both files, the second only the one-hot truth.
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(DataError, match=r"\.npy cannot be written \(File too large\): free some space"):
            write_m2nist(tmp_path, chunks(*images_and_labels()), COUNT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_small_write_to_a_full_disk_leaves_nothing(tmp_path):
    # One image of labels is small enough to sit in the files' buffers until the very end.
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(DataError, match="cannot be written"):
            write_m2nist(tmp_path, chunks(*images_and_labels(1)), 1, one_hot=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_leaves_nothing(tmp_path):
    def interrupted():
        yield from chunks(*images_and_labels(30))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_m2nist(tmp_path, interrupted(), COUNT)
    assert list(tmp_path.iterdir()) == []


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file cannot be written to.*choose a folder"):
        write_m2nist(tmp_path / "file", chunks(*images_and_labels()), COUNT)


def test_wrong_chunks(tmp_path):
    images, labels = images_and_labels(3)
    for bad, word in [
        ((images.astype(np.float32), labels), "images are float32"),
        ((images[:, :60], labels), "images are uint8"),
        ((images, labels[:2]), "labels are uint8"),
        ((images, labels + 1), r"labels are 1\.\.11"),
    ]:
        with pytest.raises(ValueError, match=word):
            write_m2nist(tmp_path, [bad], 3)
    for count in (2, 4):
        with pytest.raises(ValueError, match=f"3 images, expected {count}"):
            write_m2nist(tmp_path, [(images, labels)], count)
    assert list(tmp_path.iterdir()) == []


# The split


@pytest.mark.parametrize(("count", "train_count"), [(5000, 4000), (2, 1), (7, 5), (100, 80)])
def test_split_parts(count, train_count):
    train, test = split_indices(count)
    assert len(train) == train_count and sorted([*train, *test]) == list(range(count))
    assert (np.diff(train) > 0).all() and (np.diff(test) > 0).all()
    np.testing.assert_array_equal(split_indices(count)[1], test)


def test_split_is_fixed_for_good():
    # Figures measured on the test part hold only as long as it stays the same part.
    train, test = split_indices(5000)
    assert test[:5].tolist() == [3, 9, 16, 20, 23] and int(train.sum()) == 9_916_835
    assert split_indices(10)[1].tolist() == [1, 8]


def test_split_needs_two_images():
    with pytest.raises(DataError, match="1 image"):
        split_indices(1)
