"""The vocabulary of everything measured: one declaration a metric, with its unit and its better direction.

A name that is not declared here is an error, so a curve never lacks a unit and two methods never record
the same thing under two names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from tracking.errors import unknown


@dataclass(frozen=True)
class Metric:
    """One measured or modelled quantity.

    ``better`` is the direction a person wants (``None``: neither). ``cumulative`` metrics only grow and can serve as
    an x-axis or as a budget. ``volatile`` ones depend on the machine and the moment (time, energy, memory), so
    two identical runs differ in them.
    """

    name: str
    unit: str
    better: Literal["higher", "lower"] | None
    description: str
    cumulative: bool = False
    volatile: bool = False

    @property
    def label(self) -> str:
        """Axis label with unit."""
        return f"{self.name} [{self.unit}]" if self.unit else self.name


def _declare(*metrics: Metric) -> dict[str, Metric]:
    table = {m.name: m for m in metrics}
    assert len(table) == len(metrics), "a metric is declared twice"
    return table


METRICS: dict[str, Metric] = _declare(
    # progress of the algorithm
    Metric("train/loss", "nats", "lower", "mean training loss since the last report"),
    Metric("train/l1", "grey levels", "lower", "mean absolute error of training patches since the last report, pixels of 0 to 255"),
    Metric("train/epoch", "epochs", None, "passes over the training set", cumulative=True),
    Metric("train/samples", "samples", None, "training samples processed", cumulative=True),
    Metric("train/lr", "", None, "learning rate in force"),
    Metric("train/epsilon", "", None, "width of the constraint intervals (AskewSGD)"),
    Metric("train/regularisation", "", None, "strength of the pull towards the levels (ProxQuant, AdaSTE, MD-tanh)"),
    Metric("train/infeasible", "fraction", None, "share of quantised weights outside their interval round a level"),
    Metric("train/level_distance", "levels", "lower", "mean distance of a latent weight from its nearest level"),
    Metric("train/flips", "flips", None, "flips of one-bit weights in all steps so far", cumulative=True),
    Metric("train/flip_rate", "fraction", None, "share of the one-bit weights that a step flips, mean since the last report"),
    Metric("train/plasticity", "fraction", None, "share of the one-bit weights that the last step left unchanged, mean over layers"),
    Metric("train/gradient_norm2", "", "lower", "squared norm of the full gradient, mean over all steps so far"),
    Metric("train/signal_moment", "", None, "largest expected squared norm of a mini-batch gradient so far"),
    Metric("train/accumulator_bound", "", None, "largest accumulated gradient of a Boolean weight so far, |m| / eta"),
    Metric("train/contraction", "fraction", None,
           "largest share of the accumulators' squared norm that a step with a passed threshold has kept"),
    Metric("train/energy", "fraction", "higher", "share of the features' energy that the objective finds in averaged moduli (IGT)"),
    Metric("train/order", "orders", None, "order whose filters are being learnt", cumulative=True),
    Metric("train/val_loss", "nats", "lower", "loss on the nodes that early stopping looks at"),
    Metric("train/val_accuracy", "fraction", "higher", "accuracy on the nodes that early stopping looks at"),
    Metric("train/idle", "fraction", None, "share of the steps so far in which no accumulator passed the threshold"),
    Metric("train/biased", "fraction", None, "share of passed accumulators that were too large for unbiased rounding"),
    Metric("train/residual_norm2", "", None, "squared norm of the error that error feedback keeps, mean over all steps so far"),
    Metric("train/rounding_norm2", "", None, "squared norm of what rounding the weights to -1 and +1 adds, mean over all steps so far"),
    Metric("train/reuse", "fraction", "lower", "share of all reads from replay buffers so far that hit a batch read before"),
    Metric("train/age", "batches", "lower", "newer batches in the replay buffer when a batch was read, mean over all reads so far"),
    Metric("train/unread", "fraction", "lower", "share of the batches overwritten in replay buffers so far that nobody had read"),
    Metric("train/vq_error", "", "lower",
           "squared error of the quantised activations sent since the last report, over their squares"),
    Metric("train/vq_perplexity", "codewords", "higher",
           "exponential of the entropy of codeword use since the last report, mean over links and groups of channels"),
    Metric("train/vq_unused", "fraction", "lower", "share of the codewords not used since the last report, mean over links"),
    Metric("train/vq_movement", "", None, "relative change of a codebook at its last update, mean over links"),
    Metric("train/synthetic_error", "", "lower",
           "squared error of the synthetic gradients since the last report, over the squares of what they were to be"),
    Metric("train/candidates", "configurations", None, "configurations tried by a search", cumulative=True),
    Metric("train/gradients", "gradients", None, "gradient steps taken by all clients", cumulative=True),
    Metric("train/server_steps", "steps", None, "updates of the server's model", cumulative=True),
    Metric("train/client_spread", "", "lower",
           "sum over clients of the squared distance of their model to the server's, estimated from those contacted"),
    Metric("train/diverged", "deliveries", "lower", "deliveries left out because they held nan or inf", cumulative=True),
    Metric("train/matrices", "matrices", None, "weight matrices compressed", cumulative=True),
    Metric("train/weight_error", "", "lower", "norm of what compression changes in the matrix just done, over the matrix's norm"),
    Metric("train/output_error", "", "lower", "the same of the matrix's outputs on the calibration inputs"),
    # quality
    Metric("eval/loss", "nats", "lower", "test loss of the deployed (quantised) model"),
    Metric("eval/accuracy", "fraction", "higher", "test accuracy of the deployed (quantised) model"),
    Metric("eval/accuracy_bn", "fraction", "higher",
           "test accuracy of the deployed model after its batch-norm statistics were re-estimated on training data"),
    Metric("eval/loss_latent", "nats", "lower", "test loss at the latent (unquantised) weights"),
    Metric("eval/accuracy_latent", "fraction", "higher", "test accuracy at the latent (unquantised) weights"),
    Metric("eval/psnr", "dB", "higher", "peak signal-to-noise ratio of the luma, border shaved, mean over test images"),
    Metric("eval/ssim", "", "higher", "structural similarity of the luma, border shaved, mean over test images"),
    Metric("eval/miou", "fraction", "higher", "intersection over union, mean over classes, of the test pixels that have a class"),
    Metric("eval/pixel_accuracy", "fraction", "higher", "share of the test pixels with a class that are labelled rightly"),
    Metric("eval/matthews", "", "higher", "Matthews correlation of predictions and test labels, -1 to 1"),
    Metric("eval/f1", "fraction", "higher", "F1 of class 1 on the test set"),
    Metric("eval/objective", "", "lower", "value of the function that is minimised, over all its samples"),
    Metric("eval/gradient_norm2", "", "lower", "squared norm of the full gradient at the present weights"),
    *(Metric(f"eval/accuracy_module_{j}", "fraction", "higher", f"test accuracy of the auxiliary head of module {j}")
      for j in range(1, 10)),
    Metric("eval/accuracy_ensemble", "fraction", "higher",
           "test accuracy of the sum of all heads' scores, each weighted twice the one before"),
    Metric("eval/accuracy_exact_links", "fraction", "higher", "test accuracy where modules hand on exact, not encoded activations"),
    Metric("eval/val_accuracy", "fraction", "higher", "validation accuracy of what is tested; it chose the probe's penalty or the epoch"),
    Metric("eval/probe_c", "", None, "inverse strength of the linear probe's L2 penalty that the validation nodes chose"),
    Metric("eval/nmi", "fraction", "higher", "normalised mutual information of k-means clusters of the features and the labels"),
    Metric("eval/ari", "", "higher", "adjusted Rand index of k-means clusters of the features and the labels, 0 by chance"),
    Metric("eval/perplexity", "", "lower", "exponential of the mean test loss a token"),
    # communication, billed on encoded payloads
    Metric("comm/up_bytes", "B", "lower", "encoded bytes sent towards the server or the next module", cumulative=True),
    Metric("comm/down_bytes", "B", "lower", "encoded bytes sent from the server or the previous module", cumulative=True),
    Metric("comm/peer_bytes", "B", "lower", "encoded bytes sent between equals", cumulative=True),
    Metric("comm/messages", "messages", "lower", "messages sent", cumulative=True),
    # energy: measured and modelled never share a name
    Metric("energy/gpu_j", "J", "lower", "measured: whole GPU board, NVML counter", cumulative=True, volatile=True),
    Metric("energy/cpu_j", "J", "lower", "measured: CPU packages, RAPL counter", cumulative=True, volatile=True),
    Metric("energy/model_j", "J", "lower", "modelled for a named hardware and scenario", cumulative=True),
    Metric("energy/network_model_j", "J", "lower", "modelled: average allocation of a named medium", cumulative=True),
    # clocks
    Metric("clock/wall_s", "s", "lower", "time spent in the algorithm, evaluation excluded", cumulative=True, volatile=True),
    Metric("clock/virtual_s", "s", "lower", "simulated time", cumulative=True),
    Metric("clock/idle", "fraction", "lower", "share of the simulated time in which workers wait, mean over workers"),
    # memory
    Metric("memory/peak_bytes", "B", "lower",
           "highest memory since the run began: CUDA allocator peak, or the process's resident set on CPU", volatile=True),
    Metric("memory/state_bytes", "B", "lower", "what the algorithm remembers between two steps"),
    Metric("memory/buffer_bytes", "B", "lower", "messages held in replay buffers"),
    Metric("memory/model_bytes", "B", "lower", "the deployed model, encoded"),
    Metric("memory/bits_per_weight", "bit", "lower", "encoded bits a weight of the deployed model"),
    Metric("memory/code_bits_per_weight", "bit", "lower", "the same without low-rank parts and magnitudes, which fine-tuning changes"),
    # work
    Metric("compute/flops", "FLOP", "lower", "floating-point operations", cumulative=True),
    Metric("compute/bit_ops", "bit op", "lower", "one-bit operations", cumulative=True),
)


def metric(name: str) -> Metric:
    """Look a metric up; an undeclared name raises :class:`tracking.errors.UserError` with the nearest declared one."""
    try:
        return METRICS[name]
    except KeyError:
        raise unknown("metric", name, METRICS) from None


def split_finite(values: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """Check every name and split ``values`` into finite ones and the others (nan, inf)."""
    finite: dict[str, float] = {}
    other: dict[str, float] = {}
    for name, value in values.items():
        metric(name)
        value = float(value)
        (finite if math.isfinite(value) else other)[name] = value
    return finite, other
