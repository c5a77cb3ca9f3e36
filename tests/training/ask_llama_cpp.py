"""llama.cpp, as xllamacpp has it, in a process of its own: ``ask_llama_cpp.py BASE.gguf ADAPTER.gguf``.

From standard input it takes ``{"prompt": [ids], "count": …, "vocabulary": …, "scales": […]}`` as JSON. For each scale,
which llama.cpp multiplies the adapter's own with, it prints the likeliest tokens after the prompt and, for each of
them, the log-probabilities of the whole vocabulary at its place.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import xllamacpp


def server(base: str, adapter: str) -> Any:
    """Both on one CPU core, in float32 throughout."""
    params = xllamacpp.CommonParams()
    params.model.path = base
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(adapter)]
    params.n_ctx, params.n_parallel, params.n_gpu_layers, params.warmup = 64, 1, 0, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return xllamacpp.Server(params)


def answer(running: Any, prompt: list[int], count: int, vocabulary: int, scale: float) -> dict[str, Any]:
    """The tokens and the log-probabilities at one scale."""
    request = {"prompt": prompt, "max_tokens": count, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
    reply = running.handle_completions({**request, "logprobs": vocabulary, "lora": [{"id": 0, "scale": scale}]})
    steps = reply["choices"][0]["logprobs"]["content"]
    every = [{each["id"]: each["logprob"] for each in step["top_logprobs"]} for step in steps]
    rows = [[found[token] for token in range(vocabulary)] for found in every]
    return {"tokens": [step["id"] for step in steps], "logprobs": rows}


if __name__ == "__main__":
    running = server(*sys.argv[1:])
    asked = json.load(sys.stdin)
    scales = asked.pop("scales")
    print(json.dumps([answer(running, **asked, scale=scale) for scale in scales]), flush=True)
    os._exit(0)  # a server that is there when the interpreter ends may wait for its thread for ever
