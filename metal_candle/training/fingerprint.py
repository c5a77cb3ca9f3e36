"""What a run was made of, so that it is not continued with something else: its model and its data."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..models.adaptable import AdaptableModel
from .data.tokenizing import Example


@dataclass(frozen=True)
class RowsFingerprint:
    """Some tokenised rows: how many, of how many tokens, and a hash of tokens and what is trained on, in order."""

    rows: int
    tokens: int
    digest: str

    @classmethod
    def of(cls, examples: Sequence[Example]) -> RowsFingerprint:
        """That of these rows."""
        digest, tokens = hashlib.sha256(), 0
        for example in examples:
            ids = np.asarray(example.tokens, dtype="<i8")
            digest.update(len(ids).to_bytes(8, "little") + ids.tobytes())
            digest.update(np.asarray(example.targets, dtype=np.uint8).tobytes())
            tokens += len(ids)
        return cls(len(examples), tokens, digest.hexdigest())


@dataclass(frozen=True)
class DataFingerprint:
    """The rows a run trains on, and those it holds out."""

    train: RowsFingerprint
    valid: RowsFingerprint

    @classmethod
    def of(cls, train: Sequence[Example], valid: Sequence[Example]) -> DataFingerprint:
        """That of a run over these rows."""
        return cls(RowsFingerprint.of(train), RowsFingerprint.of(valid))

    def differences(self, there: DataFingerprint) -> list[str]:
        """What differs from the rows of ``there``, in words."""
        found = []
        for name, mine, theirs in (
            ("training rows", self.train, there.train),
            ("held-out rows", self.valid, there.valid),
        ):
            if (mine.rows, mine.tokens) != (theirs.rows, theirs.tokens):
                found.append(
                    f"{name} are {mine.rows} of {mine.tokens} tokens here, {theirs.rows} of {theirs.tokens} there"
                )
            elif mine != theirs:
                found.append(f"{name} are as many as there, with another content or order")
        return found


@dataclass(frozen=True)
class ModelFingerprint:
    """A frozen model: its sizes, its dtype, and a hash of two of its weights."""

    num_layers: int
    vocab_size: int
    num_parameters: int
    dtype: str
    device: str
    weights: str

    @classmethod
    def of(cls, model: AdaptableModel) -> ModelFingerprint:
        """That of a model."""
        digest = hashlib.sha256()
        places = model.projections()
        for layer in dict.fromkeys((places[0].layer, places[-1].layer)):
            # The smallest: a quantised one is widened for this.
            of_layer = [place for place in places if place.layer == layer]
            place = min(of_layer, key=lambda each: each.in_features * each.out_features)
            digest.update(place.path.encode() + np.ascontiguousarray(place.dense_weight().numpy()).tobytes())
        return cls(
            model.num_layers(),
            model.vocab_size(),
            model.num_parameters(),
            str(model.dtype),
            str(model.device),
            digest.hexdigest(),
        )

    def differences(self, there: ModelFingerprint) -> list[str]:
        """What differs from the model of ``there``, in words; the device may."""
        found = []
        for name in ("num_layers", "vocab_size", "num_parameters", "dtype"):
            mine, theirs = getattr(self, name), getattr(there, name)
            if mine != theirs:
                found.append(f"{name} is {mine} here, {theirs} there")
        # Devices may round otherwise when they widen a quantised weight.
        if not found and self.device == there.device and self.weights != there.weights:
            found.append("the weights have other values")
        return found
