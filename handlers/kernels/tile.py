"""The innermost loop of a product, written in LLVM's language: Numba cannot be told what to keep in registers.

A panel holds the weights of `COLUMNS` outputs, [in, COLUMNS], so that reading it once serves all rows of a tile: for
every input, a vector of weights is multiplied with one number of each row and added to that row's sums (Goto, van de
Geijn, Anatomy of High-Performance Matrix Multiplication, 2008; the shape is BLIS's for AVX2).
"""

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

COLUMNS = 16
ROWS = 6
"""Of the largest tile: its twelve vectors of sums and what they are made of fill the registers of an x86 processor."""

_LANES = 8
_VECTORS = COLUMNS // _LANES
_SUMS_UNDER_WAY = 8
"""So many multiply-adds must be begun before the first has ended, if none is to wait for another."""

_INDEX = ir.IntType(64)
_FLOATS = ir.VectorType(ir.FloatType(), _LANES)
_LANE_NUMBERS = ir.VectorType(ir.IntType(32), _LANES)
_MAY_FUSE = ("contract",)  # a multiplication and an addition, into one instruction

_Body = Callable[[Any, Sequence[Any]], Sequence[Any]]


def tile(rows: int) -> Any:
    """A function for kernels: out += x @ panel * scales, for so many rows.

    Its arguments: x [rows, in] and the distance of its rows; panel [in, COLUMNS] of int8 or float32; in; scales
    [COLUMNS]; out [rows, COLUMNS] and the distance of its rows. Arrays are given as `pointer`.
    """

    def add_tile(
        context: Any, x: Any, x_stride: Any, panel: Any, inputs: Any, scales: Any, out: Any, out_stride: Any
    ) -> Any:
        return types.void(x, types.int64, panel, types.int64, scales, out, types.int64), _writer(rows)

    return intrinsic(add_tile)


def _pointer(context: Any, array: Any) -> Any:
    def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return context.make_array(signature.args[0])(context, builder, arguments[0]).data

    return _pointer_to(array.dtype)(array), write


pointer: Any = intrinsic(_pointer)
"""For kernels: to an array's first number."""

_pointer_to: Any = types.CPointer


def _writer(rows: int) -> Callable[..., Any]:
    sums_a_step = rows * _VECTORS
    depth = -(-_SUMS_UNDER_WAY // sums_a_step)

    def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, x_stride, panel, inputs, scales, out, out_stride = arguments

        def step(at: Any, sums: Sequence[Any]) -> Sequence[Any]:
            weights = _panel_row(builder, panel, builder.mul(at, _INDEX(COLUMNS)))
            numbers = [_number(builder, x, x_stride, row, at) for row in range(rows)]
            pairs = [(weight, number) for number in numbers for weight in weights]
            return [_multiply_add(builder, *pair, total) for pair, total in zip(pairs, sums, strict=True)]

        def several_steps(at: Any, sums: Sequence[Any]) -> Sequence[Any]:
            """Each with sums of its own, so that none waits for the one before."""
            return [
                total
                for i in range(depth)
                for total in step(builder.add(at, _INDEX(i)), sums[i * sums_a_step : (i + 1) * sums_a_step])
            ]

        whole = builder.sub(inputs, builder.urem(inputs, _INDEX(depth)))
        zeros = [_FLOATS([0.0] * _LANES)] * (sums_a_step * depth)
        parts = _loop(builder, _INDEX(0), whole, depth, zeros, several_steps)
        totals = [_total(builder, parts[i::sums_a_step]) for i in range(sums_a_step)]
        sums = _loop(builder, whole, inputs, 1, totals, step)
        for row in range(rows):
            _add_row(builder, out, builder.mul(out_stride, _INDEX(row)), scales, sums[row * _VECTORS :])
        return context.get_dummy_value()

    return write


def _loop(builder: Any, start: Any, stop: Any, step: int, sums: Sequence[Any], body: _Body) -> Sequence[Any]:
    """for at in range(start, stop, step): sums = body(at, sums)."""
    before = builder.block
    head, inside, after = (builder.append_basic_block(name) for name in ("head", "inside", "after"))
    builder.branch(head)
    builder.position_at_end(head)
    at = builder.phi(_INDEX)
    at.add_incoming(start, before)
    current = [builder.phi(_FLOATS) for _ in sums]
    builder.cbranch(builder.icmp_signed("<", at, stop), inside, after)
    builder.position_at_end(inside)
    following = body(at, current)
    at.add_incoming(builder.add(at, _INDEX(step)), inside)
    for phi, first, later in zip(current, sums, following, strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(later, inside)
    builder.branch(head)
    builder.position_at_end(after)
    return current


def _panel_row(builder: Any, panel: Any, first: Any) -> list[Any]:
    """The weights of one input, as vectors of float32."""
    element = panel.type.pointee
    vectors = [
        _load(builder, panel, builder.add(first, _INDEX(i * _LANES)), ir.VectorType(element, _LANES))
        for i in range(_VECTORS)
    ]
    return vectors if element == ir.FloatType() else [builder.sitofp(vector, _FLOATS) for vector in vectors]


def _number(builder: Any, x: Any, x_stride: Any, row: int, at: Any) -> Any:
    """x[row, at] in every lane."""
    number = builder.load(builder.gep(x, [builder.add(builder.mul(x_stride, _INDEX(row)), at)]))
    undefined = _FLOATS(ir.Undefined)
    one_lane = builder.insert_element(undefined, number, ir.IntType(32)(0))
    return builder.shuffle_vector(one_lane, undefined, _LANE_NUMBERS([0] * _LANES))


def _multiply_add(builder: Any, a: Any, b: Any, total: Any) -> Any:
    return builder.fadd(builder.fmul(a, b, flags=_MAY_FUSE), total, flags=_MAY_FUSE)


def _total(builder: Any, parts: Sequence[Any]) -> Any:
    total, *others = parts
    for other in others:
        total = builder.fadd(total, other)
    return total


def _add_row(builder: Any, out: Any, first: Any, scales: Any, sums: Sequence[Any]) -> None:
    for i in range(_VECTORS):
        at = builder.add(first, _INDEX(i * _LANES))
        scale = _load(builder, scales, _INDEX(i * _LANES), _FLOATS)
        total = _multiply_add(builder, sums[i], scale, _load(builder, out, at, _FLOATS))
        builder.store(total, _vector_pointer(builder, out, at, _FLOATS), align=1)


def _load(builder: Any, array: Any, at: Any, vector: Any) -> Any:
    return builder.load(_vector_pointer(builder, array, at, vector), align=1)


def _vector_pointer(builder: Any, array: Any, at: Any, vector: Any) -> Any:
    return builder.bitcast(builder.gep(array, [at]), vector.as_pointer())
