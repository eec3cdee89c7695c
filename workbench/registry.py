"""What methods and tasks exist, read from their files without importing them, so that a listing needs no torch.

A file under ``workbench/methods/<family>/`` or ``workbench/datasets/`` is found by being there. Folders named in the environment variable
``WORKBENCH_PLUGINS`` (separated as in PATH) are scanned in the same way, so that a user's own method needs no fork.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.machinery
import importlib.util
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import CodeType, ModuleType
from typing import TYPE_CHECKING, Any

from tracking.errors import UserError, unknown

if TYPE_CHECKING:
    from workbench.method import Method
    from workbench.task import Task

PACKAGE = Path(__file__).parent
PLUGINS = "workbench_plugins."
_importing, _parsing = threading.Lock(), threading.Lock()
_as_imported: dict[Path, str] = {}
# contract files that hold words and no mathematics: a change to them makes no result stale
WORDS_ONLY = {"workbench.params", "tracking.errors", "tracking.metrics"}


@dataclass(frozen=True)
class Entry:
    """A method or a task as its file declares it."""

    id: str
    title: str
    summary: str
    module: str
    cls: str
    file: Path
    literals: dict[str, Any] = field(hash=False, compare=False)

    @property
    def family(self) -> str:
        return self.literals.get("family", "")

    @property
    def paper(self) -> str:
        return self.literals.get("paper", "")

    @property
    def paper_url(self) -> str:
        """Link to the paper, or an empty string."""
        scheme, _, rest = self.paper.partition(":")
        return {"arXiv": f"https://arxiv.org/abs/{rest}", "doi": f"https://doi.org/{rest}"}.get(scheme, "")


def methods() -> dict[str, Entry]:
    """Every method by id."""
    return _entries("id")


def tasks() -> dict[str, Entry]:
    """Every task by id; one file gives one id for each of its models."""
    found: dict[str, Entry] = {}
    for dataset, entry in _entries("dataset").items():
        for model in entry.literals.get("models", ()) or ("",):
            name = f"{dataset}/{model}" if model else dataset
            found[name] = Entry(name, entry.title, entry.summary, entry.module, entry.cls, entry.file,
                                {**entry.literals, "model": model})
    return found


def method_entry(id: str) -> Entry:
    """The catalogue entry of a method; an unknown id raises with the nearest known one."""
    known = methods()
    if id not in known:
        raise unknown("method", id, known)
    return known[id]


def task_entry(id: str) -> Entry:
    """The catalogue entry of a task; an unknown id raises with the nearest known one."""
    known = tasks()
    if id not in known:
        raise unknown("task", id, known)
    return known[id]


def load_method(id: str) -> type[Method]:
    """Import a method's class."""
    return _load(method_entry(id))


def load_task(id: str) -> type[Task]:
    """Import a task's class."""
    return _load(task_entry(id))


def code_version(*entries: Entry) -> str:
    """Hash of the source of the entries' files and of all project files that they import, however deep.

    Part of a run's key: changed mathematics is never answered from the cache.
    """
    seen: dict[str, bytes] = {}
    for name, (file, source) in _closure(entries).items():
        if _imported_as(name, file, source) not in (None, hashlib.sha256(source).hexdigest()):
            raise UserError(f"{file} was edited after this process imported it. Restart the kernel (or the process) to run the new code.")
        seen[name] = source
    digest = hashlib.sha256()
    # a plugin's module name has its folder in it, and the same code has the same version on another machine
    labelled = sorted((name.rpartition(".")[2] if name.startswith(PLUGINS) else name, text) for name, text in seen.items())
    for name, text in labelled:
        digest.update(name.encode() + b"\0" + text + b"\0")
    return digest.hexdigest()[:16]


def _closure(entries: Iterable[Entry]) -> dict[str, tuple[Path, bytes]]:
    """File and source by module name: the entries' own, and all project files that they import, however deep."""
    seen: dict[str, tuple[Path, bytes]] = {}
    pending = [(e.module, e.file) for e in entries]
    while pending:
        name, file = pending.pop()
        if name in seen:
            continue
        source = file.read_bytes()
        seen[name] = file, source
        for imported in _imports(name, source):
            if imported not in seen and imported not in WORDS_ONLY and (path := _project_file(imported)):
                pending.append((imported, path))
    return seen


# --- scanning ---------------------------------------------------------------------------------------------


def _entries(key: str) -> dict[str, Entry]:
    """All classes whose body sets the literal ``key``."""
    found: dict[str, Entry] = {}
    for module, file in _files():
        for entry in _scan(module, file, file.read_bytes()):
            if key not in entry.literals:
                continue
            name = entry.literals[key]
            if name in found:
                raise UserError(f"{key} {name!r} is declared twice: in {found[name].file} and in {file}. Rename one.")
            found[name] = entry
    return dict(sorted(found.items(), key=lambda item: (item[1].family, item[0])))


