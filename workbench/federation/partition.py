"""How a labelled data set is shared out among clients: IID, a few classes a client, Dirichlet class mixes.

A partition is drawn on the CPU from a seed of its own, never from the global generators. Within a client sample indices
ascend.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from tracking.errors import UserError, unknown
from workbench.federation.partition_draws import cut_classes, deal, even, take_turns
from workbench.method import derive_seed

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

@dataclass(frozen=True, eq=False)
class Partition:
    """Which samples each client holds: client ``i`` has ``index[offsets[i]:offsets[i + 1]]``."""

    offsets: np.ndarray
    """int64 (n + 1,), from 0, ascending."""
    index: np.ndarray
    """int64 (total,), rows of the data set."""
    repeats: bool = False
    """Drawn with replacement: a sample may occur more than once, with one client or with several."""

    def __post_init__(self) -> None:
        for name in ("offsets", "index"):
            array = np.array(_whole(f"partition: {name}", getattr(self, name)), dtype=np.int64)
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        ends = (0, len(self.index))
        if not len(self.offsets) or (self.offsets[0], self.offsets[-1]) != ends or (np.diff(self.offsets) < 0).any():
            raise UserError(f"partition: offsets must ascend from 0 to the number of indices, {len(self.index)}.")

    @property
    def clients(self) -> int:
        """Number of clients n."""
        return len(self.offsets) - 1

    @property
    def sizes(self) -> np.ndarray:
        """Samples a client, int64 (n,)."""
        return np.diff(self.offsets)

    @property
    def owners(self) -> np.ndarray:
        """The client of each entry of ``index``, int64 (total,)."""
        return np.repeat(np.arange(self.clients), self.sizes)

    def of(self, client: int) -> np.ndarray:
        """Sample indices of one client, a read-only view."""
        return self.index[self.offsets[client]:self.offsets[client + 1]]

    def class_counts(self, labels: ArrayLike) -> np.ndarray:
        """Samples of each client and class, int64 (n, largest label + 1)."""
        labels = checked_labels(labels)
        self.check(len(labels))
        classes = int(labels.max()) + 1
        cells = np.bincount(self.owners * classes + labels[self.index], minlength=self.clients * classes)
        return cells.reshape(self.clients, classes)

    def check(self, num_samples: int, *, covering: bool = False) -> Partition:
        """This partition, if it fits a data set of ``num_samples``; else UserError with the rule that is broken.

        No client is empty, indices are in range, no sample occurs twice unless ``repeats``, and with ``covering`` none
        is left out.
        """
        if not self.clients or not self.sizes.all():
            empty = np.flatnonzero(self.sizes == 0)
            raise UserError(f"partition: {f'client {empty[0]} has no sample' if len(empty) else 'there is no client'}. "
                            "Each client needs one or more.")
        if self.index.min() < 0 or self.index.max() >= num_samples:
            wrong = self.index[(self.index < 0) | (self.index >= num_samples)][0]
            raise UserError(f"partition: sample {wrong} does not exist. Allowed: 0 to {num_samples - 1}.")
        times = np.bincount(self.index, minlength=num_samples)
        if not self.repeats and times.max() > 1:
            raise UserError(f"partition: sample {times.argmax()} is given out {times.max()} times. "
                            "A sample belongs to one client, once.")
        if covering and not times.all():
            raise UserError(f"partition: {(times == 0).sum()} of {num_samples} samples are given to nobody, "
                            f"the first is {times.argmin()}.")
        return self


def from_owners(owners: np.ndarray, samples: np.ndarray, n: int, *, repeats: bool = False) -> Partition:
    """The partition in which ``owners[k]`` of 0 to n - 1 holds ``samples[k]``."""
    return Partition(np.cumsum([0, *np.bincount(owners, minlength=n)]), samples[np.lexsort((samples, owners))], repeats)


# --- rules -----------------------------------------------------------------------------------------------------

Rule = Literal["iid", "shards", "sorted_shards", "dirichlet", "dirichlet_equal", "fedfix"]


def partition(rule: Rule, labels: ArrayLike, n: int, *, seed: int, classes_per_client: int = 2,
              alpha: float = 0.3) -> Partition:
    """A partition by the name of its rule; what a rule does not use is not looked at.

    ``sorted_shards`` is :func:`shards` with ``scheme="sorted"``, ``dirichlet_equal`` and ``fedfix`` are
    :func:`dirichlet` with these sizes.
    """
    rules: dict[str, Callable[[], Partition]] = {
        "iid": lambda: iid(labels, n, seed),
        "shards": lambda: shards(labels, n, classes_per_client, seed),
        "sorted_shards": lambda: shards(labels, n, classes_per_client, seed, scheme="sorted"),
        "dirichlet": lambda: dirichlet(labels, n, alpha, seed),
        "dirichlet_equal": lambda: dirichlet(labels, n, alpha, seed, sizes="equal"),
        "fedfix": lambda: dirichlet(labels, n, alpha, seed, sizes="fedfix"),
    }
    if rule not in rules:
        raise unknown("partition", rule, rules)
    return rules[rule]()


def iid(labels: ArrayLike, n: int, seed: int = 0, *, drop_remainder: bool = False) -> Partition:
    """A uniform random partition into equal parts: sizes differ by one at most, with ``drop_remainder`` not at all."""
    labels, rng = _inputs(labels, n, seed, "iid")
    order = rng.permutation(len(labels))
    if drop_remainder:
        order = order[:len(order) // n * n]
    return from_owners(even(n, len(order)), order, n)


def shards(labels: ArrayLike, n: int, classes_per_client: int = 2, seed: int = 0, *,
           scheme: Literal["equal_holders", "sorted"] = "equal_holders") -> Partition:
    """A few classes a client; all samples are given out.

    ``equal_holders``: each client holds exactly ``classes_per_client`` different classes, and each class has the same
    number of holders, n * classes_per_client / classes. Where that is no whole number, some classes, drawn at random,
    have one holder more than the others. A class is cut into equal parts among its holders (sizes differ by one at
    most): MNIST for 100 clients with two classes each makes 600 images a client on average.

    ``sorted`` (McMahan et al., AISTATS 2017, section 3): samples sorted by label are cut into n * classes_per_client
    consecutive parts of equal size, dealt at random, ``classes_per_client`` to each client. Parts are equal but may
    straddle classes, and a client may get a class twice.
    """
    labels, rng = _inputs(labels, n, seed, f"shards/{scheme}")
    classes, counts = np.unique(labels, return_counts=True)
    k, samples = classes_per_client, _by_class(rng, labels)
    if not _is_whole(k) or k < 1:
        raise UserError(f"shards: classes_per_client = {k!r} is refused. Allowed: whole number, 1 or more.")
    if scheme == "sorted":
        if n * k > len(labels):
            raise UserError(f"shards: {n} clients with {k} parts each need {n * k} samples, there are {len(labels)}. "
                            "Take fewer clients.")
        holder = rng.permutation(np.repeat(np.arange(n), k))
        return from_owners(holder[even(n * k, len(labels))], samples, n)
    if scheme != "equal_holders":
        raise unknown("scheme of shards", scheme, ("equal_holders", "sorted"))
    if k > len(classes):
        raise UserError(f"shards: classes_per_client = {k} is refused: the data have {len(classes)} classes.")
    if n * k < len(classes):
        raise UserError(f"shards: {n} clients of {k} classes each leave some of the {len(classes)} classes to nobody. "
                        f"Allowed: clients x classes_per_client >= {len(classes)}.")
    holds = deal(rng, n, k, len(classes))
    owners = []
    for c, (label, count) in enumerate(zip(classes, counts, strict=True)):
        holders = rng.permutation(np.flatnonzero(holds[:, c]))
        if count < len(holders):
            raise UserError(f"shards: class {label} has {count} samples for {len(holders)} clients. "
                            "Take fewer clients or fewer classes a client.")
        owners.append(holders[even(len(holders), count)])
    return from_owners(np.concatenate(owners), samples, n)


def dirichlet(labels: ArrayLike, n: int, alpha: float, seed: int = 0, *, min_size: int = 1,
              sizes: Literal["free", "equal", "fedfix"] = "free") -> Partition:
    """Uneven class mixes: the smaller ``alpha``, the more uneven.

    ``free`` (Yurochkin et al., ICML 2019; Li et al., ICDE 2022): each class is cut among the clients in shares ~
    Dirichlet(alpha, once a client). Every sample is given out once; sizes vary. The draw is repeated as a whole until
    each client has ``min_size`` samples, 1000 times at most, then refused.

    ``equal``: each client has a mix ~ Dirichlet(alpha, once a class), and all take turns in drawing a sample from those
    classes of their mix that have samples left (from all that have, where a client's own are used up). Every sample is
    given out once; sizes differ by one at most. alpha is the concentration of each class; Hsu et al. (arXiv 1909.06335)
    so call the sum over the classes.

    ``fedfix`` (Fraboni et al., JMLR 2023): mixes as in ``equal``, equal sizes of samples // n, each sample drawn *with
    replacement* within its class. ``alpha = 0`` is one class a client, classes having as equally many clients as
    possible.
    """
    labels, rng = _inputs(labels, n, seed, f"dirichlet/{sizes}")
    if sizes not in ("free", "equal", "fedfix"):
        raise unknown("sizes of dirichlet", sizes, ("free", "equal", "fedfix"))
    number = isinstance(alpha, int | float | np.number) and not isinstance(alpha, bool)
    if not number or not 0 <= alpha <= 1e6 or (alpha == 0 and sizes != "fedfix"):
        raise UserError(f"dirichlet: alpha = {alpha!r} is refused. "
                        "Allowed: number, 0 < x <= 1e6; 0 with sizes='fedfix' only.")
    if not _is_whole(min_size) or not 1 <= min_size <= len(labels) // n:
        raise UserError(f"dirichlet: min_size = {min_size!r} is refused for {len(labels)} samples and {n} clients. "
                        f"Allowed: whole number, 1 <= x <= {len(labels) // n}.")
    counts = np.unique(labels, return_counts=True)[1]
    if sizes == "free":
        held = cut_classes(rng, counts, n, alpha, min_size)
    elif sizes == "equal":
        held = take_turns(rng, counts, rng.dirichlet(np.full(len(counts), alpha), n))
    else:
        mixes = rng.dirichlet(np.full(len(counts), alpha), n) if alpha else deal(rng, n, 1, len(counts)).astype(float)
        held = rng.multinomial(len(labels) // n, mixes)
    samples = _by_class(rng, labels)
    if sizes == "fedfix":
        first, drawn = np.cumsum(counts) - counts, held.sum(0)
        samples = samples[np.repeat(first, drawn) + rng.integers(0, np.repeat(counts, drawn))]
    owners = np.repeat(np.tile(np.arange(n), len(counts)), held.T.ravel())
    return from_owners(owners, samples, n, repeats=sizes == "fedfix")


# --- checks ----------------------------------------------------------------------------------------------------


def _by_class(rng: np.random.Generator, labels: np.ndarray) -> np.ndarray:
    """All samples, classes one after the other, in random order within a class."""
    order = rng.permutation(len(labels))
    return order[np.argsort(labels[order], kind="stable")]


def checked_labels(labels: ArrayLike) -> np.ndarray:
    """Labels as an int64 vector (N,), from an array or a tensor on any device."""
    array = _whole("labels", labels.detach().cpu() if hasattr(labels, "detach") else labels)
    if not len(array) or array.min() < 0:
        given = f"{array.min()} is refused" if len(array) else "there are none"
        raise UserError(f"labels: {given}. Allowed: class numbers from 0 on.")
    return array.astype(np.int64)


def _inputs(labels: ArrayLike, n: int, seed: int, purpose: str) -> tuple[np.ndarray, np.random.Generator]:
    labels = checked_labels(labels)
    if not _is_whole(n) or not 1 <= n <= len(labels):
        raise UserError(f"partition: {n!r} clients are refused for {len(labels)} samples. "
                        f"Allowed: whole number, 1 <= x <= {len(labels)}.")
    if not _is_whole(seed):
        raise UserError(f"partition: seed = {seed!r} is refused. Allowed: whole number.")
    return labels, np.random.default_rng(derive_seed(int(seed), "partition", purpose))


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _whole(what: str, values: ArrayLike) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise UserError(f"{what} must be a vector of whole numbers, not {array.dtype} of shape {array.shape}.")
    return array
