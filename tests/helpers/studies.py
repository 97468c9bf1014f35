"""Studies of tiny trainings: the classifier on tiny digits, a second each."""

from pathlib import Path

from helpers.tiny_digits import write_tiny_digits

HEAD = """command = "train-cnn"
{keys}
[fixed]
device = "cpu"
batch = 20
data_dir = {data!r}
{fixed}
[space]
{space}
"""


def write_study(folder: Path, keys: str = "", fixed: str = "", space: str = "", name: str = "study.toml") -> Path:
    """Writes a study's file, and the digits of its trainings, into a folder."""
    data = folder / "digits"
    if not data.exists():
        data.mkdir()
        write_tiny_digits(data)
    path = folder / name
    path.write_text(HEAD.format(keys=keys, fixed=fixed, space=space, data=str(data)))
    return path
