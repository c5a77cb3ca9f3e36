"""Training data: JSON Lines to batches of tokens with a mask of what is trained on."""

from .batching import Batch, batch_count, batches, collate, split
from .inspection import (
    Summary,
    render_inspection,
    render_inspection_plain,
    render_summary,
    summarize,
)
from .packing import pack, packed_batch_count, packed_batches
from .reading import Completion, Conversation, Message, Row, Text, read_rows
from .sources import DataFiles, find_data, packaged_dataset
from .tokenizing import Example, Tokenizer, tokenize

__all__ = [
    "Batch",
    "Completion",
    "Conversation",
    "DataFiles",
    "Example",
    "Message",
    "Row",
    "Summary",
    "Text",
    "Tokenizer",
    "batch_count",
    "batches",
    "collate",
    "find_data",
    "pack",
    "packaged_dataset",
    "packed_batch_count",
    "packed_batches",
    "read_rows",
    "render_inspection",
    "render_inspection_plain",
    "render_summary",
    "split",
    "summarize",
    "tokenize",
]
