"""The cost of a product by another mapper: ZigZag, with its engines LOMA and SALSA, as a cross-check of our own search.

ZigZag (L. Mei et al., ZigZag: enlarging joint architecture-mapping design space exploration for DNN accelerators, IEEE
Transactions on Computers 2021) is optional and runs in a process of its own: an annealing run whose worker dies waits for
ever. It gets our hardware, our prices and our widths; where it differs is the search. LOMA (A. Symons et al., AICAS 2021)
goes through the orders of the loops' factors, SALSA (V. J. B. Jung et al., AICAS 2023) anneals them; both give each operand
tiles of its own, and tiles that divide the dimension, where ours share one tile that need not.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from tracking.energy_model import zigzag_child
from tracking.energy_model.hardware import Hardware, Level
from tracking.energy_model.prices import mac_pj
from tracking.energy_model.product import Cost, Product, bits
from tracking.errors import UserError, unknown

VERSION = "3.9.1"
PYTHON = "WORKBENCH_ZIGZAG_PYTHON"
UNLIMITED_BITS = 10**15
MEMORY_OPERANDS = {"a": "I1", "b": "I2", "o": "O"}
EXCEPTION = re.compile(r"[\w.]+(Error|Exception)\b")
Loops = list[tuple[str, int]]


def zigzag_cost(product: Product, hardware: Hardware, engine: Literal["loma", "salsa"] = "loma", *, timeout_s: float = 300.0,
                lpf_limit: int = 6, python: str | None = None) -> Cost:
    """Energy of one product with the schedule that ZigZag finds, booked like :func:`~tracking.energy_model.search.product_cost`.

    ``lpf_limit`` is the number of factors into which LOMA cuts the loops: more is wider and much slower. ``python`` is the
    interpreter that has ZigZag; default: the environment variable ``WORKBENCH_ZIGZAG_PYTHON``, else the running one. A
    convolution becomes a loop nest over one near-square picture, which is what our own model takes it for. The cost has no
    tiles and no traffic. Raises :class:`UserError` when ZigZag is not installed, takes longer than ``timeout_s``, or finds
    no schedule.
    """
    if engine not in zigzag_child.TEMPORAL:
        raise unknown("engine of ZigZag", engine, zigzag_child.TEMPORAL)
    if not (math.isfinite(timeout_s) and timeout_s > 0):
        raise UserError(f"timeout_s = {timeout_s!r} is refused. Allowed: number, 0 < x.")
    if type(lpf_limit) is not int or lpf_limit < 1:
        raise UserError(f"lpf_limit = {lpf_limit!r} is refused. Allowed: whole number, 1 <= x.")
    job = {**inputs(product, hardware), "engine": engine, "lpf_limit": lpf_limit}
    result = run_child(job, python or os.environ.get(PYTHON) or sys.executable, timeout_s)
    return read_cost(result, job["mapping"][0]["spatial_mapping"], product, hardware)


# --- what ZigZag reads --------------------------------------------------------------------------------------


def inputs(product: Product, hardware: Hardware) -> dict[str, Any]:
    """ZigZag's workload, accelerator and mapping, as the contents of its three files."""
    record, names, loops = _layer(product)
    axes = [f"D{i + 1}" for i in range(3)]
    unrolled = [_unroll(loops[d], width) for d, width in zip("mnk", hardware.array, strict=True)]
    widest = max(times for axis in unrolled for _, times in axis)
    memories = {level.name: _memory(level, product, widest if level in hardware.stages[-1].values() else None, axes)
                for level in reversed(hardware.levels)}
    array = {"unit_energy": mac_pj(*product.multiplied, product.acc, hardware), "unit_area": 1.0, "dimensions": axes,
             "sizes": list(hardware.array)}
    mapping = {"name": "default", "memory_operand_links": {name: MEMORY_OPERANDS[operand] for operand, name in names.items()},
               "spatial_mapping": {axis: [f"{name}, {times}" for name, times in chosen]
                                   for axis, chosen in zip(axes, unrolled, strict=True)}}
    return {"workload": [record], "mapping": [mapping],
            "accelerator": {"name": "hardware", "memories": memories, "operational_array": array}}


