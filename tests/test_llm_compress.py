"""Whole models: what is compressed, what is refused."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

from tests.llm_helpers import Noisy, llama, same, seeded, token_ids
from tracking.errors import UserError
from workbench.llm import ReALLM, VectorCode, compress, load, method
from workbench.llm.formats_grid import NormalFloatGrid, UniformGrid
from workbench.llm.linear import CompressedLinear
from workbench.llm.low_rank import Residual
from workbench.llm.packed import Packed
from workbench.llm.tuning import BlockTuning
from workbench.methods.compression.gptq import GPTQ
from workbench.methods.compression.loftq import LoftQ
from workbench.methods.compression.rtn import RTN

IDS = token_ids()


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A tied one: what is not compressed must not be counted or written twice."""
    return llama(tied=True)


# --- what it gives ------------------------------------------------------------------------------------------


def test_every_matrix_is_compressed_and_nothing_else(model):
    done = compress(copy.deepcopy(model), RTN(4, 32), calibration=IDS)
    assert list(done.layers()) == [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n != "lm_head"]
    assert len(done.reports) == 14
    for name, layer in done.layers().items():
        w = model.get_submodule(name).weight
        assert torch.equal(layer.weight, RTN(4, 32)(w).dequantise())
        report = done.reports[name]
        assert report.error == pytest.approx(float((w - layer.weight).norm() / w.norm()))
        assert report.bits == layer.packed.bits()
    expected = copy.deepcopy(model)
    for name, layer in done.layers().items():
        expected.get_submodule(name).weight.copy_(layer.weight)
    # the same products in the same order, but for the rows of a fused one
    torch.testing.assert_close(done(IDS).logits, expected(IDS).logits, rtol=0, atol=1e-4)


def test_the_weighted_error_is_that_of_the_outputs(model):
    done = compress(copy.deepcopy(model), RTN(2, 32), calibration=IDS, layers=[0])
    x = {}
    before = copy.deepcopy(model)
    linear = before.model.layers[0].mlp.down_proj
    hook = linear.register_forward_pre_hook(lambda m, args: x.update(x=args[0].double().flatten(0, 1)))
    before(IDS)
    hook.remove()
    w = linear.weight.double()
    e = w - done.layers()["model.layers.0.mlp.down_proj"].weight.double()
    expected = float((x["x"] @ e.T).norm() / (x["x"] @ w.T).norm())
    # sums over 144 tokens in float32, squared
    assert done.reports["model.layers.0.mlp.down_proj"].weighted_error == pytest.approx(expected, rel=1e-4)


def test_the_report_has_every_term_and_names_what_is_tied(model):
    done = compress(copy.deepcopy(model), Residual(RTN(3, 32), 4, True))
    table = done.report()
    assert list(table.data.matrix) == list(done.layers())
    billed = table.data[[c for c in table.data if c.endswith("_bits")]].sum().sum()
    assert billed == sum(done.bits().values())
    numbers = sum(layer.in_features * layer.out_features for layer in done.layers().values())
    assert done.bpw() == pytest.approx(billed / numbers)
    assert done.code_bpw() == pytest.approx(sum(v for k, v in done.bits().items() if k not in ("low_rank", "magnitude")) / numbers)
    assert "tied model.embed_tokens.weight (also lm_head.weight)" in table.caption
    assert {row["tensor"] for row in done.kept()} == {n for n, _ in model.named_parameters() if "_proj" not in n}


