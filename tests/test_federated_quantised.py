"""Quantised local training: against the single-model code of LUQ and AskewSGD, whatever rows are trained together."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.federated_helpers import Federation
from tests.test_federated_local import RATES, STEPS, batch_of, chain, convolved, problem
from tracking.errors import UserError
from workbench.method import derive_seed
from workbench.methods.federated._local import Job
from workbench.methods.federated._local_askew import ASKEW_CLIP, LocalAskewSGD
from workbench.methods.federated._local_luq import LocalLUQ, four_bits, luq_rows
from workbench.methods.federated.asyncsgd import AsyncSGDTraining
from workbench.methods.federated.favas import FAVASTraining
from workbench.methods.federated.quafl import QuAFLTraining
from workbench.methods.lowbit._activations import FourBitActivation
from workbench.methods.lowbit._askew_constraint import constraint, eps_bound
from workbench.methods.lowbit._levels import LEVELS, quantised_layers
from workbench.methods.lowbit.askewsgd import AskewSGD
from workbench.methods.lowbit.luq import luq, quantise_layers, quantised_modules
from workbench.methods.supervised import test as quality
from workbench.spec import resolve

JOBS = [Job(7, client, contact, progress, (0.05, 0.04, 0.07)) for client, contact, progress in
        ((0, 0, 0.0), (1, 3, 0.2), (2, 1, 0.7), (3, 0, 0.9), (2, 2, 1.0))]
WARMUP, END = 0.6, 0.02
LOCALS = {"luq": LocalLUQ, "askewsgd": LocalAskewSGD}
EXACT = {"rtol": 0, "atol": 1e-10}
"""float64 and tens of operations on numbers of order 1. A quantiser tips to the next level (a difference of 0.01) only
where its argument lies within 1e-14 of an edge."""


def twin(kind: str, model: nn.Module, vector: torch.Tensor, samples: np.ndarray, lr: float, job: Job, weights: str, layers: str, batch):
    """One client by the single-model code and torch's own optimiser; nothing is shared with the trainers but the noise's key."""
    net = copy.deepcopy(model)
    nn.utils.vector_to_parameters(vector.clone(), net.parameters())
    if kind == "luq":
        noise = torch.Generator().manual_seed(derive_seed(job.seed, "rounding", job.client, job.contact))
        net = quantise_layers(net, weights, layers=layers, generator=noise)
        optimizer = torch.optim.SGD(net.parameters(), lr)
    else:
        chosen = [m.weight for m in quantised_layers(net, layers)]
        plain = [p for p in net.parameters() if not any(p is w for w in chosen)]
        width = END ** max((job.progress - WARMUP) / (1 - WARMUP), 0)
        optimizer = AskewSGD([{"params": chosen}, {"params": plain, "weights": None}], lr=lr, weights=weights, base="sgd", momentum=0.0,
                             scale="sawb", eps=width * eps_bound(LEVELS[weights]), alpha=0.5, clip=ASKEW_CLIP)
        if width < 1 and len(samples):  # the scales are given, and received weights brought within the outer levels
            for w, scale in zip(chosen, job.scales, strict=True):
                optimizer.state[w]["scale"] = torch.tensor(scale, dtype=w.dtype)
                w.data.clamp_(LEVELS[weights][0] * scale, LEVELS[weights][-1] * scale)
    net.train()
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.track_running_stats, module.running_mean, module.running_var = False, None, None
    losses = []
    for index in torch.from_numpy(samples):
        x, y = batch(index)
        loss = F.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return nn.utils.parameters_to_vector(net.parameters()).detach(), float(np.mean(losses)) if losses else 0.0


def jobs_for(model: nn.Module, layers: str) -> list[Job]:
    """Jobs with a scale for each layer that is quantised."""
    count = len(quantised_layers(model, layers))
    return [job._replace(scales=job.scales[:count]) for job in JOBS]


@pytest.mark.parametrize("kind", LOCALS)
@pytest.mark.parametrize("backend", ["matmul", "loop"])
@pytest.mark.parametrize(("weights", "layers"), [("4bit", "all"), ("2bit", "inner"), ("ternary", "all")])
def test_a_row_is_what_the_single_model_code_makes_of_it(kind, backend, weights, layers):
    """With biases: without them few levels cancel to zero before a ReLU, and the order of a sum decides on which side."""
    model = chain(True, 2)
    stack, samples = problem(model)
    rates, jobs = torch.tensor(RATES, dtype=torch.float64), jobs_for(model, layers)
    want = [twin(kind, model, *row, weights, layers, batch_of()) for row in zip(stack, samples, RATES, jobs, strict=True)]
    losses = LOCALS[kind](model, backend=backend, weights=weights, layers=layers).train(stack, samples, batch_of(), rates, jobs)
    torch.testing.assert_close(stack, torch.stack([w for w, _ in want]), **EXACT)
    np.testing.assert_allclose(losses.numpy(), [loss for _, loss in want], atol=1e-10)


@pytest.mark.parametrize("kind", LOCALS)
def test_convolutions_and_norms_too(kind):
    model = convolved()
    stack, samples = problem(model)
    jobs = jobs_for(model, "all")
    want = [twin(kind, model, *row, "4bit", "all", batch_of()) for row in zip(stack, samples, RATES, jobs, strict=True)]
    trainer = LOCALS[kind](model, weights="4bit", layers="all")
    assert trainer.backend == "loop"
    trainer.train(stack, samples, batch_of(), torch.tensor(RATES, dtype=torch.float64), jobs)
    torch.testing.assert_close(stack, torch.stack([w for w, _ in want]), **EXACT)


@pytest.mark.parametrize("kind", LOCALS)
@settings(max_examples=10, deadline=None)
@given(chosen=st.lists(st.integers(0, 4), max_size=5, unique=True), backend=st.sampled_from(["matmul", "loop"]))
def test_a_row_does_not_depend_on_the_rows_it_is_trained_with(kind, chosen, backend):
    trainer = LOCALS[kind](chain(True, 1), backend=backend, layers="all")
    stack, samples = problem(chain(True, 1))
    jobs = jobs_for(chain(True, 1), "all")
    alone = [stack[i : i + 1].clone() for i in range(5)]
    for i, row in enumerate(alone):
        trainer.train(row, samples[i : i + 1], batch_of(), RATES[i], [jobs[i]])
    together, rates = stack[chosen], torch.tensor([float(torch.tensor(RATES[i])) for i in chosen], dtype=torch.float64)
    trainer.train(together, [samples[i] for i in chosen], batch_of(), rates, [jobs[i] for i in chosen])
    for row, i in zip(together, chosen, strict=True):
        torch.testing.assert_close(row, alone[i][0], rtol=0, atol=1e-7)  # the rate alone goes through float32


@pytest.mark.parametrize("backend", ["matmul", "loop"])
def test_whether_inputs_are_signed_is_forgotten_between_jobs(backend):
    """Signed inputs have twice the step: a client with positive ones would get the other's quantiser."""
    model, signs = chain(True, 1), {0: -1.0, 1: 1.0}
    stack, samples = problem(model, [2, 2])

    def batch(index):
        x, y = batch_of()(index)
        return x.abs() * signs[int(index[0] >= 20)], y

    samples = [samples[0] % 20, samples[1] % 20 + 20]
    trainer = LocalLUQ(model, backend=backend, layers="all")
    alone = stack[1:].clone()
    trainer.train(alone, samples[1:], batch, 0.1, JOBS[1:2])
    for rows in (slice(0, 1), slice(1, 2)):
        trainer.train(stack[rows], samples[rows], batch, 0.1, JOBS[rows])
    assert torch.equal(stack[1], alone[0])
    used = [m.input.signed.item() for m in trainer.modules]
    assert used == ([False] * 2), "the last job's inputs were not negative"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_four_bits_of_many_rows_are_those_of_the_module(dtype):
    g = torch.Generator().manual_seed(0)
    modules, signed = [FourBitActivation().to(dtype) for _ in range(3)], torch.zeros(3, dtype=torch.bool)
    for scale, shift in ((1.0, 5.0), (1.0, 0.0), (0.0, 0.0), (1e-3, 1e-3)):
        x = (scale * torch.randn(3, 4, 5, generator=g, dtype=torch.float64) + shift * torch.tensor([0.0, 1, 1])[:, None, None]).to(dtype)
        got = four_bits(x, signed)
        assert torch.equal(got, torch.stack([m(row) for m, row in zip(modules, x, strict=True)]))
        assert signed.tolist() == [bool(m.signed) for m in modules]


