"""tinyfcn trace"""

import json
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np

from tinyfcn.cli.options import FILE, FOLDER, PATH, device_option, invert_option
from tinyfcn.cli.predict import read
from tinyfcn.cli.status import status
from tinyfcn.cli.tables import show, table
from tinyfcn.environment import print_notice
from tinyfcn.errors import DataError
from tinyfcn.fields import short, shown
from tinyfcn.files import new_file
from tinyfcn.images import TRAINED_AT, with_border
from tinyfcn.model import Model, load
from tinyfcn.networks.design import listed
from tinyfcn.study.layers import IMAGE, field
from tinyfcn.study.trace import Measures, Spread, Trace
from tinyfcn.training import Example, first_test_image

LARGEST = 512 * 512  # pixels: every layer's map is kept, 200 MB of such an image
NAME, CELL, RANGE = 8, 19, 12  # characters of a layer's name, of "made by" and of a range


class Position(click.ParamType):
    """A row and a column."""

    name = "h,w"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        numbers = [number.strip() for number in value.split(",")]
        if len(numbers) != 2 or not all(number.isdecimal() and len(number) < 9 for number in numbers):
            self.fail(f"{shown(value)} is not a row and a column, two whole numbers such as 30,40.", param, ctx)
        return int(numbers[0]), int(numbers[1])


@click.command(short_help="Look inside a trained network: its maps, what a pixel depends on, gradients.")
@click.argument("run", type=PATH)
@click.argument("image", type=PATH, required=False)
@click.option("--at", type=Position(), help="What the network says at this row and column, and what it depends on.")
@click.option(
    "--maps", type=FOLDER, metavar="DIR", help="Draw each layer's maps in this folder; with --at the gradient."
)
@click.option("--gradients", is_flag=True, help="The gradient of the loss by the output of each layer.")
@click.option("--json", "json_file", type=FILE, help="Write all of it to this file.")
@invert_option
@device_option
def trace(
    run: Path,
    image: Path | None,
    at: tuple[int, int] | None,
    maps: Path | None,
    gradients: bool,
    json_file: Path | None,
    invert: bool | None,
    device: str,
) -> None:
    """Look inside a trained network while it reads one image.

    RUN is a run folder of train-cnn or train-fcn, or the state.safetensors in it. IMAGE is any image with digits about
    20 pixels high, as tinyfcn predict takes; without it, the first of the run's test images.

    The table shows every layer: how it is made, what its map holds, and how much of the image an element of it depends
    on. --at names a pixel of an FCN, or of a classifier the position of its window: 0,0 of a 28x28 digit.

    \b
    tinyfcn trace runs/fcn-1
    tinyfcn trace runs/fcn-1 photo.png --at 30,40 --maps maps
    tinyfcn trace runs/cnn-1 --at 0,0 --gradients --json trace.json
    """
    if image is None and invert is not None:
        raise click.UsageError("--invert and --no-invert are for an IMAGE, and none is named")
    model = load(run, device)
    click.echo(f"{run}: {model.design.name}, {model.network.parameters.size:,} parameters, on {_device(model)}")
    example = first_test_image(run, model.design, print_notice) if image is None else None
    if example is not None:
        name, given = example.words, example.image
    else:
        path, given = read(Path(str(image)), invert, print_notice)
        name = str(path)
    pixels, top, left = _with_border(given, name, model)
    click.echo(f"the image: {name}, {_size(given)} pixels")
    traced = Trace(model.network, (pixels[None, None].astype(np.float32) - 127) / 127)
    position = None if at is None else _position(at, given, (top, left), traced)

    says = _says(traced)
    click.echo(f"the network {says}")
    _show_layers(traced)
    found: dict[str, Any] = {"run": str(run), "design": model.design.as_dict(), "image": name, "says": says}
    found |= {"border": {"top": top, "left": left}, "layers": traced.layers_as_json()}
    spread = None
    if position is not None:
        spread = traced.spread(*position)
        _show_position(traced, position, at, spread, example)
        found["at"] = {"given": at, **traced.position_as_json(*position, spread)}
    if gradients:
        found["gradients"] = _show_gradients(traced, example)
    if maps is not None:
        with status("figures are drawn"):
            found["maps"] = _draw(traced, maps, pixels, position, spread)
    if json_file is not None:
        with new_file(json_file, "name another file with --json") as file:
            file.write((json.dumps(found, indent=1) + "\n").encode())
        click.echo(f"\nwritten: {json_file}")


def _device(model: Model) -> str:
    name = model.network.ops.device_name
    return "cpu (NumPy)" if name == "cpu" else name


