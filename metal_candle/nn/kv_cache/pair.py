"""What the caches of keys and values share."""

from __future__ import annotations

from ...error import ShapeMismatchError
from ...tensor.base import TensorBase
from .block import Block


def expect_pair(keys: Block, values: Block, k: TensorBase, v: TensorBase) -> int:
    """How many entries both have. Raises, before anything has changed, unless both can be appended."""
    count, other = keys.expect("keys", k), values.expect("values", v)
    if count != other:
        raise ShapeMismatchError(
            f"append: got keys {list(k.shape)} and values {list(v.shape)}; takes as many of both in dim {keys.axis(k)}"
        )
    return count
