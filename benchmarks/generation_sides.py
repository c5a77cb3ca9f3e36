"""Greedy generation by mlx-lm and by transformers, as ``generation.py`` times it.

As a script it serves one of them: it is asked ``[prompts, count]`` and answers ``[first, total, ids]``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from generation_process import serve


class Answer(NamedTuple):
    """Seconds until all rows had their first token, and their last; the tokens of each row."""

    first: float
    total: float
    ids: list[list[int]]


Prompts = list[list[int]]
Generate = Callable[[Prompts, int], Answer]
"""So many tokens after each prompt, whatever they are."""


def mlx_lm_model(folder: str | Path) -> Any:
    """mlx-lm's model, its weights read."""
    import mlx.core as mx
    from mlx_lm.utils import load_model

    model, _ = load_model(Path(folder))
    mx.eval(model.parameters())
    return model


def mlx_lm(model: Any) -> Generate:
    """mlx-lm: ``generate_step`` for one prompt, its ``BatchGenerator`` for several."""
    import mlx.core as mx
    from mlx_lm.generate import BatchGenerator, generate_step

    def one(prompt: list[int], count: int) -> Answer:
        ids, first = list[int](), 0.0
        start = time.perf_counter()
        for token, _ in generate_step(mx.array(prompt), model, max_tokens=count):
            first = first or time.perf_counter() - start
            ids.append(int(token))
        return Answer(first, time.perf_counter() - start, [ids])

    def several(prompts: Prompts, count: int) -> Answer:
        first = 0.0
        start = time.perf_counter()
        generator = BatchGenerator(model, max_tokens=count, completion_batch_size=len(prompts))
        rows: dict[int, list[int]] = {uid: [] for uid in generator.insert(prompts)}
        while responses := generator.next_generated():
            for response in responses:
                rows[response.uid].append(int(response.token))
            if not first and all(rows.values()):
                first = time.perf_counter() - start
        total = time.perf_counter() - start
        generator.close()
        return Answer(first, total, list(rows.values()))

    def generate(prompts: Prompts, count: int) -> Answer:
        answer = one(prompts[0], count) if len(prompts) == 1 else several(prompts, count)
        mx.synchronize()  # a token that was begun in advance is not the next side's
        return answer

    return generate


def transformers(folder: str | Path) -> Generate:
    """transformers' ``generate`` in float32, its key-value cache on; prompts of a batch padded on the left."""
    import torch
    from transformers import AutoModelForCausalLM, StoppingCriteria, StoppingCriteriaList
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.generation_config.eos_token_id = None  # tokens are counted, whatever they are
    model.generation_config.pad_token_id = 0

    class Clock(StoppingCriteria):  # type: ignore[misc]
        """Notes when the first token is there; ends nothing."""

        def __init__(self) -> None:
            self.first = 0.0

        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            self.first = self.first or time.perf_counter()
            return torch.zeros(len(input_ids), dtype=torch.bool)

    def generate(prompts: Prompts, count: int) -> Answer:
        start, clock = time.perf_counter(), Clock()
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        found = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=count,
            do_sample=False,
            stopping_criteria=StoppingCriteriaList([clock]),
        )
        rows = found[:, longest:].tolist()
        return Answer(clock.first - start, time.perf_counter() - start, rows)

    return generate


SIDES = {"mlx-lm": lambda folder: mlx_lm(mlx_lm_model(folder)), "transformers": transformers}


if __name__ == "__main__":
    side = SIDES[sys.argv[1]](sys.argv[2])
    serve(lambda question: side(*question))
