"""Several runs of one federated method, over seeds and learning rates, with all their local training done together.

>>> from workbench.federation.replicas import replicate
>>> runs = replicate("favas", "digits/perceptron", {"clients": 20, "selected": 4, "horizon": 140.0}, seeds=range(3), rates=(0.1, 0.3))
>>> [(r.seed, r.rate, r.status) for r in runs][:2]
[(0, 0.1, 'finished'), (0, 0.3, 'finished')]

No run folder, no store: a library call. Each replica is what :func:`workbench.run` gives for its seed and rate: bit for
bit with the back end ``loop``, up to the rounding of sums with the others.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tracking.errors import UserError
from workbench.method import Context
from workbench.methods.federated._federated import FederatedState, FederatedTraining, Request
from workbench.spec import resolve

if TYPE_CHECKING:
    import pandas

    from workbench.task import SupervisedTask


@dataclass
class Replica:
    """One of the runs, when all have ended."""

    seed: int
    rate: float
    method: FederatedTraining
    context: Context
    state: FederatedState
    rows: list[dict[str, float]] = field(default_factory=list)
    """Metrics of each report, without those of wall-clock time and energy."""
    status: str = "running"
    """``finished``, or ``diverged`` where a metric became nan or infinite."""

    def frame(self) -> pandas.DataFrame:
        """One row a report, one column a metric."""
        import pandas

        return pandas.DataFrame(self.rows)

    def life(self, task: SupervisedTask) -> Generator[Request, Tensor, None]:
        """Step and evaluate to the end, leaving local training to others."""
        method, state, ctx = self.method, self.state, self.context
        while method.progress(state).done < method.progress(state).total:
            metrics = (yield from method.advance(state, ctx)) | ctx.ledger.metrics()
            done, total = method.progress(state)
            if all(map(math.isfinite, metrics.values())) and (method.evaluation_due(state) or done >= total):
                metrics |= method.evaluate(state, task, ctx)
            self.rows.append(metrics)
            if not all(map(math.isfinite, metrics.values())):
                self.status = "diverged"
                return
        self.status = "finished"


def replicate(
    method: str,
    task: str,
    params: Mapping[str, Any] | None = None,
    *,
    seeds: Iterable[int] = (0,),
    rates: Iterable[float] | None = None,
    task_params: Mapping[str, Any] | None = None,
    device: str | None = None,
) -> list[Replica]:
    """Run a federated ``method`` for all ``seeds`` and learning ``rates`` at once; seeds vary slowest.

    Replicas advance side by side, each on its own trace, partition and first model, and what all of them have to train
    at a moment is trained as one stack. One that diverges ends alone.

    Args:
        rates: values of the parameter ``lr``; ``None`` takes that of ``params``.

    Raises:
        UserError: what :func:`workbench.run` refuses, a method of another family, no seed or rate, or a task whose
            training data depend on the seed.
    """
    given, chosen = dict(params or {}), [None] if rates is None else list(rates)
    jobs = [resolve(method, task, given if rate is None else given | {"lr": rate}, task_params=task_params, seed=seed, device=device)
            for seed in seeds for rate in chosen]
    if not jobs:
        raise UserError("There is nothing to replicate: give at least one seed and one rate.")
    if not isinstance(jobs[0].method, FederatedTraining):
        raise UserError(f"Method {method!r} is not a federated training; replicas are for those. Use workbench.sweep.")
    shared, replicas, setups = jobs[0].task, [], {}
    for job in jobs:
        ctx = Context(device=torch.device(job.device), seed=job.spec.seed)
        if job.spec.seed not in setups:
            setups[job.spec.seed] = _same_data(shared, job.task, ctx)
        if replicas:
            job.method.batches = replicas[0].method.batches  # one table of inputs for all
        state = job.method.init(shared, ctx)
        replicas.append(Replica(job.spec.seed, job.method.params.lr, job.method, ctx, state))
    _advance_together(replicas, shared)
    return replicas


def _same_data(shared: SupervisedTask, own: SupervisedTask, ctx: Context) -> bool:
    """Set up a seed's task; refuse it when its training data are not those of the task that all share."""
    own.setup(ctx)
    if own is not shared and not (torch.equal(own.train_x, shared.train_x) and torch.equal(own.train_y, shared.train_y)):
        raise UserError(f"The training data of {own.id} depend on the seed, so replicas cannot share them. Use workbench.sweep.")
    return True


def _advance_together(replicas: list[Replica], task: SupervisedTask) -> None:
    lives = {id(r): r.life(task) for r in replicas}
    due: dict[int, Request] = {}
    for r in replicas:
        if (request := next(lives[id(r)], None)) is not None:
            due[id(r)] = request
    trainer = replicas[0].method
    while due:
        sizes = [len(request.stack) for request in due.values()]
        whole = joined(list(due.values()))
        losses = trainer.train(whole, replicas[0].context)
        for key, rows, part in zip(list(due), whole.stack.split(sizes), losses.split(sizes), strict=True):
            due[key].stack.copy_(rows)
            try:
                due[key] = lives[key].send(part)
            except StopIteration:
                del due[key]


def joined(requests: list[Request]) -> Request:
    """One request of all rows, each with its own rate; its stack is a copy."""
    rates = [torch.full((len(r.stack),), r.lr, dtype=r.stack.dtype, device=r.stack.device) for r in requests]
    rows = [(s, j) for r in requests for s, j in zip(r.samples, r.jobs, strict=True)]
    return Request(torch.cat([r.stack for r in requests]), [s for s, _ in rows], torch.cat(rates), [j for _, j in rows])
