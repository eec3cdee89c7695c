"""The study of DGL: its runs as plain dictionaries, accuracy of every module, accounts of memory and bandwidth.

Belilovsky, Eickenberg & Oyallon, ICML 2020, arXiv:1901.08164; Belilovsky, Leconte, Caccia, Eickenberg & Oyallon, arXiv:2106.06401.
Learning rates of the reduced profiles are ours; at the full profile those of the official code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from workbench.datasets.models import build
from workbench.decoupled import Costs, RandomLine, ReplayBuffer, auxiliary_heads, balanced_cuts, module_costs, split, units
from workbench.decoupled.buffer import pooled
from workbench.decoupled.costs import evaluating

if TYPE_CHECKING:
    import pandas

    from workbench.comparison import Comparison

Runs = list[dict[str, Any]]

# test accuracy in percent on CIFAR-10, mean over epochs 1451-1500, from the logs of the official code of arXiv:1901.08164
PAPER_DNI = {"dgl": "85.05", "decoupled_backprop": "84.43", "cdni": "81.71", "dni": "62.65"}
PAPER_IMAGENET = "VGG-19, K = 4: 69.2 against 69.7 %; ResNet-152, K = 2: 74.5 against 74.4 % (ImageNet, top 1)"


@dataclass(frozen=True)
class Scale:
    """What all runs of a profile share."""

    task: str
    task_params: dict[str, Any]
    epochs: int
    modules: int = 4
    batch_size: int = 128
    full: bool = False

    @property
    def common(self) -> dict[str, Any]:
        """SGD at rate 0.1, divided by 5 at 30, 60 and 90 % of the epochs, as the official 50 epochs have it; Adam where they are few."""
        drops = sorted({max(1, round(self.epochs * share)) for share in (0.3, 0.6, 0.9)})
        few = {"base": "adam", "lr": 0.003} if not self.full else {"base": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
        return {"epochs": self.epochs, "batch_size": self.batch_size, "modules": self.modules, "lr_decay": 0.2, "lr_decay_epochs": drops,
                "report_every": 50, **few}

    def run(self, method: str, **params: Any) -> dict[str, Any]:
        """One run of ``method``."""
        return {"method": method, "task": self.task, "task_params": self.task_params, "params": self.common | params}

    @property
    def image(self) -> tuple[int, int, int]:
        """Shape of the task's images."""
        return {"cifar10": (3, 32, 32), "digits": (1, 8, 8)}[self.task.partition("/")[0]]

    def network(self) -> torch.nn.Module:
        """The task's network, with weights of no meaning."""
        name, width = self.task.partition("/")[2], self.task_params.get("width", 1.0)
        return build(name, self.image, 10, width, torch.Generator().manual_seed(0))


# --- runs -------------------------------------------------------------------------------------------------


def learning(s: Scale) -> Runs:
    """Modules at once, one after the other, and end to end, on one network."""
    return [s.run("decoupled_backprop"), s.run("dgl", head="mlp_sr"), s.run("sequential_greedy", head="mlp_sr")]


def slowdowns(s: Scale, factors: Sequence[float], buffer: int = 10) -> Runs:
    """Asynchronous, module 2 slowed: the paper's random order, with the head of its buffer experiments."""
    slow = [{"slow_module": 2, "slowdown": f} if f > 1 else {} for f in factors]
    return [s.run("async_dgl", schedule="random", buffer=buffer, head="mlp", **own) for own in slow]


def buffer_sizes(s: Scale, sizes: Sequence[int], slowdown: float = 1.2) -> Runs:
    """The same at one slowdown with buffers of other sizes."""
    return [s.run("async_dgl", schedule="random", buffer=m, head="mlp", slow_module=2, slowdown=slowdown) for m in sizes]


def quantised(s: Scale, codewords: Sequence[int], group_size: int, buffer: int = 10) -> Runs:
    """Links and buffers of codes, beside exact ones and two plain casts at the same schedule."""
    common = {"schedule": "random", "buffer": buffer, "head": "mlp"}
    casts = [s.run("async_dgl", codec=codec, **common) for codec in ("dense_fp32", "dense_bf16", "int8")]
    return casts + [s.run("async_dgl_vq", codewords=k, group_size=group_size, **common) for k in codewords]


