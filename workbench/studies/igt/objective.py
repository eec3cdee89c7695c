"""What filters are learnt for, in closed form: energy that averaging keeps, and how much of it tells communities apart.

Two equal communities of Gaussian features of mean 0. With expectations in the place of averages, a filter's moduli have
one mean in each community. No isometry keeps more than ``pi / 4`` of the energy: Jensen's inequality over the
communities of a neighbourhood, and over a plane, in which the mean modulus is largest where the spread is the same in
every direction. Where neighbourhoods mix communities it is reached only by filters that both communities answer alike,
which tell nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from workbench.claims import Claim, differences, figure, within
from workbench.graphs.expectation import gaussian_orders, mixing
from workbench.graphs.igt import InterferometricGraphTransform
from workbench.method import derive_seed
from workbench.studies.igt.concentration import DIM, deviations, drawn_graph
from workbench.studies.igt.settings import DRAWN, FILTERS, FOUND, LOUD

if TYPE_CHECKING:
    import pandas

MOST = torch.pi / 4


class EnergySplit(NamedTuple):
    """Shares of the features' energy in the expectation of order 1."""

    energy: float
    variation: float
    """Of it, what differs between the communities."""


def energy_split(w: Tensor, spreads: Tensor, mixture: Tensor) -> EnergySplit:
    """For filters ``w`` ``(P, 2K)``, standard deviations of two communities' features ``(2, P)`` and a mixture ``(2, 2)``."""
    squares = spreads.double().square()
    one = gaussian_orders(torch.zeros_like(squares), torch.diag_embed(squares), mixture, w)[1]
    total = squares.sum(1).mean()
    about = one - one.mean(0)
    return EnergySplit(*(float(t.square().sum(1).mean() / total) for t in (one, about)))


def own_filters(dim: int) -> Tensor:
    """Filters of which each looks at two features of one community, ``(dim, dim)``, ``dim`` a multiple of 4."""
    eye = torch.eye(dim, dtype=torch.float64)
    return torch.cat([eye[:, ::2], eye[:, 1::2]], 1)


def blind_filters(dim: int) -> Tensor:
    """Filters whose two axes have half of either community's features each, so that both answer alike; ``(dim, dim)``."""
    half = torch.eye(dim // 2, dtype=torch.float64) / 2**0.5
    axes = torch.cat([torch.cat([half, half], 0), torch.cat([half, -half], 0)], 1)
    return torch.cat([axes[:, ::2], axes[:, 1::2]], 1)


def splits(nodes: int, degree: float, ratios: Sequence[float], seeds: int) -> pandas.DataFrame:
    """A row a ratio, kind of filters and seed: ``energy`` and ``variation`` in expectation of filters learnt on one graph."""
    import pandas

    rows, spreads = [], torch.from_numpy(deviations(np.arange(2)))
    for ratio in ratios:
        mixture = mixing(torch.tensor([1, 1]), torch.tensor([[1.0, ratio], [ratio, 1.0]]))
        for seed in range(seeds):
            graph = drawn_graph(nodes, degree, ratio, np.random.default_rng(derive_seed(seed, "objective")))[0]
            found = {}
            for name, given in FILTERS.items():
                igt = InterferometricGraphTransform(
                    1, dim=None, averaging="row", power=1, normalise="none", seed=seed, **given
                )
                found[name] = igt.fit(graph).filters_[0].double()
            if not seed:  # of these nothing is drawn
                found |= {"a community's own features": own_filters(DIM), "alike to both communities": blind_filters(DIM)}
            for name, w in found.items():
                rows.append(
                    {"ratio": ratio, "filters": name, "seed": seed, **energy_split(w, spreads, mixture)._asdict()}
                )
    return pandas.DataFrame(rows)


def split_table(frame: pandas.DataFrame) -> pandas.DataFrame:
    """Energy and variation in percent of the features' energy, by ratio and filters."""
    import pandas

    rows = []
    for (ratio, name), part in frame.groupby(["ratio", "filters"], sort=False):
        shares = {f"{kind} [%]": figure(list(part[kind]), 2, 100) for kind in EnergySplit._fields}
        rows.append({"across / within": ratio, "filters": name, **shares})
    return pandas.DataFrame(rows)


def split_claims(frame: pandas.DataFrame) -> list[Claim]:
    """At the largest ratio: the solver finds the most energy there is, and what tells communities apart is lost by that."""
    part = frame[frame["ratio"] == frame["ratio"].max()]

    def of(name: str, kind: str) -> dict[int, float]:
        rows = part[part["filters"] == name]
        return dict(zip(rows["seed"].astype(int), rows[kind].astype(float), strict=True))

    where = f"(edges across / within {frame['ratio'].max():g})"
    share = {seed: value / MOST for seed, value in of(LOUD, "energy").items()}
    lost = differences(of(LOUD, "variation"), of(DRAWN, "variation"))
    found = differences(of(FOUND, "variation"), of(DRAWN, "variation"))
    return [
        within(
            f"Filters learnt for energy keep at least 99 % of what any isometry can keep {where}",
            "pi / 4 of the features' energy (our derivation)",
            share,
            0.99,
            1.0,
            scale=100,
            digits=2,
        ),
        within(
            f"Of their energy less tells communities apart than of that of random filters {where}",
            "our derivation",
            lost,
            -1.0,
            0.0,
            scale=100,
            digits=2,
        ),
        within(
            f"Filters learnt for variation tell communities apart by more energy than random ones {where}",
            "our derivation",
            found,
            0.0,
            1.0,
            scale=100,
            digits=2,
        ),
    ]
