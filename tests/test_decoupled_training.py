"""Training by local losses: exact isolation, and equality with plain training where it must hold."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.test_decoupled_networks import batch, make, seeded, sgd
from tracking.errors import UserError
from workbench.decoupled import DecoupledTraining, LocalNetwork, auxiliary_heads, split, units


@pytest.fixture
def trained():
    """Three modules of the small convolutional network, with heads, in training."""
    modules = split(units(make("dgl_cnn4", (1, 8, 8), 0.1)), (1, 2))
    x, y = batch()
    network = LocalNetwork(modules, auxiliary_heads(modules, "mlp", x, seeded(1)))
    return DecoupledTraining(network, sgd), x, y


def test_no_gradient_crosses_a_border(trained):
    """After the update of module j nobody else has a gradient, and nobody else has moved; exactly."""
    training, x, y = trained
    network, inputs = training.network, x.clone().requires_grad_(True)
    for j in range(3):
        for p in network.parameters():
            p.grad = None
        before = copy.deepcopy(network.state_dict())
        _, out = training.update(j, inputs, y)
        own = {id(p) for p in (*network.bodies[j].parameters(), *network.heads[j].parameters())}
        assert all((p.grad is not None) == (id(p) in own) for p in network.parameters())
        assert inputs.grad is None
        assert not out.requires_grad
        assert out.grad_fn is None
        moved = {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
        assert moved
        assert all(key.startswith((f"bodies.{j}.", f"heads.{j}.")) for key in moved)
        inputs = out.requires_grad_(True)


def test_no_later_weight_or_loss_reaches_an_earlier_module(trained):
    """Module 1 trains alike whatever stands behind it: other weights, another cut, nothing at all."""
    training, x, y = trained
    other = copy.deepcopy(training)
    alone = copy.deepcopy(training)
    with torch.no_grad():
        for p in other.network.bodies[1].parameters():
            p.mul_(-3)
    for _ in range(3):
        training.step(x, y)
        other.step(x, y)
        alone.update(0, x, y)
    for twin in (other, alone):
        for a, b in zip(training.network.bodies[0].parameters(), twin.network.bodies[0].parameters(), strict=True):
            assert torch.equal(a, b)
    assert not torch.equal(next(training.network.bodies[1].parameters()), next(other.network.bodies[1].parameters()))


def test_the_output_is_handed_on_as_it_was_before_the_update(trained):
    """Algorithm 1 of arXiv:1901.08164: x_j is computed once, with the weights of before."""
    training, x, y = trained
    body = copy.deepcopy(training.network.bodies[0])
    assert torch.equal(training.update(0, x, y)[1], body(x))


def test_one_module_is_plain_training_to_the_bit():
    model = make("dgl_cnn4", (1, 8, 8), 0.1)
    twin = copy.deepcopy(model)
    training, optimizer = DecoupledTraining(LocalNetwork([model], [nn.Identity()]), sgd), sgd(twin.parameters())
    for seed in range(4):
        x, y = batch(seed=seed)
        (loss,) = training.step(x, y)
        ours = F.cross_entropy(twin(x), y)
        optimizer.zero_grad()
        ours.backward()
        optimizer.step()
        assert torch.equal(loss, ours)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True))


def test_the_last_module_trains_as_if_it_were_alone_on_detached_inputs(trained):
    training, x, y = trained
    twin = copy.deepcopy(training)
    training.step(x, y)
    for j in range(2):
        _, x = twin.update(j, x, y)
    alone, optimizer = twin.network.bodies[2], twin.optimizers[2]
    optimizer.zero_grad()
    F.cross_entropy(alone(x), y).backward()
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(training.network.bodies[2].parameters(), alone.parameters(), strict=True))


def test_scores_of_heads_and_the_deployed_network(trained):
    training, x, _ = trained
    network = training.network.eval()
    scores = network.outputs(x)
    assert len(scores) == 3
    assert torch.equal(scores[-1], network(x))
    for n in (1, 2, 3):
        assert torch.equal(network.deployed(n)(x), scores[n - 1])
    shifted = network.outputs(x, lambda j, out: out * 0)
    assert torch.equal(shifted[0], scores[0])
    assert not torch.equal(shifted[1], scores[1])


def test_what_cannot_be_trained_apart_is_refused():
    layer = nn.Linear(4, 4)
    with pytest.raises(UserError, match="Modules 1 and 2 share a parameter"):
        DecoupledTraining(LocalNetwork([layer, nn.Sequential(layer)], [nn.Linear(4, 2), nn.Identity()]), sgd)
    with pytest.raises(UserError, match="Module 2 and its head have no parameters"):
        DecoupledTraining(LocalNetwork([layer, nn.ReLU()], [nn.Linear(4, 2), nn.Identity()]), sgd)
    network = LocalNetwork([layer, nn.Linear(4, 4)], [nn.Linear(4, 2), nn.Identity()])
    with pytest.raises(UserError, match="a SGD, is refused: every module gets an optimiser of its own"):
        DecoupledTraining(network, sgd(network.parameters()))
    with pytest.raises(UserError, match="2 modules and 1 heads"):
        LocalNetwork([layer, layer], [nn.Identity()])


def test_state_goes_through_a_dictionary(trained):
    training, x, y = trained
    training.step(x, y)
    twin = copy.deepcopy(training)
    training.step(x, y)
    with torch.no_grad():
        for p in twin.network.parameters():
            p.zero_()
    twin.load_state_dict(training.state_dict())
    assert [torch.equal(a, b) for a, b in zip(training.step(x, y), twin.step(x, y), strict=True)] == [True] * 3
