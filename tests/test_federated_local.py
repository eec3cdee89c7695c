"""Local training of many clients: back ends against NumPy and torch.optim, independence of batching, keyed draws."""

from __future__ import annotations

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.federated_helpers import Clouds
from tracking.errors import UserError
from workbench.method import Context
from workbench.methods.federated._local import FlatModel, LocalSGD, Samples, draws, linear_chain
from workbench.registry import load_task

STEPS = [3, 0, 5, 1, 5]
RATES = [0.1, 0.3, 0.02, 0.5, 0.2]
DATA = np.random.default_rng(0)
X, Y = DATA.normal(size=(40, 6)), DATA.integers(0, 4, 40)


def chain(bias: bool, hidden: int = 2, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(hidden)
    sizes = [6, 7, 5][: hidden + 1]
    layers: list[nn.Module] = [nn.Flatten()]
    for a, b in zip(sizes, [*sizes[1:], 4], strict=True):
        layers += [nn.Linear(a, b, bias=bias), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).to(dtype)


def normed(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4)).to(dtype)


def convolved(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)),
        nn.Conv2d(1, 3, 2, padding=1),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(36, 4),
    ).to(dtype)


def batch_of(dtype: torch.dtype = torch.float64):
    x, y = torch.tensor(X, dtype=dtype), torch.tensor(Y)
    return lambda index: (x[index], y[index])


def problem(model: nn.Module, steps: list[int] = STEPS, B: int = 8) -> tuple[torch.Tensor, list[np.ndarray]]:
    """A model a client, and the samples of its steps."""
    generator = torch.Generator().manual_seed(3)
    P = sum(p.numel() for p in model.parameters())
    dtype = next(model.parameters()).dtype
    stack = torch.randn(len(steps), P, generator=generator, dtype=torch.float64).to(dtype) / 2
    return stack, [draws(0, i, 0, k, B, len(X)) for i, k in enumerate(steps)]


def numpy_twin(vector: np.ndarray, samples: np.ndarray, lr: float, bias: bool, hidden: int) -> tuple[np.ndarray, float]:
    """SGD of the chain from its formulae, one sample's gradient at a time."""
    sizes = [*[6, 7, 5][: hidden + 1], 4]
    shapes = [s for a, b in pairwise(sizes) for s in ([(b, a), (b,)] if bias else [(b, a)])]
    parts, at = [], 0
    for shape in shapes:
        parts.append(vector[at : at + int(np.prod(shape))].reshape(shape).copy())
        at += int(np.prod(shape))
    weights, biases = (parts[::2], parts[1::2]) if bias else (parts, [np.zeros(len(w)) for w in parts])
    total = 0.0
    for index in samples:
        dW, db = [np.zeros_like(w) for w in weights], [np.zeros_like(b) for b in biases]
        for k in index:
            h = [X[k]]
            for i, (w, b) in enumerate(zip(weights, biases, strict=True)):
                z = w @ h[-1] + b
                h.append(np.maximum(z, 0) if i < len(weights) - 1 else z)
            p = np.exp(h[-1] - h[-1].max())
            p /= p.sum()
            total -= np.log(p[Y[k]]) / len(index) / len(samples)
            d = p - np.eye(4)[Y[k]]
            for i in reversed(range(len(weights))):
                dW[i] += np.outer(d, h[i]) / len(index)
                db[i] += bias * d / len(index)
                d = (weights[i].T @ d) * (h[i] > 0)
        for w, g in zip([*weights, *biases], [*dW, *db], strict=True):
            w -= lr * g
    return np.concatenate([p.ravel() for p in (parts if bias else weights)]), total