def _size(array: np.ndarray) -> str:
    """ "64x84"."""
    return "x".join(map(str, array.shape[-2:]))


def _ends(span: range) -> str:
    """ "12..55"."""
    return f"{span[0]}..{span[-1]}"


def _with_border(image: np.ndarray, name: str, model: Model) -> tuple[np.ndarray, int, int]:
    """The image as the network can take it, and the rows and columns that were added above and on the left.

    An FCN's is as in tinyfcn predict. A classifier takes any size that holds its window.
    """
    if image.size > LARGEST:
        limit = f"trace keeps every map, so it takes at most {LARGEST:,} pixels (512x512)"
        raise DataError(f"{name} is {_size(image)} pixels; {limit}: cut a part out")
    network = model.network
    multiple, least = (4, TRAINED_AT) if network.per_pixel else (1, (network.receptive_field,) * 2)
    padded, top, left = with_border(image, multiple, least, name)
    if padded.shape != image.shape:
        print_notice(
            f"{name} is {_size(image)} pixels, so padded with black to {_size(padded)}; "
            f"its pixel 0,0 is {top},{left} in maps and boxes"
        )
    return padded, top, left


def _position(at: tuple[int, int], image: np.ndarray, border: tuple[int, int], traced: Trace) -> tuple[int, int]:
    """The position of the logits that --at names; UsageError if there is none."""
    is_pixel = traced.network.per_pixel
    height, width = image.shape if is_pixel else traced.size
    if at[0] >= height or at[1] >= width:
        what = "the image" if is_pixel else f"a classifier's map of windows, {height}x{width} of this image,"
        raise click.UsageError(
            f"--at {at[0]},{at[1]} lies outside: {what} has rows 0..{height - 1} and columns 0..{width - 1}"
        )
    return (at[0] + border[0], at[1] + border[1]) if is_pixel else at


def _says(traced: Trace) -> str:
    """What the network makes of the image."""
    if traced.network.per_pixel:
        found = [name for k, name in enumerate(traced.names) if name != "background" and (traced.labels == k).any()]
        return f"names pixels of {listed(found)}" if found else "names nothing but background"
    if traced.labels.size == 1:
        (name, sure), *_ = traced.top(0, 0)
        return f"reads {name}, with probability {sure:.4f}"
    return f"reads a digit in each of {_size(traced.labels)} windows; --at names one"


def _range(low: float, high: float) -> str:
    """ "-1..1.01", in RANGE characters where two digits suffice for it."""
    texts = [f"{short(low, digits)}..{short(high, digits)}" for digits in (3, 2)]
    return texts[len(texts[0]) > RANGE]


def _show_layers(traced: Trace) -> None:
    """A row for each layer, 80 characters wide for images of the size trained on."""
    rows = table("layer", "made by", "shape>", "bytes>", "range", "zeros>", "dead>", "sees>")
    before = ""
    for (name, layer), measures in zip(traced.layers.items(), traced.measures().values(), strict=True):
        first = next(iter(layer.sources.values()), before)
        # Where the input is not the row above, as of a skip connection, it is named.
        made_by = layer.made_by + (f" of {first}" if first != before and len(layer.sources) == 1 else "")
        rows.add_row(
            textwrap.fill(name, NAME),
            "\n".join(textwrap.wrap(made_by.replace("padding ", "padding\xa0"), CELL)),
            ",".join(map(str, traced.maps[name].shape)),
            f"{layer.nbytes:,}",
            _range(measures.minimum, measures.maximum),
            f"{measures.zeros:.0%}",
            f"{len(measures.dead)}" if layer.call else "",
            f"{field(traced.layers, name)}",
        )
        before = name
    click.echo()
    show(rows)
    kept = sum(layer.nbytes for layer in traced.layers.values() if layer.is_kept)
    others = [name for name, layer in traced.layers.items() if not layer.is_kept]
    click.echo(f"\nbytes: a forward pass keeps {kept:,} for the backward pass, of poolings the max")
    click.echo(f"  indices too; not {listed(others)}, parts of the layer after them")
    click.echo("dead: channels that are 0 at every position of this image")
    click.echo("sees: side in pixels of the square that an element depends on / how far the")
    click.echo("  next one's is")


