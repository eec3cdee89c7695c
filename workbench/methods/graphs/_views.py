"""What there is to see inside a method on a graph: where its representation puts the nodes, and what averaging keeps of a filter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.datasets.graphs import GraphTask
from workbench.graphs.spectrum import principal_directions
from workbench.method import View

CLASSES = 6
"""Classes that are told apart, at most: the largest ones; the other nodes are one group."""
EXACT = 512
"""Dimensions of a representation whose directions are worked out exactly, at most."""


@torch.no_grad()
def plane_view(z: Tensor, task: GraphTask, of: str, note: str) -> View:
    """The nodes in the two strongest directions of ``z`` ``(N, D)`` about its mean, by class; nodes without a label are left out."""
    z, y = z[task.labelled].float(), task.y[task.labelled]
    centred = z - z.mean(0)
    flat = F.pad(centred @ _strongest(centred), (0, 2))[:, :2]  # of one dimension the second is zero
    sizes = torch.bincount(y, minlength=task.num_classes)
    shown = sizes.argsort(descending=True, stable=True)[:CLASSES].sort().values.tolist()
    parts = {f"class {c}": y == c for c in shown} | {"other classes": ~torch.isin(y, torch.tensor(shown, device=y.device))}
    groups = {name: tuple(flat[part].T.cpu().numpy()) for name, part in parts.items() if part.any()}
    kept = flat.square().sum() / centred.square().sum().clamp_min(1e-30)
    return View(f"Nodes in the plane of {of}", "points", groups, x="strongest direction", y="second direction",
                note=f"{note} The plane holds {float(kept):.0%} of the variance in {z.shape[1]} dimensions.")


def _strongest(centred: Tensor) -> Tensor:
    """The two strongest directions ``(D, 2)`` of signals ``(N, D)``; one where D is 1."""
    if centred.shape[1] > EXACT:
        return principal_directions(centred, 2)
    vectors = torch.linalg.eigh(centred.double().T @ centred.double()).eigenvectors.flip(1)[:, :2]
    top = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return (vectors * torch.where(top < 0, -1.0, 1.0)).to(centred)


@torch.no_grad()
def filter_views(orders: Sequence[tuple[Tensor, Tensor]], total: float) -> list[View]:
    """Of moduli ``U_n`` ``(N, K)`` and their averages ``S_n``, from n = 0: the energy of each order, and what is kept of each filter."""
    bars = {f"order {n}": float(s.square().sum()) / total for n, (_, s) in enumerate(orders)}
    found = [View("Energy of each order", "bars", bars, y="share of the features' energy [fraction]",
                  note="Order 0 is the averaged features; the others are averages of moduli of filtered ones.")]
    kept: Mapping[str, Tensor] = {
        f"order {n}": (s.square().sum(0) / u.square().sum(0).clamp_min(1e-30)).sort(descending=True).values
        for n, (u, s) in enumerate(orders) if n}
    if kept:
        lines = {name: (range(1, len(share) + 1), share.cpu().numpy()) for name, share in kept.items()}
        found.append(View("What averaging keeps of each filter's modulus", "points", lines, x="filter, by what is kept",
                          y="energy after over before [fraction]",
                          note="Filters are sought whose moduli are smooth on the graph: the nearer to 1, the smoother."))
    return found
