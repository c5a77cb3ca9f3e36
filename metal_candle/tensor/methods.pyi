"""Types of the derived methods. Written by ``python -m metal_candle.tensor.stub``: do not edit."""

from collections.abc import Sequence

from typing_extensions import Self

from ..dtype import DTypeLike
from ..shape import DimLike, DimsLike, ShapeLike
from .base import TensorBase
from .python import PythonProtocols

class TensorMethods(PythonProtocols):
    def abs(self) -> Self:
        """Absolute value; its gradient at 0 is +1, as candle's."""
    def add(self, rhs: TensorBase) -> Self:
        """Sum of two tensors."""
    def add_lora(self, x: TensorBase, a: TensorBase, b: TensorBase, scale: float) -> Self:
        """base + scale · (x · A) · B, base ``(…, out)``; the gradient keeps only x."""
    def affine(self, mul: float, add: float) -> Self:
        """x * mul + add, both numbers cast to the tensor's dtype first, as candle does."""
    def arg_sort_last_dim(self, asc: bool) -> Self:
        """The ids, U32, that sort the last dim: ascending if ``asc``, else descending."""
    def argmax(self, dim: DimLike) -> Self:
        """Index of a dim's largest element, U32: the first of equals, the first NaN if there is one."""
    def argmax_keepdim(self, dim: DimLike) -> Self:
        """Index of a dim's largest element, U32: the first of equals, the first NaN if there is one."""
    def argmin(self, dim: DimLike) -> Self:
        """Index of a dim's smallest element, U32: the first of equals, the first NaN if there is one."""
    def argmin_keepdim(self, dim: DimLike) -> Self:
        """Index of a dim's smallest element, U32: the first of equals, the first NaN if there is one."""
    def avg_pool2d(self, sz: ShapeLike) -> Self:
        """The mean of each window of ``(b, c, h, w)``: ``(b, c, ⌊(h - kh) / sh⌋ + 1, ⌊(w - kw) / sw⌋ + 1)``."""
    def avg_pool2d_with_stride(self, kernel_size: ShapeLike, stride: ShapeLike) -> Self:
        """The mean of each window of ``(b, c, h, w)``: ``(b, c, ⌊(h - kh) / sh⌋ + 1, ⌊(w - kw) / sw⌋ + 1)``."""
    def broadcast_add(self, rhs: TensorBase) -> Self:
        """Sum of two tensors."""
    def broadcast_as(self, shape: ShapeLike) -> Self:
        """The tensor repeated, without a copy, to a larger shape; sizes are aligned at the last dim."""
    def broadcast_div(self, rhs: TensorBase) -> Self:
        """Quotient of two tensors; integers truncate toward zero, and give 0 where the divisor is 0 (candle panics)."""
    def broadcast_eq(self, rhs: TensorBase) -> Self:
        """1 where the elements are equal."""
    def broadcast_ge(self, rhs: TensorBase) -> Self:
        """1 where the left element is larger or equal."""
    def broadcast_gt(self, rhs: TensorBase) -> Self:
        """1 where the left element is larger."""
    def broadcast_le(self, rhs: TensorBase) -> Self:
        """1 where the left element is smaller or equal."""
    def broadcast_lt(self, rhs: TensorBase) -> Self:
        """1 where the left element is smaller."""
    def broadcast_matmul(self, rhs: TensorBase) -> Self:
        """Matrix product ``(…, m, k) · (…, k, n)`` to ``(…, m, n)`` of float tensors; leading dims broadcast."""
    def broadcast_maximum(self, rhs: TensorBase) -> Self:
        """Larger of two elements, NaN if either is; a tie gives each side half of the gradient, as in candle."""
    def broadcast_minimum(self, rhs: TensorBase) -> Self:
        """Smaller of two elements, NaN if either is; a tie gives each side half of the gradient, as in candle."""
    def broadcast_mul(self, rhs: TensorBase) -> Self:
        """Product of two tensors, element by element."""
    def broadcast_ne(self, rhs: TensorBase) -> Self:
        """1 where the elements differ; NaN differs from itself."""
    def broadcast_pow(self, rhs: TensorBase) -> Self:
        """The left element to the power of the right one; integers raise ``UnsupportedDTypeForOpError``."""
    def broadcast_sub(self, rhs: TensorBase) -> Self:
        """Difference of two tensors."""
    def ceil(self) -> Self:
        """The smallest integer that is not below each element."""
    def contiguous(self) -> Self:
        """The same values in row-major order, copied only if they are not so already."""
    def conv1d(self, kernel: TensorBase, padding: int, stride: int, dilation: int, groups: int) -> Self:
        """Cross-correlation of ``(b, c_in, l)`` with a kernel ``(c_out, c_in / groups, k)``: ``(b, c_out, l')``."""
    def conv1d_with_algo(self, kernel: TensorBase, padding: int, stride: int, dilation: int, groups: int, cudnn_fwd_algo: object = ...) -> Self:
        """Cross-correlation of ``(b, c_in, l)`` with a kernel ``(c_out, c_in / groups, k)``: ``(b, c_out, l')``."""
    def conv2d(self, kernel: TensorBase, padding: int, stride: int, dilation: int, groups: int) -> Self:
        """Cross-correlation of ``(b, c_in, h, w)`` with a kernel ``(c_out, c_in / groups, kh, kw)``."""
    def conv2d_with_algo(self, kernel: TensorBase, padding: int, stride: int, dilation: int, groups: int, cudnn_fwd_algo: object = ...) -> Self:
        """Cross-correlation of ``(b, c_in, h, w)`` with a kernel ``(c_out, c_in / groups, kh, kw)``."""
    def conv_transpose1d(self, kernel: TensorBase, padding: int, output_padding: int, stride: int, dilation: int, groups: int) -> Self:
        """Transposed convolution of ``(b, c_in, l)`` with a kernel ``(c_in, c_out / groups, k)``: ``(b, c_out, l')``."""
    def conv_transpose2d(self, kernel: TensorBase, padding: int, output_padding: int, stride: int, dilation: int) -> Self:
        """Transposed convolution of ``(b, c_in, h, w)`` with a kernel ``(c_in, c_out, kh, kw)``: ``(b, c_out, h', w')``."""
    def copy(self) -> Self:
        """The same values, row-major, in storage of their own; gradients pass."""
    def cos(self) -> Self:
        """Cosine, in radians."""
    def cumsum(self, dim: DimLike) -> Self:
        """Sum of each element and those before it along a dim; halves are accumulated in float32."""
    def detach(self) -> Self:
        """The same values, cut off from the gradient."""
    def div(self, rhs: TensorBase) -> Self:
        """Quotient of two tensors; integers truncate toward zero, and give 0 where the divisor is 0 (candle panics)."""
    def elu(self, alpha: float) -> Self:
        """x where it is positive, else alpha · (exp(x) - 1); its gradient at 0 is alpha, as candle's."""
    def embedding(self, ids: TensorBase) -> Self:
        """Rows of a table ``(v, h)`` for ids of any shape: ``(…)`` to ``(…, h)``."""
    def eq(self, rhs: TensorBase | float) -> Self:
        """1 where the elements are equal."""
    def erf(self) -> Self:
        """Error function, 2/√π · ∫ exp(-t²) dt from 0 to x."""
    def exp(self) -> Self:
        """e to the power of each element."""
    def expand(self, shape: ShapeLike) -> Self:
        """The tensor repeated, without a copy, to a larger shape; sizes are aligned at the last dim."""
    def flip(self, dims: DimsLike) -> Self:
        """The dims' elements in reverse order. Raises ``DimOutOfRangeError``, ``DuplicateDimIndexError``."""
    def floor(self) -> Self:
        """The largest integer that is not above each element."""
    def force_contiguous(self) -> Self:
        """The same values, row-major, in storage of their own; gradients pass."""
    def gather(self, indexes: TensorBase, dim: DimLike) -> Self:
        """For each place of ``indexes``, the element of the tensor whose dim ``dim`` it names."""
    def ge(self, rhs: TensorBase | float) -> Self:
        """1 where the left element is larger or equal."""
    def gelu(self) -> Self:
        """x · Φ(x), Φ the normal distribution, in the tanh form: 0.5x(1 + tanh(√(2/π)(x + 0.044715x³)))."""
    def gelu_erf(self) -> Self:
        """x · Φ(x), Φ the normal distribution: 0.5x(1 + erf(x/√2)). https://arxiv.org/abs/1606.08415."""
    def grouped_lora(self, x: TensorBase, ids: TensorBase, a: TensorBase, b: TensorBase, ranks: Sequence[int], scales: Sequence[float]) -> Self:
        """base + scale · (x · Aᵀ) · B for each row, with the factors and the scale of the adapter that its id names."""
    def gt(self, rhs: TensorBase | float) -> Self:
        """1 where the left element is larger."""
    def index_add(self, indexes: TensorBase, source: TensorBase, dim: DimLike) -> Self:
        """The tensor with each entry of the source's dim added to the entry of its own that a 1-D id names."""
    def index_select(self, indexes: TensorBase, dim: DimLike) -> Self:
        """The entries of a dim that a list of ids names, in their order."""
    def interpolate1d(self, target_size: int) -> Self:
        """``(b, c, l)`` to ``(b, c, target_size)``: element ``min(l - 1, ⌊i·l / target_size⌋)`` at place i."""
    def interpolate2d(self, target_h: int, target_w: int) -> Self:
        """``(b, c, h, w)`` to ``(b, c, target_h, target_w)``: element ``⌊i·n / target⌋`` at place i of a dim."""
    def layer_norm(self, eps: float) -> Self:
        """(x - mean) / sqrt(variance + eps) over the last dim, then · weight and + bias where they are given."""
    def le(self, rhs: TensorBase | float) -> Self:
        """1 where the left element is smaller or equal."""
    def log(self) -> Self:
        """Natural logarithm; NaN for negative elements, -inf for 0."""
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
        """Largest element of one dim, NaN if there is one (candle skips NaN unless it is first); the dtype is kept."""
    def max_all(self) -> Self:
        """Largest element of one dim, NaN if there is one (candle skips NaN unless it is first); the dtype is kept."""
    def max_keepdim(self, dim: DimLike) -> Self:
        """Largest element of one dim, NaN if there is one (candle skips NaN unless it is first); the dtype is kept."""
    def max_pool2d(self, sz: ShapeLike) -> Self:
        """The largest element of each window of ``(b, c, h, w)``: ``(b, c, ⌊(h - kh) / sh⌋ + 1, ⌊(w - kw) / sw⌋ + 1)``."""
    def max_pool2d_with_stride(self, kernel_size: ShapeLike, stride: ShapeLike) -> Self:
        """The largest element of each window of ``(b, c, h, w)``: ``(b, c, ⌊(h - kh) / sh⌋ + 1, ⌊(w - kw) / sw⌋ + 1)``."""
    def maximum(self, rhs: TensorBase | float) -> Self:
        """Larger of two elements, NaN if either is; a tie gives each side half of the gradient, as in candle."""
    def mean(self, dims: DimsLike) -> Self:
        """Mean over dims of a float tensor, NaN of no elements, of no dims the tensor itself."""
    def mean_all(self) -> Self:
        """Mean over dims of a float tensor, NaN of no elements, of no dims the tensor itself."""
    def mean_keepdim(self, dims: DimsLike) -> Self:
        """Mean over dims of a float tensor, NaN of no elements, of no dims the tensor itself."""
    def min(self, dim: DimLike) -> Self:
        """Smallest element of one dim, NaN if there is one (candle skips NaN unless it is first); the dtype is kept."""
    def min_all(self) -> Self:
        """Smallest element of one dim, NaN if there is one (candle skips NaN unless it is first); the dtype is kept."""
    def min_keepdim(self, dim: DimLike) -> Self:
        """Smallest element of one dim, NaN if there is one (candle skips NaN unless it is first); the dtype is kept."""
    def minimum(self, rhs: TensorBase | float) -> Self:
        """Smaller of two elements, NaN if either is; a tie gives each side half of the gradient, as in candle."""
    def mul(self, rhs: TensorBase) -> Self:
        """Product of two tensors, element by element."""
    def mul_scalar(self, value: float) -> Self:
        """x * value, the number cast to the tensor's dtype first."""
    def narrow(self, dim: DimLike, start: int, len: int) -> Self:
        """``len`` elements of a dim from ``start`` on. Raises ``NarrowInvalidArgsError``: nothing is clamped."""
    def ne(self, rhs: TensorBase | float) -> Self:
        """1 where the elements differ; NaN differs from itself."""
    def neg(self) -> Self:
        """-x; unsigned elements wrap (candle panics on integers)."""
    def norm(self) -> Self:
        """Square root of the sum of all squares, rank 0; its gradient at 0 is NaN, as candle's."""
    def pad_with_same(self, dim: DimLike, left: int, right: int) -> Self:
        """A dim's first element ``left`` times more before it, its last ``right`` times more behind it."""
    def pad_with_zeros(self, dim: DimLike, left: int, right: int) -> Self:
        """``left`` zeros before a dim's first element and ``right`` behind its last."""
    def permute(self, dims: DimsLike) -> Self:
        """The dims in another order."""
    def pow(self, rhs: TensorBase) -> Self:
        """The left element to the power of the right one; integers raise ``UnsupportedDTypeForOpError``."""
    def powf(self, e: float) -> Self:
        """x to the power of a number; integers raise ``UnsupportedDTypeForOpError``."""
    def recip(self) -> Self:
        """1 / x."""
    def relu(self) -> Self:
        """max(x, 0); NaN stays NaN (candle gives 0); its gradient at 0 is 1, as candle's."""
    def repeat(self, repeats: ShapeLike) -> Self:
        """The tensor several times in a row along each dim."""
    def reshape(self, shape: ShapeLike) -> Self:
        """The elements in another shape; one size may be the hole ``-1`` (candle's ``()``)."""
    def rms_norm(self, eps: float) -> Self:
        """x / sqrt(mean(x²) + eps) over the last dim, without a weight."""
    def rms_norm_fused(self, eps: float) -> Self:
        """x / sqrt(mean(x²) + eps) over the last dim, without a weight."""
    def roll(self, shift: int, dim: DimLike) -> Self:
        """A dim's elements moved on by ``shift``; what leaves at one end enters at the other."""
    def round(self) -> Self:
        """The nearest integer, halves away from zero: 0.5 gives 1 and -2.5 gives -3."""
    def round_to(self, decimals: int) -> Self:
        """Rounded to that many decimals, halves away from zero; negative ones round to tens, hundreds …"""
    def scatter(self, indexes: TensorBase, source: TensorBase, dim: DimLike) -> Self:
        """The tensor with the source's elements written where ``indexes`` says along ``dim``."""
    def scatter_add(self, indexes: TensorBase, source: TensorBase, dim: DimLike) -> Self:
        """The tensor with the source's elements added where ``indexes`` says along ``dim``."""
    def sigmoid(self) -> Self:
        """1 / (1 + exp(-x))."""
    def sign(self) -> Self:
        """-1, 0 or 1; 0 for NaN and for both zeros."""
    def silu(self) -> Self:
        """x * sigmoid(x)."""
    def sin(self) -> Self:
        """Sine, in radians."""
    def slice_scatter(self, src: TensorBase, dim: DimLike, start: int) -> Self:
        """The tensor with a block of it, from ``starts`` on, replaced by another tensor of its rank."""
    def slice_scatter0(self, src: TensorBase, start: int) -> Self:
        """The tensor with a block of it, from ``starts`` on, replaced by another tensor of its rank."""
    def softmax(self, dim: DimLike) -> Self:
        """exp(x) / sum(exp(x)) along a dim, shifted by its maximum; sums in float32."""
    def sqr(self) -> Self:
        """x * x; integers wrap (candle panics on them)."""
    def sqrt(self) -> Self:
        """Square root; NaN for negative elements."""
    def squeeze(self, dim: DimLike) -> Self:
        """A dim of size 1 removed; a dim of another size is left as it is."""
    def sub(self, rhs: TensorBase) -> Self:
        """Difference of two tensors."""
    def sum(self, dims: DimsLike) -> Self:
        """Sum over dims, of no dims the tensor itself; the dtype is kept."""
    def sum_all(self) -> Self:
        """Sum over dims, of no dims the tensor itself; the dtype is kept."""
    def sum_keepdim(self, dims: DimsLike) -> Self:
        """Sum over dims, of no dims the tensor itself; the dtype is kept."""
    def tanh(self) -> Self:
        """Hyperbolic tangent."""
    def to_dtype(self, dtype: DTypeLike) -> Self:
        """The values in another dtype: float to integer truncates, saturates, and turns NaN into 0."""
    def transpose(self, dim1: DimLike, dim2: DimLike) -> Self:
        """Two dims swapped."""
    def unfold(self, dim: DimLike, size: int, step: int) -> Self:
        """Windows of ``size`` elements of a dim, one every ``step``: the dim counts them, a new last dim holds them."""
    def unsqueeze(self, dim: DimLike) -> Self:
        """A dim of size 1 inserted; ``-1`` makes it the last."""
    def upsample_bilinear2d(self, target_h: int, target_w: int, align_corners: bool) -> Self:
        """``(b, c, h, w)`` to ``(b, c, target_h, target_w)`` by the weighted mean of the four nearest elements."""
    def upsample_bilinear2d_with_scale(self, scale_h: float, scale_w: float, align_corners: bool) -> Self:
        """``(b, c, h, w)`` to ``(b, c, target_h, target_w)`` by the weighted mean of the four nearest elements."""
    def upsample_nearest1d(self, target_size: int) -> Self:
        """``(b, c, l)`` to ``(b, c, target_size)``: element ``min(l - 1, ⌊i·l / target_size⌋)`` at place i."""
    def upsample_nearest2d(self, target_h: int, target_w: int) -> Self:
        """``(b, c, h, w)`` to ``(b, c, target_h, target_w)``: element ``⌊i·n / target⌋`` at place i of a dim."""
    def var(self, dim: DimLike) -> Self:
        """Unbiased variance over one dim, sum((x - mean)²) / (n - 1); NaN for n = 1. Halves are computed in float32."""
    def var_keepdim(self, dim: DimLike) -> Self:
        """Unbiased variance over one dim, sum((x - mean)²) / (n - 1); NaN for n = 1. Halves are computed in float32."""
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
    def __pow__(self, other: TensorBase | float, /) -> Self: ...
    def __radd__(self, other: TensorBase | float, /) -> Self: ...
    def __rmul__(self, other: TensorBase | float, /) -> Self: ...
    def __rpow__(self, other: TensorBase | float, /) -> Self: ...
    def __rsub__(self, other: TensorBase | float, /) -> Self: ...
    def __rtruediv__(self, other: TensorBase | float, /) -> Self: ...
    def __sub__(self, other: TensorBase | float, /) -> Self: ...
    def __truediv__(self, other: TensorBase | float, /) -> Self: ...
    def __hash__(self) -> int: ...
