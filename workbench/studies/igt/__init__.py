"""The study of the Interferometric Graph Transform for community labels: accuracy, orders, concentration, phases, cost.

N. Grinsztajn, L. Leconte, P. Preux & E. Oyallon, 2021, arXiv:2106.05875. Its abstract was at hand, its text and its figures were not: no
figure of it stands here, and what is checked beyond the abstract's words is ours.
"""

from workbench.studies.igt.accuracy import (
    accuracy_table,
    cluster_table,
    gains,
    in_words,
    learning_claims,
    learning_table,
    level_claims,
    order_claims,
    order_scores,
    order_table,
    speed_claim,
)
from workbench.studies.igt.concentration import error_figure, errors, rate_claims, rate_table, rates, transform_errors
from workbench.studies.igt.phase_diagram import (
    accuracies,
    collapse_figure,
    phase_claims,
    phase_figure,
    phases,
    region_table,
    threshold,
)
from workbench.studies.igt.pictures import plane_figure, planes, size_claim, size_exponents, size_figure, size_runs
from workbench.studies.igt.settings import (
    FIXED,
    METHODS,
    ONE_MEAN,
    PUBLISHED,
    SOURCES,
    Bench,
    at_hand,
    benches,
    order_benches,
)

__all__ = [
    "FIXED",
    "METHODS",
    "ONE_MEAN",
    "PUBLISHED",
    "SOURCES",
    "Bench",
    "accuracies",
    "accuracy_table",
    "at_hand",
    "benches",
    "cluster_table",
    "collapse_figure",
    "error_figure",
    "errors",
    "gains",
    "in_words",
    "learning_claims",
    "learning_table",
    "level_claims",
    "order_benches",
    "order_claims",
    "order_scores",
    "order_table",
    "phase_claims",
    "phase_figure",
    "phases",
    "plane_figure",
    "planes",
    "rate_claims",
    "rate_table",
    "rates",
    "region_table",
    "size_claim",
    "size_exponents",
    "size_figure",
    "size_runs",
    "speed_claim",
    "threshold",
    "transform_errors",
]
