"""The README: its table is the code's, its snippets run, its commands exist."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.readme import README, with_table
from workbench.cli import build_parser

ROOT = Path(__file__).parent.parent
TEXT = README.read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", TEXT, re.S)
SHELL = re.findall(r"```sh\n(.*?)```", TEXT, re.S)
COMMANDS = [line.split("#")[0].strip() for block in SHELL for line in block.splitlines() if line.strip()]


def test_the_table_of_methods_is_up_to_date():
    assert with_table(TEXT) == TEXT, "run: python -m tests.readme"


def test_there_is_something_to_check():
    assert len(SNIPPETS) >= 4
    assert sum(c.startswith("workbench") for c in COMMANDS) >= 3


def test_links_lead_somewhere_and_the_first_to_the_tour():
    links = re.findall(r"(?<!!)\[[^]]+\]\(([^)]+)\)", TEXT)
    assert links[0] == "notebooks/00_tour.ipynb"
    inside = [link for link in re.findall(r"\]\(([^)]+)\)", TEXT) if not link.startswith("https://")]
    assert all((ROOT / link).is_file() for link in inside), inside


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_python_snippets_run(number, tmp_path, tables):
    """Each snippet runs as a file of its own, in an interpreter of its own, with a home of its own."""
    snippet = SNIPPETS[number]
    if "explore()" in snippet:
        snippet = snippet.replace("workbench.explore()", "print(workbench.explore())")
    script = tmp_path / "snippet.py"
    script.write_text(snippet)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=240,
                          cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)})  # what a snippet writes, it writes there
    assert done.returncode == 0, done.stderr


def test_the_method_of_the_readme_works_as_a_plugin(tmp_path, monkeypatch):
    snippet = next(s for s in SNIPPETS if "signsgd" in s)
    (tmp_path / "readme.py").write_text(snippet.replace('"signsgd"', '"readme"'))  # a reader may have saved it as it stands
    monkeypatch.setenv("WORKBENCH_PLUGINS", str(tmp_path))
    from workbench.runs import run

    ended = run("readme", "digits/mlp", {"epochs": 5}, tracking="off", progress=False)
    assert ended.metrics["eval/accuracy"] > 0.7  # ten classes: chance is 0.1


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("workbench")])
def test_commands_parse(command):
    args = build_parser().parse_args(shlex.split(command)[1:])
    assert callable(args.verb)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make")] + re.findall(r"`(make \w+)`", TEXT))
def test_make_targets_exist(command):
    target = command.split()[1]
    done = subprocess.run(["make", "-n", target], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
