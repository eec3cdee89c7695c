"""Vector operations for Numba kernels: sixteen 32-bit integers or floats at a time, for any processor LLVM knows.

Numba leaves vectors to the optimiser, which would not find these. A vector wider than the processor's registers is
split by LLVM.
"""

from __future__ import annotations

import llvmlite.binding
from llvmlite import ir
from numba import config, njit, types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

from workbench.boolean.packed.lowering import FVEC, I32, IVEC, address, call, constant, splat
from workbench.boolean.packed.lowering import LANES as LANES

# a look-up of sixteen floats by sixteen indices is one AVX-512 instruction and has no portable form
PERMUTES = not (config.CPU_NAME or config.CPU_FEATURES) and bool(
    config.ENABLE_AVX and llvmlite.binding.get_host_cpu_features().get("avx512f")
)


class _Ints(types.Type):
    def __init__(self) -> None:
        super().__init__("i32x16")


class _Floats(types.Type):
    def __init__(self) -> None:
        super().__init__("f32x16")


INTS, FLOATS = _Ints(), _Floats()


@register_model(_Ints)
class _IntsModel(models.PrimitiveModel):
    def __init__(self, manager, kind) -> None:
        super().__init__(manager, kind, IVEC)


@register_model(_Floats)
class _FloatsModel(models.PrimitiveModel):
    def __init__(self, manager, kind) -> None:
        super().__init__(manager, kind, FVEC)


def kernel(function, **options):
    """Compile without the interpreter's lock; keep the code on disk where a folder for it can be written.

    What is kept goes stale with the time stamp of the kernel's own file: touch that after a change here.
    """
    try:
        return njit(nogil=True, cache=True, **options)(function)
    except RuntimeError:  # Numba found no such folder
        return njit(nogil=True, **options)(function)


@intrinsic
def load(typing, array, index):
    """Sixteen neighbours of a flat array."""
    kind, vector = (FLOATS, FVEC) if array.dtype == types.float32 else (INTS, IVEC)

    def lower(context, b, sig, args):
        value = b.load(address(context, b, sig.args[0], *args, vector))
        value.align = 4
        return value

    return kind(array, types.intp), lower


@intrinsic
def prefetch(typing, array, index):
    """Ask for the sixteen neighbours at ``index``, which may lie past the end."""

    def lower(context, b, sig, args):
        byte = ir.IntType(8).as_pointer()
        place = b.bitcast(address(context, b, sig.args[0], *args, IVEC), byte)
        kind = ir.FunctionType(ir.VoidType(), [byte, I32, I32, I32])
        function = cgutils.get_or_insert_function(b.module, kind, "llvm.prefetch.p0")
        b.call(function, [place, I32(0), I32(3), I32(1)])  # to read, into every level, data
        return context.get_dummy_value()

    return types.none(array, types.intp), lower


@intrinsic
def store(typing, array, index, value):
    vector = FVEC if value == FLOATS else IVEC

    def lower(context, b, sig, args):
        b.store(args[2], address(context, b, sig.args[0], *args[:2], vector)).align = 4
        return context.get_dummy_value()

    return types.none(array, types.intp, value), lower


@intrinsic
def spread(typing, value):
    """One number in every lane."""
    if isinstance(value, types.Float):
        return FLOATS(types.float32), lambda context, b, sig, args: splat(b, args[0], FVEC)
    return INTS(types.int32), lambda context, b, sig, args: splat(b, args[0], IVEC)


@intrinsic
def count(typing, total, x, w):
    """``total + popcount(x ^ w)``, lane by lane."""

    def lower(context, b, sig, args):
        return b.add(args[0], call(b, "llvm.ctpop.v16i32", IVEC, b.xor(args[1], args[2])))

    return INTS(INTS, INTS, INTS), lower


@intrinsic
def sums_of(typing, n, count, shift):
    """``n - 2 count + shift``: agreements minus disagreements."""

    def lower(context, b, sig, args):
        return b.add(b.sub(args[0], b.shl(args[1], constant(1))), args[2])

    return INTS(INTS, INTS, INTS), lower


@intrinsic
def reaches(typing, value, bound):
    """Sixteen bits: ``value >= bound``, lane 0 in the lowest; FALSE for NaN."""

    def lower(context, b, sig, args):
        test = b.fcmp_ordered if sig.args[0] == FLOATS else b.icmp_signed
        return b.bitcast(test(">=", *args), ir.IntType(16))

    return types.uint16(value, bound), lower


@intrinsic
def set_where(typing, bits, value, bound, place):
    """``bits`` with bit ``place`` set in the lanes where ``value >= bound``."""

    def lower(context, b, sig, args):
        bit = b.shl(b.zext(b.fcmp_ordered(">=", args[1], args[2]), IVEC), splat(b, args[3], IVEC))
        return b.or_(args[0], bit)

    return INTS(INTS, FLOATS, FLOATS, types.int32), lower


@intrinsic
def shift_right(typing, words, places):
    return INTS(INTS, types.int32), lambda context, b, sig, args: b.lshr(args[0], splat(b, args[1], IVEC))


@intrinsic
def add(typing, a, b):
    return FLOATS(FLOATS, FLOATS), lambda context, builder, sig, args: builder.fadd(*args)


@intrinsic
def look_up(typing, total, table, index):
    """``total + table[index mod 16]``, lane by lane."""

    def lower(context, b, sig, args):
        return b.fadd(args[0], call(b, "llvm.x86.avx512.permvar.sf.512", FVEC, args[1], args[2]))

    return FLOATS(FLOATS, FLOATS, INTS), lower


@intrinsic
def vote(typing, total, x, words, place):
    """``total + x`` where bit ``place`` of the lane's word is 1, else ``total - x``."""

    def lower(context, b, sig, args):
        total, x, words, place = args
        sign = b.and_(b.shl(words, splat(b, b.sub(I32(31), place), IVEC)), constant(-(1 << 31)))
        return b.fsub(total, b.bitcast(b.xor(b.bitcast(x, IVEC), sign), FVEC))

    return FLOATS(FLOATS, FLOATS, INTS, types.int32), lower
