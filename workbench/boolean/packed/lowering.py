"""What intrinsics of sixteen lanes are lowered to: their LLVM types, and the instructions that several of them share.

``b`` is llvmlite's builder, ``context`` Numba's target.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils

LANES = 16
I32 = ir.IntType(32)
IVEC, FVEC = ir.VectorType(I32, LANES), ir.VectorType(ir.FloatType(), LANES)


def constant(value: int):
    """A whole number in every lane."""
    return ir.Constant(IVEC, [value] * LANES)


def splat(b, value, vector):
    """A number known when the kernel runs in every lane of a ``vector``."""
    empty = ir.Constant(vector, ir.Undefined)
    return b.shuffle_vector(b.insert_element(empty, value, I32(0)), empty, constant(0))


def address(context, b, kind, array, index, vector):
    """Where the ``vector`` begins at an index of a flat array of Numba type ``kind``."""
    data = context.make_array(kind)(context, b, array).data
    return b.bitcast(b.gep(data, [index]), vector.as_pointer())


def call(b, name: str, result, *args):
    """A call of one of LLVM's own functions."""
    return b.call(cgutils.get_or_insert_function(b.module, ir.FunctionType(result, [a.type for a in args]), name), args)
