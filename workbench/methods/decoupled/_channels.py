"""Links of the methods with local losses: encodings by name, quantised links, and what these do at test time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from tracking.codecs.registry import codec
from workbench.decoupled import Channel, LocalNetwork
from workbench.method import Context
from workbench.task import SupervisedTask

if TYPE_CHECKING:
    from workbench.methods.decoupled._decoupled import LocalMethod

Encoding = Literal["dense_fp32", "dense_fp16", "dense_bf16", "int8", "int4"]


def channels(p: Any, task: SupervisedTask, ctx: Context) -> list[Channel]:
    """A channel for every border, which bills in the run's ledger, with the encoding of the parameters ``p``."""
    return [Channel(f"module {j + 1}", task.num_classes, codec=codec(p.codec), ledger=ctx.ledger) for j in range(1, p.modules)]


def vq_figures(links: list[Channel]) -> dict[str, float]:
    """Mean over the links of what their quantisers did since the last report."""
    found = [figures for link in links if (figures := link.figures())]
    names = {"error": "vq_error", "perplexity": "vq_perplexity", "idle": "vq_unused", "movement": "vq_movement"}
    return {f"train/{name}": sum(f[key] for f in found) / len(found) for key, name in names.items()} if found else {}


def exact_links(method: LocalMethod, network: LocalNetwork, links: list[Channel], task: SupervisedTask, ctx: Context) -> dict[str, float]:
    """Accuracy of the last head where modules hand on what they computed, where that differs from what they send."""
    if not any(channel.lossy for channel in links):
        return {}
    return {"eval/accuracy_exact_links": method.heads_accuracy(network, task, ctx)["eval/accuracy"]}
