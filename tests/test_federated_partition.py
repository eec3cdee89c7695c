"""Partitions: exact covers and class holders, moments of the random mixes in closed form, the figure of who holds what.

Random checks are seeded; "5 sigma" means five standard errors of what is estimated, so a right program fails one such
check in two million.
"""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tracking.errors import UserError
from tracking.figures import data_of
from workbench.federation.partition import Partition, dirichlet, iid, partition, shards
from workbench.federation.partition_draws import deal, even, take_turns
from workbench.federation.partition_figure import label_divergence, who_holds_what

RULES = ("iid", "shards", "sorted_shards", "dirichlet", "dirichlet_equal", "fedfix")
LABELS = np.array([0, 0, 0, 1, 1, 1])
MNIST_LIKE = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 6000))


def _five_sigma(samples, expected):
    """Whether the mean of ``samples`` (first axis) is where it should be."""
    samples = np.asarray(samples, float)
    error = samples.std(0, ddof=1) / math.sqrt(len(samples))
    return np.all(np.abs(samples.mean(0) - expected) <= 5 * error + 1e-12)


def _attempt(call):
    """What the call returns and, if it refuses, why."""
    try:
        return call(), ""
    except UserError as error:
        return None, str(error)


@st.composite
def federations(draw):
    """Labels of 1 to 6 classes (numbers with gaps), and a number of clients they can serve."""
    names = draw(st.lists(st.integers(0, 12), min_size=1, max_size=6, unique=True))
    counts = draw(st.lists(st.integers(1, 40), min_size=len(names), max_size=len(names)))
    labels = np.random.default_rng(draw(st.integers(0, 99))).permutation(np.repeat(names, counts))
    return labels, draw(st.integers(1, len(labels)))


# --- every sample once, whatever the sizes ------------------------------------------------------------------


