"""Views of views as one view, and views that change nothing as none. Values are the same to the bit.

Results keep the layout that they were recorded with: it belongs to the nodes, not to what is computed.
"""

from __future__ import annotations

from ..operation import Operation
from ..operations.movement import BroadcastAs, Permute, Reshape, Squeeze, Transpose
from ..operations.part import Narrow
from ..pattern import Anything, Name, Of, of
from ..rewrite import Example, Pass, Rule
from ..term import Term, apply
from ..views import SAME_ORDER, behind_transposed, turned

_TURNS = (Permute, Transpose)
_x = Anything("x")


def _order(term: Term) -> tuple[int, ...]:
    order = turned(term)
    assert order is not None
    return order


def _turn(order: tuple[int, ...]) -> Operation:
    """The dims in this order: a transposition where two are swapped."""
    moved = [dim for dim, source in enumerate(order) if dim != source]
    return Transpose(moved[0], moved[1]) if len(moved) == 2 else Permute(order)


def _together(root: Term, inner: Term) -> tuple[int, ...]:
    first = _order(inner)
    return tuple(first[dim] for dim in _order(root))


def _is_identity(order: tuple[int, ...]) -> bool:
    return order == tuple(range(len(order)))


def _in_order(root: Term) -> str | None:
    order = _order(root)
    return None if _is_identity(order) else f"the dims come in the order {list(order)}"


def _mergeable(root: Term, inner: Term) -> str | None:
    # Products, attention among them, take their second matrix so: that has to be seen from there.
    if behind_transposed(root) is not None and not _is_identity(_together(root, inner)):
        return "the swap of the last two dims, as a product takes a matrix, stays by itself"
    return None


def _turned(root: Term, inner: Term, x: Term) -> Term:
    order = _together(root, inner)
    return x if _is_identity(order) else apply(_turn(order), x)


def _same_shape(root: Term, x: Term) -> str | None:
    return None if root.shape == x.shape else f"{list(x.shape)} becomes {list(root.shape)}"


def _same_dim(outer: int, dim: int) -> str | None:
    return None if outer == dim else f"dims {dim} and {outer} are not one"


def _itself(x: Term) -> Term:
    return x


def _no_reshape(operation: Operation) -> bool:
    # Of elements that are not row-major a reshape is a copy, which others may need as well.
    return not isinstance(operation, Reshape)


RULES = (
    Rule("turn_nothing", of(_TURNS, _x), _itself, when=_in_order),
    Rule("turn_turn", of(_TURNS, Of(_TURNS, (_x,), {}, name="inner")), _turned, when=_mergeable),
    Rule("view_of_itself", of((Reshape, BroadcastAs, Squeeze, Narrow), _x), _itself, when=_same_shape),
    Rule("reshape_back", of(SAME_ORDER, of(SAME_ORDER, _x)), _itself, when=_same_shape),
    Rule(
        "reshape_reshape",
        of(Reshape, of(SAME_ORDER, _x)),
        lambda root, x: apply(Reshape(root.shape), x),
        shareable=_no_reshape,
    ),
    Rule(
        "narrow_narrow",
        of(
            Narrow,
            of(Narrow, _x, dim=Name("dim"), start=Name("first")),
            dim=Name("outer"),
            start=Name("second"),
            length=Name("length"),
        ),
        lambda x, dim, first, second, length: apply(Narrow(dim, first + second, length), x),
        when=_same_dim,
    ),
    Rule(
        "broadcast_broadcast",
        of(BroadcastAs, of(BroadcastAs, _x)),
        lambda root, x: apply(BroadcastAs(root.shape), x),
    ),
)

