"""The formulas against real processes: torch.distributed over gloo, bytes counted by the kernel on the loop-back interface."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tracking.links import Link, gloo_reduce, gloo_reduce_scatter, ring_all_gather, ring_all_reduce, tree_broadcast

COUNTERS = Path("/proc/net/dev")

WORKER = """
import json, sys, time
import torch, torch.distributed as dist

rank, parties, store, n = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=parties)
x, part = torch.ones(n // 4), torch.ones(n // 4 // parties)


def transmitted():
    line = next(l for l in open("/proc/net/dev") if l.strip().startswith("lo:"))
    return int(line.split(":")[1].split()[8])


operations = {"all_reduce": lambda: dist.all_reduce(x), "broadcast": lambda: dist.broadcast(x, 0), "reduce": lambda: dist.reduce(x, 0),
              "all_gather": lambda: dist.all_gather(list(torch.empty_like(x).chunk(parties)), part),
              "reduce_scatter": lambda: dist.reduce_scatter(torch.empty_like(part), list(x.chunk(parties)))}
found = {}
for name, operation in operations.items():
    for _ in range(10):
        # the counter is read while all others wait in a barrier, before the first and after the last byte
        dist.barrier()
        before = transmitted() if rank == 0 else 0
        dist.barrier()
        operation()
        dist.barrier()
        found.setdefault(name, []).append(transmitted() - before if rank == 0 else 0)
        dist.barrier()
if rank == 0:
    print(json.dumps(found))
dist.destroy_process_group()
"""


def traffic(parties: int, n: int, folder: Path) -> dict[str, int]:
    """Bytes on the loop-back interface of each operation: the least of ten, as other programs only add to it."""
    torch = pytest.importorskip("torch")
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this torch has no gloo backend")
    if not COUNTERS.exists() or not re.search(r"^\s*lo:", COUNTERS.read_text(), re.M):
        pytest.skip("no /proc/net/dev with a loop-back interface: needs Linux")
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    workers = [subprocess.Popen([sys.executable, "-c", WORKER, str(rank), str(parties), str(folder / "store"), str(n)],
                                env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for rank in range(parties)]
    try:
        out = [w.communicate(timeout=120) for w in workers]
    finally:
        for w in workers:
            w.kill()
    assert all(w.returncode == 0 for w in workers), "\n".join(errors for _, errors in out)
    found = json.loads(out[0][0].splitlines()[-1])
    if not any(map(any, found.values())):
        pytest.skip("the kernel does not count loop-back traffic here")
    return {name: min(values) for name, values in found.items()}


@pytest.mark.parametrize("parties", [2, pytest.param(3, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)])
def test_formulas_against_the_wire(parties, tmp_path):
    n = 10_000_000 // (4 * parties) * 4 * parties  # 10 MB of float32 in equal parts
    costs = {"all_reduce": ring_all_reduce, "broadcast": tree_broadcast, "all_gather": ring_all_gather,
             "reduce": gloo_reduce, "reduce_scatter": gloo_reduce_scatter}
    found = traffic(parties, n, tmp_path)
    assert found.keys() == costs.keys()
    for name, cost in costs.items():
        formula = cost(n, parties, Link(0.0, 1e9))
        # no fewer than the payload; headers of 64 KiB loop-back packets, acknowledgements and barriers add well below 5 %
        assert 1 <= found[name] / formula.total_bytes <= 1.05, (name, found[name], formula.total_bytes)
