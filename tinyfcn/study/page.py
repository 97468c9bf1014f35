"""The page: one HTML file in which people draw, see the network's answer, and look into its layers.

Its JavaScript modules lie in the folder `page`. Each also loads in node as it is; here their imports and exports are
taken out, so that they become plain scripts that share one scope and need no server.
"""

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from tinyfcn.data import Digits, builtin_digits
from tinyfcn.images import TRAINED_AT, class_colours, class_names
from tinyfcn.model import Model
from tinyfcn.networks import OPTIONS, Design, Network
from tinyfcn.networks.options import FREEZE, INK_START
from tinyfcn.operations import on
from tinyfcn.study.layers import Layer, record
from tinyfcn.training.sources import Composed, as_bytes

FOLDER = Path(__file__).with_suffix("")
# In the order in which they use each other. The Worker is made of the first two.
MODULES = ("network", "worker", "dom", "answer", "drawing", "layers", "overlap", "app")
MAX_RUNS = 2
DIGIT = (28, 28)  # height and width of the image of one digit
GENERATOR = '<meta name="generator" content="tinyfcn">'
EXAMPLES, EXAMPLE_SEED = 6, 11


def page(runs: Mapping[str, Model]) -> bytes:
    """The page for one run or for two, by their names, in UTF-8.

    Raises:
        TinyfcnError: a layer's operation is not known to `record`.
    """
    are_classifiers = not any(model.network.per_pixel for model in runs.values())
    data = {
        "networks": [described(name, model) for name, model in runs.items()],
        "sizes": [DIGIT, TRAINED_AT] if are_classifiers else [TRAINED_AT],
        "examples": examples(are_classifiers),
    }
    headline = "Draw a digit. See how it is read." if are_classifiers else "Draw digits. See every pixel named."
    scripts = {name: script(name) for name in MODULES}
    style = _text("style.css") + "".join(
        f".digit-{digit} {{ background: {colour}; }}\n" for digit, colour in enumerate(_colours(10))
    )
    policy = {
        "default-src": ["'none'"],
        "script-src": [_hash(text) for text in scripts.values()],
        "style-src": [_hash(style)],
        "img-src": ["data:"],
        "worker-src": ["blob:"],
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
    }
    parts = {
        "generator": GENERATOR,
        "policy": "; ".join(f"{name} {' '.join(values)}" for name, values in policy.items()),
        "title": escape(f"{headline.split('.')[0]}: {' and '.join(runs)}"),
        "headline": headline.replace(". ", ".<br>"),
        "digits": "".join(f'<span class="digit-{digit}">{digit}</span>' for digit in range(10)),
        "style": f"<style>{style}</style>",
        "data": f'<script type="application/json" id="data">{_json(data)}</script>',
        "scripts": "\n".join(f'<script id="{name}.js">{text}</script>' for name, text in scripts.items()),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _text("page.html")).encode(errors="replace")


def script(module: str) -> str:
    """A module as a plain script: without its imports, and without `export` before what it exports."""
    text = re.sub(r"^import [^;]*;\n", "", _text(f"{module}.js"), flags=re.MULTILINE)
    return '"use strict";\n' + re.sub(r"^export (?=\w)", "", text, flags=re.MULTILINE)


def described(name: str, model: Model) -> dict[str, Any]:
    """A network for the page: what it is, and its `graph`."""
    network, design = model.network, model.design
    names = class_names(design.classes)
    of_layers = [option for option in OPTIONS if not option.of_training and option not in (FREEZE, INK_START)]
    taken = [option for option in of_layers if getattr(design, option.name) != option.default]
    return {
        "name": name,
        "design": design.name,
        "options": [option.spelled(getattr(design, option.name)) for option in taken],
        "perPixel": network.per_pixel,
        "classes": names,
        "colours": _colours(design.classes),
        "background": names.index("background") if "background" in names else None,
        **graph(network),
    }


def graph(network: Network) -> dict[str, Any]:
    """The layers of a network on the host, in the order of computation, and all weights as float32 in base64.

    Raises:
        TinyfcnError: as `record`.
    """
    layers = record(network, network.ops.asarray(np.zeros((1, 1, *TRAINED_AT), np.float32)))
    weights = network.parameters.astype("<f4").tobytes()
    return {
        "layers": [_layer(network, layer) for layer in layers.values()],
        "weights": base64.b64encode(weights).decode(),
    }


def _layer(network: Network, layer: Layer) -> dict[str, Any]:
    """A layer: its operation with all numbers that it takes, the layers that it reads, and where its weights begin."""
    found: dict[str, Any] = {"name": layer.name, "operation": None, "reads": dict(layer.sources)}
    if layer.call is None:
        return found
    arguments = layer.call.arguments
    found["operation"] = layer.call.operation
    found |= {name: arguments[name] for name in ("stride", "padding", "relu", "size", "scale") if name in arguments}
    if "weight" in arguments:
        weight, bias = (arguments[name] for name in ("weight", "bias"))
        start, bias_start = (_start(network, each) for each in (weight, bias))
        found["weight"] = {"start": start, "shape": list(weight.shape), "biasStart": bias_start}
    return found


def _start(network: Network, parameter: np.ndarray) -> int:
    """The index in `network.parameters` at which a view of them begins."""
    return (parameter.ctypes.data - network.parameters.ctypes.data) // parameter.itemsize


def examples(of_digits: bool) -> list[str]:
    """Images to begin with, from the built-in digits: composed ones of 64x84, or the ten digits; see `packed`."""
    digits = Digits(*builtin_digits.draw_digits(200, EXAMPLE_SEED), "builtin")
    if of_digits:
        return [packed(digits.images[np.flatnonzero(digits.labels == digit)[0]]) for digit in range(10)]
    x, _ = Composed(on("cpu"), digits, Design(), EXAMPLES, EXAMPLE_SEED).batch(0)
    return [packed(image) for image in as_bytes(x)]


def packed(image: np.ndarray) -> str:
    """The bytes of an image in base64, where a 0 is followed by how many zeros there are, at most 255."""
    found = bytearray()
    for match in re.finditer(rb"\0{1,255}|[^\0]+", image.tobytes(), re.DOTALL):
        run = match[0]
        found += bytes([0, len(run)]) if run[0] == 0 else run
    return base64.b64encode(found).decode()


def _colours(classes: int) -> list[str]:
    return [f"#{bytes(colour).hex()}" for colour in class_colours(classes)]


def _text(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """A source of the content security policy: only a script or a style of just this text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _json(data: Any) -> str:
    """JSON that ends no script element and begins no comment."""
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
