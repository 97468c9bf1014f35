"""What `tinyfcn bench` found, in words: tables, and the README's table between its markers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tinyfcn.devices.cards import MEASURED
from tinyfcn.errors import DataError
from tinyfcn.files import new_file

BEGIN, END = "<!-- bench -->", "<!-- /bench -->"
PIXELS = 64 * 84  # of an M2NIST image

Found = Mapping[str, Any]
Row = dict[str, str]  # cells by their column; the name of a column of numbers ends with ">"


def in_words(seconds: float | None) -> str:
    """ "95.3 µs", "3.21 ms", "1.05 s"."""
    if not seconds:
        return "-" if seconds is None else "0 s"
    size, unit = (1.0, "s") if seconds >= 1 else (1e-3, "ms") if seconds >= 1e-3 else (1e-6, "µs")
    return f"{seconds / size:,.{max(0, 2 - (seconds >= 10 * size) - (seconds >= 100 * size))}f} {unit}"


def times(ratio: float | None) -> str:
    """ "3.1x"."""
    return "-" if ratio is None else f"{ratio:.{0 if ratio >= 20 else 1 if ratio >= 2 else 2}f}x"


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.{0 if share >= 0.1 else 1}f} %"


def median(timing: Found | None) -> str:
    return in_words(timing["seconds"] if timing else None)


def step_rows(steps: Sequence[Found]) -> list[Row]:
    """A row for each task; the column of TF32 only if that was measured."""
    has_tf32 = any(step["tf32"] for step in steps)
    return [
        {
            "training step": f"{step['design']}, batch {step['batch']}",
            "ours>": median(step["ours"]),
            "composing>": median(step["trained"]) if step["design"] == "skip" else "",
            "PyTorch eager>": median(step["torch"].get("eager")),
            "PyTorch best>": median(step["torch"].get(step["best"])),
            "which is": step["best"] or "-",
            **({"TF32>": median(step["tf32"])} if has_tf32 else {}),
            "eager / ours>": times(step["eager_ratio"]),
            "best / ours>": times(step["best_ratio"]),
        }
        for step in steps
    ]


def part_rows(kernels: Found) -> list[Row]:
    """A row for each part of a step, and their sum. Without a GPU: with what the roofline is made of."""

    def row(part: Found) -> Row:
        name = f"{part['operation'].removesuffix('_backward')} {part['what']}".strip()
        start = {"operation": name, "layer": part["layer"], "input": part["sizes"].split(",")[0]}
        roofline, pytorch = {"roofline>": in_words(part["roofline"])}, {"PyTorch>": median(part["torch"])}
        if kernels.get("predicted_step"):
            roofline["model>"] = in_words(part["predicted"])
        if kernels["peaks"]["source"] == MEASURED:
            forms = {"fast>": median(part["fast"]), "naive>": median(part["naive"])}
            shares = {"bandwidth>": percent(part.get("of_bandwidth")), "FMA>": percent(part.get("of_flops"))}
            return start | roofline | forms | pytorch | shares
        work = {"MFLOP>": f"{part['flops'] / 1e6:.1f}", "MB>": f"{part['bytes'] / 1e6:.2f}"}
        with_dx = part["what"] == "dweight" and not part["numpy"]
        numpy = {"NumPy>": "with dx" if with_dx else median(part["numpy"])}
        return start | work | roofline | numpy | pytorch | {"ratio>": times(part.get("ratio"))}

    parts = kernels["parts"]
    total: dict[str, Any] = {"operation": "all of them", "what": "", "layer": "", "sizes": "", "torch": None}
    total |= {name: sum(part[name] for part in parts) for name in ("flops", "bytes", "roofline")}
    total["predicted"] = sum(part.get("predicted") or 0 for part in parts)
    for form in ("fast", "naive", "numpy"):
        total[form] = {"seconds": sum(part[form]["seconds"] for part in parts if part.get(form))}
    return [*map(row, parts), row(total)]


def used_rows(used: Sequence[Found]) -> list[Row]:
    """A row for each kernel, of what it uses. A template's instances are told apart by what they are for."""
    return [
        {
            "kernel": each["kernel"].split("<")[0],
            "for": each["for"][0] + (f" +{len(each['for']) - 1}" if len(each["for"]) > 1 else ""),
            "blocks>": f"{each['blocks']:,}",
            "threads>": f"{each['threads']}",
            "registers>": f"{each['registers']}",
            "shared B>": f"{each['shared_bytes']:,}",
            "spilled B>": f"{each['spilled_bytes']}",
            "occupancy>": percent(each["occupancy"]),
        }
        for each in used
    ]


