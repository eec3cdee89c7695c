"""What a quantiser may know about the inputs of a matrix, gathered block after block.

The inputs of block i come through the blocks before it as they are by then: compressed. One block is run at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tracking.errors import UserError
from workbench.llm.architecture import Layout, device_of
from workbench.llm.linear import dense
from workbench.method import derive_seed

NEEDS = frozenset({"inputs", "hessian", "fisher"})
"""What a quantiser can ask for in ``needs``."""


@dataclass
class LayerStatistics:
    """Facts about one matrix W (p, q) from n calibration tokens; what was not asked for is ``None``.

    X (n, q) are the inputs that reach the matrix.
    """

    tokens: int = 0
    hessian: Tensor | None = None
    """H = 2/n X^T X, float32 (q, q): the Hessian of the mean squared error of the outputs (GPTQ: Frantar et al., ICLR
    2023)."""
    mean_abs: Tensor | None = None
    """Mean of |x_j| over the tokens, float32 (q,)."""
    samples: Tensor | None = None
    """A seeded subsample of the rows of X, float32 (m, q)."""
    fisher: Tensor | None = None
    """Sum over sequences of the squared gradient of the loss, float32 (p, q) (LQ-LoRA: Guo et al., ICLR 2024, section
    3.3)."""


class _Stop(Exception):
    """Ends a forward pass at the last block."""


Call = tuple[tuple, dict[str, Any]]
"""Arguments of a block behind the hidden states, by place and by name."""


@dataclass
class Stream:
    """Hidden states of the calibration sequences at the entrance of a block, and how each block is called.

    ``hidden`` (n, length, width) is all that has to be remembered between two blocks; the rest is found anew from the
    model. Blocks of one model may be called differently: some attend to a window, some to all, with other rotary
    positions.
    """

    hidden: Tensor
    by_block: list[dict[int, Call]]
    """For each block its further arguments, by batch size."""
    batch: int
    at: int = 0
    """Number of the block at whose entrance the stream is."""
    prefix: str = "blocks"
    """Name of the list of blocks, for messages."""

    @classmethod
    @torch.no_grad()
    def at_entrance(cls, model: nn.Module, layout: Layout, ids: Tensor, batch: int = 4) -> Stream:
        """Run what stands before the first block, and no block, on token ids (n, length)."""
        _check_ids(model, ids)
        blocks = layout.blocks(model)
        hidden, by_block = [], [{} for _ in blocks]
        for part in ids.to(device_of(model)).split(batch):
            first, calls = _entrance(model, blocks, part)
            hidden.append(first)
            for known, call in zip(by_block, calls, strict=True):
                known[len(part)] = call
        stream = cls(torch.cat(hidden), by_block, batch, 0, layout.prefix)
        stream._check(stream.hidden, {n: p for n, p in model.named_parameters() if not n.startswith(f"{layout.prefix}.")})
        return stream

    @property
    def calls(self) -> dict[int, Call]:
        """Further arguments of the present block, by batch size."""
        return self.by_block[self.at]

    def run(self, block: nn.Module) -> Iterator[Tensor]:
        """Outputs of a block, a batch at a time."""
        for part in self.hidden.split(self.batch):
            yield self.call(block, part)

    def call(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """A block's output on hidden states (sequences, length, width)."""
        args, kwargs = self.calls[len(hidden)]
        out = block(hidden, *args, **kwargs)
        return out[0] if isinstance(out, tuple) else out

    @torch.no_grad()
    def advance(self, block: nn.Module) -> None:
        """Replace the hidden states by the block's outputs: the stream is then at the next block."""
        with dense(block):  # every batch multiplies by the same matrices
            hidden = torch.cat(list(self.run(block)))
        self._check(hidden, self._named(block))
        self.hidden, self.at = hidden, self.at + 1

    def _named(self, block: nn.Module) -> dict[str, Tensor]:
        return {f"{self.prefix}.{self.at}.{name}": p for name, p in block.named_parameters()}

    @staticmethod
    def _check(hidden: Tensor, parameters: Mapping[str, Tensor]) -> None:
        """Hidden states that are not finite are laid to the parameters that they came through."""
        if bool(hidden.isfinite().all()):
            return
        bad = [name for name, p in parameters.items() if not p.is_meta and not bool(p.isfinite().all())]
        raise UserError(f"Calibration met nan or inf: {', '.join(bad)} {'hold' if len(bad) > 1 else 'holds'} such weights. Mend the model."
                        if bad else f"Calibration met nan or inf: the hidden states leave the range of {hidden.dtype}. Compress in a "
                                    "wider type, or calibrate on other text.")

    def to(self, device: torch.device | str) -> Stream:
        """The same stream on a device."""
        memo: dict[int, Tensor] = {}
        by_block = [{size: _moved(call, device, memo) for size, call in calls.items()} for calls in self.by_block]
        return Stream(self.hidden.to(device), by_block, self.batch, self.at, self.prefix)

    @torch.no_grad()
    def statistics(self, block: nn.Module, linears: Mapping[str, nn.Module], seed: int, samples: int = 1024) -> dict[str, LayerStatistics]:
        """Statistics of the inputs of some of the block's linear layers, by the names given. Inputs that are shared
        are kept once."""
        gather = _Gather(self.hidden.shape[0] * self.hidden.shape[1], samples, seed)
        hooks = [module.register_forward_pre_hook(lambda m, args, name=name: gather.see(name, args[0])) for name, module in linears.items()]
        try:
            for out in self.run(block):
                self._check(out, self._named(block))
                gather.end_of_batch()
        finally:
            for hook in hooks:
                hook.remove()
        unseen = sorted(set(linears) - set(gather.leader))
        if unseen:
            raise UserError(f"No calibration token reached {', '.join(unseen)}. Leave them out of `targets`.")
        return {name: gather.sums[gather.leader[name]] for name in linears}


