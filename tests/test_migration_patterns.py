"""The four patterns of the guide give the same in their three forms, and a lazy one is one evaluation."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

EXAMPLE = Path(__file__).parent.parent / "examples" / "migration_patterns.py"
# Two float32 products of 512 and 8 terms beside each other: the guide's own recipe takes 1e-4.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLE))


@pytest.mark.parametrize("name", ["single operation", "chain", "batch", "training loop"])
def test_the_three_forms_agree(example: dict[str, Any], name: str) -> None:
    first, second, third = (form() for form in example["PATTERNS"][name])
    assert example["difference"](first, second) < TOLERANCE
    assert example["difference"](first, third) < TOLERANCE
    if name == "training loop":
        assert first[-1] < first[0]


@pytest.mark.parametrize(("form", "evaluations"), [("chain_lazy", 1), ("batch_v2", 8), ("batch_lazy", 1)])
def test_how_often_is_evaluated(
    example: dict[str, Any], form: str, evaluations: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run: Callable[[], Any] = example[form]
    run()
    counted: list[int] = []
    for name in ("eval", "async_eval"):
        original = getattr(mx, name)

        def count(*arrays: Any, original: Any = original) -> Any:
            counted.append(len(arrays))
            return original(*arrays)

        monkeypatch.setattr(mx, name, count)
    run()
    assert len(counted) == evaluations
