"""Every causal language model of transformers in a few thousand random weights, made by its own classes.

The sizes are those that most configurations have under these names; what an architecture needs besides stands in
``OWN``. One that a newer transformers adds is found by itself, and made if these sizes suffice.
"""

from collections.abc import Iterator
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

WINDOW = 100
"""Tokens of sliding windows and chunks, and original context: some careers are shorter, some longer."""
LARGEST = 5_000_000
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 1024,
    "sliding_window": WINDOW,
    "attention_chunk_size": WINDOW,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
    "is_decoder": True,
    # encoders and decoders
    "d_model": 32,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 64,
    "encoder_layers": 1,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "ffn_dim": 64,
    "word_embed_proj_dim": 32,
    "embedding_size": 32,
    # mixtures of experts
    "num_local_experts": 4,
    "num_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "moe_k": 2,
    "moe_topk": 2,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "intermediate_size_mlp": 64,
    "first_k_dense_replace": 1,
    # latent attention
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    # linear attention and state spaces
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "mamba_d_ssm": 64,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "state_size": 8,
    "n_groups": 1,
    "linear_num_heads": 4,
    "linear_head_dim": 8,
    # of single architectures
    "hidden_size_per_layer_input": 8,
    "num_kv_shared_layers": 0,
    "index_n_heads": 2,
    "index_head_dim": 8,
    "rotary_dim": 4,
    "dense_intermediate_size": 64,
    "shared_intermediate_size": 16,
    "n_layers": 2,
    "n_heads": 4,
    "num_layers": 2,
}
VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_heads": 2,
    "depth": 1,
    "out_hidden_size": 32,
    "image_size": 28,
    "patch_size": 14,
}
MIXED = {"layer_types": ["sliding_attention", "full_attention"]}
PADDED = {"pad_token_id": 1}
LATENT = {"num_key_value_heads": 4}
ROTATIONS: dict[str, dict[str, Any]] = {
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": WINDOW},
    "llama3": {
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": WINDOW,
    },
}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [8.0, 4.0, 2.0, 1.5],
    "original_max_position_embeddings": WINDOW,
}
OWN: dict[str, dict[str, Any]] = {
    "axk1": LATENT,
    "camembert": PADDED,
    "data2vec-text": PADDED,
    "deepseek_v3": LATENT,
    "falcon_h1": {"lm_head_multiplier": 0.2},
    **dict.fromkeys(("gemma2", "gemma3n_text"), MIXED),
    **dict.fromkeys(("gemma4_text", "gemma4_unified_text"), MIXED | PADDED),
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": WINDOW},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "llama4_text": {"no_rope_layers": [1, 0], "num_experts_per_tok": 1},
    "longcat_flash": LATENT,
    "mamba2": {"num_heads": 4, "head_dim": 16, "expand": 2},
    "modernbert-decoder": {"pad_token_id": 1, "local_attention": WINDOW},
    "qwen3_5_text": {"layer_types": ["linear_attention", "full_attention"]},
    "qwen3_next": {"layer_types": ["linear_attention", "full_attention"]},
    "roberta": PADDED,
    "roberta-prelayernorm": PADDED,
    "xlm-roberta": PADDED,
    "xlm-roberta-xl": PADDED,
    "youtu": LATENT,
}
WITHOUT = {
    "head_dim": (
        "axk1",
        "axk2",
        "deepseek_v3",
        "deepseek_v32",
        "glm4_moe_lite",
        "glm_moe_dsa",
        "longcat_flash",
        "youtu",
    )
}
"""Sizes that some configurations derive from others."""
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        f"llama, {kind} rotations": ("llama", {"rope_parameters": {"rope_type": kind, "rope_theta": 1e4, **own}})
        for kind, own in ROTATIONS.items()
    },
    "phi3, LongRoPE": ("phi3", {"rope_parameters": LONG, "original_max_position_embeddings": WINDOW}),
    "falcon, ALiBi": ("falcon", {"alibi": True}),
    "falcon, new decoder": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "qwen2, sliding window": ("qwen2", {"use_sliding_window": True, "max_window_layers": 1}),
    "qwen3, sliding window": ("qwen3", {"use_sliding_window": True, "max_window_layers": 1}),
    "gpt2, scaled by layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "opt, norm after": ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 16}),
    "gemma3_text, capped logits": ("gemma3_text", {"final_logit_softcapping": 2.0}),
}


def architectures() -> Iterator[str]:
    """The names of all that transformers has, and of variants."""
    yield from sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    yield from VARIANTS


def tiny_model(name: str, vocabulary: int) -> PreTrainedModel:
    """A model of that name that reads a text; a ValueError if these sizes do not make it small."""
    model_type, own = VARIANTS.get(name, (name, {}))
    config = tiny_config(CONFIG_MAPPING[model_type], vocabulary, OWN.get(model_type, {}) | own)
    with torch.device("meta"):
        weights = sum(weight.numel() for weight in AutoModelForCausalLM.from_config(config).parameters())
    if weights > LARGEST:
        raise ValueError(f"{weights / 1e6:.0f} million weights")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(5 if weight.ndim > 1 else 1)  # far from uniform
        model.eval()(torch.arange(2, 2 * WINDOW)[None], use_cache=False)
    return model


def tiny_config(kind: type[PreTrainedConfig], vocabulary: int, own: dict[str, Any]) -> PreTrainedConfig:
    """A configuration of that class with the sizes that it has; its parts likewise."""
    default = kind()
    sizes = VISION if "vision" in default.model_type else SIZES
    sizes = sizes | {"vocab_size": vocabulary, "vocab_size_per_layer_input": vocabulary}
    parts = {
        name: tiny_config(type(part), vocabulary, OWN.get(part.model_type, {})).to_dict()
        for name in default.sub_configs
        if isinstance(part := getattr(default, name, None), PreTrainedConfig)
    }
    names = {*kind.__dataclass_fields__, *kind.attribute_map}
    names -= {name for name, derived in WITHOUT.items() if default.model_type in derived}
    known = {name: size for name, size in sizes.items() if name in names}
    return kind(**((parts | _special_tokens(default, vocabulary)) if parts else known) | own)


def _special_tokens(default: PreTrainedConfig, vocabulary: int) -> dict[str, int]:
    """Ids for images and sounds within the vocabulary, its last ones."""
    named = {name: value for name, value in vars(default).items() if name.endswith(("token_index", "token_id"))}
    large = [name for name, value in named.items() if isinstance(value, int) and value >= vocabulary]
    return {name: vocabulary - 1 - place for place, name in enumerate(large)}
