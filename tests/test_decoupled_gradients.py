"""Methods with one loss at the end: where delays vanish or synthetic gradients are true, they are backpropagation."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.test_state import same
from tracking.errors import UserError
from tracking.ledger import Ledger
from workbench.datasets import models
from workbench.decoupled import Border, DelayedGradients, Synthesiser, SyntheticGradients, split, units

LR = 0.05


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=LR, momentum=0.9)


def plain(parameters):
    return torch.optim.SGD(parameters, lr=LR)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batches(count: int):
    g = seeded(7)
    return [(torch.randn(10, 1, 8, 8, generator=g), torch.randint(10, (10,), generator=g)) for _ in range(count)]


def network(name: str = "cnn") -> nn.Sequential:
    return models.build(name, (1, 8, 8), 10, 0.2, seeded())


def backprop(model: nn.Module, data, optimizer=sgd) -> list[torch.Tensor]:
    opt, losses = optimizer(model.parameters()), []
    for x, y in data:
        opt.zero_grad()
        loss = F.cross_entropy(model.train()(x), y)
        loss.backward()
        opt.step()
        losses.append(loss.detach())
    return losses


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


# --- DDG and features replay --------------------------------------------------------------------------------


@pytest.mark.parametrize("modules", [1, 2, 4])
@pytest.mark.parametrize("replay", [False, True])
def test_without_delay_it_is_backpropagation_to_the_bit(modules, replay):
    """Batch statistics and momentum included; over any cut, with or without the borders' codec, which is exact."""
    model, ledger = network(), Ledger()
    twin = copy.deepcopy(model)
    bodies = split(units(twin), range(1, modules))
    borders = [Border(ledger, f"module {j}", f"module {j + 1}") for j in range(1, modules)]
    training = DelayedGradients(bodies, sgd, delay=0, replay=replay, borders=borders)
    data = batches(4)
    ours = [training.step(x, y) for x, y in data]
    assert all(torch.equal(a, b) for a, b in zip(ours, backprop(model, data), strict=True))
    assert equal(model, twin)


@pytest.mark.parametrize("replay", [False, True])
def test_one_module_is_backpropagation_whatever_the_delay(replay):
    model = network()
    twin = copy.deepcopy(model)
    training, data = DelayedGradients([twin], sgd, delay=3, replay=replay), batches(4)
    for x, y in data:
        training.step(x, y)
    backprop(model, data)
    assert equal(model, twin)


def reference(bodies, data, delay: int, replay: bool) -> None:
    """The papers' updates told with whole graphs: DDG keeps those of the forward passes, features replay makes new ones."""
    K, opts = len(bodies), [plain(b.parameters()) for b in bodies]
    inputs, graphs, errors = [[] for _ in bodies], [[] for _ in bodies], [{} for _ in bodies]
    for t, (x, y) in enumerate(data):
        for k, body in enumerate(bodies):
            x = x.detach().requires_grad_(True)
            out = body(x)
            inputs[k].append(x)
            graphs[k].append((x, out, {n: p.detach().clone() for n, p in body.named_parameters()}))
            x = out
        grads, sent = [None] * K, []
        for k in range(K):
            b = t - delay * (K - 1 - k)
            if k == K - 1:
                x, out, _ = graphs[k][t]
                out_error = torch.autograd.grad(F.cross_entropy(out, y), out)[0]
            elif b not in errors[k]:
                continue
            else:
                out_error = errors[k][b]
                x, out, _ = graphs[k][b]
                if replay:
                    x = inputs[k][b].detach().requires_grad_(True)
                    out = bodies[k](x)
            # retain_graph and allow in-place changes of weights: gradients of a linear layer need the weights of then
            *grads[k], back = torch.autograd.grad(out, [*bodies[k].parameters(), x], out_error)
            sent.append((k - 1, b, back))
        for k, b, back in sent:
            if k >= 0:
                errors[k][b] = back
        for k, gradient in enumerate(grads):
            if gradient:
                for p, g in zip(bodies[k].parameters(), gradient, strict=True):
                    p.grad = g
                opts[k].step()


