"""What ``MlxLmModel`` refuses, in words: wrong arguments, targets that cannot be adapted, other adapters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from metal_candle import Tensor
from metal_candle.error import ArgumentTypeError, Error, InvalidIndexError, ModelError, TrainingError
from metal_candle.models.mlx_lm import MlxLmModel
from metal_candle.training import LoRAAdapter, LoRAAdapterConfig, LoRAConfig, LoRALayer

import mlx.nn as nn
import numpy as np
import pytest
from mlx_network import HIDDEN, IDS, adapter_for, batch, is_adapted, network


@pytest.fixture
def model() -> MlxLmModel:
    return MlxLmModel(network())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda model: MlxLmModel(model.module, None, 3), "MlxLmModel: got config 3; takes the object of a config"),
        (lambda model: model.apply_adapter(None), "apply_adapter: got None; takes an adapter"),
        (lambda model: model.forward([[1]]), "MlxLmModel: got ids a list; takes a tensor"),
        (lambda model: model.row_losses(3, 3, 3), "MlxLmModel: got ids 3; takes a tensor"),
        (lambda model: model.refused_target(3), "refused_target: got 3; takes a name"),
        (lambda model: model.next_logits(3, []), "next_logits: got ids 3; takes a list of ids"),
        (lambda model: model.next_logits(["x"], []), "next_logits: got an id 'x'; takes an integer"),
        (lambda model: model.next_logits([1], None), "next_logits: got caches None; takes a list of caches"),
        (lambda model: model.next_logits([1], [3]), "next_logits: got caches a list; takes a list of caches"),
    ],
)
def test_wrong_arguments_are_told_in_words(model: MlxLmModel, call: Callable[[Any], object], words: str) -> None:
    with pytest.raises(ArgumentTypeError, match=words):
        call(model)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("experts", r"transformer\.h\.0\.experts is a Experts, which cannot be adapted"),
        ("wte", r"transformer\.wte is a Embedding, which cannot be adapted"),
        ("q_proj", "no module of the model is 'q_proj'; it has proj_in, proj_out"),
    ],
)
def test_targets_that_are_refused(model: MlxLmModel, target: str, words: str) -> None:
    with pytest.raises(TrainingError.InvalidLoRAConfig, match=words):
        LoRAAdapter.for_model(model, LoRAAdapterConfig(4, 8.0, 0.0, (target,)))


def test_a_name_that_experts_share_is_refused_with_the_longer_one() -> None:
    built = network()
    built.layers[1].mixer["experts"] = nn.Linear(HIDDEN, HIDDEN)
    model = MlxLmModel(built)
    assert model.refused_target("experts") == (
        "transformer.h.0.experts is a Experts, which cannot be adapted; mixer.experts can be"
    )
    assert model.refused_target("mixer.experts") is None
    assert (
        "mixer.experts"
        in LoRAAdapter.for_model(model, LoRAAdapterConfig(4, 8.0, 0.0, ("all-linear",))).config().target_names()
    )


def test_two_models_of_one_module_do_not_share_an_adapter() -> None:
    """Both would act in the same maps: the second would compute with the first one's factors, and train nothing."""
    built = network()
    first, second = MlxLmModel(built), MlxLmModel(built)
    ids = Tensor.from_numpy(IDS)
    base, adapter = first.forward(ids).numpy(), adapter_for(first)
    first.apply_adapter(adapter)
    another = "proj_in: an adapter acts here that another MlxLmModel of the same module has applied"
    for refused in (
        lambda: MlxLmModel(built),
        lambda: second.apply_adapter(adapter),
        lambda: second.forward(ids),
        lambda: second.weighted_loss(*batch()),
    ):
        with pytest.raises(ModelError.InvalidConfig, match=another):
            refused()
    second.remove_adapter()  # its own, of which there is none
    assert not second.has_adapter()
    assert is_adapted(first.projections()[0])
    first.remove_adapter()
    np.testing.assert_array_equal(second.forward(ids).numpy(), base)
    second.apply_adapter(adapter)
    assert not np.array_equal(second.forward(ids).numpy(), base)


def test_other_mistakes_are_named(model: MlxLmModel) -> None:
    with pytest.raises(ModelError.InvalidConfig, match="got list; takes a model of mlx-lm"):
        MlxLmModel([1])
    with pytest.raises(ModelError.InvalidConfig, match="Linear: got a module without blocks"):
        MlxLmModel(nn.Linear(2, 2))
    small = MlxLmModel(network(blocks=1))
    with pytest.raises(ModelError.InvalidConfig, match="the adapter spans 1 layers, the model has 2"):
        model.apply_adapter(adapter_for(small))
    path = model.projections()[0].path
    narrow = LoRAAdapter.of_layers(LoRAAdapterConfig(2), {path: LoRALayer(5, 6, LoRAConfig(2))}, 2)
    with pytest.raises(ModelError.InvalidConfig, match="proj_in maps 5 to 6, the model 32 to 64"):
        model.apply_adapter(narrow)
    assert not model.has_adapter()
    with pytest.raises(InvalidIndexError, match="48"):
        model.forward(Tensor.from_numpy(np.array([[1, 48]], np.uint32)))
    ids, rows, targets, _ = batch()
    with pytest.raises(InvalidIndexError, match="8"):
        model.row_losses(ids, Tensor.from_numpy(np.array([0, 1, 8], np.int32)), targets)
    with pytest.raises(Error, match=r"got \[3\] rows and \[2\] targets or weights"):
        model.row_losses(ids, rows, targets.narrow(0, 0, 2))
    with pytest.raises(Error, match="mlx_lm_logits"):
        model.forward(Tensor.from_numpy(IDS[0]))
