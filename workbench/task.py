"""The contract of a Task: data set + model + loss + evaluation, under one id such as ``cifar10/vgg_small``."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from workbench.params import Field, Params

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from workbench.method import Context


class Task:
    """What is to be learnt. Class attributes are literals: the catalogue reads them without importing the file."""

    dataset: ClassVar[str]
    models: ClassVar[tuple[str, ...]] = ()
    """Model names; the task ids are ``dataset/model``, or ``dataset`` alone when this is empty."""
    title: ClassVar[str]
    kind: ClassVar[str] = "classification"
    embedded: ClassVar[bool] = False
    """Needs neither a file nor a network."""

    Params: ClassVar[type[Params]] = Params

    def __init__(self, model: str, params: Params) -> None:
        self.model_name, self.params = model, params
        self.id = f"{self.dataset}/{model}" if model else self.dataset

    def setup(self, ctx: Context) -> None:
        """Load or generate the data on ``ctx.device``. Called once, before ``Method.init``."""
        raise NotImplementedError


class SupervisedParams(Params):
    """Size of a supervised task. Zero means all there is."""

    train_size: int = Field(0, ge=0, description="training samples used, class-balanced in file order; 0 = all")
    test_size: int = Field(0, ge=0, description="test samples used, class-balanced in file order; 0 = all")


class SupervisedTask(Task):
    """Labelled samples, a network and a loss. Images stay on the device as uint8 and become floats a batch at a time.

    After :meth:`setup`: ``train_x, train_y, test_x, test_y`` are tensors on the device (images: uint8 ``(n, c, h, w)``,
    other features: float32 ``(n, d)``; labels: int64 ``(n,)``), ``num_classes`` is the number of labels and
    ``sample_shape`` the shape of one input. The inputs may be shared between tasks: do not write into them.

    Outputs are logits, ``(n, num_classes)`` or, for a binary task with one logit, ``(n, 1)``.
    """

    Params = SupervisedParams
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    num_classes: int
    sample_shape: tuple[int, ...]

    def build_model(self, ctx: Context) -> nn.Module:
        """A fresh network on the device: the same one at each call, on every device, whatever the global generators did.

        It is built on the CPU and initialised from ``ctx.generator("init", cpu=True)``.
        """
        raise NotImplementedError

    def batch(self, index: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Normalised training inputs and labels at ``index``; augmented when a generator is given and the task augments."""
        raise NotImplementedError

    def test_batch(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Normalised test inputs and labels of rows ``start:stop``."""
        raise NotImplementedError

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of a batch, in nats; of a single logit: binary cross-entropy of P(label 1) = sigmoid(logit)."""
        import torch.nn.functional as F

        if outputs.shape[-1] == 1:
            return F.binary_cross_entropy_with_logits(outputs.squeeze(-1), labels.to(outputs.dtype))
        return F.cross_entropy(outputs, labels)

    def correct(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Boolean vector: which predictions are right. A single logit of exactly zero counts as label 0."""
        if outputs.shape[-1] == 1:
            return (outputs.squeeze(-1) > 0) == labels.bool()
        return outputs.argmax(-1) == labels

    def provenance(self) -> dict[str, str]:
        """What the data were, to be recorded with a run: at least ``dataset, train_size, test_size``. After :meth:`setup`."""
        return {"dataset": self.dataset, "train_size": str(len(self.train_y)), "test_size": str(len(self.test_y))}