class OutOfPlace(nn.Module):
    """A linear layer whose old graphs outlive an in-place update of its weights."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, generator=seeded(inputs + outputs)) / inputs**0.5)

    def forward(self, x):
        return torch.tanh(x @ self.weight.clone().T)


@pytest.mark.parametrize("delay", [1, 2])
@pytest.mark.parametrize("replay", [False, True])
def test_delayed_updates_are_the_papers(delay, replay):
    """Module k applies at step t the gradient of batch t - delay (K - k): DDG at the weights of then, features replay at today's."""
    bodies = [nn.Sequential(nn.Flatten(), OutOfPlace(64, 12)), OutOfPlace(12, 9), OutOfPlace(9, 10)]
    twins, data = copy.deepcopy(bodies), batches(9)
    training = DelayedGradients(twins, plain, delay=delay, replay=replay)
    for x, y in data:
        training.step(x, y)
    reference(bodies, data, delay, replay)
    for a, b in zip(bodies, twins, strict=True):
        torch.testing.assert_close(list(a.parameters()), list(b.parameters()), rtol=1e-5, atol=1e-6)  # one order of sums or another


def test_ddg_and_replay_differ_and_wait_for_their_first_gradient():
    made = {}
    for replay in (False, True):
        bodies = split(units(network()), (1, 2))
        start = copy.deepcopy(bodies)
        training = DelayedGradients(bodies, plain, replay=replay)
        for t, (x, y) in enumerate(batches(5)):
            training.step(x, y)
            moved = [not torch.equal(next(a.parameters()), next(b.parameters())) for a, b in zip(start, bodies, strict=True)]
            assert moved == [t >= 2, t >= 1, True]
        made[replay] = bodies
    assert not torch.equal(next(made[False][0].parameters()), next(made[True][0].parameters()))


