"""What ZigZag finds where it is installed, against our search: ``make slow``, its interpreter in WORKBENCH_ZIGZAG_PYTHON."""

from __future__ import annotations

import pytest

from tests.energy_helpers import KB, cube, plain
from tracking.energy_model.hardware import hardware
from tracking.energy_model.product import Product, Window
from tracking.energy_model.search import product_cost
from tracking.energy_model.zigzag import zigzag_cost
from tracking.errors import UserError

pytestmark = pytest.mark.slow
BINARY = Product(1024, 128, 1152, "bool", "bool", "int16", "int16")
HALF = Product(1024, 128, 1152, "int16", "int16", "int32", "int16")
ONE_BIT_WEIGHTS = Product(1024, 128, 1152, "int16", "bool", "int32", "int16")
DEEP = Product(128, 1152, 8192, "int16", "bool", "int32", "int16")
SMALL = Product(48, 32, 64, "int8", "int8", "int32", "int32")


@pytest.fixture(scope="module", autouse=True)
def installed():
    try:
        zigzag_cost(Product(8, 8, 8, "int8", "int8", "int32", "int8"), cube(), timeout_s=120)
    except UserError as error:
        if "not installed" not in str(error):
            raise
        pytest.skip(str(error))


def memory_j(cost):
    return sum(cost.memory_j.values())


def compare(product, hw, engine="loma", lower=0.05):
    """Prices, widths, capacities and accounting are the same, so a missing term would show in every case. The searches differ.

    5 % above: schedules that ours lacks, since ZigZag has tiles of their own for every operand, and lets finished sums
    travel further in at their final width. ``lower`` below: schedules that ZigZag lacks, whose tiles divide the product.
    """
    ours, theirs = product_cost(product, hw), zigzag_cost(product, hw, engine, timeout_s=240)
    print(f"{engine} {hw.id} {product}: {memory_j(ours):.4g}, ZigZag {memory_j(theirs):.4g}")
    assert theirs.compute_j == pytest.approx(ours.compute_j, rel=1e-12)  # the same count at the same price, rounded elsewhere
    assert (1 - lower) * memory_j(theirs) <= memory_j(ours) <= 1.05 * memory_j(theirs)
    return ours, theirs


# with six factors LOMA's tiles of the last product are so coarse that ours saves 9 % of the memory energy
@pytest.mark.parametrize(("product", "lower"), [(HALF, 0.05), (SMALL, 0.05), (DEEP, 0.15)])
def test_loma_on_matrix_products(product, lower):
    compare(product, cube(), lower=lower)


def test_loma_finds_the_same_schedule_of_a_binary_product():
    ours, theirs = compare(BINARY, cube())
    # by level and operand; the rest is ZigZag's rounding of accesses to whole words
    assert theirs.memory_j == pytest.approx(ours.memory_j, rel=1e-6)


@pytest.mark.parametrize("product", [
    Product(1024, 128, 1152, "int16", "bool", "int32", "int16", Window(3)),
    Product(256, 128, 576, "int8", "bool", "int32", "int32", Window(3, 2)),
    Product(128, 1152, 1024, "int8", "int16", "int32", "int16", Window(3, operand="b"), count=3),
])
def test_loma_on_convolutions(product):
    # ZigZag's tiles of a picture are rectangles, ours squares of any side; the whole picture is the same square
    compare(product, cube())


@pytest.mark.parametrize(("product", "id"), [
    (Product(1000, 200, 333, "int16", "int8", "int32", "int16"), "ascend_zigzag"),  # nothing divides the array of 16
    (Product(1, 10, 512, "int8", "int8", "int32", "int8"), "cpu_like"),
    (Product(8, 8, 8, "int16", "int16", "int16", "int16"), "eyeriss_like"),  # relative units
])
def test_loma_on_other_hardware(product, id):
    compare(product, hardware(id))


def test_salsa_agrees_and_repeats_itself():
    compare(ONE_BIT_WEIGHTS, cube(), "salsa")
    first, second = (zigzag_cost(SMALL, cube(), "salsa", timeout_s=240) for _ in range(2))
    assert first == second


def test_what_does_not_fit():
    # one memory of 600 bits for tiles of 16 elements: 256 + 256 + 512 bits
    tight = plain(("DRAM", None, 6.0), ("L1", 600, 0.5), array=(4, 4, 4))
    product = Product(64, 64, 64, "int16", "int16", "int32", "int16")
    with pytest.raises(UserError, match="found no schedule: NoValidLoopOrderingFound"):
        zigzag_cost(product, tight, timeout_s=240)
    with pytest.raises(UserError, match=r"longer than timeout_s = 15; its last words: .*MemoryTooSmallException"):
        zigzag_cost(product, tight, "salsa", timeout_s=15)
    # room for 12 elements of A: ZigZag tries a smaller array than was asked for
    cut = plain(("DRAM", None, 6.0), ("A", 16 * 12, 0.5, "a"), ("B", 8 * KB, 0.5, "b"), ("O", 8 * KB, 0.5, "o"), array=(4, 4, 4))
    with pytest.raises(UserError, match=r"unrolled the loops|found no schedule"):
        zigzag_cost(product, cut, timeout_s=240)