def _check_ids(model: nn.Module, ids: Tensor) -> None:
    if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.is_floating_point() or not ids.numel():
        given = f"{ids.dtype} {tuple(ids.shape)}" if isinstance(ids, Tensor) else f"a {type(ids).__name__}"
        raise UserError(f"Calibration takes token ids as a tensor of whole numbers (sequences, length), not {given}.")
    check_range(model, ids, "calibration")


def check_range(model: nn.Module, ids: Tensor, what: str) -> None:
    """Refuse token ids that the model has no row for: they are another tokenizer's. ``what`` they are for."""
    words, (least, most) = getattr(getattr(model, "config", None), "vocab_size", None), torch.stack(ids.aminmax()).tolist()
    if least < 0 or (words is not None and most >= words):
        raise UserError(f"The {what} ids go from {least} to {most}; the model knows 0 to {'…' if words is None else words - 1}. "
                        "Encode the text with the model's own tokenizer.")


def _entrance(model: nn.Module, blocks: nn.ModuleList, ids: Tensor) -> tuple[Tensor, list[Call]]:
    """Hidden states at the first block, and the call of every block: each hands on what it was given, uncomputed."""
    before = [vars(block).get("forward") for block in blocks]  # set on the block itself by libraries that spread a model over devices
    for wrapped in (False, True):  # some models take the first of a block's outputs, some the output
        caught: list[tuple[Any, Call]] = []

        def forward(*args: Any, caught: list[tuple[Any, Call]] = caught, wrapped: bool = wrapped, **kwargs: Any) -> Any:
            hidden, *rest = args if args else (kwargs.pop("hidden_states"),)
            caught.append((hidden, (tuple(rest), kwargs)))
            if len(caught) == len(blocks):
                raise _Stop
            return (hidden,) if wrapped else hidden

        try:
            for block in blocks:
                block.forward = forward
            model(ids, use_cache=False)
        except _Stop:
            return caught[0][0], [call for _, call in caught]
        except Exception:
            if wrapped or not caught:
                raise
        finally:
            for block, own in zip(blocks, before, strict=True):
                vars(block).pop("forward", None)  # the method of its class is there again
                if own is not None:
                    block.forward = own
    raise UserError(f"{type(model).__name__} did not run through its {len(blocks)} blocks one after another; such a model cannot be "
                    "calibrated block by block.")


