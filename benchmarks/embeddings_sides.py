"""Sentence embeddings by transformers and torch, as ``embeddings.py`` times them; as a script it serves them.

It is asked ``[texts, batch size, whether the values are wanted]`` and answers ``[seconds, values or null]``.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from generation_process import serve


def transformers(folder: str) -> Any:
    """``BertModel``, the mean over each text's tokens, unit length; texts of similar length in one batch.

    As sentence-transformers does it for all-MiniLM-L6-v2, whose longest text has 256 tokens.
    """
    import torch
    from transformers import AutoTokenizer, BertModel
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    model = BertModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    @torch.inference_mode()
    def encode(texts: list[str], size: int) -> Any:
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        parts = []
        for begin in range(0, len(order), size):
            chosen = [texts[i] for i in order[begin : begin + size]]
            batch = tokenizer(chosen, padding=True, truncation=True, max_length=256, return_tensors="pt")
            hidden = model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1).float()
            pooled = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
            parts.append(torch.nn.functional.normalize(pooled, dim=1))
        found = torch.cat(parts)
        places = torch.empty(len(order), dtype=torch.long)
        places[torch.tensor(order)] = torch.arange(len(order))
        return found[places]

    def answer(question: Any) -> Any:
        texts, size, wanted = question
        start = time.perf_counter()
        found = encode(texts, size)
        return [time.perf_counter() - start, found.tolist() if wanted else None]

    return answer


if __name__ == "__main__":
    serve(transformers(sys.argv[1]))
