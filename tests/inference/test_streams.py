"""Streams that are left, cancelled, timed out, or fail; and several at once."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

from metal_candle import Tensor
from metal_candle.error import InferenceError
from metal_candle.inference import Cancellation, Generator, GeneratorConfig, StreamToken, TextGenerator, workers
from metal_candle.inference.streams import in_thread
from metal_candle.models import LoadedModel, load_model

import numpy as np
import pytest

ModelDir = Callable[..., Path]
PROMPT = [5, 17, 3, 60, 22]
LONG = GeneratorConfig(max_tokens=200)


@pytest.fixture
def loaded(tiny_model_dir: ModelDir) -> LoadedModel:
    return load_model(tiny_model_dir(eos_token_id=None))


@pytest.fixture(autouse=True)
def nothing_runs_on() -> Iterator[None]:
    yield
    until = time.monotonic() + 120  # who is cancelled while it waits for the thread leaves before it has ended
    while workers.running() and time.monotonic() < until:
        time.sleep(0.005)
    assert not workers.running()


class Slow:
    """A model of eight tokens whose every step waits for the test to let it go on."""

    def __init__(self) -> None:
        self.entered, self.go_on = threading.Semaphore(0), threading.Semaphore(0)
        self.calls = 0

    def forward(self, ids: Tensor) -> Tensor:
        self.calls += 1
        self.entered.release()
        self.go_on.acquire()
        return Tensor.new(np.eye(8, dtype=np.float32)[(np.array(ids.to_vec2()) + 1) % 8])


async def collect(tokens: AsyncIterator[StreamToken], into: list[int]) -> None:
    async for token in tokens:
        into.append(token.token_id)


def test_two_streams_at_once_and_options(loaded: LoadedModel) -> None:
    wanted = [t.token_id for t in Generator(loaded.model, LONG).stream(PROMPT)][:30]
    config, seen = GeneratorConfig(max_tokens=30), list[tuple[int, int]]()

    async def run() -> list[list[int]]:
        found: list[list[int]] = [[], [], []]
        options: dict[str, Any] = {"progress": lambda done, total: seen.append((done, total))}
        await asyncio.gather(
            *(collect(Generator(loaded.model, config).generate_stream_async(PROMPT, **options), own) for own in found)
        )
        return found

    assert asyncio.run(run()) == [wanted] * 3
    assert seen.count((5, 5)) == 3


@pytest.mark.parametrize("at", [1, 3])
def test_a_task_is_cancelled_while_it_waits_for_a_token(at: int) -> None:
    model = Slow()

    async def run() -> list[int]:
        found: list[int] = []
        task = asyncio.create_task(collect(Generator(model, LONG).generate_stream_async([2]), found))
        for _ in range(at):
            await asyncio.to_thread(model.entered.acquire)
            if _ < at - 1:
                model.go_on.release()
        task.cancel()
        await asyncio.sleep(0.01)
        assert not task.done()  # it waits for the step that is under way, and the loop runs on
        model.go_on.release()
        with pytest.raises(asyncio.CancelledError):
            await task
        return found

    assert len(asyncio.run(run())) == at - 1
    assert model.calls == at


def test_a_second_cancellation_does_not_wait() -> None:
    model = Slow()

    async def run() -> None:
        task = asyncio.create_task(collect(Generator(model, LONG).generate_stream_async([2]), []))
        await asyncio.to_thread(model.entered.acquire)
        for _ in range(2):
            task.cancel()
            await asyncio.sleep(0.01)
        assert task.done()
        model.go_on.release()

    asyncio.run(run())
    assert model.calls == 1


def test_a_timeout_ends_it() -> None:
    model = Slow()

    async def let_go() -> None:
        while workers.running() < 2:  # the step, and the closing that waits for its end
            await asyncio.sleep(0.001)
        model.go_on.release()

    async def run() -> list[int]:
        found: list[int] = []
        reading = asyncio.create_task(collect(Generator(model, LONG).generate_stream_async([2]), found))
        await asyncio.to_thread(model.entered.acquire)
        letting_go = asyncio.create_task(let_go())
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(reading, 0.01)
        await letting_go
        return found

    assert asyncio.run(run()) == []
    assert model.calls == 1


def test_an_error_comes_out_and_the_thread_ends(loaded: LoadedModel) -> None:
    async def run(config: GeneratorConfig, ids: list[int], kind: type[Exception]) -> list[int]:
        found: list[int] = []
        with pytest.raises(kind):
            await collect(Generator(loaded.model, config).generate_stream_async(ids), found)
        return found

    full = GeneratorConfig(cache="fixed", max_kv_size=8, max_tokens=20)
    assert len(asyncio.run(run(full, PROMPT, InferenceError.CacheFull))) == 4
    assert asyncio.run(run(full, PROMPT * 2, InferenceError.CacheFull)) == []


def test_an_error_in_the_loops_body(loaded: LoadedModel) -> None:
    async def run() -> None:
        async for _ in Generator(loaded.model, LONG).generate_stream_async(PROMPT):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(run())


def test_leaving_early_without_closing(loaded: LoadedModel) -> None:
    async def run() -> int:
        count = 0
        async for _ in Generator(loaded.model, LONG).generate_stream_async(PROMPT):
            count += 1
            if count == 3:
                break
        return count  # asyncio.run closes what is left

    assert asyncio.run(run()) == 3


def test_a_stream_that_is_never_begun(loaded: LoadedModel) -> None:
    async def run() -> list[StreamToken]:
        stream = Generator(loaded.model, LONG).generate_stream_async(PROMPT)
        await stream.aclose()
        return [token async for token in stream]

    assert asyncio.run(run()) == []


def test_text_comes_asynchronously_too(loaded: LoadedModel) -> None:
    generator = TextGenerator(loaded, GeneratorConfig(max_tokens=20))

    async def run() -> str:
        return "".join([piece async for piece in generator.stream_async("a cat")])

    assert asyncio.run(run()) == generator.generate("a cat")


# --- cancellation from outside ----------------------------------------------------------------


def test_a_stream_is_cancelled_from_another_thread(loaded: LoadedModel) -> None:
    model, cancel, found = Slow(), Cancellation(), list[int]()

    def read() -> None:
        found.extend(token.token_id for token in Generator(model, LONG).stream([2], cancel=cancel))

    reader = threading.Thread(target=read)
    reader.start()
    model.entered.acquire()
    model.go_on.release()
    model.entered.acquire()
    cancel.cancel()
    cancel.cancel()
    model.go_on.release()
    reader.join(timeout=120)
    assert not reader.is_alive()
    assert found == [3, 4]
    assert repr(cancel) == "Cancellation(cancelled=True)"


def test_one_cancellation_ends_an_asynchronous_stream_in_order(loaded: LoadedModel) -> None:
    cancel = Cancellation()

    async def run() -> int:
        count = 0
        async for _ in Generator(loaded.model, LONG).generate_stream_async(PROMPT, cancel=cancel):
            count += 1
            if count == 4:
                cancel.cancel()
        return count

    assert asyncio.run(run()) == 4
    assert asyncio.run(run()) == 0  # it stays cancelled


def test_a_prompt_is_left_between_two_pieces(loaded: LoadedModel) -> None:
    cancel, seen = Cancellation(), list[int]()

    def progress(done: int, total: int) -> None:
        seen.append(done)
        if done == 20:
            cancel.cancel()

    config = GeneratorConfig(prefill_chunk=10)
    assert Generator(loaded.model, config).generate(PROMPT * 10, cancel=cancel, progress=progress) == PROMPT * 10
    assert seen == [0, 10, 20]


def test_the_thread_computes_and_closes() -> None:
    threads: list[str] = []

    def stream(cancel: Cancellation) -> Iterator[int]:
        try:
            for i in range(5):
                threads.append(threading.current_thread().name)
                yield i
        finally:
            assert cancel.is_cancelled()
            threads.append(threading.current_thread().name)

    async def run() -> None:
        tokens = in_thread(stream)
        async for token in tokens:
            if token == 1:
                break
        await tokens.aclose()

    asyncio.run(run())
    assert len(threads) == 3
    assert len(set(threads)) == 1
    assert threads[0] != threading.current_thread().name


def test_threads_serve_one_stream_after_the_other(loaded: LoadedModel) -> None:
    def names() -> list[int | None]:
        return [t.ident for t in threading.enumerate() if t.name == "metal-candle-generate"]

    async def run(count: int) -> None:
        generator = Generator(loaded.model, GeneratorConfig(max_tokens=2))
        await asyncio.gather(*(collect(generator.generate_stream_async(PROMPT), []) for _ in range(count)))

    asyncio.run(run(3))
    before = names()
    for _ in range(4):
        asyncio.run(run(3))
    assert names() == before


PROGRAM = """
import asyncio, sys
from metal_candle.inference import Generator, GeneratorConfig
from metal_candle.models import Decoder, ModelConfig
from metal_candle.nn import VarBuilder

sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
model = Decoder(ModelConfig(**sizes, max_position_embeddings=10**6), VarBuilder.zeros("f32"))

async def some(count):
    stream = Generator(model, GeneratorConfig(max_tokens=10**5)).generate_stream_async([1, 2, 3])
    for _ in range(count):
        await anext(stream)
    return stream

way = sys.argv[1]
loop = asyncio.new_event_loop()
if way == "run":
    asyncio.run(some(3))
elif way == "several":
    async def several():
        for stream in await asyncio.gather(*(some(3) for _ in range(8))):
            await stream.aclose()
    asyncio.run(several())
elif way == "left":
    stream = loop.run_until_complete(some(1))
else:
    loop.create_task(some(10**6))
    loop.call_later(0.05, loop.stop)
    loop.run_forever()
"""


@pytest.mark.parametrize("way", ["run", "several", "left", "stopped"])
def test_a_program_that_ends_right_after_does_not_abort(way: str) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, way], capture_output=True, text=True, timeout=300)
    assert (done.returncode, "terminate" in done.stderr) == (0, False), done.stderr
