"""Reading any image, cutting large ones into tiles, saving what was predicted."""

import os
import struct
import sys
import threading
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from tinyfcn import images
from tinyfcn.errors import DataError
from tinyfcn.images import predict_image, read_image, save_prediction


@pytest.fixture
def drawing():
    """A bright, lopsided stroke on black, uint8 (30, 40)."""
    image = np.zeros((30, 40), np.uint8)
    image[5:25, 8:12] = 255
    image[21:25, 8:30] = 200
    return image


def rgba(image, colour, alpha):
    layers = [np.full(image.shape, value, np.uint8) for value in colour]
    return Image.fromarray(np.stack([*layers, alpha], axis=-1))


def rotated(image):
    """The image lying on its side, with the EXIF entry that says so."""
    image = Image.fromarray(np.rot90(image).copy())
    image.getexif()[0x0112] = 6
    return image


ENCODINGS = {
    "grey.png": (Image.fromarray, None),
    "grey.jpg": (Image.fromarray, "halo of compression made 0"),
    "bits.png": (lambda p: Image.fromarray(p > 100), None),
    "rgb.png": (lambda p: Image.fromarray(p).convert("RGB"), "RGB colours turned to grey"),
    "cmyk.jpg": (lambda p: Image.fromarray(p).convert("RGB").convert("CMYK"), "CMYK colours"),
    "palette.gif": (lambda p: Image.fromarray(p).convert("RGB").convert("P"), "palette colours"),
    "upright.png": (rotated, "upright"),
    "dark.png": (lambda p: Image.fromarray(255 - p), "dark on white, so inverted"),
    "16-bit.png": (lambda p: Image.fromarray(p.astype(np.uint16) * 257), "0 to 65535 scaled"),
    "12-bit.png": (lambda p: Image.fromarray(p.astype(np.uint16) * 16), "0 to 4095 scaled"),
    "16-bit-dark.png": (lambda p: Image.fromarray(65535 - p.astype(np.uint16) * 257), "inverted"),
    "32-bit.tiff": (lambda p: Image.fromarray(p.astype(np.int32)), "0 to 255 scaled"),
    "float.tiff": (lambda p: Image.fromarray(p.astype(np.float32) / 255), "0 to 1 scaled"),
    "signed.tiff": (lambda p: Image.fromarray(p.astype(np.float32) - 100), "-100 to 155 scaled"),
    "white-ink.png": (lambda p: rgba(p, (255, 255, 255), p), "transparent parts made black"),
    "black-ink.png": (lambda p: rgba(p, (0, 0, 0), p), "transparent parts made white; dark on white"),
    "grey-alpha.png": (
        lambda p: Image.merge("LA", [Image.new("L", p.shape[::-1]), Image.fromarray(p)]),
        "inv",
    ),
    "opaque.png": (lambda p: Image.fromarray(p).convert("RGBA"), None),
}


@pytest.mark.parametrize("name", ENCODINGS)
def test_every_encoding_gives_white_on_black_with_a_notice(name, drawing, tmp_path):
    encode, expected_notice = ENCODINGS[name]
    image = encode(drawing)
    image.save(tmp_path / name, exif=image.getexif())
    notices = []
    found = read_image(tmp_path / name, notice=notices.append)
    assert found.dtype == np.uint8 and found.shape == drawing.shape
    expected = np.where(drawing > 100, 255, 0) if name == "bits.png" else drawing
    worst = np.abs(found.astype(int) - expected).max()
    assert worst <= (40 if name.endswith(("jpg", "gif")) else 1)
    assert len(notices) == (expected_notice is not None)
    if expected_notice:
        assert expected_notice in notices[0] and name in notices[0]


def test_opaque_paper_with_transparent_corners_stays_paper(drawing, tmp_path):
    alpha = np.full(drawing.shape, 255, np.uint8)
    alpha[:3, :3] = 0
    page = np.stack([255 - drawing] * 3 + [alpha], axis=-1)
    page[:3, :3, :3] = 0
    Image.fromarray(page).save(tmp_path / "page.png")
    np.testing.assert_array_equal(read_image(tmp_path / "page.png"), drawing)


