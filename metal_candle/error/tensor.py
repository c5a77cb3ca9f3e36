"""Errors of tensors: dtypes, shapes, dims, indices, variables, gradients. candle: ``candle_core::Error``."""

from __future__ import annotations

from .base import Error
from .text import described, first_few, shown

# Problems that one line lists.
_LISTED = 10

# --- arguments --------------------------------------------------------------------------------


class ArgumentTypeError(Error, TypeError):
    """An argument of another type than the operation takes."""


class ArgumentValueError(Error, ValueError):
    """An argument of the right type whose value the operation does not take."""


# --- dtypes -----------------------------------------------------------------------------------


class DTypeMismatchError(Error, TypeError):
    """Two operands differ in dtype. Convert one with ``to_dtype``: nothing is promoted silently."""

    def __init__(self, op: str, lhs: object, rhs: object) -> None:
        super().__init__(f"{op}: dtypes differ, lhs {lhs}, rhs {rhs}; convert one with to_dtype")
        self.op, self.lhs, self.rhs = op, lhs, rhs


DTypeMismatchBinaryOpError = DTypeMismatchError
"""candle's name for it."""


class UnexpectedDTypeError(Error, TypeError):
    """A tensor has another dtype than the one asked for."""

    def __init__(self, msg: str, expected: object, got: object) -> None:
        super().__init__(f"{msg}: expected dtype {expected}, got {got}")
        self.msg_, self.expected, self.got = msg, expected, got


class UnsupportedDTypeForOpError(Error, TypeError):
    """The operation is not defined for this dtype."""

    def __init__(self, op: str, dtype: object, takes: str) -> None:
        super().__init__(f"{op}: got dtype {dtype}; takes {takes}")
        self.op, self.dtype = op, dtype


class DTypeParseError(Error, ValueError):
    """The text or object names no dtype."""

    def __init__(self, value: object) -> None:
        super().__init__(f"dtype: cannot read {value!r}; takes u8, i16, u32, i32, i64, bf16, f16, f32 or f64")
        self.value = value


# --- dimensions and shapes --------------------------------------------------------------------


class DimOutOfRangeError(Error, IndexError):
    """A dimension does not exist in the shape."""

    def __init__(self, op: str, shape: tuple[int, ...], dim: int, inserted: bool = False) -> None:
        # A new dim may also stand behind the last.
        places = len(shape) + inserted
        takes = f"takes {-places}..{places - 1}" if places else "a scalar has no dimensions"
        super().__init__(f"{op}: dim {described(dim)} is out of range for shape {tuple(shape)}; {takes}")
        self.op, self.shape, self.dim = op, shape, dim


class DuplicateDimIndexError(Error, ValueError):
    """A dimension is named twice."""

    def __init__(self, op: str, shape: tuple[int, ...], dims: tuple[int, ...]) -> None:
        super().__init__(f"{op}: dims {tuple(dims)} name a dimension of shape {tuple(shape)} twice")
        self.op, self.shape, self.dims = op, shape, dims


class UnexpectedNumberOfDimsError(Error, ValueError):
    """The tensor's rank is not the one asked for."""

    def __init__(self, op: str, expected: object, shape: tuple[int, ...]) -> None:
        super().__init__(f"{op}: got rank {len(shape)}, shape {tuple(shape)}; takes rank {expected}")
        self.op, self.expected, self.shape = op, expected, shape


class ShapeMismatchError(Error, ValueError):
    """A shape is not the one the operation takes."""


class ShapeMismatchBinaryOpError(ShapeMismatchError):
    """Two operands' shapes do not fit each other."""

    def __init__(self, op: str, lhs: tuple[int, ...], rhs: tuple[int, ...], takes: str) -> None:
        super().__init__(f"{op}: got shapes {tuple(lhs)} and {tuple(rhs)}; takes {takes}")
        self.op, self.lhs, self.rhs = op, lhs, rhs


