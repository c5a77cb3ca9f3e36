"""What an operation is: one record that holds its shape rule, dtype rule, lowering and documentation.

A subclass of ``Operation`` is a record; an instance is that operation with its parameters, so
``Operation.MulScalar(value=2.0)`` is what a node carries. Everything else about an operation (the method
on tensors, the stub, the reference page, the parity and gradient tests) is derived from its record.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Union

import mlx.core as mx
import numpy as np

from ..dtype import DType
from ..error import BackwardNotSupportedError, DimOutOfRangeError, ShapeMismatchError
from ..layout import Layout
from ..shape import Shape
from .work import Estimated

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform
else:

    def dataclass_transform() -> Callable[[type], type]:
        """Tells type checkers, from Python 3.11 on, that subclasses are dataclasses; here it does nothing."""
        return lambda cls: cls


class Meta(NamedTuple):
    """What is known of a tensor before it is computed."""

    shape: Shape
    dtype: DType


# An operation with several results has a tuple of each of these; see ``Pick`` in operations/structure.py.
Metas = Union[Meta, tuple[Meta, ...]]
Arrays = Union[mx.array, tuple[mx.array, ...]]
Gradients = tuple[Union[mx.array, None], ...]


@dataclass(frozen=True)
class Sample:
    """Arguments a record is tried on in the derived tests: shapes of the tensors, then parameters.

    Tensors hold floats from ``low`` to ``high``; ``ids`` names those that hold integers instead, by place, with
    the number they stay below.
    """

    shapes: tuple[tuple[int, ...], ...]
    params: tuple[Any, ...] = ()
    low: float = -2.0
    high: float = 2.0
    ids: tuple[tuple[int, int], ...] = ()


REGISTRY: dict[str, type[Operation]] = {}
MOST_TOKENS = 1 << 16
MOST_DIMS = 8
"""Of how many dims tensors are tried where an operation's dtype is asked for without shapes."""
_tokens: dict[tuple[Any, ...], int] = {}
# Above any place of a node in a graph, so that a key tells the two apart.
_numbers = itertools.count(1 << 40)


class Variants(type):
    """What ``Operation.Name`` finds: the record of that name, once the module that declares it is imported."""

    def __getattr__(cls, name: str) -> Any:
        raise AttributeError(f"{cls.__name__} has no record and no attribute {name!r}")


