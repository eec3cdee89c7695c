"""Feature shift: clients whose labels follow one law and whose images look different."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tracking.errors import UserError
from workbench.federation.partition import Partition, iid
from workbench.federation.partition_draws import deal
from workbench.method import derive_seed

if TYPE_CHECKING:
    import torch
    from numpy.typing import ArrayLike
    from torch import Tensor

_TRANSFORMS = ("angle_deg", "contrast", "brightness", "noise")


@dataclass(frozen=True, eq=False)
class FeatureShift:
    """What each client does to its images, in this order; vectors of float64 (n,)."""

    partition: Partition
    angle_deg: np.ndarray
    """Rotation about the centre, counter-clockwise, in degrees."""
    contrast: np.ndarray
    """Factor on the difference of each value from the mean of its image."""
    brightness: np.ndarray
    """Added to each value, in units of the input."""
    noise: np.ndarray
    """Standard deviation of the normal noise that is added to each value, in units of the input."""
    _on: dict[Any, dict[str, Tensor]] = field(default_factory=dict, init=False, repr=False)

    def apply(self, x: Tensor, client_ids: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Images ``x``, floats (b, c, h, w), as the clients ``client_ids``, int64 (b,), see them; on ``x``'s device.

        Rotation takes the values between pixels bilinearly and repeats the border outside the image, so no value leaves
        the range of its image. Square images turned by a multiple of 90 degrees keep all their values, and so their
        energy; others lose what leaves the frame and what interpolation smooths. Contrast keeps the mean and multiplies
        the variance of an image by its square, brightness moves the mean alone, noise adds its square to the expected
        variance of a value. ``generator``, on the same device, is what noise is drawn from and is needed where a client
        has noise.
        """
        import torch

        if x.ndim != 4 or not x.is_floating_point() or client_ids.shape != x.shape[:1]:
            raise UserError("feature shift: images (b, c, h, w) of floats and client numbers (b,) are asked for, "
                            f"not {x.dtype} of shape {tuple(x.shape)} and {tuple(client_ids.shape)}.")
        if generator is None and self.noise.any():
            raise UserError("feature shift: some clients add noise. Give a torch.Generator to draw it from.")
        key = (x.device, x.dtype)
        if key not in self._on:
            self._on[key] = {name: torch.tensor(getattr(self, name), device=x.device, dtype=x.dtype)
                             for name in _TRANSFORMS}
        own = {name: level[client_ids].view(-1, 1, 1, 1) for name, level in self._on[key].items()}
        if self.angle_deg.any():
            x = torch.where(own["angle_deg"] == 0, x, rotate(x, own["angle_deg"].flatten()))
        if (self.contrast != 1).any():
            mean = x.mean((1, 2, 3), keepdim=True)
            x = torch.where(own["contrast"] == 1, x, mean + own["contrast"] * (x - mean))
        if self.brightness.any():
            x = x + own["brightness"]
        if self.noise.any():
            x = x + own["noise"] * torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        return x


def rotate(x: Tensor, angle_deg: Tensor) -> Tensor:
    """Images (b, c, h, w) rotated counter-clockwise about their centre by an angle each, (b,), in degrees."""
    import torch
    import torch.nn.functional as F

    b, _, h, w = x.shape
    cos, sin = torch.cos(torch.deg2rad(angle_deg)), torch.sin(torch.deg2rad(angle_deg))
    # output to input; the grid counts half widths and half heights, a rotation counts pixels
    theta = torch.zeros(b, 2, 3, dtype=x.dtype, device=x.device)
    theta[:, 0, 0], theta[:, 0, 1], theta[:, 1, 0], theta[:, 1, 1] = cos, -sin * h / w, sin * w / h, cos
    grid = F.affine_grid(theta, [b, 1, h, w], align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def feature_shift(labels: ArrayLike, n: int, seed: int = 0, *, angle_deg: Sequence[float] = (0.0,),
                  contrast: Sequence[float] = (1.0,), brightness: Sequence[float] = (0.0,),
                  noise: Sequence[float] = (0.0,)) -> FeatureShift:
    """An IID partition whose clients have one level of each transform, each level as equally many clients as possible.

    Levels of different transforms are dealt independently. ``angle_deg=(0, 90, 180, 270)`` makes the four clusters of
    rotated MNIST of Ghosh et al. (NeurIPS 2020). Every level of a list needs a client, and contrast and noise are 0 or
    more.
    """
    partition = iid(labels, n, seed)
    dealt = {}
    for name, levels in zip(_TRANSFORMS, (angle_deg, contrast, brightness, noise), strict=True):
        values = np.atleast_1d(np.asarray(levels, float))
        if values.ndim != 1 or not 1 <= len(values) <= n or not np.isfinite(values).all():
            raise UserError(f"feature shift: {name} = {levels!r} is refused. "
                            f"Allowed: 1 to {n} (clients) finite numbers.")
        if name in ("contrast", "noise") and values.min() < 0:
            raise UserError(f"feature shift: {name} = {levels!r} is refused. Allowed: numbers, 0 or more.")
        rng = np.random.default_rng(derive_seed(int(seed), "feature_shift", name))
        dealt[name] = values[deal(rng, n, 1, len(values)).argmax(1)]
    return FeatureShift(partition, **dealt)
