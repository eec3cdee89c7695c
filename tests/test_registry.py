"""The registry: listing without importing, plugins, and a code version that knows what a figure depends on."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tracking.errors import UserError
from workbench import registry

ROOT = Path(__file__).parent.parent
TASK_ROOM = registry.task_entry("digits/mlp").file.parent.name  # the folder of the tasks, whatever its name

METHOD = '''
class {cls}:
    """{doc}"""

    id, title, family = "{id}", "A title", "testing"
    paper = "{paper}"
'''


def plugin(folder: Path, name: str, **words: str) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / f"{name}.py"
    file.write_text(METHOD.format(**{"cls": "M", "doc": "Does a thing.", "id": name, "paper": "", **words}))
    return file


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("WORKBENCH_PLUGINS", str(tmp_path / "p"))
    (tmp_path / "p").mkdir()
    return tmp_path / "p"


def loaded_after(code: str) -> set[str]:
    """Top-level modules in a fresh interpreter after ``code``."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint('LOADED', *{{m.partition('.')[0] for m in sys.modules}})"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split("LOADED")[1].split())


@pytest.mark.parametrize(
    "code",
    [
        "from workbench import registry\nassert registry.methods() and registry.tasks()",
        "import workbench\ndir(workbench)",
        "from workbench.catalogue import method_rows, task_rows\nassert method_rows() and task_rows()",
        "from workbench.cli import build_parser\nbuild_parser()",
    ],
)
def test_listing_imports_nothing_heavy(code):
    heavy = {"torch", "numpy", "pandas", "mlflow", "plotly", "ipywidgets", "scipy", "sklearn", "papermill"}
    assert not loaded_after(code) & heavy


@pytest.mark.parametrize("entry", registry.methods().values(), ids=lambda e: e.id)
def test_methods_say_what_a_person_wants_to_know(entry):
    assert re.fullmatch(r"[a-z][a-z0-9_]*", entry.id)
    assert entry.title != entry.id
    assert entry.family == entry.file.parent.name or entry.file.parent.name == "methods"
    assert entry.summary.endswith(".")
    assert len(entry.summary) <= 200, "the summary is one line"
    assert entry.paper == "" or re.fullmatch(r"arXiv:\d{4}\.\d{4,5}|doi:10\.\d{4,}/\S+", entry.paper)
    assert bool(entry.paper_url) == bool(entry.paper)


@pytest.mark.parametrize("entry", registry.tasks().values(), ids=lambda e: e.id)
def test_tasks_say_what_a_person_wants_to_know(entry):
    assert re.fullmatch(r"[a-z0-9_]+(/[a-z0-9_.-]+)?", entry.id)
    assert entry.title
    assert entry.summary
    assert entry.literals["kind"]
    assert isinstance(entry.literals["embedded"], bool)


def test_listed_classes_are_what_importing_gives():
    """The literals read from the file are the attributes of the class."""
    for id, entry in registry.methods().items():
        cls = registry.load_method(id)
        assert (cls.__name__, cls.id, cls.title, cls.family, cls.paper) == (
            entry.cls,
            id,
            entry.title,
            entry.family,
            entry.paper,
        )
        assert cls.example["task"] in registry.tasks()
    for id, entry in registry.tasks().items():
        cls = registry.load_task(id)
        assert id == (f"{cls.dataset}/{entry.literals['model']}" if cls.models else cls.dataset)
        assert (cls.kind, cls.embedded) == (entry.literals["kind"], entry.literals["embedded"])


def test_unknown_ids_name_the_nearest():
    for find, wrong, near in (
        (registry.method_entry, "binaryconect", "binaryconnect"),
        (registry.task_entry, "digts/mlp", "digits/mlp"),
    ):
        with pytest.raises(UserError, match=f"Unknown .* {wrong!r}. Did you mean {near!r}"):
            find(wrong)


# --- plugins ------------------------------------------------------------------------------------------------


