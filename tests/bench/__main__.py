"""``make bench``: every benchmark of this folder, as ratios measured side by side, in one table.

A benchmark is a module ``bench_<what>.py`` with ``main() -> list of rows``: name, ours, peer, unit, ratio, n, target;
or name and ``skipped``, the reason why nothing was measured.
The table is printed, written as a page with its curves to ``bench.html`` in the home folder, and, when it is whole, kept in
``tracking/results/bench/<hardware>.json`` with its provenance.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

from tests.bench import page
from tracking.address import home
from tracking.folder import write_atomic
from tracking.results import ROOT, slug
from workbench.provenance import hardware, record


def main(names: list[str]) -> int:
    """Run the named benchmarks, or all; returns 1 when a target is missed."""
    folder = Path(__file__).parent
    found = sorted(p.stem.removeprefix("bench_") for p in folder.glob("bench_*.py"))
    unknown = set(names) - set(found)
    if unknown:
        print(f"Unknown benchmark {', '.join(sorted(unknown))}. Known: {', '.join(found)}.", file=sys.stderr)
        return 2
    rows = []
    for name in names or found:
        print(f"{name} ...", flush=True)
        for row in importlib.import_module(f"tests.bench.bench_{name}").main():
            rows.append(row)
            print("  " + describe(row), flush=True)
    machine = hardware("cpu")
    print(f"page: {page.write(home() / 'bench.html', rows, record() | {'hardware': machine})}")
    if not names:
        path = ROOT / "bench" / f"{slug(machine)}.json"
        write_atomic(path, json.dumps({"hardware": machine, "provenance": record(), "rows": rows}, indent=1) + "\n")
        print(f"written to {path}")
    return 1 if any(r.get("met") is False for r in rows) else 0


def describe(row: dict) -> str:
    """One line: the figure, its peer, the ratio, the target and whether it is met; or why there is none."""
    if "skipped" in row:
        return f"{row['name']}: skipped, for {row['skipped']}"
    peer = f" against {row['peer']:.4g}" if row.get("peer") is not None else ""
    ratio = f", ratio {row['ratio']:.3g}" if row.get("ratio") is not None else ""
    verdict = {True: " MET", False: " MISSED", None: ""}[row.get("met")]
    target = f", target {row['target']}{verdict}" if row.get("target") else ""
    return f"{row['name']}: {row['ours']:.4g}{peer} {row['unit']}{ratio}{target} (n = {row['n']})"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
