"""All cases of ``kernels.py``, by subject."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from kernel_case import Case
from kernel_grid import Grid
from kernel_lora_cases import lora
from kernel_model_cases import cross_entropies, ropes, smollm2, swiglus
from kernel_row_cases import norms, softmaxes

SUBJECTS: dict[str, Callable[[Grid], Iterator[Case]]] = {
    "lora": lora,
    "softmax": softmaxes,
    "norms": norms,
    "rope": ropes,
    "swiglu": swiglus,
    "cross_entropy": cross_entropies,
    "smollm2": smollm2,
}


def ordered(subjects: Iterable[str], grid: Grid) -> list[Case]:
    """The subjects' cases, low levels of all of them first."""
    return sorted((case for name in subjects for case in SUBJECTS[name](grid)), key=lambda case: case.level)
