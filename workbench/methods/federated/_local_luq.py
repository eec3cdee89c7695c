"""Local training of many clients with LUQ: gradients of a 4-bit network at real-valued weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.method import derive_seed
from workbench.methods.federated._local import Backend, Job, Loss
from workbench.methods.federated._local_quantised import ChainRule, QuantisedSGD, needed
from workbench.methods.lowbit._activations import activation_clip
from workbench.methods.lowbit._levels import LEVELS, Weights, sawb_scale
from workbench.methods.lowbit.luq import EXPONENTS, quantise_layers, quantised_modules


class LocalLUQ(QuantisedSGD):
    """SGD on real-valued weights whose gradients are those of a quantised network (Chmiel et al., arXiv:2112.10769).

    Weights and inputs of the quantised layers are rounded to 4 bits (weights: to the level set), and the gradients of
    their outputs to 4 bits without bias. Whether inputs are signed is found out anew in each job (our choice): the
    quantiser's memory of it would otherwise pass from one client to the next.
    """

    option = "luq"

    def __init__(self, model: nn.Module, loss: Loss = F.cross_entropy, backend: Backend = "auto", *,
                 weights: Weights = "4bit", layers: str = "inner") -> None:
        super().__init__(model, loss, backend, weights, layers)
        quantise_layers(self.flat.model, weights, layers=layers)
        self.modules, self.layers = quantised_modules(self.flat.model), layers

    def deployed(self, model: nn.Module, scales: tuple[float, ...] = ()) -> nn.Module:
        return quantise_layers(copy.deepcopy(model), self.weights, layers=self.layers)

    def noise(self, job: Job) -> torch.Generator:
        """Source of a job's stochastic rounding, the same on every device for the back end ``matmul``."""
        device = "cpu" if self.backend == "matmul" else self.modules[0].layer.weight.device
        return torch.Generator(device).manual_seed(derive_seed(job.seed, "rounding", job.client, job.contact))

    def alone(self, lr: float, job: Job | None) -> Callable[[Tensor, Tensor], Tensor]:
        generator = self.noise(needed(job and [job])[0])
        for module in self.modules:
            module.generator = generator
            module.input.clip.zero_()
            module.input.signed.zero_()
        return super().alone(lr, job)

    def rule(self, jobs: Sequence[Job]) -> ChainRule:
        return LUQRule(self.names, self.weights, [self.noise(job) for job in jobs])


class LUQRule(ChainRule):
    """LUQ for many rows. ``noise`` holds each row's source of draws."""

    def __init__(self, names: Sequence[str], weights: Weights, noise: Sequence[torch.Generator]) -> None:
        self.weights, self.noise = weights, noise
        self.signed = {name: torch.zeros(len(noise), dtype=torch.bool) for name in names}

    def weight(self, name: str, w: Tensor) -> Tensor:
        if name not in self.signed:
            return w
        levels = LEVELS[self.weights]
        low, gap = levels[0], levels[1] - levels[0]
        scale = torch.func.vmap(lambda row: sawb_scale(row, self.weights))(w).view(-1, 1, 1)
        # levels are evenly spaced: rounding is an order faster than the search among any levels
        place = (w / scale).sub_(low - gap / 2).div_(gap).floor_().clamp_(0, len(levels) - 1)
        return place.mul_(gap).add_(low).mul_(scale)

    def entering(self, name: str, x: Tensor) -> Tensor:
        if name not in self.signed:
            return x
        signed = self.signed[name] = self.signed[name].to(x.device)
        return four_bits(x, signed[: len(x)])

    def signal(self, name: str, delta: Tensor) -> Tensor:
        if name not in self.signed:
            return delta
        draws = [torch.rand(delta.shape[1:], generator=noise, dtype=delta.dtype) for noise in self.noise[: len(delta)]]
        return luq_rows(delta, torch.stack(draws).to(delta.device))


def luq_rows(G: Tensor, draws: Tensor) -> Tensor:
    """:func:`~workbench.methods.lowbit.luq.luq` of each row of ``G`` ``(m, ...)`` with these draws from [0, 1), bit for bit.

    float32 or float64.
    """
    al = G.abs().amax(tuple(range(1, G.dim())), keepdim=True) / 2 ** (EXPONENTS - 1)
    ratio = torch.where(al > 0, G.abs() / al, 0.0)
    words, mask = (torch.int32, 0x7F80_0000) if G.dtype == torch.float32 else (torch.int64, 0x7FF0_0000_0000_0000)
    low = (ratio.view(words) & mask).view(G.dtype)  # a float's exponent alone is the power of two below it
    small = ratio < 1
    up = torch.where(small, ratio, ratio / low - 1)
    low = torch.where(small, 0.0, low)
    return torch.sign(G) * al * torch.where(draws < up, low + torch.where(small, 1.0, low), low)


def four_bits(x: Tensor, signed: Tensor) -> Tensor:
    """Training mode of :class:`~workbench.methods.lowbit._activations.FourBitActivation` for rows of ``x`` ``(m, ...)``.

    ``signed`` ``(m,)``, bool: whether a row has seen negative values; these are added.
    """
    wide = (-1, *[1] * (x.dim() - 1))
    signed |= (x < 0).flatten(1).any(1)
    clip, signed = torch.func.vmap(activation_clip)(x).view(wide), signed.view(wide)
    step = (clip * (1 + signed.to(clip.dtype)) / 15).clamp_min(torch.finfo(x.dtype).tiny)
    return torch.clamp(torch.round(x / step), torch.where(signed, -8.0, 0.0), torch.where(signed, 7.0, 15.0)) * step
