"""Studies: the check of parameters, verdicts against closed cases, and every notebook executed at the smoke profile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tracking.errors import UserError
from workbench import claims
from workbench.claims import below, checked, differences, exceeds, within
from workbench.study import Study, StudyParameters, parameters, studies

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def cell(**values):
    """The namespace of a notebook after its parameters cell."""
    return {"In": [], "Out": {}, "get_ipython": print, "_i": "", "json": json, **values}


def test_parameters_are_typed_and_checked():
    values = {"profile": "smoke", "device": "cpu", "seeds": 3, "tracking_uri": "off"}
    assert parameters(cell(**values)) == StudyParameters(**values)


@pytest.mark.parametrize(("name", "value", "message"), [
    ("profil", "smoke", "no parameter 'profil'.*Did you mean 'profile'"),
    ("seeds", "3", "seeds = '3' is refused"),
    ("seeds", -1, "0 <= x"),
    ("profile", "smok", "Did you mean 'smoke'"),
    ("seeds", True, "seeds = True is refused"),
])
def test_wrong_parameters_are_refused_by_name(name, value, message):
    with pytest.raises(UserError, match=message):
        parameters(cell(**{name: value}))


def test_the_cell_of_parameters_can_be_run_again():
    namespace = cell(profile="smoke", seeds=2)
    parameters(namespace)
    namespace |= {"study": object(), "profile": "quick"}
    assert parameters(namespace).profile == "quick"
    namespace["profile"] = "quik"
    with pytest.raises(UserError, match="Did you mean 'quick'"):
        parameters(namespace)


def test_the_shaded_intervals_are_the_feasible_ones():
    import torch

    from workbench.methods.lowbit.askewsgd import constraint
    from workbench.studies.askewsgd import potential

    levels = torch.tensor([-1.0, 1.0])
    shapes = [s for s in potential(0.3).layout.shapes if s.type == "rect"]
    assert len(shapes) == 2
    for s in shapes:
        edges = torch.tensor([s.x0, s.x1, (s.x0 + s.x1) / 2], dtype=torch.float64)
        phi, _ = constraint(edges, levels.double())
        assert torch.allclose(phi[:2], torch.tensor(0.3, dtype=torch.float64), atol=1e-9)
        assert phi[2] < 0.3


def test_exceeds_judges_by_the_whole_interval():
    rng = np.random.default_rng(0)
    a, b = rng.normal(1.0, 0.01, 10), rng.normal(0.0, 0.01, 10)
    assert exceeds("", "", a, b).verdict == claims.HOLDS
    assert exceeds("", "", b, a).verdict == claims.FAILS
    assert exceeds("", "", b, a, margin=2).verdict == claims.HOLDS
    assert exceeds("", "", rng.normal(0, 1, 5), rng.normal(0, 1, 5)).verdict == claims.OPEN
    assert exceeds("", "", [1.0], [0.0]).verdict == claims.OPEN  # one seed decides nothing
    assert exceeds("", "", [1.0, 1.0], [0.0, 0.0]).verdict == claims.HOLDS  # no spread at all
    assert exceeds("", "", [], b).verdict == claims.ABSENT


def test_exceeds_agrees_with_the_textbook_interval():
    from scipy import stats

    a, b = [1.0, 2.0, 3.5, 2.2], [0.5, 1.5, 1.0]
    claim = exceeds("", "", a, b, digits=6)
    low, high = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert f"[{low:.6f}, {high:.6f}]" in claim.how


def test_below_is_exceeds_turned_round():
    a, b = [0.1, 0.11, 0.12], [0.5, 0.52, 0.51]
    assert below("", "", a, b).verdict == claims.HOLDS
    assert below("", "", b, a).verdict == claims.FAILS
    assert below("", "", {0: 0.51, 1: 0.5, 2: 0.52}, b, margin=0.1).verdict == claims.HOLDS
    assert below("", "", a, b, names=("small", "large")).ours.startswith("small 0.11")
    assert differences({0: 3.0, 1: 5.0}, {1: 1.0, 2: 9.0}) == {1: 4.0}


def test_within_judges_by_the_whole_interval():
    assert within("", "", [1.0, 1.01, 0.99], 0.5, 1.5).verdict == claims.HOLDS
    assert within("", "", [2.0, 2.01, 1.99], 0.5, 1.5).verdict == claims.FAILS
    assert within("", "", [1.4, 1.6, 1.5], 0.5, 1.5).verdict == claims.OPEN
    assert within("", "", [], 0, 1).verdict == claims.ABSENT
    assert within("", "", [1.0], 0, 2).verdict == claims.OPEN  # one seed decides nothing
    assert checked("", "", "", False, "").verdict == claims.FAILS


def test_a_failing_run_is_listed_and_the_others_count(toy, own_home):
    study = Study("trial", "Trial", StudyParameters(profile="smoke", tracking_uri="off"))
    runs = [{"method": "toy", "task": "toy", "params": {"steps": 3, "fail_at": f}} for f in (-1, 1)]
    comparison = study.run(runs, seeds=2, metric="eval/loss", progress=False)
    assert len(comparison.groups) == 1
    assert len(study.failures) == 2
    assert "the toy broke" in study.failures[0]
    assert set(comparison.values("toy", fail_at=-1)) == {0, 1}
    assert len(study.run(runs, seeds=2, metric="eval/loss", progress=False).values("toy")) == 2  # asked for again, counted once
    assert len(study.failures) == 2
    study.claim(checked("a claim", "1", "2", True, "rule"))
    links = study.close()
    text = Path(links["report"]).read_text()
    assert "a claim" in text
    assert "the toy broke" in text
    assert json.loads((study.folder / "summary.json").read_text())["claims"][0]["verdict"] == "holds"


def test_verdicts_are_shown_whole_and_new_ones_once(own_home):
    study = Study("trial", "Trial", StudyParameters(profile="smoke", tracking_uri="off"))
    long = "a claim that is longer than the fifty characters at which a table of pandas is cut"
    study.claim(checked(long, "1", "2", True, "rule"))
    assert long in study.verdicts(new=True)._repr_html_()
    study.claim(checked("another", "1", "2", False, "rule"))
    shown = study.verdicts(new=True)
    assert list(shown.data["no"]) == ["2"]
    assert "another" in str(shown)
    study.claim(checked(long, "1", "3", False, "rule"))  # decided anew
    assert list(study.verdicts(new=True).data["no"]) == ["1"]
    assert list(study.verdicts().data["claim"]) == [long, "another"]
    links = study.close()
    assert f'href="{(study.folder / "report.html").as_uri()}"' in links._repr_html_()


def test_a_study_run_again_with_other_parameters_is_logged(own_home):
    for seeds in (1, 2):
        study = Study("trial", "Trial", StudyParameters(profile="smoke", seeds=seeds))
        study.claim(checked("a claim", "1", "2", True, "rule"))
        assert study.close()["mlflow"].startswith("http"), seeds


def test_a_dead_store_costs_a_study_only_the_copy_there(toy):
    study = Study("trial", "Trial", StudyParameters(profile="smoke", tracking_uri="http://127.0.0.1:9"))
    study.claim(checked("a claim", "1", "2", True, "rule"))
    links = study.close()
    assert links["mlflow"].startswith("not logged")
    assert Path(links["report"]).is_file()


def test_the_tour_comes_first_and_every_study_names_itself():
    rows = studies()
    assert rows[0]["id"] == "tour"
    assert {"tour", "askewsgd"} <= {row["id"] for row in rows}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("id", [row["id"] for row in studies()])
def test_study_runs_at_smoke(id, own_home, tables):
    """A real kernel, through papermill and the command line; without any data set, so the embedded stand-ins are used."""
    environment = {k: v for k, v in os.environ.items() if k != "WORKBENCH_DATA"} | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-m", "workbench.cli", "study", id, "--profile", "smoke"], capture_output=True, text=True,
                          cwd=own_home.parent, env=environment, timeout=580)
    assert done.returncode == 0, done.stderr[-2000:]
    summary = json.loads((own_home / "studies" / f"{id}-smoke" / "summary.json").read_text())
    assert summary["claims"]
    assert summary["failures"] == []
    assert all(c["verdict"] in (claims.HOLDS, claims.FAILS, claims.OPEN, claims.ABSENT) for c in summary["claims"])
    for name in (f"{id}.ipynb", f"{id}.html", "report.html"):
        assert (own_home / "studies" / f"{id}-smoke" / name).stat().st_size > 1000
    assert "MLflow" in done.stdout
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{own_home}/mlflow.db")
    found = client.search_runs([client.get_experiment_by_name(id).experiment_id])
    children = [r for r in found if "mlflow.parentRunId" in r.data.tags]
    parents = {r.info.run_id for r in found} - {r.info.run_id for r in children}
    assert len(parents) == 1
    assert {r.data.tags["mlflow.parentRunId"] for r in children} == parents
    assert {r.info.status for r in found} == {"FINISHED"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_clean(path):
    """No outputs, the plain kernel, one parameters cell whose every line papermill can read (an equals sign in a comment hides it)."""
    document = json.loads(path.read_text())
    tagged = [c for c in document["cells"] if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1
    assert document["metadata"]["kernelspec"]["name"] == "python3"
    assert all(not c.get("outputs") and c.get("execution_count") is None for c in document["cells"] if c["cell_type"] == "code")
    import papermill

    known = papermill.inspect_notebook(str(path))
    lines = [line for line in "".join(tagged[0]["source"]).splitlines() if line.strip() and not line.startswith("#")]
    assert {line.split(":")[0].split("=")[0].strip() for line in lines} == set(known)


def test_an_unknown_study_or_profile_is_refused(own_home):
    from workbench.study import execute

    with pytest.raises(UserError, match="Did you mean 'tour'"):
        execute("tuor")
    with pytest.raises(UserError, match="Did you mean 'quick'"):
        execute("tour", profile="quik")
    with pytest.raises(UserError, match=r"no parameter 'seed'.*Did you mean 'seeds'"):
        execute("tour", parameters={"seed": "1"})
