"""Where runs are kept and read: the home folder, the store's address, links for people. Imports nothing heavy."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlsplit

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
        try:
            urlsplit(uri).port  # noqa: B018 (reading it checks it)
        except ValueError:
            raise UserError(f"Tracking address {public_uri(uri)!r} cannot be read: its port is no number. In a password write "
                            "%2F for /, %3F for ?, %23 for #, %40 for @ and %3A for a colon.") from None
        return re.sub("^postgres://", "postgresql://", uri.rstrip("/"))
    raise UserError(f"Tracking address {public_uri(uri)!r} is refused. Allowed: 'off', sqlite:///path/to/mlflow.db, the http(s) "
                    f"address of an MLflow server, or a database such as postgresql://… "
                    f"(MLflow keeps no runs in plain folders).")


def _login(uri: str) -> str:
    """What stands before the ``@`` of an address. Where a ``/`` or ``?`` of a password was not encoded, all before the last ``@``."""
    if uri.startswith(("sqlite:", "file:")):
        return ""
    rest = uri.partition("://")[2] or uri
    place = re.split("[/?]", rest, maxsplit=1)[0]
    whole = uri.startswith("http") and ("@" in place or re.fullmatch(r"[^:]*(:\d*)?|\[.*\](:\d*)?", place))
    return (place if whole else rest).rpartition("@")[0]


def passwords(uri: str) -> list[str]:
    """The passwords in an address, of the user and in the query, as written and decoded."""
    if uri.startswith(("sqlite:", "file:")):
        return []
    query = [value for name, _, value in (pair.partition("=") for pair in uri.partition("?")[2].split("&")) if "pass" in name.lower()]
    found = [_login(uri).partition(":")[2], *query]
    return sorted({shape for word in found for shape in (word, unquote(word)) if shape}, key=len, reverse=True)


def public_uri(uri: str) -> str:
    """The address without user name and passwords: fit for a message or a file."""
    login = _login(uri)
    shown = uri.replace(f"{login}@", "", 1) if login else uri
    place, mark, query = shown.partition("?")
    kept = [pair for pair in query.split("&") if "pass" not in pair.partition("=")[0].lower()] if mark and passwords(uri) else [query]
    return f"{place}?{'&'.join(kept)}" if any(kept) else place


def scrub(text: str, uri: str) -> str:
    """``text`` without the login and the passwords of ``uri``: clients quote the whole address, or a part of it, in their errors."""
    login = _login(uri)
    text = text.replace(f"{login}@", "") if login else text
    for word in passwords(uri):
        text = text.replace(word, "***")
    return text


def hide_secrets(argv: list[str]) -> tuple[list[str], dict[str, str]] | None:
    """A command line without the addresses in it that hold a password, and the environment that has the last of them instead.

    ``None`` where there is nothing to hide. Anybody on a machine can read the command lines of its processes.
    """
    hidden: dict[str, str] = {}
    shown = []
    for word in argv:
        name, value = re.fullmatch(r"([\w-]+=)?(.*)", word, re.S).groups(default="")
        if "://" in value and passwords(value):
            hidden["MLFLOW_TRACKING_URI"], value = value, ""
        shown.append(name + value)
    return (shown, hidden) if hidden else None


def sqlite_path(uri: str) -> Path | None:
    """The database file of a SQLite address, else ``None``."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def lock_path(uri: str) -> Path:
    """The lock file of a store for the processes of this machine: beside a SQLite file, else among temporary files."""
    database = sqlite_path(uri)
    if database is not None:
        return database.with_name(f"{database.name}.lock")
    return Path(tempfile.gettempdir()) / f"workbench-{hashlib.sha256(public_uri(uri).encode()).hexdigest()[:16]}.lock"


def available() -> bool:
    """Whether MLflow is installed (it is not imported)."""
    return importlib.util.find_spec("mlflow") is not None


def ui_url(uri: str) -> str:
    """Where a person reads the store: the server itself, else ``$WORKBENCH_UI``, else a local server on port 5000."""
    if uri.startswith(("http://", "https://")):
        return public_uri(uri)
    return os.environ.get("WORKBENCH_UI", "http://127.0.0.1:5000").rstrip("/")
