"""The study of ReALLM: perplexity against bits for it and its peers, the patterns of matrices, ablations, tuning and costs.

Bedin, Leconte, Nguyen & Moulines, "ReALLM: A general framework for LLM compression and fine-tuning", arXiv:2405.13155 (2024). Abstract and
released code could be read; the paper's tables could not, so no figure of it stands here. Sizes, rates and models are ours.
"""

from workbench.studies.reallm.costs import cost_table, stored_bits
from workbench.studies.reallm.figures import heat_maps, pareto_figure, results
from workbench.studies.reallm.patterns import matrices, pattern_table, prepared, shapes, shuffled, single_shapes, view_table, views
from workbench.studies.reallm.settings import (
    DATA_FREE,
    FULL,
    METHODS,
    RATES,
    REAL,
    SMOKE,
    SOME,
    SPREAD,
    TINY,
    Scale,
    found,
    missing,
)
from workbench.studies.reallm.verdicts import (
    ablation_claims,
    ablation_table,
    budget_claim,
    leading_claims,
    rate_table,
    shape_claims,
    size_claim,
    tuning_claims,
    tuning_table,
)

__all__ = [
    "DATA_FREE",
    "FULL",
    "METHODS",
    "RATES",
    "REAL",
    "SMOKE",
    "SOME",
    "SPREAD",
    "TINY",
    "Scale",
    "ablation_claims",
    "ablation_table",
    "budget_claim",
    "cost_table",
    "found",
    "heat_maps",
    "leading_claims",
    "matrices",
    "missing",
    "pareto_figure",
    "pattern_table",
    "prepared",
    "rate_table",
    "results",
    "shape_claims",
    "shapes",
    "shuffled",
    "single_shapes",
    "size_claim",
    "stored_bits",
    "tuning_claims",
    "tuning_table",
    "view_table",
    "views",
]
