"""The decoupled methods as runs: equal where they must be, and their bytes, clocks and memory as the papers count them."""

from __future__ import annotations

import math

import pytest
import torch

from workbench.datasets import models
from workbench.decoupled import Costs, EventLine, RandomLine
from workbench.method import Context
from workbench.methods.decoupled._asynchronous import begin_epoch
from workbench.spec import resolve
from workbench.state import snapshot, state_bytes

TASK = "digits/dgl_cnn4"
SIZES = {"train_size": 144, "test_size": 100, "width": 0.1}
PARAMS = {"modules": 4, "epochs": 2, "batch_size": 24, "lr": 0.01, "report_every": 1000}
BATCHES = 6  # of an epoch


class Ran:
    """A method stepped to its end by hand."""

    def __init__(self, method: str, task: str = TASK, seed: int = 0, stop: int | None = None, sizes=SIZES, **params) -> None:
        local = {} if method in ("decoupled_backprop", "ddg", "features_replay", "dni", "cdni") else {"head": "mlp"}
        job = resolve(method, task, PARAMS | local | params, task_params=sizes, seed=seed, device="cpu", threads=1)
        self.method, self.task, self.ctx = job.method, job.task, Context(device=torch.device("cpu"), seed=seed)
        self.task.setup(self.ctx)
        self.state = self.method.init(self.task, self.ctx)
        self.steps = []
        while (at := self.method.progress(self.state)).done < (stop or at.total):
            self.steps.append(self.method.step(self.state, self.task, self.ctx))

    @property
    def last(self) -> dict[str, float]:
        return self.steps[-1]

    def evaluate(self) -> dict[str, float]:
        return self.method.evaluate(self.state, self.task, self.ctx)

    def weights(self) -> list[torch.Tensor]:
        return list(self.method.network(self.state).state_dict().values())

    def bytes(self, direction: str, codec: str | None = None) -> int:
        rows = self.ctx.ledger.table()
        return sum(r["bytes"] for r in rows if r["direction"] == direction and codec in (None, r["codec"]))


def equal(a, b) -> bool:
    return len(a) == len(b) and all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


@pytest.fixture(scope="module")
def backprop() -> Ran:
    return Ran("decoupled_backprop")


@pytest.fixture(scope="module")
def dgl() -> Ran:
    return Ran("dgl")


def output_shapes(width: float = 0.1) -> list[tuple[int, int]]:
    """Channels and side behind each module but the last, for 8x8 images."""
    return [(models.scaled(64, width), 8), (models.scaled(128, width), 4), (models.scaled(128, width), 4)]


# --- equal where they must be -------------------------------------------------------------------------------


def test_backpropagation_over_workers_is_plain_training(backprop):
    """The same network, order and steps as the workbench's full-precision training, to the bit, over any cut."""
    job = resolve("full_precision", TASK, {k: v for k, v in PARAMS.items() if k != "modules"}, task_params=SIZES, device="cpu", threads=1)
    ctx = Context(device=torch.device("cpu"), seed=0)
    job.task.setup(ctx)
    state = job.method.init(job.task, ctx)
    while (at := job.method.progress(state)).done < at.total:
        last = job.method.step(state, job.task, ctx)
    plain = list(state.model.state_dict().values())
    assert equal(backprop.weights(), plain)
    assert backprop.last["train/loss"] == pytest.approx(last["train/loss"], rel=1e-6)  # sums in another order
    assert equal(Ran("decoupled_backprop", modules=2).weights(), plain)
    assert job.method.evaluate(state, job.task, ctx).items() <= backprop.evaluate().items()


@pytest.mark.parametrize("method", ["ddg", "features_replay"])
def test_no_delay_is_backpropagation(method, backprop):
    assert equal(Ran(method, delay=0).weights(), backprop.weights())
    assert not equal(Ran(method, delay=1).weights(), backprop.weights())


@pytest.mark.parametrize("method", ["dgl", "async_dgl", "async_dgl_vq", "dni", "cdni", "ddg", "features_replay", "sequential_greedy"])
def test_one_module_is_backpropagation(method, backprop):
    ran = Ran(method, modules=1)
    assert equal(ran.weights(), backprop.weights())
    assert not ran.ctx.ledger.rows
    figures = ran.evaluate()
    assert {k: figures[k] for k in ("eval/loss", "eval/accuracy")} == {k: backprop.evaluate()[k] for k in ("eval/loss", "eval/accuracy")}
    assert not [name for name in figures if name.startswith("eval/accuracy_")]


