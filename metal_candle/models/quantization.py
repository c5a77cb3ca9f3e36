"""How the weights of a model are held: as floats, or quantised by MLX, as stored or anew while loading."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..device import Device
from ..dtype import DType
from ..error import Error, ModelError
from ..error.text import first_few
from ..formats.ggml_affine import AFFINE, K_AFFINE, repack
from ..formats.ggml_blocks import decode
from ..graph.evaluate import on_device
from ..nn.quantized_linear import AFFINE_GROUPS, MODES, QuantizedWeight, check_packing
from ..tensor.eager import Tensor
from .quantize_options import GROUP_SIZE, QuantizeOptions
from .weights.gguf import Bytes

_PROJECTION = re.compile(r"model\.layers\.\d+\.(?:self_attn|mlp)\.\w+_proj\.weight")
_TABLES = ("model.embed_tokens.weight", "lm_head.weight")
_BITS = {"Q4_0": 4, "Q4_1": 4, "Q5_0": 5, "Q5_1": 5, "Q8_0": 8, "Q8_1": 8, "Q4_K": 4, "Q5_K": 5}
_SHOWN = 5


@dataclass
class Packer:
    """Decides for each weight, while a model is loaded, whether it is quantised, kept as stored or widened to floats.

    ``widened`` names the weights whose blocks MLX has no packing for. Raises ``ModelError.InvalidConfig`` for F64 where
    weights are to be quantised.
    """

    options: QuantizeOptions
    dtype: DType
    device: Device
    widened: dict[str, str] = field(default_factory=dict)
    _indivisible: list[str] = field(default_factory=list)
    _widths: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.options.bits is not None and self.dtype is DType.F64:
            raise _invalid("quantize: got dtype f64; takes bf16, f16 or f32")

    def _wanted(self, name: str) -> bool:
        """Whether a weight is to be quantised to the wished bits."""
        chosen = bool(_PROJECTION.fullmatch(name)) or (self.options.embeddings and name in _TABLES)
        return self.options.bits is not None and chosen

    # --- GGUF ---------------------------------------------------------------------------------

    def from_blocks(self, name: str, rows: Bytes, kind: str) -> Any:
        """A matrix of a GGUF file: repacked without loss, quantised anew, or ``None``, which leaves it to floats."""
        how, bits = self.options.how, self.options.bits
        if how in (None, "dense") or not (_PROJECTION.fullmatch(name) or name in _TABLES):
            return None
        stays = bits is None or _BITS.get(kind, 32) <= bits
        affine = repack(rows, kind) if kind in (*AFFINE, *K_AFFINE) and stays else None
        if affine is not None:
            return self._weight([mx.array(part) for part in affine[:3]], affine.bits, 32)
        if self._wanted(name):
            return self._quantized(name, mx.array(decode(rows, kind)))
        if kind not in ("F32", "F16", "BF16"):
            self.widened[name] = kind
        return None

    # --- folders ------------------------------------------------------------------------------

    def folder(self, path: Path, weights: dict[str, Any], quantization: Mapping[str, Any] | None) -> None:
        """Replace weights of a folder, one at a time. ``quantization`` is what its ``config.json`` says.

        Raises ``ModelError.InvalidConfig`` and ``InvalidFormat`` where that and the tensors contradict each other.
        """
        stored = [name.removesuffix(".scales") for name in weights if name.endswith(".scales")]
        if stored and quantization is None:
            raise _invalid(f"{path}: {stored[0]}.scales is there, but config.json has no quantization")
        if stored and self.options.bits is not None:
            raise _invalid(
                f"{path} is quantised already, its config.json says so; takes quantize 'keep' or 'dense', "
                f"not {self.options.bits}"
            )
        if self.options.how == "keep" and not stored:
            raise _invalid(f"{path} holds no quantised weights to keep; takes quantize 4 or 8")
        for module in stored:
            weight = self._stored(path, module, weights, quantization or {})
            if self.options.how == "dense":
                dense = weight.dequantize().mlx().astype(self.dtype.mlx_)
                mx.eval(dense)
                weights[f"{module}.weight"] = dense
            else:
                weights[f"{module}.weight"] = weight
        for name in [name for name in weights if self._wanted(name)]:
            made = self._quantized(name, weights[name])
            if made is not None:
                weights[name] = made

    def _stored(
        self, path: Path, module: str, weights: dict[str, Any], quantization: Mapping[str, Any]
    ) -> QuantizedWeight:
        """A module's tensors, taken out of ``weights``, as one weight."""
        own = quantization.get(module)
        said = own if isinstance(own, Mapping) else quantization
        mode = said.get("mode", "affine")
        usual = MODES.get(str(mode), (4, GROUP_SIZE))
        bits, group = said.get("bits", usual[0]), said.get("group_size", usual[1])
        try:
            check_packing(f"{path}: quantization of {module}", bits, group, mode)
        except Error as error:
            raise _invalid(str(error)) from error
        ends = ("weight", "scales", "biases") if mode == "affine" else ("weight", "scales")
        names = [f"{module}.{end}" for end in ends]
        if missing := [name for name in names if name not in weights]:
            raise ModelError.InvalidFormat(reason=f"{path}: {missing[0]} missing, {module}.scales is there")
        arrays = [weights.pop(name) for name in names]
        try:
            return self._weight(arrays, bits, group, mode)
        except Error as error:
            reason = f"{path}: {module} does not fit what config.json says of its quantization: {error}"
            raise ModelError.InvalidFormat(reason=reason) from error

    # --- one weight ---------------------------------------------------------------------------

    def _weight(self, arrays: list[mx.array], bits: int, group: int, mode: str = "affine") -> QuantizedWeight:
        with on_device(self.device):
            mx.eval(arrays)
        codes, scales, *biases = (Tensor.from_mlx(array, self.device) for array in arrays)
        return QuantizedWeight(codes, scales, biases[0] if biases else None, bits, group, mode)

    def _quantized(self, name: str, dense: mx.array) -> QuantizedWeight | None:
        """A float weight in the wished bits; ``None`` where the group does not divide its rows: ``check`` tells."""
        bits, group = self.options.bits, self.options.group
        assert bits is not None
        self._widths.append(dense.shape[-1] if dense.ndim == 2 else 1)
        if self._widths[-1] % group:
            self._indivisible.append(f"{name} {tuple(dense.shape)}")
            return None
        weight = Tensor.from_mlx(dense.astype(self.dtype.mlx_), self.device)
        return QuantizedWeight.quantize(weight, bits, group)

    def check(self) -> None:
        """Raise ``ModelError.InvalidConfig`` that names the weights which a group does not divide."""
        if self._indivisible:
            names = first_few(sorted(self._indivisible), _SHOWN)
            fitting = [str(each) for each in AFFINE_GROUPS if not any(width % each for width in self._widths)]
            takes = f"takes {' or '.join(fitting)}" if fitting else "no group size divides the rows of all"
            raise _invalid(f"group_size {self.options.group} does not divide the rows of {names}; {takes}")


