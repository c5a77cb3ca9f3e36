"""Frozen layers whose weights stay quantised, as MLX's ``nn.QuantizedLinear`` and ``nn.QuantizedEmbedding``.

QLoRA trains an adapter on top of them: Dettmers et al. 2023, https://arxiv.org/abs/2305.14314.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from ..device import Device
from ..dtype import DType, DTypeLike
from ..error import ArgumentValueError, ShapeMismatchError
from ..error.expect import a, expect
from ..graph.evaluate import on_device
from ..graph.operations.binary import Add
from ..graph.operations.quantized import QuantizedEmbedding as QuantizedEmbeddingOperation
from ..graph.operations.quantized import QuantizedHeadCrossEntropy
from ..graph.operations.quantized import QuantizedLinear as QuantizedLinearOperation
from ..kernels.quantized_linear import AFFINE, unpack
from ..shape import Shape
from ..tensor.arguments import expect_tensor
from ..tensor.base import TensorBase
from ..tensor.eager import Tensor
from .module import Module, T

AFFINE_BITS = (2, 3, 4, 5, 6, 8)
"""The bits per number that ``mode`` "affine" takes."""
AFFINE_GROUPS = (32, 64, 128)
"""The numbers that may share a scale in ``mode`` "affine"."""
MODES = {"mxfp4": (4, 32), "mxfp8": (8, 32), "nvfp4": (4, 16)}
"""MLX's other modes, each with its bits and group."""


