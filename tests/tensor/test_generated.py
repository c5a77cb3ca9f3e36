"""What is generated from the records is as the records are now."""

from __future__ import annotations

import inspect
from pathlib import Path

from metal_candle import LazyTensor, Tensor
from metal_candle.graph.operation import REGISTRY
from metal_candle.tensor import reference, stub
from metal_candle.tensor.derive import method_table, operator_table

ROOT = Path(__file__).parents[2]


def test_the_stub_is_up_to_date() -> None:
    assert stub.STUB.read_text("utf-8") == stub.generate(), "python -m metal_candle.tensor.stub"


def test_the_reference_page_is_up_to_date() -> None:
    page = ROOT / "docs" / "operations.md"
    assert page.read_text("utf-8") == reference.generate(), "python -m metal_candle.tensor.reference docs/operations.md"


def test_methods_say_what_they_take() -> None:
    assert str(inspect.signature(Tensor.narrow)) == "(self, dim: 'DimLike', start: 'int', len: 'int') -> 'Self'"
    assert str(inspect.signature(Tensor.maximum)) == "(self, rhs: 'TensorBase | float') -> 'Self'"
    assert Tensor.narrow.__name__ == "narrow"
    assert "candle: ``Tensor::narrow<D: Dim>" in (inspect.getdoc(Tensor.narrow) or "")


def test_every_method_is_on_both_kinds_of_tensor() -> None:
    for name in [*method_table(), *operator_table()]:
        assert callable(getattr(Tensor, name))
        assert getattr(Tensor, name) is getattr(LazyTensor, name)
    assert all(set(kind.surface()) <= set(method_table()) for kind in REGISTRY.values())