@pytest.mark.parametrize("backend", ["matmul", "vmap", "loop"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("hidden", [0, 1, 2])
def test_every_back_end_equals_numpy_with_rates_and_steps_of_each_client(backend, bias, hidden):
    model = chain(bias, hidden)
    stack, samples = problem(model)
    want = [numpy_twin(w.numpy(), s, lr, bias, hidden) for w, s, lr in zip(stack, samples, RATES, strict=True)]
    losses = LocalSGD(model, backend=backend).train(stack, samples, batch_of(), torch.tensor(RATES))
    # float64 on both sides, 5 steps of a few hundred operations on numbers of order 1; the rates come as float32
    np.testing.assert_allclose(stack.numpy(), [w for w, _ in want], rtol=0, atol=2e-7)
    np.testing.assert_allclose(losses.numpy(), [loss for _, loss in want], atol=2e-7)
    exact, samples = problem(model)
    LocalSGD(model, backend=backend).train(exact, samples, batch_of(), torch.tensor(RATES, dtype=torch.float64))
    np.testing.assert_allclose(exact.numpy(), [w for w, _ in want], rtol=0, atol=1e-12)


def torch_twin(model: nn.Module, vector: torch.Tensor, samples: np.ndarray, lr: float, loss=F.cross_entropy):
    twin = copy.deepcopy(model).train()
    nn.utils.vector_to_parameters(vector.clone(), twin.parameters())
    optimizer, batch, losses = torch.optim.SGD(twin.parameters(), lr), batch_of(vector.dtype), []
    for index in torch.from_numpy(samples):
        x, y = batch(index)
        value = loss(twin(x), y)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    return nn.utils.parameters_to_vector(twin.parameters()).detach(), float(np.mean(losses)) if losses else 0.0


@pytest.mark.parametrize("backend", ["vmap", "loop"])
@pytest.mark.parametrize("make", [normed, convolved])
def test_norms_and_convolutions_equal_a_module_under_torch_sgd(backend, make):
    model = make()
    stack, samples = problem(model)
    want = [torch_twin(model, *row) for row in zip(stack, samples, RATES, strict=True)]
    losses = LocalSGD(model, backend=backend).train(
        stack, samples, batch_of(), torch.tensor(RATES, dtype=torch.float64)
    )
    torch.testing.assert_close(stack, torch.stack([w for w, _ in want]), rtol=0, atol=1e-12)
    np.testing.assert_allclose(losses.numpy(), [loss for _, loss in want], atol=1e-12)


@pytest.mark.parametrize("backend", ["vmap", "loop"])
def test_another_loss(backend):
    torch.manual_seed(0)
    model = nn.Linear(6, 1).double()
    loss = lambda out, y: F.binary_cross_entropy_with_logits(out.squeeze(-1), (y > 1).double())  # noqa: E731
    stack, samples = problem(model)
    want = torch.stack([torch_twin(model, w, s, 0.3, loss)[0] for w, s in zip(stack, samples, strict=True)])
    LocalSGD(model, loss, backend).train(stack, samples, batch_of(), 0.3)
    torch.testing.assert_close(
        stack, want, rtol=0, atol=1e-7
    )  # the one rate is rounded to no format; losses are smooth


@settings(max_examples=25, deadline=None)
@given(data=st.data(), backend=st.sampled_from(["matmul", "vmap", "loop"]))
def test_a_row_does_not_depend_on_the_rows_it_is_trained_with(data, backend):
    """Any subset in any order: bit for bit with ``loop``; with the others up to the order of a sum's terms, in float64."""
    dtype = torch.float32 if backend == "loop" else torch.float64
    model = chain(True, 1, dtype)
    stack, samples = problem(model)
    trainer, rates = LocalSGD(model, backend=backend), torch.tensor(RATES, dtype=dtype)
    alone = [stack[i : i + 1].clone() for i in range(5)]
    for i, row in enumerate(alone):
        trainer.train(row, samples[i : i + 1], batch_of(dtype), rates[i : i + 1])
    chosen = data.draw(st.lists(st.integers(0, 4), max_size=5, unique=True))
    together = stack[chosen]
    losses = trainer.train(together, [samples[i] for i in chosen], batch_of(dtype), rates[chosen])
    assert losses.shape == (len(chosen),)
    for row, i in zip(together, chosen, strict=True):
        if backend == "loop":
            assert torch.equal(row, alone[i][0])
        else:
            torch.testing.assert_close(row, alone[i][0], rtol=0, atol=1e-12)


def test_back_ends_agree_in_float32():
    results = []
    for backend in ("matmul", "vmap", "loop"):
        model = chain(True, 2, torch.float32)
        stack, samples = problem(model)
        LocalSGD(model, backend=backend).train(stack, samples, batch_of(torch.float32), 0.2)
        results.append(stack)
    # unit roundoff 6e-8, five steps of sums of eight to forty terms of order 1
    for other in results[1:]:
        torch.testing.assert_close(results[0], other, rtol=1e-5, atol=1e-5)


def test_the_model_given_is_left_alone_and_so_is_a_row_without_steps():
    model = convolved()
    before = copy.deepcopy(model.state_dict())
    stack, samples = problem(model)
    held = stack.clone()
    LocalSGD(model).train(stack, samples, batch_of(), 0.1)
    assert [torch.equal(a, b) for a, b in zip(stack, held, strict=True)] == [False, True, False, False, False]
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))


