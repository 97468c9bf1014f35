"""A new design is one file and one line: it is offered, trained and loaded. An incomplete one is refused at import."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.package_copy import copy_package, run, tinyfcn
from helpers.tiny_digits import write_tiny_digits
from PIL import Image

from tinyfcn.networks import DESIGNS, Network, Option, Recipe
from tinyfcn.networks.options import LABELS, UNLABELLED

LINE = "from tinyfcn.networks.toy import Toy as Toy\n"
TOY = '''
from tinyfcn.networks.encoder import ENCODER
from tinyfcn.networks.network import Network, Recipe
from tinyfcn.networks.options import L2, LABELS


class Toy(Network):
    """One convolution and one transposed convolution."""

    name = "toy"
    summary = "one convolution down, one up"
    options = (LABELS, L2)
    recipe = Recipe(learning_rate=0.025, warmup=1)
    has_background = True
    receptive_field = 12

    def __init__(self, ops, design, seed=0, dtype="float32"):
        self.strides = {"up": 4}
        self.shapes = {"down": ((8, 1, 4, 4), 8), "up": ((8, design.classes, 4, 4), design.classes)}
        super().__init__(ops, design, seed, dtype)

    def forward(self, x):
        ops, out = self.ops, self.outputs
        out["x"] = x
        out["down"] = ops.conv2d(x, **self.weights("down"), stride=4, relu=True)
        out["up"] = ops.conv_transpose2d(out["down"], **self.weights("up"), stride=4)
        return out["up"]

    def backward(self, dlogits):
        ops, out, d = self.ops, self.outputs, self.output_gradients
        d["up"] = dlogits
        d["down"], _, _ = ops.conv_transpose2d_backward(
            dlogits, out["down"], **self.backward_weights("up"), stride=4, through_relu=True
        )
        ops.conv2d_backward(
            d["down"], out["x"], **self.backward_weights("down"), stride=4, need_dx=False
        )
'''


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with the design toy: one file, and one line in `__init__`."""
    folder = copy_package(tmp_path_factory.mktemp("changed"))
    networks = folder / "tinyfcn" / "networks"
    (networks / "toy.py").write_text(TOY)
    (networks / "__init__.py").write_text((networks / "__init__.py").read_text() + LINE)
    write_tiny_digits(folder / "digits")
    return folder


TRAIN = ["train-fcn", "--design", "toy", "--steps", "2", "--evaluations", "1", "--batch", "2", "--device", "cpu"]


def test_a_new_design_is_offered_with_its_options_and_recipe(changed: Path) -> None:
    text = " ".join(tinyfcn(changed, "train-fcn", "--help").stdout.split())
    assert "--design [early|corrected|skip|toy]" in text
    assert "toy: one convolution down, one up." in text
    assert "or two (ink, background). For corrected, skip and toy." in text
    assert "0.01 for corrected and skip; 0.025 for toy." in text


@pytest.mark.slow
def test_a_new_design_trains_and_predicts(changed: Path) -> None:
    for labels in ("digits", "binary"):
        out = ["--labels", labels, "--data-dir", "digits", "--out", f"run-{labels}"]
        trained = tinyfcn(changed, *TRAIN, *out)  # without a classifier: it has no pretrained layers
        assert trained.returncode == 0, trained.stderr
        assert 'learning_rate": 0.025' in (changed / f"run-{labels}" / "config.json").read_text()
        Image.fromarray(np.zeros((64, 84), np.uint8)).save(changed / "black.png")
        predicted = tinyfcn(changed, "predict", f"run-{labels}", "black.png", "--device", "cpu")
        assert predicted.returncode == 0, predicted.stderr
        assert "written to" in predicted.stdout


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--reduce", "last"], "--reduce last is for the designs early and corrected; toy does not take it"),
        (["--freeze-encoder"], "--freeze-encoder is for the designs early, corrected and skip, which have pretrained"),
        (["--unlabelled", "zero"], "--unlabelled zero is for the design early, which has no class for background; toy"),
        (["--cnn", "runs/cnn-1"], "toy takes no weights of a classifier: leave out --cnn"),
    ],
)
def test_options_that_a_new_design_does_not_take_are_wrong_usage(changed: Path, options: list[str], says: str) -> None:
    refused = tinyfcn(changed, *TRAIN, *options)
    assert refused.returncode == 2
    assert says in refused.stderr


def test_a_new_design_without_a_receptive_field_fails_at_import(changed: Path) -> None:
    toy = changed / "tinyfcn" / "networks" / "toy.py"
    try:
        toy.write_text(TOY.replace("    receptive_field = 12\n", ""))
        failed = run(changed, "-c", "import tinyfcn")
    finally:
        toy.write_text(TOY)
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-1] == (
        "TypeError: tinyfcn.networks.toy.Toy is a network and must declare receptive_field, the side in pixels of the "
        "square of input that an output sees, such as receptive_field = 44"
    )


COMPLETE = {
    "name": "toy",
    "summary": "a toy",
    "options": (LABELS,),
    "recipe": Recipe(learning_rate=0.1),
    "has_background": True,
    "receptive_field": 12,
}


def define(**declared: Any) -> type[Network]:
    """A network's class with these declarations."""
    body = {"forward": lambda self, x: x, "backward": lambda self, dlogits: None, **declared}
    return type(Network)("Toy", (Network,), body)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> dict[str, type[Network]]:
    """The registry of designs, as it was before the test."""
    monkeypatch.setattr("tinyfcn.networks.network.DESIGNS", known := dict(DESIGNS))
    return known


def test_a_complete_class_is_registered(registry: dict[str, type[Network]]) -> None:
    assert define(**COMPLETE) is registry["toy"]


@pytest.mark.parametrize("missing", COMPLETE)
def test_a_class_that_leaves_a_declaration_out_is_refused(registry: dict[str, type[Network]], missing: str) -> None:
    with pytest.raises(TypeError, match=rf"Toy is a network and must declare {missing}, .* {missing} = |{missing}, "):
        define(**{name: value for name, value in COMPLETE.items() if name != missing})
    assert "toy" not in registry


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": "skip"}, r"Toy: the name 'skip' is taken by tinyfcn\.networks\.skip\.Skip"),
        ({"receptive_field": 0}, "receptive_field must be a number of pixels from 1, got 0"),
        ({"receptive_field": "44"}, "receptive_field must be a number of pixels from 1, got '44'"),
        ({"options": (Option("depth", 1, (1, 2), "--depth", "Layers."),)}, "'depth'.*: add it to OPTIONS"),
        ({"has_background": False}, "takes --labels, .* a class for background"),
        ({"options": (UNLABELLED,)}, "takes --unlabelled, .* no class for background"),
    ],
)
def test_a_class_that_contradicts_itself_is_refused(
    registry: dict[str, type[Network]], change: dict[str, Any], says: str
) -> None:
    with pytest.raises(TypeError, match=says):
        define(**COMPLETE | change)
    assert "toy" not in registry


def test_a_subclass_needs_a_name_of_its_own(registry: dict[str, type[Network]]) -> None:
    with pytest.raises(TypeError, match="must declare name"):
        type(Network)("Wider", (DESIGNS["skip"],), {})


def test_an_abstract_class_between_need_not_declare_anything(registry: dict[str, type[Network]]) -> None:
    type(Network)("Between", (Network,), {"forward": lambda self, x: x})
    assert registry == DESIGNS