def test_clients_see_gradients_without_bias():
    """Mean over 400 contacts of one step of LUQ with the weights' and inputs' rounding left as it is: that of exact signals."""
    model, step = chain(False, 0), 0.5
    stack, samples = problem(model, [1])
    n = 400
    trainer, jobs = LocalLUQ(model, layers="all"), [Job(0, 0, c, 0.0) for c in range(n)]
    rows = stack.repeat(n, 1)
    trainer.train(rows, samples * n, batch_of(), step, jobs)
    net = quantise_layers(copy.deepcopy(model), "4bit", layers="all", samples=0)
    nn.utils.vector_to_parameters(stack[0].clone(), net.parameters())
    x, y = batch_of()(torch.from_numpy(samples[0][0]))
    loss = F.cross_entropy(net.train()(x), y)
    exact = stack[0] - step * torch.cat([g.view(-1) for g in torch.autograd.grad(loss, list(net.parameters()))])
    error = rows.std(0) / n**0.5
    assert ((rows.mean(0) - exact).abs() <= 5 * error + 1e-12).all()  # 24 coordinates: passed by chance once in 70,000
    assert (error > 0).all()


def test_constraints_draw_weights_to_levels_as_time_goes_by():
    model, found, levels = chain(True, 1), [], torch.tensor(LEVELS["4bit"], dtype=torch.float64)
    trainer = LocalAskewSGD(model, layers="all")
    for progress in (0.1, 0.8, 1.0):
        stack, samples = problem(model, [200])
        scales = trainer.measured(stack[0])
        trainer.train(stack, samples, batch_of(), 0.02, [Job(0, 0, 0, progress, scales)])
        views = trainer.flat.views(stack[0])
        weights = [views[f"{name}.weight"].flatten() / s for name, s in zip(trainer.names, scales, strict=True)]
        found.append(torch.cat([constraint(w, levels)[0] for w in weights]))
        assert max(w.abs().max() for w in weights) <= 8 + 1e-9 or not trainer.constrains(progress)
    assert found[0].mean() > 3 * found[1].mean() > 3 * found[2].mean()
    assert trainer.width(WARMUP) == 1
    assert trainer.width(1.0) == pytest.approx(END)