class ShapeMismatchCatError(ShapeMismatchError):
    """Tensors to be joined differ in another dim than the one they are joined along; ``n`` counts from 1."""

    def __init__(self, dim: int, first_shape: tuple[int, ...], n: int, nth_shape: tuple[int, ...]) -> None:
        super().__init__(
            f"cat: tensor {n} has shape {tuple(nth_shape)}, the first {tuple(first_shape)}; "
            f"takes shapes that are equal but for dim {dim}"
        )
        self.dim, self.first_shape, self.n, self.nth_shape = dim, first_shape, n, nth_shape


class ShapeMismatchSplitError(ShapeMismatchError):
    """A dim does not divide into the parts asked for."""

    def __init__(self, shape: tuple[int, ...], dim: int, n_parts: int) -> None:
        super().__init__(f"split: dim {dim} of shape {tuple(shape)} does not divide into {n_parts} equal parts")
        self.shape, self.dim, self.n_parts = shape, dim, n_parts


class OnlySingleDimensionError(Error, ValueError):
    """The operation takes one dim, not several."""

    def __init__(self, op: str, dims: tuple[int, ...]) -> None:
        super().__init__(f"{op}: got dims {tuple(dims)}; takes one dim")
        self.op, self.dims = op, dims


class EmptyTensorError(ShapeMismatchError):
    """There is no element to choose."""

    def __init__(self, op: str, shape: tuple[int, ...], dim: int) -> None:
        super().__init__(f"{op}: got shape {tuple(shape)}, whose dim {dim} is empty; takes an element")
        self.op, self.shape, self.dim = op, shape, dim


class Conv1dInvalidArgsError(Error, ValueError):
    """A convolution's input, kernel and numbers do not fit each other."""

    def __init__(
        self, op: str, inp_shape: tuple[int, ...], k_shape: tuple[int, ...], padding: int, stride: int, msg: str
    ) -> None:
        super().__init__(
            f"{op}: got input {tuple(inp_shape)}, kernel {tuple(k_shape)}, padding {padding}, stride {stride}; {msg}"
        )
        self.op, self.inp_shape, self.k_shape = op, inp_shape, k_shape
        self.padding, self.stride, self.reason = padding, stride, msg


class OpRequiresAtLeastOneTensorError(ShapeMismatchError):
    """An operation over a list of tensors got none."""

    def __init__(self, op: str) -> None:
        super().__init__(f"{op}: got no tensors; takes at least one")
        self.op = op


class OpRequiresAtLeastTwoTensorsError(ShapeMismatchError):
    """An operation over a list of tensors got fewer than two."""

    def __init__(self, op: str, got: int) -> None:
        super().__init__(f"{op}: got {got} tensor{'s' if got != 1 else ''}; takes at least two")
        self.op, self.got = op, got


class DeviceMismatchBinaryOpError(Error, ValueError):
    """Two operands are on different devices."""

    def __init__(self, op: str, lhs: object, rhs: object) -> None:
        super().__init__(f"{op}: operands on {lhs} and {rhs}; move one with to_device")
        self.op, self.lhs, self.rhs = op, lhs, rhs


class UnexpectedShapeError(ShapeMismatchError):
    """A named tensor has another shape than the one asked for; ``asked`` is the name before a renamer's."""

    def __init__(self, name: str, expected: tuple[int, ...], got: tuple[int, ...], asked: str | None = None) -> None:
        both = shown(name) if asked is None else f"{shown(name)}, asked for as {shown(asked)}"
        super().__init__(f"{both}: expected shape {tuple(expected)}, got {tuple(got)}")
        self.name, self.expected, self.got, self.asked = name, expected, got, asked


class BroadcastIncompatibleShapesError(ShapeMismatchError):
    """A shape cannot be broadcast to another."""

    def __init__(self, src: tuple[int, ...], dst: tuple[int, ...]) -> None:
        super().__init__(f"broadcast_as: cannot broadcast shape {tuple(src)} to {tuple(dst)}")
        self.src_shape, self.dst_shape = src, dst