def _layer(product: Product) -> tuple[dict[str, Any], dict[str, str], dict[str, Loops]]:
    """The product as nested loops: its record, what our operands are called in it, and the loops behind m, n and k.

    ZigZag calls the operand that holds overlapping windows I, whichever of A and B that is.
    """
    p, window = product, product.window
    if window is None or window.kernel <= window.stride:  # nothing is shared: a plain matrix product
        names, equation = {"a": "I", "b": "W", "o": "O"}, "O[m][n]+=I[m][k]*W[k][n]"
        loops = {"m": [("M", p.m)], "n": [("N", p.n)], "k": [("K", p.k)]}
    elif window.operand == "a":
        names, equation = {"a": "I", "b": "W", "o": "O"}, "O[n][oy][ox]+=I[c][iy][ix]*W[n][c][fy][fx]"
        loops = {"m": _picture(p.m), "n": [("N", p.n)], "k": _taps(p.k, window.kernel)}
    else:
        names, equation = {"a": "W", "b": "I", "o": "O"}, "O[m][c][fy][fx]+=W[m][oy][ox]*I[c][iy][ix]"
        loops = {"m": [("M", p.m)], "n": _taps(p.n, window.kernel), "k": _picture(p.k)}
    sizes = dict(itertools.chain(*loops.values()))
    record = {"id": 0, "name": "product", "operator_type": "Conv" if "OX" in sizes else "Gemm", "equation": equation,
              "loop_dims": list(sizes), "loop_sizes": list(sizes.values()),
              "operand_precision": {names["a"]: bits(p.a), names["b"]: bits(p.b), "O": bits(p.acc), "O_final": bits(p.out)},
              "operand_source": {"I": 0, "W": 0},  # the layer's own number: both are there from the start
              "dimension_relations": [f"i{d}={window.stride}*o{d}+1*f{d}" for d in "xy"] if "OX" in sizes else []}
    return record, names, loops


