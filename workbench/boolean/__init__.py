"""Boolean training without latent weights (BOLD, arXiv:2405.16339), for any PyTorch training loop."""

from workbench.boolean._flip_optimizer import FlipOptimizer, LayerReport
from workbench.boolean.activation import Fork, Threshold
from workbench.boolean.error_feedback import ErrorFeedbackBoolean
from workbench.boolean.joint import JointOptimizer, joint_optimizer
from workbench.boolean.layers import BooleanConv2d, BooleanLayer, BooleanLinear
from workbench.boolean.optimizer import BooleanOptimizer, split_parameters

__all__ = ["BooleanConv2d", "BooleanLayer", "BooleanLinear", "BooleanOptimizer", "ErrorFeedbackBoolean", "FlipOptimizer", "Fork",
           "JointOptimizer", "LayerReport", "Threshold", "joint_optimizer", "split_parameters"]
