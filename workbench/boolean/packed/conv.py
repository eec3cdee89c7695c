"""The packed convolution: see :mod:`workbench.boolean.packed.layers`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tracking.errors import UserError
from workbench.boolean.layers import BooleanConv2d
from workbench.boolean.packed import backends
from workbench.boolean.packed.backends import Backend
from workbench.boolean.packed.layers import PackedLayer, signs_of
from workbench.boolean.packed.words import from_lanes, num_words, output_size, pack, unpack, window_slices


class PackedConv2d(PackedLayer):
    """Boolean convolution on packed maps ``(batch, height, width, words)``, or on real ``(batch, channels, height,
    width)``.

    Arguments as of :class:`workbench.boolean.layers.BooleanConv2d` and :class:`PackedLinear`; pairs are given as pairs.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int],
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (0, 0),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
        *,
        pad_value: int = 0,
        real: bool = False,
        bias: bool = False,
        backend: Backend = "auto",
    ) -> None:
        channels, taps = in_channels // groups, kernel_size[0] * kernel_size[1]
        width = num_words(channels * taps) if real else num_words(channels) * taps
        super().__init__(out_channels, groups, width, real=real, bias=bias, backend=backend)
        self.channels, self.fan_in = channels, channels * taps
        self.kernel, self.stride, self.padding, self.dilation, self.pad_value = (
            kernel_size,
            stride,
            padding,
            dilation,
            pad_value,
        )

    @classmethod
    def of(
        cls, layer: BooleanConv2d, name: str = "layer", *, real: bool = False, backend: Backend = "auto"
    ) -> PackedConv2d:
        """The packed form of a trained layer; ``name`` is what an error calls it."""
        weight, bias = signs_of(layer, name)
        outputs, inputs, *kernel = weight.shape
        made = cls(
            inputs * layer.groups,
            outputs,
            tuple(kernel),
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.groups,
            pad_value=layer.pad_value,
            real=real,
            bias=bias is not None,
            backend=backend,
        ).to(weight.device)
        weight = weight.permute(0, 2, 3, 1)
        made._set(pack(weight.flatten(1)) if real else pack(weight.contiguous()).flatten(1), bias)
        return made

    def forward(self, x: Tensor) -> Tensor:
        if self.real:
            return self._of_real(x)
        words = num_words(self.channels * self.groups)
        if x.dtype != torch.int64 or x.ndim != 4 or x.shape[-1] != words:
            raise UserError(
                f"This packed layer takes maps of {self.channels * self.groups} channels as int64 (batch, height, "
                f"width, {words}), not {x.dtype} of shape {tuple(x.shape)}."
            )
        parts = backends.grouped(x, self.channels * self.groups, self.groups)
        made = [
            backends.conv(
                part,
                lanes,
                self.fan_in,
                self.kernel,
                self.stride,
                self.padding,
                self.dilation,
                *shift,
                self.bound,
                self.flip,
                backend=self.backend,
            )
            for part, lanes, shift in zip(parts, self.weight, self._border(x.shape[1:3]), strict=True)
        ]
        if self.bound is not None:
            return made[0]
        return (
            torch.cat([part[..., : self.outputs // self.groups] for part in made], -1)
            if self.groups > 1
            else made[0][..., : self.outputs]
        )

    def _of_real(self, x: Tensor) -> Tensor:
        size = output_size(x.shape[2:], self.kernel, self.stride, self.padding, self.dilation)
        (ph, pw), padding = self.padding, (0, 0)
        maps = nn.functional.pad(x, (pw, pw, ph, ph), value=float(self.pad_value)).unflatten(
            1, (self.groups, self.channels)
        )
        made = []
        for part, lanes in zip(maps.unbind(1), self.weight, strict=True):
            rows = window_slices(part.permute(0, 2, 3, 1), self.kernel, self.stride, padding, self.dilation, size)
            out = backends.real(rows.reshape(-1, self.fan_in), lanes, backend=self.backend)
            made.append(out[:, : self.outputs // self.groups])
        out = torch.cat(made, 1)
        out = out if self.bias is None else out + self.bias
        return out.to(x.dtype).view(x.shape[0], *size, self.outputs).permute(0, 3, 1, 2).contiguous()

    def _border(self, size: tuple[int, int]) -> list[tuple[Tensor, Tensor]]:
        if self.pad_value or not any(self.padding):
            return self.shifts(())
        if self._shifts[0] == (*size, self.weight.device):
            return self._shifts[1]
        out = output_size(size, self.kernel, self.stride, self.padding, self.dilation)
        beyond = [
            torch.arange(o)[:, None] * s + torch.arange(k) * d - p
            for o, s, k, d, p in zip(out, self.stride, self.kernel, self.dilation, self.padding, strict=True)
        ]
        y, x = ((at < 0) | (at >= n) for at, n in zip(beyond, size, strict=True))
        return self.shifts(tuple(size), (y[:, None, :, None] | x[None, :, None, :]).flatten(2).flatten(0, 1))

    def _tap_sums(self, lanes: Tensor, outputs: int, taps: int) -> Tensor:
        words = from_lanes(lanes, outputs).unflatten(1, (taps, -1))
        return unpack(words, self.channels).sum(-1)

    def extra_repr(self) -> str:
        return (
            f"{self.channels * self.groups}, {self.outputs}, kernel_size={self.kernel}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}, pad_value={self.pad_value}, "
            f"{self._words()}"
        )
