"""Figures of quality beyond accuracy, as pure functions: of images, and of confusion matrices."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LUMINANCE = (65.481, 128.553, 24.966)
"""Weights of red, green and blue on the scale 0 to 1 in the luma of ITU-R BT.601, of range 16 to 235."""
PEAK = 255.0
EXACT = 1e-10  # mean squared error of images that agree: 148 dB, where the formula has infinity


def luminance(image: Tensor) -> Tensor:
    """Luma ``(…, h, w)`` of images ``(…, 3, h, w)`` on the scale 0 to 255 (ITU-R BT.601, as MATLAB's ``rgb2ycbcr``)."""
    weights = torch.tensor(LUMINANCE, dtype=image.dtype, device=image.device) / 255
    return 16 + (image * weights.view(3, 1, 1)).sum(-3)


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of images ``(…, h, w)`` on the scale 0 to 255: ``10 log10(255^2 / mse)``, one for each image."""
    return 10 * torch.log10(PEAK**2 / (a - b).square().mean((-2, -1)).clamp_min(EXACT))


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of images ``(…, h, w)`` on the scale 0 to 255, one for each image.

    Wang, Bovik, Sheikh & Simoncelli (IEEE TIP 2004): Gaussian window of 11x11 pixels and standard deviation 1.5, K1 = 0.01, K2 = 0.03,
    mean over the places where the window fits. Smaller images raise ``ValueError``.
    """
    if min(a.shape[-2:]) < 11:
        raise ValueError(f"SSIM needs images of at least 11x11 pixels, not {tuple(a.shape[-2:])}.")
    a, b = a - PEAK / 2, b - PEAK / 2  # small numbers: variances are differences of squares
    places = torch.arange(11, dtype=a.dtype, device=a.device) - 5
    window = (-places.square() / (2 * 1.5**2)).exp()
    window /= window.sum()
    planes = torch.stack([a, b, a * a + b * b, a * b]).flatten(0, -3).unsqueeze(1)
    blurred = F.conv2d(F.conv2d(planes, window.view(1, 1, 11, 1)), window.view(1, 1, 1, 11))
    mean_a, mean_b, squares, products = blurred.squeeze(1).unflatten(0, (4, *a.shape[:-2]))
    variances, covariance = squares - mean_a.square() - mean_b.square(), products - mean_a * mean_b
    mean_a, mean_b = mean_a + PEAK / 2, mean_b + PEAK / 2
    c1, c2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
    similarity = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return (similarity / ((mean_a.square() + mean_b.square() + c1) * (variances + c2))).mean((-2, -1))


def confusion(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Counts int64 ``(num_classes, num_classes)``: row the label, column the prediction. Labels outside the classes count nowhere."""
    known = (labels >= 0) & (labels < num_classes)
    pairs = labels[known].long() * num_classes + predicted[known].long()
    return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)


def class_iou(counts: Tensor) -> Tensor:
    """Intersection over union of each class from its :func:`confusion`; nan for a class that is neither there nor predicted."""
    counts = counts.double()
    right = counts.diagonal()
    return right / (counts.sum(0) + counts.sum(1) - right)


def mean_iou(counts: Tensor) -> float:
    """Mean of :func:`class_iou` over the classes that are there or predicted."""
    return class_iou(counts).nanmean().item()


def matthews(counts: Tensor) -> float:
    """Matthews correlation of a binary confusion matrix, -1 to 1; 0 where all labels or all predictions are of one class."""
    (tn, fp), (fn, tp) = counts.double().tolist()
    spread = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return (tp * tn - fp * fn) / spread**0.5 if spread else 0.0


def f1(counts: Tensor) -> float:
    """F1 of class 1 from a binary confusion matrix: harmonic mean of precision and recall; 0 where class 1 is never found."""
    (_, fp), (fn, tp) = counts.double().tolist()
    return 2 * tp / (2 * tp + fp + fn) if tp else 0.0
