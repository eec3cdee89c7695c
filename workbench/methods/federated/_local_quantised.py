"""What quantised local trainings of many clients at once share: the step of a chain of layers with quantised operands.

Products run over all rows together; each row is quantised for itself, with noise keyed by (seed, client, contact). So a
row is what the single-model code (:mod:`workbench.methods.lowbit.luq`, :mod:`workbench.methods.lowbit.askewsgd`) makes of
it, whatever rows it is trained with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from tracking.errors import UserError
from workbench.methods.federated._local import Backend, Job, LocalSGD, Loss
from workbench.methods.lowbit._levels import Weights, quantised_layers

Step = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class ChainRule:
    """What a quantised training changes in a step of a chain of linear layers; the plain step as it stands here.

    Made anew for each set of rows. Rows come with the longest jobs first, and a call is about the first ``m`` of them.
    """

    def weight(self, name: str, w: Tensor) -> Tensor:
        """What the products use for the weights ``(m, out, in)`` of a layer."""
        return w

    def entering(self, name: str, x: Tensor) -> Tensor:
        """What they use for its inputs ``(m, B, in)``."""
        return x

    def signal(self, name: str, delta: Tensor) -> Tensor:
        """What they use for the gradient ``(m, B, out)`` of its outputs."""
        return delta

    def update(self, name: str, w: Tensor, gradient: Tensor, lr: Tensor) -> None:
        """Change the weights in place."""
        w -= lr.view(-1, 1, 1) * gradient


class QuantisedSGD(LocalSGD):
    """Base of the two: which layers are quantised, and the step of a chain under a :class:`ChainRule`.

    Args:
        weights: level set of the quantised weights.
        layers: which layers are quantised; ``inner`` leaves the first and the last in full precision.
    """

    backends = ("matmul", "loop")  # quantisers draw and remember, which vmap cannot follow
    option: ClassVar[str]

    def __init__(self, model: nn.Module, loss: Loss, backend: Backend, weights: Weights, layers: str) -> None:
        super().__init__(model, loss, backend)
        self.weights = weights
        chosen = {id(m) for m in quantised_layers(self.flat.model, layers)}
        self.names = [name for name, m in self.flat.model.named_modules() if id(m) in chosen]
        if not chosen:
            raise UserError(f"quantised_layers = {layers!r} leaves no layer of this network to be quantised by "
                            f"local = {self.option!r}. Allowed here: 'all'.")

    def rule(self, jobs: Sequence[Job]) -> ChainRule:
        """The rule for rows with these jobs."""
        raise NotImplementedError

    def deployed(self, model: nn.Module, scales: tuple[float, ...] = ()) -> nn.Module:
        """A copy of ``model`` as it would be run: quantised, with the scales that are fixed, if any are."""
        raise NotImplementedError

    def together(self, jobs: Sequence[Job] | None) -> Step:
        rule = self.rule(needed(jobs))
        return lambda *batch: self._chain_step(rule, *batch)

    @torch.no_grad()
    def _chain_step(self, rule: ChainRule, stack: Tensor, x: Tensor, y: Tensor, lr: Tensor) -> Tensor:
        """One step of every row, in place; returns the losses before it, ``(m,)``. Layouts are ``(m, B, units)``."""
        views, h, kept = self.flat.views(stack), x.flatten(2), []
        for i, name in enumerate(self._chain):
            used, entering = rule.weight(name, views[f"{name}.weight"]), rule.entering(name, h)
            kept.append((used, entering, h))
            out, bias = torch.bmm(entering, used.transpose(1, 2)), views.get(f"{name}.bias")
            out = out if bias is None else out + bias.unsqueeze(1)
            h = out.relu_() if i < len(self._chain) - 1 else out
        log_p, label = h.log_softmax(2), y.unsqueeze(2)
        at_label = log_p.gather(2, label)
        delta = log_p.exp_().scatter_add_(2, label, torch.full_like(at_label, -1.0)) / y.shape[1]
        for i, name in reversed(list(enumerate(self._chain))):
            used, entering, h = kept[i]
            delta = rule.signal(name, delta)
            below = torch.bmm(delta, used) * (h > 0) if i else None  # rounding passes the gradient on, ReLU masks it
            rule.update(name, views[f"{name}.weight"], torch.bmm(delta.transpose(1, 2), entering), lr)
            if f"{name}.bias" in views:
                views[f"{name}.bias"].sub_(lr.view(-1, 1) * delta.sum(1))
            delta = below
        return -at_label.mean((1, 2))


def needed(jobs: Sequence[Job] | None) -> Sequence[Job]:
    if jobs is None:
        raise UserError("Quantised local training needs the jobs of its rows: their noise and schedule hang on them.")
    return jobs
