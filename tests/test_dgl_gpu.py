"""Decoupled learning on a GPU: the CPU's first steps, the same codes, messages that stay there, and modules that share it."""

from __future__ import annotations

import pytest
import torch

from tests.test_decoupled_parcels import joined
from tests.test_dgl_methods import BATCHES, PARAMS, SIZES, TASK
from tracking.codecs.registry import codec
from workbench.decoupled import OnlineVQ
from workbench.decoupled.parcels import kind_of
from workbench.decoupled.processes import start
from workbench.decoupled.vq_codec import LinkQuantiser, tally
from workbench.method import Context
from workbench.spec import resolve
from workbench.state import snapshot, tensors

pytestmark = pytest.mark.gpu
GPU = torch.device("cuda:0")
VQ = {"head": "mlp", "codewords": 16, "group_size": 1, "sync_every": 3, "buffer": 4}


@pytest.fixture(autouse=True)
def full_precision():
    """Convolutions in float32: with TF32, which PyTorch allows by itself, products have 10 bits."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def stepped(method: str, device: str, steps: int, **params):
    """The method, its State, and its reports of one batch each."""
    job = resolve(method, TASK, PARAMS | {"report_every": 1} | params, task_params=SIZES, seed=0, device="cpu", threads=1)
    ctx = Context(device=torch.device(device), seed=0)
    job.task.setup(ctx)
    state = job.method.init(job.task, ctx)
    found = [job.method.step(state, job.task, ctx) for _ in range(steps)]
    return job, state, ctx, found


def activations(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).relu_()


@pytest.mark.parametrize(("method", "params"), [
    ("dgl", {"head": "mlp"}), ("dgl", {"head": "mlp_sr", "codec": "int8"}), ("sequential_greedy", {"head": "mlp"}),
    ("decoupled_backprop", {}), ("ddg", {}), ("features_replay", {}), ("dni", {}), ("cdni", {}),
], ids=str)
def test_first_steps_are_those_of_the_cpu(method, params):
    """The first loss is the same arithmetic in another order: sums of some hundred float32 terms, relative error below 1e-4, ten times
    more through batch norms. Later ones also have Adam's quotients of gradients that nearly vanish: 3 %. Bytes are the same.
    """
    runs = {device: stepped(method, device, 3, **params) for device in ("cpu", "cuda:0")}
    (_, cpu, first, ours), (_, gpu, second, theirs) = runs.values()
    losses = [[r["train/loss"] for r in found] for found in (ours, theirs)]
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-3)
    assert losses[0] == pytest.approx(losses[1], rel=3e-2)
    assert first.ledger.table() == second.ledger.table()
    assert cpu.now == gpu.now
    assert all(p.device == GPU for module in modules_of(gpu) for p in module.parameters())


def modules_of(state) -> list[torch.nn.Module]:
    training = state.training
    return [training.network] if hasattr(training, "network") else list(training.bodies)


@pytest.mark.parametrize("words", [16, 256, 300])
def test_codes_are_those_of_the_cpu_but_for_ties(words):
    """Where codes differ, both codewords are equally near: distances of 16 float32 terms agree to 1e-5 of the squared norms."""
    x, book = activations(16, 64, 16, 16), activations(4, words, 16)
    vq = LinkQuantiser(book)
    here, there = vq.codes(x), vq.codes(x.to(GPU)).cpu()
    vectors = x.movedim(1, -1).reshape(-1, 4, 16).double()

    def distance(codes: torch.Tensor) -> torch.Tensor:
        return (vectors - book.double()[torch.arange(4), codes]).square().sum(-1)

    scale = vectors.square().sum(-1) + book.double().square().sum(-1).amax()
    assert ((distance(here) - distance(there)).abs() <= 1e-5 * scale).all()
    assert (here == there).double().mean() > 0.999
    parcel = vq.pack(x.to(GPU))
    assert parcel[1].device == GPU
    assert joined(parcel) == vq.payload(x, there)
    assert torch.equal(vq.unpack(*parcel).cpu(), vq.look_up(there, tuple(x.shape)))


@pytest.mark.parametrize("name", ["dense_fp32", "dense_fp16", "dense_bf16", "int8", "int4"])
def test_parcels_of_the_gpu_are_the_payloads_of_the_cpu(name):
    x, ours = activations(8, 16, 8, 8), codec(name)
    parcel = kind_of(ours).pack(x.to(GPU))
    assert parcel[1].device == GPU
    assert joined(parcel) == ours.encode(x)
    assert torch.equal(kind_of(ours).unpack(*parcel).cpu(), ours.decode(ours.encode(x)))


def test_codebooks_learn_the_same():
    """With codes given, three updates on either device, revival included: sums of some hundred float32 terms in two orders."""
    x = activations(16, 32, 8, 8)
    here, there = (OnlineVQ(32, 2, 64, seed=3) for _ in range(2))
    here.begin(x)
    there.begin(x.to(GPU))
    for _ in range(3):
        codes = LinkQuantiser(here.codebook).codes(x)
        here.update(x, codes)
        found = tally(x.to(GPU), codes.to(GPU), there.codebook)
        there.update(x.to(GPU), codes.to(GPU), found)
        torch.testing.assert_close(there.codebook.cpu(), here.codebook, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(there.count.cpu(), here.count, rtol=1e-5, atol=1e-5)
    assert here.movement == pytest.approx(there.movement, rel=1e-2)


def test_asynchronous_training_with_quantised_buffers_stays_on_the_gpu_and_goes_on_from_its_state():
    job, state, ctx, found = stepped("async_dgl_vq", "cuda:0", 8, **VQ)
    messages = [item for buffer in state.line.buffers for item in buffer.items]
    assert messages
    assert all(part[1].device == GPU for message in messages for part in message[:2])
    assert all(0 < f["train/vq_error"] < 1 for f in found if "train/vq_error" in f)
    figures = job.method.evaluate(state, job.task, ctx)
    assert 0 <= figures["eval/accuracy"] <= 1
    assert any(t.device == GPU for t in tensors(snapshot(state)))
    _, on_cpu, _, _ = stepped("async_dgl_vq", "cpu", 8, **VQ)
    assert [b.nbytes for b in state.line.buffers] == [b.nbytes for b in on_cpu.line.buffers], "bytes depend on shapes alone"


def test_a_step_does_not_wait_for_the_gpu():
    """Between reports: with :func:`torch.cuda.set_sync_debug_mode` a wait is an error. The first steps fill caches and codebooks."""
    for method, params in (("dgl", {"head": "mlp"}), ("decoupled_backprop", {}), ("dni", {}), ("async_dgl_vq", VQ | {"sync_every": 1000})):
        job, state, ctx, _ = stepped(method, "cuda:0", 4, **params)
        feed = state.feed
        if feed.batch == 0:
            job.method.step(state, job.task, ctx)  # an epoch's order goes to the device
        torch.cuda.set_sync_debug_mode("error")
        try:
            if hasattr(state, "line"):
                for _ in range(4):
                    state.line.turn(*working(job, state, ctx))
            else:
                x, y = feed.next(job.task, 24)
                job.method.train(state, x, y)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def working(job, state, ctx):
    """Work and arrival of a turn, as in ``AsynchronousMethod.step``, without its report."""
    def work(j, message):
        x, y = state.channels[j - 1].receive(message, ctx.device) if j else state.feed.next(job.task, 24)
        _, out = state.training.update(j, x, y)
        return state.channels[j].send(out, y) if j + 1 < job.method.params.modules else None

    return work, lambda j, message: state.channels[j].arrive(message)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("method", "params"), [("dgl", {"head": "mlp"}), ("async_dgl_vq", VQ)], ids=str)
def test_two_processes_share_the_gpu(method, params, tmp_path):
    with start(method, TASK, PARAMS | {"modules": 2} | params, task_params=SIZES, folder=tmp_path / "run", device="cuda") as running:
        outcome = running.wait(250)
    assert (outcome.status, outcome.reason) == ("finished", "")
    assert [line["updates"] for line in outcome.modules] == [2 * BATCHES] * 2
    assert 0 <= outcome.accuracy["eval/accuracy"] <= 1
    assert all(v.isfinite().all() for j in range(2) for v in outcome.state_dict(j)["body"].values())