def _files() -> Iterator[tuple[str, Path]]:
    for room in ("methods", "datasets"):
        for file in sorted((PACKAGE / room).rglob("*.py")):
            if not file.name.startswith("_"):
                yield ".".join(("workbench", *file.relative_to(PACKAGE).with_suffix("").parts)), file
    for folder in filter(None, os.environ.get("WORKBENCH_PLUGINS", "").split(os.pathsep)):
        if not Path(folder).is_dir():
            raise UserError(f"WORKBENCH_PLUGINS names {folder!r}, which is not a folder.")
        for file in sorted(Path(folder).resolve().rglob("*.py")):
            if not file.name.startswith("_"):
                yield f"{PLUGINS}{hashlib.sha256(str(file).encode()).hexdigest()[:8]}.{file.stem}", file


@lru_cache(maxsize=1024)
def _scan(module: str, file: Path, source: bytes) -> tuple[Entry, ...]:
    try:
        tree = _parse(source)
    except SyntaxError as error:
        raise UserError(f"{file}, line {error.lineno}: {error.msg}. Mend the file, or move it out of the folder.") from None
    except ValueError as error:  # null bytes, in Python 3.11
        raise UserError(f"{file}: {error}. Mend the file, or move it out of the folder.") from None
    found = []
    for node in tree.body:
        if not isinstance(node, ast.ClassDef):
            continue
        literals = _literals(node)
        name = literals.get("id", literals.get("dataset"))
        if isinstance(name, str):
            summary = (ast.get_docstring(node) or "").split("\n\n")[0].replace("\n", " ").strip()
            found.append(Entry(name, literals.get("title", name), summary, module, node.name, file, literals))
    return tuple(found)


def _literals(node: ast.ClassDef) -> dict[str, Any]:
    """Class attributes whose values are literals, tuple assignments included."""
    values: dict[str, Any] = {}
    for item in node.body:
        if isinstance(item, ast.Assign):
            target, value = item.targets[0], item.value
        elif isinstance(item, ast.AnnAssign) and item.value is not None:
            target, value = item.target, item.value
        else:
            continue
        try:
            literal = ast.literal_eval(value)
        except (ValueError, TypeError):  # no literal, or one that cannot be built, such as {[]: 0}
            continue
        if isinstance(target, ast.Name):
            values[target.id] = literal
        elif isinstance(target, ast.Tuple) and isinstance(literal, tuple):
            values |= {t.id: v for t, v in zip(target.elts, literal, strict=False) if isinstance(t, ast.Name)}
    return values


def _load(entry: Entry) -> Any:
    try:
        cls = getattr(_import(entry.module, entry.file), entry.cls)
    except ImportError as error:
        raise UserError(f"{entry.id!r} cannot be used: importing {entry.file} failed with: {error}. "
                        "Install what is missing, or mend the file.") from error
    for name, (file, source) in _closure([entry]).items():  # an edit from here on is one that the class does not have
        _imported_as(name, file, source)
    return cls


def _import(name: str, file: Path) -> ModuleType:
    if not name.startswith(PLUGINS):
        return importlib.import_module(name)
    # a changed plugin gets a new module name, so a notebook sees an edit without a restart of the kernel
    name = f"{name}_{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}"
    with _importing:  # runs in threads may ask for the same plugin at once
        if name not in sys.modules:
            spec = importlib.util.spec_from_file_location(name, file, loader=_AsItIs(name, str(file)))
            module = importlib.util.module_from_spec(spec)
            sys.modules[name] = module
            try:
                spec.loader.exec_module(module)
            except BaseException:
                del sys.modules[name]
                raise
        return sys.modules[name]


class _AsItIs(importlib.machinery.SourceFileLoader):
    """Compiles what the file holds: Python knows a compiled copy by the file's size and second, and an edit may leave both."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def _imported_as(name: str, file: Path, source: bytes) -> str | None:
    """Digest of the file as this process imported it, kept from the first call on; ``None`` when it did not (or it is a plugin).

    What runs is the code as it was imported: a later edit must not lend its version to the figures of the old code.
    """
    if name.startswith(PLUGINS) or getattr(sys.modules.get(name), "__file__", None) != str(file):
        return None
    return _as_imported.setdefault(file, hashlib.sha256(source).hexdigest())


@lru_cache(maxsize=1024)
def _imports(module: str, source: bytes) -> frozenset[str]:
    names: set[str] = set()
    for node in ast.walk(_parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[:-node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return frozenset(names)


def _parse(source: bytes) -> ast.Module:
    with _parsing:  # in Python 3.11 two threads that parse at once can raise SystemError
        return ast.parse(source)


def _project_file(module: str) -> Path | None:
    return next((file for file in _may_be(PACKAGE.parent, module) if os.path.isfile(file)), None)


@lru_cache(maxsize=4096)
def _may_be(root: Path, module: str) -> tuple[Path, ...]:
    """The files under ``root`` that a project's module may be in; none for another's. Kept: a run looks up hundreds of names."""
    room, _, rest = module.partition(".")
    if room not in ("workbench", "tracking") or not rest:
        return ()
    if rest.startswith("energy_model"):  # modelled joules follow from a run and can be had again: they decide nothing in it
        return ()
    path = root / room / Path(*rest.split("."))
    return path.with_suffix(".py"), path / "__init__.py"
