"""What libraries say when they cannot read a model, in sentences that help."""

from transformers import PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

from labor_llm.errors import ConfigError
from labor_llm.language.attention import ADVICE
from labor_llm.language.model_files import ModelFiles

ATTENTION = ("attn_implementation", "attention implementation", "scaled_dot_product_attention", "FlashAttention")
"""How transformers words that an architecture, or this machine, lacks the attention that was asked for."""


def check_kind(config: PretrainedConfig, path: str) -> None:
    """A ConfigError if a model does not write texts from left to right."""
    kind = type(config)
    encoder = kind in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)
    reads = "an encoder, which reads texts in both directions" if encoder else "no causal language model"
    if getattr(config, "is_encoder_decoder", False):
        reads = "an encoder with a decoder, which translates one text into another"
    elif not encoder and kind in MODEL_FOR_CAUSAL_LM_MAPPING:
        return
    raise ConfigError(
        f"backbone.path: {path!r} is {reads} (model_type {config.model_type}). Use a model that transformers "
        "loads as AutoModelForCausalLM, such as Llama, Qwen or GPT-2."
    )


def not_read(part: str, error: Exception, files: ModelFiles, weights: str, attention: str) -> ConfigError:
    """The library's first sentence, with what a user can do about it."""
    text, path, reason = str(error), files.path, _reason(error)
    if "trust_remote_code" in text:
        return ConfigError(
            f"backbone.path: {path!r} needs code of its own (auto_map in its files), and labor-llm runs no code "
            "of checkpoints. Use a model that transformers has a class for."
        )
    if part != "tokenizer" and any(word in text for word in ATTENTION):
        advice = ADVICE if attention == "sdpa" else "Use backbone.attention=sdpa."
        return ConfigError(
            f"backbone.attention={attention}: {path!r} has none ({reason.split('. ')[0]}). {advice}"
        )
    if "CONVERSION" in text:
        reason = "its weights do not have the form that config.json describes"
    if isinstance(error, ImportError):
        return ConfigError(f"backbone.path: a library that the {part} of {path!r} needs is missing ({reason}).")
    if isinstance(error, OSError) and part == "model" and weights == "safetensors" and "safetensors" in text:
        return ConfigError(
            f"backbone.weights: {path!r} could not be loaded from safetensors ({reason}). If it has "
            "pytorch_model*.bin, backbone.weights=pickle reads the weights in it and runs no code."
        )
    if files.inner.is_dir():
        return ConfigError(
            f"backbone.path: the {part} of {path!r} could not be loaded ({reason}). Copy or download the folder "
            "again: config.json, tokenizer.json and weights of one model."
        )
    return ConfigError(
        f"backbone.path: the {part} of {path!r} could not be loaded ({reason}). Without internet, copy "
        "the model's folder (config.json, tokenizer.json, *.safetensors) to this machine and set "
        "backbone.path=/its/folder (HF_HUB_OFFLINE=1 saves the wait); a gated model needs `hf auth login`."
    )


def _reason(error: Exception) -> str:
    """The first line, with the second if it only introduces that; the kind of error if the text says little."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    if isinstance(error, LookupError | AttributeError) or not lines:
        return repr(error)
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1]).rstrip(".")
