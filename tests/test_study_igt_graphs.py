"""The study of IGT on generated graphs: its errors, energies and thresholds are the closed forms, its claims follow."""

from __future__ import annotations

import numpy as np
import pandas
import pytest
import torch

from tracking.figures import data_of
from workbench import claims
from workbench.graphs.expectation import gaussian_orders, mixing
from workbench.graphs.igt import InterferometricGraphTransform
from workbench.studies import igt as paper
from workbench.studies.igt import concentration, phase_diagram

# --- what filters are learnt for ----------------------------------------------------------------------------


def test_what_filters_are_learnt_for_is_told_from_expectations():
    """Numbers themselves are tested with the objective; here that table and claims show them."""
    frame = paper.splits(300, 40.0, (0.0, 0.2), 2)
    kinds = {*paper.FILTERS, "a community's own features", "alike to both communities"}
    assert set(frame["filters"]) == kinds
    assert len(frame) == 2 * (2 * len(paper.FILTERS) + 2), "what is known in closed form is known once"
    assert list(paper.split_table(frame).columns) == ["across / within", "filters", "energy [%]", "variation [%]"]

    def verdicts(energy: float, lost: float, found: float) -> list[str]:
        values = {paper.LOUD: (energy, lost), paper.FOUND: (0.5, found), paper.DRAWN: (0.7, 0.005)}
        rows = [
            {"ratio": 0.2, "filters": name, "seed": s, "energy": e + 1e-4 * s, "variation": v + 1e-4 * s * (name == paper.DRAWN)}
            for name, (e, v) in values.items()
            for s in range(3)
        ]
        return [c.verdict for c in paper.split_claims(pandas.DataFrame(rows))]

    assert verdicts(0.785, 0.001, 0.06) == [claims.HOLDS] * 3
    assert verdicts(0.75, 0.02, 0.001) == [claims.FAILS] * 3


# --- concentration ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degree", [6.0, 24.0])
def test_the_error_of_order_0_is_its_closed_form(degree):
    """A mean over D + 1 nodes, D Poisson: variance E 1 / (D + 1) = (1 - exp(-d)) / d; both communities have one variance in sum."""
    found = np.mean([paper.transform_errors(1500, degree, 0.2, seed, orders=0, samples=1000)[0] for seed in range(3)])
    # 4500 nodes with 16 features: the mean square has a relative error near 1 %, doubled as neighbourhoods overlap
    assert found == pytest.approx(((1 - np.exp(-degree)) / degree) ** 0.5, rel=0.03)


def test_what_errors_are_measured_against_is_the_closed_form_of_e_igt():
    rng = np.random.default_rng(0)
    graph, y, probabilities = concentration.drawn_graph(4000, 200.0, 0.3, rng)
    igt = InterferometricGraphTransform(1, dim=None, averaging="row", power=1, normalise="none", solver="none")
    igt.fit(graph)
    # each filter looks at two features of one community: the expectations of the two communities are far apart
    igt.filters_ = [torch.cat([torch.eye(16)[:, ::2], torch.eye(16)[:, 1::2]], 1)]
    spread = torch.from_numpy(concentration.deviations(np.arange(2)))
    mixture = mixing(torch.from_numpy(np.bincount(y)), torch.from_numpy(probabilities))
    exact = gaussian_orders(torch.zeros(2, 16), torch.diag_embed(spread**2), mixture, igt.filters_[0])
    for found, wanted in zip(igt.orders_of(graph), exact, strict=True):
        by_community = torch.stack([found[y == c].mean(0) for c in (0, 1)]).double()
        # means over 2000 nodes of a community, of deviation 1.5 at most: one standard error is 0.034, and beyond four and a
        # half of them lies none of 48 means
        torch.testing.assert_close(by_community, wanted, atol=0.15, rtol=0)
    assert (
        exact[1][0] - exact[1][1]
    ).abs().min() > 0.3  # twice the tolerance: communities taken for each other would show