def check_packing(op: str, bits: object, group_size: object, mode: object = AFFINE) -> None:
    """Raise ``ArgumentValueError`` unless MLX has a quantisation of this mode with these bits and groups."""
    if mode == AFFINE:
        if type(bits) is not int or bits not in AFFINE_BITS:
            raise ArgumentValueError(f"{op}: got bits {bits!r}; takes {_listed(AFFINE_BITS)}")
        if type(group_size) is not int or group_size not in AFFINE_GROUPS:
            raise ArgumentValueError(f"{op}: got group_size {group_size!r}; takes {_listed(AFFINE_GROUPS)}")
    elif not isinstance(mode, str) or mode not in MODES:
        raise ArgumentValueError(f"{op}: got mode {mode!r}; takes {_listed((AFFINE, *MODES))}")
    elif (bits, group_size) != MODES[mode]:
        own_bits, own_group = MODES[mode]
        got = f"got bits {bits!r} and group_size {group_size!r} in mode {mode!r}"
        raise ArgumentValueError(f"{op}: {got}; takes {own_bits} and {own_group}")


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """A weight ``(out, in)`` in MLX's quantisation, of which no unpacked copy is kept.

    ``codes`` is U32 ``(out, in · bits / 32)``; ``scales`` and ``biases`` are floats ``(out, in / group_size)``: a
    number is ``scale · code + bias``. In another ``mode`` than "affine" (see ``MODES``) scales are U8 and there are
    no biases.
    Raises ``ArgumentValueError`` for a packing that MLX lacks and ``ShapeMismatchError`` for arrays that do not fit.
    """

    codes: Tensor
    scales: Tensor
    biases: Tensor | None
    bits: int
    group_size: int
    mode: str = AFFINE

    def __post_init__(self) -> None:
        check_packing("QuantizedWeight", self.bits, self.group_size, self.mode)
        for name, tensor in self.tensors("weight").items():
            expect_tensor("QuantizedWeight", tensor, name)
        if (self.biases is None) == (self.mode == AFFINE):
            raise ShapeMismatchError(
                f"QuantizedWeight: got {'no biases' if self.biases is None else 'biases'} in mode {self.mode!r}; "
                "takes them in mode 'affine', and only there"
            )
        fits = len(self.codes.shape) == len(self.scales.shape) == 2 and self.codes.dtype is DType.U32
        fits = fits and self.codes.shape[0] == self.scales.shape[0]
        fits = fits and self.codes.shape[1] * 32 == self.scales.shape[1] * self.group_size * self.bits
        if not fits or (self.biases is not None and self.biases.shape != self.scales.shape):
            named = zip(("codes", "scales", "biases"), self.parts())
            shapes = ", ".join(f"{name} {tuple(part.shape)} {part.dtype}" for name, part in named)
            raise ShapeMismatchError(
                f"QuantizedWeight: got {shapes} for {self.bits} bits in groups of {self.group_size}; takes codes u32 "
                "(out, in · bits / 32), scales and biases (out, in / group_size)"
            )

    @staticmethod
    def quantize(weight: Tensor, bits: int = 4, group_size: int = 64, mode: str = AFFINE) -> QuantizedWeight:
        """A float weight ``(out, in)``, quantised by MLX. Its scales and biases have the weight's dtype.

        Raises ``ArgumentValueError`` for a packing that MLX lacks, and ``ShapeMismatchError`` where ``group_size``
        does not divide ``in``.
        """
        check_packing("quantize", bits, group_size, mode)
        expect_tensor("quantize", weight, "weight")
        if weight.rank != 2 or not weight.elem_count() or weight.shape[1] % group_size:
            raise ShapeMismatchError(
                f"quantize: got a weight of shape {tuple(weight.shape)}; takes (out, in) with an in that the group "
                f"size {group_size} divides"
            )
        with on_device(weight.device):
            parts = mx.quantize(weight.mlx(), group_size=group_size, bits=bits, mode=mode)
            mx.eval(parts)
        codes, scales, *biases = (Tensor.from_mlx(part, weight.device) for part in parts)
        return QuantizedWeight(codes, scales, biases[0] if biases else None, bits, group_size, mode)

    def requantize(self, weight: Tensor) -> QuantizedWeight:
        """Another float weight ``(out, in)``, in F32, quantised as this one is. Its scales and biases are F32.

        MLX chooses new scales, also where the weight is this one's: it then moves by up to half of one.

        Raises ``ShapeMismatchError`` for one of another shape.
        """
        expect_tensor("requantize", weight, "weight")
        if weight.shape != self.shape:
            got = f"got a weight of shape {tuple(weight.shape)}"
            raise ShapeMismatchError(f"requantize: {got}; takes {tuple(self.shape)}")
        return QuantizedWeight.quantize(weight.to_dtype(DType.F32), self.bits, self.group_size, self.mode)

    @property
    def shape(self) -> Shape:
        """``(out, in)``."""
        return Shape((self.codes.shape[0], self.codes.shape[1] * 32 // self.bits))

    @property
    def device(self) -> Device:
        """Where it is."""
        return self.codes.device

    def dequantize(self) -> Tensor:
        """The numbers ``(out, in)`` in F32, exactly what the codes stand for."""
        with on_device(self.device):
            return Tensor.from_mlx(unpack([part.mlx() for part in self.parts()], *self.packing()), self.device)

    def parts(self) -> list[Tensor]:
        """Codes, scales and, if there are any, biases."""
        return [self.codes, self.scales, *([] if self.biases is None else [self.biases])]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The parts under the names that MLX gives them, for ``name`` "model.norm.weight": "model.norm.scales" …"""
        path = name.removesuffix("weight")
        return dict(zip((name, f"{path}scales", f"{path}biases"), self.parts()))

    def packing(self) -> tuple[int, int, str]:
        """Bits, group size, mode."""
        return self.bits, self.group_size, self.mode

    def nbytes(self) -> int:
        """Bytes of its parts."""
        return sum(part.elem_count() * part.dtype.size_in_bytes() for part in self.parts())

    def to_dtype(self, dtype: DTypeLike) -> QuantizedWeight:
        """With scales and biases in another float dtype; in other modes than "affine" itself."""
        if self.biases is None:
            return self
        return QuantizedWeight(self.codes, self.scales.to_dtype(dtype), self.biases.to_dtype(dtype), *self.packing())

    def __repr__(self) -> str:
        return f"QuantizedWeight({self.described()})"

    def described(self) -> str:
        """Its shape and packing in words: "[576, 576] in 4 bits, groups of 32"."""
        mode = "" if self.mode == AFFINE else f" of {self.mode}"
        return f"{list(self.shape)} in {self.bits} bits{mode}, groups of {self.group_size}"


class QuantizedLinear(Module):
    """``x · weightᵀ + bias`` with a frozen quantised weight: ``(…, in)`` to ``(…, out)`` in x's dtype.

    Multiplied in F32, exactly as if the weight were dequantised; x has a gradient, the weight has none.
    """

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None = None) -> None:
        expect("QuantizedLinear", weight, a(QuantizedWeight))
        if bias is not None:
            expect_tensor("QuantizedLinear", bias, "bias")
            if tuple(bias.shape) != (weight.shape[0],):
                got = f"got a bias of shape {tuple(bias.shape)}"
                raise ShapeMismatchError(f"QuantizedLinear: {got}; takes ({weight.shape[0]},)")
        self._weight, self._bias = weight, bias

    def quantized_weight(self) -> QuantizedWeight:
        """The weight."""
        return self._weight

    def bias(self) -> Tensor | None:
        """The bias, ``(out,)``, if there is one."""
        return self._bias

    @property
    def in_features(self) -> int:
        """The size it takes."""
        return self._weight.shape[1]

    @property
    def out_features(self) -> int:
        """The size it gives."""
        return self._weight.shape[0]

    def dense_weight(self) -> Tensor:
        """The weight ``(out, in)``, unpacked to F32."""
        return self._weight.dequantize()

    def forward(self, xs: T) -> T:
        """The product. Raises ``ShapeMismatchBinaryOpError`` where the last dim is not ``in``."""
        expect_tensor("QuantizedLinear", xs)
        operation = QuantizedLinearOperation(*self._weight.packing())
        parts = [xs._lift(part) for part in self._weight.parts()]
        if xs.rank == 1:
            product = xs.unsqueeze(0)._record(operation, *parts).squeeze(0)  # type: ignore[attr-defined]
        else:
            product = xs._record(operation, *parts)
        result: T = product if self._bias is None else product._record(Add(), xs._lift(self._bias))
        return result

    def __repr__(self) -> str:
        bias = "" if self._bias is None else f", bias {list(self._bias.shape)} {self._bias.dtype}"
        return f"QuantizedLinear(weight {self._weight.described()}{bias})"


class QuantizedEmbedding(Module):
    """Rows of a frozen quantised table for ids: ``(…)`` to ``(…, in)`` in ``dtype``."""

    def __init__(self, table: QuantizedWeight, dtype: DTypeLike = DType.F32) -> None:
        expect("QuantizedEmbedding", table, a(QuantizedWeight))
        self._table, self._dtype = table, DType.of(dtype)

    def quantized_weight(self) -> QuantizedWeight:
        """The table."""
        return self._table

    def hidden_size(self) -> int:
        """The size of a row."""
        return self._table.shape[1]

    def forward(self, xs: T) -> T:
        """The rows. Raises ``InvalidIndexError`` for an id outside the table when it is evaluated."""
        expect_tensor("QuantizedEmbedding", xs)
        parts = [xs._lift(part) for part in self._table.parts()]
        rows = xs._record(QuantizedEmbeddingOperation(*self._table.packing()), *parts)
        return rows.to_dtype(self._dtype)  # type: ignore[attr-defined, no-any-return]

    def __repr__(self) -> str:
        return f"QuantizedEmbedding(table {self._table.described()}, {self._dtype})"


def quantized_cross_entropy(hidden: T, head: QuantizedWeight, targets: TensorBase) -> T:
    """The cross entropy of each row's logits ``hidden · headᵀ``: ``(n, h)`` and ids ``(n,)`` to F32 ``(n,)``.

    As ``linear_cross_entropy`` with ``reduction="none"``: the logits never exist at once, and the head is never
    unpacked as a whole. The hidden states have a gradient. Raises as it does.
    """
    expect_tensor("quantized_cross_entropy", hidden, "hidden")
    expect("quantized_cross_entropy", head, a(QuantizedWeight), "head")
    ids: Any = hidden._lift(targets)
    parts = [hidden._lift(part) for part in head.parts()]
    return hidden._record(QuantizedHeadCrossEntropy(*head.packing()), ids, *parts)


def _listed(values: tuple[object, ...]) -> str:
    *most, last = map(str, values)
    return f"{', '.join(most)} or {last}"
