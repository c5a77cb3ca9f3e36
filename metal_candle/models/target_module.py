"""The linear maps of a decoder's block, by name."""

from __future__ import annotations

from enum import Enum

from ..error.expect import a, expect


class TargetModule(Enum):
    """The projections of a block. metal-candle: ``metal_candle::training::TargetModule``."""

    QProj = "q_proj"
    KProj = "k_proj"
    VProj = "v_proj"
    OProj = "o_proj"
    GateProj = "gate_proj"
    UpProj = "up_proj"
    DownProj = "down_proj"

    def name(self) -> str:  # type: ignore[override]
        """Its name in a checkpoint: "q_proj"."""
        return str(self.value)

    @staticmethod
    def from_name(s: str) -> TargetModule | None:
        """The member of that name, or ``None``."""
        expect("TargetModule.from_name", s, a(str, "a name"))
        return next((member for member in TargetModule if member.value == s), None)

    @property
    def parent(self) -> str:
        """The part of the block it stands in: "self_attn" or "mlp"."""
        return "mlp" if self.value in ("gate_proj", "up_proj", "down_proj") else "self_attn"
