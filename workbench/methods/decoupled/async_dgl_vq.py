"""Asynchronous DGL whose links and buffers carry codes of an online vector quantiser instead of activations.

Belilovsky, Leconte, Caccia, Eickenberg & Oyallon, arXiv:2106.06401; see :mod:`workbench.decoupled.vector_quantisation` for what of the
quantiser is known and what is a choice of ours.
"""

from __future__ import annotations

from torch import nn

from tracking.errors import UserError
from workbench.decoupled import Channel, LocalNetwork, OnlineVQ
from workbench.decoupled.channel import Drift
from workbench.decoupled.costs import evaluating
from workbench.decoupled.vector_quantisation import Start
from workbench.method import Context, derive_seed
from workbench.methods.decoupled._asynchronous import AsynchronousMethod, AsynchronousParams, AsynchronousState
from workbench.methods.decoupled._traced import CodedLink
from workbench.params import Field
from workbench.task import SupervisedTask


class AsynchronousVQ(AsynchronousMethod):
    """Asynchronous DGL with online vector quantisation: a byte stands for a group of channels, and codebooks follow the features."""

    id = "async_dgl_vq"
    title = "Asynchronous DGL with vector quantisation"
    family = "decoupled"
    paper = "arXiv:2106.06401"
    example = {"task": "digits/mlp", "params": {"epochs": 5, "modules": 3, "head": "linear", "group_size": 16, "codewords": 16}}

    class Params(AsynchronousParams):
        codewords: int = Field(256, ge=1, le=65_536, description="codewords of a codebook (K)")
        group_size: int = Field(16, ge=1, le=65_536, description="neighbouring channels that one code stands for (d); divides all widths")
        vq_decay: float = Field(0.9, ge=0, lt=1, description="forgetting factor of the codebooks' moving averages (rho)")
        revival: float = Field(1.0, ge=0, description="average count below which a codeword moves to a vector of the batch; 0 = never")
        start: Start = Field("sample", description="first codebook: vectors of the first batch, k-means on it, or uniform round zero")
        sync_every: int = Field(10, ge=1, le=1_000_000, description="messages between two codebooks that a module sends (T)")
        drift: Drift = Field(
            "latest", description="codes of older codebooks are read with the newest codebook, or each with its own, which are kept")
        freeze_after: int = Field(0, ge=0, description="messages after which a codebook stays as it is; 0 = never")

    params: Params

    def links(self, task: SupervisedTask, network: LocalNetwork, ctx: Context) -> list[Channel]:
        p, x, found = self.params, self.sample, []
        for j, body in enumerate(network.bodies[:-1], 1):
            with evaluating(body):
                x = body(x)
            width = x.shape[1]
            if width % p.group_size:
                raise UserError(f"group_size = {p.group_size} is refused. Allowed: a divisor of {width}, the channels of module {j}.")
            quantiser = OnlineVQ(width, width // p.group_size, p.codewords, decay=p.vq_decay, revival=p.revival, start=p.start,
                                 seed=derive_seed(ctx.seed, "vq", j))
            found.append(Channel(f"module {j + 1}", task.num_classes, quantiser=quantiser, sync_every=p.sync_every, drift=p.drift,
                                 freeze_after=p.freeze_after, ledger=ctx.ledger))
        return found

    def coded_links(self, state: AsynchronousState) -> list[nn.Module]:
        """The search for codewords, the look-up behind it, and the sums that codebooks learn from."""
        return [CodedLink(channel.quantiser).to(self.sample.device) for channel in state.channels]
