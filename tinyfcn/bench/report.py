"""What `tinyfcn bench` found, in words: rows of tables, and the README's table between its markers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tinyfcn.errors import DataError
from tinyfcn.files import new_file

BEGIN, END = "<!-- bench -->", "<!-- /bench -->"
NOTHING = "-"  # what was not measured
WAY_OUT = "free the disk, or name another file"

Row = tuple[str, ...]


def in_words(seconds: float | None) -> str:
    """ "95.3 µs", "3.21 ms", "1.05 s"."""
    if not seconds:
        return NOTHING if seconds is None else "0 s"
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size or unit == "µs":
            value = seconds / size
            digits = max(0, 2 - (value >= 10) - (value >= 100))
            return f"{value:,.{digits}f} {unit}"
    raise AssertionError


def times(ratio: float | None) -> str:
    """ "3.1x"."""
    return NOTHING if ratio is None else f"{ratio:.{0 if ratio >= 20 else 1 if ratio >= 2 else 2}f}x"


def percent(share: float | None) -> str:
    return NOTHING if share is None else f"{100 * share:.{0 if share >= 0.1 else 1}f} %"


def seconds_of(timing: Mapping[str, Any] | None) -> float | None:
    """A timing's median."""
    return timing["seconds"] if timing else None


STEP_COLUMNS = (
    "training step",
    "ours>",
    "composing>",
    "PyTorch eager>",
    "its best in float32>",
    "which is",
    "in TF32>",
    "eager / ours>",
    "best / ours>",
)


def step_rows(steps: Sequence[Mapping[str, Any]]) -> list[Row]:
    """A row of STEP_COLUMNS for each task."""
    rows = []
    for step in steps:
        best = step["best"]
        rows.append(
            (
                f"{step['design']}, batch {step['batch']}",
                in_words(seconds_of(step["ours"])),
                in_words(seconds_of(step["trained"])) if step["design"] == "skip" else "",
                in_words(seconds_of(step["torch"].get("eager"))),
                in_words(seconds_of(step["torch"].get(best))),
                best or NOTHING,
                in_words(seconds_of(step["tf32"])),
                times(step["eager_ratio"]),
                times(step["best_ratio"]),
            )
        )
    return rows


PART_COLUMNS = (
    "operation",
    "layer",
    "sizes",
    "MFLOP>",
    "MB>",
    "floor>",
    "fast>",
    "naive>",
    "PyTorch>",
    "bandwidth>",
    "FMA>",
)


def part_rows(kernels: Mapping[str, Any]) -> list[Row]:
    """A row of PART_COLUMNS for each part of a step, and their sum."""

    def row(part: Mapping[str, Any]) -> Row:
        return (
            f"{part['operation']} {part['what']}".strip(),
            part["layer"],
            part["sizes"],
            f"{part['operations'] / 1e6:.1f}",
            f"{part['bytes'] / 1e6:.2f}",
            in_words(part["floor"]),
            *(in_words(seconds_of(part[form])) for form in ("fast", "naive", "torch")),
            percent(part.get("of_bandwidth")),
            percent(part.get("of_operations")),
        )

    parts = kernels["parts"]
    whole = {"operation": "all of them", "what": "", "layer": "", "sizes": ""}
    whole |= {name: sum(part[name] for part in parts) for name in ("operations", "bytes", "floor")}
    for form in ("fast", "naive"):
        taken = [seconds_of(part[form]) for part in parts]
        whole[form] = None if None in taken else {"seconds": sum(taken)}
    return [*map(row, parts), row(whole | {"torch": None})]


USED_COLUMNS = (
    "kernel",
    "launches>",
    "blocks>",
    "threads>",
    "registers>",
    "shared>",
    "spilled>",
    "at once>",
    "occupancy>",
)