@pytest.mark.parametrize("family", ["neox", "opt", "qwen2", "mistral"])
def test_other_layouts(family):
    import transformers as t

    small = {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64}
    grouped = small | {"intermediate_size": 64, "num_key_value_heads": 1}
    made = {"neox": lambda: (t.GPTNeoXForCausalLM, t.GPTNeoXConfig(**small, intermediate_size=64)),
            "opt": lambda: (t.OPTForCausalLM, t.OPTConfig(**small, ffn_dim=64, word_embed_proj_dim=32)),
            "qwen2": lambda: (t.Qwen2ForCausalLM, t.Qwen2Config(**grouped)),
            "mistral": lambda: (t.MistralForCausalLM, t.MistralConfig(**grouped, head_dim=16))}[family]()
    model = seeded(*made, seed=2)
    ids = token_ids(3, 12, vocabulary=128)
    before = model(ids).logits
    done = compress(copy.deepcopy(model), RTN(8, 16), calibration=ids)
    assert len(done.layers()) == 2 * {"neox": 4, "opt": 6}.get(family, 7)
    # eight bits: every matrix within 1 %, and four or more of them in a row
    assert float((done(ids).logits - before).norm() / before.norm()) < 0.1
    weighted = [r.weighted_error for r in done.reports.values()]
    assert all(w is not None and 0 < w < 0.02 for w in weighted)


# --- refused ------------------------------------------------------------------------------------------------


def test_weights_that_are_not_finite_are_named(model):
    bad = copy.deepcopy(model)
    bad.model.layers[1].self_attn.v_proj.weight[2, 3] = math.nan
    with pytest.raises(UserError, match=r"model.layers.1.self_attn.v_proj holds 1 weight that is not finite"):
        compress(bad, RTN(2, 16))
    large = copy.deepcopy(model)
    large.model.layers[0].mlp.gate_proj.weight[0] = 1e30
    with pytest.raises(UserError, match=r"gate_proj decodes to weights that are not finite.*65504"):
        compress(large, Overflowing())


@dataclass(frozen=True)
class Overflowing:
    needs: ClassVar[frozenset[str]] = frozenset()

    def __call__(self, weight, stats=None, generator=None):
        return Packed("dense", tuple(weight.shape), {"other": weight.half()})


def test_unknown_architectures_name_their_layers(model):
    import transformers as t

    gpt2 = t.GPT2LMHeadModel(t.GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2, n_positions=16))
    with pytest.raises(UserError, match=r"were not recognised.*transformer.h.0.attn.c_attn \(Conv1D\).*h.0.mlp.c_proj \(Conv1D\)"):
        compress(gpt2, RTN())
    mamba = t.MambaForCausalLM(t.MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1))
    with pytest.raises(UserError, match=r"were not recognised.*backbone.layers.0.mixer.conv1d \(Conv1d\)"):
        compress(mamba, RTN())
    with pytest.raises(UserError, match=r"decoder blocks of Sequential were not recognised: no list of equal "
                                        r"blocks.*0 \(Linear\)"):
        compress(nn.Sequential(nn.Linear(4, 4)), RTN())
    odd = copy.deepcopy(model)
    odd.model.layers[1].mlp.experts = nn.ParameterList([nn.Parameter(torch.zeros(2, 3, 4))])
    with pytest.raises(UserError, match=r"not recognised.*model.layers.1.mlp.experts \(ParameterList\).*targets"):
        compress(odd, RTN())
    assert len(compress(odd, RTN(), targets=("q_proj", "down_proj")).layers()) == 4


def test_calls_that_cannot_be_are_refused_in_a_sentence(model, tmp_path):
    for words, call in (
        ("Unknown target 'q_prj'. Did you mean 'q_proj'", lambda: compress(model, RTN(), targets=("q_prj",))),
        (r"layers = \[2\] is refused: the model's blocks are the whole numbers 0 to 1", lambda: compress(model, RTN(), layers=[2])),
        (r"layers = \['0'\] is refused", lambda: compress(model, RTN(), layers="0")),
        ("Nothing is left to compress", lambda: compress(model, RTN(), layers=[])),
        ("Noisy needs calibration", lambda: compress(model, Noisy())),
        ("Block-wise tuning needs calibration", lambda: compress(model, RTN(), tuning=BlockTuning())),
        ("is no quantiser", lambda: compress(model, lambda w: w)),
        (r"RTN is a class; give .* RTN\(\)", lambda: compress(model, RTN)),
        ("RTN takes no budget", lambda: compress(model, RTN(), budget=2.5)),
        ("Calibration takes token ids as a tensor of whole numbers.*float32", lambda: compress(model, RTN(), calibration=torch.rand(2, 3))),
        ("Calibration takes token ids .* not a list", lambda: compress(model, RTN(), calibration=[[1, 2]])),
        ("ids go from 0 to 256; the model knows 0 to 255", lambda: compress(model, RTN(), calibration=torch.tensor([[0, 256]]))),
        ("There is no folder", lambda: compress(tmp_path / "nowhere", RTN())),
        ("holds no safetensors file", lambda: compress(tmp_path, RTN())),
        ("takes a model, a folder or a hub id, not a dict", lambda: compress({}, RTN())),
        ("holds no compressed model", lambda: load(tmp_path)),
    ):
        with pytest.raises(UserError, match=words):
            call()
    assert not any(isinstance(m, CompressedLinear) for m in model.modules()), "nothing was changed before the refusal"


