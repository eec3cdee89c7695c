"""What is run: data sets and protocols, methods and their presets, and the figures that papers print.

Presets of a data set are those of each method's paper or of its authors' code. What the reduced profile changes of them
is ours, and says so.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Runs = list[dict[str, Any]]

FIXED = ("raw_features", "averaged_features", "sgc", "igt", "fastrp", "spectral_embedding")
"""Representations that take seconds."""
PLAIN = FIXED[:4]
"""Those of them that look at features."""
WALKS = ("deepwalk", "node2vec")
ENCODERS = ("dgi", "grace", "bgrl", "vgae")
SUPERVISED = ("gcn", "gat", "appnp", "dagnn")
METHODS = (*FIXED, *WALKS, *ENCODERS, *SUPERVISED)

# test accuracy in percent. Citation graphs: the public split; Wiki-CS: mean over its 20 splits. The figures of the paper on IGT are not
# known to us, so there are none
PUBLISHED: dict[str, dict[str, str]] = {
    "cora": {
        "raw_features": "47.9 ± 0.4",
        "deepwalk": "67.2",
        "dgi": "82.3 ± 0.6",
        "sgc": "81.0",
        "gcn": "81.5",
        "gat": "83.0",
        "dagnn": "84.4 ± 0.5",
    },
    "citeseer": {
        "raw_features": "49.3 ± 0.2",
        "deepwalk": "43.2",
        "dgi": "71.8 ± 0.7",
        "sgc": "71.9",
        "gcn": "70.3",
        "gat": "72.5",
        "dagnn": "73.3 ± 0.6",
    },
    "pubmed": {
        "raw_features": "69.1 ± 0.3",
        "deepwalk": "65.3",
        "dgi": "76.8 ± 0.6",
        "sgc": "78.9",
        "gcn": "79.0",
        "gat": "79.0",
        "dagnn": "80.5 ± 0.5",
    },
    "wikics": {
        "raw_features": "71.98",
        "deepwalk": "74.35",
        "dgi": "75.35 ± 0.14",
        "grace": "78.19",
        "bgrl": "79.36 ± 0.53",
        "gcn": "77.19 ± 0.12",
        "gat": "77.66 ± 0.11",
        "appnp": "79.84 ± 0.10",
    },
}
SOURCES = (
    "Published: raw features, DeepWalk and DGI as in Veličković et al. (ICLR 2019), SGC Wu et al. (ICML 2019), GCN Kipf & Welling (ICLR "
    "2017), GAT Veličković et al. (ICLR 2018), DAGNN Liu et al. (KDD 2020); on Wiki-CS supervised methods Mernyei & Cangea (2020), "
    "others as tabulated by later papers on self-supervision, from up to 20 splits. Papers differ in classifier and tuning."
)

# what authors change between data sets
PRESETS: dict[tuple[str, str], dict[str, Any]] = {
    ("dgi", "pubmed"): {"hidden": 256},
    ("grace", "citeseer"): {
        "hidden": 256,
        "projection": 256,
        "lr": 1e-3,
        "tau": 0.9,
        "drop_edges_1": 0.2,
        "drop_edges_2": 0.0,
        "mask_features_1": 0.3,
        "mask_features_2": 0.2,
    },
    ("grace", "pubmed"): {
        "hidden": 256,
        "projection": 256,
        "lr": 1e-3,
        "tau": 0.7,
        "epochs": 1500,
        "drop_edges_1": 0.4,
        "drop_edges_2": 0.1,
        "mask_features_1": 0.0,
        "mask_features_2": 0.2,
    },
    ("bgrl", "amazon_photo"): {
        "lr": 1e-4,
        "drop_edges_1": 0.4,
        "drop_edges_2": 0.1,
        "mask_features_1": 0.1,
        "mask_features_2": 0.2,
    },
    ("gat", "pubmed"): {"output_heads": 8, "lr": 0.01, "weight_decay": 1e-3},
    ("dagnn", "citeseer"): {"dropout": 0.5, "weight_decay": 0.02},
    ("dagnn", "pubmed"): {"k": 20},
}

# shorter trainings of the reduced profile, ours
SHORT: dict[str, dict[str, Any]] = {
    "deepwalk": {"walks_per_node": 4, "walk_length": 30, "window": 4},
    "node2vec": {"walks_per_node": 10, "walk_length": 40, "window": 5},
    "grace": {"epochs": 60, "contrast_nodes": 1000, "lr": 1e-3},
    "bgrl": {"epochs": 100, "warmup": 10, "lr": 5e-3, "hidden": 256, "dim": 256, "predictor": 256},
    "gat": {"epochs": 200},
    "appnp": {"epochs": 200},
    "dagnn": {"epochs": 200},
}
ONE_START = {name: {"cluster_restarts": 1} for name in PLAIN}
"""For data sets whose clusters are not shown."""
# and trainings of a moment, that show nothing but that everything goes
MOMENT: dict[str, dict[str, Any]] = {
    "deepwalk": {"walks_per_node": 1, "walk_length": 10, "window": 2, "dim": 8},
    "node2vec": {"walks_per_node": 1, "walk_length": 10, "window": 2, "dim": 8},
    **{name: {"epochs": 3} for name in (*ENCODERS, *SUPERVISED)},
}


@dataclass(frozen=True)
class Bench:
    """One data set under one protocol, and the methods that are run on it."""

    dataset: str
    protocol: str
    methods: tuple[str, ...] = METHODS
    task_params: dict[str, Any] = field(default_factory=dict)
    changes: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Parameters by method, over the presets."""

    @property
    def name(self) -> str:
        return f"{self.dataset}, {self.protocol}"

    @property
    def published(self) -> dict[str, str]:
        """Figures of papers under this protocol."""
        return PUBLISHED.get(self.dataset, {}) if self.protocol == "public" else {}

    def runs(self) -> Runs:
        """One run a method."""
        return [self.run(method) for method in self.methods]

    def run(self, method: str, **params: Any) -> dict[str, Any]:
        """A run of ``method`` with its preset."""
        given = PRESETS.get((method, self.dataset), {}) | self.changes.get(method, {}) | params
        if method in SUPERVISED:
            given = {"eval_every": 0} | given  # nothing is read off in between
        return {
            "method": method,
            "task": f"{self.dataset}/node",
            "task_params": {"protocol": self.protocol, **self.task_params},
            "params": given,
        }