@given(federations(), st.integers(0, 5))
@settings(max_examples=80, deadline=None)
def test_iid_is_an_even_disjoint_cover(federation, seed):
    labels, n = federation
    p = iid(labels, n, seed).check(len(labels), covering=True)
    assert p.clients == n
    assert np.ptp(p.sizes) <= 1
    assert sorted(p.index) == list(range(len(labels)))
    equal = iid(labels, n, seed, drop_remainder=True).check(len(labels))
    assert set(equal.sizes) == {len(labels) // n}


@given(federations(), st.integers(1, 4), st.integers(0, 5))
@settings(max_examples=80, deadline=None)
def test_sorted_shards_are_parts_of_the_sorted_data(federation, k, seed):
    labels, n = federation
    if n * k > len(labels):
        with pytest.raises(UserError, match="parts each need"):
            shards(labels, n, k, seed, scheme="sorted")
        return
    p = shards(labels, n, k, seed, scheme="sorted").check(len(labels), covering=True)
    assert np.ptp(p.sizes) <= k
    # k runs of the sorted data: each but its first class change within a run needs a class to end there
    classes = len(np.unique(labels))
    assert (p.class_counts(labels) > 0).sum() <= n * k + classes - 1


@given(federations(), st.integers(1, 6), st.integers(0, 5))
@settings(max_examples=150, deadline=None)
def test_shards_give_exactly_so_many_classes_to_each_client_and_equal_holders_to_each_class(federation, k, seed):
    labels, n = federation
    counts = np.unique(labels, return_counts=True)[1]
    p, refusal = _attempt(lambda: shards(labels, n, k, seed))
    if refusal:
        assert k > len(counts) or n * k < len(counts) or counts.min() < math.ceil(n * k / len(counts)), refusal
        return
    p.check(len(labels), covering=True)
    held = p.class_counts(labels)[:, np.unique(labels)]
    assert ((held > 0).sum(1) == k).all()
    holders = (held > 0).sum(0)
    assert holders.sum() == n * k
    assert np.ptp(holders) <= 1
    for column in held.T:  # equal parts
        assert np.ptp(column[column > 0]) <= 1


@given(federations(), st.floats(0.05, 50), st.integers(0, 5))
@settings(max_examples=80, deadline=None)
def test_dirichlet_partitions_cover_and_leave_nobody_empty(federation, alpha, seed):
    labels, n = federation
    equal = dirichlet(labels, n, alpha, seed, sizes="equal").check(len(labels), covering=True)
    assert np.ptp(equal.sizes) <= 1
    fix = dirichlet(labels, n, alpha, seed, sizes="fedfix").check(len(labels))
    assert set(fix.sizes) == {len(labels) // n}
    assert fix.repeats
    least = max(1, len(labels) // n // 3)
    free, refusal = _attempt(lambda: dirichlet(labels, n, alpha, seed, min_size=least))
    assert not refusal or "none of 1000 draws" in refusal
    if free:
        assert free.check(len(labels), covering=True).sizes.min() >= least


def test_two_classes_of_sixty_thousand_for_a_hundred_clients():
    """20 holders a class and 600 images a client: 6000 / 20 from each of two classes, exactly."""
    p = shards(MNIST_LIKE, 100, 2, seed=3)
    held = p.class_counts(MNIST_LIKE)
    assert set(p.sizes) == {600}
    assert set(held.ravel()) == {0, 300}
    assert set((held > 0).sum(0)) == {20}
    # 20 whole parts a class: some get one class twice
    ordered = shards(MNIST_LIKE, 100, 2, seed=3, scheme="sorted").class_counts(MNIST_LIKE)
    assert set(ordered.ravel()) == {0, 300, 600}
    assert set(ordered.sum(1)) == {600}


def test_fedfix_with_alpha_zero_is_one_class_a_client():
    held = dirichlet(MNIST_LIKE, 50, 0, seed=2, sizes="fedfix").class_counts(MNIST_LIKE)
    assert set(held.ravel()) == {0, 1200}
    assert set((held > 0).sum(0)) == {5}


# --- laws of the random parts -------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.1, 0.7, 5.0])
def test_shares_of_a_class_have_dirichlet_moments(alpha):
    """Client i's share of a class ~ Beta(a, (n - 1) a): mean 1 / n, variance (1 / n)(1 - 1 / n) / (n a + 1).

    3000 classes are 3000 independent draws.
    Rounding to 1 / 1000 of a class adds less than 1e-6 to a variance of 0.006 or more. With so many classes no draw is
    repeated.
    """
    n, size = 5, 1000
    labels = np.repeat(np.arange(3000), size)
    share = dirichlet(labels, n, alpha, seed=1).class_counts(labels).T / size
    assert _five_sigma(share, 1 / n)
    assert _five_sigma((share - 1 / n) ** 2, (1 / n) * (1 - 1 / n) / (n * alpha + 1))


@pytest.mark.parametrize("alpha", [0.1, 0.7, 5.0])
def test_fedfix_counts_have_dirichlet_multinomial_moments(alpha):
    """Of m samples, a class has m p on average, variance m p (1 - p) (m + A) / (1 + A), p = 1 / C and A = C alpha."""
    clients, m, classes = 4000, 30, 4
    labels = np.repeat(np.arange(classes), clients * m // classes)
    held = dirichlet(labels, clients, alpha, seed=4, sizes="fedfix").class_counts(labels)
    p, total = 1 / classes, classes * alpha
    assert _five_sigma(held, m * p)
    assert _five_sigma((held - m * p) ** 2, m * p * (1 - p) * (m + total) / (1 + total))


def test_fedfix_draws_with_replacement_within_a_class():
    """m of N with replacement: a sample is missed with probability (1 - 1/N)^m.

    Misses are negatively associated, so their number varies less than a binomial one.
    """
    labels = np.zeros(20_000, int)
    p = dirichlet(labels, 20, 1.0, seed=5, sizes="fedfix")
    missed, chance = 20_000 - len(np.unique(p.index)), (1 - 1 / 20_000) ** 20_000
    assert abs(missed - 20_000 * chance) < 5 * math.sqrt(20_000 * chance * (1 - chance))


def test_taking_turns_by_hand():
    rng = np.random.default_rng(0)
    assert (take_turns(rng, np.array([3, 3]), np.eye(2)) == [[3, 0], [0, 3]]).all()
    # both want class 0: after two turns each it is empty, and what is left goes to whoever is there
    assert (take_turns(rng, np.array([4, 4]), np.array([[1.0, 0], [1, 0]])) == [[2, 2], [2, 2]]).all()
    # the third client wants the class that nobody else does
    assert (take_turns(rng, np.array([4, 2]), np.array([[1.0, 0], [1, 0], [0, 1]])) == [[2, 0], [2, 0], [0, 2]]).all()


def test_taking_turns_favours_nobody():
    """Clients with one law are exchangeable, whoever comes first: each gets counts / n of each class on average."""
    rng, counts, n = np.random.default_rng(1), np.array([5, 3, 2]), 3
    held = np.array([take_turns(rng, counts, rng.dirichlet(np.full(3, 0.5), n)) for _ in range(1500)])
    assert _five_sigma(held, counts / n)
    # two rivals for one sample
    assert _five_sigma([take_turns(rng, np.array([1, 1]), np.array([[1.0, 0], [1, 0]]))[0, 0] for _ in range(500)], 1 / 2)
    # client 1 wants class 0 alone. Client 0 takes the one sample of class 1 in turn 1 with chance 1/2, else in turn 2
    # it chooses it with chance 1/2, and else loses the race for the last of class 0 with chance 1/2: 1/2 + 1/2 * 3/4
    mixes = np.array([[0.5, 0.5], [1, 0]])
    assert _five_sigma([take_turns(rng, np.array([3, 1]), mixes)[0, 1] for _ in range(3000)], 7 / 8)


def test_the_odd_sample_of_a_class_goes_to_any_of_its_holders():
    held = [shards(LABELS, 2, 2, seed).class_counts(LABELS)[0] for seed in range(300)]
    assert _five_sigma(held, 3 / 2)


@given(st.integers(1, 9), st.integers(1, 8), st.data())
@settings(max_examples=150, deadline=None)
def test_dealt_hands_are_different_cards_and_all_kinds_equally_often(n, kinds, data):
    k = data.draw(st.integers(1, kinds))
    held = deal(np.random.default_rng(data.draw(st.integers(0, 9))), n, k, kinds)
    assert (held.sum(1) == k).all()
    assert np.ptp(held.sum(0)) <= 1


def test_deals_that_only_names_tell_apart_are_equally_likely():
    """Two of three kinds to each of three hands, two hands a kind: the kinds that hands lack are a permutation.

    Renaming the kinds takes any such permutation to any other, so a dealer who is blind to names makes all equally
    likely.
    """
    rng = np.random.default_rng(2)
    seen = Counter(tuple((~deal(rng, 3, 2, 3)).argmax(1)) for _ in range(3000))
    chi2 = sum((count - 500) ** 2 / 500 for count in seen.values())
    assert len(seen) == 6
    assert chi2 < 25.7  # 99.99 % point of chi-square with 5 degrees of freedom


@given(st.integers(1, 9), st.integers(0, 40))
def test_even_parts(parts, total):
    sizes = np.bincount(even(parts, total), minlength=parts)
    assert sizes.sum() == total
    assert np.ptp(sizes) <= 1


def test_alpha_orders_how_uneven_clients_are():
    """Towards a large alpha every client has the law of the whole, towards a small one (nearly) one class."""
    for sizes in ("free", "equal", "fedfix"):
        drawn = [dirichlet(MNIST_LIKE, 20, alpha, seed=1, sizes=sizes) for alpha in (0.05, 0.5, 5, 1e6)]
        tv = [label_divergence(p, MNIST_LIKE).mean for p in drawn]
        assert tv == sorted(tv, reverse=True)
        assert tv[0] > 0.5
        assert tv[-1] < 0.03


# --- seeds --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_the_seed_alone_decides(rule):
    def same(a, b):
        return np.array_equal(a.offsets, b.offsets) and np.array_equal(a.index, b.index)

    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    first = partition(rule, MNIST_LIKE, 30, seed=6, classes_per_client=3, alpha=0.4)
    assert np.array_equal(np.random.get_state()[1], before)
    np.random.seed(2)
    assert same(first, partition(rule, MNIST_LIKE, 30, seed=6, classes_per_client=3, alpha=0.4))
    assert same(first, partition(rule, torch.from_numpy(MNIST_LIKE), 30, seed=6, classes_per_client=3, alpha=0.4))
    assert not same(first, partition(rule, MNIST_LIKE, 30, seed=7, classes_per_client=3, alpha=0.4))
    assert all((np.diff(first.of(i)) >= 0).all() for i in range(30))
    assert first.check(60_000).clients == 30


# --- divergence and figure ----------------------------------------------------------------------------------


def test_divergence_by_hand():
    labels = np.array([0, 0, 0, 0, 1, 1, 2, 2])  # law (1/2, 1/4, 1/4)
    p = Partition([0, 4, 6, 8], [0, 1, 2, 3, 4, 5, 6, 7])
    mean, largest, each = label_divergence(p, labels)
    assert each.tolist() == [0.5, 0.75, 0.75]
    assert largest == 0.75
    assert mean == pytest.approx(2 / 3)
    # two of ten equal classes: (2 |1/2 - 1/10| + 8 / 10) / 2
    assert np.allclose(label_divergence(shards(MNIST_LIKE, 100, 2), MNIST_LIKE).per_client, 0.8)


@pytest.mark.parametrize("n", [4, 100])
def test_the_figure_holds_the_counts(n):
    p = dirichlet(MNIST_LIKE, n, 0.3, seed=1)
    held = p.class_counts(MNIST_LIKE)
    figure = who_holds_what(p, MNIST_LIKE, note="a note")
    drawn, ceiling = np.zeros_like(held), 0.0
    for c, trace in enumerate(figure.data):
        drawn[np.array(trace.x), c] = trace.y
        assert trace.name == f"class {c} (n=6000)"
        assert trace.textposition == ("outside" if n == 4 else "none")
        # a row begins above the highest bar of the row below, at the tick that names it
        assert len(set(trace.base)) == 1
        assert trace.base[0] >= ceiling
        assert figure.layout.yaxis.ticktext[figure.layout.yaxis.tickvals.index(trace.base[0])] == str(c)
        ceiling = trace.base[0] + max(trace.y)
    assert np.array_equal(drawn, held)
    assert figure.layout.yaxis.range[1] >= ceiling
    assert figure.layout.barmode == "overlay"
    assert figure.layout.xaxis.title.text == "client [index]"
    assert "[count]" in figure.layout.yaxis.title.text
    assert f"highest bar: {held.max()} samples" in figure.layout.title.subtitle.text
    table = data_of(figure)  # what a report offers for download
    assert table.iloc[:, 2].sum() == 60_000


def test_the_figure_skips_classes_that_nobody_has_and_names_two_hundred():
    labels = np.repeat(np.arange(200) * 2 + 1, 20)
    figure = who_holds_what(shards(labels, 10, 40), labels)
    assert [t.name for t in figure.data] == [f"class {c} (n=20)" for c in range(1, 400, 2)]
    assert len(figure.layout.yaxis.ticktext) == 40
    assert figure.layout.height == 1500