def described(weights: Iterable[QuantizedWeight], widened: Mapping[str, str], dtype: DType) -> str:
    """What a model's quantised weights are, in words: "210 weights in 4 bits (groups of 32)"; "" for none."""
    counts = Counter(weight.packing() for weight in weights)
    parts = []
    for (bits, group, mode), count in sorted(counts.items()):
        how = f"groups of {group}" if mode == "affine" else f"{mode}, groups of {group}"
        parts.append(f"{count} weight{'s' if count > 1 else ''} in {bits} bits ({how})")
    if widened:
        names = [f"{name} {kind}" for name, kind in widened.items()]
        parts.append(f"widened to {dtype}, as MLX has no such blocks: {first_few(names, _SHOWN)}")
    return "; ".join(parts)


def quantization_entry(weights: Mapping[str, QuantizedWeight]) -> dict[str, Any] | None:
    """What ``config.json`` says of quantised weights, by their names; ``None`` for none.

    The packing of most stands at the top, as mlx-lm writes it, that of every other under its module's path.
    """
    if not weights:
        return None
    usual = Counter(weight.packing() for weight in weights.values()).most_common(1)[0][0]
    entry = _packing(usual)
    for name, weight in weights.items():
        if weight.packing() != usual:
            entry[name.removesuffix(".weight")] = _packing(weight.packing())
    return entry


def _packing(packing: tuple[int, int, str]) -> dict[str, Any]:
    bits, group, mode = packing
    return {"group_size": group, "bits": bits, "mode": mode}


def _invalid(reason: str) -> ModelError:
    return ModelError.InvalidConfig(reason=reason)
