"""What methods show of themselves: time lines against the clock of the run itself, flips and patterns against their definitions."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch

from tests.test_explorer_panes import drawn
from tests.test_llm_tasks import SMALL
from workbench.llm.packed import Packed
from workbench.method import Context, View
from workbench.spec import resolve
from workbench.state import restore, snapshot

SLOW_LINKS = {"latency": 0.05, "bandwidth": 2e5}


def begun(method: str, task: str = "digits/mlp", task_params: dict[str, Any] | None = None, **params: Any):
    """Method, task, context and State of a run that has not made a step."""
    job = resolve(method, task, params, task_params=task_params, device="cpu")
    ctx = Context(torch.device("cpu"), 3)
    job.task.setup(ctx)
    return job.method, job.task, ctx, job.method.init(job.task, ctx)


def looked(method: Any, state: Any, task: Any, ctx: Context) -> list[View]:
    """The views, which leave state, ledger and torch's global generator as they were, and can all be drawn."""
    before, billed, random = copy.deepcopy(snapshot(state)), ctx.ledger.metrics(), torch.get_rng_state()
    views = method.views(state, task)
    assert ctx.ledger.metrics() == billed
    assert torch.equal(torch.get_rng_state(), random)
    assert_same(snapshot(state), before)
    assert all(drawn(view).data for view in views)
    return views


def assert_same(a: Any, b: Any) -> None:
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif not isinstance(a, torch.Generator):
        assert a == b


def spans(view: View) -> list[tuple[int, float, float]]:
    """All spans (module from 0, begin, end) in order of time."""
    assert view.kind == "spans"
    rows = [(b, j - 1, e) for modules, begins, ends in view.groups.values() for j, b, e in zip(modules, begins, ends, strict=True)]
    return [(j, b, e) for b, j, e in sorted(rows)]


# --- who works when -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "params", "batches"), [
    ("decoupled_backprop", {}, 3), ("ddg", {}, 2 + 3), ("features_replay", {"delay": 2}, 4 + 3),
    ("dni", {}, 8), ("dgl", {"head": "linear"}, 8), ("dgl", {"head": "linear", "codec": "int8"}, 8),
])
def test_a_time_line_ends_when_the_run_does(method, params, batches):
    """After as many full batches the run's own clock stands at the end of the last span: 143 of digits' 1437 samples are a batch."""
    method, task, ctx, state = begun(method, **params, **SLOW_LINKS, modules=3, batch_size=143, report_every=batches, slow_module=2,
                                     slowdown=3.0)
    line, *_ = looked(method, state, task, ctx)
    metrics = method.step(state, task, ctx)
    line, waiting = looked(method, state, task, ctx)
    assert max(end for _, _, end in spans(line)) == pytest.approx(metrics["clock/virtual_s"], rel=1e-9)
    # by definition a worker does one thing at a time
    for module in range(3):
        own = [(b, e) for j, b, e in spans(line) if j == module]
        assert own
        assert all(later[0] >= earlier[1] - 1e-9 for earlier, later in itertools.pairwise(own))
    shares = [*waiting.groups.values()]
    assert sum(shares) / 3 == pytest.approx(metrics["clock/idle"], abs=1e-9)


@pytest.mark.parametrize("params", [
    {"schedule": "events", **SLOW_LINKS, "slow_module": 2, "slowdown": 2.5, "costs": "macs"}, {"schedule": "events", "max_reads": 1},
    {"schedule": "random", "slow_module": 3, "slowdown": 2.0}, {"schedule": "round_robin", "step_time": 0.3},
], ids=lambda p: p["schedule"])
@pytest.mark.parametrize("method", ["async_dgl", "async_dgl_vq"])
def test_the_time_line_of_turns_is_the_one_that_the_run_takes(method, params):
    own = {"group_size": 16, "codewords": 16} if method == "async_dgl_vq" else {}
    method, task, ctx, state = begun(method, **params, **own, modules=3, head="linear", batch_size=143, report_every=8)
    line, *_ = looked(method, state, task, ctx)
    taken, turn, scale = [], state.line.turn, 1.0 if params["schedule"] == "events" else method.params.step_time / 3

    def watched(*arguments: Any) -> int:
        j = turn(*arguments)
        taken.append((j, scale * state.line.now))
        return j

    state.line.turn = watched
    method.step(state, task, ctx)
    events = params["schedule"] == "events"
    shown = sorted((b if events else e, j) for j, b, e in spans(line))  # the line's clock: when a step begins, or its turn ends
    count = min(len(shown), len(taken))
    assert count >= 10
    assert [j for _, j in shown[:count]] == [j for j, _ in sorted(taken, key=lambda t: (t[1], t[0]))[:count]]
    assert [t for t, _ in shown[:count]] == pytest.approx(sorted(t for _, t in taken)[:count], rel=1e-9)