def used_rows(kernels: Mapping[str, Any]) -> list[Row]:
    """A row of USED_COLUMNS for each kernel."""
    return [
        (
            used["kernel"].replace(", ", ","),
            *(
                f"{used[name]:,}"
                for name in ("launches", "blocks", "threads", "registers", "shared_bytes", "spilled_bytes")
            ),
            f"{used['at_once']}" if used["at_once"] else NOTHING,
            percent(used["occupancy"]) if used["at_once"] else NOTHING,
        )
        for used in kernels["used"]
    ]


def about_floors(kernels: Mapping[str, Any]) -> str:
    """Where the floors come from, and whether anything was measured."""
    measured = kernels["ceilings"]
    if measured:
        rates = f"{measured['bandwidth'] / 1e12:.2f} TB/s and {measured['operations'] / 1e12:.1f} TFLOP/s"
        return f"floors and shares: of {rates}, measured in this run by a large copy and by multiply-adds"
    card = kernels["datasheet"]
    rates = f"{card['bandwidth'] / 1e12:.2f} TB/s and {card['operations'] / 1e12:.1f} TFLOP/s"
    return f"times: not measured, no GPU. Floors: of {card['name']}, {rates} by its datasheet ({card['source']})"


SWEEP_COLUMNS = ("time against", "who", "from>", "to>", "constant>", "of each>", "largest>")


def sweep_rows(sweep: Sequence[Mapping[str, Any]]) -> list[Row]:
    """A row of SWEEP_COLUMNS for each line."""
    rows = []
    for growth in sweep:
        of = "pictures a batch" if growth["by"] == "batch" else f"pixels a picture, batch {growth['batch']}"
        for name, series in growth["series"].items():
            line = growth["lines"].get(name)
            if series["sizes"]:
                each = line and (line["slope"] if growth["by"] == "batch" else line["slope"] * 64 * 84)
                unit = "" if growth["by"] == "batch" else " for 64x84"
                rows.append(
                    (
                        of,
                        who(name),
                        f"{series['sizes'][0]:,}",
                        f"{series['sizes'][-1]:,}",
                        in_words(line and line["constant"]),
                        in_words(each) + unit,
                        in_words(series["seconds"][-1]),
                    )
                )
    return rows


def who(name: str) -> str:
    """Whose time a series is."""
    return name if name == "ours" else f"PyTorch, {name}"


def described(machine: Mapping[str, Any]) -> str:
    """ "Intel Xeon, 2 threads; NumPy 2.4.6; PyTorch 2.13.0+cpu"."""
    found = machine["name"]
    if "threads" in machine:
        found += f", {machine['threads']} threads; NumPy {machine['numpy']}"
    return found + (f"; PyTorch {machine['torch']}" if machine["torch"] else "; PyTorch is not there")


def readme_table(result: Mapping[str, Any]) -> str:
    """The table of steps in Markdown, with the machine's name above it."""
    columns = tuple(column.removesuffix(">") for column in STEP_COLUMNS)
    rule = tuple("--:" if column.endswith(">") else "---" for column in STEP_COLUMNS)
    lines = ["| " + " | ".join(cells) + " |" for cells in (columns, rule, *step_rows(result["steps"]))]
    bits = "equal bits" if all(result["same_bits"].values()) else "DIFFERENT BITS"
    about = f"On {described(result['machine'])}, by `tinyfcn bench`; two runs with one seed: {bits}."
    return "\n".join([about, "", *lines])


def expect_markers(path: Path) -> str:
    """A README's text.

    Raises:
        DataError: no such file, or not with one pair of markers, in order.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}): name the README to update") from None
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise DataError(
            f"{path} has no place for the table: put the lines {BEGIN} and {END} where it belongs, once each"
        )
    return text


def update_readme(path: Path, result: Mapping[str, Any]) -> None:
    """Puts the table between the markers of a README; the rest stays as it is.

    Raises:
        DataError: see expect_markers; or a full disk.
    """
    text = expect_markers(path)
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    with new_file(path, WAY_OUT) as file:
        file.write(f"{before}{BEGIN}\n{readme_table(result)}\n{END}{after}".encode())