@pytest.mark.parametrize(("name", "settings", "own"), [
    ("rtn", {"bits": 2, "group_size": 16}, RTN(2, 16)),
    ("gptq", {"bits": 2, "act_order": False}, GPTQ(UniformGrid(2, 64), act_order=False)),
    ("rtn", {"bits": 2, "rank": 3, "magnitude": True}, Residual(RTN(2, 64), 3, True)),
    ("loftq", {"bits": 2, "rank": 3, "magnitude": True}, Residual(LoftQ(NormalFloatGrid(2, 64), 3), 3, True)),
    ("reallm", {"dim": 2, "rank": 3, "turns": 2}, ReALLM(VectorCode(2, 2), rank=3, turns=2))])
def test_a_method_by_its_name_is_its_quantiser(model, name, settings, own):
    some = {"calibration": IDS, "layers": [0], "targets": ["k_proj", "o_proj"]}
    one, two = (compress(copy.deepcopy(model), q, **some) for q in (method(name, **settings), own))
    assert same(one, two)


def test_names_and_settings_that_are_no_quantisers(model):
    assert same(compress(copy.deepcopy(model), "rtn"), compress(copy.deepcopy(model), RTN(3, 64)))
    for words, call in (("compression method 'realm'. Did you mean 'reallm'", lambda: compress(model, "realm")),
                        ("bit", lambda: method("rtn", bit=3)), ("bits", lambda: method("rtn", bits=9)),
                        ("budget is a setting of a run .* `budget`", lambda: method("reallm", budget=3.0)),
                        ("tune_lr is a setting of a run .* `tune_model", lambda: method("rtn", tune_lr=1e-3))):
        with pytest.raises(UserError, match=words):
            call()
    with pytest.raises(UserError, match="smallest that the 10 candidates reach"):
        compress(model, method("reallm"), budget=0.1, layers=[0], targets=["k_proj"])
    kept = Residual(LoftQ(rank=2), 5)(model.model.layers[0].mlp.up_proj.weight)
    assert len(kept.tensors["low_rank.a"]) == 2, "a low-rank part of its own is kept"


def test_a_hub_id_without_a_network_is_explained(monkeypatch):
    import huggingface_hub

    def offline(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(UserError, match=r"'someone/some-model' is neither a folder nor a model that could be "
                                        "fetched.*no network"):
        compress("someone/some-model", RTN())


def test_a_plan_is_followed(model):
    @dataclass(frozen=True)
    class Planner:
        needs: ClassVar[frozenset[str]] = frozenset()

        def plan(self, matrices, budget):
            assert budget == 3.5
            return {name: RTN(2 if "mlp" in name else 4, 16) for name, weight in matrices if weight.dtype == torch.float32}

        def __call__(self, weight, stats=None, generator=None):
            raise AssertionError("every matrix has a plan")

    calls: list[tuple[int, int, bool]] = []
    done = compress(copy.deepcopy(model), Planner(), budget=3.5, progress=lambda k, n, report: calls.append((k, n, report is None)))
    count = len(done.layers())
    assert calls == [*((k, count, True) for k in range(1, count)), *((k, count, False) for k in range(1, count + 1))]
    assert {layer.meta["bits"] for name, layer in done.layers().items() if "mlp" in name} == {2}
    assert {layer.meta["bits"] for name, layer in done.layers().items() if "attn" in name} == {4}
