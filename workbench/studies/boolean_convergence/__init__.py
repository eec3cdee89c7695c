"""The study of the convergence bound of Boolean optimisation: measured left side, measured constants, term by term.

L. Leconte, "Boolean Logic as an Error feedback mechanism", arXiv:2401.16418; the same analysis with its whole proof in
Nguyen et al., NeurIPS 2024, arXiv:2405.16339, Theorem 3.17 and appendix A.2. The former we could read in part only. Its
experiments, if it has any, are not known to us: problems, sizes and rates are ours.
"""

from workbench.studies.boolean_convergence.bench import group_of, recorded, side_by_side, values
from workbench.studies.boolean_convergence.figures import bound_figure, growth_figure, sweep_figure
from workbench.studies.boolean_convergence.settings import (
    BASELINES,
    ETA,
    KINDS,
    METHOD,
    PROBLEMS,
    THEOREM,
    VARIANTS,
    baseline_runs,
    best_corner,
    problem_table,
    task_of,
    theorem_runs,
    variant_runs,
)
from workbench.studies.boolean_convergence.sweeps import (
    HELD,
    batch_sweep,
    dim_sweep,
    eta_sweep,
    exponent_table,
    horizon_sweep,
    rule_of,
    slopes,
)
from workbench.studies.boolean_convergence.trajectories import Traces, follow
from workbench.studies.boolean_convergence.verdicts import (
    accumulator_claim,
    bound_claim,
    constant_floor_claim,
    diagnostics,
    dimension_claim,
    flip_claim,
    horizon_claims,
    lemma_claims,
    looseness,
    no_plateau_claim,
    plateau_claim,
    printed_error_claim,
    printed_floor_claim,
    proof_claim,
)

__all__ = [
    "BASELINES",
    "ETA",
    "HELD",
    "KINDS",
    "METHOD",
    "PROBLEMS",
    "THEOREM",
    "VARIANTS",
    "Traces",
    "accumulator_claim",
    "baseline_runs",
    "batch_sweep",
    "best_corner",
    "bound_claim",
    "bound_figure",
    "constant_floor_claim",
    "diagnostics",
    "dim_sweep",
    "dimension_claim",
    "eta_sweep",
    "exponent_table",
    "flip_claim",
    "follow",
    "group_of",
    "growth_figure",
    "horizon_claims",
    "horizon_sweep",
    "lemma_claims",
    "looseness",
    "no_plateau_claim",
    "plateau_claim",
    "printed_error_claim",
    "printed_floor_claim",
    "problem_table",
    "proof_claim",
    "recorded",
    "rule_of",
    "side_by_side",
    "slopes",
    "sweep_figure",
    "task_of",
    "theorem_runs",
    "values",
    "variant_runs",
]
