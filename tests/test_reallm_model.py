"""ReALLM on a whole model: a budget shared over its matrices, statistics from calibration, and the way to disk and back."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.llm_helpers import llama, token_ids
from tracking.errors import UserError
from workbench.llm import compress, load
from workbench.llm.reallm import Autoencoder, ReALLM, VectorCode

IDS = token_ids()
SHAPES = tuple(ReALLM(VectorCode(bits=b, dim=2), rank=r, turns=2, permute="never") for b, r in ((1, 0), (3, 0), (1, 8)))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """One of its matrices has rank 8, so that a low-rank shape is right for it and wrong for the others."""
    made = llama()
    u, s, v = torch.linalg.svd(made.model.layers[0].self_attn.o_proj.weight)
    made.model.layers[0].self_attn.o_proj.weight.copy_(u[:, :8] * s[:8] @ v[:8])
    return made


def test_a_budget_is_kept_and_shapes_differ(model: nn.Module) -> None:
    done = compress(copy.deepcopy(model), ReALLM(candidates=SHAPES), budget=3.0)
    assert done.bpw() <= 3.0
    layers = {name: layer.packed for name, layer in done.layers().items()}
    assert "low_rank.a" in layers["model.layers.0.self_attn.o_proj"].tensors
    assert len({packed.meta["bits"] for packed in layers.values()}) == 2
    even = compress(copy.deepcopy(model), SHAPES[0])  # the same bits for all, within the budget
    assert done.relative_error() < even.relative_error()
    with pytest.raises(UserError, match="smallest that the 3 candidates reach"):
        compress(copy.deepcopy(model), ReALLM(candidates=SHAPES), budget=0.1)


def test_weighting_by_the_inputs_lowers_the_outputs_errors(model: nn.Module) -> None:
    """Some inputs are ten times as large as others, as in trained models: the low-rank part goes where they are."""
    uneven, g = copy.deepcopy(model), torch.Generator().manual_seed(0)
    uneven.model.layers[0].input_layernorm.weight.copy_(torch.logspace(-1, 0, 64)[torch.randperm(64, generator=g)])
    plain, ours = (compress(copy.deepcopy(uneven), ReALLM(VectorCode(2, 2), rank=8, turns=3, permute="never", weighting=w), calibration=IDS,
                            layers=[0], targets=("q_proj", "k_proj", "v_proj")) for w in ("none", "hessian"))
    assert all(ours.reports[name].weighted_error < plain.reports[name].weighted_error for name in ours.reports)


NETWORK = Autoencoder(dim=4, patch=32, strides=(2, 2), latent=4, channels=4, width=4, least=4, steps=3)


@pytest.mark.parametrize("code", [VectorCode(2, 2), NETWORK])
def test_saved_loaded_and_begun_again(model: nn.Module, code: VectorCode | Autoencoder, tmp_path: Path) -> None:
    method = ReALLM(code, rank=2, turns=2, permute="always", magnitude="approximation")
    done = compress(copy.deepcopy(model), method, folder=tmp_path / "whole")
    again = load(tmp_path / "whole")
    for name, layer in done.layers().items():
        assert torch.equal(layer.weight, again.layers()[name].weight)
    torch.testing.assert_close(done(IDS).logits, again(IDS).logits)
    seen = 0

    def stop(count: int, total: int, report: object) -> None:
        nonlocal seen
        seen = count
        if count == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(copy.deepcopy(model), method, folder=tmp_path / "halves", progress=stop)
    assert seen == 3
    resumed = compress(copy.deepcopy(model), method, folder=tmp_path / "halves")
    for name, layer in done.layers().items():
        other = resumed.layers()[name].packed
        assert all(torch.equal(t, other.tensors[key]) for key, t in layer.packed.tensors.items())
