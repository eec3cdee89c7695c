"""Partitions: exact covers and class holders, moments of the random mixes in closed form, each refusal by its rule.

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
from workbench.federation.partition_file import by_file
from workbench.federation.partition_shift import feature_shift, rotate

RULES = ("iid", "shards", "sorted_shards", "dirichlet", "dirichlet_equal", "fedfix")
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


# --- refusals -----------------------------------------------------------------------------------------------

LABELS = np.array([0, 0, 0, 1, 1, 1])


@pytest.mark.parametrize(("call", "rule"), [
    (lambda: iid(LABELS, 7), "1 <= x <= 6"),
    (lambda: iid(LABELS, 0), "1 <= x <= 6"),
    (lambda: iid(LABELS, True), "1 <= x <= 6"),
    (lambda: iid(LABELS, 2, 0.5), "seed = 0.5"),
    (lambda: iid(LABELS.astype(float), 2), "whole numbers, not float64"),
    (lambda: iid(LABELS.reshape(2, 3), 2), "vector of whole numbers"),
    (lambda: iid(LABELS - 1, 2), "-1 is refused"),
    (lambda: iid(LABELS[:0], 1), "there are none"),
    (lambda: shards(LABELS, 2, 3), "the data have 2 classes"),
    (lambda: shards(LABELS, 2, 0), "1 or more"),
    (lambda: shards(LABELS, 1, 1), "clients x classes_per_client >= 2"),
    (lambda: shards(LABELS, 4, 2), "class 0 has 3 samples for 4 clients"),
    (lambda: shards(LABELS, 2, 1, scheme="sort"), "Did you mean 'sorted'"),
    (lambda: dirichlet(LABELS, 2, 0), "0 < x <= 1e6"),
    (lambda: dirichlet(LABELS, 2, math.nan), "0 < x <= 1e6"),
    (lambda: dirichlet(LABELS, 2, -1, sizes="fedfix"), "0 < x <= 1e6"),
    (lambda: dirichlet(LABELS, 2, 1, min_size=4), "1 <= x <= 3"),
    (lambda: dirichlet(LABELS, 2, 1, min_size=0), "1 <= x <= 3"),
    (lambda: dirichlet(LABELS, 2, 1, sizes="fedfax"), "Did you mean 'fedfix'"),
    (lambda: dirichlet(LABELS, 6, 1e-6), "none of 1000 draws"),  # two classes, two clients: four are empty
    (lambda: partition("shard", LABELS, 2, seed=0), "Did you mean 'shards'"),
    (lambda: feature_shift(LABELS, 2, angle_deg=(0, 1, 2)), "1 to 2"),
    (lambda: feature_shift(LABELS, 2, contrast=(-1,)), "0 or more"),
    (lambda: feature_shift(LABELS, 2, noise=(math.inf,)), "finite"),
    (lambda: Partition([0, 2, 1], [0, 1]), "offsets must ascend"),
    (lambda: Partition([0, 1], [0.0]), "index must be a vector of whole numbers"),
    (lambda: Partition([0, 1, 1], [0]).check(6), "client 1 has no sample"),
    (lambda: Partition([0], np.array([], int)).check(6), "there is no client"),
    (lambda: Partition([0, 1], [6]).check(6), "sample 6 does not exist. Allowed: 0 to 5"),
    (lambda: Partition([0, 1, 2], [3, 3]).check(6), "sample 3 is given out 2 times"),
    (lambda: Partition([0, 2], [0, 1]).check(6, covering=True), "4 of 6 samples are given to nobody, the first is 2"),
])
def test_refusals_name_the_rule(call, rule):
    with pytest.raises(UserError) as error:
        call()
    assert rule in str(error.value)


def test_a_partition_cannot_be_changed():
    p = iid(LABELS, 2)
    with pytest.raises(ValueError, match="read-only"):
        p.of(0)[0] = 3


# --- files --------------------------------------------------------------------------------------------------


@given(federations(), st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_files_give_back_what_was_written(tmp_path_factory, federation, seed):
    labels, n = federation
    folder, p = tmp_path_factory.mktemp("partition"), iid(labels, n, seed, drop_remainder=True)
    np.savez(folder / "csr.npz", offsets=p.offsets, index=p.index)
    client = np.full(len(labels), -1)
    client[p.index] = p.owners
    np.savez(folder / "vector.npz", client=client)
    rows = np.random.default_rng(seed).permutation(np.stack([p.index, p.owners], 1))
    (folder / "pairs.csv").write_text("\ufeffsample,client\n" + "".join(f"{s},{c}\n" for s, c in rows), "utf-8")
    for name in ("csr.npz", "vector.npz", "pairs.csv"):
        read = by_file(folder / name, len(labels))
        assert np.array_equal(read.offsets, p.offsets)
        assert np.array_equal(read.index, p.index)


@pytest.mark.parametrize(("name", "content", "rule"), [
    ("a.csv", "client,sample\n0,0\n", "Allowed: sample,client"),
    ("a.csv", "", "Allowed: sample,client"),
    ("a.csv", "sample,client\n", "gives no sample"),
    ("a.csv", "sample,client\n0,0\n1,x\n", "line 3 is '1,x'"),
    ("a.csv", "sample,client\n0\n", "line 2 is '0'"),
    ("a.csv", "sample,client\n0,-1\n", "client -1 is refused"),
    ("a.csv", "sample,client\n0,0\n1,2\n2,2\n", "client 1 has no sample"),
    ("a.csv", "sample,client\n0,900\n", "without gaps"),
    ("a.csv", "sample,client\n9,0\n", "sample 9 does not exist"),
    ("a.csv", "sample,client\n1,0\n1,0\n", "given out 2 times"),
    ("a.txt", "", "Allowed: .csv, .npz"),
    ("a.npz", "no archive", "cannot be read"),
    ("a.npz", {"owner": np.zeros(6, int)}, "Allowed: offsets and index, or client alone"),
    ("a.npz", {"client": np.zeros(5, int)}, "client must be 6 whole numbers"),
    ("a.npz", {"client": np.zeros(6)}, "client must be 6 whole numbers"),
    ("a.npz", {"client": np.full(6, -1)}, "gives no sample"),
    ("a.npz", {"client": np.array([None] * 6)}, "cannot be read"),
    ("a.npz", {"offsets": np.array([0, 2]), "index": np.array([0, 0])}, "given out 2 times"),
])
def test_bad_files_are_refused_by_name_and_rule(tmp_path, name, content, rule):
    if isinstance(content, str):
        (tmp_path / name).write_text(content)
    else:
        np.savez(tmp_path / name, **content)
    with pytest.raises(UserError) as error:
        by_file(tmp_path / name, 6)
    assert name in str(error.value)
    assert rule in str(error.value)
    with pytest.raises(UserError, match="does not exist"):
        by_file(tmp_path / "none.csv", 6)


def test_a_file_may_repeat_samples_where_it_is_allowed(tmp_path):
    (tmp_path / "a.csv").write_text("sample,client\n1,0\n1,1\n")
    assert by_file(tmp_path / "a.csv", 6, repeats=True).class_counts(LABELS).tolist() == [[1, 0], [1, 0]]


# --- feature shift ------------------------------------------------------------------------------------------


def _images(b, c, h, w, seed=0):
    return torch.randn(b, c, h, w, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_neutral_levels_leave_images_bit_for_bit():
    shift = feature_shift(MNIST_LIKE, 8, angle_deg=(0, 30), contrast=(1, 2), seed=1)
    x = _images(8, 3, 7, 5).float()
    y = shift.apply(x, torch.arange(8))
    for i in range(8):
        assert torch.equal(x[i], y[i]) == (shift.angle_deg[i] == 0 and shift.contrast[i] == 1)
    assert torch.equal(feature_shift(MNIST_LIKE, 8).apply(x, torch.arange(8)), x)


@pytest.mark.parametrize("side", [8, 28, 33])
def test_quarter_turns_move_pixels_and_keep_the_energy(side):
    x = _images(4, 2, side, side)
    y = rotate(x, torch.tensor([0.0, 90, 180, -90], dtype=torch.float64))
    # positions are off by rounding, 1e-16 of the side, and so are bilinear weights
    for turned, image, turns in zip(y, x, (0, 1, 2, 3), strict=True):
        assert torch.allclose(turned, torch.rot90(image, turns, (1, 2)), atol=1e-11)
    assert torch.allclose(y.square().sum((1, 2, 3)), x.square().sum((1, 2, 3)), rtol=1e-11)


@pytest.mark.parametrize(("h", "w"), [(64, 64), (48, 80)])
def test_rotation_of_a_gaussian_in_closed_form(h, w):
    """A bell of axes (6, 4) pixels turned by an angle is a bell with turned axes.

    Bilinear interpolation errs by at most (max |f_xx| + max |f_yy|) / 8, and no second derivative exceeds 1 / 4^2: by
    1 / 64 in all. Beyond the frame, 3.9 axes away, the bell is below 1e-3.
    """
    angles = torch.tensor([15.0, 37, 120, -75], dtype=torch.float64)
    rows, columns = torch.meshgrid(torch.arange(h) - (h - 1) / 2, torch.arange(w) - (w - 1) / 2, indexing="ij")
    right, up = columns.double(), -rows.double()

    def bell(angle):
        along = right * torch.cos(angle) + up * torch.sin(angle)
        across = -right * torch.sin(angle) + up * torch.cos(angle)
        return torch.exp(-((along / 6) ** 2 + (across / 4) ** 2) / 2)

    turned = rotate(bell(torch.tensor(0.0, dtype=torch.float64)).expand(4, 1, h, w), angles)
    expected = torch.stack([bell(a) for a in torch.deg2rad(angles)])[:, None]
    assert (turned - expected).abs().max() < 1 / 64 + 1e-3
    # the energy of a bell, pi * 6 * 4, has no direction. The norm of f_xx is sqrt(3) / 2 / 4^2 of its own or less, so
    # the error's 1 / 64 or less, and the energy errs by twice that
    assert torch.allclose(turned.square().sum((1, 2, 3)), torch.tensor(math.pi * 24, dtype=torch.float64), rtol=1 / 32)


@given(st.floats(-360, 360), st.integers(2, 12), st.integers(2, 12))
@settings(max_examples=50, deadline=None)
def test_no_value_leaves_the_range_of_its_image(angle, h, w):
    x = _images(1, 1, h, w)
    y = rotate(x, torch.tensor([angle], dtype=torch.float64))
    assert y.shape == x.shape
    assert y.min() >= x.min() - 1e-12
    assert y.max() <= x.max() + 1e-12


def test_a_batch_of_clients_is_each_client_by_itself():
    shift = feature_shift(MNIST_LIKE, 12, seed=2, angle_deg=(0, 45, 90), contrast=(0.5, 1, 2), brightness=(-1, 0, 1))
    x, clients = _images(20, 3, 9, 9), torch.arange(20) * 5 % 12
    whole = shift.apply(x, clients)
    for i in range(20):
        assert torch.allclose(whole[i:i + 1], shift.apply(x[i:i + 1], clients[i:i + 1]), atol=1e-12)


def test_brightness_contrast_and_noise_move_mean_and_variance_as_stated():
    shift = feature_shift(MNIST_LIKE, 6, seed=3, contrast=(0.5, 2, 3), brightness=(-1, 0.25))
    x = _images(6, 3, 8, 8)
    y = shift.apply(x, torch.arange(6))
    mean, variance = x.mean((1, 2, 3)), x.var((1, 2, 3))
    assert torch.allclose(y.mean((1, 2, 3)), mean + torch.from_numpy(shift.brightness))
    assert torch.allclose(y.var((1, 2, 3)), variance * torch.from_numpy(shift.contrast) ** 2)

    noisy = feature_shift(MNIST_LIKE, 4, seed=3, noise=(0, 0.3))
    flat, generator = torch.zeros(4, 1, 100, 100), torch.Generator().manual_seed(0)
    state = torch.get_rng_state()
    added = noisy.apply(flat, torch.arange(4), generator)
    assert torch.equal(torch.get_rng_state(), state)
    for level, image in zip(noisy.noise, added, strict=True):
        # the standard error of a standard deviation of 10,000 normal values is sigma / sqrt(20,000)
        assert abs(image.std().item() - level) <= 5 * level / math.sqrt(20_000)
    with pytest.raises(UserError, match=r"torch\.Generator"):
        noisy.apply(flat, torch.arange(4))
    with pytest.raises(UserError, match="images"):
        noisy.apply(flat.byte(), torch.arange(4), generator)


def test_label_law_is_the_same_for_all_clients_and_levels_are_shared_out_equally():
    """Pearson's statistic of client x class has (n - 1)(C - 1) = 171 degrees of freedom and so a variance of 342."""
    shift = feature_shift(MNIST_LIKE, 20, seed=4, angle_deg=(0, 90, 180, 270), noise=(0, 0.1))
    held = shift.partition.check(60_000, covering=True).class_counts(MNIST_LIKE)
    expected = 60_000 / 200
    assert abs(((held - expected) ** 2 / expected).sum() - 171) < 5 * math.sqrt(2 * 171)
    assert Counter(shift.angle_deg) == {0: 5, 90: 5, 180: 5, 270: 5}
    assert Counter(shift.noise) == {0: 10, 0.1: 10}


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
