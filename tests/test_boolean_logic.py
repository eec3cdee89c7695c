"""Boolean calculus: every identity over every case where there are few, over drawn ones where there are many.

Numbers are integers or quarters of small integers, so that products and sums are exact in floating point and equality is meant.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workbench.boolean.logic import (
    FALSE,
    NEITHER,
    TRUE,
    aggregate,
    and_,
    chain,
    count_true,
    delta,
    embed,
    magnitude,
    not_,
    or_,
    partial_variation,
    project,
    signed_sum,
    step_variation,
    variation,
    xnor,
    xor,
)

THREE = (TRUE, NEITHER, FALSE)
BOOLEANS = (TRUE, FALSE)
FUNCTIONS = [lambda x: x, not_, lambda x: TRUE, lambda x: FALSE]
"""All functions of one Boolean."""
numbers = st.integers(-400, 400).map(lambda k: k / 4)
logics = st.sampled_from(THREE)


def words(a: int) -> bool | None:
    return {TRUE: True, FALSE: False, NEITHER: None}[a]


CONNECTIVES = {and_: lambda a, b: a and b, or_: lambda a, b: a or b, xnor: lambda a, b: a == b, xor: lambda a, b: a != b}


@pytest.mark.parametrize("connective", CONNECTIVES, ids=lambda f: f.__name__)
def test_connectives_are_python_s_own_and_zero_gives_zero(connective):
    for a, b in itertools.product(THREE, THREE):
        expected = NEITHER if NEITHER in (a, b) else embed(bool(CONNECTIVES[connective](words(a), words(b))))
        assert connective(a, b) == expected
        assert connective(torch.tensor(float(a)), torch.tensor(float(b))).item() == expected
    for a, b in itertools.product((True, False), repeat=2):
        assert connective(a, b) == embed(bool(CONNECTIVES[connective](a, b)))


def test_negation():
    assert [not_(a) for a in THREE] == [FALSE, NEITHER, TRUE]
    assert not_(True) == FALSE
    assert not_(2.5) == -2.5


def test_embedding_and_projection():
    assert [embed(True), embed(False)] == [TRUE, FALSE]
    assert embed(torch.tensor([True, False])).tolist() == [1, -1]
    assert [project(x) for x in (3.5, -2, 0, True, False)] == [TRUE, FALSE, NEITHER, TRUE, FALSE]
    assert project(torch.tensor([0.5, 0.0, -7.0])).tolist() == [1, 0, -1]
    assert all(project(embed(a)) == a for a in THREE)


@given(a=numbers, b=numbers)
def test_mixed_type_logic_has_the_magnitude_of_the_product_and_the_logic_of_the_signs(a, b):
    for connective in CONNECTIVES:
        c = connective(a, b)
        assert magnitude(c) == magnitude(a) * magnitude(b)
        assert project(c) == connective(project(a), project(b))
        tensors = connective(torch.tensor(a), torch.tensor(b))
        assert tensors.item() == c


@given(a=logics, x=numbers, y=numbers, k=numbers)
def test_facts_of_xnor(a, x, y, k):
    assert xnor(a, x) == embed(a) * x
    assert xnor(x, y) == x * y
    assert xor(x, y) == not_(xnor(x, y))
    assert xnor(a, x + y) == xnor(a, x) + xnor(a, y)
    assert xnor(a, k * x) == k * xnor(a, x)
    assert and_(x, y) == and_(y, x)
    assert or_(x, y) == not_(and_(not_(x), not_(y))) or xnor(x, y) == 0


def test_delta_of_booleans_and_numbers():
    assert [delta(a, b) for a, b in itertools.product(BOOLEANS, BOOLEANS)] == [0, FALSE, TRUE, 0]
    assert delta(2.0, 5.0, "numeric") == 3.0
    assert delta(2.0, 5.0) == TRUE


def test_atomic_variations():
    for x, a in itertools.product(BOOLEANS, THREE):
        assert variation(lambda x, a=a: xnor(x, a), x, "logic") == a
        assert variation(lambda x, a=a: xor(x, a), x, "logic") == not_(a)
    assert variation(lambda x: and_(x, TRUE), TRUE, "logic") == TRUE
    assert variation(lambda x: and_(x, FALSE), TRUE, "logic") == NEITHER


@given(x=st.sampled_from(BOOLEANS), f=st.tuples(numbers, numbers), g=st.tuples(numbers, numbers), k=numbers)
def test_variation_is_linear_and_reads_as_the_slope(x, f, g, k):
    def table(values):
        return lambda x: values[0] if x == TRUE else values[1]

    first, second = variation(table(f), x), variation(table(g), x)
    assert first == f[0] - f[1]  # positive iff f moves as x does, at either x
    assert variation(lambda x: table(f)(x) + table(g)(x), x) == first + second
    assert variation(lambda x: k * table(f)(x), x) == k * first
    assert variation(lambda x: not_(table(f)(x)), x) == not_(first)


def test_chain_rule_from_booleans_to_booleans():
    outer = [dict(zip(BOOLEANS, values, strict=True)) for values in itertools.product(THREE, THREE)]
    for f, table, x in itertools.product(FUNCTIONS, outer, BOOLEANS):
        for kind in ("logic", "numeric"):
            direct = variation(lambda x, f=f, table=table: table[f(x)], x, kind)
            assert chain(variation(table.get, f(x), kind), variation(f, x, "logic")) == direct


@given(start=st.integers(-5, 5), step=st.integers(-1, 1), x=st.sampled_from(BOOLEANS), slope=numbers, offset=numbers)
def test_chain_rule_through_integers_where_its_conditions_hold(start, step, x, slope, offset):
    def f(x):  # |f'| <= 1
        return start + (step if x == TRUE else 0)

    def g(k):  # affine: the same variation everywhere
        return slope * k + offset

    assert chain(step_variation(g, f(x)), variation(f, x)) == variation(lambda x: g(f(x)), x)


def test_chain_rule_through_integers_fails_beyond_its_conditions():
    """The threshold breaks it, which is why its backward pass is a rule of its own."""
    def step(k):
        return TRUE if k >= 0 else FALSE

    def f(x):
        return 1 if x == TRUE else -2  # |f'| = 3

    assert variation(lambda x: step(f(x)), TRUE) == 2
    assert chain(step_variation(step, f(TRUE)), variation(f, TRUE)) == 0


@given(w=st.lists(st.sampled_from(BOOLEANS), min_size=1, max_size=8), data=st.data())
def test_partial_variation_predicts_a_flip_exactly(w, data):
    values = data.draw(st.lists(numbers, min_size=len(w), max_size=len(w)))
    i = data.draw(st.integers(0, len(w) - 1))
    x, weights = torch.tensor(values), torch.tensor(w, dtype=torch.float32)

    def f(w):
        return xnor(w, x).sum()

    turned = weights.clone()
    turned[i] *= -1
    change = partial_variation(f, weights, i)
    assert change == 2 * x[i]  # F(T) - F(F) of w x
    assert f(turned) - f(weights) == xnor(not_(weights[i]), change)


@given(votes=st.lists(numbers, min_size=1, max_size=20))
def test_aggregation_counts_true_up_and_false_down(votes):
    for_, against = (sum(abs(v) for v in votes if project(v) == side) for side in BOOLEANS)
    assert aggregate(torch.tensor(votes)).item() == for_ - against
    assert aggregate(torch.tensor([[True, True, False]]), 1).item() == 1


@given(w=st.lists(st.sampled_from(BOOLEANS), min_size=1, max_size=20))
def test_counts_and_signed_sums(w):
    assert count_true(sum(w), len(w)) == w.count(TRUE)
    assert signed_sum(w.count(TRUE), len(w)) == sum(w)
    # a threshold on counts is one on sums
    for tau in range(len(w) + 1):
        assert (w.count(TRUE) >= tau) == (sum(w) >= signed_sum(tau, len(w)))