def benches(profile: str, at_hand: dict[str, bool]) -> list[Bench]:
    """What a profile compares; data sets that are not at hand are left out."""
    if profile == "smoke":
        small = {"nodes": 120, "degree": 12.0, "val_size": 20, "train_per_class": 5}
        return [Bench("sbm", "random", METHODS, small, MOMENT)]
    if profile == "quick":
        chosen = [
            Bench("cora", "public", METHODS, {}, SHORT),
            *(
                Bench(d, p, PLAIN, {}, ONE_START)
                for d, p in (("citeseer", "public"), ("pubmed", "public"), ("cora", "random"))
            ),
            *(Bench(d, p, PLAIN, {}, ONE_START) for d, p in (("citeseer", "random"), ("amazon_photo", "fractions"))),
        ]
        stand_in = Bench("digits_graph", "random", METHODS, {}, SHORT)
    else:
        chosen = [Bench(d, p) for d in ("cora", "citeseer", "pubmed") for p in ("public", "random")]
        chosen += [Bench("wikics", "public"), Bench("amazon_photo", "fractions")]
        stand_in = Bench("digits_graph", "random")
    chosen = [b for b in chosen if at_hand.get(b.dataset)]
    return chosen or [stand_in]


FOUND, LOUD, DRAWN = "learnt for variation", "learnt for energy", "random"
FILTERS: dict[str, dict[str, Any]] = {
    FOUND: {"objective": "variation"},
    LOUD: {"objective": "energy"},
    DRAWN: {"objective": "energy", "solver": "none"},
}
"""How filters come about, by name."""
ONE_MEAN: dict[str, Any] = {"averaging": "row", "power": 1, "normalise": "none"}
"""The transform with one mean over neighbours, as in the experiments on concentration."""


def at_hand(datasets: tuple[str, ...]) -> dict[str, bool]:
    """Which of the data sets can be read, by name."""
    from tracking.errors import UserError
    from workbench import data

    found = {}
    for name in datasets:
        try:
            data.load(name)
            found[name] = True
        except UserError:
            found[name] = False
    return found


def order_benches(profile: str, there: dict[str, bool]) -> dict[str, tuple[Bench, int]]:
    """Graphs on which orders are told apart, by name, and how often the transform is fitted there."""
    real = () if profile == "smoke" else ("cora", "citeseer") if profile == "quick" else ("cora", "citeseer", "pubmed")
    found = {f"{name}, random": (Bench(name, "random", ("igt",)), 2) for name in real if there.get(name)}
    size = {"nodes": 120, "degree": 12.0, "val_size": 20} if profile == "smoke" else {}
    for ratio in (0.0, 0.2):
        bench = Bench("sbm", "random", ("igt",), {"ratio": ratio, **size}, {"igt": ONE_MEAN})
        found[f"sbm, across / within {ratio:g}, once"] = bench, 10**6  # a graph, and so a fit, for each split
    return found
