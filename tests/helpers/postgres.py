"""A PostgreSQL of a test's own, on loopback, in a temporary folder."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

FOLDERS = [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]  # where Debian keeps them
SETTINGS = {"fsync": "off", "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "max_connections": "60"}


def program(name: str) -> str:
    """The path of a program of PostgreSQL; fails if it is not installed: a skipped test proves nothing."""
    path = os.pathsep.join([os.environ.get("PATH", ""), *map(str, FOLDERS)])
    found = shutil.which(name, path=path)
    assert found, f"{name} is not installed: apt-get install postgresql, or leave out -m postgres"
    return found


class Postgres:
    """A server that can be stopped and started. It runs as a user that is not root, whom it refuses."""

    def __init__(self) -> None:
        self.is_root = os.getuid() == 0
        self.user = pwd.getpwnam("postgres") if self.is_root else pwd.getpwuid(os.getuid())
        self.folder = Path(tempfile.mkdtemp(prefix="tinyfcn-postgres-"))
        os.chown(self.folder, self.user.pw_uid, self.user.pw_gid)
        self._run("initdb", "--auth=trust", "--no-sync", "--username=study", "--encoding=UTF8")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"postgresql://study@127.0.0.1:{self.port}/postgres"

    def _run(self, name: str, *arguments: str) -> None:
        command = [program(name), "-D", str(self.folder / "data"), *arguments]
        user = {"user": self.user.pw_uid, "group": self.user.pw_gid} if self.is_root else {}
        environment = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
        # Not a pipe: the server would hold it open.
        with open(self.folder / "commands.txt", "a+") as log:
            done = subprocess.run(command, stdout=log, stderr=log, cwd="/", env=environment, **user)
            log.seek(0)
            assert done.returncode == 0, f"{' '.join(command)}: {log.read()}"

    def start(self) -> None:
        """Starts the server, and returns once it answers."""
        options = " ".join(f"-c {name}={value!r}" for name, value in {**SETTINGS, "port": str(self.port)}.items())
        self._run("pg_ctl", "start", "-w", "-l", str(self.folder / "log.txt"), "-o", options)

    def stop(self) -> None:
        """Stops the server at once: its clients lose their connections."""
        self._run("pg_ctl", "stop", "-w", "-m", "immediate")

    def remove(self) -> None:
        """Stops the server and deletes its folder."""
        self.stop()
        shutil.rmtree(self.folder)
