"""What the environment decides: homes, caches, the network, terminals."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tinyfcn import environment
from tinyfcn.errors import DataError


@pytest.fixture(autouse=True)
def no_temporary_cache(monkeypatch):
    monkeypatch.setattr(environment, "_temporary", [])
    for name in ("TINYFCN_CACHE", "XDG_CACHE_HOME", "TERM"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("yes", ["1", "true", "YES", " on "])
@pytest.mark.parametrize("no", ["", "0", "False", "no", "OFF"])
def test_offline_is_yes_or_no(monkeypatch, yes, no):
    for value, expected in ((yes, True), (no, False)):
        monkeypatch.setenv("TINYFCN_OFFLINE", value)
        assert environment.is_offline() is expected
    monkeypatch.delenv("TINYFCN_OFFLINE")
    assert environment.is_offline() is False


@pytest.mark.parametrize("value", ["2", "maybe", "-1"])
def test_offline_that_is_neither_is_told(monkeypatch, value):
    monkeypatch.setenv("TINYFCN_OFFLINE", value)
    with pytest.raises(DataError, match=rf"TINYFCN_OFFLINE is '{value}', expected 1, .* or 0, .*"):
        environment.is_offline()


def test_home_folders(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert environment.expand_home("~/x", "--out") == Path("/home/me/x")
    assert environment.expand_home("a/~/x", "--out") == Path("a/~/x")
    with pytest.raises(DataError, match=r"~nouser/x \(from TINYFCN_DATA\): ~nouser has no home folder here"):
        environment.expand_home("~nouser/x", "TINYFCN_DATA")
    Path("~copy.png").touch()
    assert environment.expand_home("~copy.png", "the command line") == Path("~copy.png")


def test_a_bar_moves_on_a_terminal_only(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("FORCE_COLOR", "1")
    assert not environment.is_terminal(io.StringIO()) and not environment.is_terminal(None)
    assert environment.is_terminal(Terminal())
    monkeypatch.setenv("TERM", "dumb")
    assert not environment.is_terminal(Terminal())


def test_a_notice_never_lands_on_stdout(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", None)  # as where it is closed
    environment.print_notice("hello")
    assert capsys.readouterr().out == ""


def test_the_platforms_cache_is_replaced_where_it_cannot_be_written_to(monkeypatch, tmp_path, capsys):
    (tmp_path / "home").write_text("no folder can be made in here")
    monkeypatch.setattr(environment.platformdirs, "user_cache_dir", lambda *_, **__: str(tmp_path / "home" / "cache"))
    assert environment.cache_folder() == tmp_path / "home" / "cache"
    made = [environment.writable_cache(environment.cache_folder() / name) for name in ("mnist", "", "emulator")]
    root = made[1]
    assert made == [root / "mnist", root, root / "emulator"] and all(folder.is_dir() for folder in made)
    assert environment.cache_folders() == [tmp_path / "home" / "cache", root]
    (notice,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "home") in notice and str(root) in notice and "set TINYFCN_CACHE" in notice
    monkeypatch.setenv("TINYFCN_CACHE", str(tmp_path / "home"))
    with pytest.raises(DataError, match="set TINYFCN_CACHE"):
        environment.writable_cache(environment.cache_folder())


def refuse(*_, **__):
    raise RuntimeError("could not determine the home directory")


@pytest.mark.parametrize("answer", [lambda *_, **__: "~/.cache/tinyfcn", refuse], ids=["older", "newer"])
def test_no_home_at_all(monkeypatch, capsys, answer):
    monkeypatch.setattr(environment.platformdirs, "user_cache_dir", answer)
    folder = environment.cache_folder()
    assert folder.is_dir() and folder.is_absolute() and environment.cache_folder() == folder
    assert environment.writable_cache(folder / "mnist") == folder / "mnist"
    (notice,) = capsys.readouterr().err.splitlines()
    assert notice.startswith("there is no home folder: set TINYFCN_CACHE") and str(folder) in notice


INFO_BY_NOBODY = """
import pwd
def getpwuid(number):
    raise KeyError(number)
pwd.getpwuid = getpwuid
from tinyfcn.cli import main
main(["info"])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="its users are known without a list")
@pytest.mark.parametrize("home", [None, "file"])
def test_a_user_without_a_home(tmp_path, home):
    """As in a container that runs under any user id, or where the home folder cannot be written to."""
    (tmp_path / "file").touch()
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "CUPY_CACHE_DIR")}
    if home:
        environment["HOME"] = str(tmp_path / home)
    command = [sys.executable, "-c", INFO_BY_NOBODY]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "export CUPY_CACHE_DIR=FOLDER" in done.stdout
    assert ("there is no home folder" in done.stderr) == (home is None)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