@dataclass_transform()
@dataclass(eq=False, repr=False)
class Operation(Estimated, metaclass=Variants):
    """Base of all records. A subclass is registered under its snake-case name when it is defined.

    Class attributes a record may set:

    - ``arity``: number of tensors it takes, ``None`` for any number.
    - ``candle``: the Rust signature it mirrors.
    - ``methods``: names under which tensors offer it; empty for what only the package records.
    - ``samples``: what the derived tests try; ``numpy``: the reference they compare with.
    - ``differentiable``: ``False`` ends the gradient here, as in candle (``round``, comparisons).
    - ``is_view``: the result may share its input's storage, as ``relayout`` says.
    - ``work``, ``flops_per_element``: what it costs, see ``Estimated``.
    - ``pure``: ``False`` where computing it once more, or once instead of twice, makes a difference.
    - ``lasting``: ``False`` where its parameters are objects of others: no plan that has it is kept.
    """

    arity: ClassVar[int | None] = 1
    candle: ClassVar[str] = ""
    methods: ClassVar[tuple[str, ...]] = ()
    samples: ClassVar[tuple[Sample, ...]] = ()
    differentiable: ClassVar[bool] = True
    is_view: ClassVar[bool] = False
    pure: ClassVar[bool] = True
    lasting: ClassVar[bool] = True
    numpy: ClassVar[Callable[..., Any] | None] = None
    key: ClassVar[str] = ""
    _parameters: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, abstract: bool = False) -> None:
        # Each method that dataclass writes is compiled at import; equality and hash are the same for all, below.
        if any(not str(annotation).startswith("ClassVar") for annotation in cls.__annotations__.values()):
            dataclass(eq=False, repr=False)(cls)
        if cls.is_view and "work" not in cls.__dict__:
            cls.work = "view"
        cls._parameters = tuple(field.name for field in fields(cls))
        if abstract:
            return
        cls.key = cls.__dict__.get("key") or _snake_case(cls.__name__)
        REGISTRY[cls.key] = cls
        # A variant without data is a value, one with data a constructor, as in a Rust enum.
        setattr(Operation, cls.__name__, cls if fields(cls) else cls())

    @cached_property
    def content(self) -> tuple[Any, ...]:
        """What makes it equal to another: its record and its parameters. A zero counts with its sign."""
        values = [getattr(self, name) for name in self._parameters]
        return type(self), *[str(value) if type(value) is float and value == 0 else value for value in values]

    @cached_property
    def token(self) -> int:
        """A number that equal operations share, cheaper to hash and compare than they are.

        What is not ``lasting`` is equal only to itself: remembering it would keep the objects it refers to.
        """
        if not self.is_lasting():
            return next(_numbers)
        if len(_tokens) >= MOST_TOKENS:
            _tokens.clear()  # the numbers go on, so none gets a second meaning
        return _tokens.setdefault(self.content, next(_numbers))

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Operation) and self.content == other.content)

    def __hash__(self) -> int:
        return hash(self.content)

    def __repr__(self) -> str:
        values = ", ".join(f"{field.name}={getattr(self, field.name)!r}" for field in fields(self))
        return f"{type(self).__name__}({values})"

    def name(self) -> str:
        """The operation's name: "mul_scalar"."""
        return self.key

    def describe(self) -> str:
        """Its name with its parameters: "mul_scalar(value=2.0)"."""
        parameters = ", ".join(f"{field.name}={_shown(getattr(self, field.name))}" for field in fields(self))
        return f"{self.name()}({parameters})" if parameters else self.name()

    @classmethod
    def bind(cls, *operands: Any) -> Operation:
        """The operation for these operands (each a ``Meta``) and the call's other arguments, which it checks."""
        return cls()

    def infer(self, *inputs: Any) -> Metas:
        """Shape and dtype of the result. Raises the error a user should see where inputs do not fit."""
        raise AssertionError(f"{self.key} declares no infer")

    def lower(self, *inputs: Any) -> Arrays:
        """The result as MLX arrays."""
        raise AssertionError(f"{self.key} declares no lower")

    def lowering(self, *inputs: Any) -> Callable[..., Arrays]:
        """What a plan calls for inputs like these (each a ``Meta``): ``lower``, or what it comes down to for them."""
        return self.lower

    def changes_nothing(self, x: Any) -> bool:
        """Whether the result is the tensor itself, with its id and its storage, as where candle returns a clone."""
        return False

    def is_lasting(self) -> bool:
        """Whether a plan with it may be kept."""
        return self.lasting

    def passes_gradient(self) -> bool:
        """Whether a gradient goes through, with these parameters."""
        return self.differentiable

    def relayout(self, layout: Layout) -> Layout | None:
        """Where a view's elements lie in the storage of an input laid out so; ``None`` where candle copies."""
        raise AssertionError(f"{self.key} declares no relayout")

    # ``lower`` where a gradient is taken in the same plan: the result, then what ``vjp`` likes to find again. It is
    # given all of this as ``output``; of a result that was computed earlier, the result alone.
    lower_and_save: ClassVar[Callable[..., tuple[mx.array, ...]] | None] = None

    def vjp(self, cotangent: Any, inputs: Sequence[Any], output: Any, needs: Sequence[bool]) -> Gradients:
        """Gradients of the inputs that ``needs`` marks, ``None`` for the others.

        By default MLX differentiates ``lower``; what of it the gradient does not use is never computed.
        """
        wanted = [i for i, need in enumerate(needs) if need]

        def function(*chosen: mx.array) -> Any:
            full = list(inputs)
            for i, value in zip(wanted, chosen):
                full[i] = value
            return self.lower(*full)

        try:
            _, found = mx.vjp(function, [inputs[i] for i in wanted], [cotangent])
        except ValueError as error:
            if "Not implemented" in str(error):
                raise BackwardNotSupportedError(self.key) from error
            raise
        gradients: list[mx.array | None] = [None] * len(inputs)
        for i, gradient in zip(wanted, found):
            gradients[i] = gradient
        return tuple(gradients)

    def output_shape(self, shapes: Sequence[Sequence[int]], dtype: DType = DType.F32) -> Shape:
        """Shape of the result for inputs of these shapes. Raises as ``infer`` does."""
        return self._infer_one([Meta(Shape.of(tuple(shape)), dtype) for shape in shapes]).shape

    def output_dtype(self, dtypes: Sequence[DType]) -> DType:
        """Dtype of the result for inputs of these dtypes, whatever their shapes. Raises as ``infer`` does."""
        known = [DType.of(dtype) for dtype in dtypes]
        for rank in range(2, MOST_DIMS):
            try:
                return self._infer_one([Meta(Shape((1,) * rank), dtype) for dtype in known]).dtype
            except DimOutOfRangeError:  # the operation is about a dim that tensors of more dims have
                pass
        return self._infer_one([Meta(Shape((1,) * MOST_DIMS), dtype) for dtype in known]).dtype

    def _infer_one(self, inputs: Sequence[Meta]) -> Meta:
        self.check_arity(len(inputs))
        meta = self.infer(*inputs)
        return meta if isinstance(meta, Meta) else meta[0]

    def check_arity(self, count: int) -> None:
        """Raise ``ShapeMismatchError`` unless the operation takes ``count`` tensors."""
        if self.arity is not None and count != self.arity:
            raise ShapeMismatchError(
                f"{type(self).__name__} requires {self.arity} input{'s' if self.arity != 1 else ''}, got {count}"
            )

    @classmethod
    def surface(cls) -> dict[str, Callable[..., Operation]]:
        """The tensor methods this record gives: name and how its call arguments become an operation."""
        return dict.fromkeys(cls.methods, cls.bind)


def _shown(value: Any) -> str:
    return value.describe() if isinstance(value, Operation) else str(value)


def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def to_numpy(array: mx.array) -> np.ndarray[Any, Any]:
    """An MLX array as NumPy; bfloat16, which NumPy lacks, as float32."""
    return np.array(array.astype(mx.float32) if array.dtype == mx.bfloat16 else array)