@pytest.mark.parametrize("options", [
    {"schedule": "round_robin", "buffer": 1},
    {"schedule": "events", "costs": "equal", "buffer": 1},
    {"schedule": "events", "costs": "equal", "buffer": 7},
], ids=["in turn, M = 1", "events, M = 1", "events, M = 7"])
def test_without_delay_asynchronous_is_synchronous(options, dgl):
    """Zero delay, equal paces, any buffer: every module sees every batch once and fresh. Weights of all modules and heads to the bit."""
    ran = Ran("async_dgl", **options)
    ours, theirs = (r.state.training.network.state_dict() for r in (ran, dgl))
    assert equal(list(ours.values()), list(theirs.values()))
    assert ran.evaluate() == dgl.evaluate()
    assert ran.last["train/reuse"] == ran.last["train/age"] == 0
    assert ran.state.updates == [2 * BATCHES] * 4


def test_step_for_step_they_are_the_same():
    """After every round of four turns, each module has the weights of synchronous DGL at that step."""
    sync, other = (Ran(m, stop=1, report_every=1, **o) for m, o in (("dgl", {}), ("async_dgl", {"schedule": "round_robin", "buffer": 1})))
    for _ in range(6):
        a, b = (list(r.state.training.network.state_dict().values()) for r in (sync, other))
        assert equal(a, b)
        for r in (sync, other):
            r.method.step(r.state, r.task, r.ctx)


def test_greedy_freezes_what_it_has_trained():
    """After the stage of module 1 its weights and batch statistics never change; the last stage ends where DGL's network would."""
    ran = Ran("sequential_greedy", stop=2 * BATCHES)
    network = ran.state.training.network
    before = {k: v.clone() for k, v in network.state_dict().items() if k.startswith(("bodies.0.", "heads.0."))}
    figures = ran.evaluate()
    assert set(figures) & {"eval/accuracy_module_1", "eval/accuracy"} == {"eval/accuracy"}, "one module is all there is"
    while (at := ran.method.progress(ran.state)).done < at.total:
        ran.method.step(ran.state, ran.task, ran.ctx)
    assert at.total == 4 * 2 * BATCHES
    after = network.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in before.items())
    assert {"eval/accuracy", "eval/accuracy_module_1", "eval/accuracy_module_2", "eval/accuracy_module_3"} <= set(ran.evaluate())
    assert not ran.ctx.ledger.rows, "one worker sends nothing"


def test_the_first_greedy_stage_is_the_first_module_of_dgl(dgl):
    ran = Ran("sequential_greedy", stop=2 * BATCHES)
    for part in ("bodies", "heads"):
        a, b = (getattr(r.state.training.network, part)[0].state_dict().values() for r in (ran, dgl))
        assert equal(list(a), list(b))


# --- bytes, memory, clocks ----------------------------------------------------------------------------------


def test_bytes_between_modules_are_the_papers_to_the_byte(backprop, dgl):
    """Raw messages: 4 B c H² and 17 of header, labels in a byte each. Backpropagation sends as much again back."""
    raw = sum(4 * 24 * c * h * h + 17 for c, h in output_shapes())
    steps = 2 * BATCHES
    assert dgl.bytes("up") == steps * (raw + 3 * 24)
    assert dgl.bytes("down") == 0
    assert backprop.bytes("up") == backprop.bytes("down") == steps * raw


