"""Input pipelines for CIFAR-10 training batches, side by side: ours on the device, and per-image transforms in DataLoader workers.

Both draw a random batch of 128, crop at random after padding by 4, flip half of the images and normalise to float32. The peer is
torchvision's recipe on PIL images, through torchvision where it can be imported; otherwise through the same
steps written out here, and the row's name says so. On a CPU ours has one thread against the peer's two workers. The two take turns;
figures are medians over the turns.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Callable
from unittest import mock

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tracking.errors import UserError
from workbench import data
from workbench.datasets.cifar10 import Cifar10
from workbench.method import Context

BATCH = 128
WORKERS = 2
TURNS = 5


class PerImage:
    """RandomCrop(32, padding=4), RandomHorizontalFlip, ToTensor, Normalize on one PIL image, step by step as torchvision does them."""

    def __call__(self, image: Image.Image) -> Tensor:
        image = ImageOps.expand(image, border=4, fill=0)
        i, j = (torch.randint(0, 9, (1,)).item() for _ in range(2))
        image = image.crop((j, i, j + 32, i + 32))
        if torch.rand(1) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image, np.uint8, copy=True)).permute(2, 0, 1).contiguous().float().div(255)
        mean, std = (torch.as_tensor(v).view(-1, 1, 1) for v in (Cifar10.mean, Cifar10.std))
        return pixels.sub_(mean).div_(std)


def peer_transform() -> tuple[str, Callable[[Image.Image], Tensor]]:
    """torchvision's transforms, or their equivalent, and which of the two it is."""
    try:
        from torchvision import __version__, transforms
    except (ImportError, RuntimeError):  # a build for another torch raises RuntimeError
        return "per-image PIL pipeline (torchvision's steps, rewritten)", PerImage()
    return f"torchvision {__version__}", transforms.Compose([
        transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor(),
        transforms.Normalize(Cifar10.mean, Cifar10.std)])


class Images(Dataset):
    """A map-style data set that makes a PIL image of an array row and transforms it."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, transform: Callable[[Image.Image], Tensor]) -> None:
        self.images, self.labels, self.transform = np.ascontiguousarray(images.transpose(0, 2, 3, 1)), labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[i])), int(self.labels[i])


def arrays() -> tuple[str, dict[str, np.ndarray]]:
    """CIFAR-10 where it is at hand, else random pixels of the same shape (the work is the same)."""
    try:
        if data.sources_of(data.DATASETS["cifar10"]):
            return "CIFAR-10", data.load("cifar10")
    except UserError as error:
        print(error)
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (50_000, 3, 32, 32), dtype=np.uint8), rng.integers(0, 10, 50_000)
    return "random pixels", {"train_x": x, "train_y": y, "test_x": x[:1000], "test_y": y[:1000]}


def our_task(found: dict[str, np.ndarray], device: str) -> Cifar10:
    """The task over these arrays."""
    task = Cifar10("mlp", Cifar10.Params())
    with mock.patch.object(data, "load", return_value=found):
        task.setup(Context(torch.device(device), seed=0))
    return task


def time_ours(task: Cifar10, device: str, batches: int) -> float:
    """Images a second of ``Task.batch``, order and augmentation included."""
    generator = torch.Generator(device).manual_seed(random.getrandbits(32))
    start = time.perf_counter()
    order = torch.randperm(len(task.train_y), generator=generator, device=device)
    for index in order.repeat(1 + batches * BATCH // len(order))[:batches * BATCH].split(BATCH):
        x, _ = task.batch(index, generator)
    if device != "cpu":
        torch.cuda.synchronize()
    elapsed = time.perf_counter() - start
    assert x.shape == (BATCH, 3, 32, 32)
    return batches * BATCH / elapsed


def time_peer(loader: DataLoader, device: str, batches: int) -> float:
    """Images a second of the loader in its stride: the workers' start and the batches they prepared before are not counted."""
    stream = iter(loader)
    for _ in range(3 * WORKERS):
        next(stream)
    start = time.perf_counter()
    for _ in range(batches):
        x, y = next(stream)
        x, y = x.to(device), y.to(device)
    elapsed = time.perf_counter() - start
    del stream
    return batches * BATCH / elapsed


def main(turns: int = TURNS, ours_batches: int = 400, peer_batches: int = 60) -> list[dict]:
    """Measure, print and return ``[{"name", "ours", "peer", "unit", "ratio", "n"}]``."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    what, found = arrays()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    peer, transform = peer_transform()
    loader = DataLoader(Images(found["train_x"], found["train_y"], transform), BATCH, shuffle=True, num_workers=WORKERS, drop_last=True)
    task = our_task(found, device)
    time_ours(task, device, 20)
    figures = [(time_ours(task, device, ours_batches), time_peer(loader, device, peer_batches)) for _ in range(turns)]
    torch.set_num_threads(threads)
    ours, theirs = (statistics.median(column) for column in zip(*figures, strict=True))
    where = "on the GPU" if device == "cuda" else "on one CPU thread"
    row = {"name": f"augmented CIFAR-10 batches of {BATCH} ({what}), ours {where}, against {peer} in a DataLoader with {WORKERS} workers",
           "ours": round(ours), "peer": round(theirs), "unit": "images/s", "ratio": round(ours / theirs, 2), "n": turns,
           "target": ">= 10", "met": ours >= 10 * theirs}
    print(json.dumps(row))
    print("each turn:", ", ".join(f"{a:.0f}/{b:.0f} = {a / b:.1f}" for a, b in figures))
    return [row]


if __name__ == "__main__":
    main()
