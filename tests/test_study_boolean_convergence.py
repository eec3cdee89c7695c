"""The study of the convergence bound: its traces are the runs', its sweeps vary what they say, its verdicts fail where they must."""

from __future__ import annotations

import itertools

import numpy as np
import pandas
import pytest
import torch

from tracking.figures import data_of
from workbench import claims
from workbench.comparison import compare
from workbench.method import Context
from workbench.methods.lowbit._descent import report_points
from workbench.methods.lowbit.error_feedback_boolean import BooleanRule
from workbench.spec import resolve
from workbench.studies import boolean_convergence as paper
from workbench.studies.boolean_convergence import settings, verdicts
from workbench.studies.boolean_convergence.sweeps import QUANTITIES
from workbench.studies.boolean_convergence.trajectories import Traces
from workbench.sweeps import sweep

# --- runs and traces ----------------------------------------------------------------------------------------


def test_every_run_is_legal_and_another():
    runs = [*paper.theorem_runs(50), *paper.variant_runs(50), *paper.baseline_runs(50)]
    assert (
        len({resolve(**r, device="cpu").spec.key for r in runs}) == len(runs) - 1
    )  # the theorem's on 'exterior' is there twice


def test_traces_of_the_bench_s_runs_are_its_journals(own_home):
    runs = [
        settings.run_of("exterior", steps=60, reports=5, **paper.VARIANTS[name])
        for name in ("stochastic", "deterministic, clipped")
    ]
    runs.append(settings.run_of("exterior", "descent_sgd", 60, reports=5))
    comparison = compare(
        sweep(runs, seeds=2, device="cpu", threads=1, tracking="off", progress=False).runs,
        metric="train/gradient_norm2",
    )
    traces = paper.recorded(comparison, "exterior", "stochastic")
    group = paper.group_of(comparison, "exterior", "stochastic")
    assert (group.facts["rounding"], group.facts["clip"]) == ("stochastic", 0.0)
    assert traces.points.tolist() == report_points(60, 5)
    for seed, frame in enumerate(group.frames):
        assert traces.lhs[:, seed].tolist() == frame["train/gradient_norm2"].tolist()
        job = resolve(**runs[0], seed=seed, device="cpu")
        job.task.setup(Context(torch.device("cpu"), seed))
        w = job.task.start(Context(torch.device("cpu"), seed))
        assert traces.gap[seed] == pytest.approx(job.task.problem.value(w).item())
        # the first report is after one step, so its left side is that of the start
        assert traces.lhs[0, seed] == pytest.approx(job.task.problem.look(w).norm2.item())
    assert (traces.bound() >= traces.lhs).all()
    assert paper.values(comparison, "exterior", "Bop") == {}
    with pytest.raises(ValueError, match="No run of 'Bop'"):
        paper.recorded(comparison, "exterior", "Bop")
    figure = paper.side_by_side(comparison, "exterior", ["stochastic", "Bop", "SGD on R^d"], "a title")
    assert {t.name.partition(" (n")[0] for t in figure.data if t.name} == {"stochastic", "SGD on R^d"}


def test_following_starts_where_the_bench_starts_and_is_ordered_by_eta():
    task = paper.task_of("interior")
    traces = paper.follow(task, paper.rule_of("stochastic"), [0.1, 0.4], steps=20, replicas=3, points=[1, 20])
    assert traces.eta.tolist() == [0.1] * 3 + [0.4] * 3
    for i in range(6):
        w = task.start(Context(torch.device("cpu"), i % 3))
        assert traces.lhs[0, i] == pytest.approx(task.problem.look(w).norm2.item())
        assert traces.gap[i] == pytest.approx(task.problem.value(w).item() - task.problem.lower_bound)
    assert traces.only(np.array([4])).lhs[:, 0].tolist() == traces.lhs[:, 4].tolist()
    assert not hasattr(traces, "no_such_figure")


