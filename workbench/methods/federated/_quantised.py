"""What the parameter ``local`` means beside the training itself: the trainer, the network that is deployed, its formats."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from workbench.method import Context
from workbench.methods.federated._exchange import Part
from workbench.methods.federated._local import LocalSGD, Loss
from workbench.methods.federated._local_askew import LocalAskewSGD
from workbench.methods.federated._local_luq import LocalLUQ
from workbench.methods.federated._local_quantised import QuantisedSGD
from workbench.methods.federated._params import FederatedParams
from workbench.methods.lowbit._activations import FourBitActivation
from workbench.methods.lowbit._levels import quantised_layers
from workbench.methods.lowbit._training import quantised_plan
from workbench.methods.supervised import count_batches, recalibrate_batchnorm
from workbench.task import SupervisedTask

if TYPE_CHECKING:
    from tracking.energy_model import PrecisionPlan


def local_training(p: FederatedParams, model: nn.Module, loss: Loss) -> LocalSGD:
    """What the clients do with ``model``."""
    if p.local == "sgd":
        return LocalSGD(model, loss, p.backend)
    chosen = {"weights": p.quantised_weights, "layers": p.quantised_layers}
    if p.local == "luq":
        return LocalLUQ(model, loss, p.backend, **chosen)
    return LocalAskewSGD(model, loss, p.backend, **chosen, alpha=p.askew_alpha, warmup=p.askew_warmup, end=p.askew_end)


def parts(local: LocalSGD) -> list[Part]:
    """What a model's flat vector is made of, where some of it is quantised."""
    if not isinstance(local, QuantisedSGD):
        return []
    chosen = {f"{name}.weight" for name in local.names}
    return [Part(size, name in chosen) for name, size in zip(local.flat.shapes, local.flat.sizes, strict=True)]


def calibrated(model: nn.Module, task: SupervisedTask, ctx: Context) -> nn.Module:
    """The network with statistics of training samples, where it has any to estimate: of batch norms, ranges of activations."""
    if any(isinstance(m, (nn.modules.batchnorm._BatchNorm, FourBitActivation)) for m in model.modules()):
        recalibrate_batchnorm(model, task, 128, min(16, count_batches(len(task.train_y), 128)), ctx)
    return model


def precision(p: FederatedParams, model: nn.Module) -> PrecisionPlan:
    """Formats of every operand of a client's training, for the energy model."""
    if p.local == "sgd":
        from tracking.energy_model.plan import fp32

        return fp32()
    layers = quantised_layers(model, p.quantised_layers)
    if p.local == "luq":
        return quantised_plan("luq", model, layers, weights=p.quantised_weights, activations="4bit", inputs=True, signals="int4",
                              latent=True, scaled=True)
    return quantised_plan("askewsgd", model, layers, weights=None, weight_ops=4)
