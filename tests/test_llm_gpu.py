"""Compression on CUDA against the same on the CPU. Both draw from the same CPU generators, so they differ by rounding alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.llm_helpers import payloads, token_ids
from tests.llm_layers import layer, output_error
from workbench import run
from workbench.llm import compress, load
from workbench.llm.calibration import LayerStatistics
from workbench.llm.evaluation import generate, mean_loss
from workbench.llm.formats_grid import NormalFloatGrid, UniformGrid
from workbench.llm.linear import CompressedLinear
from workbench.llm.low_rank import Residual
from workbench.llm.matrix import quantise
from workbench.llm.packed import Packed, pack_bits, unpack_bits
from workbench.llm.reallm import Autoencoder, ReALLM, VectorCode
from workbench.llm.tiny_llama import LlamaConfig, TinyLlama
from workbench.llm.tuning import BlockTuning, tune_model
from workbench.llm.vq.kmeans import kmeans
from workbench.llm.vq.ordering import order_columns
from workbench.methods.compression.apiq import ApiQ
from workbench.methods.compression.aqlm import AQLM
from workbench.methods.compression.awq import AWQ
from workbench.methods.compression.gptq import GPTQ
from workbench.methods.compression.hqq import HQQ
from workbench.methods.compression.loftq import LoftQ
from workbench.methods.compression.lq_lora import LQLoRA
from workbench.methods.compression.lr_qat import LRQAT
from workbench.methods.compression.nf4 import QLoRA
from workbench.methods.compression.quip import QuIP
from workbench.methods.compression.rtn import RTN
from workbench.methods.compression.uncompressed import Dense
from workbench.studies.reallm import METHODS, SMOKE

pytestmark = pytest.mark.gpu
IDS = token_ids()

EXACT = {"dense": Dense(), "rtn": RTN(3, 32), "symmetric": RTN(3, 0, True), "nf4": QLoRA(NormalFloatGrid(4, 32), 4)}
"""Elementwise: the same operations on the same numbers."""
CLOSE = {
    "hqq": HQQ(UniformGrid(2, 32)), "gptq": GPTQ(UniformGrid(2, 32, clip=4)),
    "gptq, moving grids": GPTQ(UniformGrid(2, 32), static_groups=False),
    "awq": AWQ(UniformGrid(2, 32)), "aqlm": AQLM(2, 4, 8, rounds=2), "aqlm, beam": AQLM(2, 4, 8, beam=2, rounds=1), "quip": QuIP(2),
    "loftq": LoftQ(NormalFloatGrid(2, 32), 4), "lq-lora": LQLoRA(NormalFloatGrid(2, 32), 4, weighted=True),
    "apiq": ApiQ(UniformGrid(2, 32), 4, 20), "lr-qat": LRQAT(UniformGrid(2, 32, True, 4), 8, steps=20),
    "reallm": ReALLM(VectorCode(2, 2, group=32), 4, 3),
    "reallm, columns": ReALLM(VectorCode(2, 4, "columns", 2), 0, 1, "always", "hessian"),
    "reallm, network": ReALLM(Autoencoder(2, 4, 32, (2, 2, 2), 8, 8, 8, steps=20), 2, 1, "never"),
}


def on_cuda(stats: LayerStatistics) -> LayerStatistics:
    return LayerStatistics(stats.tokens, *(t.cuda() for t in (stats.hessian, stats.mean_abs, stats.samples, stats.fisher)))


def on_cpu(packed: Packed) -> Packed:
    return Packed(packed.format, packed.shape, {name: t.cpu() for name, t in packed.tensors.items()}, packed.meta)


def both(quantiser) -> tuple[Tensor, LayerStatistics, Packed, Packed]:
    weight, stats = layer(96, 80, seed=1, outliers=2)
    there = quantise("w", weight.cuda(), quantiser, on_cuda(stats), 0)
    assert all(t.is_cuda for t in there.tensors.values()), "the payload lies where the matrix was"
    return weight, stats, quantise("w", weight, quantiser, stats, 0), there


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """Drawn, not trained: two blocks of width 64."""
    return TinyLlama(LlamaConfig(), torch.Generator().manual_seed(0)).requires_grad_(False).eval()


def fresh(model: nn.Module, device: str) -> nn.Module:
    twin = TinyLlama(model.config)
    twin.load_state_dict(model.state_dict())
    return twin.requires_grad_(False).eval().to(device)


# --- single matrices ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXACT)
def test_elementwise_quantisers_give_the_same_codes(name):
    _, _, here, there = both(EXACT[name])
    for key, tensor in here.tensors.items():
        assert torch.equal(there.tensors[key].cpu(), tensor), key


@pytest.mark.parametrize("name", CLOSE)
def test_quantisers_are_as_good_as_on_the_cpu(name):
    weight, stats, here, there = both(CLOSE[name])
    assert here.bits() == there.bits()
    assert here.meta == there.meta
    # a rounding error flips a code that lies between two levels, and feedback or a codebook then go another, equally good way:
    # some codes in a hundred, each by a step at worst, which moves a sum over 7680 weights by some per cent
    assert output_error(weight, on_cpu(there), stats) == pytest.approx(output_error(weight, here, stats), rel=0.1)
    # sums of at most 96 float32 terms
    torch.testing.assert_close(there.dequantise().cpu(), on_cpu(there).dequantise(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["aqlm", "gptq", "quip", "hqq", "reallm", "reallm, columns"])
def test_again_it_is_the_same_to_the_bit(name):
    """Additions that race would differ in some run of ten thousand; sums by code are of whole numbers."""
    weight, stats = layer(192, 256, seed=2)
    one, two = (quantise("w", weight.cuda(), CLOSE[name], on_cuda(stats), 0) for _ in range(2))
    assert all(torch.equal(t, two.tensors[key]) for key, t in one.tensors.items())


@pytest.mark.parametrize("bits", range(1, 17))
def test_bits_are_packed_and_unpacked_there(bits):
    codes = torch.randint(2**bits, (1001,), generator=torch.Generator().manual_seed(bits))
    packed = pack_bits(codes.cuda(), bits)
    assert packed.is_cuda
    assert torch.equal(packed.cpu(), pack_bits(codes, bits))
    assert torch.equal(unpack_bits(packed, bits, 1001).cpu(), codes)


@pytest.mark.parametrize("weighted", [False, True])
def test_k_means_is_as_good_as_on_the_cpu(weighted):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, 4, generator=generator)
    w = torch.rand(20_000, 4, generator=generator) if weighted else None
    here, there = (kmeans(x.to(d), 64, weights=None if w is None else w.to(d)) for d in ("cpu", "cuda"))
    # seeds are the same; Lloyd's path parts by single vectors at borders and ends in another of many equal minima
    assert there.error == pytest.approx(here.error, rel=0.01)
    assert there.codes.is_cuda


def test_columns_come_into_the_same_order():
    weight = torch.randn(130, 96, generator=torch.Generator().manual_seed(0))
    weight[:, 50] = weight[:, 7]
    assert torch.equal(order_columns(weight.cuda()).cpu(), order_columns(weight))
    assert torch.equal(order_columns(weight.cuda(), backend="torch").cpu(), order_columns(weight, backend="torch"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["rtn", "reallm", "aqlm", "quip"])
def test_a_compressed_layer_multiplies_there(name, dtype):
    _, _, here, there = both({**EXACT, **CLOSE}[name])
    here = on_cpu(there)
    x = torch.randn(3, 80, generator=torch.Generator().manual_seed(0))
    expected = CompressedLinear(here)(x)
    found = CompressedLinear(there).to(dtype)(x.cuda().to(dtype))
    assert found.dtype == dtype
    # 80 products a sum, of factors rounded to the type: sixteen of its own roundings hold them
    torch.testing.assert_close(found.float().cpu(), expected, rtol=0, atol=16 * torch.finfo(dtype).eps * float(expected.abs().max()))


# --- models -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantiser", [GPTQ(UniformGrid(3, 32)), ReALLM(VectorCode(2, 2, group=32), 2, 2, magnitude="approximation")])
def test_blocks_move_there_and_come_back(model, quantiser):
    """Block by block on the GPU, results on the CPU, against a model that is there as a whole and one that never was."""
    moved = compress(fresh(model, "cpu"), quantiser, calibration=IDS, device="cuda")
    assert not any(t.is_cuda for t in [*moved.model.parameters(), *moved.model.buffers()])
    whole = compress(fresh(model, "cuda"), quantiser, calibration=IDS)
    here = compress(fresh(model, "cpu"), quantiser, calibration=IDS)
    for found in (moved, whole):
        assert found.bpw() == here.bpw()
        assert mean_loss(found, IDS) == pytest.approx(mean_loss(here, IDS), rel=0.01)  # single codes differ, as above


def test_what_was_compressed_there_is_saved_and_loads_on_the_cpu(model, tmp_path):
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    quantiser = Residual(GPTQ(UniformGrid(3, 32)), 4, True)
    done = compress(fresh(model, "cuda"), quantiser, calibration=IDS, folder=tmp_path / "small")
    again, there = load(tmp_path / "small"), load(tmp_path / "small", "cuda")
    for name, tensors in payloads(done).items():
        for key, tensor in tensors.items():
            assert torch.equal(payloads(again)[name][key], tensor.cpu()), (name, key)
            assert torch.equal(payloads(there)[name][key], tensor), (name, key)
    # two implementations of one network, 64 wide and two blocks deep
    assert mean_loss(again, IDS) == pytest.approx(mean_loss(done, IDS), rel=1e-4)


def test_tuning_there_is_tuning_here(model):
    losses = []
    for device in ("cpu", "cuda"):
        tuned = compress(fresh(model, device), Residual(RTN(2, 32), 4, True), calibration=IDS, tuning=BlockTuning(steps=5))
        losses.append(tune_model(tuned, IDS, 5, lr=1e-3))
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)  # fp16 factors, ten steps of Adam: 2^-11 each at most
    assert losses[1][-1] < losses[1][0]


def test_text_goes_on_there(model):
    class Bytes:
        eos_token_id = None

        def __call__(self, text: str) -> dict[str, list[int]]:
            return {"input_ids": list(text.encode())}

        def decode(self, ids: list[int]) -> list[int]:
            return ids

    done = compress(fresh(model, "cuda"), RTN(8, 32))
    assert len(generate(done, Bytes(), "import", 5)) == 5


# --- runs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_a_run_ends_where_it_ends_on_the_cpu(name):
    tuning = {"rank": 2, "block_steps": 2, "steps": 4, "sequences": 4} if name in ("RTN", "ApiQ", "ReALLM") else {}
    spec = SMOKE.run(name, 2, **tuning)
    here, there = (run(**spec, device=device, threads=2, tracking="off", progress=False, fresh=True) for device in ("cpu", "cuda"))
    assert here.metrics["memory/bits_per_weight"] == there.metrics["memory/bits_per_weight"]
    # perplexities of two seeds differ by some per cent; those of two devices, which share the seed, by less than one
    assert there.metrics["eval/loss"] == pytest.approx(here.metrics["eval/loss"], abs=0.02)
