"""SmolLM2-135M-Instruct: logits and greedy answers, as transformers computes them in float64 from the same weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from metal_candle import LazyTensor, Tensor
from metal_candle.inference import Generator, GeneratorConfig, TextGenerator
from metal_candle.models import LoadedModel, load_model

import numpy as np
import pytest

pytestmark = pytest.mark.slow


@dataclass
class Golden:
    """A prompt, its first 20 greedy ids and their text, the five largest logits, and all logits' logsumexp."""

    prompt: str
    ids: list[int]
    answer: list[int]
    text: str
    top: dict[int, float]
    logsumexp: float


GOLDENS = [
    Golden(
        prompt="The capital of France is",
        ids=[504, 3575, 282, 4649, 314],
        answer=[7042, 30, 198, 198, 504, 2988, 314, 42, 216, 34, 32, 33, 40, 29, 32, 33, 29, 34, 34, 216],
        text=" Paris.\n\nThe answer is: 2018-01-22 ",
        top={7042: 17.37126, 260: 14.88859, 4528: 13.24498, 2250: 13.00947, 1315: 12.95152},
        logsumexp=17.62934,
    ),
    Golden(
        prompt="What is gravity?",
        ids=[
            *(1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407),
            *(19712, 8182, 2, 198, 1, 4093, 198, 1780, 314, 9354, 47, 2, 198, 1, 520, 9531, 198),
        ],
        answer=[
            *(22007, 6463, 314, 253, 4959, 1909, 281, 6944, 338, 6601),
            *(260, 26589, 282, 42548, 2952, 411, 260, 4313, 282, 2389),
        ],
        text="Gravity is a fundamental concept in physics that describes the curvature of spacetime caused by "
        "the presence of mass",
        top={22007: 29.66208, 504: 26.62566, 55: 26.01463, 49: 25.46266, 35638: 25.14664},
        logsumexp=29.86067,
    ),
    Golden(
        prompt="Once upon a time",
        ids=[6403, 1980, 253, 655],
        answer=[
            *(28, 260, 2240, 282, 23324, 27108, 436, 253, 15114, 39228),
            *(28, 351, 25854, 41658, 284, 14055, 9018, 30, 1249, 347),
        ],
        text=", the city of Nova Haven was a thriving metropolis, with towering skyscrapers and bustling streets. "
        "But as",
        top={28: 18.14201, 281: 14.08253, 665: 13.36724, 260: 12.93553, 253: 12.92802},
        logsumexp=18.21753,
    ),
]
each_golden = pytest.mark.parametrize("golden", GOLDENS, ids=["completion", "chat", "story"])

# float32 through 30 layers: MLX alone differs from float64 by up to 3.5e-5 here, with either BLAS; other orders of
# summation (our kernels, NumPy's products) get the same again several times over.
CLOSE = 2e-4


@pytest.fixture(scope="module")
def loaded(smollm2_gguf: Path) -> LoadedModel:
    return load_model(smollm2_gguf)


def check_logits(golden: Golden, logits: np.ndarray) -> None:
    order = np.argsort(-logits)[:5]
    assert order.tolist() == list(golden.top)
    np.testing.assert_allclose(logits[order], list(golden.top.values()), atol=CLOSE)
    logits = logits.astype(np.float64)
    logsumexp = logits.max() + math.log(np.exp(logits - logits.max()).sum())
    assert logsumexp == pytest.approx(golden.logsumexp, abs=CLOSE)


def test_eager_logits(loaded: LoadedModel) -> None:
    golden = GOLDENS[0]
    logits = loaded.model.forward(Tensor.new([golden.ids], dtype="u32"))
    check_logits(golden, logits.numpy()[0, -1])


@each_golden
def test_recorded_logits_and_each_greedy_token(loaded: LoadedModel, golden: Golden) -> None:
    read = [*golden.ids, *golden.answer[:-1]]
    logits = loaded.model.forward(LazyTensor.new([read], dtype="u32")).numpy()[0]
    start = len(golden.ids) - 1
    check_logits(golden, logits[start])
    assert logits[start:].argmax(-1).tolist() == golden.answer


@each_golden
def test_cached_logits(loaded: LoadedModel, golden: Golden) -> None:
    caches = loaded.model.new_caches()
    loaded.model.forward(LazyTensor.new([golden.ids[:-1]], dtype="u32"), caches).eval()
    last = loaded.model.forward(LazyTensor.new([golden.ids[-1:]], dtype="u32"), caches)
    check_logits(golden, last.numpy()[0, -1])


@each_golden
def test_generated_tokens(loaded: LoadedModel, golden: Golden) -> None:
    generator = Generator(loaded.model, GeneratorConfig(max_tokens=20))
    tokens = list(generator.stream(golden.ids))
    assert [token.token_id for token in tokens] == golden.answer
    first = tokens[0]
    assert first.logit == pytest.approx(golden.top[first.token_id], abs=CLOSE)
    assert first.probability == pytest.approx(math.exp(golden.top[first.token_id] - golden.logsumexp), rel=1e-3)


@each_golden
def test_generated_text(loaded: LoadedModel, golden: Golden) -> None:
    chat = golden.ids[0] == 1
    prompt = [{"role": "user", "content": golden.prompt}] if chat else golden.prompt
    generator = TextGenerator(loaded, GeneratorConfig(max_tokens=20))
    assert generator.encode(prompt) == golden.ids
    assert generator.generate(prompt) == golden.text


def test_both_end_tokens_end_an_answer(loaded: LoadedModel) -> None:
    assert loaded.tokenizer.eos_token_ids >= {0, 2}
