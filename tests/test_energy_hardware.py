"""Hardware files and arithmetic prices of the energy model, against published figures and hand-computed interpolation."""

from __future__ import annotations

import json
import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracking.energy_model.hardware import FOLDER, TAGS, hardware, hardware_ids
from tracking.energy_model.prices import mac_pj, op_pj
from tracking.errors import UserError

FORTY_FIVE = hardware("v100_like")  # 45 nm prices at scale 1
FLOATS, WIDTHS = ("fp8", "fp16", "fp32", "fp64"), st.integers(1, 64)


def record(id: str = "ascend_like") -> dict:
    return json.loads((FOLDER / f"{id}.json").read_text())


def load(tmp_path, changed: dict):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(changed))
    return hardware(path)


def test_shipped_files_are_whole():
    assert {"ascend_like", "ascend_zigzag", "cpu_like", "eyeriss_like", "h100_like", "tpu_v4i_like", "v100_like"} <= set(hardware_ids())
    for id in hardware_ids():
        hw = hardware(id)
        assert hw.id == id
        assert hw.title
        assert hw.note
        assert hw.stages[0]["a"].capacity_bits is None
        assert all(level.note for level in hw.levels)
        for name, constant in hw.constants().items():
            assert constant.tag in TAGS, name
            assert constant.source, name
            assert constant.unit, name
            assert 0 < constant.low <= constant.value <= constant.high, name
        # a bit costs less the nearer its memory is to the multipliers
        for operand in "abo":
            energies = [stage[operand].read.value for stage in hw.stages]
            assert energies == sorted(energies, reverse=True), (id, operand)


def test_constants_follow_their_sources():
    ascend = hardware("ascend_like").constants()
    for name, gigabytes_per_s_per_mw in {"DRAM": 0.02, "L2": 0.2, "L1": 0.4, "L0A": 4.9, "L0B": 3.5, "L0C": 5.4}.items():
        # 1 GB/s per mW is 1 byte per pJ; the files keep four digits
        assert ascend[f"{name}.read"].value == pytest.approx(1 / gigabytes_per_s_per_mw / 8, rel=5e-4)
    zigzag = hardware("ascend_zigzag").constants()
    for name, (read, write, width) in {"DRAM": (700, 750, 64), "L1AO": (465.6, 825.6, 4096), "L1B": (465.6, 825.6, 4096),
                                       "L0A": (26.56, 30.72, 512), "L0B": (50.16, 108, 2048), "L0O": (123.2, 212.8, 2048)}.items():
        assert zigzag[f"{name}.read"].value == pytest.approx(read / width, rel=5e-4)
        assert zigzag[f"{name}.write"].value == pytest.approx(write / width, rel=5e-4)
    assert hardware("eyeriss_like").constants()["DRAM.read"].value * 16 == pytest.approx(200)


def test_scales_meet_the_stated_macs():
    ascend = hardware("ascend_like")
    calibrated = ascend.at({"extra.scale": ascend.extras["scale"].low})
    assert mac_pj("fp16", "fp16", "fp16", calibrated) == pytest.approx(2 / 1.7, rel=0.01)  # two operations at 1.7 TOPS/W
    assert mac_pj("int8", "int8", "int32", hardware("ascend_zigzag")) == pytest.approx(0.04)
    assert mac_pj("int8", "int8", "int32", hardware("tpu_v4i_like")) == pytest.approx(0.084)
    assert mac_pj("int16", "int16", "int16", hardware("eyeriss_like")) == pytest.approx(1, rel=1e-3)  # its unit; four digits kept


@pytest.mark.parametrize(("a", "b", "acc", "pj"), [
    ("fp32", "fp32", "fp32", 4.6), ("fp16", "fp16", "fp16", 1.5), ("fp16", "fp16", "fp32", 2.0), ("int8", "int8", "int32", 0.3),
    ("int32", "int32", "int32", 3.2), ("bool", "fp32", "fp32", 0.9), ("fp16", "bool", "fp16", 0.4), ("bool", "int8", "int32", 0.03),
    ("int16", "bool", "int32", 0.05), ("bool", "int32", "int32", 0.1), ("bool", "bool", "int16", 0.01), ("int1", "int1", "int16", 0.01)])
def test_prices_at_45_nm(a, b, acc, pj):
    assert mac_pj(a, b, acc, FORTY_FIVE) == pytest.approx(pj)
    assert mac_pj(b, a, acc, FORTY_FIVE) == mac_pj(a, b, acc, FORTY_FIVE)


def test_prices_at_7_nm():
    seven = hardware("h100_like")
    scale = seven.extras["scale"].value
    for format, pj in {"bf16": 0.32, "fp16": 0.5, "fp32": 1.69, "int32": 1.51}.items():
        assert mac_pj(format, format, format, seven) == pytest.approx(pj * scale)


