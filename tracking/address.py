"""Where runs are kept and read: the home folder, the store's address, links for people. Imports nothing heavy."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import tempfile
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from tracking.errors import UserError


def home() -> Path:
    """Where runs are kept: ``$WORKBENCH_HOME``, else ``runs`` in a source checkout, else ``~/workbench-runs``."""
    if os.environ.get("WORKBENCH_HOME"):
        return Path(os.environ["WORKBENCH_HOME"]).expanduser().absolute()
    checkout = Path(__file__).resolve().parents[1]
    return checkout / "runs" if (checkout / "pyproject.toml").is_file() else Path.home() / "workbench-runs"


def tracking_uri(given: str | None = None) -> str | None:
    """The store's address: ``given``, else ``$MLFLOW_TRACKING_URI``, else one SQLite file under :func:`home`.

    ``"off"`` gives ``None``: no store. A relative SQLite path is made absolute, so that a notebook's folder does not
    decide which database it is. :class:`UserError` for a folder, which MLflow no longer takes as a store.
    """
    uri = given or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow.db'}"
    if uri == "off":
        return None
    if uri.startswith("sqlite:///"):
        return f"sqlite:///{Path(uri.removeprefix('sqlite:///')).expanduser().absolute()}"
    if uri.startswith("databricks") or ("://" in uri and not uri.startswith("file:")):
        return uri.rstrip("/")
    raise UserError(f"Tracking address {uri!r} is refused. Allowed: 'off', sqlite:///path/to/mlflow.db, the http(s) "
                    f"address of an MLflow server, or a database such as postgresql://… "
                    f"(MLflow keeps no runs in plain folders).")


def public_uri(uri: str) -> str:
    """The address without user name and password: fit for a message or a file."""
    parts = urlsplit(uri)
    return uri if "@" not in parts.netloc else urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def scrub(text: str, uri: str) -> str:
    """``text`` without the user name and password of ``uri``: clients quote the whole address in their errors."""
    user = urlsplit(uri).netloc.rpartition("@")[0]
    return text.replace(f"{user}@", "") if user else text


def sqlite_path(uri: str) -> Path | None:
    """The database file of a SQLite address, else ``None``."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def lock_path(uri: str) -> Path:
    """The lock file of a store for the processes of this machine: beside a SQLite file, else among temporary files."""
    database = sqlite_path(uri)
    if database is not None:
        return database.with_name(f"{database.name}.lock")
    return Path(tempfile.gettempdir()) / f"workbench-{hashlib.sha256(uri.encode()).hexdigest()[:16]}.lock"


def available() -> bool:
    """Whether MLflow is installed (it is not imported)."""
    return importlib.util.find_spec("mlflow") is not None


def ui_url(uri: str) -> str:
    """Where a person reads the store: the server itself, else ``$WORKBENCH_UI``, else a local server on port 5000."""
    if uri.startswith(("http://", "https://")):
        return public_uri(uri)
    return os.environ.get("WORKBENCH_UI", "http://127.0.0.1:5000").rstrip("/")


def experiments_url(base: str) -> str:
    """Link to the list of experiments. ``workflowType`` keeps MLflow's pages in training mode."""
    return f"{base}/#/experiments?workflowType=machine_learning"
