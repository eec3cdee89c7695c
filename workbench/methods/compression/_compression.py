"""Compression of a causal language model, one matrix a step, then fine-tuning of what stays in high precision.

A method gives :meth:`Compression.quantiser`, which compresses one matrix; everything else is here and in
:mod:`workbench.llm`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pydantic
import torch
from torch import Tensor, nn

from workbench.llm.architecture import Layout, layout_of
from workbench.llm.calibration import LayerStatistics, Stream, fisher, next_token_loss
from workbench.llm.evaluation import mean_loss
from workbench.llm.linear import dense, swapped
from workbench.llm.low_rank import completed
from workbench.llm.matrix import judge, plan_of, quantise
from workbench.llm.packed import Packed
from workbench.llm.tuning import BlockTuning, FactorTuner, cosine, tune_block
from workbench.method import Context, Method, Progress, View
from workbench.methods.compression._views import bits_view, pattern_views
from workbench.params import Field, Params

if TYPE_CHECKING:
    from workbench.datasets.language import LanguageTask


class CompressionParams(Params):
    """Bits, calibration and fine-tuning. What is tuned are low-rank parts and magnitudes, so tuning needs one of
    them."""

    bits: int = Field(3, ge=2, le=8, description="bits of a code for each weight")
    group_size: int = Field(64, ge=0, le=65_536, description="consecutive inputs of a row that share a scale; 0 = the "
                                                             "whole row")
    rank: int = Field(0, ge=0, le=1024, description="rank of the part in high precision; a method without one of its "
                                                    "own adds that of the "
                                                    "error's singular value decomposition")
    magnitude: bool = Field(False, description="the norm of every row as a number of its own, to be tuned (DoRA)")
    sequences: int = Field(32, ge=1, le=100_000, description="sequences of the training text that calibration and "
                                                             "tuning draw")
    length: int = Field(0, ge=0, le=65_536, description="tokens of such a sequence; 0 = the task's window")
    output_errors: bool = Field(
        False, description="run the calibration sequences through every block even if the method needs no data, to report output errors")
    block_steps: int = Field(0, ge=0, le=100_000, description="tuning steps of each block to the uncompressed block's "
                                                              "outputs; 0 = none")
    block_lr: float = Field(1e-3, gt=0, le=1, description="learning rate of these")
    steps: int = Field(0, ge=0, le=1_000_000, description="end-to-end tuning steps after compression; 0 = none")
    tune_lr: float = Field(1e-3, gt=0, le=1, description="highest learning rate of these, on a cosine with warm-up")
    tune_batch: int = Field(4, ge=1, le=1024, description="sequences of a tuning step")
    report_every: int = Field(10, ge=1, le=10_000, description="end-to-end steps in a report")

    @pydantic.model_validator(mode="after")
    def _tuning_needs_parameters(self) -> CompressionParams:
        if (self.steps or self.block_steps) and not (self.rank or self.magnitude):
            raise ValueError("steps and block_steps tune low-rank parts and magnitudes, and there are none: set rank "
                             "or magnitude")
        return self


@dataclass
class CompressionState:
    """Matrices as they would be stored, the calibration stream at the block now worked on, and the tuning's memory."""

    order: torch.Generator | None
    """Of end-to-end tuning; ``None`` when there is none."""
    ids: Tensor
    """Calibration token ids (sequences, length)."""
    total: int
    """Matrices to compress."""
    hidden: Tensor | None = None
    """Hidden states of the calibration sequences at the entrance of the present block; ``None`` when nobody asks for them."""
    statistics: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Of the present block, by matrix."""
    fisher: dict[str, Tensor] = field(default_factory=dict)
    trials: dict[str, Any] = field(default_factory=dict)
    """What a plan under a budget tried on each matrix."""
    packed: dict[str, dict[str, Any]] = field(default_factory=dict)
    tuner: dict[str, Any] = field(default_factory=dict)
    tuned: int = 0


class Compression(Method):
    """Base of the methods that compress a trained language model matrix by matrix.

    A subclass gives :meth:`quantiser`; its ``Params`` extend those here. Loss is evaluated when all matrices are
    compressed and after the last tuning step, so an example in which the loss falls has a ``rank`` (or ``magnitude``)
    and some ``steps``.
    """

    kinds = ("language_model",)
    family = "compression"

    Params = CompressionParams
    params: CompressionParams
    _plan: Mapping[str, Callable[..., Packed]] | None = None

    def quantiser(self, task: LanguageTask, ctx: Context) -> Callable[..., Packed]:
        """What compresses one matrix: see :class:`workbench.llm.matrix.Quantiser`. One with ``plan`` is asked for a
        choice under ``budget``."""
        raise NotImplementedError

    def init(self, task: LanguageTask, ctx: Context) -> CompressionState:
        p = self.params
        ids = task.calibration(p.sequences, p.length or task.window, ctx.generator("calibration", cpu=True)).to(ctx.device)
        model, layout = self._reference(task)
        state = CompressionState(order=ctx.generator("order", cpu=True) if p.steps else None, ids=ids, total=len(layout.matrices))
        needs = self.quantiser(task, ctx).needs
        if "fisher" in needs:
            state.fisher = fisher(model, layout.matrices, ids)
        if needs or p.block_steps or p.output_errors:
            state.hidden = Stream.at_entrance(model, layout, ids).hidden
        return state

    def shell(self, task: LanguageTask, ctx: Context) -> CompressionState:
        """Without the calibration, which goes through the whole model and whose outcome is saved."""
        return CompressionState(order=ctx.generator("order", cpu=True) if self.params.steps else None, ids=torch.empty(0), total=0)

    def _reference(self, task: LanguageTask) -> tuple[nn.Module, Layout]:
        model = task.reference()
        return model, layout_of(model)

    # --- steps ------------------------------------------------------------------------------------------------

    def step(self, state: CompressionState, task: LanguageTask, ctx: Context) -> dict[str, float]:
        model, layout = self._reference(task)
        if len(state.packed) < len(layout.matrices):
            return self._compress(state, model, layout, task, ctx)
        return self._tune(state, model)

    @torch.no_grad()
    def _compress(self, state: CompressionState, model: nn.Module, layout: Layout, task: LanguageTask, ctx: Context) -> dict[str, float]:
        """The next matrix; after the last one of a block, its tuning, and the stream moves on."""
        name = layout.matrices[len(state.packed)]
        index = next(i for i, names in enumerate(layout.names) if name in names)
        block, prefix = layout.blocks(model)[index], f"{layout.prefix}.{index}."
        if state.hidden is not None and name == layout.names[index][0]:
            linears = {n: model.get_submodule(n) for n in layout.names[index]}
            found = self._stream(state, model, layout, index).statistics(block, linears, ctx.seed)
            state.statistics = {n: dict(vars(s)) for n, s in found.items()}
        stats = LayerStatistics(**{**state.statistics[name], "fisher": state.fisher.get(name)}) if state.statistics else None
        weight = model.get_submodule(name).weight
        packed = quantise(name, weight, self._chosen(name, state, model, layout, task, ctx), stats, ctx.seed)
        packed = completed(packed, weight, self.params.rank, self.params.magnitude)
        state.packed[name] = plain(packed)
        report = judge(name, weight, packed, stats)
        if state.hidden is not None and name == layout.names[index][-1]:
            self._end_block(state, block, prefix, layout.names[index], self._stream(state, model, layout, index), ctx, index)
        errors = {"train/weight_error": report.error, "train/output_error": report.weighted_error}
        figures = {k: v for k, v in errors.items() if v is not None and not math.isnan(v)}
        return figures | {"train/matrices": len(state.packed)} | sizes(state.packed)

    def _end_block(self, state: CompressionState, block: nn.Module, prefix: str, names: tuple[str, ...], stream: Stream, ctx: Context,
                   index: int) -> None:
        p = self.params
        target = torch.cat(list(stream.run(block))) if p.block_steps else None
        with swapped(block, {name.removeprefix(prefix): restored(state.packed[name]) for name in names}) as layers:
            if target is not None:
                with torch.enable_grad():
                    tune_block(stream, block, target, BlockTuning(p.block_steps, p.block_lr, p.tune_batch), ctx.seed, index)
                for name in names:
                    state.packed[name] = plain(layers[name.removeprefix(prefix)].packed)
            stream.advance(block)
        state.hidden, state.statistics = stream.hidden, {}
        for name in names:
            state.fisher.pop(name, None)

    def _stream(self, state: CompressionState, model: nn.Module, layout: Layout, index: int) -> Stream:
        """The remembered hidden states with the call arguments of the blocks, which the model gives again."""
        stream = Stream.at_entrance(model, layout, state.ids)
        stream.hidden, stream.at = state.hidden, index
        return stream

    def _chosen(self, name: str, state: CompressionState, model: nn.Module, layout: Layout, task: LanguageTask,
                ctx: Context) -> Callable[..., Packed]:
        """The quantiser of one matrix: under a ``budget`` the planned one. What the plan rests on is remembered."""
        quantiser, budget = self.quantiser(task, ctx), getattr(self.params, "budget", 0)
        if not budget:
            return quantiser
        if self._plan is None:
            self._plan = plan_of(quantiser, self._weights(model, layout, ctx), budget, state.trials)
        return self._plan[name]

    @staticmethod
    def _weights(model: nn.Module, layout: Layout, ctx: Context) -> Iterator[tuple[str, Tensor]]:
        for name in layout.matrices:
            ctx.poll()  # to try many shapes on a matrix takes seconds
            yield name, model.get_submodule(name).weight.detach().float()

    def _tune(self, state: CompressionState, model: nn.Module) -> dict[str, float]:
        """A slice of end-to-end steps: cross-entropy of the next token on the calibration sequences."""
        p, losses = self.params, []
        with swapped(model, {name: restored(entry) for name, entry in state.packed.items()}) as layers:
            with FactorTuner(model, p.tune_lr) as tuner:
                if state.tuner:
                    tuner.load_state_dict(state.tuner)
                for _ in range(min(p.report_every, p.steps - state.tuned)):
                    rows = torch.randint(len(state.ids), (p.tune_batch,), generator=state.order)
                    losses.append(tuner.step(next_token_loss(model, state.ids[rows]), p.tune_lr * cosine(state.tuned, p.steps)))
                    state.tuned += 1
                state.tuner = tuner.state_dict()
            state.packed = {name: plain(layer.packed) for name, layer in layers.items()}
        return {"train/loss": sum(losses) / len(losses), "train/samples": state.tuned * p.tune_batch}

    # --- what it comes to -------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self, state: CompressionState, task: LanguageTask, ctx: Context) -> dict[str, float]:
        """Loss of the model with its matrices as they are stored; what is not compressed yet is as it was."""
        model = task.reference()
        with swapped(model, {name: restored(entry) for name, entry in state.packed.items()}), dense(model):
            loss = mean_loss(model, task.test_windows, ctx.poll)
        kept = sum(t.nbytes for t in model.parameters()) - sum(model.get_submodule(name).weight.nbytes for name in state.packed)
        payload = sum(t.nbytes for entry in state.packed.values() for t in entry["tensors"].values())
        figures = {"eval/loss": loss, "eval/perplexity": math.exp(min(loss, 700.0)), "memory/model_bytes": kept + payload}
        return figures | sizes(state.packed)

    def views(self, state: CompressionState, task: LanguageTask) -> list[View]:
        """What the bits are spent on, and the pattern of the matrix that was compressed last, before and after."""
        if not state.packed:
            return []
        matrices, last = [restored(entry) for entry in state.packed.values()], [*state.packed][-1]
        return [bits_view(matrices, state.total), *pattern_views(last, task.reference().get_submodule(last).weight, matrices[-1])]

    def evaluation_due(self, state: CompressionState) -> bool:
        return len(state.packed) == state.total and state.tuned == 0

    def progress(self, state: CompressionState) -> Progress:
        return Progress(len(state.packed) + state.tuned, state.total + self.params.steps)


def sizes(packed: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Bits a weight over the matrices compressed so far; none before there is one."""
    matrices = [restored(entry) for entry in packed.values()]
    count = sum(m.shape[0] * m.shape[1] for m in matrices)
    if not count:
        return {}
    return {f"memory/{name}": sum(bpw(m) * m.shape[0] * m.shape[1] for m in matrices) / count
            for name, bpw in (("bits_per_weight", Packed.bpw), ("code_bits_per_weight", Packed.code_bpw))}


def plain(packed: Packed) -> dict[str, Any]:
    """A matrix as plain data, for the State."""
    return {"format": packed.format, "shape": packed.shape, "meta": dict(packed.meta), "tensors": dict(packed.tensors)}


def restored(entry: Mapping[str, Any]) -> Packed:
    """The inverse of :func:`plain`."""
    return Packed(entry["format"], tuple(entry["shape"]), dict(entry["tensors"]), dict(entry["meta"]))