def test_invert_overrules_the_guess(drawing, tmp_path):
    Image.fromarray(drawing).save(tmp_path / "light.png")
    Image.fromarray(255 - drawing).save(tmp_path / "dark.png")
    np.testing.assert_array_equal(read_image(tmp_path / "light.png", invert=True), 255 - drawing)
    np.testing.assert_array_equal(read_image(tmp_path / "dark.png", invert=True), drawing)
    np.testing.assert_array_equal(read_image(tmp_path / "dark.png", invert=False), 255 - drawing)


def test_only_the_first_frame_of_a_film_is_read(drawing, tmp_path):
    frames = [Image.fromarray(drawing), Image.fromarray(255 - drawing)]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    notices = []
    np.testing.assert_array_equal(read_image(tmp_path / "film.gif", notice=notices.append), drawing)
    assert "first of 2 frames" in notices[0]


def promise(side):
    """A PNG whose header promises side x side pixels, and that ends there."""
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    checksum = struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + checksum + b"\0\0\1\0IDAT"


BAD_FILES = {
    "none.png": (None, "does not exist"),
    "empty.png": (b"", "is empty"),
    "text.png": (b"I am not one\n" * 9, "is not an image"),
    "page.jpg": (b"<!DOCTYPE html><html></html>", "is not an image"),
    "signature.png": (promise(30)[:12], "cut short"),
    "header.png": (promise(30), "is damaged"),
    "large.png": (promise(8_000), "too large"),
    "larger.png": (promise(12_000), "too large"),
    "bomb.png": (promise(60_000), "too large"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_get_one_clear_line(name, tmp_path):
    content, expected = BAD_FILES[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=expected) as caught:
        read_image(tmp_path / name)
    assert name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["cut.png", "cut.jpg", "cut.gif", "cut.tiff", "cut.bmp"])
def test_a_truncated_image_is_an_error_not_half_an_image(name, tmp_path):
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (60, 60)).astype(np.uint8)).save(tmp_path / name)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:1500])
    with pytest.raises(DataError, match=name):
        read_image(tmp_path / name)


def exif(orientation):
    """An EXIF block that holds just this, as little-endian TIFF."""
    return b"Exif\0\0II*\0\x08\0\0\0\1\0" + struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0) + bytes(4)


BAD_EXIF = {
    "empty": b"Exif\0\0",
    "garbage": b"Exif\0\0garbagegarbage",
    "cut": exif(6)[:-9],
    "outside": b"Exif\0\0II*\0\xff\xff\0\0",
    "many": b"Exif\0\0II*\0\x08\0\0\0\xff\0" + exif(1)[16:28],
    "orientation 0": exif(0),
    "orientation 9": exif(9),
}


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("case", BAD_EXIF)
def test_junk_around_sound_pixels_is_ignored(case, suffix, drawing, tmp_path, recwarn):
    image = Image.fromarray(drawing)
    image.save(tmp_path / f"sound.{suffix}")
    image.save(tmp_path / f"junk.{suffix}", exif=BAD_EXIF[case].removeprefix(b"Exif\0\0" if suffix == "png" else b""))
    notices = []
    found = read_image(tmp_path / f"junk.{suffix}", notice=notices.append)
    np.testing.assert_array_equal(found, read_image(tmp_path / f"sound.{suffix}", notice=lambda text: None))
    assert "upright" not in "".join(notices) and not recwarn.list


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["turned.png", "turned.jpg", "raw.tiff", "lzw.tiff"])
def test_every_orientation_is_turned_upright(orientation, name, drawing, tmp_path):
    lying = Image.fromarray(drawing)
    if orientation > 1:  # the inverse of what a reader is to do
        inverse = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
        lying = lying.transpose(inverse.get(orientation, images.UPRIGHT[orientation]))
    options = {"lzw.tiff": {"compression": "tiff_lzw"}, "turned.jpg": {"quality": 95}}.get(name, {})
    block = lying.getexif()
    block[0x0112] = orientation
    lying.save(tmp_path / name, exif=block, **options)
    notices = []
    found = read_image(tmp_path / name, notice=notices.append).astype(int)
    assert found.shape == drawing.shape and np.abs(found - drawing).max() <= (40 if name.endswith("jpg") else 0)
    assert ("turned upright" in "".join(notices)) == (orientation > 1)


