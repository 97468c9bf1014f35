"""Studies run by commands in processes of their own, whose workers are killed."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path


class Machine:
    """`tinyfcn sweep` as one of several machines runs it."""

    def __init__(self, folder: Path, *arguments: str | Path) -> None:
        self.output = folder / "output.txt"
        command = [sys.executable, "-m", "tinyfcn", "sweep", *map(str, arguments)]
        with open(self.output, "a") as output:
            self.process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=output)

    def workers(self) -> list[int]:
        """The worker processes that live."""
        found = []
        for task in Path(f"/proc/{self.process.pid}/task").glob("*"):
            with suppress(OSError):
                found += [int(child) for child in (task / "children").read_text().split()]
        return [child for child in found if "spawn_main" in command_of(child)]

    def ended(self) -> bool:
        return self.process.poll() is not None

    def printed(self) -> str:
        return self.output.read_text()

    def kill(self) -> None:
        """Kills the command and its workers, as the loss of power would."""
        for process in (*self.workers(), self.process.pid):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self.process.wait()


def command_of(process: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""