def test_one_module_after_the_other():
    method, task, ctx, state = begun("sequential_greedy", modules=2, epochs=1, batch_size=500, head="linear", report_every=99)
    (line,) = looked(method, state, task, ctx)
    training = line.groups["training"]
    while method.progress(state).done < method.progress(state).total:
        metrics = method.step(state, task, ctx)
    assert training[0] == [1, 2]
    assert training[1] == [0.0, training[2][0]]
    assert training[2][-1] == pytest.approx(metrics["clock/virtual_s"])


# --- what the bits do -----------------------------------------------------------------------------------------


def test_flips_by_layer_are_those_that_the_weights_made():
    """Counted anew: by comparing every weight before and after each step of the optimiser."""
    method, task, ctx, state = begun("bold", eta=200.0, batch_size=100, report_every=1, epochs=8)
    assert looked(method, state, task, ctx) == []
    weights = {n.removesuffix(".weight"): p for n, p in state.model.named_parameters() if getattr(p, "is_boolean", False)}
    turned, last = dict.fromkeys(weights, 0), {}
    for _ in range(6):
        before = {n: p.detach().clone() for n, p in weights.items()}
        method.step(state, task, ctx)
        last = {n: int((before[n] != p).sum()) for n, p in weights.items()}
        turned = {n: turned[n] + last[n] for n in weights}
    total, now, votes = looked(method, state, task, ctx)
    assert sum(turned.values()) > 0
    assert total.groups == pytest.approx({n: turned[n] / p.numel() for n, p in weights.items()})
    assert now.groups == pytest.approx({n: last[n] / p.numel() for n, p in weights.items()})
    assert all(v.max() < 1 for v in votes.groups.values())  # whoever passed 1 has flipped and begun anew


def test_votes_of_bop_and_weights_of_binary_layers():
    method, task, ctx, state = begun("bop", gamma=1e-2, threshold=1e-5, report_every=3, batch_size=100)
    method.step(state, task, ctx)
    votes, against = looked(method, state, task, ctx)
    weights = {n.removesuffix(".weight"): p for n, p in state.model.named_parameters() if "m" in state.optimizer.state.get(p, {})}
    for name, p in weights.items():
        average = state.optimizer.state[p]["m"].numpy()
        assert against.groups[name] == pytest.approx((np.sign(average) == np.sign(p.detach().numpy())).mean())
    assert sum(v.size for v in votes.groups.values()) == sum(p.numel() for p in weights.values())


@pytest.mark.parametrize("method", ["binarynet", "xnornet", "luq"])
def test_deployed_weights_have_few_values(method):
    """Binary layers: two values, times a scale an output where the method has one; four bits: at most 15 a layer."""
    method, task, ctx, state = begun(method, report_every=2, batch_size=100)
    method.step(state, task, ctx)
    weights, far = looked(method, state, task, ctx)
    sizes = len(set(abs(weights.groups["deployed"]).round(6)))
    outputs = sum(p.shape[0] for p in state.model.parameters() if p.dim() > 1)
    assert sizes <= {"binarynet": 1, "xnornet": outputs, "luq": 15 * len(far.groups)}[method.id]
    assert sizes < weights.groups["latent"].size / 100
    assert all(d > 0 for d in far.groups.values())


@pytest.mark.parametrize("method", ["full_precision", "error_feedback_boolean"])
def test_other_views_hold_all_weights(method):
    task = "boolean_linear/logistic" if method.startswith("error") else "digits/mlp"
    method, task, ctx, state = begun(method, task)
    views = looked(method, state, task, ctx)
    if method.id == "full_precision":
        assert sum(v.size for v in views[0].groups.values()) == sum(p.numel() for p in state.model.parameters() if p.dim() > 1)
    else:
        assert (views[0].groups["w"][1] == state.w[0].numpy()).all()
        assert "e" in views[0].groups


