"""What is compared: methods under their names here, sizes of a profile, and the runs as plain dictionaries."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from workbench.comparison import Comparison
from workbench.params import parse
from workbench.registry import load_method

Runs = list[dict[str, Any]]

METHODS: dict[str, str] = {
    "RTN": "rtn", "NF": "nf4", "HQQ": "hqq", "GPTQ": "gptq", "AWQ": "awq", "QuIP": "quip", "AQLM": "aqlm", "LR-QAT": "lr_qat",
    "LoftQ": "loftq", "LQ-LoRA": "lq_lora", "ApiQ": "apiq", "ReALLM": "reallm",
}
"""Method by its name here."""
DATA_FREE = ("RTN", "NF", "HQQ", "LoftQ", "LQ-LoRA", "ReALLM")
"""Those that look at the weights alone, as they are set here."""
WITH_RANK = ("LoftQ", "LQ-LoRA", "ApiQ")
"""Those whose low-rank part belongs to the compression itself."""
REFERENCE = "uncompressed"
SOME = ("RTN", "NF", "HQQ", "GPTQ", "AWQ", "QuIP", "ReALLM")
"""What the reduced profile runs on the large model: no training of layers, no long searches."""
DIMENSIONS = {2: 4, 3: 2, 4: 2}
"""Dimension of ReALLM's vectors by bits: settings of the released code, and at 4 bits the same 256 codewords."""
SMALL_DIMENSIONS = {2: 2, 3: 1, 4: 1}
"""The same where a matrix has some thousand weights only, and 256 codewords of four numbers would weigh more than the codes."""

SPREAD = {"executor": "processes", "workers": 2, "threads": 1}
"""How the reduced profile runs the large model: most of a compression is work that one thread does as fast as two."""
RATES = ((1e-3, 2e-3), (1e-3, 4e-3), (3e-3, 2e-3), (3e-3, 4e-3), (3e-3, 8e-3), (3e-3, 1.6e-2), (1e-2, 8e-3), (1e-2, 1.6e-2))
"""Learning rates tried, block by block and end to end: upwards, until the loss on validation text rose."""


