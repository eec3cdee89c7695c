"""A real PostgreSQL of a test's own: made, crashed and brought back in about a second."""

from __future__ import annotations

import contextlib
import glob
import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from tests.browser import free_port
from tracking.database import connected

USER, PASSWORD = "bench", "p@ss/w:rd?#1"  # all that must be encoded in an address


def binary(name: str) -> str | None:
    """Path of one of PostgreSQL's programs; Debian keeps them out of the PATH."""
    return shutil.which(name) or next(iter(sorted(glob.glob(f"/usr/lib/postgresql/*/bin/{name}"), reverse=True)), None)


def why_not() -> str | None:
    """Why there can be no PostgreSQL here, as a reason for skipping; ``None`` when there can."""
    missing = [name for name in ("initdb", "pg_ctl") if binary(name) is None]
    if missing:
        return f"no PostgreSQL on this machine ({', '.join(missing)})"
    missing = [name for name in ("mlflow", "psycopg") if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(missing)}" if missing else None


@dataclass
class Cluster:
    """A PostgreSQL on 127.0.0.1 that wants a password."""

    folder: Path
    port: int

    def uri(self, database: str) -> str:
        return f"postgresql://{USER}:{quote(PASSWORD, safe='')}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        # what a crash of the machine itself would lose is not looked at here, so nothing waits for the disk
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder} -c fsync=off"
        self._run("pg_ctl", "-D", "data", "-o", options, "-w", "-l", "log", "start")

    def crash(self) -> None:
        """Break off every session and every transaction, as a kill would."""
        self._run("pg_ctl", "-D", "data", "-m", "immediate", "-w", "stop")

    def rows(self, database: str, query: str) -> list[tuple]:
        with connected(self.uri(database)) as cursor:
            cursor.execute(query)
            return cursor.fetchall() if cursor.description else []

    def stored(self, database: str) -> dict[str, Counter[tuple[str, int]]]:
        """By the workbench's key of a run: how often each (metric, step) is in the store, read past MLflow."""
        found: dict[str, Counter[tuple[str, int]]] = {}
        for key, name, step in self.rows(database, "select t.value, m.key, m.step from metrics m join tags t on t.run_uuid = m.run_uuid "
                                                   "where t.key = 'workbench.key'"):
            found.setdefault(key, Counter())[name, step] += 1
        return found

    def _run(self, program: str, *words: str) -> None:
        # the server refuses to be run by root
        user = {"user": "nobody"} if os.geteuid() == 0 else {}
        subprocess.run([binary(program), *words], cwd=self.folder, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL, env={"PATH": os.environ["PATH"], "LC_ALL": "C"}, timeout=60, **user)


@contextlib.contextmanager
def postgres() -> Iterator[Cluster]:
    """A cluster until the end of the block. Its folder lies outside of pytest's, into which another user cannot look."""
    folder = Path(tempfile.mkdtemp(prefix="workbench-postgres-"))
    try:
        (folder / "password").write_text(PASSWORD)
        if os.geteuid() == 0:
            for path in (folder, folder / "password"):
                shutil.chown(path, "nobody")
        cluster = Cluster(folder, free_port())
        login = ("-U", USER, "--auth=scram-sha-256", "--pwfile=password")
        cluster._run("initdb", "-D", "data", *login, "-E", "UTF8", "--locale=C", "--no-sync")
        cluster.start()
        try:
            yield cluster
        finally:
            with contextlib.suppress(subprocess.CalledProcessError):
                cluster.crash()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