def test_no_warning_of_pillow_reaches_the_user(drawing, tmp_path, recwarn):
    image = Image.fromarray(drawing).convert("P")
    image.save(tmp_path / "palette.png", transparency=bytes(range(256)))
    read_image(tmp_path / "palette.png", notice=lambda text: None)
    (tmp_path / "large.png").write_bytes(promise(9_500))  # Pillow warns of so many pixels
    with pytest.raises(DataError, match="too large"):
        read_image(tmp_path / "large.png")
    assert not recwarn.list


@pytest.mark.skipif(sys.platform == "win32", reason="it has no such pipes")
def test_an_image_from_a_pipe(drawing, tmp_path):
    Image.fromarray(drawing).save(tmp_path / "plain.png")
    content = (tmp_path / "plain.png").read_bytes()
    os.mkfifo(tmp_path / "pipe.png")
    for sent, words in ((content, None), (b"", "is empty"), (content[:50], "cut short|damaged")):
        writer = threading.Thread(target=(tmp_path / "pipe.png").write_bytes, args=(sent,), daemon=True)
        writer.start()
        if words is None:
            np.testing.assert_array_equal(read_image(tmp_path / "pipe.png"), drawing)
        else:
            with pytest.raises(DataError, match=rf"pipe\.png.*({words})"):
                read_image(tmp_path / "pipe.png")
        writer.join()


@pytest.mark.skipif(sys.platform == "win32", reason="it has no such device")
def test_no_more_is_read_than_an_image_may_have(monkeypatch):
    monkeypatch.setattr(images, "MAX_FILE", 1 << 20)
    with pytest.raises(DataError, match="/dev/zero is longer than 1 MB; expected an image"):
        read_image("/dev/zero")


def test_folders_and_nan_are_errors(tmp_path):
    with pytest.raises(DataError, match="is a folder"):
        read_image(tmp_path)
    Image.fromarray(np.full((30, 30), np.nan, np.float32)).save(tmp_path / "nan.tiff")
    with pytest.raises(DataError, match="NaN"):
        read_image(tmp_path / "nan.tiff")


RECEPTIVE_FIELD = 44


