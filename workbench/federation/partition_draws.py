"""Random tables of which client gets how many samples of which class; the rules of a partition are made of them."""

from __future__ import annotations

import numpy as np

from tracking.errors import UserError

MAX_DRAWS = 1000
"""Dirichlet draws, at most, in search of one that leaves no client with too few samples."""


def deal(rng: np.random.Generator, n: int, k: int, kinds: int) -> np.ndarray:
    """Which ``k`` of ``kinds`` different cards each of ``n`` hands holds, bool (n, kinds).

    Each kind is dealt n * k / kinds times, rounded down or up. From a shuffled pack; a card that is twice in a hand is
    exchanged with a hand that lacks it, so hands are nearly, not exactly, uniform among all such deals.
    """
    pack = np.resize(rng.permutation(kinds), n * k)
    held = np.zeros((n, kinds), np.int64)
    np.add.at(held, (np.arange(n * k) % n, rng.permutation(pack)), 1)
    while len(double := np.argwhere(held > 1)):
        for i, c in double:
            if held[i, c] < 2:
                continue
            # Such a hand exists: at most n cards of kind c are dealt and hand i has two. It holds a kind that hand i
            # lacks or one that it has twice itself, since the k cards of a hand without doubles cannot all be among the
            # at most k - 2 other kinds of hand i. Either exchange leaves one double less in all, so the loop ends.
            j = rng.choice(np.flatnonzero(held[:, c] == 0))
            e = rng.choice(np.flatnonzero((held[j] > 0) & ((held[i] == 0) | (held[j] > 1))))
            held[i, c], held[i, e], held[j, e], held[j, c] = held[i, c] - 1, held[i, e] + 1, held[j, e] - 1, 1
    return held.astype(bool)


def cut_classes(rng: np.random.Generator, counts: np.ndarray, n: int, alpha: float, min_size: int) -> np.ndarray:
    """Samples of each client and class, int64 (n, classes): each class cut in shares ~ Dirichlet(alpha, once a client).

    The whole draw is repeated until each client has ``min_size`` samples; UserError after ``MAX_DRAWS``.
    """
    for _ in range(MAX_DRAWS):
        cuts = np.rint(np.cumsum(rng.dirichlet(np.full(n, alpha), len(counts)), 1) * counts[:, None]).astype(np.int64)
        cuts[:, -1] = counts
        held = np.diff(cuts, axis=1, prepend=0).T
        if held.sum(1).min() >= min_size:
            return held
    raise UserError(f"dirichlet: none of {MAX_DRAWS} draws with alpha = {alpha} gave each of {n} clients "
                    f"{min_size} or more of {counts.sum()} samples. "
                    "Take a larger alpha, fewer clients, or sizes='equal'.")


def take_turns(rng: np.random.Generator, counts: np.ndarray, mixes: np.ndarray) -> np.ndarray:
    """Samples of each client and class, int64 (n, classes), once n clients have emptied classes of ``counts`` samples.

    In each turn each client, in random order, draws one sample from its mix (n, classes) over the classes that have
    samples left, or from all these in proportion to what is left, once its mix holds none of them. Clients end with
    equal numbers; the remainder of the division goes to clients drawn at random, one each.
    """
    left, held = counts.copy(), np.zeros(mixes.shape, np.int64)
    quota = rng.permutation(np.bincount(even(len(mixes), counts.sum())))
    for turn in range(quota.max()):
        waiting = rng.permutation(np.flatnonzero(quota > turn))
        while len(waiting):
            mix = mixes[waiting] * (left > 0)
            mix[~mix.any(1)] = left
            reach = np.cumsum(mix, 1)
            # rounding must not carry a draw to the very end, where a class of share 0 may stand
            mark = np.minimum(rng.random((len(waiting), 1)) * reach[:, -1:], np.nextafter(reach[:, -1:], 0))
            choice = (reach > mark).argmax(1)
            served = rank(choice) < left[choice]  # who comes too late for the last of a class draws again
            held[waiting[served], choice[served]] += 1
            left -= np.bincount(choice[served], minlength=len(left))
            waiting = waiting[~served]
    return held


def rank(values: np.ndarray) -> np.ndarray:
    """How many equal values stand before each."""
    order = np.argsort(values, kind="stable")
    counts = np.bincount(values)
    before = np.empty_like(order)
    before[order] = np.arange(len(values)) - np.repeat(np.cumsum(counts) - counts, counts)
    return before


def even(parts: int, total: int) -> np.ndarray:
    """Which of ``parts`` consecutive parts, of sizes that differ by one at most, each of ``total`` items is in."""
    return np.sort(np.arange(total) % parts)