def test_rates_are_slopes_and_their_claims_follow():
    rows = [
        {"degree": d, "nodes": 100 * d, "order": o, "seed": s, "error": (1 + s) * d**slope}
        for d in (4, 16, 64)
        for s in (0, 1, 2)
        for o, slope in ((0, -0.5), (1, -0.3 - 0.001 * s))
    ]
    frame = pandas.DataFrame(rows)
    assert paper.rates(frame, "degree") == {
        0: pytest.approx(dict.fromkeys(range(3), -0.5)),
        1: pytest.approx({0: -0.3, 1: -0.301, 2: -0.302}),
    }
    verdicts = [c.verdict for c in paper.rate_claims(frame, frame)]
    assert verdicts == [claims.HOLDS, claims.FAILS, claims.FAILS]
    table = paper.rate_table(frame, frame)
    assert list(table["predicted"]) == [-0.5, -0.5, 0.0, 0.0]
    shown = data_of(paper.error_figure({"mean degree": (frame, "degree"), "nodes": (frame, "nodes")}, "Errors"))
    assert {"S0", "S1", "S0, nodes", "S1, nodes", "predicted slope"} == set(shown["trace"])


# --- phases -------------------------------------------------------------------------------------------------


def test_the_threshold_is_where_signal_equals_noise():
    degrees = np.array([0.5, 1.0, 2.0, 9.0, 100.0])
    ratios = paper.threshold(degrees)
    assert np.isnan(ratios[0])
    for degree, ratio in zip(degrees[1:], ratios[1:], strict=True):
        c_in = 2 * degree / (1 + ratio)  # of many nodes
        assert phase_diagram.signal_to_noise(2, c_in, ratio * c_in) == pytest.approx(1)


def test_easy_graphs_are_found_from_edges_and_hopeless_ones_are_not():
    easy, hopeless = (paper.accuracies(200, 20.0, ratio, 0) for ratio in (0.0, 1.0))
    assert set(easy) == set(phase_diagram.KINDS)
    assert easy[phase_diagram.SPECTRAL] == 1.0
    # with equal probabilities labels are independent of the edges: 200 coin flips, named as fits best
    assert hopeless[phase_diagram.SPECTRAL] < 0.65


def test_claims_on_phases_use_cells_far_from_the_threshold():
    def frame(gain: float, below: float) -> pandas.DataFrame:
        rows = []
        for snr, spectral in ((0.1, below), (1.0, 0.1), (5.0, 0.97)):
            for seed in range(3):
                rows.append(
                    {
                        "degree": 1.0,
                        "ratio": snr,
                        "snr": snr,
                        "seed": seed,
                        **dict.fromkeys(phase_diagram.KINDS, 0.6),
                        phase_diagram.SPECTRAL: spectral + 0.001 * seed,
                        phase_diagram.ONE[0]: 0.6 + gain + 0.001 * seed,
                    }
                )
        return pandas.DataFrame(rows)

    assert [c.verdict for c in paper.phase_claims(frame(0.3, 0.52))] == [claims.HOLDS] * 3
    assert [c.verdict for c in paper.phase_claims(frame(0.05, 0.7))] == [claims.FAILS, claims.HOLDS, claims.FAILS]
    regions = paper.region_table(frame(0.3, 0.52))
    titles = ["signal to noise below 0.5, 3 graphs [%]", "0.5 to 2, 3 graphs [%]", "above 2, 3 graphs [%]"]
    row = regions.set_index("nodes labelled by").loc[phase_diagram.SPECTRAL, titles]
    assert [cell.split(" ")[0] for cell in row] == ["52.1", "10.1", "97.1"]
    assert list(regions["nodes labelled by"]) == list(phase_diagram.KINDS)
    assert len(paper.phase_figure(frame(0.3, 0.5), "Phases").data) == 2 * len(phase_diagram.KINDS)
    assert set(data_of(paper.collapse_figure(frame(0.3, 0.5), "Collapse"))["trace"]) == {
        *phase_diagram.KINDS,
        "Kesten-Stigum threshold",
    }