def test_prices_between_and_beyond_the_points():
    slope = math.log(3.1 / 0.2) / math.log(32 / 8)  # of the INT multiplier: 1.98, about quadratic
    assert 1.9 < slope < 2
    assert op_pj("mul", "int16", FORTY_FIVE) == pytest.approx(0.2 * 2**slope)
    assert op_pj("mul", "int4", FORTY_FIVE) == pytest.approx(0.2 / 2**slope)
    # 4 x 16 bits have the partial products of 8 x 8
    assert mac_pj("int4", "int16", "int32", FORTY_FIVE) == pytest.approx(0.2 + 0.1)
    assert op_pj("add", "fp8", FORTY_FIVE) == pytest.approx(0.4 * 0.4 / 0.9)
    assert op_pj("mul", "fp64", FORTY_FIVE) == pytest.approx(3.7 * 3.7 / 1.1)
    assert op_pj("add", "int12", FORTY_FIVE) == pytest.approx(0.03 * (12 / 8) ** (math.log(5 / 3) / math.log(2)))
    # the integer of a mixed pair is converted to a float
    assert mac_pj("fp16", "int4", "fp32", FORTY_FIVE) == pytest.approx(1.1 + 0.9)
    assert mac_pj("fp16", "int32", "fp32", FORTY_FIVE) == pytest.approx(3.7 + 0.9)
    assert op_pj("logic", "int8", FORTY_FIVE) == pytest.approx(8 * 0.002)
    assert op_pj("add", "bool", FORTY_FIVE) == pytest.approx(0.002)


@given(st.sampled_from(hardware_ids()), WIDTHS, WIDTHS, WIDTHS, st.integers(2, 64), WIDTHS)
def test_integer_prices_grow_with_every_width(id, a, b, wider, acc, wider_acc):
    hw = hardware(id)
    price = mac_pj(f"int{a}", f"int{b}", f"int{acc}", hw)
    # relative slack: powers of logarithms, a few units in the last place
    assert price <= mac_pj(f"int{max(a, wider)}", f"int{b}", f"int{acc}", hw) * (1 + 1e-12)
    assert price <= mac_pj(f"int{a}", f"int{b}", f"int{max(acc, wider_acc)}", hw) * (1 + 1e-12)


@given(st.sampled_from(hardware_ids()), st.sampled_from([*FLOATS, "bool", "int8"]), st.integers(0, 3), st.integers(0, 3),
       st.integers(0, 3), st.integers(0, 2**32))
def test_float_prices_grow_with_every_width_in_every_draw(id, other, i, j, acc, seed):
    hw = hardware(id).sample(np.random.default_rng(seed))
    i, j = sorted((i, j))
    assert mac_pj(FLOATS[i], other, FLOATS[acc], hw) <= mac_pj(FLOATS[j], other, FLOATS[acc], hw) * (1 + 1e-12)
    assert mac_pj(FLOATS[acc], other, FLOATS[i], hw) <= mac_pj(FLOATS[acc], other, FLOATS[j], hw) * (1 + 1e-12)


def test_an_instruction_is_shared_among_the_lanes_of_a_vector():
    cpu = hardware("cpu_like")
    # 256 bits: 8 lanes of 32, 32 of 8, 256 Boolean pairs
    for a, b, acc, arithmetic, lanes in (("fp32", "fp32", "fp32", 4.6, 8), ("int8", "int8", "int32", 0.3, 32),
                                         ("bool", "fp32", "fp32", 0.9, 8), ("bool", "bool", "int16", 0.01, 256)):
        assert mac_pj(a, b, acc, cpu) == pytest.approx(arithmetic + 70 / lanes)
    assert op_pj("add", "fp16", cpu) == pytest.approx(0.4 + 70 / 16)


def test_unknown_words_are_refused():
    for formats in (("fp31x", "fp32", "fp32"), ("fp32", "float32", "fp32"), ("fp32", "fp32", "int65")):
        with pytest.raises(UserError, match="refused"):
            mac_pj(*formats, FORTY_FIVE)
    with pytest.raises(UserError, match="more than one bit"):
        mac_pj("bool", "bool", "bool", FORTY_FIVE)
    with pytest.raises(UserError, match="Did you mean 'mul'"):
        op_pj("mull", "fp32", FORTY_FIVE)
    with pytest.raises(UserError, match="refused"):
        op_pj("add", "double", FORTY_FIVE)
    with pytest.raises(UserError, match="Did you mean 'ascend_like'"):
        hardware("ascend_lik")
    with pytest.raises(UserError, match="no file"):
        hardware("nowhere/mine.json")


def test_a_file_of_ones_own(tmp_path):
    mine = load(tmp_path, record() | {"id": "mine"})
    assert mine.id == "mine"
    assert mine.levels == hardware("ascend_like").levels
    assert mine.macs == hardware("ascend_like").macs
    inline = load(tmp_path, record() | {"macs": json.loads((FOLDER / "prices" / "45nm.json").read_text())})
    assert inline == hardware("ascend_like")
    assert hash(inline) == hash(hardware("ascend_like"))
    assert pickle.loads(pickle.dumps(inline)) == inline


