"""Types of the derived methods. Written by ``python -m metal_candle.tensor.stub``: do not edit."""

from typing_extensions import Self

from ..dtype import DTypeLike
from ..shape import DimLike, DimsLike, ShapeLike
from .base import TensorBase

class TensorMethods(TensorBase):
    def abs(self) -> Self:
        """Absolute value; its gradient at 0 is +1, as candle's."""
    def add(self, rhs: TensorBase) -> Self:
        """Sum of two tensors."""
    def add_lora(self, x: TensorBase, a: TensorBase, b: TensorBase, scale: float) -> Self:
        """base + scale · (x · A) · B, base ``(…, out)``; the gradient keeps only x."""
    def affine(self, mul: float, add: float) -> Self:
        """x * mul + add, both numbers cast to the tensor's dtype first."""
    def argmax(self, dim: DimLike) -> Self:
        """Index of a dim's largest element."""
    def argmax_keepdim(self, dim: DimLike) -> Self:
        """Index of a dim's largest element."""
    def argmin(self, dim: DimLike) -> Self:
        """Index of a dim's smallest element."""
    def argmin_keepdim(self, dim: DimLike) -> Self:
        """Index of a dim's smallest element."""
    def broadcast_add(self, rhs: TensorBase) -> Self:
        """Sum of two tensors."""
    def broadcast_as(self, shape: ShapeLike) -> Self:
        """The tensor repeated, without a copy, to a larger shape."""
    def broadcast_div(self, rhs: TensorBase) -> Self:
        """Quotient of two tensors; integers truncate toward zero."""
    def broadcast_eq(self, rhs: TensorBase | float) -> Self:
        """1 where the elements are equal."""
    def broadcast_ge(self, rhs: TensorBase | float) -> Self:
        """1 where the left element is larger or equal."""
    def broadcast_gt(self, rhs: TensorBase | float) -> Self:
        """1 where the left element is larger."""
    def broadcast_le(self, rhs: TensorBase | float) -> Self:
        """1 where the left element is smaller or equal."""
    def broadcast_lt(self, rhs: TensorBase | float) -> Self:
        """1 where the left element is smaller."""
    def broadcast_matmul(self, rhs: TensorBase) -> Self:
        """Matrix product ``(…, m, k) · (…, k, n)`` to ``(…, m, n)``; leading dims broadcast."""
    def broadcast_maximum(self, rhs: TensorBase | float) -> Self:
        """Larger of two elements; a tie gives each side half of the gradient, as in candle."""
    def broadcast_minimum(self, rhs: TensorBase | float) -> Self:
        """Smaller of two elements; a tie gives each side half of the gradient, as in candle."""
    def broadcast_mul(self, rhs: TensorBase) -> Self:
        """Product of two tensors, element by element."""
    def broadcast_ne(self, rhs: TensorBase | float) -> Self:
        """1 where the elements differ; NaN differs from itself."""
    def broadcast_sub(self, rhs: TensorBase) -> Self:
        """Difference of two tensors."""
    def contiguous(self) -> Self:
        """The same values in row-major order, copied only if they are not so already."""
    def cos(self) -> Self:
        """Cosine, in radians."""
    def detach(self) -> Self:
        """The same values, cut off from the gradient."""
    def div(self, rhs: TensorBase) -> Self:
        """Quotient of two tensors; integers truncate toward zero."""
    def embedding(self, ids: TensorBase) -> Self:
        """Rows of a table ``(v, h)`` for ids of any shape: ``(…)`` to ``(…, h)``."""
    def eq(self, rhs: TensorBase | float) -> Self:
        """1 where the elements are equal."""
    def exp(self) -> Self:
        """e to the power of each element."""
    def expand(self, shape: ShapeLike) -> Self:
        """The tensor repeated, without a copy, to a larger shape."""
    def gather(self, indexes: TensorBase, dim: DimLike) -> Self:
        """For each place of ``indexes``, the element of the tensor whose dim ``dim`` it names."""
    def ge(self, rhs: TensorBase | float) -> Self:
        """1 where the left element is larger or equal."""
    def gt(self, rhs: TensorBase | float) -> Self:
        """1 where the left element is larger."""
    def index_select(self, indexes: TensorBase, dim: DimLike) -> Self:
        """The entries of a dim that a list of ids names, in their order."""
    def layer_norm(self, eps: float) -> Self:
        """(x - mean) / sqrt(variance + eps) over the last dim, then · weight and + bias where they are given."""
    def le(self, rhs: TensorBase | float) -> Self:
        """1 where the left element is smaller or equal."""
    def log(self) -> Self:
        """Natural logarithm; NaN for negative elements."""
    def log_softmax(self, dim: DimLike) -> Self:
        """x - log(sum(exp(x))) along a dim."""
    def log_sum_exp(self, dims: DimsLike) -> Self:
        """log(sum(exp(x))) over dims, shifted by the maximum; no dims give the tensor back."""
    def lora_forward_fused(self, a: TensorBase, b: TensorBase, scale: float) -> Self:
        """scale · (x · A) · B: ``(…, in)``, A ``(in, rank)``, B ``(rank, out)`` to ``(…, out)``."""
    def lora_fused(self, a: TensorBase, b: TensorBase, scale: float) -> Self:
        """scale · (x · A) · B: ``(…, in)``, A ``(in, rank)``, B ``(rank, out)`` to ``(…, out)``."""
    def lt(self, rhs: TensorBase | float) -> Self:
        """1 where the left element is smaller."""
    def max(self, dim: DimLike) -> Self:
        """Largest element of a dim."""
    def max_all(self) -> Self:
        """Largest element of a dim."""
    def max_keepdim(self, dim: DimLike) -> Self:
        """Largest element of a dim."""
    def maximum(self, rhs: TensorBase | float) -> Self:
        """Larger of two elements; a tie gives each side half of the gradient, as in candle."""
    def mean(self, dims: DimsLike) -> Self:
        """Mean over dims of a float tensor."""
    def mean_all(self) -> Self:
        """Mean over dims of a float tensor."""
    def mean_keepdim(self, dims: DimsLike) -> Self:
        """Mean over dims of a float tensor."""
    def min(self, dim: DimLike) -> Self:
        """Smallest element of a dim."""
    def min_all(self) -> Self:
        """Smallest element of a dim."""
    def min_keepdim(self, dim: DimLike) -> Self:
        """Smallest element of a dim."""
    def minimum(self, rhs: TensorBase | float) -> Self:
        """Smaller of two elements; a tie gives each side half of the gradient, as in candle."""
    def mul(self, rhs: TensorBase) -> Self:
        """Product of two tensors, element by element."""
    def mul_scalar(self, value: float) -> Self:
        """x * value, the number cast to the tensor's dtype first."""
    def narrow(self, dim: DimLike, start: int, len: int) -> Self:
        """``len`` elements of a dim from ``start`` on."""
    def ne(self, rhs: TensorBase | float) -> Self:
        """1 where the elements differ; NaN differs from itself."""
    def neg(self) -> Self:
        """-x; unsigned elements wrap."""
    def permute(self, dims: DimsLike) -> Self:
        """The dims in another order."""
    def powf(self, e: float) -> Self:
        """x to the power of a number."""
    def recip(self) -> Self:
        """1 / x."""
    def relu(self) -> Self:
        """max(x, 0); NaN stays NaN; its gradient at 0 is 1, as candle's."""
    def reshape(self, shape: ShapeLike) -> Self:
        """The elements in another shape; one size may be the hole ``-1``."""
    def rms_norm(self, eps: float) -> Self:
        """x / sqrt(mean(x²) + eps) over the last dim, without a weight."""
    def rms_norm_fused(self, eps: float) -> Self:
        """x / sqrt(mean(x²) + eps) over the last dim, without a weight."""
    def sigmoid(self) -> Self:
        """1 / (1 + exp(-x))."""
    def silu(self) -> Self:
        """x * sigmoid(x)."""
    def sin(self) -> Self:
        """Sine, in radians."""
    def softmax(self, dim: DimLike) -> Self:
        """exp(x) / sum(exp(x)) along a dim, shifted by its maximum; sums in float32."""
    def sqr(self) -> Self:
        """x * x."""
    def sqrt(self) -> Self:
        """Square root; NaN for negative elements."""
    def squeeze(self, dim: DimLike) -> Self:
        """A dim of size 1 removed; a dim of another size is left as it is."""
    def sub(self, rhs: TensorBase) -> Self:
        """Difference of two tensors."""
    def sum(self, dims: DimsLike) -> Self:
        """Sum over dims; the dtype is kept, halves are accumulated in float32."""
    def sum_all(self) -> Self:
        """Sum over dims; the dtype is kept, halves are accumulated in float32."""
    def sum_keepdim(self, dims: DimsLike) -> Self:
        """Sum over dims; the dtype is kept, halves are accumulated in float32."""
    def tanh(self) -> Self:
        """Hyperbolic tangent."""
    def to_dtype(self, dtype: DTypeLike) -> Self:
        """The values in another dtype: float to integer truncates, saturates, and turns NaN into 0."""
    def transpose(self, dim1: DimLike, dim2: DimLike) -> Self:
        """Two dims swapped."""
    def unsqueeze(self, dim: DimLike) -> Self:
        """A dim of size 1 inserted; ``-1`` makes it the last."""
    def where_cond(self, on_true: TensorBase, on_false: TensorBase) -> Self:
        """``on_true`` where the integer condition is not 0, else ``on_false``; three equal shapes."""
    def __add__(self, other: TensorBase | float, /) -> Self: ...
    def __eq__(self, other: TensorBase | float, /) -> Self: ...  # type: ignore[override]
    def __ge__(self, other: TensorBase | float, /) -> Self: ...
    def __gt__(self, other: TensorBase | float, /) -> Self: ...
    def __le__(self, other: TensorBase | float, /) -> Self: ...
    def __lt__(self, other: TensorBase | float, /) -> Self: ...
    def __mul__(self, other: TensorBase | float, /) -> Self: ...
    def __ne__(self, other: TensorBase | float, /) -> Self: ...  # type: ignore[override]
    def __radd__(self, other: TensorBase | float, /) -> Self: ...
    def __rmul__(self, other: TensorBase | float, /) -> Self: ...
    def __rsub__(self, other: TensorBase | float, /) -> Self: ...
    def __rtruediv__(self, other: TensorBase | float, /) -> Self: ...
    def __sub__(self, other: TensorBase | float, /) -> Self: ...
    def __truediv__(self, other: TensorBase | float, /) -> Self: ...
    def __hash__(self) -> int: ...
