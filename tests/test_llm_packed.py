"""Compressed matrices: packing to the bit, bits counted on tensors, low rank and magnitudes, round to nearest against
loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.llm_helpers import numpy_rtn
from tracking.errors import UserError
from workbench.llm import packed as packed_module
from workbench.llm.formats_dense import pack_dense
from workbench.llm.formats_uniform import group_count, groups_of
from workbench.llm.linear import CompressedLinear, dense, swapped
from workbench.llm.low_rank import Residual, factors, with_low_rank
from workbench.llm.packed import FORMATS, PRODUCTS, Packed, decoder, pack_bits, unpack_bits
from workbench.methods.compression.rtn import RTN


def matrix(p: int = 24, q: int = 40, seed: int = 0) -> torch.Tensor:
    return torch.randn(p, q, generator=torch.Generator().manual_seed(seed))


# --- bits ---------------------------------------------------------------------------------------------------


@settings(max_examples=80)
@given(bits=st.integers(1, 16), data=st.data())
def test_packing_is_exact_and_as_short_as_can_be(bits, data):
    codes = data.draw(st.lists(st.integers(0, 2**bits - 1), max_size=40))
    tensor = torch.tensor(codes, dtype=torch.int64)
    packed = pack_bits(tensor, bits)
    assert (packed.dtype, packed.numel()) == (torch.uint8, -(-len(codes) * bits // 8))
    assert unpack_bits(packed, bits, len(codes)).tolist() == codes
    assert unpack_bits(packed, bits, len(codes)).dtype == torch.int64
    # the way of a GPU, on the CPU: gathers instead of whole-array tricks
    assert packed_module._unpack_anywhere(packed, bits, len(codes)).tolist() == codes
    assert torch.equal(packed_module._pack_anywhere(tensor.int(), bits), packed), "as on a GPU"
    if bits <= 8:  # the stream is little-endian: code i lies in bits [i b, (i + 1) b)
        assert int.from_bytes(bytes(packed.tolist()), "little") == sum(c << i * bits for i, c in enumerate(codes))


def test_packing_refuses_what_does_not_fit():
    for bad in (torch.tensor([4]), torch.tensor([-1]), torch.tensor([0.5])):
        with pytest.raises(UserError, match="Codes of 2 bits are whole numbers from 0 to 3"):
            pack_bits(bad, 2)
    for bits in (0, 17):
        with pytest.raises(UserError, match="1 to 16 bits"):
            pack_bits(torch.tensor([0]), bits)
    with pytest.raises(UserError, match="3 codes of 4 bits are 2 bytes, not 1"):
        unpack_bits(torch.zeros(1, dtype=torch.uint8), 4, 3)


def test_bits_are_those_of_the_tensors_term_by_term():
    w = matrix(24, 40)
    packed = RTN(3, 16)(w)
    packed = with_low_rank(packed, *factors(w - packed.code(), 2), magnitude=True)
    groups = 24 * 3  # 16 + 16 + 8 inputs
    assert packed.bits() == {"indices": 24 * 40 * 3, "scales": 16 * groups, "zeros": 3 * groups, "low_rank": 16 * 2 * (24 + 40),
                             "magnitude": 32 * 24}
    assert sum(packed.bits().values()) == 8 * sum(t.nbytes for t in packed.tensors.values())
    assert packed.code_bpw() == pytest.approx(3 + 19 * groups / 960)
    assert packed.bpw() == pytest.approx(packed.code_bpw() + (32 * 64 + 32 * 24) / 960)


def test_unknown_terms_formats_and_shapes_are_named():
    with pytest.raises(UserError, match=r"Unknown term of a compressed matrix 'indexes'. Did you mean 'indices'"):
        Packed("uniform", (2, 2), {"indexes.a": torch.zeros(1)})
    with pytest.raises(UserError, match=r"Unknown format of a compressed matrix 'unifrom'. Did you mean 'uniform'"):
        Packed("unifrom", (2, 2), {}).code()
    with pytest.raises(UserError, match=r"low_rank.a \(r, 3\) and low_rank.b \(2, r\)"):
        Packed("dense", (2, 3), {"low_rank.a": torch.zeros(1, 3)})
    with pytest.raises(UserError, match=r"shape \(2,\), not \(3,\)"):
        Packed("dense", (2, 3), {"magnitude": torch.zeros(3)})
    wrong = Packed("dense", (2, 3), {"other": torch.zeros(3, 2)})
    with pytest.raises(UserError, match="decoder of 'dense' gave"):
        wrong.code()


def test_a_format_has_one_decoder(monkeypatch):
    monkeypatch.setitem(FORMATS, "uniform", packed_module.decoder_of("uniform"))
    with pytest.raises(UserError, match=r"'uniform' has a decoder already, "
                                        "workbench.llm.formats_uniform.unpack_uniform"):
        decoder("uniform")(lambda packed: packed)


# --- low rank and magnitude ---------------------------------------------------------------------------------


def test_the_matrix_is_code_plus_low_rank_with_rescaled_rows():
    w = matrix()
    code = pack_dense(w, torch.float32)
    a, b = torch.randn(3, 40), torch.randn(24, 3)
    low = Packed("dense", (24, 40), code.tensors | {"low_rank.a": a, "low_rank.b": b})
    expected = w.double() + b.double() @ a.double()
    # sums of four products in float32
    torch.testing.assert_close(low.dequantise().double(), expected, rtol=0, atol=1e-5)
    m = torch.rand(24) + 0.5
    scaled = Packed("dense", (24, 40), low.tensors | {"magnitude": m})
    torch.testing.assert_close(scaled.dequantise().norm(dim=1), m, rtol=1e-5, atol=0)
    torch.testing.assert_close(scaled.dequantise().double(), expected * (m.double() / expected.norm(dim=1))[:, None], rtol=1e-5, atol=1e-6)
    same = with_low_rank(code, a, b, magnitude=True)
    half = with_low_rank(code, a, b)
    assert torch.equal(same.dequantise(), half.dequantise()), "the first magnitude changes nothing, to the bit"


def test_a_row_of_zeros_stays_one():
    w = matrix()
    w[3] = 0
    packed = Packed("dense", (24, 40), {"other": w, "magnitude": torch.ones(24)})
    assert torch.equal(packed.dequantise()[3], torch.zeros(40))
    assert packed.dequantise().isfinite().all()


def test_factors_are_the_best_of_their_rank():
    w = matrix(12, 20)
    s = torch.linalg.svdvals(w.double())
    for rank in (1, 5, 12):
        a, b = factors(w, rank)
        left = float((w - b @ a).double().norm())
        # Eckart-Young: the error is the norm of the singular values cut off; float32 leaves 1e-6 of ||W||
        assert left == pytest.approx(float(s[rank:].norm()), abs=1e-5 * float(s.norm()))
    with pytest.raises(UserError, match=r"Rank 13 is refused for a 12×20 matrix. Allowed: 1 to 12"):
        factors(w, 13)


def test_the_residual_never_adds_error():
    w, quantiser = matrix(), RTN(2, 16)
    plain = float((w - quantiser(w).dequantise()).norm())
    errors = [float((w - Residual(quantiser, rank)(w).dequantise()).norm()) for rank in (1, 4, 24, 99)]
    assert plain > errors[0] > errors[1] > errors[2] == errors[3]
    assert errors[2] < 2e-3 * plain, "full rank: what is left is fp16's"


# --- round to nearest ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("bits", "group"), [(2, 16), (3, 0), (4, 64), (8, 7)])
def test_rtn_is_the_formula_by_loops(bits, group, symmetric):
    w = matrix(9, 40, seed=bits)
    w[0, :16] = 0  # a group without a range
    w[1] = w[1].abs() + 0.1  # zero is not inside the range
    packed = RTN(bits, group, symmetric)(w)
    assert np.array_equal(packed.dequantise().numpy(), numpy_rtn(w.numpy(), bits, group, symmetric))


def test_the_last_group_is_as_long_as_what_is_left():
    row = torch.arange(40.0)[None]
    assert [part.tolist() for part in groups_of(row, 16)] == [[row[0, :32].view(2, 16).tolist()], [[row[0, 32:].tolist()]]]
    assert [tuple(part.shape) for size in (0, 20, 64) for part in groups_of(row, size)] == [(1, 1, 40), (1, 2, 20), (1, 1, 40)]
    assert [group_count(40, size) for size in (16, 20, 0, 64)] == [3, 2, 1, 1]
    w = matrix(4, 40).abs() + 1  # padding with zeros would widen no range here, but copies of others' inputs would
    w[:, 32:] *= 1000
    assert torch.equal(RTN(3, 16)(w).dequantise()[:, 32:], RTN(3, 8)(w[:, 32:]).dequantise())


def test_an_error_is_at_most_half_a_step():
    w = matrix(16, 64)
    for bits in (2, 4, 8):
        packed = RTN(bits, 32)(w)
        step = packed.tensors["scales"].float().repeat_interleave(32, 1)
        # the zero point is rounded, too: half a step more at the ends of the range; fp16 scales add 2^-11 of the range
        assert bool(((w - packed.dequantise()).abs() <= step * (1.001 + 2.0**bits * 2**-11)).all())
        middle = (w - packed.dequantise()).abs() <= step * 0.501
        assert float(middle.float().mean()) > 0.85


# --- the layer ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("magnitude", [False, True])
def test_a_compressed_layer_multiplies_by_its_matrix(rank, magnitude):
    w = matrix(24, 64)
    quantiser = Residual(RTN(2, 32), rank, magnitude) if rank else RTN(2, 32)
    layer = CompressedLinear(quantiser(w), torch.randn(24))
    if magnitude and not rank:
        layer.attach(magnitude=True)
    layer.restore(layer.packed)
    for rows in (1, 3, 100):
        x = torch.randn(rows, 64)
        expected = x.double() @ layer.packed.dequantise().double().T + layer.bias.double()
        # 64 products of numbers up to about 4 in float32
        torch.testing.assert_close(layer(x).double(), expected, rtol=0, atol=1e-4)
        with dense(layer):
            torch.testing.assert_close(layer(x).double(), expected, rtol=0, atol=1e-4)
        assert layer._code is None, "kept only while it is asked for"


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("bits", "group", "q"), [(2, 64, 64), (2, 32, 96), (3, 64, 72), (4, 0, 40), (5, 16, 40), (8, 16, 24), (3, 7, 40)])
def test_the_fused_product_is_the_product(bits, group, q, symmetric):
    w, generator = matrix(33, q, seed=bits), torch.Generator().manual_seed(3)
    packed = RTN(bits, group, symmetric)(w)
    for rows in (1, 5):
        x = torch.randn(rows, q, generator=generator)
        expected = x.double() @ packed.code().double().T
        # at most 96 products in float32, terms of size up to 10
        torch.testing.assert_close(PRODUCTS["uniform"](packed, x).double(), expected, rtol=0, atol=2e-4)


def test_casting_moves_no_stored_bit():
    layer = CompressedLinear(Residual(RTN(3, 16), 2, True)(matrix()), torch.zeros(24))
    before = {name: t.clone() for name, t in layer.packed.tensors.items()}
    layer.bfloat16()
    assert layer.weight.dtype == layer.bias.dtype == torch.bfloat16
    assert all(torch.equal(t, before[name]) and t.dtype == before[name].dtype for name, t in layer.packed.tensors.items())
    assert layer(torch.randn(2, 40, dtype=torch.bfloat16)).dtype == torch.bfloat16
    layer.float()
    assert layer.weight.dtype == torch.float32


def test_swapping_puts_everything_back():
    model = nn.Sequential(nn.Linear(40, 24), nn.ReLU(), nn.Linear(24, 8)).requires_grad_(False)
    first, x = model[0], torch.randn(5, 40)
    before = model(x)

    def inside():
        with swapped(model, {"0": RTN(2)(first.weight)}) as layers:
            assert isinstance(model[0], CompressedLinear)
            assert layers["0"] is model[0]
            assert not torch.equal(model(x), before)
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        inside()
    assert model[0] is first
    assert torch.equal(model(x), before)
    with pytest.raises(UserError, match=r"0 is no linear layer of shape \(24, "
                                        r"41\)"), swapped(model, {"0": RTN(2)(matrix(24, 41))}):
        pass
