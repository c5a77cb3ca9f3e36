"""``VarBuilder``: where layers get their tensors from, by dotted name. candle: ``candle_nn::VarBuilder``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any, Union

from ..device import DeviceLike
from ..dtype import DTypeLike
from ..error import ArgumentTypeError
from ..error.text import described
from ..formats.raw import Buffer
from ..npy import NpzTensors
from ..pickle import PthTensors
from ..safetensors import BufferedSafetensors, SliceSafetensors
from .backends import Backend, SimpleBackend, Zeros
from .init import Init
from .rename import Rename, Renamer
from .sharded import Shard, ShardedSafeTensors, ShardedVarBuilder
from .stored import SafeTensorWithRouting, TensorMap, as_backend
from .var_builder_args import VarBuilderArgs
from .var_map import VarMap
from .weight_files import Paths, open_weights

__all__ = [
    "Backend",
    "Rename",
    "Renamer",
    "SafeTensorWithRouting",
    "Shard",
    "ShardedSafeTensors",
    "ShardedVarBuilder",
    "SimpleBackend",
    "VarBuilder",
    "VarBuilderArgs",
]

PathOrStr = Union[str, PathLike[str]]


class VarBuilder(VarBuilderArgs[Init]):
    """A source of tensors by name: a checkpoint, or a ``VarMap`` that makes them.

    Stored tensors are read when they are asked for, no others. As in candle all are converted to the builder's dtype,
    integers too; where that would change an integer it raises, and ``get_with_hints_dtype`` or ``get_unchecked_dtype``
    takes that one in its own.
    """

    # --- sources without a file ---------------------------------------------------------------

    @staticmethod
    def from_backend(backend: Any, dtype: DTypeLike, device: DeviceLike = None) -> VarBuilder:
        """A source of one's own: an object with the methods of ``SimpleBackend``.

        Also what candle implements that for: a dictionary, a ``VarMap``, ``NpzTensors``, ``PthTensors``, and the
        classes of ``metal_candle.safetensors``. Raises ``ArgumentTypeError`` for an object that lacks a method.
        """
        return VarBuilder.new_with_args(as_backend(backend), dtype, device)

    @staticmethod
    def from_varmap(varmap: VarMap, dtype: DTypeLike, device: DeviceLike = None) -> VarBuilder:
        """Variables made on demand; layers that ask by one name share one."""
        if not isinstance(varmap, VarMap):
            raise ArgumentTypeError(f"from_varmap: got {described(varmap)}; takes a VarMap")
        return VarBuilder.from_backend(varmap, dtype, device)

    @staticmethod
    def from_tensors(tensors: Mapping[str, Any], dtype: DTypeLike, device: DeviceLike = None) -> VarBuilder:
        """Ready tensors, MLX or NumPy arrays by full name."""
        if not isinstance(tensors, Mapping):
            raise ArgumentTypeError(f"from_tensors: got {described(tensors)}; takes a dict of names to tensors")
        return VarBuilder.from_backend(TensorMap(tensors), dtype, device)

    @staticmethod
    def zeros(dtype: DTypeLike, device: DeviceLike = None) -> VarBuilder:
        """Zeros of every shape and name asked for."""
        return VarBuilder.from_backend(Zeros(), dtype, device)

    # --- files --------------------------------------------------------------------------------

    @staticmethod
    def from_mmaped_safetensors(paths: Paths, dtype: DTypeLike, device: DeviceLike = None) -> VarBuilder:
        """The tensors of safetensors files; of one name the last file's is taken.

        Takes a list of paths as candle, or one path. A path is a file, a folder with ``model.safetensors`` or an
        index, or an ``.index.json``. candle maps the files into memory; here they stay open and are read tensor by
        tensor, because a mapped file that somebody cuts short ends the process.

        Raises ``NotFoundError``, ``IoError``, ``SafeTensorError`` for a damaged file or index.
        """
        return VarBuilder.from_backend(open_weights("from_mmaped_safetensors", paths), dtype, device)

    @staticmethod
    def from_buffered_safetensors(data: Buffer, dtype: DTypeLike, device: DeviceLike = None) -> VarBuilder:
        """The tensors of a safetensors file's bytes, which it owns. Raises ``SafeTensorError``."""
        return VarBuilder.from_backend(BufferedSafetensors.new(data), dtype, device)

    @staticmethod
    def from_slice_safetensors(data: Buffer, dtype: DTypeLike, device: DeviceLike = None) -> VarBuilder:
        """The tensors of a safetensors file's bytes, which are shared. Raises ``SafeTensorError``."""
        return VarBuilder.from_backend(SliceSafetensors.new(data), dtype, device)

    @staticmethod
    def from_npz(p: PathOrStr, dtype: DTypeLike, device: DeviceLike = None) -> VarBuilder:
        """The arrays of an npz file. Raises ``NotFoundError``, ``IoError``, ``NpyError``."""
        return VarBuilder.from_backend(NpzTensors.new(p), dtype, device)

    @staticmethod
    def from_pth(p: PathOrStr, dtype: DTypeLike, device: DeviceLike = None) -> VarBuilder:
        """The tensors of a PyTorch checkpoint, read without running it. Raises ``NotFoundError``, ``PthError``."""
        return VarBuilder.from_backend(PthTensors.new(p), dtype, device)

    @staticmethod
    def from_pth_with_state(p: PathOrStr, dtype: DTypeLike, state_key: str, device: DeviceLike = None) -> VarBuilder:
        """As ``from_pth``, of the dictionary that the checkpoint has under ``state_key``, "state_dict" say."""
        return VarBuilder.from_backend(PthTensors.new(p, state_key), dtype, device)

    # --- other names --------------------------------------------------------------------------

    def rename_f(self, f: Callable[[str], str]) -> VarBuilder:
        """The builder that asks its source for ``f`` of each full name: ``f("model.norm.weight")`` say.

        candle puts the prefix in front twice where this is called below the root; here the name that ``f`` gives is
        the source's.
        """
        return self.rename(f)

    def rename(self, renamer: Union[Renamer, Callable[[str], str]]) -> VarBuilder:
        """As ``rename_f``, with an object that has ``rename(name)``, or a function."""
        return VarBuilder(Rename(self.root(), renamer), self._dtype, self._device, self._path)
