"""What new_file does with a name that a person gave: links, devices, pipes, and files that are there already."""

import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tinyfcn.errors import DataError
from tinyfcn.files import is_stream, new_file

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no device nodes and no modes")


def write(path: Path, content: bytes = b"new") -> None:
    with new_file(path, "go elsewhere") as file:
        file.write(content)


def test_a_device_is_written_to_and_stays_a_device(tmp_path: Path) -> None:
    """A node of its own: nobody should try this on those of the machine."""
    if os.geteuid() != 0:
        pytest.skip("only root makes device nodes")
    for name, minor in (("null", 3), ("full", 7)):
        os.mknod(tmp_path / name, stat.S_IFCHR | 0o666, os.makedev(1, minor))
    write(tmp_path / "null")
    with pytest.raises(DataError, match=r"full cannot be written \(No space left on device\): go elsewhere"):
        write(tmp_path / "full")
    assert all(is_stream(path) and stat.S_ISCHR(path.stat().st_mode) for path in tmp_path.iterdir())
    assert len(list(tmp_path.iterdir())) == 2


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)
    reader.start()
    write(pipe)
    reader.join(10)
    assert read == [b"new"] and is_stream(pipe)


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path, there: bool) -> None:
    target, link = tmp_path / "below" / "target", tmp_path / "link"
    target.parent.mkdir()
    if there:
        target.write_text("old")
    link.symlink_to("below/target")
    write(link)
    assert link.is_symlink() and target.read_text() == "new" and not is_stream(link)
    assert {path.name for path in (*tmp_path.iterdir(), *target.parent.iterdir())} == {"below", "link", "target"}


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o755, 0o666])
def test_a_file_keeps_its_mode_and_owner(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    if os.geteuid() == 0:
        os.chown(path, 1234, 4321)
    path.chmod(mode)
    before = path.stat()
    write(path)
    after = path.stat()
    assert path.read_text() == "new"
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)


def test_names_that_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "folder").mkdir()
    for name, words in (("loop", "symbolic links"), ("folder", "directory"), ("missing/file", "No such file")):
        assert not is_stream(tmp_path / name)
        with pytest.raises(DataError, match=rf"{name} cannot be written \(.*{words}.*\): go elsewhere"):
            write(tmp_path / name)
    assert (tmp_path / "loop").is_symlink()


WRITER = """
import sys, time
from pathlib import Path
from tinyfcn.files import new_file
with new_file(Path(sys.argv[1]), "") as file:
    file.write(b"half")
    file.flush()
    print("written", flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such locks")
def test_what_a_killed_writer_left_is_deleted_and_what_another_writes_is_not(tmp_path: Path) -> None:
    foreign = tmp_path / ".notes.tmp"
    foreign.write_text("not by tinyfcn")
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / name)], stdout=subprocess.PIPE)
        for name in ("killed", "alive")
    ]
    try:
        for writer in writers:
            assert writer.stdout is not None and writer.stdout.readline().strip() == b"written"
        writers[0].send_signal(signal.SIGKILL)
        writers[0].wait()
        assert len([*tmp_path.iterdir()]) == 3
        with new_file(tmp_path / "whole", "") as file:
            file.write(b"whole")
        left = {path.name.partition(".tmp")[0].split(".")[1] for path in tmp_path.glob(".*.tmp")}
        assert left == {"alive", "notes"} and (tmp_path / "whole").read_bytes() == b"whole"
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