def test_the_best_corner_is_the_best_of_all():
    task = paper.task_of("exterior", inputs=4)
    found = [
        (
            task.problem.look(torch.tensor(c, dtype=torch.float64)).norm2.item(),
            task.problem.value(torch.tensor(c).double()).item(),
        )
        for c in itertools.product((-1.0, 1.0), repeat=4)
    ]
    assert paper.best_corner(task) == pytest.approx((min(n for n, _ in found), min(v for _, v in found)))


def test_each_horizon_has_its_own_eta_and_is_read_at_its_end():
    frame = paper.horizon_sweep("corner", [40, 10], 2, c=2.0)
    assert frame["eta"].tolist() == pytest.approx([2 / 10**0.5] * 2 + [2 / 40**0.5] * 2)
    gap = paper.follow(paper.task_of("corner"), paper.rule_of("stochastic"), 0.1, steps=1, replicas=2).gap
    assert frame["start"].tolist() == pytest.approx([2 * g / (T * 2 / T**0.5) for T in (10, 40) for g in gap])
    assert frame["seed"].tolist() == [0, 1, 0, 1]


def test_sweeps_vary_what_they_say():
    etas = paper.eta_sweep("exterior", [0.1, 1.0], 30, 2)
    assert etas[["x", "eta", "seed"]].to_numpy().tolist() == [
        [0.1, 0.1, 0],
        [0.1, 0.1, 1],
        [1.0, 1.0, 0],
        [1.0, 1.0, 1],
    ]
    dims = paper.dim_sweep("interior", [3, 6], 20, 2)
    L = [settings.smoothness(paper.task_of("interior", inputs=d)) for d in (3, 3, 6, 6)]
    assert dims["floor"].tolist() == pytest.approx(
        [2 * s * d * k for s, d, k in zip(L, dims["x"], dims["kappa"], strict=True)]
    )
    batches = paper.batch_sweep("interior", [1, 16], 20, 2)
    assert batches.groupby("batch")["x"].first().tolist() == pytest.approx(
        batches.groupby("batch")["sigma2"].mean().tolist()
    )
    assert batches["sigma2"][0] > batches["sigma2"][2]


# --- verdicts -----------------------------------------------------------------------------------------------


def traces_of(lhs, eta: float = 0.1, points=(10, 100, 1000), **data) -> Traces:
    """Traces of known figures: ``lhs`` by number of steps, the same for two seeds but for a factor that hardly differs."""

    def table(v):
        return np.outer(np.broadcast_to(np.asarray(v, float), len(points)), [1.0, 1.0001])

    default = {
        "sigma2": 1.0,
        "kappa": 10.0,
        "gamma": 0.5,
        "idle": 0.0,
        "error2": 0.01,
        "rounding2": 0.01,
        "rounding2_max": 1.0,
        "flips": 5.0,
        "spent_max": 1.1,
        "biased": 0.0,
    }
    return Traces(
        np.array(points),
        1.0,
        12,
        np.full(2, eta),
        np.ones(2),
        {k: table(v) for k, v in {**default, "lhs": lhs, **data}.items()},
    )


def test_the_bound_is_checked_at_every_point_and_in_its_smallest_form():
    least = traces_of(1.0).bound("printed", without_error=True)  # nearly L d kappa / 2 = 60
    assert (least < traces_of(1.0).bound()).all()
    assert paper.bound_claim("", {"a": traces_of([50, 1, 1])}).verdict == claims.HOLDS
    above = paper.bound_claim("", {"a": traces_of(1.0), "b": traces_of([1, least[1, 0] * 1.01, 1])})
    assert above.verdict == claims.FAILS
    # of 2 settings, 3 forms, 3 points and 2 seeds; its error term of 0.06 does not save the printed form
    assert above.ours.startswith("4 of 36 checks fail")
    unknown = traces_of(1.0, gamma=np.nan)  # no weight passed: no error term, and the check is the stricter
    assert np.isfinite(unknown.bound()).all()


