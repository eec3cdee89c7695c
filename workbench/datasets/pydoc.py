"""A small LLaMA on the bytes of Python's manual: a language model whose perplexity means something, trained in
seconds, without any file."""

from __future__ import annotations

import hashlib
import io
import math
import platform
import threading
import warnings
from pathlib import Path

import torch
from torch import nn

from tracking.folder import write_atomic
from workbench.data_sources import cache_folder
from workbench.datasets.corpora import pydoc
from workbench.datasets.language import LanguageParams, LanguageTask
from workbench.llm.tiny_llama import LlamaConfig, TinyLlama
from workbench.method import Context, derive_seed
from workbench.params import Field

BATCH, LR = 4, 6e-3
"""Windows of a training step, and Adam's highest learning rate, on a half cosine."""

_trained: dict[str, dict[str, torch.Tensor]] = {}
_lock = threading.Lock()


class ByteTokenizer:
    """UTF-8 bytes as ids, with the verbs of a Hugging Face tokenizer that are needed."""

    eos_token_id = None

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": list(text.encode())}

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode(errors="replace")


class PydocParams(LanguageParams):
    """Small enough for seconds."""

    window: int = Field(128, ge=8, le=2048, description="bytes of an evaluation window")
    test_size: int = Field(100, ge=0, le=1_000_000, description="windows evaluated, from the start of the test text; "
                                                                "0 = all")
    pretrain_steps: int = Field(400, ge=1, le=100_000, description="steps that the model is trained for before it is "
                                                                   "given to a method")
    hidden_size: int = Field(64, ge=8, le=1024, multiple_of=8, description="width of the model")
    layers: int = Field(2, ge=1, le=48, description="decoder blocks")


class Pydoc(LanguageTask):
    """Bytes of Python's own manual, and a LLaMA of two blocks trained on four of five topics; every fifth topic
    tests."""

    dataset = "pydoc"
    models = ("tiny_llama",)
    title = "The Python manual, byte by byte"
    kind = "language_model"
    embedded = True

    Params = PydocParams
    params: PydocParams
    note = "The text differs a little between versions of Python. Tokens are bytes."

    def texts(self) -> tuple[str, str]:
        return pydoc(self.params.judged)

    def config(self) -> LlamaConfig:
        """Four heads, two of keys and values; an MLP of 2.75 times the width."""
        p = self.params
        return LlamaConfig(256, p.hidden_size, 11 * p.hidden_size // 4, p.layers, 4, 2)

    def build_model(self, ctx: Context) -> nn.Module:
        """An untrained model, initialised from ``ctx.generator("init", cpu=True)``."""
        return TinyLlama(self.config(), ctx.generator("init", cpu=True)).to(ctx.device)

    def load_model(self, ctx: Context) -> tuple[nn.Module, ByteTokenizer]:
        """Trained on the CPU once, the same for every seed of a run, and kept in memory and in the cache folder."""
        model = TinyLlama(self.config(), torch.Generator().manual_seed(derive_seed(0, "pydoc")))
        recipe = f"{self.config()} {self.params.pretrain_steps} {self.window} {BATCH} {LR}"
        key = hashlib.sha256(recipe.encode() + self.texts()[0].encode()).hexdigest()[:16]
        path = cache_folder() / "models" / f"pydoc-tiny_llama-{key}.pt"
        with _lock:
            if str(path) not in _trained:
                _trained[str(path)] = self._kept(path) or self._train(model, ctx, path)
            model.load_state_dict(_trained[str(path)])
        return model.requires_grad_(False).eval().to(ctx.device), ByteTokenizer()

    def _kept(self, path: Path) -> dict[str, torch.Tensor] | None:
        try:
            return torch.load(path, weights_only=True)
        except FileNotFoundError:
            return None
        except Exception as error:  # a damaged file raises errors of several kinds
            warnings.warn(f"{path} is damaged ({type(error).__name__}); the model is trained anew.", stacklevel=2)
            return None

    def _train(self, model: TinyLlama, ctx: Context, path: Path) -> dict[str, torch.Tensor]:
        """Adam on the next byte of random windows."""
        steps = self.params.pretrain_steps
        ids = torch.frombuffer(bytearray(self.texts()[0].encode()), dtype=torch.uint8).long()
        order = torch.Generator().manual_seed(derive_seed(0, "pydoc", "order"))
        optimizer = torch.optim.Adam(model.parameters(), lr=LR, betas=(0.9, 0.95))
        places = torch.arange(self.window + 1)
        for step in range(steps):
            ctx.poll()
            rows = ids[torch.randint(len(ids) - self.window, (BATCH, 1), generator=order) + places]
            optimizer.param_groups[0]["lr"] = LR * min(1.0, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * step / steps))
            optimizer.zero_grad()
            self.loss(model(rows[:, :-1]), rows[:, 1:]).backward()
            optimizer.step()
        buffer = io.BytesIO()
        state = {name: t.detach().clone() for name, t in model.state_dict().items()}
        torch.save(state, buffer)
        try:
            write_atomic(path, buffer.getvalue())
        except OSError as error:
            warnings.warn(f"The trained model is not kept: cannot write {path} "
                          f"({error.strerror or error}).", stacklevel=2)
        return state

    def provenance(self) -> dict[str, str]:
        return super().provenance() | {"source": f"pydoc_data of Python {platform.python_version()}"}
