"""Keys and values of the tokens so far. candle: ``candle_nn::kv_cache``.

``KvCache`` keeps them all, ``RotatingKvCache`` those of a sliding window, ``ScatteredKvCache`` those of several streams
that move on independently, and ``ConcatKvCache`` joins them, which copies all of them each time.
"""

from .cache import Cache, KvCache
from .concat import ConcatKvCache
from .recorded import CacheAppend, KvBuffer, RecordedCache, Span
from .rotating import RotatingCache, RotatingKvCache
from .scattered import IndicesAndMask, ScatteredCacheBuilder, ScatteredKvCache

__all__ = [
    "Cache",
    "CacheAppend",
    "ConcatKvCache",
    "IndicesAndMask",
    "KvBuffer",
    "KvCache",
    "RecordedCache",
    "RotatingCache",
    "RotatingKvCache",
    "ScatteredCacheBuilder",
    "ScatteredKvCache",
    "Span",
]