# --- in a federation --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LOCALS)
@pytest.mark.parametrize("cls", [FAVASTraining, AsyncSGDTraining, QuAFLTraining], ids=lambda c: c.id)
def test_the_replay_trains_each_job_as_its_own_client_would(kind, cls, monkeypatch):
    f = Federation(cls, local=kind, quantised_layers="all", backend="loop", clients=5)
    trace, inner, seen = f.method.schedule, f.method.train, []

    def watched(request, ctx):
        starts = request.stack.clone()
        losses = inner(request, ctx)
        for start, end, job in zip(starts, request.stack, request.jobs, strict=True):
            at = int(np.flatnonzero((trace.client == job.client) & (trace.contact == job.contact))[0])
            steps = int(trace.steps[at])
            progress = trace.began[at] / 100.0
            scales = f.state.scales if kind == "askewsgd" and progress > WARMUP else ()
            assert job == Job(0, job.client, job.contact, progress, scales)
            samples = f.samples(job.client, job.contact, steps)
            want, _ = twin(kind, f.net, start, samples, f.method.client_lr(), job, "4bit", "all", f.task.batch)
            torch.testing.assert_close(end, want, rtol=0, atol=1e-6)  # the same operations; the rate of fused steps in float32
            seen.append(at)
        return losses

    monkeypatch.setattr(f.method, "train", watched)
    f.run()
    assert sorted(seen) == list(range(len(trace.client)))
    assert len(f.state.scales) == (2 if kind == "askewsgd" and (trace.began > WARMUP * 100).any() else 0)


@pytest.mark.parametrize("kind", LOCALS)
def test_what_is_evaluated_is_the_quantised_network(kind):
    f = Federation(FAVASTraining, local=kind, quantised_layers="all", horizon=300.0, lr=0.3)
    f.run()
    figures = f.method.evaluate(f.state, f.task, f.ctx)
    model = f.method.local.flat.load(f.state.server, f.task.build_model(f.ctx))
    assert figures["eval/accuracy_latent"] == quality(model, f.task, f.ctx)["eval/accuracy"] > 0.3
    deployed = f.method.local.deployed(model, f.state.scales)
    if kind == "luq":
        assert [m.quantised_weight().unique().numel() <= 17 for m in quantised_modules(deployed)] == [True, True]
        deployed.train()(f.task.train_x)  # a batch from which the ranges of activations are taken
        deployed.eval()
    else:
        assert all(m.weight.unique().numel() <= 17 for m in quantised_layers(deployed, "all"))
    assert figures["eval/loss"] == pytest.approx(quality(deployed, f.task, f.ctx)["eval/loss"], rel=0.02)
    assert figures["eval/accuracy"] > 0.3  # chance is 0.25; the levels' scale holds such small layers back
    assert figures["eval/loss"] != figures["eval/loss_latent"]