def relatives(s: Scale) -> Runs:
    """DGL beside synthetic and delayed gradients; heads as large as the synthesisers."""
    dni = {"synthesiser_lr": 1e-4} if not s.full else {"base": "adam", "lr": 3e-5, "lr_decay_epochs": []}
    same = {"base": "adam", "lr": 3e-5, "lr_decay_epochs": []} if s.full else {}
    return [s.run("decoupled_backprop", **same), s.run("dgl", head="conv5", **same), s.run("dni", **dni), s.run("cdni", **dni),
            s.run("ddg", **same), s.run("features_replay", **same)]


# --- accuracy of every module -------------------------------------------------------------------------------


def module_table(comparison: Comparison, methods: Sequence[str], modules: int) -> pandas.DataFrame:
    """Last accuracy in percent behind every module, mean over seeds; the last module's is the network's."""
    import pandas

    names = [*(f"eval/accuracy_module_{j}" for j in range(1, modules)), "eval/accuracy", "eval/accuracy_ensemble"]
    titles = [*(f"module {j}" for j in range(1, modules + 1)), "all together"]
    rows = []
    for method in methods:
        row: dict[str, Any] = {"method": method}
        for name, title in zip(names, titles, strict=True):
            if values := comparison.values(method, name):
                row[f"{title} [%]"] = 100 * sum(values.values()) / len(values)
        rows.append(row)
    return pandas.DataFrame(rows)


# --- what is read again -------------------------------------------------------------------------------------


def reuse_table(sizes: Sequence[int], factors: Sequence[float], turns: int, modules: int = 6, slow: int = 3,
                seed: int = 0) -> pandas.DataFrame:
    """Reuse, age and unread batches of the random order by buffer size and slowdown, without any learning; module 4 is slow."""
    import pandas

    rows = []
    for recency in ("newest", "official_off_by_one"):
        for m in sizes:
            for s in factors:
                buffers = [ReplayBuffer(m, recency) for _ in range(modules - 1)]
                line = RandomLine(modules, buffers, [s if j == slow else 1.0 for j in range(modules)], seed)
                for _ in range(turns):
                    line.turn(lambda j, item: j)
                links = {"normal": buffers[0], "into the slow module": buffers[slow - 1], "behind it": buffers[slow]}
                rows.append({"rule": recency, "M": m, "S": s, **{f"reuse, {k}": b.reuse for k, b in links.items()},
                             **{f"age, {k}": b.age for k, b in links.items()}, "unread, all": pooled(buffers).get("unread", math.nan)})
    return pandas.DataFrame(rows)


# --- accounts -----------------------------------------------------------------------------------------------


def account_table(s: Scale, codewords: Sequence[int], group_size: int, buffer: int, sync_every: int = 10) -> pandas.DataFrame:
    """Bytes of a message on every link, of buffers, and compression, from the closed forms; labels and codebooks included, no headers."""
    import pandas

    rows, x = [], torch.zeros(1, *s.image)
    for j, module in enumerate(units(s.network())[:-1], 1):
        with evaluating(module):
            x = module(x)
        c, places, B = x.shape[1], x[0, 0].numel(), s.batch_size
        raw = 4 * B * c * places + B
        for k in codewords:
            code = math.ceil(B * places * (c / group_size) * math.ceil(math.log2(k)) / 8) + B
            sent = code + 4 * k * c / sync_every
            rows.append({"link": j, "channels": c, "positions": places, "K": k, "raw message [B]": raw, "quantised [B]": code,
                         "with its share of codebooks [B]": sent, "compression": raw / sent, "buffer, raw [B]": buffer * raw,
                         "buffer, quantised [B]": buffer * code + 4 * k * c})
    return pandas.DataFrame(rows)


def speed_table(names: Sequence[str], head: str, image: tuple[int, int, int] = (3, 32, 32)) -> pandas.DataFrame:
    """Speed-up over backpropagation on one worker that the pipeline model allows, by network and number of modules."""
    import pandas

    rows = []
    for name in names:
        pieces = units(build(name, image, 10, 1.0, torch.Generator().manual_seed(0)))
        x = torch.zeros(1, *image)
        single = module_costs(pieces, [torch.nn.Identity()] * len(pieces), x).primary
        for modules in range(1, min(len(pieces), 6) + 1):
            bodies = split(pieces, balanced_cuts(single, modules))
            costs = module_costs(bodies, auxiliary_heads(bodies, head, x), x)
            bare = Costs(costs.primary, (0,) * modules)
            rows.append({"network": name, "modules": modules, "speed-up": costs.speedup, "without heads": bare.speedup,
                         "heads' share [%]": 100 * sum(costs.heads) / sum(costs.primary)})
    return pandas.DataFrame(rows)