def _moved(value: Any, device: torch.device | str, memo: dict[int, Tensor]) -> Any:
    """Arguments of a block with their tensors on a device; ``memo``: those that are there already, for blocks share them."""
    if isinstance(value, Tensor):
        return memo.setdefault(id(value), value.to(device))
    if isinstance(value, dict):
        return {name: _moved(v, device, memo) for name, v in value.items()}
    return type(value)(_moved(v, device, memo) for v in value) if type(value) in (list, tuple) else value


@dataclass
class _Gather:
    """Sums over the batches; layers that were given the very same tensor share theirs."""

    total: int
    wanted: int
    seed: int
    sums: dict[str, LayerStatistics] = field(default_factory=dict)
    leader: dict[str, str] = field(default_factory=dict)
    rows: dict[str, Tensor] = field(default_factory=dict)
    now: list[tuple[Tensor, str]] = field(default_factory=list)
    """Inputs of this batch and who saw them first; held, so that none is mistaken for another."""

    def see(self, name: str, x: Tensor) -> None:
        first = next((leader for seen, leader in self.now if seen is x), None)
        if self.leader.setdefault(name, first or name) != name:
            return
        self.now.append((x, name))
        self._add(name, x.detach().reshape(-1, x.shape[-1]).float())

    def end_of_batch(self) -> None:
        self.now.clear()

    def _add(self, name: str, x: Tensor) -> None:
        n, q = x.shape
        if name not in self.sums:
            self.sums[name] = LayerStatistics(0, x.new_zeros(q, q), x.new_zeros(q), x.new_empty(0, q))
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "samples", name))
            self.rows[name] = torch.randperm(self.total, generator=generator)[:self.wanted].sort().values
        s = self.sums[name]
        after = s.tokens + n
        s.hessian.mul_(s.tokens / after).addmm_(x.T, x, alpha=2 / after)
        s.mean_abs.mul_(s.tokens / after).add_(x.abs().sum(0), alpha=1 / after)
        rows = self.rows[name]
        mine = rows[(rows >= s.tokens) & (rows < after)] - s.tokens
        s.samples = torch.cat([s.samples, x[mine.to(x.device)]])
        s.tokens = after


def fisher(model: nn.Module, names: list[str], ids: Tensor) -> dict[str, Tensor]:
    """Sum over sequences of the squared gradient of the mean loss a token, float32, for each named matrix; ids (n,
    length).

    The whole model takes part, so it must be in memory, and as much again for the sums.
    """
    weights = {name: model.get_submodule(name).weight for name in names}
    kept = {p: p.requires_grad for p in model.parameters()}
    sums = {name: torch.zeros_like(w, dtype=torch.float32) for name, w in weights.items()}
    try:
        for p in kept:
            p.requires_grad_(False)
        for w in weights.values():
            w.requires_grad_(True)
        for row in ids.to(device_of(model)):
            grads = torch.autograd.grad(next_token_loss(model, row[None]), list(weights.values()))
            for name, grad in zip(weights, grads, strict=True):
                sums[name] += grad.float().square()
    finally:
        for p, flag in kept.items():
            p.requires_grad_(flag)
    return sums


def next_token_loss(model: nn.Module, ids: Tensor) -> Tensor:
    """Mean cross-entropy in nats of all tokens of a sequence but the first, over sequences (n, length) of one
    length."""
    logits = model(ids, use_cache=False).logits[:, :-1].float()
    return nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def calibration_windows(ids: Tensor, sequences: int, length: int, generator: torch.Generator) -> Tensor:
    """``sequences`` random windows (sequences, length) of a text's token ids, a flat tensor; starts are drawn with
    replacement."""
    if len(ids) < length:
        raise UserError(f"The calibration text has {len(ids)} tokens; windows of {length} do not fit. Give a longer "
                        f"text or a shorter length.")
    starts = torch.randint(len(ids) - length + 1, (sequences,), generator=generator)
    return torch.stack([ids[s:s + length] for s in starts.tolist()])
