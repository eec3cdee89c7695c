"""Where the files of runs lie: beside a store without a server, or where MLflow's server is told to keep them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tracking.address import home, sqlite_path
from tracking.database import is_postgres

SERVED = "mlflow-artifacts:"
"""Addresses of files that MLflow's server keeps where it was told to begin with this."""


def kept_in(folder: Path) -> str:
    """Where stores without a server keep files: ``$MLFLOW_ARTIFACTS_DESTINATION``, else ``artifacts`` in ``folder``.

    The variable is MLflow's own, and its server reads it, too: a folder that all machines of a team share, or a bucket such as ``s3://…``.
    """
    shared = os.environ.get("MLFLOW_ARTIFACTS_DESTINATION", "")
    if "://" in shared:
        return shared.rstrip("/")
    return str(Path(shared).expanduser().absolute() if shared else folder / "artifacts")


def root(uri: str) -> str | None:
    """:func:`kept_in` beside a SQLite file, else in the workbench's home; ``None`` for a server, which has a place of its own."""
    if uri.startswith(("http://", "https://", "databricks")):
        return None
    database = sqlite_path(uri)
    return kept_in(home() if database is None else database.parent)


def location(uri: str, experiment: str) -> str | None:
    """Where the files of a new experiment go; ``None`` leaves it to the server.

    A database that several machines share holds no path of one of them, which the others could neither read nor write.
    """
    place = SERVED if is_postgres(uri) else root(uri)
    name = re.sub(r"\W+", "_", experiment)
    return None if place is None else f"{place}/{name}"


def repository(uri: str, client: Any, run_id: str) -> Any:
    """MLflow's reader and writer of a run's files: past the server, to where it keeps them, for those who reach the store without it."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    where = client.get_run(run_id).info.artifact_uri
    own = root(uri)
    if own is not None and where.startswith(SERVED):
        where = own + urlsplit(where).path
    return get_artifact_repository(where, client.tracking_uri)
