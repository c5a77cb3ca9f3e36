"""The product with a quantised weight. candle: ``candle_core::quantized::QMatMul``."""

from __future__ import annotations

from typing import TypeAlias, TypeVar

from ..dtype import DType, DTypeLike
from ..error import Error, ShapeMismatchBinaryOpError
from ..graph.node import record
from ..graph.operations.linalg import Linear
from ..graph.operations.quantized import QuantizedLinear
from ..shape import expect_rank
from ..tensor import Tensor
from ..tensor.base import TensorBase
from .qtensor import QTensor, expect_tensor

T = TypeVar("T", bound=TensorBase)
# The variants have the names of what they hold, which inside the class are theirs.
_Quantized: TypeAlias = QTensor
_Dense: TypeAlias = Tensor


class QMatMul:
    """``xs · Wᵀ`` with a weight ``(out, in)``: quantised, or a tensor, or an F16 tensor.

    The variants are ``QMatMul.QTensor(q)``, ``QMatMul.Tensor(w)`` and ``QMatMul.TensorF16(w)``; ``variant`` says which.
    """

    def __init__(self, weight: _Quantized | _Dense, variant: str) -> None:
        if variant == "QTensor":
            _expect_quantized("QMatMul.QTensor", weight)
        else:
            expect_tensor(f"QMatMul.{variant}", weight)
        expect_rank(weight.shape() if isinstance(weight, _Quantized) else weight.shape, 2, "QMatMul")
        self._weight, self._variant = weight, variant

    @staticmethod
    def QTensor(q: _Quantized) -> QMatMul:
        """With a weight that stays quantised, whatever its type."""
        return QMatMul(q, "QTensor")

    @staticmethod
    def Tensor(w: _Dense) -> QMatMul:
        """With an ordinary weight; it has a gradient if it is a ``Var``."""
        return QMatMul(w, "Tensor")

    @staticmethod
    def TensorF16(w: _Dense) -> QMatMul:
        """With an F16 weight, to which xs are converted."""
        expect_tensor("QMatMul.TensorF16", w)
        return QMatMul(w.to_dtype(DType.F16), "TensorF16")

    @staticmethod
    def from_qtensor(q: _Quantized, dequantize: DTypeLike | None = None) -> QMatMul:
        """The variant for a tensor's type: ``Tensor`` for F32, F16 and BF16, else ``QTensor``.

        ``dequantize`` F32 or F16 asks for ``Tensor`` or ``TensorF16`` whatever the type; in candle the environment
        does, by CANDLE_DEQUANTIZE_ALL and CANDLE_DEQUANTIZE_ALL_F16. Raises ``Error`` for another dtype, and
        ``UnexpectedNumberOfDimsError`` unless the weight has two dims. candle: ``QMatMul::from_qtensor``.
        """
        _expect_quantized("QMatMul.from_qtensor", q)
        wanted = None if dequantize is None else DType.of(dequantize)
        if wanted not in (None, DType.F32, DType.F16):
            raise Error(f"QMatMul: got dequantize={wanted}; takes f32, f16 or None")
        if q.dtype().is_float() or wanted is DType.F32:
            return QMatMul.Tensor(q.dequantize())
        return QMatMul.QTensor(q) if wanted is None else QMatMul.TensorF16(q.dequantize_f16())

    from_arc = from_qtensor

    @property
    def variant(self) -> str:
        """ "QTensor", "Tensor" or "TensorF16"."""
        return self._variant

    def forward(self, xs: T) -> T:
        """``xs · Wᵀ``: ``(…, m, in)`` to ``(…, m, out)``, in xs's dtype.

        A quantised weight of 4, 5 or 8 bits is multiplied as it is, exactly as if it were dequantised to F32; of a
        K-quant an F32 copy is kept. Unlike candle's, which rounds xs to blocks first, the product is one of float32
        (of float64 for F64), takes BF16 and F64 too, and xs have a gradient. Raises
        ``ShapeMismatchBinaryOpError`` where shapes do not fit, and kinds of ``TypeError`` for other dtypes: the
        variant ``Tensor`` takes xs of its weight's dtype. candle: ``QMatMul::forward``.
        """
        expect_tensor("QMatMul.forward", xs)
        weight = self._weight
        if isinstance(weight, _Quantized):
            nodes, bits = weight.packed()
            return xs._wrap(record(QuantizedLinear(bits), (xs._node, *nodes)))
        return _linear(xs, weight) if self._variant == "Tensor" else _through_f16(xs, weight)

    def forward_via_f16(self, xs: T) -> T:
        """``forward`` with both factors rounded to F16; the result has xs's dtype. candle: ``forward_via_f16``."""
        expect_tensor("QMatMul.forward_via_f16", xs)
        return _through_f16(xs, self.dequantize_f16())

    def dequantize_f16(self) -> _Dense:
        """The weight as an F16 tensor. candle: ``QMatMul::dequantize_f16``."""
        weight = self._weight
        return weight.dequantize_f16() if isinstance(weight, _Quantized) else weight.to_dtype(DType.F16)

    def embedding(self, ids: T) -> T:
        """The weight's rows that ids of any shape name: ``(…)`` to ``(…, in)``; F32 of a quantised weight.

        Raises as ``QTensor.embedding``, or as ``Tensor.embedding`` of the other variants. candle:
        ``QMatMul::embedding``.
        """
        expect_tensor("QMatMul.embedding", ids)
        weight = self._weight
        if isinstance(weight, _Quantized):
            return weight.embedding(ids)
        rows: T = ids._lift(weight).embedding(ids)  # type: ignore[attr-defined]
        return rows

    __call__ = forward

    def __repr__(self) -> str:
        return f"QMatMul.{self._variant}({self._weight!r})"


def _expect_quantized(op: str, given: object) -> None:
    if not isinstance(given, _Quantized):
        raise Error(f"{op}: got {type(given).__name__}; takes a QTensor: QTensor.quantize makes one")


def _linear(xs: T, weight: _Dense) -> T:
    if xs.rank < 2:  # as candle's matmul; Linear takes a vector
        raise ShapeMismatchBinaryOpError("qmatmul", xs.shape, weight.shape, "(…, m, in) and a weight (out, in)")
    return xs._wrap(record(Linear(), (xs._node, weight._node)))


def _through_f16(xs: T, weight: _Dense) -> T:
    half: T = xs.to_dtype(DType.F16)  # type: ignore[attr-defined]
    product: T = _linear(half, weight).to_dtype(xs.dtype)  # type: ignore[attr-defined]
    return product
