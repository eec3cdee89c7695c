"""LLaMA in plain torch, for models so small that they are trained on the spot: grouped-query attention, rotary
positions, gated MLP, RMS norms.

Touvron et al., "LLaMA: Open and Efficient Foundation Language Models", arXiv:2302.13971. Names and configuration are
those of ``transformers.LlamaForCausalLM``, so weights go to it and back, and what is compressed here loads there.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes, under the names of the Hugging Face configuration."""

    vocab_size: int = 256
    hidden_size: int = 64
    intermediate_size: int = 176
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    max_position_embeddings: int = 2048
    tie_word_embeddings: bool = False

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    def to_dict(self) -> dict[str, Any]:
        """As ``config.json`` of a LLaMA."""
        return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "attention_bias": False,
                "mlp_bias": False, "head_dim": self.head_dim, "bos_token_id": None, "eos_token_id": None, **asdict(self)}


class CausalOutput(NamedTuple):
    """What a causal language model returns: logits (sequences, length, vocabulary)."""

    logits: Tensor


class RMSNorm(nn.Module):
    """x over its root mean square, times a learnt scale, float32 inside."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype)


class Attention(nn.Module):
    """Causal attention with fewer key and value heads than query heads, positions by rotation of halves."""

    def __init__(self, c: LlamaConfig) -> None:
        super().__init__()
        self.heads, self.kv, self.dim = c.num_attention_heads, c.num_key_value_heads, c.head_dim
        self.q_proj = nn.Linear(c.hidden_size, self.heads * self.dim, bias=False)
        self.k_proj = nn.Linear(c.hidden_size, self.kv * self.dim, bias=False)
        self.v_proj = nn.Linear(c.hidden_size, self.kv * self.dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.dim, c.hidden_size, bias=False)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        n, length, _ = x.shape
        q, k, v = (f(x).view(n, length, -1, self.dim).transpose(1, 2) for f in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(q, *rotary), rotate(k, *rotary)
        k, v = (t.repeat_interleave(self.heads // self.kv, 1) for t in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).reshape(n, length, -1))


class MLP(nn.Module):
    """``down(silu(gate(x)) * up(x))``."""

    def __init__(self, c: LlamaConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.up_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.down_proj = nn.Linear(c.intermediate_size, c.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """Attention and MLP, each behind a norm and beside a residual."""

    def __init__(self, c: LlamaConfig) -> None:
        super().__init__()
        self.self_attn, self.mlp = Attention(c), MLP(c)
        self.input_layernorm, self.post_attention_layernorm = (RMSNorm(c.hidden_size, c.rms_norm_eps) for _ in range(2))

    def forward(self, x: Tensor, position_embeddings: tuple[Tensor, Tensor]) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), position_embeddings)
        return x + self.mlp(self.post_attention_layernorm(x))


class Backbone(nn.Module):
    """Embedding, blocks, last norm."""

    def __init__(self, c: LlamaConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(Block(c) for _ in range(c.num_hidden_layers))
        self.norm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.theta, self.dim = c.rope_theta, c.head_dim

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed_tokens(ids)
        cos, sin = angles(ids.shape[1], self.dim, self.theta, x.device)
        rotary = cos.to(x.dtype), sin.to(x.dtype)
        for block in self.layers:
            x = block(x, position_embeddings=rotary)
        return self.norm(x)


class TinyLlama(nn.Module):
    """``TinyLlama(config, generator)(ids).logits``.

    Weights are Gaussian, 0.02 at a width of 1024 and in proportion to 1/sqrt(width), so that narrow models learn at
    once; what ends in a residual is divided by sqrt(2 layers) (Radford et al., GPT-2, 2019).
    """

    def __init__(self, config: LlamaConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[]):  # the layers draw weights of their own, which are replaced
            self.model = Backbone(config)
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        std = 0.02 * math.sqrt(1024 / config.hidden_size)
        with torch.no_grad():
            for name, p in self.named_parameters():
                if p.dim() == 2:
                    last = name.endswith(("o_proj.weight", "down_proj.weight"))
                    p.normal_(0, std / math.sqrt(2 * config.num_hidden_layers) if last else std, generator=generator)
        self.tie_weights()

    def tie_weights(self) -> None:
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> CausalOutput:
        """``input_ids`` int64 (sequences, length). Nothing is cached between calls, whatever ``use_cache`` says."""
        return CausalOutput(self.lm_head(self.model(input_ids)))


def angles(length: int, dim: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines (1, length, dim) of the rotary angles (Su et al., RoFormer, 2021)."""
    frequencies = theta ** -(torch.arange(0, dim, 2, device=device).float() / dim)
    turns = torch.arange(length, device=device).float()[:, None] * frequencies
    both = torch.cat([turns, turns], -1)[None]
    return both.cos(), both.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn pairs (i, i + dim/2) of the last axis; x (n, heads, length, dim)."""
    a, b = x.chunk(2, -1)
    return x * cos[:, None] + torch.cat([-b, a], -1) * sin[:, None]