def _show_position(
    traced: Trace, position: tuple[int, int], at: tuple[int, int] | None, spread: Spread, example: Example | None
) -> None:
    """What the network says at a position, what that depends on, and how much. at: the position without the border."""
    (h, w), what = position, "pixel" if traced.network.per_pixel else "window"
    where, label = f"{what} {h},{w}", traced.names[traced.labels[h, w]]
    of_file = f" of the padded image, {at[0]},{at[1]} of the file" if at not in (None, position) else ""
    true = ""
    if example is not None:
        truth = int(example.labels[h, w])
        true = f" (true: {traced.names[truth] if truth < len(traced.names) else 'background, which is no class here'})"
    click.echo(f"\n{where}{of_file}: {label}{true}")
    for name, probability in traced.top(h, w):
        click.echo(f"  {name:<10}  {probability:.4f}")
    rows = table(f"{where} depends on", "rows>", "columns>", "size>", "of>", "without edges>", "padding")
    for name, box in reversed(traced.boxes(h, w).items()):
        size, whole = ("x".join(f"{len(span)}" for span in spans) for spans in ((box.rows, box.columns), box.field))
        rows.add_row(
            name,
            _ends(box.rows),
            _ends(box.columns),
            size,
            "x".join(map(str, traced.layers[name].size)),
            whole if whole != size else "",
            "zeros" if box.padding else "",
        )
    click.echo()
    show(rows)
    size, (middle_rows, middle_columns) = "x".join(f"{len(side)}" for side in spread.middle), spread.middle
    click.echo(f"\nthe gradient of the logit of {label} by the image, in absolute values:")
    if not spread.gradient.any():
        click.echo("  it is 0 everywhere: no ReLU on the way lets a change through")
        return
    click.echo(
        f"  the middle {size} pixels (rows {_ends(middle_rows)}, columns {_ends(middle_columns)})\n"
        f"  hold {spread.share:.0%} of their sum, on {spread.area:.0%} of the area"
    )


def _show_gradients(traced: Trace, example: Example | None) -> dict[str, Any]:
    """The gradient of the loss by each layer's output; the same for a JSON file."""
    design = traced.network.design
    labels, ignore_index, unlabelled, told = traced.labels, None, "zero", "the predicted labels"
    if example is not None:
        labels, told = example.labels, "the true labels"
        if traced.network.per_pixel and design.ignore_index is not None:
            ignore_index, unlabelled = design.ignore_index, example.unlabelled
            told += f"; background has none, and its gradient is {unlabelled}, as in training"
    loss, found = traced.gradients(labels, ignore_index, unlabelled)
    click.echo(f"\nthe loss is {loss:.4g}, against {told}")
    rows = table("gradient by the output of", "range", "norm>", "zeros>")
    measured = {name: Measures.of(gradient) for name, gradient in found.items()}
    for name, each in measured.items():
        rows.add_row(name, f"{short(each.minimum)}..{short(each.maximum)}", short(each.norm), f"{each.zeros:.0%}")
    click.echo()
    show(rows)
    layers = {name: {k: v for k, v in asdict(each).items() if k != "dead"} for name, each in measured.items()}
    return {"labels": "true" if example else "predicted", "loss": loss, "layers": layers}


def _draw(
    traced: Trace, folder: Path, pixels: np.ndarray, at: tuple[int, int] | None, spread: Spread | None
) -> list[str]:
    """Draws each layer's maps, and the gradient of the logit at a position. The paths."""
    from tinyfcn import figures  # late, since matplotlib is slow to import

    way_out = "choose another folder with --maps"
    files = {name: folder / f"{number:02}-{name.replace(' ', '-')}.png" for number, name in enumerate(traced.layers)}
    heat = [] if at is None else [folder / f"gradient-{at[0]}-{at[1]}.png"]
    figures.expect_own([*files.values(), *heat], way_out)
    for name, path in files.items():
        maps = traced.maps[name]
        channels = traced.names if name == traced.logits.name else [f"{channel}" for channel in range(len(maps))]
        is_image, shape = name == IMAGE, "x".join(map(str, maps.shape))
        scale = "(byte - 127) / 127" if is_image else "one scale: 0 is black, colour grows with the root of the value"
        note = f"{traced.layers[name].made_by}; {shape}; {scale}"
        figures.layer_maps(path, maps, channels, name, note, grey=is_image)
    if at is not None and spread is not None:
        label, box = traced.names[traced.labels[at]], spread.box
        share = f"{spread.share:.0%} of the sum of absolute values on {spread.area:.0%} of the area"
        note = f"the middle holds {share}\ncolour grows with the root of the value"
        figures.effective_field(
            heat[0],
            pixels,
            spread.gradient,
            {"all that it depends on": (box.rows, box.columns), "the middle": spread.middle},
            at if traced.network.per_pixel else None,
            f"What the logit of {label} at {at[0]},{at[1]} depends on, and how much",
            note,
        )
    drawn = [*map(str, files.values()), *map(str, heat)]
    click.echo(f"\ndrawn: {len(drawn)} figures in {folder}")
    return drawn
