"""Boolean layers against flips tried out, the {0, 1} / xor formulas, and convolution by unfolding.

Unless it says otherwise a test uses small integers: their products and sums are exact in the arithmetic used, so equality is meant.
"""

from __future__ import annotations

import copy
import io
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tracking.errors import UserError
from workbench.boolean import BooleanConv2d, BooleanLinear, split_parameters
from workbench.boolean._compact import pack_integers, pack_signs, unpack_signs
from workbench.boolean.scaling import conv_scale, linear_scale


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def signs(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    return (2 * torch.randint(2, shape, generator=source(seed)) - 1).to(dtype)


def integers(*shape: int, seed: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randint(-4, 5, shape, generator=source(seed)).to(dtype)


def backward(layer: nn.Module, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Output, upstream signal and weight signal."""
    x = x.clone().requires_grad_()
    layer.zero_grad()
    s = layer(x)
    s.backward(z)
    return s.detach(), x.grad, layer.weight.grad


# --- flips --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gate", ["xnor", "xor"])
@pytest.mark.parametrize("inputs", [signs, integers])
def test_the_weight_signal_predicts_every_flip_of_a_linear_loss(gate, inputs):
    layer = BooleanLinear(5, 3, bias=True, gate=gate, generator=source())
    x, c = inputs(4, 5), integers(4, 3)

    def loss() -> Tensor:
        return (c * layer(x)).sum()

    loss().backward()
    for p in layer.parameters():
        for i in itertools.product(*(range(n) for n in p.shape)):
            with torch.no_grad():
                before = loss()
                p[i] *= -1
                after = loss()
                p[i] *= -1
            assert after - before == -2 * p[i] * p.grad[i]  # to turn w moves w by -2w


def test_upstream_signal_predicts_every_flip_of_an_input():
    layer = BooleanConv2d(2, 3, 3, padding=1, scale=None, generator=source())
    x, c = signs(1, 2, 4, 4), integers(1, 3, 4, 4)
    _, g, _ = backward(layer, x, c)
    with torch.no_grad():
        before = (c * layer(x)).sum()
        for i in itertools.product(*(range(n) for n in x.shape)):
            turned = x.clone()
            turned[i] *= -1
            assert (c * layer(turned)).sum() - before == -2 * x[i] * g[i]


# --- the {0, 1} form with xor -------------------------------------------------------------------------------


def bits(t: Tensor) -> Tensor:
    return (t + 1) / 2


def xor01(a: Tensor, b: Tensor) -> Tensor:
    return a + b - 2 * a * b


def test_parity_with_counts_of_xor_forward():
    layer, x = BooleanLinear(6, 4, bias=True, gate="xor", generator=source()), signs(5, 6)
    counts = xor01(bits(x)[:, None], bits(layer.weight)).sum(-1) + bits(layer.bias) - 6 / 2
    assert torch.equal(layer(x), 2 * counts - 1)  # a count's unit is two of the sum's; a Boolean bias is {0, 1} there, +-1 here


def test_parity_with_counts_of_xor_for_real_signals():
    layer, x, z = BooleanLinear(6, 4, bias=True, gate="xor", scale=None, generator=source()), signs(5, 6), integers(5, 4)
    _, g, q = backward(layer, x, z)
    assert torch.equal(q, z.t() @ (1 - 2 * bits(x)))
    assert torch.equal(g, z @ (1 - 2 * bits(layer.weight)))
    assert torch.equal(layer.bias.grad, z.sum(0))


def test_parity_with_counts_of_xor_for_boolean_signals():
    layer = BooleanLinear(6, 4, bias=True, gate="xor", signal="bool", scale=None, generator=source())
    x, z = signs(5, 6), signs(5, 4, seed=3)
    _, g, q = backward(layer, x, z * 7)  # only the sign is to count
    assert torch.equal(q, 2 * xor01(bits(z)[:, :, None], bits(x)[:, None]).sum(0) - 5)
    assert torch.equal(g, 2 * xor01(bits(z)[:, :, None], bits(layer.weight)[None]).sum(1) - 4)
    assert torch.equal(layer.bias.grad, 2 * bits(z).sum(0) - 5)


def test_a_boolean_signal_keeps_its_zeros():
    layer, x, z = BooleanLinear(6, 4, signal="bool", generator=source()), signs(5, 6), integers(5, 4)
    assert (z == 0).any()
    assert torch.equal(backward(layer, x, z)[2], z.sign().t() @ x)


# --- convolution by unfolding -------------------------------------------------------------------------------

SHAPES = [dict(), dict(stride=2), dict(stride=(1, 2), padding=(2, 1)), dict(padding=2, dilation=2), dict(groups=2, padding=1),
          dict(kernel_size=(1, 3), padding=(0, 1), stride=2, dilation=(1, 2), groups=4)]


def by_unfolding(layer: BooleanConv2d, x: Tensor, z: Tensor | None = None) -> tuple[Tensor, ...]:
    """Output, and with ``z`` the signals for input and weight, from matrices of patches."""
    out, groups, kernel = layer.weight.shape[0], layer.groups, tuple(layer.weight.shape[2:])
    (top, left), (height, width) = layer.padding, x.shape[2:]
    padded = torch.full((*x.shape[:2], height + 2 * top, width + 2 * left), float(layer.pad_value), dtype=x.dtype)
    padded[:, :, top:top + height, left:left + width] = x
    shape = dict(kernel_size=kernel, stride=layer.stride, dilation=layer.dilation)
    patches = F.unfold(padded, **shape).unflatten(1, (groups, -1))
    w = layer.weight.detach().reshape(groups, out // groups, -1)
    s = torch.einsum("goi,bgil->bgol", w, patches).flatten(1, 2)
    if z is None:
        return (s,)
    votes = z.reshape(len(x), groups, out // groups, -1)
    q = torch.einsum("bgol,bgil->goi", votes, patches).reshape(layer.weight.shape)
    spread = torch.einsum("goi,bgol->bgil", w, votes).flatten(1, 2)
    g = F.fold(spread, padded.shape[2:], **shape)[:, :, top:top + height, left:left + width]
    return s, g, q


@pytest.mark.parametrize("pad_value", [0, -1])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("inputs", [signs, integers])
def test_convolution_is_that_of_unfolded_patches(shape, pad_value, inputs):
    layer = BooleanConv2d(4, 8, **{"kernel_size": 3} | shape, pad_value=pad_value, scale=0.5, dtype=torch.float64, generator=source())
    x = inputs(2, 4, 7, 8, dtype=torch.float64)
    z = integers(*layer(x).shape, dtype=torch.float64)
    s, g, q = backward(layer, x, z)
    expected_s, expected_g, expected_q = by_unfolding(layer, x, z)
    assert torch.equal(s.flatten(2), expected_s)
    assert torch.equal(g, 0.5 * expected_g)
    assert torch.equal(q, expected_q)  # never scaled


@pytest.mark.parametrize("options", [dict(gate="xor"), dict(signal="bool"), dict(bias=True)], ids=str)
def test_options_of_the_convolution(options):
    layer = BooleanConv2d(4, 6, 3, padding=1, scale=None, dtype=torch.float64, generator=source(), **options)
    x, z = signs(2, 4, 5, 5, dtype=torch.float64), integers(2, 6, 5, 5, dtype=torch.float64)
    s, g, q = backward(layer, x, z)
    turn = -1 if layer.gate == "xor" else 1
    expected_s, expected_g, expected_q = by_unfolding(layer, x, z.sign() if layer.signal == "bool" else z)
    shift = 0 if layer.bias is None else layer.bias.detach()[:, None]
    assert torch.equal(s.flatten(2), turn * expected_s + shift)
    assert torch.equal(g, turn * expected_g)
    assert torch.equal(q, turn * expected_q)
    if layer.bias is not None:
        assert torch.equal(layer.bias.grad, z.sum((0, 2, 3)))


def test_single_precision_convolution_agrees_with_double():
    layer = BooleanConv2d(16, 32, 3, padding=1, generator=source())
    twin = copy.deepcopy(layer).double()
    x, z = signs(4, 16, 8, 8), torch.randn(4, 32, 8, 8, generator=source())
    for ours, exact in zip(backward(layer, x, z), backward(twin, x.double(), z.double()), strict=True):
        # sums of up to 288 terms of order 1, each rounded at 6e-8 of a partial sum below 100
        torch.testing.assert_close(ours.double(), exact, rtol=0, atol=2e-4)


def test_linear_takes_any_number_of_leading_dimensions():
    layer = BooleanLinear(6, 4, generator=source())
    x, z = signs(2, 3, 6), integers(2, 3, 4)
    s, g, q = backward(layer, x, z)
    flat = backward(layer, x.reshape(6, 6), z.reshape(6, 4))
    assert torch.equal(s.reshape(6, 4), flat[0])
    assert torch.equal(g.reshape(6, 6), flat[1])
    assert torch.equal(q, flat[2])
    one = backward(layer, x[0, 0], z[0, 0])
    assert torch.equal(one[2], torch.outer(z[0, 0], x[0, 0]))


def test_automatic_scale_is_the_layer_s_constant():
    linear, conv = BooleanLinear(6, 8), BooleanConv2d(4, 8, 3, stride=2, groups=2, pooled=True)
    assert linear.scale == linear_scale(8) == (2 / 8) ** 0.5
    assert conv.scale == conv_scale(8, (3, 3), (2, 2), groups=2, pooled=True) == pytest.approx(2 * (2 * 4 / (8 / 2 * 9)) ** 0.5)
    assert BooleanLinear(6, 8, scale=None).scale == 1
    assert (linear.fan_in, conv.fan_in) == (6, 18)


# --- accumulation and precision -----------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda: BooleanLinear(6, 4, bias=True, generator=source()),
                                  lambda: BooleanConv2d(6, 4, 1, bias=True, generator=source())], ids=["linear", "conv"])
def test_micro_batches_add_up_to_the_batch(make):
    layer = make()
    tail = (3, 3) if isinstance(layer, BooleanConv2d) else ()
    x, z = signs(8, 6, *tail), integers(8, 4, *tail)
    backward(layer, x, z)
    whole = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    for part in range(4):
        layer(x[2 * part:2 * part + 2]).backward(z[2 * part:2 * part + 2])
    assert all(torch.equal(p.grad, w) for p, w in zip(layer.parameters(), whole, strict=True))


@pytest.mark.parametrize("inside", [False, True], ids=["backward outside", "backward inside"])
def test_votes_are_summed_in_float32_under_autocast(inside):
    """Counts to 3000, of which bfloat16 holds every sixteenth."""
    samples, votes = torch.where(torch.rand(3000, 8, generator=source()) < 0.8, 1.0, -1.0), torch.ones(3000, 4)
    expected = votes.t() @ samples
    assert (expected.bfloat16() != expected).any()
    image = [t.t()[None, :, :, None].clone() for t in (samples, votes)]  # the samples as pixels of one image
    for layer, x, z in ((BooleanLinear(8, 4, generator=source()), samples, votes), (BooleanConv2d(8, 4, 1, generator=source()), *image)):
        x.requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            s = layer(x)
            if inside:
                s.backward(z.to(s.dtype))
        if not inside:
            s.backward(z.to(s.dtype))
        assert s.dtype == torch.bfloat16
        assert layer.weight.grad.dtype == torch.float32
        assert torch.equal(layer.weight.grad.flatten(1), expected)
        assert x.grad.dtype == torch.float32


# --- what is kept for the backward pass ---------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 7, 8, 9, 1000])
def test_signs_pack_into_bits_and_back(count):
    x = signs(count)
    packed = pack_signs(x)
    assert packed.nbytes == -(-count // 8)
    assert torch.equal(unpack_signs(packed, x.shape, x.dtype), x)
    assert torch.equal(unpack_signs(packed, x.shape, torch.bfloat16), x.bfloat16())


def test_every_byte_packs_and_unpacks():
    x = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=8)))
    assert len(set(pack_signs(x).tolist())) == 256
    assert torch.equal(unpack_signs(pack_signs(x), x.shape, x.dtype), x)


def test_integers_pack_into_two_bytes():
    s = torch.tensor([-32768.0, -1.0, 0.0, 32767.0])
    assert torch.equal(pack_integers(s).float(), s)
    for wrong in (0.5, 32768.0, -40000.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match="not all integers"):
            pack_integers(torch.tensor([1.0, wrong]))


@pytest.mark.parametrize("make", [lambda c: BooleanLinear(6, 4, compact=c, generator=source()),
                                  lambda c: BooleanConv2d(6, 4, 3, padding=1, pad_value=-1, compact=c, generator=source())],
                         ids=["linear", "conv"])
def test_a_compact_layer_computes_the_same_and_keeps_bits(make):
    tail = (5, 5) if isinstance(make(True), BooleanConv2d) else ()
    x, z = signs(8, 6, *tail), torch.randn(8, 4, *tail, generator=source())
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        ours = backward(make(True), x, z)
    for a, b in zip(ours, backward(make(False), x, z), strict=True):
        assert torch.equal(a, b)
    assert {t.dtype for t in kept} == {torch.uint8, torch.float32}
    assert next(t for t in kept if t.dtype == torch.uint8).nbytes <= -(-x.numel() * (49 / 25 if tail else 1) // 8)


@pytest.mark.parametrize("value", [0.0, 2.0, -1.5, float("nan")])
def test_a_compact_layer_refuses_inputs_that_are_not_signs(value):
    x = signs(3, 6)
    x[1, 2] = value
    with pytest.raises(UserError, match="not all \\+1 or -1"):
        BooleanLinear(6, 4, compact=True)(x)


# --- parameters ---------------------------------------------------------------------------------------------


def test_weights_begin_as_fair_signs_from_the_generator():
    first, again = (BooleanLinear(200, 100, bias=True, generator=source(7)) for _ in range(2))
    assert torch.equal(first.weight, again.weight)
    assert torch.equal(first.bias, again.bias)
    assert torch.equal(first.weight.abs(), torch.ones(100, 200))
    assert abs(first.weight.mean()) < 5 / (100 * 200) ** 0.5  # five standard deviations of a fair coin
    assert not torch.equal(first.weight, BooleanLinear(200, 100, generator=source(8)).weight)


def test_boolean_parameters_are_told_apart_also_in_copies():
    model = nn.Sequential(nn.Linear(4, 6), BooleanLinear(6, 6, bias=True), BooleanConv2d(1, 2, 3), nn.BatchNorm1d(6))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for network in (model, copy.deepcopy(model), torch.load(file, weights_only=False), copy.deepcopy(model).to(torch.float64)):
        boolean, real = split_parameters(network)
        assert [id(p) for p in boolean] == [id(p) for p in (network[1].weight, network[1].bias, network[2].weight)]
        assert len(real) == 4
    model[1].weight.requires_grad_(False)
    assert len(split_parameters(model)[0]) == 2
    tied = nn.Sequential(model[2], model[2])
    assert len(split_parameters(tied)[0]) == 1


@pytest.mark.parametrize(("make", "words"), [
    (lambda: BooleanLinear(4, 2, gate="and"), "Unknown gate 'and'"),
    (lambda: BooleanLinear(4, 2, signal="boolean"), "Did you mean 'bool'"),
    (lambda: BooleanLinear(4, 2, scale="automatic"), "scale = 'automatic'; allowed"),
    (lambda: BooleanLinear(4, 2, scale=float("nan")), "scale = nan; allowed"),
    (lambda: BooleanLinear(0, 2), "at least 1"),
    (lambda: BooleanLinear(4, 0), "at least 1"),
    (lambda: BooleanConv2d(3, 4, 3, groups=2), "groups = 2 must divide"),
    (lambda: BooleanConv2d(3, 4, 3, pad_value=1), "pad_value = 1; allowed"),
])
def test_options_out_of_range_are_refused_in_words(make, words):
    with pytest.raises(UserError, match=words):
        make()


def test_layers_say_what_they_are():
    assert "3, 8, kernel_size=(5, 5), stride=(2, 2)" in repr(BooleanConv2d(3, 8, 5, stride=2, padding=1))
    assert "gate='xor'" in repr(BooleanLinear(4, 2, gate="xor"))
