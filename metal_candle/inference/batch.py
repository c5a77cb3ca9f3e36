"""Several prompts at once, each with an adapter, a configuration and an end of its own."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Union

import numpy as np

from ..error import InferenceError
from ..error.expect import a, expect, integer, listed, optional, wrong
from ..models.decoder import Decoder
from ..training.adapter import LoRAAdapter
from ..training.registry import AdapterRegistry
from .adapter_rows import AdapterRows, with_adapters
from .computing import computing
from .config import GeneratorConfig, config_of
from .generator import (
    Progress,
    checked_prompt,
    end_tokens_of,
    evaluate_weights,
    expect_no_texts,
    expect_room,
    watched,
)
from .sampling import StreamToken, checked, described_rows, draw_rows, generator_for, penalized
from .step import CachedStep, Logits
from .streams import Cancellation, Stopped, expect_watchers, in_thread

Adapters = Union[Mapping[str, LoRAAdapter], AdapterRegistry]

_NAME = "BatchGenerator"


class BatchToken(NamedTuple):
    """A token of one row."""

    row: int
    token: StreamToken


class BatchGenerator:
    """Continues several prompts at once: each step reads the model's weights once for all of them.

    Prompts may be of any lengths, and each row gets what it would get alone. ``adapters`` are known by name, and a row
    that names one goes through it; a row that names none is the model's own, whatever adapter it has. Rows that end
    leave the batch. Raises as ``Generator``, and ``InferenceError.InvalidConfig`` for a model that is no ``Decoder``
    or a rotating cache.
    """

    def __init__(
        self,
        model: Decoder,
        config: GeneratorConfig | None = None,
        adapters: Adapters | None = None,
        eos_token_ids: Iterable[int] = (),
    ) -> None:
        if not isinstance(model, Decoder):
            raise InferenceError.InvalidConfig(reason=f"the model is a {type(model).__name__}; a batch takes a Decoder")
        expect_adapters(_NAME, adapters)
        ends = [integer(_NAME, "an end token", i) for i in listed(_NAME, eos_token_ids, "token ids", "eos_token_ids")]
        self._model, self._config, self._eos_ids = model, _checked(config), frozenset(ends)
        evaluate_weights(model)
        self._adapters = adapters

    def config(self) -> GeneratorConfig:
        """The configuration of rows that have none of their own."""
        return self._config

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        adapters: Sequence[str | None] | None = None,
        configs: Sequence[GeneratorConfig] | None = None,
        *,
        cancel: Cancellation | None = None,
        progress: Progress | None = None,
    ) -> Iterator[BatchToken]:
        """The tokens of all rows as they are known, at each step the rows in their order; none for an empty prompt.

        ``adapters`` has a name or ``None`` for each row. ``configs`` tells how each row's tokens are chosen and when
        it ends; cache and pieces are the batch's. Without them row i draws with the batch's seed plus i. ``cancel``
        and ``progress`` as in ``Generator.stream``.

        Raises as ``Generator.stream``, and ``InferenceError.InvalidConfig`` for a name that is no adapter's and for
        lists of another length.
        """
        expect_watchers(_NAME, cancel, progress)
        rows = self._rows(prompts, adapters, configs)
        rows.sort(key=lambda row: -len(row.ids))  # a step takes the longest first
        if not rows:
            return
        model, inputs = self._model, None
        if any(row.adapter is not None for row in rows) or model.has_adapter():
            inputs = AdapterRows(model, self._named(rows), [row.adapter for row in rows])
            model = with_adapters(model, inputs)
        step = CachedStep(model, self._config, inputs)
        try:
            with computing(model):
                logits = step.start([row.ids for row in rows], watched(len(rows[0].ids), cancel, progress))
        except Stopped:
            return
        kept = list(range(len(rows)))
        while True:
            places = [place for place, i in enumerate(kept) if rows[i].goes_on()]
            here = [rows[kept[place]] for place in places]
            if not here:
                return
            yield from sorted(_chosen(here, logits[places]), key=lambda each: each.row)
            if cancel is not None and cancel.is_cancelled():
                return
            left = [place for place in places if rows[kept[place]].goes_on()]
            if not left:
                return
            for place in left:
                rows[kept[place]].expect_room()
            # A row less costs little; a new plan for the others costs as much as a step.
            if len(left) <= 3 * len(kept) // 4:
                step.take(left)
                kept = [kept[place] for place in left]
            with computing(model):
                logits = step.advance([rows[i].ids[-1] for i in kept])

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        adapters: Sequence[str | None] | None = None,
        configs: Sequence[GeneratorConfig] | None = None,
        **options: Any,
    ) -> list[list[int]]:
        """For each prompt its ids and those that follow. Options and errors as ``stream``."""
        found = [checked_prompt(self._model, prompt) for prompt in _listed(prompts)]
        for row, token in self.stream([*map(list, found)], adapters, configs, **options):
            found[row].append(token.token_id)
        return found

    def stream_async(
        self,
        prompts: Sequence[Sequence[int]],
        adapters: Sequence[str | None] | None = None,
        configs: Sequence[GeneratorConfig] | None = None,
        *,
        cancel: Cancellation | None = None,
        **options: Any,
    ) -> AsyncGenerator[BatchToken, None]:
        """``stream`` as an async iterator, which is left as ``Generator.generate_stream_async``."""
        return in_thread(lambda own: self.stream(prompts, adapters, configs, cancel=own, **options), cancel)

    def _rows(
        self,
        prompts: Sequence[Sequence[int]],
        adapters: Sequence[str | None] | None,
        configs: Sequence[GeneratorConfig] | None,
    ) -> list[_Row]:
        prompts = _listed(prompts)
        count = len(prompts)
        names = [None] * count if adapters is None else _for_each("adapters", adapters, "names or None", count)
        for name in names:
            expect(_NAME, name, optional(a(str, "a name")), "an adapter")
        own = [self._config] * count if configs is None else _for_each("configs", configs, "GeneratorConfigs", count)
        context = self._model.config.max_position_embeddings
        limit, rows = self._config.limit(context), []
        for i, (prompt, name, config) in enumerate(zip(prompts, names, own)):
            expect(_NAME, config, a(GeneratorConfig), "config")
            _checked(config)
            ids = checked_prompt(self._model, prompt)
            expect_room(len(ids), limit, context)
            seed = config.seed if configs is not None or config.seed is None else config.seed + i
            eos = end_tokens_of(self._model, config, self._eos_ids)
            if ids and config.max_tokens:
                rows.append(_Row(i, ids, config, eos, limit, seed, name))
        return rows

    def _named(self, rows: Sequence[_Row]) -> dict[str, LoRAAdapter]:
        found: dict[str, LoRAAdapter] = {}
        for name in dict.fromkeys(row.adapter for row in rows if row.adapter is not None):
            known = self._adapters if self._adapters is not None else {}
            names = known.list_adapters() if isinstance(known, AdapterRegistry) else list(known)
            if name not in names:
                there = ", ".join(map(str, names)) or "none"
                raise InferenceError.InvalidConfig(reason=f"no adapter {name!r}; there is {there}")
            adapter: Any = known.get_adapter(name) if isinstance(known, AdapterRegistry) else known[name]
            expect(_NAME, adapter, a(LoRAAdapter), f"adapter {name!r}:")
            found[name] = adapter
        return found


class _Row:
    """One prompt, what has followed it, and how it goes on."""

    def __init__(
        self,
        number: int,
        ids: list[int],
        config: GeneratorConfig,
        eos: frozenset[int],
        limit: int | None,
        seed: int | None,
        adapter: str | None,
    ) -> None:
        self.number, self.ids, self.config, self.eos, self.adapter = number, ids, config, eos, adapter
        self.filters = config.filters()
        self.rng = generator_for(self.filters, seed)
        self._limit, self._left, self._ended = limit, config.max_tokens, False
        self._stops = frozenset(config.stop_tokens) | (eos if config.stop_on_eos else frozenset())

    def take(self, token: int) -> None:
        """Append a token."""
        self.ids.append(token)
        self._left -= 1
        self._ended = token in self._stops

    def goes_on(self) -> bool:
        """Whether another token is to come."""
        return self._left > 0 and not self._ended

    def expect_room(self) -> None:
        """Raise ``InferenceError.CacheFull`` where the last token has no place in the cache."""
        if self._limit is not None and len(self.ids) > self._limit:
            raise InferenceError.CacheFull(position=len(self.ids), max_len=self._limit)


def _chosen(rows: Sequence[_Row], logits: Logits) -> list[BatchToken]:
    """The next token of each row, which takes it."""
    if any(row.config.repetition_penalty != 1 for row in rows):
        each = zip(rows, logits)
        logits = np.stack([penalized(own, row.ids, row.config.repetition_penalty) for row, own in each])
    if not np.isfinite(logits.max(axis=1)).all():
        for row in logits:
            checked(row)
    tokens = draw_rows(logits, [row.filters for row in rows], [row.rng for row in rows])
    found = []
    for row, token, (logit, probability) in zip(rows, tokens.tolist(), described_rows(tokens, logits).tolist()):
        row.take(token)
        found.append(BatchToken(row.number, StreamToken(token, None, logit, probability, token in row.eos)))
    return found


def _checked(given: GeneratorConfig | None) -> GeneratorConfig:
    config = config_of(_NAME, given)
    expect_no_texts(config)
    if config.cache == "rotating":
        raise InferenceError.InvalidConfig(reason="cache is 'rotating'; a batch takes growing or fixed")
    return config


def expect_adapters(op: str, adapters: object) -> None:
    """Raise ``ArgumentTypeError`` for what finds no adapter by a name."""
    if adapters is not None and not isinstance(adapters, (Mapping, AdapterRegistry)):
        raise wrong(op, adapters, "a dict of adapters by name, or an AdapterRegistry", "adapters")


def _listed(prompts: Sequence[Sequence[int]]) -> list[Any]:
    return listed(_NAME, prompts, "a list of lists of token ids", "prompts")


def _for_each(name: str, given: Any, what: str, count: int) -> list[Any]:
    found = listed(_NAME, given, f"a list of {what}", name)
    if len(found) != count:
        raise InferenceError.InvalidConfig(reason=f"{len(found)} {name} for {count} prompts; takes one for each")
    return found
