"""The explorer's texts to copy, and the verb that shows it, without a browser."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import WAIT_S
from tracking.errors import UserError
from tracking.folder import RunFolder
from workbench.explorer import entry, fields, snippets
from workbench.explorer.listed import Request
from workbench.explorer.panel import Explorer
from workbench.runs import runs_root

ROOT = Path(__file__).parent.parent


def typed(ex: Explorer, name: str, text: Any, part: str = "method") -> fields.Field:
    """Type into a control, as a hand does."""
    field = ex.forms[part].fields[name]
    field.control.value = text
    return field


# --- texts to copy --------------------------------------------------------------------------------------------


def shell_env(tmp_path: Path) -> dict[str, str]:
    """An environment in which the commands of this interpreter are found, as after an installation."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    for name, module in (("workbench", "workbench.cli"), ("papermill", "papermill")):
        (bin_folder / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m {module} "$@"\n')
        (bin_folder / name).chmod(0o755)
    return {**os.environ, "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}


def prepare(ex: Explorer) -> str:
    """An unusual form; returns the key of its run."""
    ex.set(steps=4, lr=1e-05, fail_at=-2, talk=True, seed=3, device="cpu", task_params={"dim": 3})
    from workbench.spec import resolve

    r = ex.request()
    return resolve(r.method, r.task, r.params, task_params=r.task_params, seed=r.seed, device=r.device).spec.key


@pytest.mark.parametrize("kind", ["python", "cli", pytest.param("papermill", marks=pytest.mark.slow)])
def test_copied_text_makes_the_very_run(ex, tmp_path, kind):
    key, env = prepare(ex), shell_env(tmp_path)
    text = getattr(ex, kind)()
    shown = {"python": "Python", "cli": "Command line", "papermill": "Papermill"}[kind]
    assert ex.copies.texts[shown].value == text
    if kind == "python":
        exec(text, {})  # it imports what it needs
    else:
        (tmp_path / "notebooks").mkdir()
        shutil.copy(ROOT / "notebooks" / "run.ipynb", tmp_path / "notebooks")
        done = subprocess.run(["/bin/sh", "-c", text], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-3000:]
    assert [p.name for p in runs_root().iterdir()] == [key]
    assert RunFolder(runs_root() / key).read_status()["status"] == "finished"
    if kind == "papermill":
        outputs = json.dumps(json.loads((tmp_path / "out.ipynb").read_text())["cells"])
        assert "application/vnd.plotly.v1+json" in outputs
        assert "widget-view" not in outputs
        assert all(metric in outputs for metric in ("eval/loss", "train/loss", "comm/up_bytes"))


def test_form_with_an_error_offers_no_text_and_no_run(ex):
    typed(ex, "lr", "-1")
    assert all("error" in text.value and "lr = -1" in text.value for text in ex.copies.texts.values())
    assert ex.toolbar.run.disabled
    with pytest.raises(UserError, match="lr = -1"):
        ex.run()
    ex.toolbar.reset.click()
    assert not ex.toolbar.run.disabled
    assert "workbench.run(" in ex.copies.texts["Python"].value


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2**63, 2**63) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.from_regex("[a-z_]{1,6}", fullmatch=True), inner, max_size=3),
    max_leaves=8)


@given(value=JSON)
def test_yaml_reads_back_what_was_written(value):
    back = yaml.safe_load(snippets.yaml_flow(value))
    assert back == value
    assert repr(back) == repr(value)  # 1 and 1.0 and True are equal, and yet not the same


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])  # an example reads the whole catalogue
@given(lr=st.floats(1e-300, 1e30), sleep_s=st.floats(0, 10), seed=st.integers(0, 2**63 - 1))
def test_command_line_reads_back_what_was_written(toy, lr, sleep_s, seed):
    from workbench import cli, registry
    from workbench.cli_options import run_arguments

    request = Request("toy", "toy", {"lr": lr, "sleep_s": sleep_s}, {"dim": 5}, seed, "cpu", "off")
    args = cli.build_parser().parse_args(shlex.split(snippets.cli([request]).replace("\\\n", ""))[1:])
    given_ = run_arguments(args, "toy", "toy")
    assert registry.load_method("toy").Params(**given_["params"]) == registry.load_method("toy").Params(**request.params)
    assert (given_["task_params"], args.seed, args.device, args.tracking) == ({"dim": 5}, seed, "cpu", "off")


# --- the verb -------------------------------------------------------------------------------------------------


def test_explore_gives_the_kernels_one_explorer(toy, monkeypatch):
    monkeypatch.setattr(entry, "_panel", None)
    import workbench

    first = workbench.explore(tracking="off")
    assert workbench.explore(tracking="off", max_points=100) is first
    assert first.board.max_points == 100
    assert "application/vnd.jupyter.widget-view+json" in first._repr_mimebundle_()
    first.choose("toy", "toy")
    first.run().wait(WAIT_S)
    assert len(workbench.explore(tracking="off").runs) == 1
    with pytest.raises(UserError, match="max_points = 2 is refused"):
        workbench.explore(max_points=2)
    first.preview.close()  # showing it began one


def test_a_password_in_the_address_is_in_nothing_that_is_shown(toy, monkeypatch):
    monkeypatch.setattr(entry, "_panel", None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "off")  # put back afterwards
    import workbench

    explorer = workbench.explore(tracking="postgresql://ann:s3cret@127.0.0.1:1/mlflow")
    assert os.environ["MLFLOW_TRACKING_URI"] == "postgresql://ann:s3cret@127.0.0.1:1/mlflow"
    explorer.choose("toy", "toy")
    for text in (explorer.python(), explorer.cli(), explorer.papermill()):
        assert "toy" in text
        assert "s3cret" not in text


def test_in_a_batch_notebook_it_is_a_line_of_text(tmp_path):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(textwrap.dedent(f"""
        import sys; sys.path.insert(0, {str(ROOT)!r})
        import workbench
        workbench.explore()
    """))])
    NotebookClient(notebook, kernel_name="python3", timeout=120).execute()
    (output,) = notebook.cells[0].outputs
    assert "executed in batch" in output["text"]
    assert "widgets" not in notebook.metadata


def test_run_notebook_is_clean():
    notebook = json.loads((ROOT / "notebooks" / "run.ipynb").read_text())
    code = [c for c in notebook["cells"] if c["cell_type"] == "code"]
    assert all(not c["outputs"] and c["execution_count"] is None for c in code)
    assert sum("parameters" in c["metadata"].get("tags", []) for c in code) == 1
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert "explore(" not in json.dumps(code)