def test_scales_are_fixed_once_by_the_servers_model():
    f = Federation(FAVASTraining, local="askewsgd", quantised_layers="all", horizon=300.0, clients=5)
    seen, trace = [], f.method.schedule
    for _ in f:
        before = f.state.server
        seen.append(f.state.scales)
    first = next(t for t, scales in enumerate(seen) if scales)
    rows = slice(trace.offsets[first], trace.offsets[first + 1])
    assert (trace.began[rows] > WARMUP * 300.0).any()
    assert not any((trace.began[: rows.start] > WARMUP * 300.0).tolist())
    assert set(seen[first:]) == {seen[first]}
    again = Federation(FAVASTraining, local="askewsgd", quantised_layers="all", horizon=300.0, clients=5)
    for _ in zip(range(first), again, strict=False):
        before = again.state.server
    assert seen[first] == again.method.local.measured(before)


def test_formats_of_the_energy_model_are_those_of_the_training():
    plans = {kind: Federation(FAVASTraining, local=kind, quantised_layers="all") for kind in ("sgd", "luq", "askewsgd")}
    formats = {}
    for kind, f in plans.items():
        _, shape, plan = f.method.modelled(f.state, f.task)
        assert shape == (4, 6)
        formats[kind] = [precision for _, precision in plan.overrides]
    assert formats["sgd"] == []
    assert [(p.weights, p.activations, p.signals, p.latent) for p in formats["luq"]] == [("int5", "int4", "int4", "fp32")] * 2
    assert [(p.weights, p.projection_ops) for p in formats["askewsgd"]] == [("fp32", 4)] * 2


@pytest.mark.parametrize(("params", "said"), [
    ({"local": "luq", "backend": "vmap"}, "backend = 'vmap' is refused. Allowed: 'auto', 'matmul', 'loop' with local = 'luq'"),
    ({"upload": "levels"}, "upload = 'levels' is refused. Allowed: 'levels' with local = 'askewsgd' alone"),
    ({"upload": "levels", "local": "luq"}, "upload = 'levels' is refused"),
    ({"local": "lucq"}, "Did you mean 'luq'"),
    ({"askew_warmup": 1.0}, "askew_warmup = 1.0"),
])
def test_contradictions_are_refused(params, said):
    with pytest.raises(UserError, match=said):
        resolve("favas", "digits/perceptron", params)


def test_a_network_without_inner_layers_says_what_to_do():
    for kind in LOCALS:
        with pytest.raises(UserError, match=f"quantised_layers = 'inner' leaves no layer .* local = '{kind}'. Allowed here: 'all'"):
            Federation(FAVASTraining, local=kind)
    with pytest.raises(UserError, match="needs the jobs"):
        LocalLUQ(chain(True), layers="all").train(*problem(chain(True)), batch_of(), 0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_luq_of_many_rows_is_luq_of_each_bit_for_bit(dtype):
    g, rows = torch.Generator().manual_seed(0), 6
    G = torch.randn(rows, 40, 7, generator=g, dtype=torch.float64) * torch.logspace(-30, 3, rows).view(-1, 1, 1).double()
    G[1] = 0.0
    G[2] = G[2].sign() * 2.0 ** torch.randint(-9, 3, (40, 7), generator=g)  # on levels, on their edges, and below
    G[3, :, 0] = 0.0
    G = G.to(dtype)
    draws = torch.stack([torch.rand(40, 7, generator=torch.Generator().manual_seed(i), dtype=dtype) for i in range(rows)])
    want = torch.stack([luq(row, 1, torch.Generator().manual_seed(i)) for i, row in enumerate(G)])
    assert torch.equal(luq_rows(G, draws), want)
    assert want[0].count_nonzero() > 100


def test_rows_without_a_step_stay_and_draw_nothing():
    stack, samples = problem(chain(True, 1), STEPS)
    held = stack[1].clone()
    LocalLUQ(chain(True, 1), layers="all").train(stack, samples, batch_of(), 0.1, JOBS)
    assert torch.equal(stack[1], held)
    drawn = luq(torch.ones(3, 3), 1, torch.Generator().manual_seed(1))
    assert torch.equal(drawn, torch.ones(3, 3)), "a gradient on a level is not rounded"
