"""Packaging: the three files that say what is installed agree, and what is under version control is fit to be published."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONSTRAINTS = [
    line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")
]
EXTRAS = PROJECT["optional-dependencies"]


def pins() -> dict[str, Version]:
    return {canonicalize_name(name): Version(version) for name, version in (line.split("==") for line in CONSTRAINTS)}


def listed_files() -> list[Path]:
    """What is, or is about to be, under version control; every file but caches where there is no git."""
    try:
        listed = subprocess.run(
            ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):
        listed = [
            str(p.relative_to(ROOT))
            for room in ("workbench", "tracking", "tests", "notebooks", ".ci")
            for p in (ROOT / room).rglob("*")
            if "__pycache__" not in p.parts
        ]
    return sorted(p for name in listed if name and (p := ROOT / name).is_file())


FILES = listed_files()


@pytest.mark.parametrize("line", CONSTRAINTS)
def test_constraints_are_exact_versions_and_nothing_else(line):
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*==[0-9][A-Za-z0-9.]*", line), (
        "no address, no option, no local version"
    )


def test_constraints_name_each_package_once():
    assert len(pins()) == len(CONSTRAINTS)
    assert pins()["torch"] == Version("2.13.0")


def requirements() -> list:
    groups = {"node": PROJECT["dependencies"], **EXTRAS}
    return [
        pytest.param(Requirement(text), id=f"{group}-{text}")
        for group, texts in groups.items()
        for text in texts
        if group != "peers"
    ]


@pytest.mark.parametrize("requirement", requirements())
def test_every_requirement_has_a_pin_that_satisfies_it(requirement):
    name = canonicalize_name(requirement.name)
    assert requirement.url is None
    assert name in pins(), f"constraints.txt does not pin {name}"
    assert requirement.specifier.contains(pins()[name], prereleases=True)
    assert requirement.specifier, "a lower bound says what the code was written for"


def test_a_node_needs_five_packages():
    """What every run imports; the rest is for people who look at runs."""
    assert {Requirement(r).name for r in PROJECT["dependencies"]} == {
        "torch",
        "numpy",
        "pandas",
        "pydantic",
        "filelock",
    }


def test_conda_users_get_the_same():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    pip = next(d["pip"] for d in environment["dependencies"] if isinstance(d, dict))
    assert pip == ["-c constraints.txt", "-e .[lab,graphs,llm,test]"]
    assert {"lab", "test"} <= set(EXTRAS)
    python = next(d for d in environment["dependencies"] if isinstance(d, str) and d.startswith("python="))
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(python.split("=")[1])
    assert "constraints.txt" in (ROOT / "Makefile").read_text()
    assert ".[lab,graphs,llm,test]" in (ROOT / "Makefile").read_text()


def test_what_make_starts_keeps_what_it_compiles():
    """The installation compiles nothing; a process that may keep nothing compiles torch and MLflow anew, which takes seconds each time."""
    done = subprocess.run(["make", "-s", "--eval", "probe:; @env", "probe"], capture_output=True, text=True, cwd=ROOT, check=True,
                          env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"})
    assert "MLFLOW_DISABLE_TELEMETRY=true" in done.stdout
    assert "PYTHONDONTWRITEBYTECODE" not in done.stdout


def third_party(file: Path) -> set[str]:
    """Top-level names that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            names |= {a.name.partition(".")[0] for a in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def test_what_is_imported_is_declared():
    """Every third-party import of the code and the tests is a requirement, or comes with one (noted here with its bearer)."""
    called = {"sklearn": "scikit-learn", "PIL": "pillow", "pynvml": "nvidia-ml-py", "yaml": "pyyaml", "xdist": "pytest-xdist"}
    comes_with = {
        "annotated_types": "pydantic",
        "packaging": "pytest",
        "nbformat": "papermill",
        "nbclient": "papermill",
        "nbconvert": "jupyterlab",
        "ray": "flwr",
        "sqlalchemy": "mlflow",
        "llvmlite": "numba",
        "mistune": "jupyterlab",
        "comm": "ipywidgets",
        "traitlets": "ipywidgets",
        "huggingface_hub": "transformers",
        "tokenizers": "transformers",
    }
    declared = {Requirement(r).name for group in (PROJECT["dependencies"], *EXTRAS.values()) for r in group}
    assert set(comes_with.values()) <= declared
    for file in FILES:
        if file.suffix == ".py":
            for name in third_party(file) - set(sys.stdlib_module_names) - {"workbench", "tracking", "tests"}:
                assert called.get(name, name) in declared or name in comes_with, (
                    f"{file.relative_to(ROOT)} imports {name}"
                )


def test_tracking_never_imports_workbench():
    for file in (ROOT / "tracking").rglob("*.py"):
        assert "workbench" not in third_party(file), file


# --- files --------------------------------------------------------------------------------------------------

# written apart, so that this file does not find itself
PLACES = re.compile(
    "|".join(
        [
            "/wo" + "rk/",
            "/ro" + "ot/",
            "/ho" + r"me/\w",
            "/Us" + r"ers/\w",
            r"[A-Z]:\\\\Us" + "ers",
            "/mn" + "t/",
            "/scr" + "atch/",
        ]
    )
)
HOSTS = re.compile(
    "|".join(
        [
            "index" + "-url",
            "extra" + "-index",
            "trusted" + "-host",
            r"pypi\.o" + "rg",
            "files.python" + "hosted",
            "artif" + "actory",
            "test.py" + "pi",
            "dev" + "pi",
            "nex" + "us",
        ]
    ),
    re.I,
)


def is_text(path: Path) -> bool:
    return b"\0" not in path.read_bytes()[:4096]


def test_no_file_knows_a_machine_or_an_index():
    found = [
        f"{path.relative_to(ROOT)}, line {number}: {place.group()!r}"
        for path in filter(is_text, FILES)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        for pattern in (PLACES, HOSTS)
        if (place := pattern.search(line))
    ]
    assert not found


def test_modules_are_short():
    code = [p for p in FILES if p.suffix == ".py" and p.relative_to(ROOT).parts[0] in ("workbench", "tracking")]
    assert code
    assert not [p for p in code if len(p.read_text().splitlines()) > 300]


@pytest.mark.parametrize("path", [p for p in FILES if p.suffix == ".ipynb"], ids=lambda p: p.name)
def test_notebooks_are_clean_and_parametrised(path):
    notebook = json.loads(path.read_text())
    assert notebook["nbformat"] == 4
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    code = [c for c in notebook["cells"] if c["cell_type"] == "code"]
    assert all(not c["outputs"] and c["execution_count"] is None for c in code), "committed without outputs"
    tagged = [c for c in code if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1
    for node in ast.parse("".join(tagged[0]["source"])).body:  # papermill overrides plain assignments
        assert isinstance(node, (ast.Assign, ast.AnnAssign, ast.Expr))
    assert "widgets" not in notebook["metadata"], "the state of widgets is an output"


def test_make_help_lists_every_target():
    text = (ROOT / "Makefile").read_text()
    phony = set(re.search(r"^\.PHONY:(.*)$", text, re.M).group(1).split())
    assert phony == set(re.findall(r"^([a-z]+):", text, re.M))
    listed = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert {line.split()[0] for line in listed.splitlines()} == phony
    assert "make test" in (ROOT / ".ci/run").read_text()
