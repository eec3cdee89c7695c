"""k-means, and how well a clustering agrees with labels: normalised mutual information and the adjusted Rand index."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def kmeans(x: Tensor, k: int, *, restarts: int = 10, seed: int = 0, iterations: int = 100) -> Tensor:
    """Clusters, int64 ``(n,)``, of the tightest of several runs of Lloyd's algorithm on ``x`` ``(n, d)``.

    Starts are those of k-means++ (Arthur & Vassilvitskii, SODA 2007), drawn from ``seed`` on the CPU, so every device
    begins alike. All runs go side by side; sums over clusters are matrix products, which repeat to the bit. An empty
    cluster takes the point farthest from its centre.
    """
    x = x.float() - x.float().mean(0)  # distances lose fewer digits
    k = min(k, len(x))
    centres = _spread_starts(x, k, restarts, torch.Generator().manual_seed(seed))  # (restarts, k, d)
    norms = x.square().sum(1)
    labels = torch.full((len(x), restarts), -1, device=x.device)
    for _ in range(iterations):
        distance = (centres.square().sum(2).view(1, -1) - 2 * x @ centres.view(restarts * k, -1).T).view(
            -1, restarts, k
        )
        low, found = distance.min(2)
        if torch.equal(found, labels):
            break
        labels = found
        member = F.one_hot(labels, k).to(x.dtype).view(len(x), -1)
        sizes = member.sum(0)
        centres = (member.T @ x / sizes.clamp_min(1)[:, None]).view(restarts, k, -1)
        for run, cluster in (sizes.view(restarts, k) == 0).nonzero().tolist():
            centres[run, cluster] = x[(low[:, run] + norms).argmax()]
    inertia = (low + norms[:, None]).sum(0, dtype=torch.float64)
    return labels[:, inertia.argmin()]


def _spread_starts(x: Tensor, k: int, restarts: int, generator: torch.Generator) -> Tensor:
    """k-means++: each next centre is drawn in proportion to the squared distance from those already there."""
    chosen = [torch.randint(len(x), (restarts,), generator=generator).to(x.device)]
    norms = x.square().sum(1, keepdim=True)
    nearest = torch.full((len(x), restarts), torch.inf, device=x.device)
    for _ in range(k - 1):
        at = x[chosen[-1]]
        nearest = torch.minimum(nearest, (norms - 2 * x @ at.T + at.square().sum(1)).clamp_min(0))
        total = nearest.double().cumsum(0)
        mark = torch.rand(restarts, generator=generator, dtype=torch.float64).to(x.device) * total[-1]
        chosen.append(torch.searchsorted(total.T.contiguous(), mark[:, None], right=True)[:, 0].clamp_max(len(x) - 1))
    return x[torch.stack(chosen, 1)]


def contingency(a: Tensor, b: Tensor) -> Tensor:
    """Counts of the pairs of labels, float64 ``(classes of a, classes of b)``."""
    (left, a), (right, b) = a.unique(return_inverse=True), b.unique(return_inverse=True)
    return torch.bincount(a * len(right) + b, minlength=len(left) * len(right)).view(len(left), len(right)).double()


def normalised_mutual_information(a: Tensor, b: Tensor) -> float:
    """Mutual information of two labellings ``(n,)`` over the mean of their entropies, 0 to 1; 1 when both are constant.

    Strehl & Ghosh (JMLR 2002) with the arithmetic mean.
    """
    joint = contingency(a, b) / len(a)
    rows, columns = joint.sum(1), joint.sum(0)
    information = torch.special.xlogy(joint, joint / (rows[:, None] * columns)).sum()
    mean = 0.5 * (torch.special.entr(rows).sum() + torch.special.entr(columns).sum())
    return min(max((information / mean).item(), 0.0), 1.0) if mean > 0 else 1.0


def adjusted_rand(a: Tensor, b: Tensor) -> float:
    """Adjusted Rand index of two labellings ``(n,)``: 1 for the same partition, 0 expected by chance (Hubert & Arabie,
    1985).
    """
    counts = contingency(a, b)

    def pairs(n: Tensor) -> Tensor:
        return (n * (n - 1) / 2).sum()

    both, first, second = pairs(counts), pairs(counts.sum(1)), pairs(counts.sum(0))
    expected = first * second / max(len(a) * (len(a) - 1) / 2, 1)
    most = 0.5 * (first + second)
    return ((both - expected) / (most - expected)).item() if most != expected else 1.0
