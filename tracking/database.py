"""Databases that hold a store: their drivers, and what processes must not do at the same moment.

A team's database is PostgreSQL; the default is a SQLite file. Neither is opened here unless something must be made exactly once.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import os
import sqlite3
from collections.abc import Iterator
from typing import Any

from tracking.address import available, lock_path, public_uri, sqlite_path
from tracking.errors import UserError
from tracking.folder import held

TIMEOUT_S = 60
_LOCK = 0x776F726B62656E63  # the advisory lock's number: eight letters of our name
LOCK_NOT_AVAILABLE = "55P03"  # PostgreSQL's code
DRIVERS = ("psycopg", "psycopg2")


def client_class() -> Any:
    """MLflow's client, imported quietly. Raises :class:`UserError` when MLflow is not installed."""
    if not available():
        raise UserError("MLflow is not installed, so nothing is sent to it; the journal keeps everything. "
                        "Install mlflow and ship it later, or set tracking to 'off'.")
    for name, value in {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_LOGGING_LEVEL": "ERROR",
                        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
                        # the recorder retries by itself, so that a dead server is noticed in seconds
                        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    # a locked database is retried and reported in one line; MLflow and urllib3 would print each failure at length
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    return MlflowClient


def is_postgres(uri: str) -> bool:
    return uri.partition("://")[0].partition("+")[0] == "postgresql"


def with_driver(uri: str) -> str:
    """The address with the driver that is installed, where it names none: which one is the default depends on the version of SQLAlchemy.

    Raises :class:`UserError` when there is no driver for PostgreSQL.
    """
    if not is_postgres(uri):
        return uri
    scheme, _, rest = uri.partition("://")
    named = scheme.partition("+")[2]
    found = [d for d in ([named] if named else DRIVERS) if importlib.util.find_spec(d) is not None]
    if not found:
        raise UserError(f"{public_uri(uri)} needs a driver for PostgreSQL ({named or ' or '.join(DRIVERS)}), which is not installed: "
                        "pip install 'efficient-workbench[postgres]'.")
    return f"postgresql+{found[0]}://{rest}"


def make_tables(uri: str) -> None:
    """Have MLflow make its tables if there are none: whole or not at all, by one process while the others wait.

    It makes them in many steps, and neither a second process nor a kill may come in between. It is imported only if it has to.
    """
    def make(address: str) -> None:
        client_class()(address).search_experiments(max_results=1)

    database = sqlite_path(uri)
    if database is not None:
        if not database.exists():
            with exclusive(uri):
                if not database.exists():
                    new = database.with_name(f"{database.name}.new")
                    new.unlink(missing_ok=True)
                    make(f"sqlite:///{new}")
                    new.replace(database)
        # what is no database is told at once; MLflow would try for over a minute
        with contextlib.closing(sqlite3.connect(database, timeout=30)) as connection:
            connection.execute("select count(*) from sqlite_master")
    elif is_postgres(uri):
        with exclusive(uri) as cursor:
            cursor.execute("select to_regclass('alembic_version')")
            if cursor.fetchone()[0] is None:
                make(with_driver(uri))


@contextlib.contextmanager
def exclusive(uri: str) -> Iterator[Any]:
    """One process at a time: of all machines that share a PostgreSQL database (gives a cursor in it), else of this machine.

    Raises :class:`TimeoutError` after a minute.
    """
    with contextlib.ExitStack() as stack:
        if is_postgres(uri):
            yield stack.enter_context(_advisory_lock(uri))
            return
        if not stack.enter_context(held(path := lock_path(uri), timeout_s=TIMEOUT_S)):
            raise TimeoutError(f"another process has been preparing {public_uri(uri)} for a minute ({path})")
        yield None


@contextlib.contextmanager
def connected(uri: str) -> Iterator[Any]:
    """A cursor in a PostgreSQL database, each statement a transaction of its own."""
    scheme, _, rest = with_driver(uri).partition("://")
    connection = importlib.import_module(scheme.partition("+")[2]).connect(f"postgresql://{rest}")
    with contextlib.closing(connection):
        connection.autocommit = True
        yield connection.cursor()


@contextlib.contextmanager
def _advisory_lock(uri: str) -> Iterator[Any]:
    with connected(uri) as cursor:  # closing it gives the lock back, however this process ends
        cursor.execute(f"set lock_timeout = {1000 * TIMEOUT_S:.0f}")
        try:
            cursor.execute(f"select pg_advisory_lock({_LOCK})")
        except Exception as problem:
            if (getattr(problem, "sqlstate", None) or getattr(problem, "pgcode", None)) == LOCK_NOT_AVAILABLE:
                raise TimeoutError(f"another process has been preparing {public_uri(uri)} for a minute") from problem
            raise
        yield cursor
