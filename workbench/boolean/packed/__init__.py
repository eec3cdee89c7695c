"""One bit a weight, in memory and in time: packed kernels, and trained Boolean networks in packed form."""

from workbench.boolean.packed.backends import Backend
from workbench.boolean.packed.conv import PackedConv2d
from workbench.boolean.packed.export import export, weight_bytes
from workbench.boolean.packed.layers import PackedLinear
from workbench.boolean.packed.words import pack, unpack

__all__ = ["Backend", "PackedConv2d", "PackedLinear", "export", "pack", "unpack", "weight_bytes"]
