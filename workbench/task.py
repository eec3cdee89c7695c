"""The contract of a Task: data set + model + loss + evaluation, under one id such as ``cifar10/vgg_small``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

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


class Tally:
    """Figures of a network over a test set, which it sees batch by batch: of classification, mean loss and accuracy."""

    def __init__(self, task: SupervisedTask, ctx: Context) -> None:
        import torch

        self.task = task
        self.loss = torch.zeros((), device=ctx.device, dtype=torch.float64)
        self.right = torch.zeros((), device=ctx.device, dtype=torch.int64)
        self.count = 0

    def add(self, outputs: Tensor, labels: Tensor) -> None:
        """Take in the outputs of one batch."""
        self.loss += self.task.loss(outputs, labels).double() * len(labels)
        self.right += self.task.correct(outputs, labels).sum()
        self.count += len(labels)

    def result(self) -> dict[str, float]:
        """``eval/…`` metrics of all that was taken in."""
        return {"eval/loss": self.loss.item() / self.count, "eval/accuracy": self.right.item() / self.count}


class SupervisedTask(Task):
    """Labelled samples, a network and a loss. Images stay on the device as uint8 and become floats a batch at a time.

    After :meth:`setup`: ``train_x, train_y, test_x, test_y`` are tensors on the device (images: uint8 ``(n, c, h, w)``,
    other features: float32 ``(n, d)``; labels: int64 ``(n,)``), ``num_classes`` is the number of labels and
    ``sample_shape`` the shape of one input. The inputs may be shared between tasks: do not write into them.

    Outputs are logits, ``(n, num_classes)`` or, for a binary task with one logit, ``(n, 1)``. What is said here of labels, loss and
    accuracy is so for classification; a task of another kind overrides what is otherwise there, and says so.
    """

    Params = SupervisedParams
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    num_classes: int
    sample_shape: tuple[int, ...]

    train_loss: ClassVar[str] = "train/loss"
    """Metric that the mean training loss is reported as; its unit is that of :meth:`loss`."""

    @property
    def train_count(self) -> int:
        """Samples of an epoch: the indices that :meth:`batch` takes are ``0`` to ``train_count - 1``."""
        return len(self.train_y)

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

    def test_batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All test inputs and labels, at most ``size`` at a time."""
        count = len(self.test_y)
        for start in range(0, count, size):
            yield self.test_batch(start, min(start + size, count))

    def tally(self, ctx: Context) -> Tally:
        """What turns the network's outputs on :meth:`test_batches` into the task's ``eval/…`` metrics."""
        return Tally(self, ctx)

    def example(self, size: int) -> Any:
        """Inputs of one training batch, or their shape: what the energy model traces the network on."""
        return (size, *self.sample_shape)

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