def far_sighted(x, blocks=RECEPTIVE_FIELD // 4):
    """Two probabilities that depend on pixels as far away as RECEPTIVE_FIELD allows.

    They are exact: sums of small integers, scaled by 2^-15.

    As in the networks, pooling windows begin at multiples of 4 and what lies outside counts as nothing.
    Channel 0 depends on pixels above and to the left, channel 1 on pixels below and to the right.
    """
    pixels = np.rint(x[0, 0] * 127 + 127)
    height, width = pixels.shape
    pooled = pixels.reshape(height // 4, 4, width // 4, 4).max(axis=(1, 3))
    down = np.zeros_like(pooled)
    up = np.zeros_like(pooled)
    for shift in range(min(blocks, len(pooled))):
        down[shift:] += pooled[: len(pooled) - shift]
        up[: len(pooled) - shift] += pooled[shift:]
    left, right = np.zeros_like(pooled), np.zeros_like(pooled)
    for shift in range(min(blocks, pooled.shape[1])):
        left[:, shift:] += down[:, : pooled.shape[1] - shift]
        right[:, : pooled.shape[1] - shift] += up[:, shift:]
    return np.stack([left, right]).repeat(4, axis=1).repeat(4, axis=2)[None].astype(np.float32) / 2**15


@pytest.fixture
def large():
    return np.random.default_rng(3).integers(0, 256, (301, 430)).astype(np.uint8)


def predict_whole(image):
    return predict_image(far_sighted, image, RECEPTIVE_FIELD, tile=4096)


@pytest.mark.parametrize("tile", [96, 100, 130, 256, 304, 400, 511])
def test_tiles_give_what_the_whole_image_gives(large, tile):
    whole_labels, whole_masks = predict_whole(large)
    labels, masks = predict_image(far_sighted, large, RECEPTIVE_FIELD, tile=tile)
    assert labels.shape == large.shape and masks.shape == (2, *large.shape)
    assert 0.2 < labels.mean() < 0.8 and len(np.unique(masks)) > 50
    np.testing.assert_array_equal(labels, whole_labels)
    np.testing.assert_array_equal(masks, whole_masks)


@pytest.mark.parametrize(("receptive_field", "multiple"), [(RECEPTIVE_FIELD - 8, 4), (0, 4), (RECEPTIVE_FIELD + 1, 1)])
def test_the_tile_test_sees_too_small_an_overlap_and_misaligned_tiles(large, receptive_field, multiple):
    def aligned(x):  # lets tiles of any size through
        rows, columns = x.shape[2:]
        padded = np.pad(x, [(0, 0), (0, 0), (0, -rows % 4), (0, -columns % 4)], constant_values=-1)
        return far_sighted(padded)[..., :rows, :columns]

    masks = predict_image(aligned, large, receptive_field, multiple, tile=130)[1]
    assert (masks != predict_whole(large)[1]).any()


def test_small_and_odd_sizes_are_padded_with_black_and_cropped():
    seen = []

    def copy(x):
        seen.append(x[0, 0])
        ink = (x[:, 0] + 1) / 2
        return np.stack([ink, 1 - ink], axis=1)

    for size, expected in [
        ((28, 28), (64, 84)),
        ((20, 3), (64, 84)),
        ((65, 90), (68, 92)),
        ((64, 84), (64, 84)),
    ]:
        image = np.random.default_rng(5).integers(0, 128, size).astype(np.uint8) * 2
        labels, masks = predict_image(copy, image, RECEPTIVE_FIELD)
        padded = np.rint(seen.pop() * 127 + 127)
        assert padded.shape == expected and padded.sum() == image.sum()
        np.testing.assert_array_equal(masks[0], np.rint(image / 254 * 255))
        np.testing.assert_array_equal(labels, image < 127)


@pytest.mark.parametrize("shape", [(5, 5), (1, 1), (19, 19), (0, 40)])
def test_an_image_too_small_for_a_digit_is_an_error(shape):
    with pytest.raises(DataError, match=rf"icon.png is {shape[0]}x{shape[1]} pixels.*enlarge"):
        predict_image(far_sighted, np.zeros(shape, np.uint8), RECEPTIVE_FIELD, name="icon.png")


@pytest.mark.parametrize("image", [np.zeros((64, 84)), np.zeros((64, 84, 3), np.uint8), [[0]]])
def test_only_grey_8_bit_arrays_are_taken(image):
    with pytest.raises(ValueError, match=r"uint8 array \(H, W\)"):
        predict_image(far_sighted, image, RECEPTIVE_FIELD)


def test_a_large_image_stays_far_below_2_gb():
    largest = 0

    def predict_tile(x):
        nonlocal largest
        largest = max(largest, x.size)
        return np.broadcast_to(x, (1, 11, *x.shape[2:]))

    tracemalloc.start()
    _, masks = predict_image(predict_tile, np.full((2000, 3000), 254, np.uint8), RECEPTIVE_FIELD)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert masks.shape == (11, 2000, 3000)
    assert largest <= 512 * 512 and peak < 200e6


@pytest.fixture
def predicted(drawing):
    labels = np.full(drawing.shape, 10, np.uint8)
    labels[drawing > 0] = 4
    labels[24, 29] = 9
    masks = np.where(np.arange(11)[:, None, None] == labels, 250, 3).astype(np.uint8)
    return drawing, labels, masks


def test_saved_masks_read_back_as_labels_and_probabilities(predicted, tmp_path):
    image, labels, masks = predicted
    folder = save_prediction(tmp_path / "new" / "out", "four", image, labels, masks)
    expected = {"mask.png", "overlay.png", *(f"digit-{digit}.png" for digit in range(10))}
    assert folder == tmp_path / "new" / "out" / "four"
    assert {file.name for file in folder.iterdir()} == expected
    with Image.open(folder / "mask.png") as mask:
        np.testing.assert_array_equal(np.asarray(mask), labels)
        np.testing.assert_array_equal(np.asarray(mask.convert("RGB")), images.PALETTE[labels])
    for digit in range(10):
        with Image.open(folder / f"digit-{digit}.png") as image:
            np.testing.assert_array_equal(np.asarray(image), masks[digit])
    with Image.open(folder / "overlay.png") as image:
        overlay = np.asarray(image)
    np.testing.assert_array_equal(overlay[labels == 10], 0)
    assert np.abs(overlay[10, 9] - (0.6 * images.PALETTE[4] + 0.4 * 255)).max() <= 1


def test_same_name_never_overwrites(predicted, tmp_path):
    folders = [save_prediction(tmp_path, "four", *predicted).name for _ in range(3)]
    assert folders == ["four", "four-2", "four-3"]
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match="file"):
        save_prediction(tmp_path / "file", "four", *predicted)
    assert (tmp_path / "file").read_text() == "mine"


def test_two_classes_are_ink_and_background(drawing, tmp_path):
    labels = np.where(drawing > 0, 0, 1).astype(np.uint8)
    masks = np.stack([drawing, 255 - drawing])
    folder = save_prediction(tmp_path, "ink", drawing, labels, masks)
    assert {file.name for file in folder.iterdir()} == {"mask.png", "overlay.png", "ink.png"}
    assert (np.asarray(Image.open(folder / "overlay.png"))[labels == 1] == 0).all()


# Deficient colour vision, applied to linear RGB: Machado, Oliveira, Fernandes (2009), severity 1.0.
SIGHTS = {
    "normal": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.01182, 0.04294, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.3039],
    ],
}
# Ottosson (2020), OKLab: linear RGB to cone responses, their cube roots to lightness and two axes of colour.
TO_CONES = [[0.412221, 0.536333, 0.051446], [0.211903, 0.6807, 0.107397], [0.088302, 0.281719, 0.629979]]
TO_OKLAB = [[0.210454, 0.793618, -0.004072], [1.977998, -2.428592, 0.450594], [0.025904, 0.782772, -0.808676]]