@pytest.mark.parametrize("m", [1.0, 1.25, 1.5, 2.0])
def test_rounding_of_one_weight_by_formula(m):
    """Lemma A.10's ``m (2 - m)``; at ``m = 1`` it equals ``eta d kappa = 1``."""
    assert verdicts.rounding_of_one_weight(m) == pytest.approx(
        m * (2 - m), abs=1e-3
    )  # 10,000 draws round to a step of 1e-4, times 4
    assert verdicts.rounding_of_one_weight(m) <= m


def test_printings_that_the_lemmas_do_not_give():
    for claim, factor in ((paper.printed_floor_claim(), "4 times"), (paper.printed_error_claim(), "342.0")):
        assert claim.verdict == claims.FAILS
        assert factor in claim.ours + claim.how
    assert verdicts.steady_error(0.9) == pytest.approx(0.9 / (1 - 0.9**0.5) ** 2, rel=1e-3)
    assert paper.printed_error_claim(0.1).verdict == claims.HOLDS  # the slip shows from gamma = 0.1716 on


def test_plateau_and_decay_are_told_apart():
    points = np.unique(np.geomspace(1, 3000, 200).astype(int))

    def running(late):
        return np.cumsum(np.where(np.arange(3000) < 100, 5.0, late(np.arange(3000))))[points - 1] / points

    flat = traces_of(running(lambda t: 0 * t + 2.0), points=points)
    assert verdicts.tail(flat, 2 / 3, 1.0) == pytest.approx([2.0, 2.0002])
    assert paper.plateau_claim("x", flat).verdict == claims.HOLDS
    falling = traces_of(running(lambda t: 2.0 * 100 / (t + 1)), points=points)
    assert paper.plateau_claim("x", falling).verdict == claims.FAILS
    gone = traces_of(running(lambda t: 0.0 * t), points=points)
    assert paper.no_plateau_claim("x", gone).verdict == claims.FAILS
    assert paper.no_plateau_claim("x", flat).verdict == claims.HOLDS


def test_assumptions_and_lemmas_fail_where_they_must():
    good = traces_of(0.3, error2=1e-3)
    growing = traces_of(1.0, kappa=[10, 100, 1000], idle=0.3, error2=1e3, rounding2_max=1e4)
    assert paper.accumulator_claim("x", good).verdict == claims.HOLDS
    assert paper.accumulator_claim("x", growing).verdict == claims.FAILS
    assert paper.flip_claim({"a": good}).verdict == claims.HOLDS
    assert paper.flip_claim({"a": good, "b": growing}).verdict == claims.FAILS
    assert [c.verdict for c in paper.lemma_claims({"a": good})] == [claims.HOLDS] * 2
    assert [c.verdict for c in paper.lemma_claims({"a": good, "b": growing})] == [claims.FAILS] * 2
    assert paper.proof_claim({"a": good}).verdict == claims.HOLDS
    assert paper.proof_claim({"a": traces_of(1e6)}).verdict == claims.FAILS


def swept(**powers: float) -> pandas.DataFrame:
    """Four seeds whose quantities follow power laws in x, with a little of each seed's own."""
    rows = [
        {"x": x, "seed": s, **{k.replace("_", " "): (1 + s) * x ** (p + 0.001 * s) for k, p in powers.items()}}
        for x in (1.0, 4.0, 16.0)
        for s in range(4)
    ]
    return pandas.DataFrame(rows).reindex(columns=["x", "seed", *QUANTITIES])


