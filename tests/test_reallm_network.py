"""ReALLM's neural path: a picture that a small network can learn, the decoder by a NumPy twin, and its bits."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import erf

from tests.llm_layers import np_bits
from tracking.errors import UserError
from workbench.llm.formats_autoencoder import assemble, cut
from workbench.llm.packed import Packed
from workbench.llm.reallm import Autoencoder, ReALLM, VectorCode
from workbench.llm.reallm_plan import default_candidates, plan
from workbench.llm.vq import normal_float

SMALL = Autoencoder(bits=2, dim=4, patch=32, strides=(2, 2, 2), latent=8, channels=8, width=8, least=6, decoder_bits=6, head="linear",
                    steps=150, batch=4, lr=5e-3)


def waves(p: int, q: int, count: int = 6) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    y, x = torch.arange(p)[:, None] / 64, torch.arange(q) / 64
    weight = sum(torch.cos(2 * math.pi * (2 * a * x + 2 * b * y + c)) for a, b, c in torch.rand(count, 3, generator=g).tolist())
    return weight / weight.std()


@pytest.fixture(scope="module")
def learnt() -> Packed:
    return ReALLM(SMALL, permute="never")(waves(60, 70))


def test_a_smooth_picture_is_learnt(learnt: Packed) -> None:
    """Sums of plane waves: 150 steps leave a fifth of the norm or less; without training nothing is explained."""
    weight = waves(60, 70)
    assert (weight - learnt.dequantise()).norm() < 0.3 * weight.norm()
    untrained = ReALLM(replace(SMALL, steps=0), permute="never")(weight)
    assert (weight - untrained.dequantise()).norm() > 0.8 * weight.norm()


def np_conv(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Cross-correlation of (c, h, w) with (out, c, k, k), zeros around."""
    k, (h, w) = weight.shape[2], x.shape[1:]
    wide = np.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2)))
    parts = [np.einsum("oc,chw->ohw", weight[:, :, i, j], wide[:, i:i + h, j:j + w]) for i in range(k) for j in range(k)]
    return bias[:, None, None] + sum(parts)


def np_gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + erf(x / math.sqrt(2))) / 2


