"""Many architectures of mlx-lm, tiny and random: adapted in every linear map, each agrees with mlx-lm's own LoRA."""

from __future__ import annotations

import importlib
from typing import Any

from metal_candle import Tensor
from metal_candle.inference import Generator, GeneratorConfig
from metal_candle.models.mlx_lm import MlxLmModel
from metal_candle.training import LoRAAdapter, LoRAAdapterConfig

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

pytest.importorskip("mlx_lm")

from mlx_lm.tuner.utils import linear_to_lora_layers

VOCABULARY = 64
# One set of sizes for all: each architecture's arguments take what they know.
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-6,
    "layer_norm_eps": 1e-5,
    "layer_norm_epsilon": 1e-5,
    "norm_eps": 1e-5,
    "rope_theta": 1e4,
    "rope_parameters": {"rope_theta": 1e4, "rope_type": "default"},
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "bias": False,
    "hidden_act": "silu",
    "partial_rotary_factor": 0.5,
    "sliding_window": 16,
    "sliding_window_pattern": 2,
    "layer_types": ["full_attention", "full_attention"],
    "query_pre_attn_scalar": 8,
    # GPT-2's and its kin
    "n_embd": 32,
    "n_head": 4,
    "n_layer": 2,
    "n_positions": 128,
    "n_ctx": 128,
    "n_inner": 64,
    "rotary_dim": 4,
    "rotary_emb_base": 10000,
    "rotary_pct": 0.5,
    "use_parallel_residual": True,
    "num_heads": 4,
    "num_layers": 2,
    "use_qkv_bias": False,
    "kv_channels": 8,
    "no_bias": True,
    "seq_length": 128,
    # scaled logits and residuals
    "logit_scale": 0.5,
    "logits_scaling": 2.0,
    "embedding_multiplier": 2.0,
    "attention_multiplier": 0.3,
    "residual_multiplier": 0.7,
    "dim_model_base": 32,
    "scale_depth": 1.4,
    "scale_emb": 2.0,
    # experts
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "routed_scaling_factor": 1.0,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "n_group": 1,
    "topk_group": 1,
    "moe_layer_freq": 1,
    "first_k_dense_replace": 1,
    # latent attention
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    # states of a scan, linear attention
    "state_size": 8,
    "conv_kernel": 4,
    "use_bias": False,
    "use_conv_bias": True,
    "time_step_rank": 4,
    "time_step_limit": (0.0, 100.0),
    "n_groups": 1,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 2,
}
DECODERS = ["cohere", "exaone", "gemma", "gemma3", "glm4", "gpt_bigcode", "gpt_neox", "gptj", "granite", "internlm2"]
DECODERS += ["minicpm", "mistral3", "nanochat", "nemotron", "olmo2", "phi", "phi3", "qwen", "stablelm", "starcoder2"]
EXPERTS = ["deepseek_v3", "granitemoe", "mixtral", "olmoe", "qwen2_moe", "phimoe"]
SCANS = ["mamba", "mamba2", "falcon_h1", "qwen3_next"]


def built(architecture: str) -> Any:
    module = importlib.import_module(f"mlx_lm.models.{architecture}")
    sizes = {**SIZES, "model_type": architecture}
    mx.random.seed(0)
    model = module.Model(module.ModelArgs.from_dict({**sizes, "text_config": sizes}))
    mx.eval(model.parameters())
    return model


@pytest.mark.slow
@pytest.mark.parametrize("architecture", DECODERS + EXPERTS + SCANS)
def test_loss_gradients_and_text_are_mlx_lms(architecture: str) -> None:
    model = MlxLmModel(built(architecture))
    assert "after " in model.explain(), "only the rows asked for meet the head"
    adapter = LoRAAdapter.for_model(model, LoRAAdapterConfig(2, 4.0, 0.0, ("all-linear",)))
    rng = np.random.default_rng(0)
    for _, layer in adapter.layers():
        layer.lora_b().set(Tensor.from_numpy(rng.normal(0, 0.05, layer.lora_b().shape).astype(np.float32)))
    ids, rows = rng.integers(0, VOCABULARY, (2, 6)).astype(np.uint32), np.array([0, 3, 7], np.int32)
    targets, weights = np.array([5, 6, 7], np.int32), np.array([0.2, 0.3, 0.5], np.float32)
    plain = np.array(model.module(mx.array(ids)))
    model.apply_adapter(adapter)
    loss = model.weighted_loss(*map(Tensor.from_numpy, (ids, rows, targets, weights)))
    grads = loss.backward()

    reference = built(architecture)
    reference.freeze()
    linear_to_lora_layers(reference, 2, {"rank": 2, "scale": 2.0, "dropout": 0.0, "keys": set(adapter.paths())})
    variables = {}
    for path in adapter.paths():
        layer = adapter.layer_at(path)
        assert layer is not None
        variables |= {f"{path}.lora_a": layer.lora_a(), f"{path}.lora_b": layer.lora_b()}
    reference.load_weights([(name, var.mlx()) for name, var in variables.items()], strict=False)

    def loss_of(network: Any) -> mx.array:
        logits = network(mx.array(ids)).reshape(-1, VOCABULARY)[mx.array(rows)]
        return (nn.losses.cross_entropy(logits, mx.array(targets)) * mx.array(weights)).sum()

    value, found = nn.value_and_grad(reference, loss_of)(reference)
    expected = {name: np.array(gradient) for name, gradient in tree_flatten(found)}
    largest = max(np.abs(gradient).max() for gradient in expected.values())
    assert float(loss) == pytest.approx(value.item(), abs=1e-5)
    assert expected.keys() == variables.keys()
    for name, gradient in expected.items():
        # Fewer rows meet the head here, and sums are in another order.
        np.testing.assert_allclose(grads[variables[name]].numpy(), gradient, atol=1e-5 * max(1.0, largest))

    class Whole:
        """Computes the whole sequence again for each token, without caches."""

        def forward(self, xs: Tensor) -> Tensor:
            logits: Tensor = model.forward(xs)
            return logits

    config = GeneratorConfig(max_tokens=6)
    assert Generator(model, config).generate([3, 5, 7]) == Generator(Whole(), config).generate([3, 5, 7])
    model.remove_adapter()
    np.testing.assert_array_equal(np.array(model.module(mx.array(ids))), plain)