def test_exponents_are_judged_against_what_is_claimed():
    frame = swept(left_side=-0.5, floor=0.0, start=-0.5, noise=1.0, error=2.0, bound=0.0)
    frame.loc[(frame["seed"] == 2) & (frame["x"] == 4.0), "error"] = np.nan
    assert list(paper.slopes(frame, "error")) == [0, 1, 3]  # a seed without the term at some x has no exponent
    assert paper.slopes(frame, "noise")[1] == pytest.approx(1.001)
    assert [c.verdict for c in paper.horizon_claims("x", frame, 5.0)] == [claims.HOLDS] * 2
    assert paper.constant_floor_claim(frame).verdict == claims.HOLDS
    other = swept(left_side=0.0, floor=-1.0, start=-0.5, noise=1.0, error=2.0, bound=0.0)
    assert [c.verdict for c in paper.horizon_claims("x", other, 5.0)] == [claims.FAILS] * 2
    assert paper.constant_floor_claim(other).verdict == claims.FAILS
    assert paper.dimension_claim("x", swept(left_side=1.0, floor=1.0)).verdict == claims.HOLDS
    assert paper.dimension_claim("x", swept(left_side=0.5, floor=1.0)).verdict == claims.FAILS
    table = paper.exponent_table(frame, paper.HELD["T"]).set_index("quantity")
    assert table.loc["left side", "exponent"].startswith("-0.498")
    assert table.loc["error", "exponent"].endswith("(n = 3)")


def test_tables_leave_out_what_was_not_measured():
    table = paper.diagnostics(
        {"moved": traces_of(1.0), "still": traces_of(1.0, gamma=np.nan, biased=np.nan)}
    ).set_index("setting")
    assert table.loc["moved", "gamma"] == pytest.approx(0.5, rel=1e-3)
    assert pandas.isna(table.loc["still", ["gamma", "lemma A.9, with 1 + gamma", "|m| > 2 [%]"]]).all()
    loose = paper.looseness({"moved": traces_of(1.0), "still": traces_of(1.0, gamma=np.nan)}).set_index("setting")
    assert pandas.isna(loose.loc["still", "error"])
    assert loose.loc["moved", "bound / left side"] == pytest.approx(traces_of(1.0).bound()[-1].mean(), rel=1e-3)


# --- figures ------------------------------------------------------------------------------------------------


def test_the_figure_of_the_bound_shows_the_traces():
    traces = traces_of([4.0, 2.0, 1.0], gamma=[np.nan, 0.5, 0.5])
    shown = data_of(paper.bound_figure(traces, "title", best=0.5)).set_index("trace")
    assert shown.loc["left side, measured", "squared gradient norm"].tolist() == pytest.approx(
        traces.lhs.mean(1).tolist()
    )
    assert shown.loc["floor 2Ldκ", "squared gradient norm"].tolist() == pytest.approx([2 * 12 * 10 * 1.00005] * 3)
    assert len(shown.loc[["2L²σ²γ(1+γ)η²/(1−γ)²"]].dropna()) == 2  # nothing is drawn before a weight has passed
    assert shown.loc["least ||∇f||² of any corner", "squared gradient norm"].tolist() == [0.5, 0.5]


def test_figures_of_sweeps_and_growth():
    frame = swept(left_side=-0.5, floor=0.0, start=-0.5, noise=1.0, error=2.0, bound=0.0)
    shown = data_of(paper.sweep_figure(frame, "eta", "title")).set_index("trace")
    expected = frame[frame["x"] == 4.0]["left side"].mean()
    assert shown.loc["left side, measured"].set_index("eta").loc[4.0, "squared gradient norm"] == pytest.approx(
        expected
    )
    grown = paper.growth_figure(
        {"a": traces_of(1.0, kappa=[1, 10, 100])}, "eta kappa", "largest", "title", passes_at_1=1.0
    )
    assert list(data_of(grown)["largest"][:3]) == pytest.approx([0.1 * 1.00005, 1.00005, 10.0005])
    assert "passes at 1" in set(data_of(grown)["trace"])


def test_variants_are_rules():
    assert paper.rule_of("practice (plasticity)")(0.5) == BooleanRule(0.5, False, True, 0.0)
    assert paper.rule_of("stochastic, clipped")(0.5) == BooleanRule(0.5, True, False, 2.0)
