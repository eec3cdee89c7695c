"""ReALLM's identity path on one matrix: what is stored, to the bit; what it stands for, by a NumPy formula; its options."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.llm_layers import np_bits
from tracking.errors import UserError
from workbench.llm.calibration import LayerStatistics
from workbench.llm.packed import Packed
from workbench.llm.reallm import Autoencoder, ReALLM, VectorCode
from workbench.llm.vq import order_columns


def gaussian(p: int, q: int, seed: int = 0) -> torch.Tensor:
    return 0.05 * torch.randn(p, q, generator=torch.Generator().manual_seed(seed))


def uneven(p: int, q: int, seed: int = 0) -> torch.Tensor:
    """Columns of very different sizes in random order: neighbours in size share a scale once they are ordered."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(p, q, generator=g) * torch.logspace(-2, 0, q)[torch.randperm(q, generator=g)]


def path(p: int, q: int) -> torch.Tensor:
    """Columns along a curve, small at its beginning, in random order: neighbours on it share their pattern and their size."""
    t = torch.linspace(0, 3, q)
    curve = torch.cos(torch.arange(p)[:, None] * 0.3 + 2 * t) * torch.linspace(0.05, 1, q)
    return curve[:, torch.randperm(q, generator=torch.Generator().manual_seed(0))]


def np_codes(stream: torch.Tensor, bits: int, count: int) -> np.ndarray:
    if bits <= 8:
        return np_bits(stream, bits, count)
    return np_bits(stream[:count], 8, count) + 256 * np_bits(stream[count:], bits - 8, count)