def _level(**changes):
    return lambda r: r["levels"][1].update(changes)


def _prices(changes):
    def change(r):
        r["macs"] = json.loads((FOLDER / "prices" / "45nm.json").read_text())
        changes(r["macs"])
    return change


@pytest.mark.parametrize(("change", "message"), [
    (lambda r: r.update(levls=[]), "Did you mean 'levels'"),
    (lambda r: r.pop("array"), "lacks array"),
    (lambda r: r.update(array=[16, 16]), "three whole numbers"),
    (lambda r: r.update(unit="J"), "Unknown unit"),
    (lambda r: r.update(macs="46nm"), "Did you mean '45nm'"),
    (lambda r: r.update(levels=3), "list of levels"),
    (lambda r: r["levels"].pop(), "whole stages"),
    (lambda r: r["levels"].insert(3, r["levels"][4]), "name of its own"),
    (lambda r: r["levels"].insert(4, r["levels"][2] | {"name": "X"}), "already"),
    (lambda r: r["levels"].__delitem__(slice(1, None)), "whole stages"),
    (lambda r: r["extras"].update(scael=r["extras"]["scale"]), "no extra 'scael'"),
    (lambda r: r["extras"].update(instruction=r["extras"]["scale"]), "needs vector_bits"),
    (_level(capacity_bits=0), "1 <= x"), (_level(operand="w"), "letters of abo"), (_level(access={}), "lacks"),
    (_level(read=3), "Give access, or read and write"), (_level(access=3), "an object"),
    (lambda r: r["levels"][1]["access"].update(low=7.0), "low <= value <= high"),
    (lambda r: r["levels"][1]["access"].update(value="1"), "low <= value <= high"),
    (lambda r: r["levels"][1]["access"].update(tag="guess"), "Unknown tag"),
    (_prices(lambda m: m.update(fp33=m["logic"])), "no price 'fp33'"),
    (_prices(lambda m: m.pop("bool_pair")), "lacks bool_pair"),
    (_prices(lambda m: m.pop("int32_mul")), "two widths or more"),
    (_prices(lambda m: m.update(fp16_add=m["fp32_mul"])), "the wider the dearer"),
])
def test_faults_in_a_file_are_named(tmp_path, change, message):
    changed = record()
    change(changed)
    with pytest.raises(UserError, match=message):
        load(tmp_path, changed)


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "mine.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        hardware(tmp_path / "mine.json")


def test_other_values_for_some_constants():
    hw = hardware("ascend_like")
    other = hw.at({"L1.read": 0.5, "mac.fp32_mul": 5, "extra.scale": 2.0})
    changed = {name for name, constant in other.constants().items() if constant != hw.constants()[name]}
    assert changed == {"L1.read", "mac.fp32_mul", "extra.scale"}
    assert mac_pj("fp32", "fp32", "fp32", other) == pytest.approx(2 * (5 + 0.9))
    assert hw.at() == hw
    with pytest.raises(UserError, match=r"Did you mean 'L1.read'"):
        hw.at({"L1.raed": 1})
    with pytest.raises(UserError, match="0 < x"):
        hw.at({"L1.read": 0})


@pytest.mark.parametrize("id", hardware_ids())
def test_draws_stay_in_their_intervals(id):
    hw, rng = hardware(id), np.random.default_rng(1)
    draws = [{name: constant.value for name, constant in hw.sample(rng).constants().items()} for _ in range(200)]
    for name, constant in hw.constants().items():
        values = np.array([draw[name] for draw in draws])
        assert (values >= constant.low * (1 - 1e-12)).all(), name
        assert (values <= constant.high * (1 + 1e-12)).all(), name
        if constant.low < constant.high:
            # uniform in the logarithm: the mean of 200 uniform numbers has a deviation of 0.0204, five of which are 0.102
            quantile = np.log(values / constant.low) / math.log(constant.high / constant.low)
            assert abs(quantile.mean() - 0.5) < 0.102, name
            assert quantile.std() > 0.25, name  # a uniform one has 0.289, its estimate a deviation of about 0.01
    # one process node, one quantile; the same for both ways of a memory
    for together in (["mac.fp32_mul", "mac.int8_add"], [f"{hw.levels[1].name}.{way}" for way in ("read", "write")]):
        spread = [(hw.constants()[name].low, hw.constants()[name].high) for name in together]
        for draw in draws[:5]:
            first, second = (math.log(draw[name] / low, high / low) for name, (low, high) in zip(together, spread, strict=True))
            assert first == pytest.approx(second, abs=1e-9)
    again = hw.sample(np.random.default_rng(1))
    assert {name: c.value for name, c in again.constants().items()} == draws[0]
