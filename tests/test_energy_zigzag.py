"""The other mapper: what it is told, how its process ends, what is read back. No ZigZag needed."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import itertools
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.energy_helpers import cube
from tracking.energy_model import zigzag_child
from tracking.energy_model.hardware import hardware
from tracking.energy_model.prices import mac_pj
from tracking.energy_model.product import Cost, Product, Window, bits
from tracking.energy_model.search import compulsory_bits, product_cost
from tracking.energy_model.zigzag import PYTHON, _unroll, inputs, read_cost, run_child, zigzag_cost
from tracking.errors import UserError

BINARY = Product(1024, 128, 1152, "bool", "bool", "int16", "int16")
HALF = Product(1024, 128, 1152, "int16", "int16", "int32", "int16")
ONE_BIT_WEIGHTS = Product(1024, 128, 1152, "int16", "bool", "int32", "int16")
CONV = Product(1024, 128, 1152, "int16", "bool", "int32", "int16", Window(3))
STRIDED = Product(256, 128, 576, "int8", "bool", "int32", "int32", Window(3, 2))
WEIGHT_GRADIENT = Product(128, 1152, 1024, "int8", "int16", "int32", "int16", Window(3, operand="b"), count=3)
SMALL = Product(48, 32, 64, "int8", "int8", "int32", "int32")


# --- what ZigZag is told ------------------------------------------------------------------------------------


def layer(product):
    (record,) = inputs(product, cube())["workload"]
    return record, dict(zip(record["loop_dims"], record["loop_sizes"], strict=True))


@pytest.mark.parametrize("product", [BINARY, HALF, CONV, STRIDED, WEIGHT_GRADIENT])
def test_loops_are_the_multiplications_of_one_product(product):
    record, sizes = layer(product)
    assert math.prod(sizes.values()) * product.count == product.macs
    of = inputs(product, cube())["mapping"][0]["memory_operand_links"]
    told = {of[name]: record["operand_precision"][name] for name in "IWO"}
    assert told == {"I1": bits(product.a), "I2": bits(product.b), "O": bits(product.acc)}
    assert record["operand_precision"]["O_final"] == bits(product.out)


@pytest.mark.parametrize("product", [BINARY, CONV, STRIDED, WEIGHT_GRADIENT])
def test_operands_have_the_elements_that_must_move(product):
    # the indices in the equation, with iy and ix the pictures that the loops touch, against the model's own count
    record, sizes = layer(product)
    for index, relation in zip(("IX", "IY"), record["dimension_relations"], strict=False):
        stride = int(relation.split("=")[1].split("*")[0])
        sizes[index] = stride * (sizes["O" + index[1]] - 1) + sizes["F" + index[1]]
    output, factors = record["equation"].split("+=")
    of = inputs(product, cube())["mapping"][0]["memory_operand_links"]
    elements = {of[name[0]]: math.prod(sizes[x.rstrip("]").upper()] for x in name.split("[")[1:])
                for name in (output, *factors.split("*"))}
    least = compulsory_bits(product)
    for operand, name, format in (("a", "I1", product.a), ("b", "I2", product.b), ("o", "O", product.out)):
        # the model's patch is a square of real side, the nest's a picture of whole sides: 32 x 32 and 16 x 16 here, so equal
        assert elements[name] * bits(format) * product.count == pytest.approx(least[operand]), operand


def test_accelerator_has_our_levels_prices_and_array():
    hw = hardware("ascend_zigzag")
    told = inputs(ONE_BIT_WEIGHTS, hw)["accelerator"]
    assert list(told["memories"]) == [level.name for level in reversed(hw.levels)]
    for level in hw.levels:
        memory = told["memories"][level.name]
        (word,) = {port["bandwidth_max"] for port in memory["ports"]}
        assert (memory["r_cost"] / word, memory["w_cost"] / word) == pytest.approx((level.read.value, level.write.value))
        assert memory["size"] == level.capacity_bits or level.capacity_bits is None
        assert memory["operands"] == [{"a": "I1", "b": "I2", "o": "O"}[x] for x in level.operands]
    assert told["operational_array"]["sizes"] == list(hw.array)
    assert told["operational_array"]["unit_energy"] == mac_pj("int16", "bool", "int32", hw)


def test_the_array_can_read_a_whole_row_of_every_operand():
    # ZigZag cuts an unrolling down to the words of the innermost memory
    for product, id in itertools.product((BINARY, HALF, CONV, WEIGHT_GRADIENT), ("ascend_like", "tpu_v4i_like", "v100_like")):
        hw = hardware(id)
        told = inputs(product, hw)
        times = [int(x.split(", ")[1]) for axis in told["mapping"][0]["spatial_mapping"].values() for x in axis]
        for operand, width in (("a", bits(product.a)), ("b", bits(product.b)), ("o", bits(product.acc))):
            memory = told["accelerator"]["memories"][hw.stages[-1][operand].name]
            assert all(port["bandwidth_max"] >= max(times) * width for port in memory["ports"])


@given(st.lists(st.integers(1, 20), min_size=1, max_size=3), st.integers(1, 24))
def test_no_other_unrolling_leaves_fewer_turns(sizes, width):
    loops = list(zip(("C", "FX", "FY"), sizes, strict=False))
    found = dict(_unroll(loops, width))
    turns = math.prod(math.ceil(size / found.get(name, 1)) for name, size in loops)
    assert math.prod(found.values()) <= width
    assert all(times <= dict(loops)[name] for name, times in found.items())
    for times in itertools.product(*(range(1, size + 1) for size in sizes)):
        if math.prod(times) <= width:
            assert turns <= math.prod(math.ceil(size / t) for size, t in zip(sizes, times, strict=True))


def test_files_say_what_they_were_given(tmp_path):
    # 1e-05 is a word to YAML 1.1 when it has no point
    told = inputs(CONV, cube().at({"L1.read": 1e-05}))
    assert told["accelerator"]["memories"]["L1"]["r_cost"] == 1e-05
    paths = zigzag_child.write_files(told, tmp_path)
    for name, path in paths.items():
        assert Path(path).suffix == ".yaml"
        assert yaml.safe_load(Path(path).read_text()) == told[name]


@pytest.mark.parametrize(("product", "message"), [
    (Product(1021, 8, 36, "int8", "int8", "int32", "int8", Window(3)), "picture"),
    (Product(1024, 8, 35, "int8", "int8", "int32", "int8", Window(3)), "multiples of 9"),
    (Product(8, 35, 1024, "int8", "int8", "int32", "int8", Window(3, operand="b")), "multiples of 9"),
])
def test_windows_that_make_no_loop_nest_are_refused(product, message):
    with pytest.raises(UserError, match=message):
        inputs(product, cube())


@pytest.mark.parametrize(("options", "message"), [
    ({"engine": "lomo"}, "Did you mean 'loma'"), ({"timeout_s": 0}, "timeout_s"), ({"timeout_s": math.inf}, "timeout_s"),
    ({"lpf_limit": 0}, "lpf_limit"), ({"lpf_limit": 6.0}, "lpf_limit"),
])
def test_options_are_checked(options, message):
    with pytest.raises(UserError, match=message):
        zigzag_cost(SMALL, cube(), **options)


# --- its process --------------------------------------------------------------------------------------------


def interpreter(tmp_path, script):
    """A stand-in for Python: the shell script runs in place of the child, with the same arguments."""
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def alive(pid):
    """A killed process may stay in the table until somebody asks for its exit code."""
    return subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()[:1] not in ("", "Z")


def test_time_out_ends_the_process_and_what_it_started(tmp_path):
    pids = tmp_path / "pids"
    python = interpreter(tmp_path, f"sleep 600 & echo $! $$ > {pids}\necho 'zigzag.TooSmallError: no room'\necho unrolling.\nsleep 600")
    with pytest.raises(UserError, match=r"longer than timeout_s = 0\.5; its last words: zigzag\.TooSmallError: no room"):
        zigzag_cost(SMALL, cube(), timeout_s=0.5, python=python)
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in pids.read_text().split()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in pids.read_text().split())


def test_what_outlives_the_child_is_ended_too(tmp_path):
    pid = tmp_path / "pid"
    with pytest.raises(UserError, match="exit code 3 and no result; its last words: oh dear"):
        zigzag_cost(SMALL, cube(), python=interpreter(tmp_path, f"sleep 600 & echo $! > {pid}\necho oh dear\nexit 3"))
    deadline = time.monotonic() + 10
    while alive(pid.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(pid.read_text())


def test_no_interpreter(tmp_path):
    with pytest.raises(UserError, match=f"cannot be started.*{PYTHON}"):
        zigzag_cost(SMALL, cube(), python=str(tmp_path / "absent"))


def test_not_installed(tmp_path, monkeypatch):
    # without -S a Python has its installed packages; with it, none. The interpreter comes from the environment here.
    monkeypatch.setenv(PYTHON, interpreter(tmp_path, f'exec "{sys.executable}" -S "$@"'))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with pytest.raises(UserError, match=r"not installed: there is no zigzag-dse.*'energy'.*zigzag-dse==3\.9\.1 and six"):
        zigzag_cost(SMALL, cube())


def stand_in(tmp_path, monkeypatch, code, version="3.9.1"):
    """A package by the name of ZigZag in the child's path."""
    package = tmp_path / "zigzag" / "stages"
    package.mkdir(parents=True)
    (package / "main.py").write_text(code)
    info = tmp_path / f"zigzag_dse-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: zigzag-dse\nVersion: {version}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