def np_vq(packed: Packed) -> np.ndarray:
    """The stored matrix, entry by entry, from its bytes; float64."""
    (p, q), t, m = packed.shape, packed.tensors, packed.meta
    books, d = t["codebooks"].double().numpy(), m["dim"]
    stages, size, _ = books.shape
    across = m["axis"] == "columns"
    strips = -(-(q if across else p) // d)
    count = strips * (p if across else q)
    codes = np_codes(t["indices"], int(math.log2(size)), stages * count).reshape(stages, count)
    latent = np.empty((p, q))
    for i in range(p):
        for j in range(q):
            n, k = (i * strips + j // d, j % d) if across else (i // d * q + j, i % d)
            latent[i, j] = sum(books[s, codes[s, n], k] for s in range(stages))
    per_row = -(-q // m["group"])
    u, tops = t["scales.codes"].numpy().astype(float), t["scales.tops"].numpy().astype(float)
    scale = np.array([t["scales.offset"].item() + tops[i // 256] * u[i] / 255 for i in range(len(u))]).reshape(p, per_row)
    weight = latent * np.repeat(scale, m["group"], 1)[:, :q]
    if "permutation" in t:
        orders = np_codes(t["permutation"], max((q - 1).bit_length(), 1), -(-p // 64) * q).reshape(-1, q)
        placed = weight.copy()
        for i in range(p):
            for place in range(q):
                weight[i, orders[i // 64, place]] = placed[i, place]
    if "low_rank.a" in t:
        weight = weight + t["low_rank.b"].double().numpy() @ t["low_rank.a"].double().numpy()
    if "magnitude" in t:
        weight = weight / np.linalg.norm(weight, axis=1, keepdims=True) * t["magnitude"].double().numpy()[:, None]
    return weight


CASES = {
    "2 bits in fours": (ReALLM(), 128, 192),
    "ordered": (ReALLM(permute="always"), 100, 130),
    "along columns, neither divides": (ReALLM(VectorCode(axis="columns"), permute="never"), 30, 71),
    "rows that do not divide": (ReALLM(VectorCode(bits=3, dim=2), permute="never"), 31, 64),
    "scalars": (ReALLM(VectorCode(bits=3, dim=1), permute="never"), 16, 80),
    "residual stages": (ReALLM(VectorCode(bits=2, dim=8, stages=2), permute="never"), 64, 64),
    "wide indices": (ReALLM(VectorCode(bits=3, dim=3), permute="never"), 60, 64),
    "low rank": (ReALLM(rank=4, turns=3, permute="always"), 64, 100),
    "rank above the matrix's": (ReALLM(rank=40, turns=2, permute="never"), 20, 64),
    "magnitude of the approximation": (ReALLM(rank=4, turns=2, magnitude="approximation"), 64, 64),
    "magnitude of the weight": (ReALLM(magnitude="weight", permute="never"), 64, 64),
    "narrow groups": (ReALLM(VectorCode(group=16), permute="never"), 64, 40),
}


@pytest.mark.parametrize("name", CASES)
def test_dequantised_weights_equal_the_formula(name: str) -> None:
    method, p, q = CASES[name]
    packed = method(uneven(p, q))
    again = Packed(packed.format, packed.shape, packed.tensors, json.loads(json.dumps(packed.meta)))
    # float32 against float64: a handful of roundings of values around 1
    np.testing.assert_allclose(again.dequantise().numpy(), np_vq(packed), rtol=2e-5, atol=2e-6)


def closed_form(method: ReALLM, p: int, q: int, ordered: bool) -> dict[str, int]:
    """Bits by term, each rounded up to whole bytes: indices, codebooks, scales, order, factors, magnitude."""
    c, r = method.code, min(method.rank, p, q)
    vectors = -(-p // c.dim) * q if c.axis == "rows" else p * -(-q // c.dim)
    groups = p * -(-q // c.group)

    def whole(bits: int) -> int:
        return 8 * -(-bits // 8)

    found = {
        "indices": whole(vectors * c.bits * c.dim), "codebooks": c.stages * 2 ** (c.bits * c.dim // c.stages) * c.dim * 16,
        "scales": 8 * groups + 32 * -(-groups // 256) + 32,
        "permutation": whole(-(-p // 64) * q * math.ceil(math.log2(q))) if ordered else 0,
        "low_rank": 16 * r * (p + q), "magnitude": 32 * p if method.magnitude != "none" else 0,
    }
    return {term: bits for term, bits in found.items() if bits}


@pytest.mark.parametrize("name", CASES)
def test_bits_are_those_of_the_bytes_and_of_the_closed_form(name: str) -> None:
    method, p, q = CASES[name]
    packed = method(uneven(p, q))
    assert packed.bits() == closed_form(method, p, q, "permutation" in packed.tensors)
    assert sum(packed.bits().values()) == 8 * sum(t.numel() * t.element_size() for t in packed.tensors.values())


@pytest.mark.parametrize(("p", "q", "rank", "bpw", "ordered"), [
    (4096, 4096, 64, 2.63, 2.82), (11008, 4096, 64, 2.47, 2.66), (576, 576, 64, 5.73, None), (576, 576, 8, 2.62, None),
    (192, 576, 8, 3.16, None), (1536, 576, 8, 2.45, None),
])
def test_the_closed_form_at_the_sizes_of_models(p: int, q: int, rank: int, bpw: float, ordered: float | None) -> None:
    """2 bits in vectors of four with low rank in fp16, for LLaMA-2-7B and SmolLM2-135M, worked out by hand from the terms."""
    bits = closed_form(ReALLM(rank=rank), p, q, False)
    assert sum(bits.values()) / (p * q) == pytest.approx(bpw, abs=0.0051)
    if ordered is not None:
        assert sum(closed_form(ReALLM(rank=rank), p, q, True).values()) / (p * q) == pytest.approx(ordered, abs=0.0051)


@pytest.mark.parametrize(("p", "q"), [(576, 192), (192, 576)])
def test_shapes_that_64_times_256_does_not_divide(p: int, q: int) -> None:
    packed = ReALLM(VectorCode(bits=2, dim=2), permute="always")(gaussian(p, q))
    assert packed.bits() == closed_form(ReALLM(VectorCode(bits=2, dim=2)), p, q, True)
    assert packed.tensors["permutation"].nbytes == p // 64 * q * (q - 1).bit_length() // 8
    error = (packed.dequantise() - gaussian(p, q)).norm() / gaussian(p, q).norm()
    assert 0.25 < error < 0.343  # above the rate-distortion bound 2^-2, below the best scalar quantiser of a Gaussian (Max, 1960)


def test_duplicate_columns_come_back() -> None:
    weight = gaussian(64, 40).repeat(1, 3)
    found = ReALLM(VectorCode(bits=4, dim=2), permute="always")(weight).dequantise()
    assert (found - weight).norm() / weight.norm() < 0.12


def test_an_order_is_taken_only_where_it_pays() -> None:
    for make, pays in ((gaussian, False), (uneven, False), (path, True)):
        weight = make(128, 256)
        plain, ordered, auto = (ReALLM(permute=mode)(weight) for mode in ("never", "always", "auto"))
        gain = math.log2(float((weight - plain.dequantise()).norm() / (weight - ordered.dequantise()).norm()))
        assert (gain > ordered.bits()["permutation"] / weight.numel()) is pays
        assert ("permutation" in auto.tensors) is pays


def test_the_order_is_that_of_the_columns() -> None:
    weight = uneven(64, 64)
    packed = ReALLM(permute="always")(weight)
    orders = np_codes(packed.tensors["permutation"], 6, 64)
    assert orders.tolist() == order_columns(weight)[0].tolist()


def statistics(q: int, seed: int = 5) -> LayerStatistics:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(300, q, generator=g) * torch.logspace(-1.5, 0.5, q)
    return LayerStatistics(300, 2 / 300 * x.T @ x, None, None, torch.rand(64, q, generator=g) * torch.logspace(-3, 0, q))


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("weighting", ["hessian", "fisher", "scale"])
def test_weighting_lowers_the_error_it_weighs(weighting: str, rank: int) -> None:
    weight, stats = gaussian(64, 96), statistics(96)
    method = ReALLM(VectorCode(bits=2, dim=2), rank=rank, turns=5, permute="never")
    plain, ours = method(weight), replace(method, weighting=weighting)(weight, stats)
    weights = {"hessian": stats.hessian.diagonal()[None], "fisher": stats.fisher, "scale": torch.ones(1)}[weighting]
    errors = [float(((weight - found.dequantise()).square() * weights).sum()) for found in (plain, ours)]
    assert errors[1] < errors[0]
    assert plain.bits() == ours.bits()


def test_needs_names_the_statistics() -> None:
    assert ReALLM().needs == frozenset()
    assert ReALLM(weighting="fisher").needs == {"fisher"}
    assert ReALLM(candidates=(ReALLM(weighting="hessian"),)).needs == {"hessian"}


def test_one_seed_one_result_and_no_global_generator() -> None:
    weight, state = gaussian(64, 64), torch.get_rng_state()
    method = ReALLM(rank=2, turns=3)
    first, again, other = (method(weight, None, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert first.tensors.keys() == again.tensors.keys()
    assert all(torch.equal(first.tensors[k], again.tensors[k]) for k in first.tensors)
    assert not torch.equal(first.dequantise(), other.dequantise())
    assert torch.equal(state, torch.get_rng_state())


def test_zeros_and_constants() -> None:
    assert not ReALLM(rank=2)(torch.zeros(64, 64)).dequantise().any()
    constant = torch.full((8, 64), 0.25)
    torch.testing.assert_close(ReALLM(permute="never")(constant).dequantise(), constant)


@pytest.mark.parametrize(("method", "message"), [
    (ReALLM(VectorCode(bits=5, dim=4)), "16 bits"), (ReALLM(VectorCode(bits=1, dim=3, stages=2)), "multiple"),
    (ReALLM(permute="sometimes"), "permute"), (ReALLM(weighting="hesian"), "Did you mean 'hessian'"),
    (ReALLM(weighting="fisher"), "calibration"), (ReALLM(magnitude="norm"), "magnitude"),
    (ReALLM(Autoencoder(), weighting="hessian"), "neural path"), (ReALLM(rank=-1), "rank"),
])
def test_what_is_refused(method: ReALLM, message: str) -> None:
    with pytest.raises(UserError, match=message):
        method(gaussian(64, 64))
    with pytest.raises(UserError, match="finite"):
        ReALLM()(torch.full((4, 4), math.nan))


def test_a_plan_is_the_best_choice_within_the_budget() -> None:
    """Three matrices of different nature, four shapes: all 64 plans are compared."""
    thin = gaussian(64, 2) @ gaussian(2, 64, 1) + 0.001 * gaussian(64, 64)
    matrices = {"flat": gaussian(64, 64), "uneven": uneven(64, 128), "low rank": thin}
    shapes = tuple(ReALLM(VectorCode(bits=b, dim=2), rank=r, turns=2) for b, r in ((1, 0), (2, 0), (3, 0), (1, 4)))
    tried = {name: [s(w, None, torch.Generator().manual_seed(0)) for s in shapes] for name, w in matrices.items()}
    weights = sum(w.numel() for w in matrices.values())
    trials: dict = {}
    plan = ReALLM(candidates=shapes).plan(matrices.items(), 3.0, trials)
    options = [[(sum(packed.bits().values()), float((w - packed.dequantise()).square().sum() / w.square().sum())) for packed in tried[name]]
               for name, w in matrices.items()]
    for name, row in zip(matrices, options, strict=True):
        # codebooks start at other random points here, so errors differ by some percent
        assert [t[2] for t in trials[name]] == pytest.approx([error for _, error in row], rel=0.1, abs=1e-4)
        assert [t[1] for t in trials[name]] == [bits for bits, _ in row]
    fitting = [sum(t[2] for t in choice) for choice in itertools.product(*trials.values()) if sum(t[1] for t in choice) <= 3 * weights]
    kinds = [(s.code, s.rank) for s in shapes]
    picked = [next(t for t in trials[name] if kinds[t[0]] == (plan[name].code, plan[name].rank)) for name in matrices]
    assert sum(t[2] for t in picked) == pytest.approx(min(fitting), rel=1e-12)
    assert len(fitting) < 64, "the budget binds"
    blank = ((name, torch.zeros_like(w)) for name, w in matrices.items())
    assert ReALLM(candidates=shapes).plan(blank, 3.0, trials) == plan, "nothing is tried twice"
    spent = sum(sum(plan[name](w).bits().values()) for name, w in matrices.items())
    assert spent <= 3.0 * weights
    assert plan["low rank"].rank == 4
    assert plan["low rank"].candidates == ()
    assert all(method.permute != "auto" for method in plan.values())
    with pytest.raises(UserError, match=r"smallest that the 4 candidates reach is \d\.\d{3}") as refused:
        ReALLM(candidates=shapes).plan(matrices.items(), 0.5, trials)
    named = float(str(refused.value).split()[-1].rstrip("."))
    least = sum(min(sum(packed.bits().values()) for packed in row) for row in tried.values()) / weights
    assert least <= named < least + 1e-3
    ReALLM(candidates=shapes).plan(matrices.items(), named, trials)  # what is named can be met
    for wrong in (math.nan, "3", True):
        with pytest.raises(UserError, match="a number of bits a weight"):
            ReALLM().plan(matrices.items(), wrong)
    with pytest.raises(UserError, match="uneven holds 1 weight that is not finite"):
        ReALLM().plan([("uneven", torch.tensor([[1.0, math.nan]]))], 3.0)


def test_default_candidates_span_bits_and_ranks() -> None:
    plan = ReALLM(rank=4).plan([("one", gaussian(64, 128))], 100.0)
    assert plan["one"].code.bits == 4
    assert plan["one"].rank == 8
