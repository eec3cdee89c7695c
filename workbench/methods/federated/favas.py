"""FAVAS (also FAVANO): asynchronous federated averaging that corrects for the clients' speed.

Leconte, Nguyen & Moulines, "FAVANO: Federated averaging with asynchronous nodes", ICASSP 2024, arXiv:2305.16099.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from workbench.federation.clock import Speeds
from workbench.federation.reweighting import client_moments, measured_moments
from workbench.federation.trace import Trace, contacts
from workbench.methods.federated._aggregator import Work
from workbench.methods.federated._federated import FederatedTraining
from workbench.methods.federated._network import selection_law
from workbench.methods.federated._params import SelectionParams
from workbench.params import Field


class FAVAS:
    """The server's rule of FAVAS, for any federated loop.

    A contacted client that began from ``w_init`` and stands at ``w`` after ``E ^ K`` of its own steps delivers the
    unbiased model ``u = w_init + (w - w_init) / alpha``; the server becomes ``(w_server + sum u) / (s + 1)``. With
    ``alpha`` so that the expected correction is that of one average gradient, a fast client counts no more than a slow one.

    * ``stochastic``: ``alpha = P(E > 0) (E ^ K)``; a client without a step delivers ``w_init``.
    * ``deterministic``: ``alpha = E[E ^ K]``, a constant a client.
    * ``estimated``: the mean of ``E ^ K`` over the client's own contacts so far, this one included, at least ``floor``
      (our addition:
      a server does not know its clients' laws).

    Args:
        p_positive, mean_steps: ``P(E_i > 0)`` and ``E[E_i ^ K]`` by client, ``(n,)``; each is needed by the kind that
            uses it.
    """

    def __init__(
        self,
        kind: Literal["stochastic", "deterministic", "estimated"],
        clients: int,
        *,
        p_positive: Tensor | None = None,
        mean_steps: Tensor | None = None,
        floor: float = 1e-3,
    ) -> None:
        self.kind, self.p_positive, self.mean_steps, self.floor = kind, p_positive, mean_steps, floor
        self.seen = torch.zeros(clients, dtype=torch.int64)
        self.total = torch.zeros(clients, dtype=torch.int64)

    def alpha(self, work: Work) -> Tensor:
        """Re-weighting factors ``(m,)``; infinite for a client without a step, which delivers ``w_init``."""
        if self.kind == "stochastic":
            alpha = self.p_positive[work.clients] * work.steps
        elif self.kind == "deterministic":
            alpha = self.mean_steps[work.clients]
        else:
            alpha = ((self.total[work.clients] + work.steps) / (self.seen[work.clients] + 1).double()).clamp_min(
                self.floor
            )
        return torch.where(work.steps > 0, alpha, torch.inf)

    def aggregate(self, server: Tensor, start: Tensor, end: Tensor, work: Work) -> Tensor:
        alpha = self.alpha(work).to(server).view(-1, 1)
        self.seen[work.clients] += 1
        self.total[work.clients] += work.steps
        return (server + (start + (end - start) / alpha).sum(0)) / (len(end) + 1)

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen, "total": self.total}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen, self.total = state["seen"].clone(), state["total"].clone()


class ContactParams(SelectionParams):
    """A server that contacts clients at its own pace."""

    waiting_time: float = Field(4.0, ge=0, description="virtual time the server waits before a step")
    interaction_time: float = Field(3.0, ge=0, description="virtual time of the exchange with the contacted clients")
    retain_partial_step: bool = Field(
        False, description="a contact keeps the duration of the interrupted step, as QuAFL's simulator does"
    )

    def rules(self) -> list[tuple[str, bool, str]]:
        length = self.waiting_time + self.interaction_time
        return [
            *super().rules(),
            (
                "waiting_time",
                length > 0,
                f"0 < x: a server step must take time, and interaction_time = {self.interaction_time:g}",
            ),
            self.reaches(length, "the waiting_time and interaction_time of a first server step"),
        ]


class FAVASTraining(FederatedTraining):
    """Asynchronous averaging in which partial work is re-weighted by the client's speed."""

    id = "favas"
    title = "FAVAS"
    family = "federated"
    paper = "arXiv:2305.16099"
    example = {
        "task": "digits/perceptron",
        "params": {"clients": 20, "selected": 4, "local_steps": 10, "batch_size": 32, "horizon": 700.0},
    }

    class Params(ContactParams):
        reweighting: Literal["stochastic", "deterministic", "estimated"] = Field(
            "stochastic",
            description="divisor of a delivery: P(E>0) times its steps, the expected steps, or the mean seen so far",
        )

        def rules(self) -> list[tuple[str, bool, str]]:
            whole = (self.waiting_time + self.interaction_time).is_integer() or self.step_law != "geometric"
            return [
                *super().rules(),
                ("waiting_time", whole, "whole together with interaction_time, for step_law = 'geometric'"),
            ]

    params: Params

    def trace(self, seed: int, speeds: Speeds) -> Trace:
        return contact_trace(self.params, speeds, self.clock(seed))

    def aggregator(self) -> FAVAS:
        p = self.params
        if p.reweighting == "estimated":
            return FAVAS("estimated", p.clients)
        plain = p.step_law != "recorded" and not (p.retain_partial_step or p.speed_bias or p.has_absence or p.has_links)
        if not plain:  # no closed form: the moments of this very trace
            law = measured_moments(self.schedule)
        else:
            law = client_moments(
                self.client_speeds, selected=p.selected, K=p.local_steps, D=p.waiting_time + p.interaction_time
            )
        return FAVAS(
            p.reweighting, p.clients, p_positive=torch.from_numpy(law.positive), mean_steps=torch.from_numpy(law.mean)
        )


def contact_trace(p: ContactParams, speeds: Speeds, clock: dict[str, Any]) -> Trace:
    """The trace of a server that contacts clients at its own pace, to the horizon."""
    who = {"selected": p.selected, "select": p.select, "p": selection_law(speeds, p.speed_bias)}
    pace = {"waiting": p.waiting_time, "interaction": p.interaction_time, "retain_partial_step": p.retain_partial_step}
    return contacts(speeds, **who, **pace, **clock)
