"""Parameters that federated trainings share, and the rules over several of them."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from workbench import data
from workbench.federation.clock import Speeds
from workbench.methods.federated._local import Backend
from workbench.methods.lowbit._levels import Weights
from workbench.params import Field, Params
from workbench.task import SupervisedTask

FIXED_LENGTH = ("dense_fp32", "dense_bf16", "int8", "int4", "lattice")
"""Encodings whose messages have a length that does not depend on the weights, so that it is known before training."""
PartitionRule = Literal["iid", "shards", "sorted_shards", "dirichlet", "dirichlet_equal", "fedfix"]


class FederatedParams(Params):
    """What every federated training has. Training samples are never augmented on clients."""

    clients: int = Field(100, ge=1, le=1_000_000, description="number of clients n")
    local_steps: int = Field(20, ge=1, le=10_000, description="most gradient steps a client does with one model (K)")
    lr: float = Field(0.5, gt=0, le=100, description="learning rate of the clients' plain SGD")
    batch_size: int = Field(
        128, ge=1, le=65_536, description="samples a gradient step, drawn with replacement from the client's own"
    )
    horizon: float = Field(
        5000.0, gt=0, le=1e9, description="virtual time at which the training ends, in units of the step times"
    )
    report_every: float = Field(50.0, gt=0, description="virtual time between reports")
    eval_every: float = Field(250.0, gt=0, description="virtual time between evaluations")
    partition: PartitionRule = Field(
        "iid",
        description="how samples are shared out among clients: equal random parts; whole classes, or parts of the "
        "sorted samples; "
        "Dirichlet class mixes of free sizes, of equal sizes, or drawn with replacement (fedfix)",
    )
    classes_per_client: int = Field(2, ge=1, description="classes (sorted_shards: parts) a client holds")
    concentration: float = Field(
        0.3,
        ge=0,
        le=1000,
        description="concentration of the class mix, for Dirichlet: small is uneven; 0, one "
        "class a client, for fedfix only",
    )
    step_law: Literal["exponential", "geometric", "fixed", "recorded"] = Field(
        "exponential", description="law of the time of one gradient step"
    )
    step_times: str = Field(
        "",
        description="CSV or npz file with the columns client, duration: measured step times, for the law recorded "
        "(another file, another name: "
        "a run is known by the name alone)",
    )
    slow_fraction: float = Field(1 / 3, ge=0, le=1, description="share of slow clients")
    fast_time: float = Field(2.0, gt=0, description="mean time of a gradient step on a fast client")
    slow_time: float = Field(16.0, gt=0, description="mean time of a gradient step on a slow client")
    slow_first: bool = Field(
        False,
        description="the first clients are the slow ones, so that speed and classes may go together; else at random",
    )
    backend: Backend = Field(
        "auto", description="how clients are trained together: matmul, vmap, loop, or the best known for the network"
    )
    local: Literal["sgd", "luq", "askewsgd"] = Field(
        "sgd",
        description="local training: plain SGD; gradients of a 4-bit network (LUQ); weights drawn to levels by constraint "
        "steps (AskewSGD). What is evaluated is then the quantised network",
    )
    quantised_weights: Weights = Field("4bit", description="level set of quantised weights, for luq and askewsgd")
    quantised_layers: Literal["inner", "all", "conv3x3"] = Field(
        "inner", description="which layers are quantised, for luq and askewsgd; inner: all but the first and the last"
    )
    askew_alpha: float = Field(0.5, gt=0, le=10, description="strength of the pull towards the levels, for askewsgd")
    askew_warmup: float = Field(
        0.6, ge=0, lt=1, description="share of the horizon before the intervals round the levels shrink, for askewsgd"
    )
    askew_end: float = Field(
        0.02, gt=0, le=1, description="interval width at the horizon, over its bound, for askewsgd (its paper ends at 0.002)"
    )
    upload: Literal["dense_fp32", "dense_bf16", "qsgd", "int8", "int4", "lattice", "levels"] = Field(
        "dense_fp32",
        description="encoding of deliveries: models (dense, lattice), differences to the model begun from (qsgd, int), or "
        "level numbers of the quantised layers (levels, for askewsgd)",
    )
    download: Literal["dense_fp32", "dense_bf16"] = Field(
        "dense_fp32", description="encoding of the server's models on their way to clients"
    )
    lattice_bits: int = Field(14, ge=2, le=24, description="bits a value, for the lattice")
    lattice_side: float = Field(1e-4, gt=0, description="side of the lattice's cells")
    qsgd_levels: int = Field(16, ge=1, le=4096, description="levels of QSGD")
    present_time: float = Field(0.0, ge=0, description="mean virtual time of a client's presence at a stretch; 0 = always there")
    absent_time: float = Field(0.0, ge=0, description="mean virtual time of its absence in between")
    lifetime: float = Field(0.0, ge=0, description="mean virtual time after which a client is gone for good; 0 = never")
    upload_bandwidth: float = Field(0.0, ge=0, description="bytes a second of a client's link to the server; 0 = messages take no time")
    download_bandwidth: float = Field(0.0, ge=0, description="bytes a second of the link from the server")
    latency_s: float = Field(0.0, ge=0, le=1e6, description="seconds a message takes one way, whatever its size")
    link_spread: float = Field(
        0.0, ge=0, le=5, description="unevenness of the clients' bandwidths: log-normal with this sigma round the given ones; 0 = alike"
    )
    unit_s: float = Field(1.0, gt=0, le=1e6, description="seconds that a unit of virtual time stands for, where messages take time")
    on_divergence: Literal["stop", "drop", "clip"] = Field(
        "stop",
        description="a delivery holds nan or inf: end the run, or leave the delivery out; clip also shortens "
        "differences beyond clip_norm",
    )
    clip_norm: float = Field(
        100.0, gt=0, description="longest difference of a delivery to the model begun from (2-norm), for clip"
    )

    @model_validator(mode="after")
    def _rules(self) -> FederatedParams:
        for name, holds, rule in self.rules():
            if not holds:
                raise ValueError(f"{name} = {getattr(self, name)!r} is refused. Allowed: {rule}")
        return self

    def rules(self) -> list[tuple[str, bool, str]]:
        """Rules over several parameters: the field to name, whether the rule holds, and what is allowed."""
        named = bool(self.step_times)
        whole = self.step_law != "geometric"
        return [
            *self._network_rules(),
            (
                "upload",
                self.upload != "levels" or self.local == "askewsgd",
                "'levels' with local = 'askewsgd' alone, whose weights lie within the levels",
            ),
            (
                "backend",
                self.backend != "vmap" or self.local == "sgd",
                f"'auto', 'matmul', 'loop' with local = {self.local!r}",
            ),
            (
                "concentration",
                self.concentration > 0 or self.partition == "fedfix",
                f"0 < x <= 1000 for partition {self.partition!r} (0 is one class a client, for 'fedfix')",
            ),
            (
                "step_times",
                named == (self.step_law == "recorded"),
                f"{'a file' if self.step_law == 'recorded' else 'nothing'} with step_law = {self.step_law!r}",
            ),
            (
                "fast_time",
                whole or self.fast_time >= 1,
                "1 <= x with step_law = 'geometric', whose times are whole units",
            ),
            (
                "slow_time",
                whole or self.slow_time >= 1,
                "1 <= x with step_law = 'geometric', whose times are whole units",
            ),
        ]

    def _network_rules(self) -> list[tuple[str, bool, str]]:
        linked = self.has_links
        return [
            ("absent_time", not self.absent_time or self.present_time > 0, "0 with present_time = 0, which is always there"),
            ("present_time", not self.present_time or self.absent_time > 0, "0 with absent_time = 0: nobody is ever absent"),
            (
                "download_bandwidth",
                (self.upload_bandwidth > 0) == (self.download_bandwidth > 0),
                "0 < x, for upload_bandwidth is given" if self.upload_bandwidth else "0, for upload_bandwidth is 0",
            ),
            ("latency_s", linked or not self.latency_s, "0 without upload_bandwidth and download_bandwidth"),
            ("link_spread", linked or not self.link_spread, "0 without upload_bandwidth and download_bandwidth"),
            ("unit_s", linked or self.unit_s == 1, "1 without upload_bandwidth and download_bandwidth: no message takes time"),
            (
                "upload",
                not linked or self.upload in FIXED_LENGTH,
                f"one of {', '.join(FIXED_LENGTH)} where messages take time: the clock runs ahead of the training, so "
                "lengths must not depend on weights",
            ),
        ]

    @property
    def has_links(self) -> bool:
        """Whether messages take virtual time."""
        return self.upload_bandwidth > 0

    @property
    def has_absence(self) -> bool:
        """Whether clients are away at times, or for good."""
        return self.absent_time > 0 or self.lifetime > 0

    def least_work(self) -> float:
        """Virtual time below which no client's ``local_steps`` steps are ever done."""
        means = [
            t
            for t, there in ((self.fast_time, self.slow_fraction < 1), (self.slow_time, self.slow_fraction > 0))
            if there
        ]
        return {"fixed": self.local_steps * min(means), "geometric": float(self.local_steps)}.get(self.step_law, 0.0)

    def within(self, name: str, most: str) -> tuple[str, bool, str]:
        """The rule that parameter ``name`` is at most the parameter ``most``."""
        bound = getattr(self, most)
        return name, getattr(self, name) <= bound, f"1 <= x <= {most} = {bound}"

    def reaches(self, least: float, what: str) -> tuple[str, bool, str]:
        """The rule that the horizon leaves time for a first server step, which takes ``least`` at least."""
        return "horizon", self.horizon >= least, f"x >= {least:g}, {what}"