@pytest.mark.parametrize("replay", [False, True])
def test_batch_norm_counts_a_batch_once(replay):
    bodies = split(units(network()), (2,))
    training = DelayedGradients(bodies, plain, replay=replay)
    for x, y in batches(6):
        training.step(x, y)
    norms = [m for b in bodies for m in b.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert {int(m.num_batches_tracked) for m in norms} == {6}


def test_what_waits_is_as_much_as_the_delays_say():
    """K - k batches for module k, and gradients of one step between them."""
    bodies = split(units(network()), (1, 2, 3))
    training = DelayedGradients(bodies, plain, delay=2)
    for x, y in batches(12):
        training.step(x, y)
    assert [len(kept) for kept in training.kept] == [6, 4, 2, 0]
    assert [len(errors) for errors in training.errors] == [2, 2, 2, 0]


def test_every_gradient_and_activation_is_billed():
    """Float32 with 17 or 9 bytes of header; in the first steps there is nothing to send back to the first module."""
    ledger = Ledger()
    bodies = split(units(network()), (2, 3))
    training = DelayedGradients(bodies, plain, borders=[Border(ledger, "a", "b"), Border(ledger, "b", "c")])
    for x, y in batches(5):
        training.step(x, y)
    up = [10 * 4 * 13 * 4 + 17, 10 * 26 * 4 + 9]
    rows = {(r["direction"], r["party"]): (r["bytes"], r["messages"]) for r in ledger.table()}
    assert rows == {("up", "b"): (5 * up[0], 5), ("up", "c"): (5 * up[1], 5), ("down", "b"): (5 * up[1], 5), ("down", "a"): (4 * up[0], 4)}


def test_delayed_training_goes_on_from_its_state():
    data = batches(8)

    def make():
        return DelayedGradients(split(units(network()), (1, 2)), sgd)

    training, other = make(), make()
    for x, y in data[:5]:
        training.step(x, y)
    other.load_state_dict(copy.deepcopy(training.state_dict()))
    for x, y in data[5:]:
        assert torch.equal(training.step(x, y), other.step(x, y))
    assert same(training.state_dict(), other.state_dict())
    with pytest.raises(UserError, match="0 <= delay"):
        DelayedGradients([nn.Linear(1, 1)], sgd, delay=-1)


# --- synthetic gradients ------------------------------------------------------------------------------------


class Perfect:
    """The true gradient, from the network behind the border."""

    def __init__(self, behind) -> None:
        self.behind = nn.Sequential(*behind)

    def __call__(self, x, y):
        x = x.detach().requires_grad_(True)
        return torch.autograd.grad(F.cross_entropy(self.behind(x), y), x)[0]


def test_with_perfect_synthetic_gradients_it_is_backpropagation():
    """A network without batch norm, whose statistics the oracle would move."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 15), nn.ReLU(), nn.Linear(15, 10))
    models.initialise(model, seeded())
    twin, data = copy.deepcopy(model), batches(5)
    bodies = split(units(twin), (1, 2))
    training = SyntheticGradients(bodies, [Perfect(bodies[1:]), Perfect(bodies[2:])], sgd)
    ours = [training.step(x, y) for x, y in data]
    assert all(torch.equal(a, b) for a, b in zip(ours, backprop(model, data), strict=True))
    assert equal(model, twin)
    assert training.relative_error() == 0


def test_a_module_alone_needs_no_synthesiser():
    model = network()
    twin, data = copy.deepcopy(model), batches(3)
    training = SyntheticGradients([twin], [], sgd)
    for x, y in data:
        training.step(x, y)
    backprop(model, data)
    assert equal(model, twin)
    assert training.relative_error() is None


def test_modules_take_their_gradient_from_the_synthesiser_alone():
    """Zero at first, so module 1 stands still at the first step; true ones of nobody behind it reach it later."""
    bodies = split(units(network("perceptron")), (1,))
    training = SyntheticGradients(bodies, [Synthesiser((6,), 0, seeded())], plain)
    (x, y), (x2, y2) = batches(2)
    before = copy.deepcopy(bodies)
    training.step(x, y)
    assert equal(bodies[0], before[0])
    assert not equal(bodies[1], before[1])
    frozen = copy.deepcopy(training)
    with torch.no_grad():
        for p in frozen.bodies[1].parameters():
            p.mul_(-5)
    training.step(x2, y2)
    frozen.step(x2, y2)
    assert equal(training.bodies[0], frozen.bodies[0])
    assert not equal(training.bodies[0], before[0])


def test_the_synthesiser_learns_the_gradient_that_comes_back():
    """Frozen network: squared error over the batch's mean falls, and further with labels than without."""
    bodies = split(units(network("perceptron")), (1,))
    left = {}
    for labels in (0, 10):
        training = SyntheticGradients(copy.deepcopy(bodies), [Synthesiser((6,), labels, seeded(1))],
                                      lambda p: torch.optim.Adam(p, lr=1e-3))
        training.optimizers = [None, None]  # the modules stay as they are
        for _ in range(20):
            for x, y in batches(5):
                training.step(x, y)
        training.relative_error()
        for x, y in batches(5):
            training.step(x, y)
        left[labels] = training.relative_error()
    assert left[10] < 0.8 * left[0] < 0.8


def test_synthesisers_of_images_are_the_papers():
    """Three 5x5 convolutions with c channels, two batch norms, and a linear embedding of the labels: counts by hand."""
    c = 6
    for labels in (0, 10):
        synthesiser = Synthesiser((c, 5, 5), labels, seeded())
        expected = 3 * (25 * c * c + c) + 2 * 2 * c + (labels * c + c if labels else 0)
        assert sum(p.numel() for p in synthesiser.parameters()) == expected
        x, y = torch.randn(4, c, 5, 5, generator=seeded(2)), torch.tensor([0, 3, 3, 9])
        assert torch.equal(synthesiser(x, y), torch.zeros_like(x)), "the last layer begins at zero"
        nn.init.normal_(synthesiser.output.weight, generator=seeded(3))
        with torch.no_grad():
            other = synthesiser(x, torch.tensor([1, 3, 3, 9]))
            assert torch.equal(other, synthesiser(x, y)) == (labels == 0)
    with pytest.raises(UserError, match="takes module outputs"):
        Synthesiser((3, 4))


def test_synthetic_training_goes_on_from_its_state():
    def make():
        bodies = split(units(network("perceptron")), (1,))
        return SyntheticGradients(bodies, [Synthesiser((6,), 10, seeded())], sgd)

    data, training, other = batches(6), make(), make()
    for x, y in data[:3]:
        training.step(x, y)
    other.load_state_dict(copy.deepcopy(training.state_dict()))
    for x, y in data[3:]:
        assert torch.equal(training.step(x, y), other.step(x, y))
    assert training.relative_error() == other.relative_error()
    with pytest.raises(UserError, match="one for each border"):
        SyntheticGradients([nn.Linear(1, 1)], [Perfect([])], sgd)
