"""A trained run loaded from Python: three lines from a NumPy image to masks, and clear errors for other folders."""

import copy
import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import numpy as np
import pytest
from safetensors.numpy import save_file

import tinyfcn
from tinyfcn.data import Digits
from tinyfcn.errors import CheckpointError, DataError
from tinyfcn.model import Model
from tinyfcn.networks import Design
from tinyfcn.reference.compose_m2nist import compose_m2nist
from tinyfcn.runs import STATE, Run

DESIGNS = {
    "skip": Design(),
    "early": Design("early", article_skip=True),
    "corrected": Design("corrected", reduce="last", upsample="once"),
    "binary": Design(labels="binary"),
}


def save_run(folder, design, seed=3):
    """A run folder with the initial weights of a design: untrained, but loaded as any other is."""
    network = design.build(tinyfcn.on("cpu"), seed)
    folder.mkdir(parents=True)
    run = Run(folder)
    run.write_json("config.json", {"command": "train-fcn", "design": asdict(design)})
    run.save(network.numpy_parameters(), {"design": json.dumps(asdict(design))})
    return network


def images(count=3):
    """M2NIST images, uint8 (count, 64, 84), of digits that are blots."""
    random = np.random.default_rng(0)
    images = np.zeros((20, 28, 28), np.uint8)
    images[:, 4:24, 6:22] = random.integers(0, 256, (20, 20, 16))
    digits = Digits(images, np.arange(20, dtype=np.uint8) % 10, "mnist")
    composed, _ = compose_m2nist(digits.images, digits.labels, 1, 0, count)
    return np.rint(composed[:, 0] * 127 + 127).astype(np.uint8)


@pytest.mark.parametrize("name", DESIGNS)
def test_three_lines_from_a_run_to_masks(tmp_path, name):
    network = save_run(tmp_path / "run", DESIGNS[name])
    image = images(1)[0]

    model = tinyfcn.load(tmp_path / "run", "cpu")
    labels, masks = model.predict(image)

    assert (labels.shape, labels.dtype) == ((64, 84), np.uint8)
    assert (masks.shape, masks.dtype) == ((DESIGNS[name].classes, 64, 84), np.uint8)
    logits = network.forward((image[None, None].astype(np.float32) - 127) / 127)
    p = tinyfcn.on("cpu").softmax(logits)[0]
    np.testing.assert_allclose(masks, p * 255, atol=0.51)
    np.testing.assert_array_equal(labels, p.argmax(axis=0))
    assert len(np.unique(labels)) > 1  # otherwise a wrong channel would go unnoticed
    assert model.design == DESIGNS[name]


def test_weights_and_outputs_can_be_inspected(tmp_path):
    network = save_run(tmp_path / "run", Design())
    model = tinyfcn.load(tmp_path / "run" / STATE, "cpu")  # the file works too
    assert model.network.parameter_shapes() == network.parameter_shapes()
    for tensor, value in network.numpy_parameters().items():
        np.testing.assert_array_equal(model.network.parameter[tensor], value)
    model.predict(images(1)[0])
    assert model.network.outputs["pool1"].shape == (1, 8, 30, 40)
    assert model.network.outputs["score"].shape == (1, 11, 64, 84)
    model.network.backward(np.ones((1, 11, 64, 84), np.float32))
    assert np.abs(model.network.gradient["conv1.weight"]).max() > 0


@pytest.mark.parametrize("shape", [(28, 28), (20, 20), (1, 20), (65, 85), (63, 83), (101, 37), (130, 611)])
def test_images_of_any_size(tmp_path, shape):
    save_run(tmp_path / "run", Design())
    model = tinyfcn.load(tmp_path / "run", "cpu")
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    labels, masks = model.predict(image)
    assert labels.shape == shape
    assert masks.shape == (11, *shape)
    # Each pixel's most probable class has its label, but where bytes cannot tell the first from the second.
    assert (np.take_along_axis(masks, labels[None].astype(int), 0)[0] == masks.max(axis=0)).all()


def test_threads_share_a_model(tmp_path):
    save_run(tmp_path / "run", Design())
    model = tinyfcn.load(tmp_path / "run", "cpu")
    given = [*images(4), *(image[:48] for image in images(4)), images(1)[0][:30, :30]]
    expected = [model.predict(image) for image in given]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for found, wanted in zip(pool.map(model.predict, given), expected, strict=True):
                np.testing.assert_array_equal(found[0], wanted[0])
                np.testing.assert_array_equal(found[1], wanted[1])


