"""Makes the table of operations in docs/operations.md from the files that are there, one row an operation.

    python scripts/operations_table.py            writes it between <!-- operations --> and <!-- /operations -->
    python scripts/operations_table.py --check    exits with 1 if the page holds another table

The rows follow "Read next" in the kernels' headers, from relu.cu on; the other operations come after, by name. A kernel
file, or a launcher without kernels of its own, has the title of its operation at the beginning of its first line.
"""

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "operations.md"
BEGIN, END = "<!-- operations -->", "<!-- /operations -->"
COMMAND = "python scripts/operations_table.py"

# The files of an operation, a column each.
COLUMNS = (
    "kernels/{}.cu",
    "tinyfcn/ops/{}.py",
    "tinyfcn/reference/{}.py",
    "tinyfcn/checks/cases/{}.py",
    "tests/kernels/test_{}.py",
)
FIRST = "relu"
TITLE_ENDS = re.compile(r", forward and backward|[:.(]")
READ_NEXT = re.compile(r"Read next: (\w+)\.cu")


def names(column: str) -> set[str]:
    """The operations that have a file in this column."""
    before, _, after = column.partition("{}")
    return {str(path.relative_to(ROOT).as_posix())[len(before) : -len(after)] for path in ROOT.glob(column.format("*"))}


def operations() -> list[str]:
    """All that have kernels, or a launcher and a reference; `__init__` is none."""
    kernels, launchers, references, *_ = map(names, COLUMNS)
    left = (kernels | launchers & references) - {"__init__"}
    order, name = [], FIRST
    while name in left:
        left.remove(name)
        order.append(name)
        following = READ_NEXT.search((ROOT / COLUMNS[0].format(name)).read_text(encoding="utf-8"))
        name = following.group(1) if following else ""
    return order + sorted(left)


def title(operation: str) -> str:
    """What the operation computes, in a few words."""
    kernel, launcher = (ROOT / column.format(operation) for column in COLUMNS[:2])
    path = kernel if kernel.exists() else launcher
    sentence = path.read_text(encoding="utf-8").partition("\n")[0].strip('/" ')
    return TITLE_ENDS.split(sentence, maxsplit=1)[0].strip()


def table() -> str:
    """The table in Markdown. A file that is not there leaves its cell empty."""
    folders = [column.rpartition("/")[0] + "/" for column in COLUMNS]
    lines = [["operation", *folders], ["---"] * (len(COLUMNS) + 1)]
    for operation in operations():
        files = [column.format(operation) for column in COLUMNS]
        links = [f"[{Path(file).name}](../{file})" if (ROOT / file).exists() else "" for file in files]
        lines.append([title(operation), *links])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def updated(text: str) -> str:
    """The page's text with the table in its place."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        sys.exit(f"{PAGE.name} has no place for the table: put {BEGIN} and {END} there, a line each")
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only say whether the table is as it should be")
    options = parser.parse_args()
    text = PAGE.read_text(encoding="utf-8")
    wanted = updated(text)
    if not options.check:
        PAGE.write_text(wanted, encoding="utf-8")
    elif text != wanted:
        sys.exit(f"the table of operations in {PAGE.name} is not that of the files: run {COMMAND}")


if __name__ == "__main__":
    main()
