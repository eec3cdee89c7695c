"""Fine-tuning of what stays in high precision: low-rank factors and magnitudes, block by block and then end to end.

Codes, codebooks, scales, norms, embeddings and head are frozen. Factors are trained as float32 and rounded to their
stored type at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tracking.errors import UserError
from workbench.llm.architecture import device_of
from workbench.llm.calibration import Stream, next_token_loss
from workbench.llm.linear import compressed_layers, dense
from workbench.method import derive_seed


@dataclass(frozen=True)
class BlockTuning:
    """Each block's factors are fitted to the outputs of the uncompressed block on the same inputs, mean squared error
    (as in AQLM, section 3.4).

    Adam steps are counted, not epochs.
    """

    steps: int = 50
    lr: float = 1e-4
    batch: int = 4
    betas: tuple[float, float] = (0.9, 0.95)


class FactorTuner:
    """Adam on all factors and magnitudes below a module, with what it remembers as plain tensors.

    ``with FactorTuner(model, lr=1e-4) as tuner: tuner.step(loss)``. While it is open the layers hold float32
    parameters and keep their decoded matrices; leaving it rounds the factors to storage.
    """

    def __init__(self, module: nn.Module, lr: float, betas: tuple[float, float] = (0.9, 0.95), weight_decay: float = 0.0) -> None:
        self.module, self.layers = module, compressed_layers(module)
        self.settings = {"lr": lr, "betas": betas, "weight_decay": weight_decay}

    def __enter__(self) -> FactorTuner:
        self._frozen = [p for p in self.module.parameters() if p.requires_grad]
        for p in self._frozen:
            p.requires_grad_(False)
        parameters = [p for layer in self.layers.values() for p in layer.train_factors()]
        if not parameters:
            raise UserError("There is nothing to tune: no matrix has a low-rank part or a magnitude. Compress with a "
                            "rank, wrap the quantiser in "
                            "workbench.llm.low_rank.Residual, or call attach(rank) on the layers.")
        self._dense = dense(self.module)
        self._dense.__enter__()
        self.optimizer = torch.optim.AdamW(parameters, **self.settings)
        return self

    def __exit__(self, *error: object) -> None:
        self._dense.__exit__(None, None, None)
        for layer in self.layers.values():
            layer.train_factors(False)
        for p in self._frozen:
            p.requires_grad_(True)

    def step(self, loss: Tensor, lr: float | None = None) -> float:
        """One step down; returns the loss in figures. A loss that is not finite raises
        :class:`tracking.errors.UserError`."""
        value = float(loss.detach())
        if not math.isfinite(value):
            raise UserError(f"The fine-tuning loss became {value}. Lower the learning rate ({self.settings['lr']}).")
        if lr is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return value

    def state_dict(self) -> dict[str, Any]:
        """Float32 factors by layer, and the optimiser's memory."""
        return {"factors": {name: {k: p.detach().clone() for k, p in layer.master.items()} for name, layer in self.layers.items()},
                "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            for name, factors in state["factors"].items():
                for key, value in factors.items():
                    self.layers[name].master[key].copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])


def tune_block(stream: Stream, block: nn.Module, target: Tensor, tuning: BlockTuning, seed: int, index: int) -> list[float]:
    """Fit the block's outputs on the stream's hidden states to ``target`` (n, length, width). Returns the loss before
    each step.

    The answer is never worse than the start over all sequences: factors that are, are put back.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "block", index))
    before = _mean_error(stream, block, target)
    start = {name: layer.packed for name, layer in compressed_layers(block).items()}
    losses = []
    with FactorTuner(block, tuning.lr, tuning.betas) as tuner:
        size = min(tuning.batch, stream.batch, len(stream.hidden))
        for _ in range(tuning.steps):
            rows = torch.randperm(len(stream.hidden), generator=generator)[:size]
            losses.append(tuner.step(F.mse_loss(_call(stream, block, rows), target[rows])))
    if _mean_error(stream, block, target) > before:
        for name, layer in compressed_layers(block).items():
            layer.restore(start[name])
    return losses


def _call(stream: Stream, block: nn.Module, rows: Tensor) -> Tensor:
    """The block on some sequences; a batch size that was never seen at the entrance goes one by one."""
    if len(rows) in stream.calls:
        return stream.call(block, stream.hidden[rows])
    return torch.cat([stream.call(block, stream.hidden[row:row + 1]) for row in rows.tolist()])


@torch.no_grad()
def _mean_error(stream: Stream, block: nn.Module, target: Tensor) -> float:
    with dense(block):
        return sum(float(F.mse_loss(out, part, reduction="sum"))
                   for out, part in zip(stream.run(block), target.split(stream.batch), strict=True)) / target.numel()


def cosine(step: int, steps: int, warm_up: float = 0.03) -> float:
    """Factor on the learning rate: linear warm-up, then a half cosine to zero."""
    begin = max(1, round(warm_up * steps))
    if step < begin:
        return (step + 1) / begin
    return 0.5 * (1 + math.cos(math.pi * (step - begin) / max(1, steps - begin)))


def tune_model(model: Any, ids: Tensor, steps: int, *, lr: float = 1e-4, batch: int = 4, weight_decay: float = 0.0, seed: int = 0,
               progress: Callable[[int, int, float], None] | None = None) -> list[float]:
    """End to end: cross-entropy of the next token over sequences ``ids`` (n, length), cosine schedule. Returns the
    loss before each step.

    ``model`` is a :class:`workbench.llm.Compressed` or a model with compressed layers; it is changed in place.
    """
    model = getattr(model, "model", model) if not isinstance(model, nn.Module) else model
    generator = torch.Generator().manual_seed(derive_seed(seed, "end to end"))
    ids, losses = ids.to(device_of(model)), []
    with FactorTuner(model, lr, weight_decay=weight_decay) as tuner:
        for step in range(steps):
            rows = torch.randint(len(ids), (batch,), generator=generator)
            losses.append(tuner.step(next_token_loss(model, ids[rows]), lr * cosine(step, steps)))
            if progress is not None:
                progress(step + 1, steps, losses[-1])
    return losses
