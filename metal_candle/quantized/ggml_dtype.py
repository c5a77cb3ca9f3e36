"""ggml's element types. candle: ``candle_core::quantized::GgmlDType``."""

from __future__ import annotations

from enum import Enum

from ..error import Error
from ..formats.ggml_blocks import BLOCKS, TYPES, Block


class GgmlDType(Enum):
    """An element type of ggml: three kinds of floats, and blocks of small integers with a scale."""

    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    Q4_0 = "q4_0"
    Q4_1 = "q4_1"
    Q5_0 = "q5_0"
    Q5_1 = "q5_1"
    Q8_0 = "q8_0"
    Q8_1 = "q8_1"
    Q2K = "q2k"
    Q3K = "q3k"
    Q4K = "q4k"
    Q5K = "q5k"
    Q6K = "q6k"
    Q8K = "q8k"

    @staticmethod
    def of(value: GgmlDType | str) -> GgmlDType:
        """A ``GgmlDType``, or its name in candle's or ggml's spelling, "q4k" or "Q4_K". Raises ``Error``."""
        if isinstance(value, GgmlDType):
            return value
        name = str(value).lower()
        name = name.replace("_k", "k") if name.endswith("_k") else name
        if name not in GgmlDType._value2member_map_:
            raise Error(f"ggml dtype: cannot read {value!r}; takes {', '.join(kind.value for kind in GgmlDType)}")
        return GgmlDType(name)

    @staticmethod
    def from_u32(number: int) -> GgmlDType:
        """The type of a file's number. Raises ``Error`` for others than these 15."""
        if number not in TYPES:
            raise Error(f"ggml dtype: got {number}; takes {', '.join(map(str, sorted(TYPES)))}")
        return GgmlDType.of(TYPES[number])

    @property
    def ggml_name(self) -> str:
        """Its name in ggml and in files' listings: "Q4_K"."""
        return self.name.replace("K", "_K")

    def to_u32(self) -> int:
        """Its number in a file."""
        return self._block.number

    def block_size(self) -> int:
        """Elements of a block; 1 for floats."""
        return self._block.elements

    def type_size(self) -> int:
        """Bytes of a block."""
        return self._block.bytes

    def is_float(self) -> bool:
        """Whether it is F32, F16 or BF16."""
        return self.block_size() == 1

    @property
    def _block(self) -> Block:
        return BLOCKS[self.ggml_name]

    def __str__(self) -> str:
        return self.value