@pytest.mark.parametrize("sight", SIGHTS)
def test_any_two_colours_can_be_told_apart(sight):
    colour = images.PALETTE / 255
    linear = np.where(colour <= 0.04045, colour / 12.92, ((colour + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.transpose(SIGHTS[sight]), 0, 1)
    oklab = np.cbrt(seen @ np.transpose(TO_CONES)) @ np.transpose(TO_OKLAB)
    distance = np.linalg.norm(oklab[:, None] - oklab, axis=-1) + 9 * np.eye(11)
    assert distance.min() > 0.10


def test_the_halo_of_compression_is_not_ink(drawing, tmp_path):
    big = np.kron(drawing, np.ones((4, 4), np.uint8))
    Image.fromarray(big).save(tmp_path / "lossy.jpg", quality=60)
    decoded = np.asarray(Image.open(tmp_path / "lossy.jpg"))
    assert ((decoded > 0) & (big == 0)).sum() > 50, "there is a halo to be removed"
    notices = []
    pixels = read_image(tmp_path / "lossy.jpg", notice=notices.append)
    assert ((pixels > 0) & (big == 0)).sum() < 20
    assert (pixels[big > 100] > 0).all()
    assert notices[0].endswith("made 0")


def test_uneven_paper_becomes_black(drawing, tmp_path):
    random = np.random.default_rng(0)
    paper = np.clip(random.normal(225, 4, drawing.shape) - drawing * 0.8, 0, 255).astype(np.uint8)
    Image.fromarray(paper).save(tmp_path / "scan.png")
    pixels = read_image(tmp_path / "scan.png", notice=lambda text: None)
    assert (pixels[drawing == 0] == 0).all()
    assert (pixels[drawing > 120] > 0).all()


def test_faint_ink_on_true_black_stays(tmp_path):
    faint = np.zeros((40, 40), np.uint8)
    faint[10:30, 20] = 1
    Image.fromarray(faint).save(tmp_path / "faint.png")
    np.testing.assert_array_equal(read_image(tmp_path / "faint.png"), faint)
