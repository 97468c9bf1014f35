"""Finding, reading and downloading MNIST's files. The mirrors are servers on this machine."""

import functools
import gzip
import hashlib
import http.server
import os
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from helpers.idx_files import idx_bytes, write_idx, write_mnist

from tinyfcn import environment, files
from tinyfcn.data import mnist
from tinyfcn.errors import DataError

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch, tmp_path):
    for name in ("TINYFCN_DATA", "TINYFCN_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TINYFCN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(mnist, "MIRRORS", ())


class Mirror:
    """A server: `answers` map a file name to (status, bytes sent, bytes announced); notes `requests`."""

    def __init__(self):
        self.answers, self.requests, self.pause = {}, [], 0.0
        mirror = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                name = self.path.rsplit("/", 1)[-1]
                mirror.requests.append(name)
                status, body, announced = mirror.answers.get(name, (404, b"", 0))
                self.send_response(status)
                self.send_header("Content-Length", str(announced))
                self.end_headers()
                self.wfile.write(body[: len(body) // 2])
                time.sleep(mirror.pause)
                self.wfile.write(body[len(body) // 2 :])

            def log_message(self, *arguments):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/mnist/"
        threading.Thread(target=functools.partial(self.server.serve_forever, 0.02), daemon=True).start()

    def serve(self, name, body, status=200, announced=None):
        self.answers[name] = (status, body, len(body) if announced is None else announced)


@pytest.fixture
def mirrors(monkeypatch):
    """Two mirrors that both serve the same four small files, which count as the official ones."""
    pair = Mirror(), Mirror()
    monkeypatch.setattr(mnist, "MIRRORS", tuple(mirror.url for mirror in pair))
    rng = np.random.default_rng(1)
    sums = {}
    for prefix in ("train", "t10k"):
        labels = (np.arange(12) % 10).astype(np.uint8)
        contents = {
            f"{prefix}-images-idx3-ubyte": idx_bytes(rng.integers(0, 256, (12, 28, 28), np.uint8)),
            f"{prefix}-labels-idx1-ubyte": idx_bytes(labels),
        }
        for name, content in contents.items():
            sums[name] = hashlib.sha256(content).hexdigest()
            for mirror in pair:
                mirror.serve(f"{name}.gz", gzip.compress(content))
    monkeypatch.setattr(mnist, "SHA256", sums)
    yield pair
    for mirror in pair:
        mirror.server.shutdown()
        mirror.server.server_close()


def load(split="train", data_dir=None):
    return mnist.load_mnist(split, data_dir, lambda text: None)


def error_of(*arguments):
    with pytest.raises(DataError) as caught:
        load(*arguments)
    assert "\n" not in str(caught.value)
    return caught.value


# Finding


@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize("layout", [".", "raw", "MNIST/raw", "mnist"])
def test_layouts(tmp_path, layout, gz):
    arrays = write_mnist(tmp_path / "root" / layout, gz=gz)
    images, labels = load("test", tmp_path / "root")
    np.testing.assert_array_equal(images, arrays["t10k-images-idx3-ubyte"])
    np.testing.assert_array_equal(labels, arrays["t10k-labels-idx1-ubyte"])
    assert images.dtype == labels.dtype == np.uint8


@pytest.mark.parametrize(
    "spelled", ["{dotted}", "{dotted}.gz", "{name}/{name}", "{name}/{dotted}", "{dotted}/{name}.gz", "{name}.gz/{name}"]
)
def test_names_with_a_dot_and_folders_of_the_same_name(tmp_path, spelled):
    arrays = write_mnist(tmp_path / "plain", gz=spelled.endswith(".gz"))
    for file in sorted((tmp_path / "plain").iterdir()):
        name = file.name.removesuffix(".gz")
        path = tmp_path / spelled.format(name=name, dotted=name.replace("-idx", ".idx"))
        path.parent.mkdir(exist_ok=True)
        file.rename(path)
        (tmp_path / name).mkdir(exist_ok=True)
    for upper in (False, True):
        if upper:  # as file systems of old write names
            for path in sorted(tmp_path.rglob("*-*"), reverse=True):
                path.rename(path.with_name(path.name.upper()))
        np.testing.assert_array_equal(load("train", tmp_path)[0], arrays[IMAGES])


def test_a_stray_file_does_not_hide_a_whole_data_set(tmp_path):
    arrays = write_mnist(tmp_path / "MNIST" / "raw")
    (tmp_path / IMAGES).write_bytes(b"cut")
    np.testing.assert_array_equal(load("train", tmp_path)[0], arrays[IMAGES])


def test_content_tells_whether_a_file_is_gzipped(tmp_path):
    arrays = write_mnist(tmp_path)
    (tmp_path / IMAGES).rename(tmp_path / f"{IMAGES}.gz")
    np.testing.assert_array_equal(load("train", tmp_path)[0], arrays[IMAGES])


def test_argument_before_environment_before_cache(tmp_path, monkeypatch):
    folders_in_order = [tmp_path / "argument", tmp_path / "environment", tmp_path / "cache" / "mnist"]
    arrays = [write_mnist(folder, seed=seed) for seed, folder in enumerate(folders_in_order)]
    sums = {name: hashlib.sha256(idx_bytes(array)).hexdigest() for name, array in arrays[2].items()}
    monkeypatch.setattr(mnist, "SHA256", sums)
    np.testing.assert_array_equal(load()[0], arrays[2][IMAGES])
    monkeypatch.setenv("TINYFCN_DATA", str(folders_in_order[1]))
    np.testing.assert_array_equal(load()[0], arrays[1][IMAGES])
    np.testing.assert_array_equal(load("train", folders_in_order[0])[0], arrays[0][IMAGES])


def test_a_folder_without_the_files_is_an_error_and_downloads_nothing(tmp_path, monkeypatch, mirrors):
    (tmp_path / "empty").mkdir()
    message = str(error_of("train", tmp_path / "empty"))
    assert str(tmp_path / "empty") in message and "--data-dir" in message and IMAGES in message
    monkeypatch.setenv("TINYFCN_DATA", str(tmp_path / "absent"))
    assert "TINYFCN_DATA" in str(error_of()) and "is not a folder" in str(error_of())
    assert mirrors[0].requests == []


def test_a_folder_that_lacks_one_file_names_it(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    message = str(error_of("test", tmp_path))
    assert "lacks t10k-labels-idx1-ubyte" in message and "t10k-images" not in message
    load("train", tmp_path)


# Reading


def test_idx_is_big_endian_with_pixels_in_row_order(tmp_path):
    # Written out by hand: the reader is not only the inverse of the tests' writer.
    pixels = bytes(range(256)) * 6 + bytes(32)
    header = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 28, 0, 0, 0, 28])
    (tmp_path / IMAGES).write_bytes(header + pixels)
    (tmp_path / LABELS).write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9]))
    images, labels = load("train", tmp_path)
    assert images.shape == (2, 28, 28) and images[0, 1, 2] == 30 and images[1, 0, 0] == 784 % 256
    assert labels.tolist() == [7, 9]


def spoil_images(change):
    return lambda folder: (folder / IMAGES).write_bytes(change((folder / IMAGES).read_bytes()))


def spoil_labels(change):
    return lambda folder: (folder / LABELS).write_bytes(change((folder / LABELS).read_bytes()))


def swap(folder):
    (folder / IMAGES).rename(folder / "other")
    (folder / LABELS).rename(folder / IMAGES)
    (folder / "other").rename(folder / LABELS)


def replace_by_folder(folder):
    (folder / LABELS).unlink()
    (folder / LABELS).mkdir()


def replace_by_link(folder):
    (folder / LABELS).unlink()
    (folder / LABELS).symlink_to(folder / "nothing")


def replace_by_device(folder):
    (folder / LABELS).unlink()
    (folder / LABELS).symlink_to(os.devnull)


BAD_FILES = {
    "truncated": (spoil_images(lambda b: b[:-1]), IMAGES, ["is truncated", "9424 bytes", "found 9423"]),
    "trailing": (spoil_labels(lambda b: b + b"\n"), LABELS, ["left over", "20 bytes", "found more"]),
    "header only": (spoil_images(lambda b: b[:9]), IMAGES, ["is truncated", "16 bytes", "found 9"]),
    "three bytes": (spoil_labels(lambda b: b[:3]), LABELS, ["begins with", "2049"]),
    "empty": (spoil_images(lambda b: b""), IMAGES, ["is empty"]),
    "huge sizes": (
        spoil_images(lambda b: b[:4] + b"\xff" * 12 + b[16:]),
        IMAGES,
        ["4294967295x4294967295", "28x28"],
    ),
    "huge count": (spoil_images(lambda b: b[:4] + b"\xff" * 4 + b[8:]), IMAGES, ["4294967295 items", "limit"]),
    "no items": (spoil_labels(lambda b: b[:4] + bytes(4)), LABELS, ["0 items"]),
    "magic": (spoil_images(lambda b: b"\x93NUM" + b[4:]), IMAGES, ["begins with b'\\x93NUM'", "2051"]),
    "swapped": (swap, IMAGES, ["a labels file", "an images file", "swapped"]),
    "images as labels": (
        spoil_labels(lambda b: b"\0\0\x08\x03" + b[4:]),
        LABELS,
        ["an images file", "swapped"],
    ),
    "size": (spoil_images(lambda b: b[:8] + b"\0\0\0\x0e\0\0\0\x38" + b[16:]), IMAGES, ["14x56", "28x28"]),
    "label": (spoil_labels(lambda b: b[:11] + b"\x0a" + b[12:]), LABELS, ["label 3 is 10", "0..9"]),
    "counts": (lambda f: write_idx(f / LABELS, np.zeros(11, np.uint8)), LABELS, ["12 images", "11 labels"]),
    "web page": (
        spoil_images(lambda b: b"\n<!DOCTYPE html><html>"),
        IMAGES,
        ["'<!DOCTYPE html", "a web page"],
    ),
    "zipped web page": (spoil_images(lambda b: gzip.compress(b"\xef\xbb\xbf<?xml version")), IMAGES, ["a web page"]),
    "link to nothing": (replace_by_link, LABELS, ["cannot be read"]),
    "device": (replace_by_device, LABELS, ["a device or pipe"]),
    "cut gzip": (spoil_images(lambda b: gzip.compress(b)[:-9]), IMAGES, ["truncated gzip"]),
    "bad gzip": (spoil_images(lambda b: gzip.compress(b)[:-8] + bytes(8)), IMAGES, ["damaged gzip"]),
    "folder": (replace_by_folder, LABELS, ["is a folder"]),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_named(tmp_path, case):
    spoil, name, words = BAD_FILES[case]
    write_mnist(tmp_path)
    load("train", tmp_path)
    spoil(tmp_path)
    message = str(error_of("train", tmp_path))
    for word in [str(tmp_path / name), *words]:
        assert word in message
    assert "intact copy" in message or "swapped?" in message


@pytest.mark.slow
@pytest.mark.parametrize("count", [12, (mnist.MAX_BYTES - 16) // 784])
def test_a_bomb_is_unpacked_no_further_than_its_header_allows(tmp_path, count):
    write_mnist(tmp_path)
    bomb = b"".join(gzip.compress(part) for part in [struct.pack(">4I", 2051, count, 28, 28), *[bytes(1 << 24)] * 30])
    (tmp_path / IMAGES).write_bytes(bomb)
    tracemalloc.start()
    message = str(error_of("train", tmp_path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert f"{16 + 784 * count} bytes with the header, found more" in message
    assert peak < 784 * count + (160 << 20), "the bomb holds 503 MB; gzip unpacks up to 132 MB of it at a time"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="permissions do not bind root")
def test_unreadable_file(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / LABELS).chmod(0)
    assert "cannot be read (Permission denied)" in str(error_of("train", tmp_path))


# Downloading


def test_download_once(mirrors):
    first, second = mirrors
    images, labels = load("train")
    assert images.shape == (12, 28, 28) and labels.tolist() == [*range(10), 0, 1]
    assert sorted(first.requests) == sorted(f"{name}.gz" for name in mnist.SHA256)
    load("test")
    load("train")
    assert len(first.requests) == 4 and second.requests == []


def test_one_line_a_file_where_no_terminal_is(mirrors):
    lines = []
    mnist.load_mnist("train", None, lines.append)
    assert len(lines) == 4 and lines[0] == f"Downloading {mirrors[0].url}{IMAGES}.gz"


def whole(mirror):
    return mirror.answers[f"{IMAGES}.gz"][1]


ANOTHER = gzip.compress(idx_bytes(np.ones((12, 28, 28), np.uint8)))
BAD_ANSWERS = {
    "404": (lambda m: m.serve(f"{IMAGES}.gz", b"", 404), "404"),
    "500": (lambda m: m.serve(f"{IMAGES}.gz", b"oops", 500), "500"),
    "truncated": (
        lambda m: m.serve(f"{IMAGES}.gz", whole(m)[:100], announced=len(whole(m))),
        "truncated, 100 of",
    ),
    "truncated there": (lambda m: m.serve(f"{IMAGES}.gz", whole(m)[:-4]), "truncated gzip"),
    "web page": (lambda m: m.serve(f"{IMAGES}.gz", b"<!DOCTYPE html><html>sign in</html>"), "web page"),
    "another file": (lambda m: m.serve(f"{IMAGES}.gz", ANOTHER), "SHA-256"),
    "endless": (lambda m: m.serve(f"{IMAGES}.gz", bytes(mnist.MAX_DOWNLOAD + 9)), "longer than"),
    "empty": (lambda m: m.serve(f"{IMAGES}.gz", b""), "empty"),
    "silent": (lambda m: setattr(m, "pause", 1.0), "timed out"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", BAD_ANSWERS)
def test_bad_answers_lead_to_the_next_mirror_and_leave_nothing(tmp_path, monkeypatch, mirrors, case):
    spoil, word = BAD_ANSWERS[case]
    monkeypatch.setattr(mnist, "TIMEOUT_SECONDS", 0.2 if case == "silent" else 10.0)
    spoil(mirrors[0])
    monkeypatch.setattr(mnist, "MIRRORS", (mirrors[0].url,))
    error = error_of()
    assert isinstance(error, mnist.MnistUnavailable)
    assert word in str(error) and f"{mirrors[0].url}{IMAGES}.gz" in str(error) and "--data-dir" in str(error)
    assert list((tmp_path / "cache" / "mnist").iterdir()) == []
    monkeypatch.setattr(mnist, "MIRRORS", tuple(mirror.url for mirror in mirrors))
    assert len(load()[0]) == 12
    assert f"{IMAGES}.gz" in mirrors[1].requests


def test_no_server_at_all(mirrors):
    for mirror in mirrors:
        mirror.server.shutdown()
        mirror.server.server_close()
    message = str(error_of())
    assert "refused" in message.lower() and "urlopen" not in message


def test_offline_touches_no_network(monkeypatch, mirrors):
    monkeypatch.setenv("TINYFCN_OFFLINE", "1")
    error = error_of()
    assert isinstance(error, mnist.MnistUnavailable) and "TINYFCN_OFFLINE" in str(error)
    assert mirrors[0].requests == []
    monkeypatch.setenv("TINYFCN_OFFLINE", "False")
    load()


def test_only_what_is_missing_is_downloaded(tmp_path, mirrors):
    load()
    (tmp_path / "cache" / "mnist" / f"{LABELS}.gz").unlink()
    mirrors[0].requests.clear()
    load("test")
    assert mirrors[0].requests == [f"{LABELS}.gz"]


def test_the_cache_must_hold_the_official_content(tmp_path, mirrors):
    load()
    path = write_idx(tmp_path / "cache" / "mnist" / LABELS, np.zeros(12, np.uint8), gz=True)
    error = error_of()
    assert "SHA-256" in str(error) and f"{path} is not" in str(error) and "delete the file" in str(error)
    assert not isinstance(error, mnist.MnistUnavailable)
    path.unlink()
    load()


@pytest.mark.slow
def test_processes_at_once(tmp_path, mirrors):
    for mirror in mirrors:
        mirror.pause = 0.1
    script = (
        "from tinyfcn.data import mnist\n"
        f"mnist.MIRRORS = {mnist.MIRRORS!r}\n"
        f"mnist.SHA256 = {mnist.SHA256!r}\n"
        "print(int(mnist.load_mnist('train', None, lambda text: None)[0].sum()))\n"
    )
    command = [sys.executable, "-c", script]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert outputs == [f"{int(load()[0].sum(dtype=np.int64))}\n"] * 3
    assert sorted(path.name for path in (tmp_path / "cache" / "mnist").iterdir()) == sorted(
        f"{name}.gz" for name in mnist.SHA256
    )


def test_threads_at_once(tmp_path, mirrors):
    sums = []
    threads = [threading.Thread(target=lambda: sums.append(load()[0].sum())) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(sums) == 6 and len(set(sums)) == 1
    assert len(list((tmp_path / "cache" / "mnist").iterdir())) == 4


def test_unwritable_cache_is_not_taken_for_a_lack_of_network(tmp_path, monkeypatch, mirrors):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TINYFCN_CACHE", str(tmp_path / "file" / "cache"))
    error = error_of()
    assert str(tmp_path / "file" / "cache") in str(error) and "set TINYFCN_CACHE" in str(error)
    assert not isinstance(error, mnist.MnistUnavailable)


# Folders


def test_cache_folder(monkeypatch, tmp_path):
    assert environment.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("TINYFCN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    if sys.platform == "linux":
        assert environment.cache_folder() == tmp_path / "xdg" / "tinyfcn"
    assert environment.cache_folder().name.lower() in ("tinyfcn", "cache")


def test_new_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "file"
    with pytest.raises(KeyboardInterrupt), files.new_file(path, "") as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with files.new_file(path, "") as file:
        file.write(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole" and list(tmp_path.iterdir()) == [path]
    before = path.stat().st_ino
    with files.new_file(path, "") as first, files.new_file(path, "") as second:
        first.write(b"first")
        second.write(b"second")
    assert path.read_bytes() == b"first" and path.stat().st_ino != before  # a reader's old file was not touched
    with (
        pytest.raises(DataError, match=r"cannot be written \(no space\): go elsewhere"),
        files.new_file(path, "go elsewhere"),
    ):
        raise OSError("no space")
    assert path.read_bytes() == b"first" and list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is a folder that even root cannot write to")
def test_a_folder_that_is_there_but_unwritable():
    with pytest.raises(DataError, match=r"the folder /proc cannot be written to \(.*\): go elsewhere"):
        files.make_folder(Path("/proc"), "go elsewhere")


def test_new_file_does_not_narrow_permissions(tmp_path):
    with files.new_file(tmp_path / "new", ""):
        pass
    (tmp_path / "plain").touch()
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "plain").stat().st_mode