def test_a_plugin_is_listed_and_leaves_with_its_file(folder):
    file = plugin(folder, "one", doc="Line one\n    goes on.\n\n    More.", paper="doi:10.1000/x")
    entry = registry.methods()["one"]
    assert (entry.summary, entry.paper_url) == (
        "Line one     goes on.".replace("     ", " "),
        "https://doi.org/10.1000/x",
    )
    plugin(folder, "_hidden")
    plugin(folder / "deeper", "two")
    assert {"one", "two"} <= set(registry.methods())
    assert "_hidden" not in registry.methods()
    file.unlink()
    assert "one" not in registry.methods()


def test_an_edit_of_a_plugin_is_seen_at_once(folder):
    """Also two edits of one length within one tick of the file system's clock."""
    for number in range(20):
        plugin(folder, "one", doc=f"Version {number:02}.")
        assert registry.methods()["one"].summary == f"Version {number:02}."
        assert registry.load_method("one").__doc__ == f"Version {number:02}."


def test_duplicates_are_refused_naming_both_files(folder):
    one, two = plugin(folder, "one"), plugin(folder, "two", id="one")
    with pytest.raises(UserError, match=r"'one' is declared twice.*Rename one") as caught:
        registry.methods()
    assert str(one) in str(caught.value)
    assert str(two) in str(caught.value)
    two.unlink()
    plugin(folder, "two", id=next(iter(registry.load_method(m).id for m in registry.methods() if m != "one")))
    with pytest.raises(UserError, match="declared twice"):  # a plugin cannot take the place of a method of the package
        registry.methods()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (b"x = 1\ndef broken(:\n", "line 2: invalid syntax"),
        (b'name = "caf\xe9"\n', "line 1"),  # not UTF-8
        (b"x = 1\0\n", "null bytes"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(folder, source, words):
    (folder / "bad.py").write_bytes(source)
    with pytest.raises(UserError) as caught:
        registry.methods()
    assert str(folder / "bad.py") in str(caught.value)
    assert words in str(caught.value)
    assert "Mend the file" in str(caught.value)


def test_attributes_that_are_no_literals_are_passed_over(folder):
    plugin(folder, "one").write_text(
        'class M:\n    """Does."""\n    table = {[]: 1}\n    made = sorted("ba")\n'
        '    id = "one"\n    a, (b, c) = 1, (2, 3)\n    late: int\n'
        'class NoId:\n    id = 3\nif True:\n    class Inner:\n        id = "inner"\n'
    )
    assert "one" in registry.methods()
    assert "inner" not in registry.methods()


def test_a_folder_that_is_none_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("WORKBENCH_PLUGINS", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"nowhere.*not a folder"):
        registry.tasks()


def test_a_plugin_that_lacks_a_package_says_so(folder):
    file = plugin(folder, "one")
    file.write_text("import no_such_package\n" + file.read_text())
    assert "one" in registry.methods()
    with pytest.raises(UserError, match="No module named 'no_such_package'") as caught:
        registry.load_method("one")
    assert str(file) in str(caught.value)


def test_threads_share_one_import(folder):
    plugin(folder, "one")
    found = []
    threads = [threading.Thread(target=lambda: found.append(registry.load_method("one"))) for _ in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len(found) == 8
    assert len(set(found)) == 1


# --- code version -------------------------------------------------------------------------------------------

MAIN = '''
from workbench.method import Method
from workbench.methods.{family}._first import one
class M(Method):
    """Does."""
    id, title, family = "probe", "Probe", "testing"
'''


@pytest.fixture
def copied(tmp_path, monkeypatch) -> Path:
    """A copy of the package's sources with a method that imports one file, which imports another in turn."""
    for room in ("workbench", "tracking"):
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__", "results"))
    place = tmp_path / "workbench/methods/probing"
    place.mkdir()
    (place / "probe.py").write_text(MAIN.format(family="probing"))
    (place / "_first.py").write_text("from . import _second\nfrom ._third import three\none = _second.two + three\n")
    (place / "_second.py").write_text("two = 2\n")
    (place / "_third.py").write_text("three = 3\n")
    (place / "_other.py").write_text("four = 4\n")
    monkeypatch.setattr(registry, "PACKAGE", tmp_path / "workbench")
    return tmp_path


def version() -> str:
    return registry.code_version(registry.method_entry("probe"), registry.task_entry("digits/mlp"))


@pytest.mark.parametrize(
    "file",
    [
        "workbench/methods/probing/probe.py",
        "workbench/methods/probing/_first.py",
        "workbench/methods/probing/_second.py",
        "workbench/methods/probing/_third.py",
        "workbench/method.py",
        "workbench/task.py",
        "workbench/data.py",
        "tracking/ledger.py",
        "tracking/codecs/base.py",
        f"workbench/{TASK_ROOM}/digits.py",
        f"workbench/{TASK_ROOM}/models.py",
    ],
)
def test_what_a_figure_depends_on_changes_the_version(copied, file):
    before = version()
    assert version() == before
    path = copied / file
    text = path.read_text()
    path.write_text(text + "\n# edited\n")
    assert version() != before
    path.write_text(text)
    assert version() == before


@pytest.mark.parametrize(
    "file",
    [
        "workbench/methods/probing/_other.py",
        "workbench/cli.py",
        "workbench/sweeps.py",
        "workbench/params.py",
        "tracking/errors.py",
        "tracking/metrics.py",
        "tracking/store.py",
        f"workbench/{TASK_ROOM}/two_moons.py",
        "workbench/methods/lowbit/binaryconnect.py",
    ],
)
def test_what_it_does_not_depend_on_leaves_the_version(copied, file):
    before = version()
    (copied / file).write_text((copied / file).read_text() + "\n# edited\n")
    assert version() == before


def test_the_same_plugin_has_the_same_version_elsewhere(tmp_path, monkeypatch):
    versions = []
    for name in ("here", "there"):
        plugin(tmp_path / name, "one")
        monkeypatch.setenv("WORKBENCH_PLUGINS", str(tmp_path / name))
        versions.append(registry.code_version(registry.method_entry("one")))
    plugin(tmp_path / "there", "one", doc="Does another thing.")
    assert versions[0] == versions[1] != registry.code_version(registry.method_entry("one"))


def test_a_package_file_edited_after_its_import_is_refused(copied):
    """The process would run the old code and file its figures under the new code's key. In a process of its own, on the copy."""
    code = (
        "from pathlib import Path\nfrom workbench import registry\nfrom tracking.errors import UserError\n"
        "entry = registry.method_entry('probe')\nregistry.load_method('probe')\nregistry.code_version(entry)\n"
        "file = Path('workbench/methods/probing/_second.py')\nfile.write_text('two = 3\\n')\n"
        "try:\n    registry.code_version(entry)\nexcept UserError as error:\n    print('REFUSED', error)\n"
        "file.write_text('two = 2\\n')\nregistry.code_version(entry)\nprint('SAME AGAIN')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=copied, timeout=60)
    assert done.returncode == 0, done.stderr
    assert re.search(r"REFUSED .*_second.py was edited .* Restart the kernel", done.stdout)
    assert "SAME AGAIN" in done.stdout


@pytest.mark.parametrize("file", ["workbench/methods/probing/probe.py", "workbench/methods/probing/_second.py", "workbench/method.py"])
def test_an_edit_between_the_import_and_the_first_run_is_refused(copied, file):
    """As in a notebook: describe a method, edit it, run it. The import alone fixes what the version may be of."""
    code = (
        "from pathlib import Path\nfrom workbench import registry\nfrom tracking.errors import UserError\n"
        "registry.load_method('probe')\n"
        f"file = Path({file!r})\ntext = file.read_text()\nfile.write_text(text + '\\n# edited\\n')\n"
        "registry.load_method('probe')\n"  # asking again makes the edit no part of what was imported
        "try:\n    registry.code_version(registry.method_entry('probe'))\nexcept UserError as error:\n    print('REFUSED', error)\n"
        "file.write_text(text)\nregistry.code_version(registry.method_entry('probe'))\nprint('SAME AGAIN')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=copied, timeout=60)
    assert done.returncode == 0, done.stderr
    assert re.search(rf"REFUSED .*{Path(file).name} was edited .* Restart the kernel", done.stdout)
    assert "SAME AGAIN" in done.stdout
