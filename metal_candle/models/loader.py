"""``ModelLoader``: a file's tensors by name. metal-candle: ``metal_candle::models::ModelLoader``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike, fspath

from ..constructors import New
from ..device import Device, DeviceLike
from ..dtype import DType, DTypeLike
from ..error import ModelError, UnsupportedSafeTensorDtypeError
from ..error.expect import PATH, a, expect
from ..error.text import first_few, shown
from ..nn.weight_files import open_weights
from ..shape import Shape, ShapeLike
from ..tensor.eager import Tensor
from .load_errors import model_file_errors
from .weights.gguf import gguf_shapes, load_gguf

MOST = 16
"""How many names an error lists."""


class ModelLoader(New):
    """Reads weights: a safetensors file, a folder or index of several, or a GGUF file, which is dequantised.

    A GGUF file's tensors come with Hugging Face's names and order of rows. Raises ``ModelError.FileNotFound`` for what
    is not there, ``ModelError.InvalidFormat`` for what is damaged.
    """

    def __init__(self, device: DeviceLike = None) -> None:
        self._device = Device.of(device)
        self._dtype: DType | None = None

    def __repr__(self) -> str:
        return f"ModelLoader({self._device}, {'as stored' if self._dtype is None else self._dtype})"

    @property
    def device(self) -> Device:
        """Where tensors are put."""
        return self._device

    @property
    def dtype(self) -> DType | None:
        """What tensors are converted to; ``None`` leaves each as it is stored (GGUF's are then F32)."""
        return self._dtype

    def with_dtype(self, dtype: DTypeLike) -> ModelLoader:
        """Convert all tensors of float dtypes; returns the loader itself."""
        self._dtype = DType.of(dtype)
        return self

    def load(self, path: str | PathLike[str]) -> dict[str, Tensor]:
        """The tensors by name. Integers keep their dtype."""
        if _is_gguf(path):
            _, arrays, _ = load_gguf(path, (self._dtype or DType.F32).mlx_)
            return {name: Tensor.from_mlx(array, self._device) for name, array in arrays.items()}
        with _weight_errors(path):
            source = open_weights("ModelLoader", path)
            return {name: self._converted(source.read(name, self._device)) for name in source.names()}

    def load_with_validation(self, path: str | PathLike[str], expected: Mapping[str, ShapeLike]) -> dict[str, Tensor]:
        """``load``, after the file's header was compared with the shapes that are expected; others may be there too.

        Raises ``ModelError.InvalidFormat`` naming all tensors that are missing, and ``ModelError.ShapeMismatch``
        naming the first of another shape.
        """
        expect("load_with_validation", expected, a(Mapping, "a dict of shapes by name"), "expected")
        found = self.inspect(path)
        missing = [name for name in expected if name not in found]
        if missing:
            reason = f"{shown(path, 300)}: missing tensors: {first_few(missing, MOST)}"
            raise ModelError.InvalidFormat(reason=reason)
        for name, shape in expected.items():
            wanted = Shape.of(shape, "load_with_validation")
            if tuple(found[name]) != tuple(wanted):
                raise ModelError.ShapeMismatch(name=name, expected=tuple(wanted), actual=tuple(found[name]))
        return self.load(path)

    def inspect(self, path: str | PathLike[str]) -> dict[str, Shape]:
        """The tensors' shapes by name; only headers are read."""
        if _is_gguf(path):
            return {name: Shape(shape) for name, shape in gguf_shapes(path).items()}
        with _weight_errors(path):
            source = open_weights("ModelLoader", path)
            return {name: source.view(name).shape for name in source.names()}

    def _converted(self, tensor: Tensor) -> Tensor:
        if self._dtype is not None and tensor.dtype.is_float():
            tensor = tensor.to_dtype(self._dtype)
        return tensor if tensor.dtype is DType.F64 else tensor.to_device(self._device)  # F64 lives on the CPU only


def _is_gguf(path: str | PathLike[str]) -> bool:
    expect("ModelLoader", path, PATH)
    return str(fspath(path)).lower().endswith(".gguf")


@contextmanager
def _weight_errors(path: object) -> Iterator[None]:
    """``model_file_errors``, and ``ModelError.InvalidFormat`` for a dtype that tensors do not have."""
    try:
        with model_file_errors():
            yield
    except UnsupportedSafeTensorDtypeError as error:
        raise ModelError.InvalidFormat(reason=f"{shown(path, 300)}: {error}") from error