# --- patterns of matrices -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "params"), [("rtn", {"bits": 2}), ("reallm", {"bits": 2, "dim": 2, "permute": "always", "turns": 1})])
def test_patterns_are_those_of_the_matrix_and_of_what_is_stored(method, params):
    method, task, ctx, state = begun(method, "pydoc/tiny_llama", SMALL, **params, sequences=1)
    assert looked(method, state, task, ctx) == []
    metrics = method.step(state, task, ctx)
    bits, both, *ordered, error = looked(method, state, task, ctx)
    (name, entry), = state.packed.items()
    weight = task.reference().get_submodule(name).weight.detach()
    decoded = Packed(**{k: entry[k] for k in ("format", "shape", "tensors", "meta")}).dequantise()
    assert sum(bits.groups.values()) == pytest.approx(metrics["memory/bits_per_weight"])
    for shown, matrix in zip(both.groups.values(), (weight, decoded), strict=True):
        assert (shown == matrix[:shown.shape[0], :shown.shape[1]].numpy()).all()
    assert f"{metrics['train/weight_error']:.2g}" in error.note or f"{(decoded - weight).norm() / weight.norm():.3g}" in error.note
    (patches,) = error.groups.values()  # patches of one size: their mean square is that of the matrix
    assert weight.shape[0] % patches.shape[0] == weight.shape[1] % patches.shape[1] == 0
    assert np.sqrt((patches**2).mean()) == pytest.approx(float((decoded - weight).norm() / weight.norm()), rel=1e-4)
    assert len(ordered) == (method.id == "reallm")
    for view in ordered:  # columns in another order: the same entries in every row that is whole
        plain, shown = view.groups.values()
        assert (plain == weight[:len(plain), :plain.shape[1]].numpy()).all()
        whole = shown.shape[1] == weight.shape[1]
        assert whole
        assert (np.sort(shown, 1) == np.sort(weight[:len(shown)].numpy(), 1)).all()
        assert (shown != weight[:len(shown)].numpy()).any()


@pytest.mark.parametrize("params", [{}, {"rank": 2, "steps": 2, "report_every": 1}], ids=["plain", "tuned"])
def test_a_look_at_a_saved_state_goes_through_no_calibration(monkeypatch, params):
    """What is put into the shell is all that was saved; the model, which may be large, is not run for it."""
    method, task, ctx, state = begun("rtn", "pydoc/tiny_llama", SMALL, **params, bits=2, sequences=2, output_errors=True)
    for _ in range(method.progress(state).total - (1 if params else 0)):
        method.step(state, task, ctx)
    saved = copy.deepcopy(snapshot(state))
    monkeypatch.setattr(type(method), "init", None)
    monkeypatch.setattr(task.reference(), "forward", None)
    again = restore(method.shell(task, ctx), saved)
    assert_same(snapshot(again), saved)
    assert looked(method, again, task, ctx)[0].title.startswith("Bits")


# --- graphs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "params"), [
    ("igt", {"iterations": 3, "orders": 2, "filters": (6, 4)}), ("raw_features", {}),
    pytest.param("gcn", {"epochs": 3}, marks=pytest.mark.slow),  # PyTorch Geometric takes seconds to come up
])
def test_nodes_are_where_principal_components_put_them(method, params):
    """NumPy's singular values of the same representation: variances along the axes, and the share that the plane holds."""
    sizes = {"nodes": 200, "degree": 16.0, "features": "means", "shift": 1.0, "val_size": 60}
    method, task, ctx, state = begun(method, "sbm/node", sizes, **params)
    for _ in range(method.progress(state).total):
        method.step(state, task, ctx)
    plane, *orders = looked(method, state, task, ctx)
    shown = np.concatenate([np.column_stack(xy) for xy in plane.groups.values()])
    assert {name: len(x) for name, (x, _) in plane.groups.items()} == {f"class {c}": int((task.y == c).sum()) for c in range(2)}
    if method.id == "gcn":
        assert "2 dimensions" in plane.note  # as many as classes: all of it is in the plane
        assert "100%" in plane.note
    else:
        z = method.features(state, task, ctx).numpy().astype(float)
        lengths = np.linalg.svd(z - z.mean(0), compute_uv=False)
        # the representation is float32, and so are its projections
        np.testing.assert_allclose(np.linalg.norm(shown - shown.mean(0), axis=0), lengths[:2], rtol=1e-4)
        assert f"{(lengths[:2] ** 2).sum() / (lengths ** 2).sum():.0%}" in plane.note
    if method.id == "igt":
        energy, kept = orders
        total = float(method.reduced(state, task).square().sum())
        blocks = [float(b.square().sum()) / total for b in method.blocks(state, task, ctx)]
        assert [*energy.groups.values()] == pytest.approx(blocks, rel=1e-5)
        assert [len(share) for _, share in kept.groups.values()] == [6, 4]
        assert all((np.diff(share) <= 0).all() and share[-1] >= 0 and share[0] <= 1 for _, share in kept.groups.values())
    else:
        assert orders == []
