"""``MemoryPlan``: the peak memory of a run, by parts, and as a table."""

from __future__ import annotations

from dataclasses import dataclass, field

from .progress import mebibytes

SHARE = 0.9
"""How much of the device's memory a plan may use: the rest is for the system, the tokenizer, the interpreter."""


@dataclass(frozen=True)
class MemoryPlan:
    """The peak of a run in bytes, by parts that add up to it.

    ``rows`` and ``length`` are those of the longest batch, ``targets`` its trained positions. ``device`` is the memory
    of the device. ``largest_rows`` is the largest batch of that length that fits, ``largest_length`` the longest rows
    in a batch of that size: 0 where nothing fits, ``None`` where it was not asked for. ``alternatives`` are the peaks
    of the same run with other settings.
    """

    rows: int
    length: int
    targets: int
    weights: int
    adapter: int
    optimizer: int
    gradients: int
    head: int
    activations: int
    device: int
    checkpointing: bool
    largest_rows: int | None = None
    largest_length: int | None = None
    alternatives: dict[str, int] = field(default_factory=dict)

    @property
    def peak(self) -> int:
        """All parts together."""
        held = self.weights + self.adapter + self.optimizer
        return held + self.gradients + self.head + self.activations

    def fits(self) -> bool:
        """Whether the peak is within the share of the device's memory that a run may take."""
        return self.peak <= SHARE * self.device

    def table(self) -> str:
        """The parts as lines of text."""
        lines = [
            f"longest batch: {self.rows} x {self.length} tokens, {self.targets} of them trained"
            f"{', gradient checkpointing' if self.checkpointing else ''}",
            *_lines(
                {
                    "frozen weights": self.weights,
                    "adapter": self.adapter,
                    "optimizer": self.optimizer,
                    "gradients, update": self.gradients,
                    "head and loss": self.head,
                    "activations": self.activations,
                    "peak": self.peak,
                    "memory of the device": self.device,
                }
            ),
            "counted are MLX's arrays: the interpreter, libraries and what MLX keeps of freed memory come on top",
            "it fits" if self.fits() else f"it does not fit: a run may take {SHARE:.0%} of the device's memory",
        ]
        if self.largest_rows is not None:
            lines.append(f"largest batch at this length: {self.largest_rows or 'none'}")
        if self.largest_length is not None:
            lines.append(f"longest rows at this batch size: {self.largest_length or 'none'}")
        if self.alternatives:
            lines.append("the same run")
            lines += _lines({f"  {name}": peak for name, peak in self.alternatives.items()})
        return "\n".join(lines)


def _lines(sizes: dict[str, int]) -> list[str]:
    width = max(map(len, sizes))
    return [f"{name:<{width}}  {mebibytes(size):>14}" for name, size in sizes.items()]
