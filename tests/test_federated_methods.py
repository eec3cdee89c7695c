"""Federated methods: where one becomes another, each rule alone in a loop, and what is refused before work."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.federated_helpers import ROUNDING, Clouds, Federation
from tracking.errors import UserError
from workbench.federation.clock import Speeds
from workbench.federation.reweighting import aggregation_weights, client_moments, measured_moments
from workbench.federation.trace import contacts
from workbench.methods.federated._aggregator import Work
from workbench.methods.federated.asyncsgd import AsyncSGD, AsyncSGDTraining
from workbench.methods.federated.favas import FAVAS, FAVASTraining
from workbench.methods.federated.fedasync import FedAsync, FedAsyncTraining
from workbench.methods.federated.fedavg import FedAvg, FedAvgTraining
from workbench.methods.federated.fedbuff import FedBuff, FedBuffTraining
from workbench.methods.federated.fedfix import FedFixTraining, WeightedAggregation
from workbench.methods.federated.quafl import QuAFL, QuAFLTraining
from workbench.spec import resolve

EQUAL = {"step_law": "fixed", "slow_fraction": 0.0, "fast_time": 1.0}


def sequential(f: Federation) -> torch.Tensor:
    """One model that each job of the trace trains in turn."""
    trace, model = f.method.schedule, f.first()
    for i, E, c in zip(trace.client.tolist(), trace.steps.tolist(), trace.contact.tolist(), strict=True):
        model = f.trained(model, i, c, E, f.method.params.lr)
    return model


def same(a: torch.Tensor, b: torch.Tensor) -> None:
    assert not torch.allclose(a, Federation(FedAvgTraining).first(), atol=0.01), "something was learnt"
    torch.testing.assert_close(a, b, **ROUNDING)


# --- where one method becomes another ---------------------------------------------------------------------


def test_fedavg_with_one_client_is_plain_sgd():
    f = Federation(FedAvgTraining, clients=1, selected=1)
    same(f.run(), sequential(f))


def test_asyncsgd_with_one_job_is_sequential_sgd():
    f = Federation(AsyncSGDTraining, jobs=1)
    assert len(np.unique(f.method.schedule.client)) == 4
    same(f.run(), sequential(f))


def test_fedasync_with_one_client_that_replaces_the_model_is_sequential_sgd():
    f = Federation(FedAsyncTraining, clients=1, mixing=1.0, staleness="constant")
    same(f.run(), sequential(f))


def test_fedbuff_with_a_buffer_of_all_equal_clients_is_fedavg_of_all():
    buffered = Federation(FedBuffTraining, buffer=4, **EQUAL)
    averaged = Federation(FedAvgTraining, selected=4, **EQUAL)
    assert buffered.method.schedule.time.tolist() == averaged.method.schedule.time.tolist()
    same(buffered.run(), averaged.run())


def test_fedfix_in_the_scheme_of_fedavg_is_fedavg_of_all():
    fixed = Federation(FedFixTraining, scheme="fedavg")
    same(fixed.run(), Federation(FedAvgTraining, selected=4, interaction_time=0.0).run())


def test_fedfix_as_fedbuff_with_equal_clients_is_fedbuff():
    fixed = Federation(FedFixTraining, scheme="fedbuff", buffer=4, **EQUAL)
    same(fixed.run(), Federation(FedBuffTraining, buffer=4, interaction_time=0.0, **EQUAL).run())


@pytest.mark.parametrize("reweighting", ["stochastic", "deterministic", "estimated"])
def test_favas_with_equal_clients_and_one_step_averages_one_step_models(reweighting):
    """Fixed steps of one unit, K = 1 and 7 units a server step: ``E ^ K`` is always 1, hence every alpha."""
    f = Federation(FAVASTraining, selected=4, local_steps=1, reweighting=reweighting, **EQUAL)
    trace, w = f.method.schedule, f.first()
    assert (trace.steps == 1).all()
    for t in range(len(trace.time)):
        k = slice(trace.offsets[t], trace.offsets[t + 1])
        models = [f.trained(w, int(i), int(c), 1, 0.1) for i, c in zip(trace.client[k], trace.contact[k], strict=True)]
        w = (w + sum(models)) / 5
    same(f.run(), w)


# --- unbiasedness of FAVAS --------------------------------------------------------------------------------


@pytest.mark.parametrize("law", ["exponential", "geometric", "fixed"])
@pytest.mark.parametrize("kind", ["stochastic", "deterministic", "estimated"])
def test_a_delivered_model_is_unbiased_whatever_the_speed(kind, law):
    """On a loss of constant gradient g, ``E[u_i - w_init] = -eta g`` for fast and slow clients: Monte Carlo over contacts.

    With ``w = w_init - eta E g`` after E steps, ``u_i - w_init = -eta (E / alpha_i) g``: the mean of ``E / alpha`` is to
    be 1. The divisors of the estimate settle: its first half is left out, and its bias, that of a ratio, is of the
    order 1/contacts.
    """
    n, s, K, eta = 9, 3, 4, 0.5
    speeds = Speeds.two_classes(n, slow_fraction=1 / 3, fast=2.0, slow=16.0, law=law)
    trace = contacts(speeds, selected=s, K=K, waiting=4.0, interaction=3.0, server_steps=2000, seed=1)
    moments = client_moments(speeds, selected=s, K=K, D=7.0)
    rule = FAVAS(kind, n, p_positive=torch.from_numpy(moments.positive), mean_steps=torch.from_numpy(moments.mean))
    g, w = torch.tensor([1.0, -2.0], dtype=torch.float64), torch.tensor([0.3, 0.4], dtype=torch.float64)
    ratio = []
    for t in range(len(trace.time)):
        k = slice(trace.offsets[t], trace.offsets[t + 1])
        E = torch.from_numpy(trace.steps[k].astype(np.int64))
        work = Work(torch.from_numpy(trace.client[k].astype(np.int64)), E, torch.zeros_like(E))
        ratio.append(E / rule.alpha(work))
        server = rule.aggregate(w, w.expand(s, 2), w - eta * E[:, None] * g, work)
        torch.testing.assert_close((s + 1) * server - (s + 1) * w, -eta * ratio[-1].sum() * g)  # sum of u_i - w_init
    ratio, mean = torch.cat(ratio).numpy(), speeds.mean[trace.client]
    late = np.arange(len(ratio)) > (len(ratio) / 2 if kind == "estimated" else -1)
    for speed in (2.0, 16.0):
        values = ratio[late & (mean == speed)]
        error = values.std() / np.sqrt(len(values))
        assert abs(values.mean() - 1) <= 5 * error + 1e-9 + 5e-3 * (kind == "estimated")
        assert error < 0.06


def test_without_reweighting_fast_clients_would_count_more():
    """The test above could fail: plain differences of fast clients are several times those of slow ones."""
    speeds = Speeds.two_classes(9, slow_fraction=1 / 3)
    moments = measured_moments(
        contacts(speeds, selected=3, K=4, waiting=4.0, interaction=3.0, server_steps=2000, seed=1)
    )
    assert moments.mean[speeds.mean == 2].mean() > 2 * moments.mean[speeds.mean == 16].mean()


def test_favas_takes_the_laws_of_the_trace_where_there_is_no_closed_form(tmp_path):
    kept = Federation(FAVASTraining, retain_partial_step=True, horizon=3000.0)
    assert np.array_equal(kept.state.aggregator.mean_steps, measured_moments(kept.method.schedule).mean)
    file = tmp_path / "times.csv"
    file.write_text("client,duration\n" + "".join(f"{i},{1 + i}\n{i},{2 + i}\n" for i in range(4)))
    recorded = Federation(FAVASTraining, step_law="recorded", step_times=str(file))
    assert recorded.method.client_speeds.mean.tolist() == [1.5, 2.5, 3.5, 4.5]
    assert np.array_equal(recorded.state.aggregator.p_positive, measured_moments(recorded.method.schedule).positive)
    assert torch.isfinite(recorded.run()).all()


# --- QuAFL against the loop of its simulator --------------------------------------------------------------


@pytest.mark.parametrize("coded", [False, True])
def test_quafl_equals_its_authors_loop(coded):
    """``p = 1/(s+1)``; the server decodes with its model, a client with its own; a client keeps its own drift, no reset."""
    b, side, s = 12, 1e-3, 2
    ways = {"upload": "lattice", "download": "lattice", "lattice_bits": b, "lattice_side": side} if coded else {}
    f = Federation(QuAFLTraining, clients=5, selected=s, horizon=140.0, **ways)

    def sent(x: np.ndarray, key: np.ndarray) -> np.ndarray:
        if not coded:
            return x
        code = np.remainder(np.round(x / side), 2**b)
        return side * (code + 2**b * np.round((key / side - code) / 2**b))

    trace, p = f.method.schedule, 1 / (s + 1)
    w = f.first().numpy().astype(np.float64)
    own, contact = [w] * 5, [0] * 5
    for t, _ in enumerate(f):
        new, chosen = p * w, []
        for k in range(trace.offsets[t], trace.offsets[t + 1]):
            i = int(trace.client[k])
            mine = (
                f.trained(torch.tensor(own[i]).float(), i, contact[i], int(trace.steps[k]), 0.1 * (s + 1) / s)
                .numpy()
                .astype(np.float64)
            )
            contact[i] += 1
            new = new + (1 - p) / s * sent(mine, w)
            chosen.append((i, mine))
        for i, mine in chosen:
            own[i] = p * sent(w, mine) + (1 - p) * mine
        w = new
        # rounding of the training may tip a value to the next cell of the lattice, of size 1e-3
        np.testing.assert_allclose(f.state.server.numpy(), w, rtol=0, atol=3e-3 if coded else 2e-5)
        for i, _ in chosen:
            np.testing.assert_allclose(f.state.own[i].numpy(), own[i], rtol=0, atol=3e-3 if coded else 2e-5)
    assert max(np.abs(own[i] - w).max() for i in range(5)) > 0.01, "clients are somewhere else than the server"
    if coded:
        down = [r for k, r in f.ctx.ledger.rows.items() if k.direction == "down" and k.codec == "lattice"]
        assert sum(r.messages for r in down) == len(trace.client)


# --- each rule alone --------------------------------------------------------------------------------------

RULES = {
    "fedavg": FedAvg(),
    "fedbuff": FedBuff(staleness="sqrt"),
    "asyncsgd": AsyncSGD(patience=2),
    "fedasync": FedAsync(0.3),
    "fedfix": WeightedAggregation(torch.full((8,), 0.2)),
    "quafl": QuAFL(),
    "favas": FAVAS("estimated", 8),
}


@pytest.mark.parametrize("name", RULES)
def test_a_rule_serves_a_loop_of_ones_own(name):
    """Eight clients with quadratics of different centres; a loop of nine lines finds the mean of the centres.

    The loop is somebody else's: models are vectors, work is drawn by hand, nothing of the bench but the rule.
    """
    rule, rng = RULES[name], np.random.default_rng(0)
    centres = torch.from_numpy(rng.normal(size=(8, 3)))
    server = torch.full((3,), 5.0, dtype=torch.float64)
    path = []
    for _ in range(600):
        clients = torch.from_numpy(rng.choice(8, 4, replace=False))
        steps = torch.from_numpy(rng.integers(1, 5, 4))
        start = server.expand(4, 3).clone()
        end = centres[clients] + (start - centres[clients]) * 0.99 ** steps.double().unsqueeze(1)
        server = rule.aggregate(server, start, end, Work(clients, steps, torch.zeros(4, dtype=torch.int64)))
        path.append(server)
    # stationary noise of the last 100 models: four of eight centres at a time, steps of a few per cent
    torch.testing.assert_close(torch.stack(path[-100:]).mean(0), centres.mean(0), rtol=0, atol=0.15)


def test_rules_have_their_formulae():
    server, start = torch.zeros(2), torch.zeros(2, 2)
    end = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    work = Work(torch.tensor([1, 0]), torch.tensor([4, 0]), torch.tensor([3, 0]))

    def step(rule) -> list[float]:
        return rule.aggregate(server, start, end, work).tolist()

    assert step(FedAvg(0.5)) == [0.25, 0.5]
    assert step(FedBuff(staleness="sqrt")) == [0.25, 1.0]
    assert step(AsyncSGD()) == [1.0, 2.0]
    assert step(AsyncSGD(patience=1.5)) == [0.5, 2.0]
    assert step(FedAsync(0.5, "constant")) == [0.25, 1.0]
    assert step(FedAsync(1.0, "polynomial", a=0.5)) == [0.0, 2.0]
    assert step(FedAsync(0.5, "hinge", a=1.0, b=2.0)) == [0.125, 1.0]
    assert step(WeightedAggregation(torch.tensor([1.0, 3.0]), 0.5)) == [1.5, 1.0]
    assert step(QuAFL()) == pytest.approx([1 / 3, 2 / 3])
    # the second client did no step: it delivers its start, whatever stands in ``end``
    favas = FAVAS("stochastic", 2, p_positive=torch.tensor([0.5, 0.5]))
    assert step(favas) == pytest.approx([1 / 2 / 3, 0])
    assert favas.alpha(work).tolist() == [2.0, np.inf]
    estimated = FAVAS("estimated", 2)
    step(estimated)
    assert estimated.alpha(Work(torch.tensor([1]), torch.tensor([2]), torch.tensor([0]))).tolist() == [3.0]
    twin = FAVAS("estimated", 2)
    twin.load_state_dict(estimated.state_dict())
    assert step(twin) == step(estimated)


def test_fedfix_weights_serve_the_importances_of_a_trace():
    f = Federation(FedFixTraining, dt=10.0, step_law="fixed", slow_fraction=0.5, horizon=960.0)
    d = f.state.aggregator.d.numpy()
    assert d == pytest.approx(aggregation_weights("fedfix", f.method.client_speeds.mean * 3, dt=10.0))
    served = d * f.method.schedule.deliveries()
    assert served == pytest.approx(np.full(4, served[0]), rel=0.05)


# --- what is refused before any work ----------------------------------------------------------------------

REFUSED = [
    ("favas", {"clients": 5, "selected": 6}, r"selected = 6 is refused. Allowed: 1 <= x <= clients = 5\."),
    ("quafl", {"clients": 5, "selected": 6}, "selected = 6 .* clients = 5"),
    ("fedavg", {"clients": 5, "selected": 6}, "selected = 6 .* clients = 5"),
    ("fedbuff", {"clients": 5, "buffer": 6}, "buffer = 6 .* clients = 5"),
    ("fedfix", {"clients": 5, "buffer": 6, "scheme": "fedbuff"}, "buffer = 6 .* clients = 5"),
    ("favas", {"horizon": 6.9}, r"horizon = 6.9 is refused. Allowed: x >= 7, "),
    ("fedavg", {"horizon": 42.9, "step_law": "fixed"}, "horizon = 42.9 .* x >= 43"),
    ("fedavg", {"horizon": 22.0, "step_law": "geometric"}, "horizon = 22.0 .* x >= 23"),
    ("fedbuff", {"horizon": 42.0, "step_law": "fixed"}, "horizon = 42.0 .* x >= 43"),
    ("fedfix", {"horizon": 5.0, "dt": 6.0}, "horizon = 5.0 .* x >= 6"),
    ("asyncsgd", {"horizon": 1.5, "step_law": "fixed"}, "horizon = 1.5 .* x >= 2"),
    ("fedasync", {"horizon": 1.5, "step_law": "fixed"}, "horizon = 1.5 .* x >= 40"),
    ("favas", {"waiting_time": 0.0, "interaction_time": 0.0}, "waiting_time = 0.0 .* must take time"),
    ("favas", {"waiting_time": 4.5, "step_law": "geometric"}, "waiting_time = 4.5 .* whole"),
    ("favas", {"fast_time": 0.5, "step_law": "geometric"}, "fast_time = 0.5 .* 1 <= x"),
    ("favas", {"slow_time": 0.5, "step_law": "geometric"}, "slow_time = 0.5 .* 1 <= x"),
    ("favas", {"concentration": 0.0, "partition": "dirichlet"}, "concentration = 0.0 .* 'fedfix'"),
    ("favas", {"step_law": "recorded"}, "step_times = '' .* a file"),
    ("favas", {"step_times": "x.csv"}, "step_times = 'x.csv' .* nothing"),
    ("favas", {"step_times": "/nowhere/x.csv", "step_law": "recorded"}, "There is no file /nowhere/x.csv"),
    ("favas", {"partition": "shards", "classes_per_client": 11}, "classes_per_client = 11 .* 1 <= x <= 10"),
    ("quafl", {"upload": "qsgd"}, "upload = 'qsgd' .* 'lattice'"),
    ("favas", {"download": "lattice"}, "download = 'lattice'"),
]


@pytest.mark.parametrize(("method", "params", "said"), REFUSED)
def test_contradictions_are_refused_with_field_value_and_bound(method, params, said):
    with pytest.raises(UserError, match=said):
        resolve(method, "digits/perceptron", params)


def test_bounds_themselves_are_taken():
    for method, params in (
        ("favas", {"clients": 5, "selected": 5, "horizon": 7.0}),
        ("fedavg", {"horizon": 43.0, "step_law": "fixed"}),
        ("fedbuff", {"clients": 10}),
        ("favas", {"partition": "shards", "classes_per_client": 10}),
        ("fedfix", {"partition": "fedfix", "concentration": 0.0}),
        ("fedfix", {"clients": 5}),
    ):
        taken = resolve(method, "digits/perceptron", params).spec.params
        assert {name: taken[name] for name in params} == params


def test_data_that_do_not_go_round_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"clients = 100 .* train_size = 50"):
        resolve("favas", "digits/perceptron", task_params={"train_size": 50})
    with pytest.raises(UserError, match="60 samples"):
        Federation(FAVASTraining, clients=61)
    digits = resolve("favas", "digits/mlp", {"batch_size": 1}, task_params={"train_size": 100}).task
    with pytest.raises(UserError, match=r"2 <= x.*batch norm"):
        Federation(FAVASTraining, digits, clients=5, batch_size=1)
    file = tmp_path / "times.csv"
    file.write_text("client,duration\n0,1\n1,2\n")
    with pytest.raises(UserError, match=r"clients = 100 .* 2, the clients in"):
        resolve("favas", "digits/perceptron", {"step_law": "recorded", "step_times": str(file)})


# --- kinds of task ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["two_moons", "digits/mlp", "digits/cnn"])
def test_binary_labels_norms_and_convolutions_are_learnt(task):
    small = {} if task == "two_moons" else {"train_size": 300, "test_size": 100, "width": 0.25}
    job = resolve("favas", task, task_params=small)
    f = Federation(FAVASTraining, job.task, clients=4, selected=2, local_steps=5, batch_size=32, horizon=105.0, lr=0.5)
    before = f.method.evaluate(f.state, job.task, f.ctx)["eval/accuracy"]
    f.run()
    after = f.method.evaluate(f.state, job.task, f.ctx)
    assert after["eval/accuracy"] > max(before, 0.6 if task == "two_moons" else 0.4)
    assert f.method.evaluate(f.state, job.task, f.ctx) == after


@pytest.mark.parametrize("rule", ["iid", "shards", "sorted_shards", "dirichlet", "dirichlet_equal", "fedfix"])
def test_every_partition_is_offered(rule):
    f = Federation(
        FAVASTraining, Clouds(), partition=rule, classes_per_client=2, concentration=0.0 if rule == "fedfix" else 5.0
    )
    held = f.method.shares.class_counts(f.task.train_y)
    if rule == "shards":
        assert ((held > 0).sum(1) == 2).all()
    if rule == "fedfix":
        assert ((held > 0).sum(1) == 1).all()
    if rule == "sorted_shards":
        assert abs(held.sum(1) - 15).max() <= 1  # two parts of 7 or 8
    elif rule != "dirichlet":
        assert set(held.sum(1)) == {15}
    assert torch.isfinite(f.run()).all()
