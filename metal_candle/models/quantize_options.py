"""How the weights of a model are to be held, as a caller or the command line wishes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Union

from ..error import Error, ModelError
from ..nn.quantized_linear import check_packing

Quantize = Union[None, int, Literal["keep", "dense"]]
"""Bits for weights that have more; "keep": as stored; "dense": floats. ``None`` keeps MLX's and widens a GGUF's."""

GROUP_SIZE = 64
"""Numbers that share a scale where nothing else is said: MLX's default."""


@dataclass(frozen=True)
class QuantizeOptions:
    """What ``load_model`` is asked to do with a model's weights.

    ``embeddings`` quantises the token embeddings and the head, too, where bits are given; QLoRA leaves them as they
    are. Raises ``ModelError.InvalidConfig`` for settings that do not exist or exclude each other.
    """

    how: Quantize = None
    group_size: int | None = None
    embeddings: bool = False

    def __post_init__(self) -> None:
        how = self.how
        if isinstance(how, bool) or not (how in (None, "keep", "dense") or isinstance(how, int)):
            raise ModelError.InvalidConfig(reason=f"quantize is {how!r}; takes bits, 'keep', 'dense' or None")
        if isinstance(how, int):
            try:
                check_packing("quantize", how, self.group)
            except Error as error:
                raise ModelError.InvalidConfig(reason=str(error)) from error
        elif self.group_size is not None or self.embeddings:
            given = "group_size" if self.group_size is not None else "quantize_embeddings"
            reason = f"{given} is for weights that are quantised while loading; takes it with quantize 4 or 8"
            raise ModelError.InvalidConfig(reason=reason)

    @staticmethod
    def parse(how: str | None, group_size: int | None = None, embeddings: bool = False) -> QuantizeOptions:
        """Of flags of the command line: bits, "keep" or "dense", the others as they are. Raises as the constructor."""
        if how is None or how == "keep" or how == "dense":
            return QuantizeOptions(how, group_size, embeddings)  # type: ignore[arg-type]
        if not how.isdecimal():
            raise ModelError.InvalidConfig(reason=f"quantize is {how!r}; takes 4, 8 (or 2, 3, 5, 6), keep or dense")
        return QuantizeOptions(int(how), group_size, embeddings)

    @property
    def bits(self) -> int | None:
        """The bits to quantise to while loading, if any."""
        return self.how if isinstance(self.how, int) else None

    @property
    def group(self) -> int:
        """How many numbers share a scale where bits are given."""
        return GROUP_SIZE if self.group_size is None else self.group_size