def _picture(positions: int) -> Loops:
    """Output positions as a picture, the nearest to a square that they fill."""
    rows = next(y for y in range(math.isqrt(positions), 0, -1) if positions % y == 0)
    if positions > 4 * rows * rows:
        raise UserError(f"{positions} output positions make a picture of {rows} x {positions // rows} at best, too long for "
                        "a model of square patches. Take a number of positions with two factors of similar size.")
    return [("OX", positions // rows), ("OY", rows)]


def _taps(unrolled: int, kernel: int) -> Loops:
    """Channels and taps of an unrolled dimension."""
    if unrolled % kernel**2:
        raise UserError(f"A dimension of {unrolled} does not hold whole {kernel} x {kernel} windows. "
                        f"Allowed: multiples of {kernel**2}.")
    return [("C", unrolled // kernel**2), ("FX", kernel), ("FY", kernel)]


def _unroll(loops: Loops, width: int) -> Loops:
    """How often each loop is unrolled over ``width`` multipliers so that the fewest turns are left."""
    def choices(sizes: list[int], width: int) -> Iterator[tuple[int, ...]]:
        if not sizes:
            yield ()
            return
        for times in range(min(sizes[0], width), 0, -1):
            yield from ((times, *rest) for rest in choices(sizes[1:], width // times))

    names, sizes = zip(*loops, strict=True)
    best = min(choices(list(sizes), width), key=lambda chosen: math.prod(-(-s // t) for s, t in zip(sizes, chosen, strict=True)))
    return [(name, times) for name, times in zip(names, best, strict=True) if times > 1] or [(names[0], 1)]


def _memory(level: Level, product: Product, widest: int | None, axes: list[str]) -> dict[str, Any]:
    """One memory; ``widest`` is the largest unrolling where the array itself reads from it.

    ZigZag prices words. One bit is a word here, so that nothing is rounded up. Only at the array a word must be as wide as
    the largest unrolling, or ZigZag cuts the unrolling down; what the array takes at once is then made of whole words.
    """
    width = {"a": bits(product.a), "b": bits(product.b), "o": bits(product.acc)}
    word = widest * max(width[operand] for operand in level.operands) if widest else 1
    ways = {"a": ("fh", "tl"), "b": ("fh", "tl"), "o": ("fh", "fl", "th", "tl")}  # from and to, higher and lower
    ports = [{"name": f"rw_port_{i}", "type": "read_write", "bandwidth_min": 1, "bandwidth_max": word,
              "allocation": [f"{MEMORY_OPERANDS[operand]}, {way}" for way in ways[operand]]}
             for i, operand in enumerate(level.operands, 1)]
    return {"size": level.capacity_bits or UNLIMITED_BITS, "r_cost": level.read.value * word, "w_cost": level.write.value * word,
            "area": 0.0, "latency": 1, "operands": [MEMORY_OPERANDS[operand] for operand in level.operands], "ports": ports,
            "served_dimensions": axes}


# --- the other process --------------------------------------------------------------------------------------


def run_child(job: dict[str, Any], python: str, timeout_s: float) -> dict[str, Any]:
    """Run :mod:`~tracking.energy_model.zigzag_child` under ``python`` and return its result; all its processes end with it."""
    with tempfile.TemporaryDirectory(prefix="zigzag-") as name:
        folder = Path(name)
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        # -P: the script's folder, whose modules have everyday names, stays off the path of imports. The seed makes the order
        # of sets, and so the schedule, the same in every run.
        command = [python, "-P", zigzag_child.__file__, str(folder / "job.json"), str(folder / "result.json")]
        environment = {**os.environ, "PYTHONHASHSEED": "0", "MPLBACKEND": "Agg"}
        with (folder / "log").open("wb") as log:
            try:
                child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=folder,
                                         env=environment, start_new_session=True)
            except OSError as error:
                raise UserError(f"{python} cannot be started: {error.strerror}. Give the path of a Python interpreter "
                                f"that has ZigZag, as {PYTHON} or python=.") from None
            try:
                child.wait(timeout_s)
            except subprocess.TimeoutExpired:
                raise UserError(f"ZigZag took longer than timeout_s = {timeout_s:g}{_last_words(folder)}. Give it more time, or LOMA "
                                "a smaller lpf_limit. Where an order of loops does not fit the memories SALSA waits for ever; "
                                "LOMA passes it over.") from None
            finally:
                _end(child)
        if not (folder / "result.json").is_file():
            raise UserError(f"ZigZag's process ended with exit code {child.returncode} and no result{_last_words(folder)}.")
        return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill the process and all it started: SALSA's worker outlives its parent."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _last_words(folder: Path) -> str:
    """The last exception in the log, or else its last line."""
    lines = [line.strip() for line in (folder / "log").read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    said = [line for line in lines if EXCEPTION.match(line)] or lines
    return f"; its last words: {said[-1][:300]}" if said else ""


# --- what ZigZag found --------------------------------------------------------------------------------------


def read_cost(result: dict[str, Any], unrolled: dict[str, list[str]], product: Product, hardware: Hardware) -> Cost:
    """The child's result as a cost: what moves between two levels is booked on the outer one.

    Raises :class:`UserError` for a result that says what went wrong, or that is not about the mapping ``unrolled``.
    """
    if "missing" in result:
        raise UserError(f"ZigZag is not installed: there is no {result['missing']}. Install the extra 'energy' of this project "
                        f"(zigzag-dse=={VERSION} and six), or set {PYTHON} to an interpreter that has both.")
    if result["version"] != VERSION:
        raise UserError(f"ZigZag {result['version']} is refused. Allowed: {VERSION} (pip install zigzag-dse=={VERSION} six).")
    if "error" in result:
        raise UserError(f"ZigZag found no schedule: {result['error']}")
    if result["unrolled"] != unrolled:
        raise UserError(f"ZigZag unrolled the loops as {result['unrolled']}, not as {unrolled}: an innermost memory of "
                        f"{hardware.id} cannot hold what its array takes at once. Give it more capacity, or the array fewer "
                        "multipliers.")
    unit = hardware.joules * product.count
    memory: dict[tuple[str, str], float] = {}
    for operand, name in MEMORY_OPERANDS.items():
        levels = [stage[operand].name for stage in hardware.stages]
        ways = result["moved_pj"][name][::-1]
        for level, own, inner in zip(levels, ways, (*ways[1:], None), strict=True):
            inner_ends = inner["RD_OUT_TO_HIGH"] + inner["WR_IN_BY_HIGH"] if inner else 0.0
            memory[level, operand] = unit * (own["RD_OUT_TO_LOW"] + own["WR_IN_BY_LOW"] + inner_ends)
    if not math.isclose(sum(memory.values()), result["memory_pj"] * unit, rel_tol=1e-9):
        raise UserError(f"ZigZag's energies by level make {sum(memory.values()):g}, its total {result['memory_pj'] * unit:g}. "
                        "They should be equal: do not use this result.")
    return Cost(result["mac_pj"] * unit, memory)
