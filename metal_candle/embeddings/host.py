"""An encoder's embeddings by NumPy, for texts on the CPU.

The tokens of a batch lie one after the other, without padding, so that products take them all at once; each text
attends to itself. Of one thread's 365 microseconds a token of all-MiniLM-L6-v2 (x86-64 with AVX2, texts of 8 to 63
tokens) products with weights are 275, the activation 35, attention 30 and the rest 25. MLX, whose CPU back-end computes
elements one at a time, takes 400, for padding too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from ..dtype import DType
from ..error import InvalidIndexError
from ..kernels.gelu_erf import B0, B1, D4, END, D
from ..models.bert import BertModel
from ..models.encoder import EncoderLayer
from ..models.mpnet import MPNetModel
from ..nn.activation import Activation
from ..nn.embedding import Embedding
from ..nn.layer_norm import LayerNorm
from ..nn.linear import Linear
from ..tensor.eager import Tensor
from .encoder import SentenceEncoder
from .pooling import SHORTEST

# Of the activation so many elements at a time: what it keeps of them stays in a core's cache. Measured on one thread of
# an x86-64 core with 512 KiB: 3.0 ns an element; 3.2 of half, 3.1 of double as many.
_BLOCK = 1 << 16

_LINEARS = ("query", "key", "value", "output", "up", "down")
_NORMS = ("attention_norm", "norm")

# ``pooling.POOLS`` for the hidden states ``(t, h)`` of one text.
_POOLS: dict[str, Callable[[Any], Any]] = {
    "cls": lambda hidden: hidden[0],
    "max": lambda hidden: hidden.max(0),
    "mean": lambda hidden: hidden.mean(0),
    "mean_sqrt_len_tokens": lambda hidden: hidden.sum(0) / np.float32(math.sqrt(len(hidden))),
}


def refusal(encoder: SentenceEncoder) -> str | None:
    """Why ``HostEncoder`` does not take it, if it does not."""
    model = encoder.model
    if not model.device.is_cpu():
        return f"the model is on {model.device!r}"
    if model.dtype is not DType.F32:
        return f"the model is in {model.dtype}"
    if type(encoder).encode is not SentenceEncoder.encode:
        return f"{type(encoder).__name__} encodes in a way of its own"
    if type(model) is not BertModel and type(model) is not MPNetModel:
        return f"{type(model).__name__} is neither a BertModel nor an MPNetModel"
    for name, part, kind in _parts(model):
        if type(part) is not kind:
            return f"{name} is a {type(part).__name__}, not a plain {kind.__name__}"
        if isinstance(part, LayerNorm) and not part.remove_mean():
            return f"{name} does not remove the mean"
        if isinstance(part, EncoderLayer) and part.activation != Activation.Gelu:
            return f"{name}'s activation is {part.activation!r}, not Activation.Gelu"
    return None


def has_variables(encoder: SentenceEncoder) -> bool:
    """Whether a variable is among its weights, or what one of them was computed from."""
    tensors = (each for _, part, _ in _parts(encoder.model) for each in vars(part).values())
    return any(isinstance(each, Tensor) and each.track_op() for each in tensors)


def _parts(model: Any) -> Iterator[tuple[str, Any, type]]:
    """What a BERT or MPNet is made of: names, modules, and of what kind they are unless somebody has changed them."""
    tables = ("words", "positions", "token_types" if isinstance(model, BertModel) else "distances")
    yield from ((name, getattr(model, name), Embedding) for name in tables)
    yield "embedding_norm", model.embedding_norm, LayerNorm
    for i, layer in enumerate(model.layers):
        yield f"layer {i}", layer, EncoderLayer
        yield from ((f"layer {i}'s {name}", getattr(layer, name), Linear) for name in _LINEARS)
        yield from ((f"layer {i}'s {name}", getattr(layer, name), LayerNorm) for name in _NORMS)


class HostEncoder:
    """What ``encoder`` computes, for one call: what is set in the model later, the next one made sees.

    Threads may share it. Only where ``refusal`` is ``None``; ``longest`` is the most tokens of a text.
    """

    def __init__(self, encoder: SentenceEncoder, longest: int) -> None:
        model = encoder.model
        assert isinstance(model, (BertModel, MPNetModel))
        self._encoder, config = encoder, model.config
        self._heads, self._size = config.num_attention_heads, config.head_dim()
        self._words, self._norm = _held(model.words.embeddings()), _Norm(model.embedding_norm)
        self._places = _held(model.positions.embeddings())
        self._type: Any = None
        self._bias: Any = None
        if isinstance(model, BertModel):
            self._type = _held(model.token_types.embeddings())[0]
        else:
            self._places = self._places[config.pad_token_id + 1 :]
            bias = model.position_bias(Tensor.zeros((1, max(longest, 1)), DType.U32, model.device))
            self._bias = np.ascontiguousarray(_held(bias)[0])
        self._layers = [_Layer(layer) for layer in model.layers]

    def encode(self, rows: Sequence[Sequence[int]]) -> Any:
        """The embeddings ``(n, dimension)`` in float32 of texts' ids; a text without any gives zeros.

        Texts of one length are best side by side. Raises ``InvalidIndexError`` for an id outside the table.
        """
        found = np.zeros((len(rows), self._encoder.dimension()), np.float32)
        texts = [row for row in rows if row]
        if texts:
            # Weights may hold infinities, and what overflows is what it is by MLX, too.
            with np.errstate(all="ignore"):
                hidden = self._hidden(texts)
                pooled = np.stack([self._pooled(text) for text in _split(hidden, texts)])
                if self._encoder.normalizes:
                    norm = np.sqrt((pooled * pooled).sum(1, keepdims=True))
                    pooled /= np.maximum(norm, np.float32(SHORTEST))
            found[[bool(row) for row in rows]] = pooled
        return found

    def _pooled(self, hidden: Any) -> Any:
        return np.concatenate([_POOLS[name](hidden) for name in self._encoder.pools])

    def _hidden(self, texts: Sequence[Sequence[int]]) -> Any:
        """The last hidden states ``(tokens, hidden)`` of all texts."""
        groups, begin = [], 0
        for length, same in groupby(texts, len):
            groups.append((begin, len(list(same)), length))
            begin += groups[-1][1] * length
        xs = self._embedded(texts)
        # Asked for once: what a step gave would come from the system page by page.
        rooms = _Rooms(
            xs,
            max((layer.up.width for layer in self._layers), default=0),
            max(count * self._heads * length**2 for _, count, length in groups),
        )
        self._norm(xs, rooms.normed)
        for layer in self._layers:
            for i, linear in enumerate((layer.query, layer.key, layer.value)):
                linear(xs, rooms.thirds[:, i])
            rooms.thirds[:, 0] *= np.float32(1.0 / math.sqrt(self._size))
            for begin, count, length in groups:
                self._attend(rooms, begin, count, length)
            attended = rooms.attended
            layer.output(rooms.seen, attended)
            attended += xs
            layer.attention_norm(attended, rooms.normed)
            inner = rooms.inner[: len(xs) * layer.up.width]
            layer.up(attended, inner.reshape(len(xs), -1))
            _gelu(inner, rooms.blocks)
            layer.down(inner.reshape(len(xs), -1), xs)
            xs += attended
            layer.norm(xs, rooms.normed)
        return xs

    def _embedded(self, texts: Sequence[Sequence[int]]) -> Any:
        ids = np.concatenate([np.asarray(text) for text in texts])
        if ids.max() >= len(self._words):
            raise InvalidIndexError("embedding", int(ids.max()), len(self._words))
        xs = self._words[ids]
        if self._type is not None:
            xs += self._type
        for text, rows in zip(texts, _split(xs, texts)):
            rows += self._places[: len(text)]
        return xs

    def _attend(self, rooms: _Rooms, begin: int, count: int, length: int) -> None:
        """``rooms.seen`` of ``count`` texts of ``length`` tokens each, which begin there."""
        tokens, heads = slice(begin, begin + count * length), (count, length, self._heads, self._size)
        q, k, v = (rooms.thirds[tokens, i].reshape(heads).swapaxes(1, 2) for i in range(3))
        scores = rooms.scores[: count * self._heads * length**2].reshape(count, self._heads, length, length)
        np.matmul(q, k.swapaxes(2, 3), out=scores)
        if self._bias is not None:
            scores += self._bias[:, :length, :length]
        scores -= scores.max(3, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(3, keepdims=True)
        np.matmul(scores, v, out=rooms.seen[tokens].reshape(heads).swapaxes(1, 2))


class _Rooms:
    """Memory that the steps of a batch write to: for states like ``xs`` ``(tokens, hidden)``, ``inner`` numbers a token
    between the layers of an MLP, and ``scores``."""

    def __init__(self, xs: Any, inner: int, scores: int) -> None:
        tokens, hidden = xs.shape
        self.thirds = np.empty((tokens, 3, hidden), np.float32)  # queries, keys, values
        self.seen, self.attended, self.normed = (np.empty_like(xs) for _ in range(3))
        self.inner, self.scores = np.empty(tokens * inner, np.float32), np.empty(scores, np.float32)
        self.blocks = [np.empty(min(_BLOCK, self.inner.size), np.float32) for _ in range(3)]


class _Linear:
    def __init__(self, layer: Linear) -> None:
        bias = layer.bias()
        self._weight, self._bias = _held(layer.weight()).T, None if bias is None else _held(bias)
        self.width: int = self._weight.shape[1]

    def __call__(self, xs: Any, out: Any) -> None:
        np.matmul(xs, self._weight, out=out)
        if self._bias is not None:
            out += self._bias


class _Norm:
    def __init__(self, layer: LayerNorm) -> None:
        bias = layer.bias()
        self._weight, self._bias = _held(layer.weight()), None if bias is None else _held(bias)
        self._eps = np.float32(layer.eps())

    def __call__(self, xs: Any, room: Any) -> None:
        """``xs`` itself is normed."""
        xs -= xs.mean(1, keepdims=True)
        variance = np.square(xs, out=room).mean(1, keepdims=True)
        xs *= 1 / np.sqrt(variance + self._eps)
        xs *= self._weight
        if self._bias is not None:
            xs += self._bias


class _Layer:
    def __init__(self, layer: EncoderLayer) -> None:
        self.query, self.key, self.value = _Linear(layer.query), _Linear(layer.key), _Linear(layer.value)
        self.output, self.up, self.down = _Linear(layer.output), _Linear(layer.up), _Linear(layer.down)
        self.attention_norm, self.norm = _Norm(layer.attention_norm), _Norm(layer.norm)


def _gelu(xs: Any, rooms: Sequence[Any]) -> None:
    """``kernels.gelu_erf`` of ``xs`` ``(n,)`` in its place: max(x, 0) - |x| · T(|x|), T as it is there."""
    for begin in range(0, len(xs), _BLOCK):
        x = xs[begin : begin + _BLOCK]
        a, divisor, tail = (room[: len(x)] for room in rooms)
        np.minimum(np.abs(x, out=a), np.float32(END), out=a)
        np.add(a, np.float32(D4), out=divisor)
        for coefficient in D:
            divisor *= a
            divisor += np.float32(coefficient)
        np.multiply(a, np.float32(B1), out=tail)
        tail += np.float32(B0)
        tail /= divisor
        for _ in range(3):
            np.square(tail, out=tail)
        tail *= a
        np.maximum(x, np.float32(0), out=x)
        x -= tail


def _held(tensor: Tensor) -> Any:
    """A weight where it lies."""
    return np.array(tensor.mlx(), copy=False)


def _split(rows: Any, texts: Sequence[Sequence[int]]) -> list[Any]:
    """The rows ``(tokens, …)`` of each text."""
    found: list[Any] = np.split(rows, np.cumsum([len(text) for text in texts])[:-1])
    return found