class SelectionParams(FederatedParams):
    """A server that chooses whom it works with."""

    selected: int = Field(20, ge=1, description="clients that the server works with in a step (s)")
    select: Literal["all", "present"] = Field(
        "all", description="whom the server draws from: all, and absent ones are skipped, or those that are present"
    )
    speed_bias: float = Field(
        0.0,
        ge=-4,
        le=4,
        description="a client is drawn in proportion to its speed (1 / mean step time) to this power; 0 = all alike. "
        "The server's rule does not correct for it",
    )

    def rules(self) -> list[tuple[str, bool, str]]:
        return [*super().rules(), self.within("selected", "clients")]


class ArrivalParams(FederatedParams):
    """A server that steps at every arrival."""

    interaction_time: float = Field(0.0, ge=0, description="virtual time the server spends on an arrival")

    def rules(self) -> list[tuple[str, bool, str]]:
        least = self.least_work() + self.interaction_time
        return [*super().rules(), self.reaches(least, "local_steps and interaction_time of a first arrival")]


def refusal(task: SupervisedTask, p: FederatedParams) -> str | None:
    """Why the data of ``task`` cannot be shared out among these clients, as far as that is known before they are read."""
    known, size = data.DATASETS.get(task.dataset), getattr(task.params, "train_size", 0)
    if known and p.partition == "shards" and p.classes_per_client > known.num_classes:
        allowed = f"1 <= x <= {known.num_classes}, the classes of {task.dataset}"
        return f"classes_per_client = {p.classes_per_client} is refused. Allowed: {allowed}."
    if 0 < size < p.clients:
        allowed = f"1 <= x <= train_size = {size}: every client holds a sample"
        return f"clients = {p.clients} is refused. Allowed: {allowed}."
    if p.step_law == "recorded" and (n := Speeds.from_file(p.step_times).n) != p.clients:
        return f"clients = {p.clients} is refused. Allowed: {n}, the clients in {p.step_times}."
    return None