def test_threads_share_a_model_whose_kernels_run(either):
    network = Design("classifier").build(either, seed=3)
    model = Model(network.design, network)
    given = np.random.default_rng(0).uniform(-1, 1, (6, 1, 1, 28, 28)).astype(np.float32)
    expected = [model.probabilities(x) for x in given]
    with ThreadPoolExecutor(4) as pool:
        for found, wanted in zip(pool.map(model.probabilities, given), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copied_model_predicts_the_same(tmp_path, copied):
    save_run(tmp_path / "run", Design())
    model = tinyfcn.load(tmp_path / "run", "cpu")
    twin = copied(model)
    for found, expected in zip(twin.predict(images(1)[0]), model.predict(images(1)[0]), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_small_image_lies_in_the_middle_of_black(tmp_path):
    save_run(tmp_path / "run", Design())
    model = tinyfcn.load(tmp_path / "run", "cpu")
    digit = np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)
    padded = np.zeros((64, 84), np.uint8)
    padded[18:46, 28:56] = digit
    for small, whole in zip(model.predict(digit), model.predict(padded), strict=True):
        np.testing.assert_array_equal(small, whole[..., 18:46, 28:56])


def test_an_image_in_tiles_is_as_in_one_piece(tmp_path):
    save_run(tmp_path / "run", Design())
    model = tinyfcn.load(tmp_path / "run", "cpu")
    image = np.random.default_rng(0).integers(0, 256, (64, 700), np.uint8)  # wider than a tile
    _, masks = model.predict(image)
    whole = model.probabilities((image[None, None].astype(np.float32) - 127) / 127)[0]
    np.testing.assert_allclose(masks, whole * 255, atol=0.51)


@pytest.mark.slow
def test_the_kernels_predict_what_numpy_does(ops, tmp_path):
    save_run(tmp_path / "run", Design())
    image = images(1)[0]
    found, expected = (tinyfcn.load(tmp_path / "run", name) for name in (ops.device_name, "cpu"))
    assert found.network.ops.device_name == ops.device_name
    x = (image[None, None].astype(np.float32) - 127) / 127
    np.testing.assert_allclose(found.probabilities(x), expected.probabilities(x), atol=1e-4)
    for mine, theirs in zip(found.predict(image), expected.predict(image), strict=True):
        assert (mine != theirs).mean() < 1e-3  # a probability may round to the next byte


def test_an_argument_that_is_not_an_image(tmp_path):
    save_run(tmp_path / "run", Design())
    model = tinyfcn.load(tmp_path / "run", "cpu")
    for wrong in (np.zeros((64, 84, 3), np.uint8), np.zeros((64, 84), np.float32), [[0]]):
        with pytest.raises(ValueError, match=r"uint8 array \(H, W\)"):
            model.predict(wrong)
    with pytest.raises(DataError, match="postage stamp is 5x19 pixels, too small"):
        model.predict(np.zeros((5, 19), np.uint8), name="postage stamp")


def test_a_classifier_gives_probabilities_but_no_masks(tmp_path):
    save_run(tmp_path / "run", Design("classifier"))
    model = tinyfcn.load(tmp_path / "run", "cpu")
    p = model.probabilities(np.full((2, 1, 64, 84), -1, np.float32))
    assert p.shape == (2, 10, 10, 15)
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-5)
    with pytest.raises(CheckpointError, match="a classifier names whole digits"):
        model.predict(np.zeros((64, 84), np.uint8))


def test_a_folder_that_is_not_a_run(tmp_path):
    with pytest.raises(CheckpointError, match=r"gone.* does not exist"):
        tinyfcn.load(tmp_path / "gone", "cpu")
    with pytest.raises(CheckpointError, match="is not a run of tinyfcn"):
        tinyfcn.load(tmp_path, "cpu")
    Run(tmp_path).write_json("config.json", {})
    with pytest.raises(CheckpointError, match="has not been saved once"):
        tinyfcn.load(tmp_path, "cpu")


@pytest.mark.parametrize(
    "design", [None, "{", "[]", '"skip"', '{"name": "unet"}', '{"name": "skip", "colour": 1}', '{"labels": "words"}']
)
def test_weights_that_do_not_say_which_network_they_are_of(tmp_path, design):
    metadata = {"format": "tinyfcn 1", **({} if design is None else {"design": design})}
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / STATE, metadata)
    with pytest.raises(CheckpointError, match="does not say which network it holds"):
        tinyfcn.load(tmp_path, "cpu")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: tensors.pop("score.bias"), r"no tensor score\.bias"),
        (
            lambda tensors: tensors.update({"up1.weight": np.zeros(3, np.float32)}),
            r"up1\.weight is float32 \(3,\), exp",
        ),
        (lambda tensors: tensors["up2.bias"].fill(np.nan), r"up2\.bias has 16 of 16 values that are NaN"),
    ],
)
def test_a_damaged_run_names_the_tensor(tmp_path, change, words):
    save_run(tmp_path / "run", Design())
    run = Run(tmp_path / "run")
    tensors, metadata = run.load()
    change(tensors)
    run.save(tensors, {"design": metadata["design"]})
    with pytest.raises(CheckpointError, match=words):
        tinyfcn.load(run.folder, "cpu")


def test_the_weights_of_one_design_under_the_name_of_another(tmp_path):
    save_run(tmp_path / "run", Design("corrected"))
    tensors, _ = Run(tmp_path / "run").load()
    Run(tmp_path / "run").save(tensors, {"design": '{"name": "skip"}'})
    with pytest.raises(CheckpointError, match=r"no tensor dense32\.weight, so it belongs to another network"):
        tinyfcn.load(tmp_path / "run", "cpu")


def test_no_such_device(tmp_path):
    save_run(tmp_path / "run", Design())
    with pytest.raises(ValueError, match="no device named 'abacus'"):
        tinyfcn.load(tmp_path / "run", "abacus")


def test_options_that_early_versions_saved_with_any_design_are_left_out() -> None:
    saved = {"name": "early", "reduce": "last", "upsample": "staged", "article_skip": False, "labels": "digits"}
    assert Design.saved(saved | {"freeze": True, "ink_start": False}) == Design("early", reduce="last", freeze=True)
    assert Design.saved({"name": "classifier", "reduce": "last"}) == Design("classifier")
    with pytest.raises(ValueError, match="--plain-start"):
        Design("early", ink_start=False)