def test_bytes_of_quantised_links_are_the_papers_to_the_byte():
    """B H² g ceil(log2 K) / 8, with g = c / d; a codebook of 4 K c every T sends."""
    K, T, d = 32, 4, 3
    shapes = [(6, 8), (13, 4), (13, 4)]
    assert shapes == output_shapes()
    with pytest.raises(Exception, match=r"group_size = 3 is refused. Allowed: a divisor of 13"):
        Ran("async_dgl_vq", group_size=d, codewords=K)
    d = 1
    ran = Ran("async_dgl_vq", group_size=d, codewords=K, sync_every=T)
    sends = [c.sends for c in ran.state.channels]
    codes = [math.ceil(24 * h * h * c // d * 5 / 8) + 17 + 4 for c, h in shapes]
    assert ran.bytes("up", "vq") == sum(n * size for n, size in zip(sends, codes, strict=True))
    assert ran.bytes("up", "labels") == 24 * sum(sends)
    assert ran.bytes("up", "dense_fp32") == sum(math.ceil(n / T) * (4 * K * c + 13) for n, (c, _) in zip(sends, shapes, strict=True))
    held = ran.last["memory/buffer_bytes"]
    assert held == sum(len(b) * (size + 24) for b, size in zip(ran.state.line.buffers, codes, strict=True)) + sum(
        len(item[3]) for b in ran.state.line.buffers for item in b.items)


def test_buffer_memory_as_counted_is_buffer_memory_as_kept():
    """What the buffers say they hold is what a checkpoint of them weighs, and M messages at most."""
    ran = Ran("async_dgl", buffer=3)
    buffers = ran.state.line.buffers
    assert [len(b) for b in buffers] == [3, 3, 3]
    assert ran.last["memory/buffer_bytes"] == state_bytes(snapshot([b.items for b in buffers]))
    assert ran.last["memory/buffer_bytes"] == 3 * sum(4 * 24 * c * h * h + 17 + 24 for c, h in output_shapes())


def test_clocks_follow_the_pipeline_model(backprop, dgl):
    """One unit: end-to-end training of a batch on one worker. DGL: one batch every max(F + B + H), after the first."""
    steps = 2 * BATCHES
    assert backprop.last["clock/virtual_s"] == pytest.approx(steps)
    assert backprop.last["clock/idle"] == pytest.approx(3 / 4)
    local = dgl.method.durations
    assert dgl.last["clock/virtual_s"] == pytest.approx(sum(local) + (steps - 1) * max(local))
    assert dgl.last["clock/idle"] == pytest.approx(1 - steps * sum(local) / (4 * dgl.last["clock/virtual_s"]))
    late = Ran("ddg")
    shares = Costs(tuple(round(1e9 * f) for f in late.method.forward), (0,) * 4).forward
    assert late.last["clock/virtual_s"] == pytest.approx(steps * (sum(shares) + 2 * max(shares)))
    again = Ran("features_replay")
    assert again.last["clock/virtual_s"] == pytest.approx(steps * (sum(shares) + max([3 * f for f in shares[:-1]] + [2 * shares[-1]])))


def test_links_take_time():
    """Backpropagation waits for every message, both ways; DGL for the first ones only, where links are no bottleneck."""
    raw = [4 * 24 * c * h * h + 17 for c, h in output_shapes()]
    options = {"latency": 0.01, "bandwidth": 1e7}
    steps = 2 * BATCHES
    slow = Ran("decoupled_backprop", **options)
    assert slow.last["clock/virtual_s"] == pytest.approx(steps * (1 + 2 * sum(0.01 + n / 1e7 for n in raw)))
    dgl = Ran("dgl", **options)
    local = dgl.method.durations
    hidden = sum(local) + (steps - 1) * max(local) + sum(0.01 + (n + 24) / 1e7 for n in raw)
    assert dgl.last["clock/virtual_s"] == pytest.approx(hidden)


@pytest.mark.parametrize("schedule", ["events", "random"])
def test_a_slow_module_costs_reuse_and_no_time_of_others(schedule):
    """S = 3 on module 2: module 1 has done its epochs long before, module 3 repeats batches, and all end with their own updates."""
    ran = Ran("async_dgl", schedule=schedule, slow_module=2, slowdown=3.0, buffer=5, epochs=3)
    state = ran.state
    assert isinstance(state.line, EventLine if schedule == "events" else RandomLine)
    assert state.updates == [3 * BATCHES] * 4
    into, behind = state.line.buffers[0], state.line.buffers[1]
    assert behind.reuse > 0.4 > 0.2 > into.reuse
    assert into.unread > 0.4
    fresh = Ran("async_dgl", schedule=schedule, buffer=5, epochs=3)
    assert fresh.last["train/reuse"] < ran.last["train/reuse"]
    assert fresh.last["clock/virtual_s"] < ran.last["clock/virtual_s"]
    if schedule == "events":
        # the slow worker never waits after its first batch
        assert ran.last["clock/virtual_s"] == pytest.approx(3 * BATCHES * 3 / 4, rel=0.1)


def test_modules_that_are_done_only_hand_on():
    """In evaluation mode, with weights and statistics as they are."""
    ran = Ran("async_dgl", slow_module=3, slowdown=4.0, stop=1, report_every=1)
    state = ran.state
    while state.updates[0] < 2 * BATCHES:
        ran.method.step(state, ran.task, ran.ctx)
    before = {k: v.clone() for k, v in state.training.network.bodies[0].state_dict().items()}
    sent = state.line.turns[0]
    while (at := ran.method.progress(state)).done < at.total:
        ran.method.step(state, ran.task, ran.ctx)
    assert state.line.turns[0] > sent + BATCHES, "it kept on"
    assert all(torch.equal(v, before[k]) for k, v in state.training.network.bodies[0].state_dict().items())


def test_rates_follow_the_epochs_of_each_module():
    ran = Ran("async_dgl", slow_module=1, slowdown=2.0, lr_decay=0.1, lr_decay_epochs=(1,), base="sgd", momentum=0.9, reset_momentum=True,
              stop=1, report_every=2)
    while max(ran.state.updates) <= BATCHES:
        ran.method.step(ran.state, ran.task, ran.ctx)
    rates = [o.param_groups[0]["lr"] for o in ran.state.training.optimizers]
    assert rates == pytest.approx([0.01 if n <= BATCHES else 0.001 for n in ran.state.updates])
    assert len(set(rates)) == 2


def test_other_encodings_of_links():
    exact, half, byte = (Ran("dgl", codec=name, epochs=1) for name in ("dense_fp32", "dense_bf16", "int8"))
    assert exact.bytes("up", "dense_fp32") > 1.9 * half.bytes("up", "dense_bf16") > 1.9 * 1.9 * byte.bytes("up", "int8")
    assert "eval/accuracy_exact_links" not in exact.evaluate()
    assert "eval/accuracy_exact_links" in half.evaluate()


def test_heads_are_evaluated_one_by_one_and_together(dgl):
    figures = dgl.evaluate()
    network = dgl.state.training.network.eval()
    x, y = dgl.task.test_batch(0, 100)
    with torch.no_grad():
        scores = network.outputs(x)
    for j, name in enumerate(("eval/accuracy_module_1", "eval/accuracy_module_2", "eval/accuracy_module_3", "eval/accuracy")):
        assert figures[name] == (scores[j].argmax(1) == y).double().mean()
    together = scores[0] + 2 * scores[1] + 4 * scores[2] + 8 * scores[3]
    assert figures["eval/accuracy_ensemble"] == (together.argmax(1) == y).double().mean()


# --- wrong requests -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "params", "words"), [
    ("dgl", {"modules": 5}, "1 <= x <= 4, the units this network"),
    ("dgl", {"cuts": [1, 2]}, "cuts = .* modules - 1 = 3"),
    ("dgl", {"cuts": [2, 1, 3]}, "growing whole numbers"),
    ("dgl", {"slow_module": 5}, "modules = 4"),
    ("dgl", {"slowdown": 2.0}, "no worker is slow"),
    ("async_dgl", {"schedule": "random", "latency": 1.0}, "messages are there at once"),
    ("async_dgl", {"schedule": "round_robin", "slow_module": 1}, "'round_robin'"),
    ("async_dgl", {"recency": "oldest"}, "official_off_by_one"),
])
def test_wrong_parameters_are_refused(method, params, words):
    from tracking.errors import UserError

    with pytest.raises(UserError, match=words):
        Ran(method, **params)


def test_cuts_and_recalibrated_statistics():
    ran = Ran("dgl", modules=2, cuts=[3], bn_batches=3, epochs=1)
    assert len(ran.state.training.network.bodies[1]) == len(models.build("dgl_cnn4", (1, 8, 8), 10, 0.1, torch.Generator())[3])
    assert "eval/accuracy_bn" in ran.evaluate()


def test_a_change_of_the_rate_can_empty_the_momentum():
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    weight.grad = torch.ones(2)
    optimizer.step()
    begin_epoch(optimizer, 0.1, reset=True)
    assert "momentum_buffer" in optimizer.state[weight], "the same rate changes nothing"
    begin_epoch(optimizer, 0.02, reset=False)
    assert "momentum_buffer" in optimizer.state[weight]
    begin_epoch(optimizer, 0.01, reset=True)
    assert not optimizer.state
    assert optimizer.param_groups[0]["lr"] == 0.01
