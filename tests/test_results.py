"""Kept results: what is written reads back equal, and every fault of a row is refused before anything is written."""

from __future__ import annotations

import json
import math

import pytest

from tracking.errors import UserError
from tracking.results import keep, kept, shown

ROW = {"quantity": "test accuracy after 90 epochs", "method": "askewsgd", "metric": "eval/accuracy", "mean": 0.9, "half_width": 0.01,
       "n": 3, "profile": "full"}
PROVENANCE = {"commit": "abc123", "date": "2026-01-01", "versions": {"torch": "2.11"}, "command": "workbench study askewsgd"}
HARDWARE = "NVIDIA H100 80GB HBM3"


def test_round_trip(tmp_path):
    single = {**ROW, "method": "dense", "n": 1, "half_width": None}
    own = {**ROW, "metric": "latency at batch 1", "unit": "ms"}
    path = keep("askewsgd", HARDWARE, [ROW, single, own], PROVENANCE, root=tmp_path)
    assert path == tmp_path / "askewsgd" / "nvidia-h100-80gb-hbm3.json"
    keep("askewsgd", "Some CPU", [ROW], PROVENANCE, root=tmp_path)
    table = kept("askewsgd", root=tmp_path)
    assert table["hardware"].tolist() == [HARDWARE] * 3 + ["Some CPU"]
    assert table["mean"].tolist() == [0.9] * 4
    assert table["unit"].tolist() == ["fraction", "fraction", "ms", "fraction"]
    assert math.isnan(table["half_width"][1])
    assert set(table["commit"]) == {"abc123"}
    record = json.loads(path.read_text())
    assert record["provenance"] == PROVENANCE
    assert "half_width" not in record["rows"][1]  # absent, neither null nor zero
    assert record["interval"] == {"kind": "Student t", "level": 0.95}


def test_writing_again_replaces_the_whole(tmp_path):
    keep("s", HARDWARE, [ROW, ROW], PROVENANCE, root=tmp_path)
    keep("s", HARDWARE, [ROW], PROVENANCE, root=tmp_path)
    assert len(kept("s", root=tmp_path)) == 1


@pytest.mark.parametrize(("change", "message"), [
    ({"metric": "eval/acuracy"}, "Did you mean 'eval/accuracy'"),
    ({"unit": "%"}, "is in fraction"),
    ({"n": 1}, "one run has no interval"),
    ({"half_width": None}, "needs its half_width"),
    ({"half_width": math.nan}, "needs its half_width"),
    ({"half_width": -1.0}, "0 <= x"),
    ({"mean": math.nan}, "finite number"),
    ({"mean": "0.9"}, "finite number"),
    ({"mean": None}, "lacks mean"),
    ({"n": 0}, "1 <= x"),
    ({"n": 2.5}, "whole number"),
    ({"n": "three"}, "finite number"),
    ({"profile": "ful"}, "Did you mean 'full'"),
    ({"method": ""}, "text"),
    ({"halfwidth": 1.0}, "Did you mean 'half_width'"),
])
def test_faulty_rows_are_named_and_nothing_is_written(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        keep("s", HARDWARE, [ROW, {**ROW, **change}], PROVENANCE, root=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("study", "hardware", "provenance", "rows", "message"), [
    ("../s", HARDWARE, PROVENANCE, [ROW], "letters"),
    ("s", "///", PROVENANCE, [ROW], "name of the hardware"),
    ("s", HARDWARE, {"commit": "a"}, [ROW], "lacks date, versions"),
    ("s", HARDWARE, {**PROVENANCE, "versions": "2.11"}, [ROW], "mapping"),
    ("s", HARDWARE, PROVENANCE, [], "no row"),
])
def test_faulty_records_are_refused(tmp_path, study, hardware, provenance, rows, message):
    with pytest.raises(UserError, match=message):
        keep(study, hardware, rows, provenance, root=tmp_path / "r")
    assert list(tmp_path.iterdir()) == []


def test_two_names_with_one_slug_do_not_overwrite_each_other(tmp_path):
    keep("s", "GPU-1", [ROW], PROVENANCE, root=tmp_path)
    with pytest.raises(UserError, match="short name is the same"):
        keep("s", "GPU 1", [ROW], PROVENANCE, root=tmp_path)


def test_nothing_kept_is_an_empty_table_and_damage_is_named(tmp_path):
    table = kept("s", root=tmp_path)
    assert table.empty
    assert "mean" in table
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "x.json").write_text("{}")
    with pytest.raises(UserError, match=r"x\.json"):
        kept("s", root=tmp_path)


def test_values_stand_for_an_interval_worked_out_on_reading(tmp_path):
    from tracking.statistics import interval

    values = [0.81, 0.84, 0.82]
    row = {"quantity": "w1a32", "method": "m", "metric": "eval/accuracy", "mean": sum(values) / 3, "values": values,
           "n": 3, "profile": "full"}
    about = {"commit": "c", "date": "2026-01-01", "versions": {"torch": "2.13.0"}}
    keep("trial", "Some GPU", [row], about, root=tmp_path)
    found = kept("trial", root=tmp_path).iloc[0]
    assert found.half_width == interval(values).half_width
    with pytest.raises(UserError, match="do not have the mean"):
        keep("trial", "Some GPU", [{**row, "mean": 0.5}], about, root=tmp_path)


def test_shown_has_a_row_a_quantity_and_no_figure_that_was_not_measured(tmp_path):
    assert shown("s", root=tmp_path).empty
    other = {**ROW, "quantity": "test accuracy after 10 epochs", "n": 1, "half_width": None}
    keep("s", HARDWARE, [ROW, {**ROW, "metric": "memory/bits_per_weight", "mean": 2.5}, {**ROW, "metric": "train/loss"}, other], PROVENANCE,
         root=tmp_path)
    table = shown("s", root=tmp_path)
    assert list(table) == ["what", "eval/accuracy [fraction]", "memory/bits_per_weight [bit]", "n", "hardware", "commit", "date"]
    assert table["eval/accuracy [fraction]"].tolist() == ["0.9 ± 0.01", "0.9"]
    assert table["memory/bits_per_weight [bit]"].isna().tolist() == [False, True]
    assert table["n"].tolist() == [3, 1]