def about_rooflines(kernels: Found) -> str:
    """Where the rooflines come from, and whether anything was measured."""
    peaks = kernels["peaks"]
    rates = f"{peaks['bandwidth'] / 1e12:.2f} TB/s and {peaks['flops'] / 1e12:.1f} TFLOP/s"
    what = "roofline: the least time that a part's flops, or its bytes, take"
    model = ""
    if kernels.get("predicted_step"):
        of_step = in_words(kernels["predicted_step"])
        model = f"model: the time to expect on an {kernels['predicted_for']}, from counts; the step: {of_step}\n"
    if peaks["source"] == MEASURED:
        return f"{model}{what} at {rates}, {MEASURED}; bandwidth, FMA: the fast form's shares of those"
    return (
        f"{model}{what}\non an {peaks['name']}: {rates} ({peaks['source']}). "
        "A bound, not a measurement: there is no GPU here\n"
        "NumPy, PyTorch: the same operations on this machine, measured, on one thread each; ratio: PyTorch / NumPy\n"
        "with dx: NumPy gives a layer's dx and dweight at once, so the row of dx has the time of both, on both sides"
    )


def growth_lines(growth: Found) -> dict[str, str]:
    """Of each program, whose it is and how its time grows: "ours: 2.41 ms + 6.84 ms an image"."""
    lines = {}
    unit, each = (1, "an image") if growth["by"] == "batch" else (PIXELS, "for each 64x84 pixels")
    for name, series in growth["series"].items():
        lines[name] = name if name == "ours" else f"PyTorch, {name}"
        if "slope" in series:
            lines[name] += f": {in_words(series['constant'])} + {in_words(series['slope'] * unit)} {each}"
    return lines


def described(machine: Found) -> str:
    """ "Intel Xeon, 2 threads; NumPy 2.4.6; PyTorch 2.13.0+cpu"."""
    threads = f", {machine['threads']} threads; NumPy {machine['numpy']}" if "threads" in machine else ""
    pytorch = f"PyTorch {machine['torch']}" if machine["torch"] else "no PyTorch"
    return f"{machine['name']}{threads}; {pytorch}" + ("; --quick: too hasty to be quoted" if machine["quick"] else "")


def expect_markers(path: Path) -> tuple[str, str]:
    """A README's text before and after the table; DataError where it has not one pair of markers, in order."""
    try:
        text = path.read_bytes().decode()  # the ends of its lines stay as they are
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}): name the README to update") from None
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end) or BEGIN in after or END in before + after:
        lines = f"put the lines {BEGIN} and {END} where it belongs, once each"
        raise DataError(f"{path} has no place for the table: {lines}")
    return before, after


def update_readme(path: Path, machine: Found, steps: Sequence[Found]) -> None:
    """Puts the table of steps, below the machine's name, between the markers of a README; the rest stays as it is."""
    before, after = expect_markers(path)
    rows = step_rows(steps)
    columns = [column.removesuffix(">") for column in rows[0]]
    rule = ["--:" if column.endswith(">") else "---" for column in rows[0]]
    bits = "equal bits" if all(step["equal_bits"] is not False for step in steps) else "DIFFERENT BITS"
    lines = [BEGIN, f"On {described(machine)}, by `tinyfcn bench`; two runs with one seed: {bits}.", ""]
    lines += ["| " + " | ".join(cells) + " |" for cells in (columns, rule, *(row.values() for row in rows))]
    with new_file(path, "free the disk, or name another file") as file:
        newline = "\r\n" if "\r\n" in before + after else "\n"
        file.write((before + newline.join([*lines, END]) + after).encode())
