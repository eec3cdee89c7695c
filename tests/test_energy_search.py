"""The search over tiles and loop orders: closed forms, bounds, brute force, and figures of an independent mapper."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.energy_helpers import KB, cube, divisors, exhaustive_j, greedy_j, plain
from tracking.energy_model.hardware import hardware, hardware_ids
from tracking.energy_model.product import Cost, Product, Window
from tracking.energy_model.search import compulsory_bits, halo, product_cost, reprice
from tracking.errors import UserError

FORMATS = {1: "bool", 8: "int8", 16: "int16", 32: "int32"}
# rounding: sums of a few terms in double precision
EXACT = 1e-9


def product(m, n, k, a=16, b=16, acc=32, out=16, **more) -> Product:
    return Product(m, n, k, FORMATS[a], FORMATS[b], FORMATS[acc], FORMATS[out], **more)


def memory_j(p: Product, hw, **options) -> float:
    return sum(product_cost(p, hw, **options).memory_j.values())


products = st.builds(product, st.integers(1, 300), st.integers(1, 300), st.integers(1, 300), a=st.sampled_from([1, 8, 16]),
                     b=st.sampled_from([1, 8, 16]), acc=st.sampled_from([16, 32]), out=st.sampled_from([1, 8, 16, 32]),
                     window=st.sampled_from([None, Window(3), Window(3, 2), Window(5, 1, "b"), Window(1, 2)]))
SMALL = plain(("DRAM", None, 6.0), ("L1", 8 * KB, 0.5), ("A", KB, 0.03, "a"), ("B", KB, 0.04, "b"), ("O", 2 * KB, 0.02, "o"),
              array=(4, 4, 4))


def test_one_layer_by_hand():
    # O[4, 2] = A[4, 8] B[8, 2] at 8 bits, sums of 32, results of 8: A 256 bits, B 128, O 64. The inner stage has room for 160 bits,
    # 8 m k + 8 n k + 32 m n <= 160; no spatial reuse.
    hw = plain(("DRAM", None, 10.0), ("buffer", 160, 1.0))
    p = product(4, 2, 8, 8, 8, 32, 8)
    # Tile (2, 2, 1), 160 bits, k innermost, sums stay: A once, B in both turns of m: 256 + 2 * 128 + 64 = 576 bits.
    # Tile (1, 1, 8), 160 bits, m innermost, B stays: A in both turns of n: 2 * 256 + 128 + 64 = 704; with n innermost 256 + 4 * 128 + 64.
    # Tile (1, 2, 4), 160 bits, k innermost: 256 + 4 * 128 + 64 = 832. Tiles (2, 1, 4), (3, 1, 2), k innermost: 2 * 256 + 2 * 128 + 64.
    # Whoever does not leave the sums in place moves 8 * 32 bits of them twice more. So:
    # DRAM: 512 * (10 + 1) + 64 * (10 + 1) = 6336 pJ. Buffer: each of 64 MACs reads 8 + 8 + 32 bits and writes 32 at 1 pJ = 5120 pJ.
    # MACs: INT8 x INT8 to INT32, 0.3 pJ: 19.2 pJ.
    cost = product_cost(p, hw)
    assert cost.memory_j == pytest.approx({("DRAM", "a"): 2816e-12, ("DRAM", "b"): 2816e-12, ("DRAM", "o"): 704e-12,
                                           ("buffer", "a"): 512e-12, ("buffer", "b"): 512e-12, ("buffer", "o"): 4096e-12})
    assert cost.traffic_bits["DRAM", "o"] == (0, 64)
    assert cost.compute_j == pytest.approx(19.2e-12)
    assert cost.total_j == pytest.approx((6336 + 5120 + 19.2) * 1e-12)
    assert cost.tiles == (("DRAM", (4, 2, 8)), ("buffer", (2, 2, 1)))


@given(products)
def test_unlimited_memories_move_every_element_once(p):
    hw = plain(("DRAM", None, 6.0), ("L2", None, 0.6), ("L1", None, 0.3), array=(4, 4, 4))
    cost, least = product_cost(p, hw), compulsory_bits(p)
    assert {x: sum(cost.traffic_bits["DRAM", x]) for x in "abo"} == pytest.approx(least, rel=EXACT)
    inner = {x: sum(cost.traffic_bits["L2", x]) for x in "abo"}
    # further in the result still has the width of its sums
    assert inner == pytest.approx(least | {"o": compulsory_bits(dataclasses.replace(p, out=p.acc))["o"]}, rel=EXACT)


@given(products, st.sampled_from(hardware_ids()))
@settings(max_examples=60)
def test_no_schedule_moves_less_than_every_element_once(p, id):
    hw = hardware(id)
    cost, least = product_cost(p, hw), compulsory_bits(p)
    for i, stage in enumerate(hw.stages[:-1]):
        for x, level in stage.items():
            needed = least[x] if x != "o" or i == 0 else compulsory_bits(dataclasses.replace(p, out=p.acc))["o"]
            assert sum(cost.traffic_bits[level.name, x]) >= needed * (1 - EXACT)


@pytest.mark.parametrize(("turns", "r"), [((4, 3, 5), 4), ((2, 8, 1), 4), ((7, 1, 3), 2), ((1, 1, 6), 8)])
def test_memory_of_one_tile(turns, r):
    # Capacity for one tile of the array and nothing more: every turn of a loop fetches again, but for the innermost loop's operand.
    (u, v, w), bits = turns, {"a": 16, "b": 8, "acc": 32, "out": 16}
    m, n, k = u * r, v * r, w * r
    hw = plain(("DRAM", None, 6.0), ("L1", r * r * (16 + 8 + 32), 0.5), array=(r, r, r))

    def moved(stay):
        turns_n, turns_m, turns_k = (1 if stay == d else t for d, t in (("n", v), ("m", u), ("k", w)))
        return m * k * bits["a"] * turns_n + k * n * bits["b"] * turns_m + m * n * (2 * (turns_k - 1) * bits["acc"] + bits["out"])

    found = product_cost(product(m, n, k, 16, 8, 32, 16), hw)
    assert sum(sum(both) for (level, _), both in found.traffic_bits.items() if level == "DRAM") == min(map(moved, "nmk"))
    assert sum(found.memory_j.values()) == pytest.approx(
        (6.5 * min(map(moved, "nmk")) + 0.5 * m * n * k / r * (16 + 8 + 2 * 32)) * 1e-12)
    assert found.tiles[1] == ("L1", (r, r, r))


@given(products)
def test_accesses_times_elements_are_macs_at_unit_reuse(p):
    # without an array every multiply-accumulate reads its two factors and its sum, and writes the sum
    hw = plain(("DRAM", None, 6.0), ("L1", 64 * KB, 0.5))
    traffic = product_cost(p, hw).traffic_bits
    wide = {name: {"bool": 1}.get(f) or int(f[3:]) for name, f in (("a", p.a), ("b", p.b), ("acc", p.acc))}
    assert traffic["L1", "a"] == pytest.approx((p.macs * wide["a"], 0))
    assert traffic["L1", "b"] == pytest.approx((p.macs * wide["b"], 0))
    assert traffic["L1", "o"] == pytest.approx((p.macs * wide["acc"],) * 2)


def test_an_array_that_is_not_full_shares_less():
    hw = plain(("DRAM", None, 6.0), ("L1", None, 0.5), array=(16, 16, 16))
    traffic = product_cost(product(64, 10, 128), hw).traffic_bits
    assert traffic["L1", "a"][0] == 64 * 128 * 16  # 10 columns fit the array at once: A is read once, not 10/16 times
    assert traffic["L1", "b"][0] == 128 * 10 * 16 * 64 / 16


@settings(max_examples=40)
@given(products, st.data())
def test_more_work_or_dearer_hardware_never_costs_less(p, data):
    def grown(x, choices):
        return data.draw(st.sampled_from([f for f in choices if x in FORMATS.values() and choices.index(f) >= choices.index(x)]))

    more = {d: getattr(p, d) + data.draw(st.integers(0, 100), label=d) for d in "mnk"}
    more |= {"a": grown(p.a, ["bool", "int8", "int16", "int32"]), "b": grown(p.b, ["bool", "int8", "int16", "int32"]),
             "acc": grown(p.acc, ["int16", "int32"]), "out": grown(p.out, ["bool", "int8", "int16", "int32"])}
    base = product_cost(p, SMALL)
    for name, value in more.items():
        bigger = product_cost(dataclasses.replace(p, **{name: value}), SMALL)
        assert base.total_j <= bigger.total_j * (1 + EXACT), (name, value)
        assert base.compute_j <= bigger.compute_j * (1 + EXACT), (name, value)
    constant = data.draw(st.sampled_from(sorted(SMALL.constants())))
    dearer = SMALL.at({constant: SMALL.constants()[constant].value * data.draw(st.floats(1, 10))})
    assert base.total_j <= product_cost(p, dearer).total_j * (1 + EXACT)
    i, share = data.draw(st.integers(1, 4)), data.draw(st.floats(1, 16))
    roomier = list(SMALL.levels)
    roomier[i] = dataclasses.replace(roomier[i], capacity_bits=int(roomier[i].capacity_bits * share))
    assert memory_j(p, dataclasses.replace(SMALL, levels=tuple(roomier))) <= memory_j(p, SMALL) * (1 + EXACT)


@given(products)
def test_double_buffering_is_half_the_capacity(p):
    halved = dataclasses.replace(SMALL, levels=tuple(
        dataclasses.replace(x, capacity_bits=x.capacity_bits and x.capacity_bits // 2) for x in SMALL.levels))
    assert product_cost(p, SMALL, double_buffering=True).memory_j == product_cost(p, halved).memory_j
    assert memory_j(p, SMALL, double_buffering=True) >= memory_j(p, SMALL) * (1 - EXACT)


@pytest.mark.parametrize("side", [48, 128, 256])
@pytest.mark.parametrize("capacity", [64, 600, 5000])
def test_traffic_is_near_the_lower_bound_of_hong_and_kung(side, capacity):
    # Hong and Kung, STOC 1981; with the constant of Smith et al. 2019: at least 2 MNK / sqrt(S) - 2 S elements, S of them fitting.
    hw = plain(("DRAM", None, 6.0), ("L1", capacity * 16, 0.5))
    traffic = product_cost(product(side, side, side, 16, 16, 16, 16), hw).traffic_bits
    moved = sum(sum(both) for (level, _), both in traffic.items() if level == "DRAM") / 16
    assert moved >= 2 * side**3 / math.sqrt(capacity) - 2 * capacity
    # A square tile of the sums, a column of A and a row of B need t^2 + 2t <= S and move 2 MNK/t + MN. Tile sizes beyond 2 step by
    # at most 3/2, so t is no less than 2/3 of the best.
    best = math.sqrt(capacity + 1) - 1
    assert moved <= 2 * side**3 / (best * 2 / 3) * (1 + best / side) + 3 * side**2


CASES = [((1024, 128, 1152), None), ((8192, 128, 1152), None), ((128, 1152, 8192), None), ((4096, 512, 2304), None),
         ((1024, 128, 1152), Window(3))]
WIDTHS = [(1, 1, 16, 16), (16, 1, 32, 16), (16, 16, 32, 16), (32, 32, 32, 32)]
# memory energy in uJ by ZigZag 3.9.1, LOMA engine, six loop factors; the last row is its convolution loop nest (3 x 3, 32 x 32 outputs)
LOMA = [[30.9, 160.5, 181.6, 349], [240, 1277, 1330, 2549], [149, 367, 1402, 2641], [543, 1847, 4488, 8124], [23.6, 44.8, 64.1, 117.7]]
SALSA = [[30.9, 160.5, 179.8, 346], [240, 1277, 1331, 2549], [147, 334, 1365, 2607], [543, 1755, 4161, 7785]]


@pytest.mark.parametrize(("i", "j"), list(itertools.product(range(5), range(4))))
def test_memory_energy_is_that_of_zigzag(i, j):
    # 15 %: its mapspace has uneven tiles, ours has tiles that do not divide the product; its conv reuse is exact, ours a square patch's
    (shape, window), widths = CASES[i], WIDTHS[j]
    ours = memory_j(product(*shape, *widths, window=window), cube()) * 1e6
    for theirs in (LOMA, SALSA[:4]):
        if i < len(theirs):
            assert ours == pytest.approx(theirs[i][j], rel=0.15)


def test_a_window_saves_what_its_neighbours_share():
    # unrolled, a 3 x 3 convolution with 16-bit activations and 1-bit weights moves several times as much
    narrow = product(1024, 128, 1152, 16, 1, 32, 16)
    assert memory_j(narrow, cube()) > 3 * memory_j(dataclasses.replace(narrow, window=Window(3)), cube())


@pytest.mark.parametrize(("kernel", "stride", "side"), [(3, 1, 8), (3, 2, 5), (5, 1, 4), (7, 2, 3), (1, 1, 6), (2, 3, 4)])
def test_halo_counts_the_inputs_of_a_square_patch(kernel, stride, side):
    starts = range(0, side * stride, stride)
    touched = {(y + dy, x + dx) for y in starts for x in starts for dy in range(kernel) for dx in range(kernel)}
    # windows that do not touch (stride above kernel) share nothing; the formula's cap is then exact
    assert float(halo(Window(kernel, stride), side**2)) == pytest.approx(len(touched) / (side**2 * kernel**2))


@pytest.mark.parametrize("operand", ["a", "b"])
def test_a_memory_holds_the_inputs_of_a_patch_once(operand):
    # an array as large as the product leaves one tile: 64 windows of 3 x 3 over 10 x 10 inputs, 64 x 5 of the other factor, 9 x 5 sums
    # in the product to the weights; in the forward one 64 x 5 sums and 9 x 5 weights
    p = product(64, 5, 9, 16, 16, window=Window(3)) if operand == "a" else product(5, 9, 64, 16, 16, window=Window(3, operand="b"))
    other, sums = (9 * 5, 64 * 5) if operand == "a" else (64 * 5, 9 * 5)
    capacity = (100 + other) * 16 + sums * 32
    fits, too_small = (plain(("DRAM", None, 6.0), ("L1", bits, 0.5), array=(p.m, p.n, p.k)) for bits in (capacity, capacity - 1))
    assert product_cost(p, fits).traffic_bits["DRAM", operand] == (1600, 0)
    with pytest.raises(UserError, match="cannot hold"):
        product_cost(p, too_small)


def test_compulsory_bits_of_a_convolution():
    # 30 x 30 outputs of a 3 x 3 window see 32 x 32 inputs of 4 channels
    least = compulsory_bits(product(900, 8, 36, 8, 1, 32, 16, window=Window(3), count=5))
    assert least == pytest.approx({"a": 32 * 32 * 4 * 8 * 5, "b": 36 * 8 * 5, "o": 900 * 8 * 16 * 5})
    # the same input as the factor of the weight gradient
    assert compulsory_bits(product(8, 36, 900, 16, 8, window=Window(3, operand="b")))["b"] == pytest.approx(32 * 32 * 4 * 8)


def small_cases(number):
    rng = random.Random(3)
    for i in range(number):
        r = (1, 2, 4)[i % 3]
        dims = [rng.choice([5, 9, 12, 15]) * r for _ in range(3)]
        apart = [("A", 512 * r, 0.025, "a"), ("B", 768 * r, 0.035, "b"), ("O", 1024 * r, 0.02, "o")]
        inner = [("R", KB // 8 * r, 0.03)] if i % 2 else apart
        middle = [("L1", KB * r, 0.3)] if i % 4 < 3 else [("L1AO", KB * r, 0.3, "ao"), ("L1B", KB // 2 * r, 0.4, "b")]
        p = product(*dims, *rng.choice(WIDTHS[:3]), window=rng.choice([None, Window(3), Window(3, 1, "b")]), count=rng.choice([1, 3]))
        yield p, plain(("DRAM", None, 6.0), *middle, *inner, array=(r, r, r))


@pytest.mark.parametrize(("p", "hw"), list(small_cases(12)))
def test_search_is_exact_on_its_grid_and_near_the_best_divisors(p, hw):
    assert memory_j(p, hw) == pytest.approx(exhaustive_j(p, hw), rel=EXACT)
    assert memory_j(p, hw) <= 1.05 * exhaustive_j(p, hw, divisors)


def test_levels_are_chosen_jointly():
    # VGG-Small, batch 100, last convolution: the tile that suits the outermost boundary best ruins the ones further in
    p = product(100 * 8 * 8, 512, 512 * 9, window=Window(3))
    assert greedy_j(p, cube()) > 2 * memory_j(p, cube())
    for q, hw in small_cases(6):
        assert greedy_j(q, hw) >= memory_j(q, hw) * (1 - EXACT)


def test_tiles_nest_and_traffic_explains_the_energy():
    hw = hardware("ascend_zigzag")
    cost = product_cost(product(1000, 200, 333, 16, 8), hw)
    assert [name for name, _ in cost.tiles] == ["DRAM", "L1AO/L1B", "L0A/L0B/L0O"]
    for (_, outer), (_, inner) in itertools.pairwise(cost.tiles):
        assert all(t <= T for t, T in zip(inner, outer, strict=True))
    c = {name: constant.value for name, constant in hw.constants().items()}
    inward, outward = cost.traffic_bits["L1AO", "o"]
    assert cost.memory_j["L1AO", "o"] == pytest.approx(
        (inward * (c["L1AO.read"] + c["L0O.write"]) + outward * (c["L0O.read"] + c["L1AO.write"])) * 1e-12)
    assert cost.memory_j["L0B", "b"] == pytest.approx(cost.traffic_bits["L0B", "b"][0] * c["L0B.read"] * 1e-12)


@pytest.mark.parametrize("id", hardware_ids())
def test_reprice_bounds_a_new_search(id):
    hw, p = hardware(id), product(640, 96, 288, 16, 1, window=Window(3))
    cost = product_cost(p, hw)
    assert reprice(cost, hw) == cost
    rng = np.random.default_rng(0)
    for _ in range(5):
        drawn = hw.sample(rng)
        again = reprice(cost, drawn)
        assert (again.tiles, again.traffic_bits) == (cost.tiles, cost.traffic_bits)
        best = product_cost(p, drawn)
        assert again.compute_j == best.compute_j
        assert again.total_j >= best.total_j * (1 - EXACT)
    doubled = hw.at({name: 2 * c.value for name, c in hw.constants().items() if name[:4] not in ("mac.", "extr")})
    assert reprice(cost, doubled).memory_j == pytest.approx({key: 2 * j for key, j in cost.memory_j.items()})


def test_reprice_needs_a_cost_with_its_traffic():
    with pytest.raises(UserError, match="product_cost"):
        reprice(Cost(1.0, {}), cube())


def test_count_multiplies():
    one, many = (product_cost(product(50, 60, 70, count=count), SMALL) for count in (1, 12))
    assert many.total_j == pytest.approx(12 * one.total_j)
    assert many.tiles == one.tiles


def test_relative_hardware_counts_in_macs():
    cost = product_cost(product(8, 8, 8, 16, 16, 16, 16), hardware("eyeriss_like"))
    assert cost.compute_j == pytest.approx(512, rel=1e-3)  # one each; the file's prices have four digits
    # every element once through DRAM, 200 a word, and further in at 6
    assert cost.memory_j["DRAM", "o"] == pytest.approx(64 * (200 + 6))


def test_impossible_products_are_refused():
    with pytest.raises(UserError, match="cannot hold the smallest"):
        product_cost(product(64, 64, 64), plain(("DRAM", None, 6.0), ("L1", 100, 0.5), array=(4, 4, 4)))
    with pytest.raises(UserError, match="1 <= x"):
        product_cost(product(0, 4, 4), SMALL)


def training(weight, activation, signal, sums, exploited, batch=100):
    """Products of a VGG-Small training step (CIFAR-10); the first and the last layer in FP32.

    ``exploited``: in how many of the two backward products the multiplier takes the 1-bit factor as such.
    """
    full = ("fp32",) * 4
    back = "fp32" if signal == "fp32" else sums
    wide = None if exploited == 2 else ("fp32", "fp32")
    for i, (c_in, c_out, side) in enumerate([(3, 128, 32), (128, 128, 32), (128, 256, 16), (256, 256, 16), (256, 512, 8), (512, 512, 8)]):
        forward = full if i == 0 else (activation, weight, sums, sums)
        yield Product(batch * side**2, c_out, c_in * 9, *forward, Window(3))
        if i:
            yield Product(batch * side**2, c_in, c_out * 9, signal, weight, back, signal, Window(3),
                          multiplied_as=("fp32", "fp32") if exploited == 0 else None)
        backward = full if i == 0 else (signal, activation, back, signal)
        yield Product(c_out, c_in * 9, batch * side**2, *backward, Window(3, operand="b"), multiplied_as=wide)
    yield from (Product(*shape, *full) for shape in ((batch, 10, 8192), (batch, 8192, 10), (10, 8192, batch)))


@pytest.mark.parametrize("id", ["ascend_like", "v100_like"])
def test_order_of_binary_methods_on_vgg_small(id):
    def step(*scenario):
        return sum(product_cost(p, hardware(id)).total_j for p in training(*scenario))

    fp = step("fp32", "fp32", "fp32", "fp32", 2)
    binary_connect = step("bool", "fp32", "fp32", "fp32", 1)
    xnor, xnor_dx, xnor_none = (step("bool", "bool", "fp32", "int16", exploited) for exploited in (2, 1, 0))
    bold = [step("bool", "bool", signal, "int16", 2) for signal in ("fp16", "int8", "bool")]
    assert fp > binary_connect > xnor > bold[0] > bold[1] > bold[2]
    # where both backward products run in FP32, binary forward products alone save about a third, less than BinaryConnect does
    assert fp > xnor_none > binary_connect
    assert xnor_none > xnor_dx > xnor
    assert 0.6 < xnor_none / fp < 0.75
    if id == "ascend_like":
        # BOLD's published ratio to FP32 on Ascend, 3.64 % (Nguyen et al., NeurIPS 2024), lies between 1-bit and 16-bit signals
        assert bold[2] < 0.0364 * fp < bold[0]