_MATRIX = ((3, 5),)
_CUBE = ((2, 3, 5),)
EXAMPLES = (
    Example(_MATRIX, lambda x: x.permute((0, 1)).exp(), "exp(x)"),
    Example(_MATRIX, lambda x: x.t().exp(), "exp(transpose(x; dim1=0, dim2=1))", because="in the order [1, 0]"),
    Example(_MATRIX, lambda x: x.t().t().exp(), "exp(x)"),
    Example(_CUBE, lambda x: x.permute((2, 0, 1)).permute((1, 2, 0)).exp(), "exp(x)"),
    Example(
        _CUBE,
        lambda x: x.t().transpose(0, 2).transpose(1, 2).exp(),
        "exp(transpose(permute(x; dims=(1, 2, 0)); dim1=1, dim2=2))",
        because="the swap of the last two dims",
    ),
    Example(((3, 3, 3),), lambda x: x.permute((2, 0, 1)).permute((2, 0, 1)).exp(), "exp(permute(x; dims=(1, 2, 0)))"),
    Example(_CUBE, lambda x: x.t().transpose(0, 1).exp(), "exp(permute(x; dims=(2, 0, 1)))"),
    Example(_CUBE, lambda x: x.permute((2, 0, 1)).transpose(0, 1).exp(), "exp(transpose(x; dim1=1, dim2=2))"),
    Example(
        _CUBE,
        lambda x: x.transpose(0, 1).t().exp(),
        "exp(transpose(transpose(x; dim1=0, dim2=1); dim1=1, dim2=2))",
        because="the swap of the last two dims",
    ),
    Example(_MATRIX, lambda x: x.t().exp().t(), "transpose(exp(transpose(x; dim1=0, dim2=1)); dim1=0, dim2=1)"),
    Example(_MATRIX, lambda x: x.reshape((3, 5)).exp(), "exp(x)"),
    Example(_MATRIX, lambda x: x.broadcast_as((3, 5)).exp(), "exp(x)"),
    Example(
        _MATRIX,
        lambda x: x.broadcast_as((2, 3, 5)).exp(),
        "exp(broadcast_as(x; shape=(2, 3, 5)))",
        because="[3, 5] becomes [2, 3, 5]",
    ),
    Example(_MATRIX, lambda x: x.unsqueeze(1).squeeze(1).exp(), "exp(x)"),
    Example(_MATRIX, lambda x: x.unsqueeze(0).reshape((3, 5)).exp(), "exp(x)"),
    Example(
        ((3, 1, 5),),
        lambda x: x.squeeze(1).unsqueeze(0).exp(),
        "exp(unsqueeze(squeeze(x; dim=1); dim=0))",
        because="[3, 1, 5] becomes [1, 3, 5]",
    ),
    Example(_CUBE, lambda x: x.reshape((6, 5)).reshape((3, 10)).exp(), "exp(reshape(x; shape=(3, 10)))"),
    Example(_MATRIX, lambda x: x.unsqueeze(0).reshape((5, 3)).exp(), "exp(reshape(x; shape=(5, 3)))"),
    Example(
        _MATRIX,
        lambda x: x.reshape((5, 3)).t().reshape((15,)).exp(),
        "exp(reshape(transpose(reshape(x; shape=(5, 3)); dim1=0, dim2=1); shape=(15,)))",
    ),
    Example(
        _MATRIX,
        lambda x: (lambda y: y.sin().squeeze(0) * y.reshape((15,)))(x.t().reshape((1, 15))),
        "mul(squeeze(sin(reshape(transpose(x; dim1=0, dim2=1); shape=(1, 15))); dim=0), "
        "reshape(reshape(transpose(x; dim1=0, dim2=1); shape=(1, 15)); shape=(15,)))",
        because="reshape [1, 15] stays: 2 operations use its value",
    ),
    Example(((7, 5),), lambda x: x.narrow(0, 1, 5).narrow(0, 2, 3).exp(), "exp(narrow(x; dim=0, start=3, length=3))"),
    Example(
        ((7, 5),),
        lambda x: x.narrow(0, 1, 5).narrow(1, 2, 3).exp(),
        "exp(narrow(narrow(x; dim=0, start=1, length=5); dim=1, start=2, length=3))",
        because="dims 0 and 1 are not one",
    ),
    Example(
        ((3, 3),),
        lambda x: x.broadcast_as((1, 3, 3)).broadcast_as((2, 3, 3)).exp(),
        "exp(broadcast_as(x; shape=(2, 3, 3)))",
    ),
    Example(
        ((3, 1),),
        lambda x: x.broadcast_as((3, 5)).broadcast_as((2, 3, 5)).exp(),
        "exp(broadcast_as(x; shape=(2, 3, 5)))",
    ),
)

PASS = Pass("movement", RULES, examples=EXAMPLES, quiet=True)
