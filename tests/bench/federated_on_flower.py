"""The case on Flower's simulation runtime (Ray): an actor a core, batches as views of tensors that stay in the actor."""

from __future__ import annotations

import functools
import os
import sys

import torch
import torch.nn.functional as F
from torch import nn

from tests.bench.federated_case import BATCH, CLIENTS, RATE, SELECTED, Stopwatch, network, report, share

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_agent_register_timeout_ms", "120000")  # a busy machine starts Ray's helpers slowly

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

app = ClientApp()
data = functools.cache(share)


@functools.cache
def resident() -> tuple[nn.Module, torch.optim.Optimizer]:
    """The network that an actor loads each client's weights into."""
    torch.set_num_threads(1)
    model = network()
    return model, torch.optim.SGD(model.parameters(), RATE)


@app.train()
def train(message: Message, context: Context) -> Message:
    """A client's part of a round."""
    (model, optimizer), (x, y) = resident(), data(int(context.node_config["partition-id"]))
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    for step in range(int(message.content["config"]["steps"])):
        rows = slice(step * BATCH % len(x), step * BATCH % len(x) + BATCH)
        optimizer.zero_grad()
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    content = {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord({"num-examples": len(x)})}
    return Message(content=RecordDict(content), reply_to=message)


class Timed(FedAvg):
    """Stops the run when the stopwatch says so."""

    def __init__(self, watch: Stopwatch) -> None:
        super().__init__(fraction_train=SELECTED / CLIENTS, fraction_evaluate=0.0, min_available_nodes=CLIENTS)
        self.watch = watch

    def aggregate_train(self, server_round: int, replies):  # type: ignore[no-untyped-def]
        replies = list(replies)
        broken = [r.error.reason for r in replies if r.has_error()]
        if broken or len(replies) != SELECTED:
            raise RuntimeError(f"{len(replies)} replies, errors: {broken[:1]}")
        averaged = super().aggregate_train(server_round, replies)
        if self.watch.lap():
            raise Finished
        return averaged


class Finished(Exception):
    """Enough rounds."""


def main(seconds: float, steps: int) -> None:
    """Run, and report."""
    import flwr
    import ray

    server, watch = ServerApp(), Stopwatch(warm_up=3, seconds=seconds, steps=steps)

    @server.main()
    def serve(grid: Grid, context: Context) -> None:
        try:
            first, config = ArrayRecord(network().state_dict()), ConfigRecord({"steps": steps})
            Timed(watch).start(grid=grid, initial_arrays=first, num_rounds=10**6, train_config=config)
        except Finished:
            report(rate=watch.rate(), rounds=watch.rounds, version=f"flwr {flwr.__version__}, ray {ray.__version__}")

    cores = len(os.sched_getaffinity(0))
    ray_arguments = {"num_cpus": cores, "include_dashboard": False, "log_to_driver": False}
    resources = {"num_cpus": 1, "num_gpus": 0.0}
    run_simulation(server, app, CLIENTS, backend_config={"init_args": ray_arguments, "client_resources": resources})


if __name__ == "__main__":
    from tests.bench import federated_on_flower  # actors import the functions instead of getting copies of them

    federated_on_flower.main(float(sys.argv[1]), int(sys.argv[2]))