@pytest.mark.parametrize(("code", "version", "message"), [
    ("import six_of_another_name", "3.9.1", "not installed: there is no six_of_another_name"),
    ("raise ValueError('no room:\\n  - for A\\n')", "3.9.1", "found no schedule: ValueError: no room: - for A$"),
    ("assert 1 > 2", "3.9.1", r"found no schedule: AssertionError: at line 1 of main\.py"),
    ("raise ValueError('new names')", "4.0", r"ZigZag 4\.0 is refused. Allowed: 3\.9\.1"),
])
def test_what_goes_wrong_inside_is_one_readable_line(tmp_path, monkeypatch, code, version, message):
    stand_in(tmp_path, monkeypatch, code, version)
    with pytest.raises(UserError, match=message) as error:
        zigzag_cost(SMALL, cube(), python=sys.executable)
    assert "\n" not in str(error.value)


def test_the_child_is_reproducible_and_sees_none_of_our_modules(tmp_path, monkeypatch):
    stand_in(tmp_path, monkeypatch, "import os, sys\n"
             "raise ValueError(os.environ['PYTHONHASHSEED'], [p for p in sys.path if 'energy_model' in p])")
    found = run_child({**inputs(SMALL, cube()), "engine": "loma", "lpf_limit": 6}, sys.executable, 60)
    assert found == {"version": "3.9.1", "error": "ValueError: ('0', [])"}