@dataclass(frozen=True)
class Scale:
    """Task and sizes of a profile. Ranks, groups and codebooks follow from the size of the matrices."""

    task: str
    task_params: dict[str, Any] = field(default_factory=dict)
    group_size: int = 64
    rank: int = 8
    code_bits: int = 8
    d: int = 8
    """Of AQLM."""
    sequences: int = 32
    length: int = 0
    layer_steps: int = 100
    tuning: dict[str, Any] = field(default_factory=dict)
    """How it is tuned, all methods alike; on more text than calibration needs, for few sequences are soon learnt by heart."""
    dimensions: dict[int, int] = field(default_factory=lambda: dict(DIMENSIONS))

    def run(self, name: str, bits: int, **changes: Any) -> dict[str, Any]:
        """The run of a method at a width."""
        method = METHODS.get(name, name)
        own: dict[str, dict[str, Any]] = {
            "nf4": {"scales": "double"}, "gptq": {"clip": 20}, "aqlm": {"code_bits": self.code_bits, "d": self.d},
            "lr_qat": {"layer_steps": self.layer_steps}, "loftq": {"rank": self.rank}, "lq_lora": {"rank": self.rank},
            "apiq": {"rank": self.rank, "layer_steps": self.layer_steps}, "reallm": {"dim": self.dimensions[bits]}}
        blind = name in DATA_FREE and not {"steps", "block_steps", "weighting"} & set(changes)
        common = {"bits": bits, "group_size": self.group_size, "length": self.length,
                  "sequences": 1 if blind else self.sequences}  # who sees no data need not wait for them
        params = {**common, **own.get(method, {}), **changes}
        return {"method": method, "task": self.task, "task_params": self.task_params, "params": params}

    @property
    def reference(self) -> dict[str, Any]:
        """The model as it is."""
        return {"method": REFERENCE, "task": self.task, "task_params": self.task_params, "params": {"sequences": 1, "length": self.length}}

    # --- sections -----------------------------------------------------------------------------------------

    def pareto(self, widths: tuple[int, ...], names: tuple[str, ...] = tuple(METHODS)) -> Runs:
        """All methods at all widths, without tuning, and the model as it is."""
        return [self.reference, *(self.run(name, bits) for bits in widths for name in names)]

    def ablations(self, bits: int) -> Runs:
        """ReALLM with one thing changed at a time."""
        return [self.run("ReALLM", bits, **changed) for changed in self.changes(bits).values()]

    def changes(self, bits: int) -> dict[str, dict[str, Any]]:
        """What is changed, by name. All but the first three have no order, so that they differ in one thing from 'no order'."""
        plain = {"permute": "never"}
        dims = [d for d in (1, 2, 4) if bits * d <= 8 and d != self.dimensions[bits]]
        groups = [g for g in (self.group_size // 2, 2 * self.group_size)]
        return {"order where it pays": {"permute": "auto"}, "always ordered": {"permute": "always"}, "no order": plain,
                **{f"rank {r}": plain | {"rank": r} for r in (self.rank // 2, self.rank, 2 * self.rank)},
                **{f"vectors of {d}": plain | {"dim": d} for d in dims},
                **{f"blocks of {g}": plain | {"group_size": g} for g in groups},
                "errors weighed by inputs": plain | {"weighting": "hessian"}}

    def tuned(self, bits: int, names: tuple[str, ...] = ("RTN", "NF", "LoftQ", "LQ-LoRA", "ApiQ", "ReALLM")) -> Runs:
        """Methods with low-rank parts of one rank, tuned alike: block by block, then end to end. Evaluated before and after the latter."""
        return [self.run(name, bits, rank=self.rank, **self.tuning) for name in names]

    def searched(self, bits: int, names: tuple[str, ...] = ("RTN", "NF", "ReALLM")) -> Runs:
        """The runs that the rates of tuning are chosen by: :data:`RATES` on validation text, of which neither test nor training has any."""
        judged = replace(self, task_params=self.task_params | {"judged": "validation"})
        return [judged.run(name, bits, rank=self.rank, **self.tuning | {"block_lr": block, "tune_lr": end})
                for block, end in RATES for name in names]

    def budgeted(self, budget: float) -> Runs:
        """ReALLM with a shape for each matrix under a budget of bits a weight, all terms."""
        return [self.run("ReALLM", 2, budget=budget)]


TINY = Scale("pydoc/tiny_llama", {"pretrain_steps": 1000}, group_size=32, rank=2, code_bits=4, d=4, sequences=16,
             tuning={"sequences": 128, "block_steps": 20, "steps": 100, "block_lr": 1e-2, "tune_lr": 8e-3, "report_every": 50},
             dimensions=SMALL_DIMENSIONS)
"""The embedded model: every method in seconds. Rates: of :data:`RATES` those with the least mean loss of :meth:`Scale.searched`."""
SMOKE = replace(TINY, task_params={"hidden_size": 32, "pretrain_steps": 60, "test_size": 20}, group_size=16, sequences=4, layer_steps=10,
                tuning={"sequences": 8, "block_steps": 2, "steps": 10, "block_lr": 1e-3, "tune_lr": 2e-3, "report_every": 10})
REAL = Scale("wikitext2/smollm2-135m", {"window": 512, "test_size": 4}, sequences=8, length=256,
             tuning={"sequences": 32, "block_steps": 20, "steps": 40, "tune_lr": 1e-4, "report_every": 20})
"""SmolLM2-135M on few windows, for two cores."""
FULL = Scale("wikitext2/smollm2-135m", {"window": 2048, "test_size": 0}, sequences=128, length=1024, layer_steps=500,
             tuning={"block_steps": 100, "steps": 500, "tune_lr": 1e-4, "report_every": 50})


def missing(scale: Scale) -> str:
    """Why the model or the text of a task is not at hand, and what to do; empty where it is. Nothing is fetched."""
    from workbench import data_models
    from workbench.datasets.corpora import WIKITEXT, at_hand

    model = scale.task.partition("/")[2]
    if data_models.find(model) is None:
        return f"{data_models.MODELS[model].title}, is not at hand: `workbench data fetch {model}` brings it."
    if at_hand(WIKITEXT) is None:
        return (f"WikiText-2 ({WIKITEXT}) is not at hand: put it into a folder and set WORKBENCH_DATA to it, or run the task "
                f"{scale.task!r} once on a machine with a network, which downloads it.")
    return ""


def found(comparison: Comparison, run: dict[str, Any], metric: str = "eval/loss") -> dict[int, float]:
    """Last value of a metric by seed for one of the runs that a comparison was made of, all its defaults included."""
    params = parse(load_method(run["method"]).Params, run["params"], run["method"])
    return comparison.values(run["method"], metric, **params.model_dump(mode="json"))
