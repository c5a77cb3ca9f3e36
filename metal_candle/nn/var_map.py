"""``VarMap``: named variables. candle: ``candle_nn::VarMap``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Union

from .. import safetensors
from ..constructors import New
from ..device import Device, DeviceLike
from ..dtype import DType, DTypeLike
from ..error import (
    ArgumentTypeError,
    ArgumentValueError,
    Error,
    UnexpectedDTypeError,
    UnexpectedShapeError,
    VariablesError,
)
from ..error.text import described, shown
from ..formats.safetensors import PT
from ..shape import Shape, ShapeLike
from ..tensor.base import TensorBase
from ..tensor.eager import Tensor
from ..tensor.var import Var
from .init import Init
from .missing import missing
from .weight_files import PathOrStr, open_weights


class VarMap(New):
    """The variables of a model by name; ``VarBuilder.from_varmap`` fills it as layers ask for theirs.

    ``set``, ``set_one`` and ``load`` change all variables or, when anything does not fit, none.
    """

    def __init__(self) -> None:
        self._data: dict[str, Var] = {}

    def __repr__(self) -> str:
        return f"VarMap({len(self._data)} vars, {sum(var.elem_count() for var in self._data.values())} elements)"

    def all_vars(self) -> list[Var]:
        """Every variable, in the order they were made."""
        return list(self._data.values())

    def data(self) -> dict[str, Var]:
        """Name to variable, in the order they were made; the map itself, to which others may be added."""
        return self._data

    def clone(self) -> VarMap:
        """Another handle of the same variables, as in candle."""
        other = VarMap()
        other._data = self._data
        return other

    def get(self, shape: ShapeLike, name: str, init: Init, dtype: DTypeLike, device: DeviceLike = None) -> Tensor:
        """The variable's tensor, whatever its dtype; made with ``init`` on first use.

        Raises ``UnexpectedShapeError`` where the variable that is there has another shape.
        """
        wanted = Shape.of(shape, "get")
        var = self._data.get(name)
        if var is None:
            # Of two threads that ask at once the first one's is kept.
            var = self._data.setdefault(name, init.var(wanted, dtype, device))
        if var.shape != wanted:
            raise UnexpectedShapeError(name, wanted, var.shape)
        return var.as_tensor()

    def get_unchecked(self, name: str, dtype: DType, dev: Device) -> Tensor:
        """Raises ``ArgumentValueError``: a variable that is made needs a shape."""
        raise ArgumentValueError(
            f"get_unchecked {shown(name)}: a VarMap makes tensors, so it needs their shape; takes get(shape, name)"
        )

    def contains_tensor(self, name: str) -> bool:
        """Whether there is a variable of that name."""
        return name in self._data

    # --- new values ---------------------------------------------------------------------------

    def set_one(self, name: str, value: TensorBase) -> None:
        """Set a variable to a tensor of its shape and dtype.

        Raises ``CannotFindTensorError`` with the nearest names, ``UnexpectedShapeError``, ``UnexpectedDTypeError``.
        """
        self.set({name: value})

    def set(self, values: Union[Mapping[str, TensorBase], Iterable[tuple[str, TensorBase]]]) -> None:
        """Set variables to tensors of their shapes and dtypes, given as a dictionary or as pairs.

        Raises as ``set_one``, or ``VariablesError`` for several that do not fit; then none is changed, unlike candle's.
        """
        pairs = list(values.items() if isinstance(values, Mapping) else values)
        problems: list[Error] = []
        for name, value in pairs:
            if not isinstance(value, TensorBase):
                raise ArgumentTypeError(f"set {shown(name)}: got {described(value)}; takes a tensor")
            var = self._data.get(name)
            found = missing(name, self._data) if var is None else _misfit(name, var, value.shape, value.dtype)
            if found is not None:
                problems.append(found)
        _refuse("set", problems, len(pairs))
        self._set_all(dict(pairs))

    def _set_all(self, values: Mapping[str, TensorBase]) -> None:
        # As they are now: two variables may be given each other's values, and to compute a lazy one can fail.
        now = {name: Tensor._from_node(value._node) for name, value in values.items()}
        for name, tensor in now.items():
            self._data[name].set(tensor)

    # --- files --------------------------------------------------------------------------------

    def save(self, path: PathOrStr) -> None:
        """Write the variables into a safetensors file, whole or not at all; equal ones give equal files.

        Raises as ``safetensors.save``.
        """
        # transformers wants to know that the layout of weights is PyTorch's; candle reads over it.
        safetensors.save({name: var.as_detached_tensor() for name, var in self._data.items()}, path, PT)

    def load(self, path: PathOrStr) -> None:
        """Give every variable of the map the values of the file's tensor of its name; others are not looked at.

        A folder and an index are taken, too, as by ``from_mmaped_safetensors``. All tensors are read before the first
        variable changes: for a moment memory holds both. Raises ``CannotFindTensorError``, ``UnexpectedShapeError``,
        ``UnexpectedDTypeError``, or ``VariablesError`` with all that does not fit; ``NotFoundError``, ``IoError``,
        ``SafeTensorError``.
        """
        if not isinstance(path, (str, PathLike)):
            raise ArgumentTypeError(f"load: got {described(path)}; takes a path")
        source = open_weights("load", path)
        problems: list[Error] = []
        for name, var in self._data.items():
            found: Error | None
            if source.contains_tensor(name):
                view = source.view(name)
                # Of a dtype that tensors lack, reading it says more.
                found = _misfit(name, var, view.shape, safetensors.DTYPES.get(view.dtype, var.dtype))
            else:
                found = missing(name, source.names())
            if found is not None:
                problems.append(found)
        _refuse(f"load {shown(path, 300)}", problems, len(self._data))
        self._set_all({name: source.read(name, var.device) for name, var in self._data.items()})


def _misfit(name: str, var: Var, shape: Shape, dtype: DType) -> Error | None:
    if tuple(shape) != tuple(var.shape):
        return UnexpectedShapeError(name, var.shape, shape)
    return None if dtype is var.dtype else UnexpectedDTypeError(shown(name), var.dtype, dtype)


def _refuse(op: str, problems: list[Error], count: int) -> None:
    """Raise the only problem, or one error of all; nothing for none."""
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise VariablesError(op, problems, count)
