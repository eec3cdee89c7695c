"""Where files of runs lie: nobody writes a path of one machine into a database that several share, and all look in one place."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tracking_helpers import make_run
from tracking import files
from tracking.store import Store

pytest.importorskip("mlflow")
POSTGRES = "postgresql://user@host/runs"
PLACES = [("", "/srv/of/ann/artifacts"), ("/team/files", "/team/files"), ("s3://team/files/", "s3://team/files")]


@pytest.mark.parametrize(("named", "place"), PLACES)
def test_the_place_is_that_of_mlflows_own_variable(monkeypatch, named, place):
    monkeypatch.setenv("MLFLOW_ARTIFACTS_DESTINATION", named)
    monkeypatch.setenv("WORKBENCH_HOME", "/srv/of/ann")
    assert files.kept_in(Path("/srv/of/ann")) == files.root(POSTGRES) == files.root("sqlite:////srv/of/ann/mlflow.db") == place
    assert files.location("sqlite:////srv/of/ann/mlflow.db", "a b") == f"{place}/a_b"
    assert files.location(POSTGRES, "a b") == "mlflow-artifacts:/a_b"  # whoever reads it puts his own place before it
    assert files.root("http://host:5000") is files.location("http://host:5000", "a b") is None  # the server's affair


@pytest.mark.parametrize("named", ["", "shared"])
def test_past_a_server_files_are_written_where_it_looks_and_read_again(uri, tmp_path, monkeypatch, named):
    monkeypatch.setenv("MLFLOW_ARTIFACTS_DESTINATION", named and str(tmp_path / named))
    store = Store(uri)
    store.client.create_experiment("served", "mlflow-artifacts:/7")  # as a server makes them
    folder = make_run(tmp_path / "journals" / "k1", experiment="served")
    run_id = store.open_run(folder.read_run())
    (folder.path / "figures").mkdir()
    (folder.path / "figures" / "one.txt").write_text("a figure")
    for _ in range(2):  # sent again, it is replaced
        store.log_artifacts(run_id, [folder.run_path, folder.path / "figures"])
    place = Path(files.root(uri)) / "7" / run_id / "artifacts"
    assert (place / "one.txt").read_text() == "a figure"
    beside = tmp_path / named if named else Path(uri.removeprefix("sqlite:///")).parent / "artifacts"
    assert place.parents[2] == beside
    (tmp_path / "copy").mkdir()
    assert store.fetch_file(run_id, "run.json", tmp_path / "copy").read_bytes() == folder.run_path.read_bytes()
