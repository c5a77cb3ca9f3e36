"""All cases of ``kernels.py``, by subject."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from kernel_case import Case
from kernel_grid import Grid
from kernel_lora_cases import grouped_lora, lora
from kernel_model_cases import cross_entropies, ropes, smollm2, swiglus
from kernel_row_cases import norms, softmaxes
from kernel_softcap_cases import softcaps

SUBJECTS: dict[str, Callable[[Grid], Iterator[Case]]] = {
    "lora": lora,
    "grouped_lora": grouped_lora,
    "softmax": softmaxes,
    "norms": norms,
    "rope": ropes,
    "swiglu": swiglus,
    "softcap": softcaps,
    "cross_entropy": cross_entropies,
    "smollm2": smollm2,
}


def ordered(grid: Grid, only: Collection[str] = ()) -> list[Case]:
    """All cases, or those of subjects or kernels by name; low levels of all of them first.

    Raises ``ValueError`` for a name that is neither.
    """
    cases = [(subject, case) for subject, make in SUBJECTS.items() for case in make(grid)]
    known = dict.fromkeys([*SUBJECTS, *(case.group for _, case in cases)])
    for name in only:
        if name not in known:
            raise ValueError(f"no cases named {name}; there are {', '.join(known)}")
    found = [case for subject, case in cases if not only or subject in only or case.group in only]
    return sorted(found, key=lambda case: case.level)