def test_decoder_against_numpy(learnt: Packed) -> None:
    """From the bytes: codes, NormalFloat tables, convolutions by loops, pixel shuffle by index, patches, scales."""
    (p, q), t, m = learnt.shape, learnt.tensors, learnt.meta
    # the levels have an oracle of their own
    levels = normal_float(m["decoder_bits"]).double().numpy()
    widths, side, patches = m["widths"], m["patch"] // 8, 2 * 3
    shapes = [(widths[0], m["latent"], 1, 1)] + [(b * 4, a, k, k) for a, b, k in zip(widths[:-1], widths[1:], m["kernels"], strict=True)]
    layers = []
    for i, (out, inside, k, _) in enumerate(shapes):
        scale = t[f"decoder.{i}.scales"].double().numpy()
        codes = np_bits(t[f"decoder.{i}.codes"], m["decoder_bits"], out * inside * k * k).reshape(-1, inside)
        layers.append(((levels[codes] * scale[:, None]).reshape(out, inside, k, k), t[f"decoder.{i}.bias"].double().numpy()))
    book = t["codebooks"].double().numpy()[0]
    codes = np_bits(t["indices"], 8, patches * side * side * 2)
    latents = book[codes].reshape(patches, side, side, m["latent"]).transpose(0, 3, 1, 2)
    whole = np.zeros((64, 96))
    for n, latent in enumerate(latents):
        x = np_gelu(np_conv(latent, *layers[0]))
        for weight, bias in layers[1:]:
            y = np_conv(x, weight, bias)
            c, h, w = y.shape[0] // 4, *y.shape[1:]
            x = np_gelu(y.reshape(c, 2, 2, h, w).transpose(0, 3, 1, 4, 2).reshape(c, 2 * h, 2 * w))
        x = np_conv(x, t["decoder.head.weight"].double().numpy(), t["decoder.head.bias"].double().numpy())[0]
        whole[n // 3 * 32:][:32, n % 3 * 32:][:, :32] = x
    u, top, low = t["scales.codes"].double().numpy(), t["scales.tops"].item(), t["scales.offset"].item()
    scale = np.repeat((low + top * u / 255).reshape(p, 2), 64, 1)[:, :q]
    # float32 sums of some hundred terms
    np.testing.assert_allclose(learnt.dequantise().numpy(), whole[:p, :q] * scale, rtol=1e-3, atol=2e-5)


def test_bits_term_by_term(learnt: Packed) -> None:
    m = learnt.meta
    convs = [(m["widths"][0], m["latent"], 1)] + [(4 * b, a, k * k) for a, b, k in zip(m["widths"][:-1], m["widths"][1:], m["kernels"],
                                                                                      strict=True)]
    decoder = sum(8 * -(-o * i * k * m["decoder_bits"] // 8) + 16 * o * k + 16 * o for o, i, k in convs) + 16 * (9 * m["widths"][-1] + 1)
    patches, places = 6, (32 // 8) ** 2
    assert learnt.bits() == {"indices": patches * places * m["latent"] * 2, "codebooks": 256 * 4 * 16, "decoder": decoder,
                             "scales": 8 * 120 + 32 + 32}


def test_round_trip_is_deterministic(learnt: Packed) -> None:
    state = torch.get_rng_state()
    again = ReALLM(SMALL, permute="never")(waves(60, 70))
    assert all(torch.equal(again.tensors[k], learnt.tensors[k]) for k in learnt.tensors)
    assert torch.equal(learnt.dequantise(), learnt.dequantise())
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("change", [{"quantise": "straight-through", "steps": 60}, {"head": "tanh", "steps": 60}])
def test_options_learn_too(change: dict) -> None:
    weight = waves(64, 64, 3)
    packed = ReALLM(replace(SMALL, **change), rank=2, turns=1, permute="always")(weight)
    assert (weight - packed.dequantise()).norm() < 0.9 * weight.norm()
    assert {"permutation", "low_rank", "decoder"} <= packed.bits().keys()


def test_more_training_means_less_error() -> None:
    weight = waves(64, 64, 3)
    errors = [float((weight - ReALLM(replace(SMALL, steps=s), permute="never")(weight).dequantise()).norm()) for s in (10, 80)]
    assert errors[1] < errors[0]


@pytest.mark.parametrize(("p", "q", "patch"), [(64, 64, 32), (60, 70, 32), (5, 3, 8), (33, 32, 32)])
def test_patches_go_together_again(p: int, q: int, patch: int) -> None:
    weight = torch.randn(p, q, generator=torch.Generator().manual_seed(0))
    assert torch.equal(assemble(cut(weight, patch), p, q), weight)


def test_a_network_is_a_candidate_only_for_a_pattern() -> None:
    """On independent entries no network is trained; a smooth matrix tries it."""
    tiny = replace(SMALL, steps=2)
    candidates = (ReALLM(tiny, permute="never"), ReALLM(VectorCode(bits=1, dim=2), permute="never"))
    noise = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    assert isinstance(plan(candidates, [("noise", noise)], 100.0)["noise"].code, VectorCode)
    # untrained it explains nothing, and yet it is what there is to choose from
    assert isinstance(plan(candidates[:1], [("waves", waves(64, 64, 3))], 1000.0)["waves"].code, Autoencoder)
    assert sum(isinstance(c.code, Autoencoder) for c in default_candidates(ReALLM(tiny))) == 1


@pytest.mark.parametrize("change", [{"patch": 36}, {"dim": 3}, {"bits": 5}])
def test_what_is_refused(change: dict) -> None:
    with pytest.raises(UserError, match="multiple of the product"):
        ReALLM(replace(SMALL, **change))(waves(32, 32))
