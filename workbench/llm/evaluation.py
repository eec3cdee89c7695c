"""Perplexity by the field's convention, and greedy generation for the eye.

The text is tokenised once, cut into non-overlapping windows, and the remainder is dropped (as in GPTQ: Frantar et al.,
ICLR 2023). Windows of different lengths, other tokenisers and other preparations of a text give figures that do not
compare.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from tracking.errors import UserError
from workbench.llm.architecture import device_of
from workbench.llm.calibration import check_range, next_token_loss

CHUNK_TOKENS = {"cpu": 1024, "cuda": 8192}
"""Tokens whose logits are in memory at a time, at least a window: on a GPU of 49,152 words 3 GB with those that the loss makes."""


def encode(tokenizer: Any, text: str | Iterable[str]) -> Tensor:
    """Token ids of a text as a flat int64 tensor; parts of a text are joined by blank lines. A tokenizer that begins
    with a mark does so once."""
    whole = text if isinstance(text, str) else "\n\n".join(text)
    found = tokenizer(whole)
    ids = found["input_ids"] if isinstance(found, dict) or hasattr(found, "input_ids") else found
    return torch.as_tensor(ids, dtype=torch.int64).reshape(-1)


def windows(ids: Tensor, window: int, count: int | None = None) -> Tensor:
    """The first ``count`` non-overlapping windows (n, window) of a flat tensor of ids; the remainder is dropped."""
    if window < 2:
        raise UserError(f"A window of {window} is refused: it takes two tokens to predict one.")
    n = len(ids) // window
    if n == 0:
        raise UserError(f"The text has {len(ids)} tokens, less than one window of {window}. Give a longer text or a "
                        f"shorter window.")
    if count is not None and count > n:
        raise UserError(f"{count} windows of {window} tokens asked for; the text has {n}.")
    n = n if count is None else count
    return ids[:n * window].view(n, window)


@torch.no_grad()
def mean_loss(model: Any, parts: Tensor, poll: Callable[[], None] | None = None) -> float:
    """Mean over windows (n, length) of the mean cross-entropy in nats of their ``length - 1`` predicted tokens."""
    inner = _module(model)
    device = device_of(inner)
    check_range(inner, parts, "test")
    total = torch.zeros((), dtype=torch.float64, device=device)
    was_training = inner.training
    inner.eval()
    try:
        for part in parts.to(device).split(max(1, CHUNK_TOKENS.get(device.type, 1024) // parts.shape[1])):
            if poll is not None:
                poll()
            total += next_token_loss(inner, part).double() * len(part)
    finally:
        inner.train(was_training)
    return float(total) / len(parts)


def perplexity(model: Any, tokenizer: Any, text: str | Iterable[str], window: int = 2048, *, count: int | None = None) -> float:
    """exp of the mean loss a token over the first ``count`` windows (``None``: all) of a text.

    Args:
        model: a causal language model, or a :class:`workbench.llm.Compressed`.
        tokenizer: a Hugging Face tokenizer, or any function from a text to ids.
        text: the text, or its parts, which are joined by blank lines.
        window: tokens of a window. Published figures use 2048 or 4096, which do not compare.
    """
    loss = mean_loss(model, windows(encode(tokenizer, text), window, count))
    return math.exp(loss) if loss < 700 else math.inf


@torch.no_grad()
def generate(model: Any, tokenizer: Any, prompt: str, tokens: int = 32) -> str:
    """Continue a prompt greedily: the likeliest token each time, until the end mark or for ``tokens``. Returns the
    continuation alone."""
    inner = _module(model)
    ids = encode(tokenizer, prompt)[None].to(device_of(inner))
    begin, end = ids.shape[1], getattr(tokenizer, "eos_token_id", None)
    cache: dict[str, Any] = {}
    given = ids
    for _ in range(tokens):
        out = inner(given, use_cache=True, **cache)
        best = out.logits[:, -1].argmax(-1, keepdim=True)
        ids = torch.cat([ids, best], 1)
        if end is not None and int(best) == end:
            break
        past = getattr(out, "past_key_values", None)
        given, cache = (ids, {}) if past is None else (best, {"past_key_values": past})
    return tokenizer.decode(ids[0, begin:].tolist())


def _module(model: Any) -> nn.Module:
    return model if isinstance(model, nn.Module) else model.model
