"""Boolean training over real processes: replicas that see different data hold the same weights after every step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

WORKER = """
import json, sys
import torch, torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from workbench.boolean import (BooleanConv2d, BooleanLinear, ErrorFeedbackBoolean, JointOptimizer, Threshold, joint_optimizer,
                               split_parameters)

rank, parties, store = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=parties)


def error_feedback(model):
    boolean, real = split_parameters(model)
    return JointOptimizer(boolean=ErrorFeedbackBoolean(boolean, 20.0), real=torch.optim.Adam(real, 1e-3))


optimizers = {"plasticity": lambda m: joint_optimizer(m, 20.0),
              "stochastic, int16": lambda m: joint_optimizer(m, 60.0, stochastic=True, accumulator="int16"),
              "error feedback": error_feedback}
found = {}
for name, make in optimizers.items():
    torch.manual_seed(rank)  # replicas begin unequal: DDP is to hand out those of rank 0
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), Threshold(), BooleanConv2d(4, 8, 3, padding=1), Threshold(fan_in=36),
                          nn.Flatten(), BooleanLinear(8 * 36, 16, bias=True), Threshold(fan_in=288), nn.Linear(16, 3))
    replica = DistributedDataParallel(model)
    optimizer = make(model)
    apart = []
    for step in range(8):
        x, y = torch.randn(12, 1, 6, 6), torch.arange(12) % 3  # each rank its own
        optimizer.zero_grad()
        nn.functional.cross_entropy(replica(x), y).backward()
        optimizer.step()
        mine = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
        all_ = [torch.empty_like(mine) for _ in range(parties)]
        dist.all_gather(all_, mine)
        apart.append(max(int((other != mine).sum()) for other in all_))
    inputs = [torch.empty_like(x) for _ in range(parties)]
    dist.all_gather(inputs, x)
    found[name] = {"apart": apart, "flips": sum(r.total_flips for r in optimizer.optimizers["boolean"].layers()),
                   "signs": all(bool((p.abs() == 1).all()) for p in split_parameters(model)[0]),
                   "same data": torch.equal(*inputs)}
print(json.dumps(found))
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict]:
    """What each of two ranks saw."""
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this torch has no gloo backend")
    folder = tmp_path_factory.mktemp("ddp")
    root = str(Path(__file__).parents[1])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    if Path("/sys/class/net/lo").exists():
        environment["GLOO_SOCKET_IFNAME"] = "lo"  # no name of this machine needs to resolve
    workers = [subprocess.Popen([sys.executable, "-c", WORKER, str(rank), "2", str(folder / "store")], env=environment, cwd=folder,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for rank in range(2)]
    try:
        results = [w.communicate(timeout=120) for w in workers]
    finally:
        for w in workers:
            w.kill()
    assert all(w.returncode == 0 for w in workers), results
    return [json.loads(out.splitlines()[-1]) for out, _ in results]


@pytest.mark.parametrize("optimizer", ["plasticity", "stochastic, int16", "error feedback"])
def test_replicas_stay_equal_after_every_step(found, optimizer):
    for rank in found:
        assert rank[optimizer]["apart"] == [0] * 8
        assert rank[optimizer]["signs"]
        assert not rank[optimizer]["same data"]
    assert found[0][optimizer]["flips"] == found[1][optimizer]["flips"] > 20
