"""Files with random damage: each is read, or refused by one short line; no other error, and no warning."""

import gzip
import io
import warnings

import numpy as np
import pytest
from helpers.idx_files import idx_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tinyfcn.data import mnist, read_m2nist
from tinyfcn.errors import DataError
from tinyfcn.images import read_image

HEADER = 128  # most damage goes there
SIZES = [b"\0", b"\1", b"\xff" * 2, b"\xff" * 4, b"\x7f" + b"\xff" * 7, b"-1", b"(2,", b"((", b"'|O'", b"9" * 30]

# One change: where, how many bytes go, and what comes in their place.
changes = st.tuples(
    st.one_of(st.integers(0, HEADER), st.integers(0, 20_000)),
    st.one_of(st.integers(0, 8), st.integers(0, 20_000)),
    st.one_of(st.sampled_from(SIZES), st.binary(max_size=8), st.just(bytes(3000))),
)


def damaged(content, edits):
    for start, length, new in edits:
        content = content[:start] + new + content[start + length :]
    return content


def read_or_refused(read):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            return read()
        except DataError as error:
            assert "\n" not in str(error) and len(str(error)) < 600
            return None


IDX = {
    mnist.IMAGES_MAGIC: idx_bytes(np.arange(2352, dtype=np.uint8).reshape(3, 28, 28)),
    mnist.LABELS_MAGIC: idx_bytes(np.array([0, 3, 9], np.uint8)),
}


@pytest.mark.slow
@settings(max_examples=300)
@given(st.sampled_from([*IDX]), st.booleans(), st.lists(changes, max_size=3), st.lists(changes, max_size=3))
def test_idx(magic, packed, inside, outside):
    content = damaged(IDX[magic], inside)
    content = damaged(gzip.compress(content, mtime=0) if packed else content, outside)
    found = read_or_refused(lambda: mnist.read_idx(io.BytesIO(content), magic, "file", "replace it"))
    if found is None:
        assert inside or outside
    else:
        assert len(found) <= mnist.MAX_BYTES


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


IMAGES, LABELS = np.full((2, 64, 84), 7, np.uint8), np.full((2, 64, 84), 10, np.uint8)


@pytest.mark.slow
@settings(max_examples=300)
@given(st.sampled_from(["combined.npy", "segmented.npy"]), st.lists(changes, min_size=1, max_size=3))
def test_npy(tmp_path, name, edits):
    for each, array in (("combined.npy", IMAGES), ("segmented.npy", LABELS)):
        (tmp_path / each).write_bytes(damaged(npy(array), edits) if each == name else npy(array))
    found = read_or_refused(lambda: read_m2nist(tmp_path))
    if found is not None:
        assert found.images.shape == found.labels.shape == (2, 64, 84)


def picture(kind, mode):
    file = io.BytesIO()
    image = Image.fromarray(np.arange(720, dtype=np.uint8).reshape(24, 30)).convert(mode)
    image.getexif()[0x0112] = 6
    image.save(file, kind, exif=image.getexif())
    return file.getvalue()


PICTURES = {kind: picture(kind, mode) for kind, mode in [("PNG", "P"), ("JPEG", "RGB"), ("GIF", "P"), ("WEBP", "RGBA")]}


@pytest.mark.slow
@settings(max_examples=300)
@given(st.sampled_from([*PICTURES]), st.lists(changes, min_size=1, max_size=3))
def test_images(tmp_path, kind, edits):
    (tmp_path / "picture").write_bytes(damaged(PICTURES[kind], edits))
    found = read_or_refused(lambda: read_image(tmp_path / "picture", notice=lambda text: None))
    if found is not None:
        assert found.dtype == np.uint8 and found.ndim == 2
