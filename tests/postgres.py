"""A real PostgreSQL for tests: one server a test session, in a folder of its own, with a new database for each test that asks."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

WAIT_SECONDS = 30.0


def program(name: str) -> str | None:
    """Path of one of PostgreSQL's programs, which Debian keeps out of the search path; None where it is not installed."""
    places = [*os.environ.get("PATH", "").split(os.pathsep), *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True))]
    return shutil.which(name, path=os.pathsep.join(places))


class Server:
    """A server that listens on this machine alone. It refuses to run as root, so where the tests do, it runs as another user."""

    def __init__(self):
        self.folder, self.process = Path(tempfile.mkdtemp(prefix="starfish-postgres-")), None
        self._user: dict[str, object] = {}
        if os.geteuid() == 0:
            user = next(pwd.getpwnam(name) for name in ("postgres", "nobody") if any(entry.pw_name == name for entry in pwd.getpwall()))
            self._user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
            os.chown(self.folder, user.pw_uid, user.pw_gid)
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = found.getsockname()[1]
        self._numbers = itertools.count()
        self._call("initdb", "-D", str(self.folder / "data"), "-U", "lab", "-A", "trust", "-E", "UTF8", "--locale=C", "-N")
        self.start()

    def start(self) -> None:
        """Returns once the server answers."""
        options = {"listen_addresses": "127.0.0.1", "port": self.port, "unix_socket_directories": "", "fsync": "off", "max_connections": 60}
        command = [program("postgres"), "-D", str(self.folder / "data"), *(f"--{name}={value}" for name, value in options.items())]
        with open(self.folder / "log.txt", "ab") as log:
            self.process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log, **self._user)
        end = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < end and self.process.poll() is None:
            try:
                return self._call("psql", self.url("postgres", driver=""), "-c", "SELECT 1")
            except subprocess.CalledProcessError:
                time.sleep(0.05)
        raise RuntimeError((self.folder / "log.txt").read_text()[-2000:])

    def stop(self) -> None:
        """As when its machine is switched off: nobody is asked and every connection breaks."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait(WAIT_SECONDS)

    def database(self) -> str:
        """The address of a new, empty database."""
        name = f"lab{next(self._numbers)}"
        self._call("psql", self.url("postgres", driver=""), "-c", f"CREATE DATABASE {name}")
        return self.url(name)

    def url(self, database: str, driver: str = "+psycopg") -> str:
        return f"postgresql{driver}://lab@127.0.0.1:{self.port}/{database}"

    def _call(self, name: str, *arguments: str) -> None:
        subprocess.run([program(name), *arguments], cwd=self.folder, check=True, capture_output=True, **self._user)


@pytest.fixture(scope="session")
def postgres():
    """The session's server. Tests that need it are skipped where PostgreSQL is not installed."""
    if program("initdb") is None:
        pytest.skip("no PostgreSQL server is installed (Debian: apt-get install postgresql)")
    pytest.importorskip("psycopg", reason="the driver psycopg is not installed (pip install 'psycopg[binary]')")
    server = Server()
    yield server
    server.stop()
    shutil.rmtree(server.folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request, monkeypatch) -> str:
    """Runs a test twice: with the store in a file, as everybody has it, and in PostgreSQL, as a team has it."""
    if request.param == "sqlite":
        from starfish_lab import settings

        return settings.database_url()
    url = request.getfixturevalue("postgres").database()
    monkeypatch.setenv("STARFISH_LAB_DATABASE_URL", url)
    return url
