"""Runs and their data: the digest that tells data apart, and runs repeated or refused on other data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.data_helpers import pixels, write_parquet
from tracking import journal
from tracking.metrics import METRICS
from workbench import data
from workbench.provenance import data_digest
from workbench.runs import Run, RunFailed, run

TASK = '''
from workbench.datasets.images import ImageTask


class Tiny(ImageTask):
    """Noise in four classes."""

    dataset, models, title, kind, embedded = "tiny", ("mlp",), "Tiny", "classification", False
    mean, std = (0.5, 0.5, 0.5), (0.3, 0.3, 0.3)
'''


@pytest.fixture
def task(place, tmp_path, monkeypatch) -> Path:
    """A task on the tiny data set; returns the folder of the data."""
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "tiny.py").write_text(TASK)
    monkeypatch.setenv("WORKBENCH_PLUGINS", str(tmp_path / "plugins"))
    return place


def go(**options) -> Run:
    common = {"threads": 1, "device": "cpu", "tracking": "off", "progress": False}
    return run("binaryconnect", "tiny/mlp", {"epochs": 4, "batch_size": 8}, **common | options)


def lasting(r: Run) -> list[dict[str, float]]:
    return [{k: v for k, v in e.values.items() if not METRICS[k].volatile} for e in journal.read(r.folder.journal_path)]


def test_the_digest_is_of_the_content(place, tmp_path, monkeypatch):
    assert data_digest("tiny") is None  # nothing at hand, and nothing is downloaded
    assert data_digest("two_moons") is None
    write_parquet(place, pixels())
    first = data_digest("tiny")
    assert len(first) == 16
    assert data_digest("tiny") == first
    data.fetch("tiny", tmp_path / "elsewhere")
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path / "elsewhere"))
    assert data_digest("tiny") == first  # another folder, another form
    np.savez(tmp_path / "elsewhere" / "tiny.npz", **pixels())
    assert "unstated" in data.provenance("tiny")["source"]
    assert data_digest("tiny") == first
    for name in ("train_x", "test_y"):  # one value of one array, in a file that says nothing of its origin
        changed = pixels()
        changed[name] = np.roll(changed[name], 1, axis=0)
        np.savez(tmp_path / "elsewhere" / "tiny.npz", **changed)
        assert data_digest("tiny") != first


def test_a_finished_run_on_other_data_is_repeated(task, tmp_path, monkeypatch, caplog):
    write_parquet(task, pixels())
    first = go()
    before, figures = first.folder.read_run(), lasting(first)
    assert before["tags"]["data.digest"] == data_digest("tiny")
    assert go().cached
    assert not caplog.records
    write_parquet(task, pixels(1))
    other = go()
    assert not other.cached
    assert "is repeated: the data set 'tiny' here is not the one of its kept figures" in caplog.text
    after = other.folder.read_run()
    assert (other.key, after["tags"]["workbench.attempt"]) == (first.key, "1")
    for key in ("data.digest", "data.source"):
        assert before["tags"][key] != after["tags"][key]
    assert before["dataset"]["digest"] != after["dataset"]["digest"]
    assert lasting(other) != figures
    assert go().cached
    data.fetch("tiny", tmp_path / "moved")  # the same data in another folder are no other data
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path / "moved"))
    assert go().cached
    write_parquet(tmp_path / "moved", pixels())
    again = go()
    assert not again.cached
    assert lasting(again) == figures


def test_a_finished_run_outlives_its_data(task):
    path = write_parquet(task, pixels())
    figures = lasting(go())
    path.write_bytes(path.read_bytes()[:-9])
    assert go().cached
    path.unlink()
    kept = go()
    assert kept.cached
    assert lasting(kept) == figures


def test_an_interrupted_run_goes_on_with_its_own_data_only(task):
    seen = []

    def stumble(report) -> None:
        seen.append(report.step)
        if len(seen) == 3:
            raise RuntimeError("power cut")

    write_parquet(task, pixels())
    figures = lasting(go())
    with pytest.raises(RunFailed, match="power cut"):
        go(fresh=True, observer=stumble, checkpoint_s=0)
    source = data.provenance("tiny")["source"]
    write_parquet(task, pixels(1))
    with pytest.raises(RunFailed, match="begun on other data") as caught:
        go()
    for words in (source, data.provenance("tiny")["source"], "fresh=True"):
        assert words in str(caught.value)
    write_parquet(task, pixels())
    resumed = go(observer=lambda report: seen.append(report.step))
    assert lasting(resumed) == figures
    assert seen[3:] == sorted(set(seen[3:]) - set(seen[:2]))  # from the checkpoint on, which has the first two reports
    write_parquet(task, pixels(1))
    assert lasting(go(fresh=True)) != figures


def test_the_store_shows_the_digest_of_the_data(task, tmp_path):
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path}/m.db"
    digests = []
    for seed in (0, 1):
        write_parquet(task, pixels(seed))
        ended = go(tracking=uri)
        cursor, = ended.folder.read_cursors().values()
        (entry,) = mlflow.MlflowClient(uri).get_run(cursor["run_id"]).inputs.dataset_inputs
        assert (entry.dataset.name, entry.dataset.digest) == ("tiny", ended.folder.read_run()["dataset"]["digest"])
        digests.append(entry.dataset.digest)
    assert digests[0] != digests[1]