def test_the_child_names_the_package_that_is_absent(tmp_path, monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    zigzag_child.main(tmp_path / "job.json", tmp_path / "result.json")
    assert json.loads((tmp_path / "result.json").read_text()) == {"missing": "zigzag-dse"}


def test_nothing_is_left_in_the_folder_of_temporary_files(tmp_path, monkeypatch):
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    with pytest.raises(UserError):
        zigzag_cost(SMALL, cube(), python=interpreter(tmp_path, "exit 3"))
    assert not os.listdir(place)


# --- what is read back --------------------------------------------------------------------------------------


def ways(rd_low, wr_low, rd_high, wr_high):
    return {"RD_OUT_TO_LOW": rd_low, "WR_IN_BY_LOW": wr_low, "RD_OUT_TO_HIGH": rd_high, "WR_IN_BY_HIGH": wr_high}


UNROLLED = {"D1": ["M, 16"], "D2": ["N, 16"], "D3": ["K, 16"]}


def recorded():
    """By hand: three levels, innermost first, every number another power of two so that no sum is like any other."""
    values = (2.0**i for i in itertools.count())
    moved = {name: [ways(*((next(values) if takes else 0.0) for takes in (True, name == "O", name == "O" and i < 2, i < 2)))
                    for i in range(3)] for name in ("I1", "I2", "O")}
    total = sum(x for levels in moved.values() for level in levels for x in level.values())
    return {"version": "3.9.1", "mac_pj": 7.0, "memory_pj": total, "moved_pj": moved, "unrolled": UNROLLED}


def test_both_ends_of_a_boundary_are_booked_on_the_outer_level():
    # A: array reads 1, writes from above 2 | 4, 8 | 16. B: 32, 64 | 128, 256 | 512. O: reads and writes at the array 1024 + 2048,
    # to and from above 4096 + 8192 | 16384 + 32768, 65536 + 131072 | 262144 + 524288.
    cost = read_cost(recorded(), UNROLLED, SMALL, cube())
    assert cost.compute_j == pytest.approx(7e-12)
    assert {key: j * 1e12 for key, j in cost.memory_j.items()} == pytest.approx({
        ("L0A", "a"): 1, ("L1", "a"): 4 + 2, ("DRAM", "a"): 16 + 8,
        ("L0B", "b"): 32, ("L1", "b"): 128 + 64, ("DRAM", "b"): 512 + 256,
        ("L0C", "o"): 1024 + 2048, ("L1", "o"): 16384 + 32768 + 4096 + 8192, ("DRAM", "o"): 262144 + 524288 + 65536 + 131072})
    assert isinstance(cost, Cost)
    assert set(cost.memory_j) == set(product_cost(SMALL, cube()).memory_j)


def test_count_and_unit():
    once, thrice = (read_cost(recorded(), UNROLLED, dataclasses.replace(SMALL, count=count), cube()) for count in (1, 3))
    assert thrice.total_j == pytest.approx(3 * once.total_j)
    relative = dataclasses.replace(cube(), unit="relative")
    assert read_cost(recorded(), UNROLLED, SMALL, relative).total_j == pytest.approx(once.total_j * 1e12)


def test_results_that_contradict_themselves_are_refused():
    with pytest.raises(UserError, match="should be equal"):
        read_cost(recorded() | {"memory_pj": 1.0}, UNROLLED, SMALL, cube())
    with pytest.raises(UserError, match=r"unrolled.*M, 12.*not as.*M, 16"):
        read_cost(recorded() | {"unrolled": UNROLLED | {"D1": ["M, 12"]}}, UNROLLED, SMALL, cube())