class NarrowInvalidArgsError(Error, IndexError):
    """A narrowing leaves the tensor's bounds."""

    def __init__(self, shape: tuple[int, ...], dim: int, start: int, length: int) -> None:
        super().__init__(
            f"narrow: start {described(start)}, length {described(length)} leave dim {dim} of shape {tuple(shape)}; "
            f"takes 0 <= start and start + length <= {shape[dim]}"
        )
        self.shape, self.dim, self.start, self.length = shape, dim, start, length


class InvalidIndexError(Error, IndexError):
    """An index lies outside the dimension it indexes."""

    def __init__(self, op: str, index: int, size: int) -> None:
        takes = f"takes 0..{size - 1}" if size else "the dim is empty"
        super().__init__(f"{op}: index {described(index)} is out of range; {takes}")
        self.op, self.index, self.size = op, index, size


# --- tensors and variables --------------------------------------------------------------------


class CannotFindTensorError(Error, KeyError):
    """No tensor of that name; the message lists the nearest names there are, ``note`` what else there is.

    ``asked`` is the name it was asked for by, where a renamer made ``path`` of it.
    """

    def __init__(
        self, path: str, nearest: list[str] | None = None, note: str | None = None, asked: str | None = None
    ) -> None:
        name = shown(path) if asked is None else f"{shown(path)}, asked for as {shown(asked)}"
        hint = f"; nearest: {', '.join(map(shown, nearest))}" if nearest else ""
        super().__init__(f"cannot find tensor {name}{hint}{f'; {note}' if note else ''}")
        self.path, self.nearest, self.note, self.asked = path, nearest or [], note, asked


class CannotSetVarError(Error, RuntimeError):
    """A variable cannot take this value."""


class VariablesError(Error, ValueError):
    """Several of ``count`` variables cannot take the values they were given; none was changed.

    ``problems`` has the error of each.
    """

    def __init__(self, op: str, problems: list[Error], count: int) -> None:
        listed = first_few(problems, _LISTED, "; ")
        super().__init__(f"{op}: {len(problems)} of {count} do not fit, nothing is changed: {listed}")
        self.op, self.problems, self.count = op, problems, count


class BackwardNotSupportedError(Error, NotImplementedError):
    """An operation between the loss and a variable has no derivative."""

    def __init__(self, op: str, instead: str = "detach() its input or give it a backward") -> None:
        super().__init__(f"backward: {op} has no gradient; {instead}")
        self.op = op


class GradientNotFoundError(Error, KeyError):
    """The gradient store has no entry; ``grads.explain(var)`` says why."""


class GraphNodeNotFoundError(Error, KeyError):
    """A graph has no node of that id."""

    def __init__(self, node: int, count: int) -> None:
        super().__init__(f"graph: node {node} not found; this graph has {count} nodes, nodes() lists them")
        self.node = node


class NotEvaluatedError(Error, RuntimeError):
    """A value was asked for where there is only a recording, as while ``compile`` traces."""


class FeatureDisabledError(Error, RuntimeError):
    """A feature that is switched off was used."""

    def __init__(self, feature: str) -> None:
        super().__init__(_not_enabled(feature))
        self.feature = feature


class MethodNotFoundError(Error, AttributeError):
    """A method that comes with a feature that is switched off."""

    def __init__(self, owner: str, method: str, feature: str, instead: str) -> None:
        super().__init__(
            f"no method named `{method}` found for {owner}: {_not_enabled(feature)}; `{instead}` works without"
        )
        self.feature = feature


def _not_enabled(feature: str) -> str:
    return (
        f'feature `{feature}` not enabled; remove it from METAL_CANDLE_DISABLE or leave features.disabled("{feature}")'
    )