def test_flat_vectors_go_to_a_network_and_back():
    model = convolved()
    flat = FlatModel(model)
    v = torch.arange(float(flat.P)).double()
    assert torch.equal(flat.vector(flat.load(v)), v)
    assert torch.equal(flat.vector(flat.load(v, model)), v)
    assert torch.equal(
        torch.cat([p.reshape(2, -1) for p in flat.views(torch.stack([v, -v])).values()], 1), torch.stack([v, -v])
    )


def test_chains_are_recognised_and_nothing_else_is():
    assert linear_chain(chain(True, 2)) == ["1", "3", "5"]
    assert linear_chain(nn.Sequential(nn.Linear(2, 2), nn.Identity(), nn.ReLU(), nn.Linear(2, 2))) == ["0", "3"]
    for model in (
        normed(),
        convolved(),
        nn.Linear(2, 2),
        nn.Sequential(nn.Linear(2, 2), nn.ReLU()),
        nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)),
        nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2)),
    ):
        assert linear_chain(model) == []
    assert LocalSGD(chain(True)).backend == "matmul"
    assert LocalSGD(normed()).backend == "loop"
    assert LocalSGD(chain(True), F.multi_margin_loss).backend == "loop"


def test_wrong_back_ends_are_refused():
    for model, loss in ((normed(), F.cross_entropy), (chain(True), F.multi_margin_loss)):
        with pytest.raises(UserError, match=r"matmul.*cross-entropy"):
            LocalSGD(model, loss, "matmul")
    with pytest.raises(UserError, match="Did you mean 'vmap'"):
        LocalSGD(chain(True), backend="vmapp")


# --- draws and samples ------------------------------------------------------------------------------------

KEYS = st.tuples(st.integers(0, 2**63 - 1), st.integers(0, 2**20), st.integers(0, 2**20))


@settings(max_examples=50, deadline=None)
@given(key=KEYS, other=KEYS, steps=st.integers(0, 6), size=st.integers(1, 10_000))
def test_draws_belong_to_seed_client_and_contact(key, other, steps, size):
    first = draws(*key, steps, 16, size)
    assert first.shape == (steps, 16)
    assert ((first >= 0) & (first < size)).all()
    assert np.array_equal(draws(*key, steps + 3, 16, size)[:steps], first)  # more steps change no earlier one
    if key != other and size > 100 and steps:  # 16 numbers agree by chance with P < 1e-32
        assert not np.array_equal(draws(*other, steps, 16, size), first)


def test_draws_are_uniform():
    counts = np.bincount(
        np.concatenate([draws(1, c, k, 10, 50, 20).ravel() for c in range(10) for k in range(10)]), minlength=20
    )
    expected = counts.sum() / 20
    # chi-square of 19 degrees of freedom exceeds 60 with probability 4e-6
    assert ((counts - expected) ** 2 / expected).sum() < 60


@pytest.mark.parametrize("limit", [0, 2**28])
def test_samples_are_those_of_the_task(limit):
    task = load_task("digits/cnn")("cnn", load_task("digits/cnn").Params(train_size=200))
    task.setup(Context(torch.device("cpu"), 0))
    batch = Samples(task, limit)
    assert (batch.table is None) == (limit == 0)
    for index in (torch.arange(7), torch.tensor([3, 3, 199]), torch.arange(150)):
        for got, want in zip(batch(index), task.batch(index), strict=True):
            assert torch.equal(got, want)


def test_samples_of_vectors():
    task = Clouds()
    task.setup(Context(torch.device("cpu"), 0))
    x, y = Samples(task)(torch.tensor([5, 0]))
    assert torch.equal(x, task.train_x[[5, 0]])
    assert torch.equal(y, task.train_y[[5, 0]])
