"""Random graphs with communities: the stochastic block model and its degree-corrected variant, in time linear in the
edges.
"""

from __future__ import annotations

import numpy as np

from tracking.errors import UserError


def block_model(sizes: np.ndarray, probabilities: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An undirected graph of the stochastic block model (Holland, Laskey & Leinhardt, Social Networks 1983).

    Args:
        sizes: nodes of each block ``(k,)``; the nodes of a block are numbered one after another.
        probabilities: symmetric ``(k, k)``; each pair of nodes of blocks ``a`` and ``b`` is joined with probability
            ``[a, b]``, independently.
        rng: NumPy's generator.

    Returns:
        int64 ``(2, E)``, each edge in both directions, sorted by row, then column.

    A pair of blocks draws the number of its edges (binomial) and then that many different pairs of nodes: no time is
    spent on pairs without an edge.
    """
    sizes, probabilities = np.asarray(sizes, np.int64), np.asarray(probabilities, float)
    _check(sizes, probabilities, 1.0)
    starts = np.cumsum(sizes) - sizes
    ends: list[tuple[np.ndarray, np.ndarray]] = []
    for a in range(len(sizes)):
        for b in range(a + 1):
            pairs = sizes[a] * (sizes[a] - 1) // 2 if a == b else sizes[a] * sizes[b]
            chosen = _subset(int(pairs), int(rng.binomial(pairs, probabilities[a, b])), rng)
            rows, columns = triangle(chosen) if a == b else np.divmod(chosen, sizes[b])
            ends.append((rows + starts[a], columns + starts[b]))
    return both_ways(*(np.concatenate(part) for part in zip(*ends, strict=True)), int(sizes.sum()))


def degree_corrected(
    sizes: np.ndarray, edges: np.ndarray, propensity: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """An undirected graph of the degree-corrected block model (Karrer & Newman, Phys. Rev. E 2011).

    Args:
        sizes: nodes of each block ``(k,)``, numbered one after another.
        edges: symmetric ``(k, k)``, expected number of edges between blocks ``a`` and ``b``, on the diagonal within.
        propensity: positive ``(N,)``; within its block a node takes part in edges in proportion to it.
        rng: NumPy's generator.

    Returns:
        As :func:`block_model`. Numbers of edges are Poisson; the model's self-loops and repeated edges are dropped,
        which lowers the largest degrees a little.
    """
    sizes, edges = np.asarray(sizes, np.int64), np.asarray(edges, float)
    _check(sizes, edges, np.inf)
    if propensity.shape != (sizes.sum(),) or not (propensity > 0).all():
        raise UserError(f"A positive propensity is needed for each of the {sizes.sum()} nodes.")
    starts = np.cumsum(sizes) - sizes
    shares = [np.cumsum(propensity[s : s + n]) for s, n in zip(starts, sizes, strict=True)]
    ends: list[tuple[np.ndarray, np.ndarray]] = []
    for a in range(len(sizes)):
        for b in range(a + 1):
            count = rng.poisson(edges[a, b])
            ends.append(
                tuple(
                    np.minimum(
                        np.searchsorted(shares[c], rng.random(count) * shares[c][-1], side="right"), sizes[c] - 1
                    )
                    + starts[c]
                    for c in (a, b)
                )
            )
    return both_ways(*(np.concatenate(part) for part in zip(*ends, strict=True)), int(sizes.sum()))


def pareto_propensity(count: int, exponent: float, largest: float, rng: np.random.Generator) -> np.ndarray:
    """Propensities with density ~ t^-exponent on [1, largest], ``(count,)``: degrees of a power law."""
    if largest == 1:
        return np.ones(count)
    power = 1 - exponent
    return (1 + rng.random(count) * (largest**power - 1)) ** (1 / power) if power else largest ** rng.random(count)


def planted_probabilities(nodes: int, communities: int, degree: float, ratio: float) -> tuple[float, float]:
    """Probabilities of an edge within and across equal communities for a mean degree and a ratio across / within."""
    size = nodes / communities
    within = degree / (size - 1 + ratio * (nodes - size))
    if within > 1:
        raise UserError(
            f"{nodes} nodes in {communities} communities cannot have a mean degree of {degree:g} at a ratio of {ratio:g}: the "
            f"largest is {degree / within:.4g}. Ask for a lower degree or for more nodes."
        )
    return within, ratio * within


def signal_to_noise(communities: int, within: float, across: float) -> float:
    """(c_in - c_out)^2 / (k (c_in + (k - 1) c_out)) of ``k`` equal communities, ``c = N p``; recovery is possible in
    polynomial time where it is above 1, the Kesten-Stigum threshold (Decelle, Krzakala, Moore & Zdeborova, Phys. Rev. E
    2011).
    """
    return (within - across) ** 2 / (communities * (within + (communities - 1) * across))


def triangle(index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ``index``-th pair ``(i, j)`` with ``i > j`` in the order (1, 0), (2, 0), (2, 1), (3, 0) …; int64 below
    2^52.
    """
    i = ((1 + np.sqrt(1 + 8 * index.astype(float))) / 2).astype(np.int64)
    i -= i * (i - 1) // 2 > index  # rounding of the root
    i += i * (i + 1) // 2 <= index
    return i, index - i * (i - 1) // 2


def both_ways(rows: np.ndarray, columns: np.ndarray, nodes: int) -> np.ndarray:
    """Edges in both directions, int64 ``(2, E)``, sorted, each once, without self-loops."""
    keep = rows != columns
    rows, columns = rows[keep], columns[keep]
    return np.stack(np.divmod(_different(np.concatenate([rows * nodes + columns, columns * nodes + rows])), nodes))


def _different(numbers: np.ndarray) -> np.ndarray:
    """The different ones of ``numbers``, ascending; sorts in place. numpy.unique takes a hundred times as long."""
    numbers.sort()
    return numbers[np.concatenate([[True], numbers[1:] != numbers[:-1]])] if len(numbers) else numbers


def _subset(total: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """``count`` different numbers of ``range(total)``, every set with the same probability, ascending."""
    if 2 * count > total:
        present = np.ones(total, bool)
        present[_subset(total, total - count, rng)] = False
        return np.flatnonzero(present)
    found = _different(rng.integers(0, total, count)) if count else np.zeros(0, np.int64)
    while len(found) < count:  # repeated draws are drawn again
        found = _different(np.concatenate([found, rng.integers(0, total, count - len(found))]))
    return found


def _check(sizes: np.ndarray, table: np.ndarray, most: float) -> None:
    if sizes.ndim != 1 or not len(sizes) or (sizes < 1).any():
        raise UserError(f"Block sizes {sizes.tolist()} are refused: each block needs a node.")
    if (
        table.shape != (len(sizes),) * 2
        or not np.array_equal(table, table.T)
        or not ((table >= 0) & (table <= most)).all()
    ):
        raise UserError(
            f"The table of {len(sizes)} blocks must be symmetric, {len(sizes)} x {len(sizes)}, with entries from 0 to {most:g}."
        )
