"""Checkpoints whose weights are packed already: GPTQ, AWQ, FP8, compressed-tensors, bitsandbytes and others."""

from inspect import signature
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING
from transformers.utils.quantization_config import QuantizationConfigMixin

from labor_llm.errors import ConfigError

BITSANDBYTES = ("bitsandbytes_4bit", "bitsandbytes_8bit")


def own_quantization(config: PretrainedConfig) -> dict[str, Any] | None:
    """How the checkpoint's weights are packed, as its config.json says; None if they are not."""
    for part in (config, config.get_text_config()):
        own = getattr(part, "quantization_config", None)
        if own is not None:
            return own if isinstance(own, dict) else own.to_dict()
    return None


def method_of(own: dict[str, Any]) -> str:
    """The name of the method, as transformers lists it."""
    for bits in (4, 8):
        if own.get(f"load_in_{bits}bit"):
            return f"bitsandbytes_{bits}bit"
    return str(own.get("quant_method"))


def check_quantization(
    config: PretrainedConfig, wanted: QuantizationConfigMixin | None, dequantize: bool, path: str
) -> None:
    """A ConfigError unless packed weights are read as what they are, or unpacked because the user says so."""
    own = own_quantization(config)
    if own is None:
        if dequantize:
            raise ConfigError(
                f"backbone.dequantize=true: the weights of {path!r} are not quantized; leave it out."
            )
        return
    method = method_of(own)
    if method not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        raise ConfigError(
            f"backbone.path: the weights of {path!r} are quantized ({method}), which transformers does not read. "
            f"Use the same model in bfloat16. Known: {', '.join(sorted(AUTO_QUANTIZATION_CONFIG_MAPPING))}."
        )
    if wanted is not None:
        raise ConfigError(
            f"adapter=qlora: the weights of {path!r} are quantized already ({method}). adapter=lora trains an "
            "adapter on them as they are."
        )
    _check_unpacking(method, dequantize, path)


def _check_unpacking(method: str, dequantize: bool, path: str) -> None:
    unpacked_in_reading = _unpacked_in_reading(method)
    if dequantize and not unpacked_in_reading and method not in BITSANDBYTES:
        raise ConfigError(
            f"backbone.dequantize=true: transformers does not unpack weights in {method}, as those of {path!r} "
            "are. Use the same model in bfloat16."
        )
    # on CPUs, bitsandbytes 0.50 packs weights anew for inference, in bfloat16 and without gradients
    if not dequantize and (unpacked_in_reading or (method in BITSANDBYTES and not torch.cuda.is_available())):
        raise ConfigError(
            f"backbone.path: the weights of {path!r} are quantized ({method}), and are not trained or scored as "
            "such here. backbone.dequantize=true unpacks them as they are read: the same numbers, in as much "
            "memory as a model that is not quantized."
        )


def _unpacked_in_reading(method: str) -> bool:
    """Whether transformers can unpack such weights as it reads them: FP8, MXFP4, compressed-tensors."""
    return "dequantize" in signature(AUTO_QUANTIZATION_CONFIG_MAPPING[method]).parameters


def unpacking(config: PretrainedConfig) -> QuantizationConfigMixin | None:
    """What has transformers unpack a checkpoint's weights as it reads them, if it can."""
    own = own_quantization(config)
    if own is None or not _unpacked_in_reading(method_of(own)):
        return None
    unpacked: QuantizationConfigMixin = AUTO_QUANTIZATION_CONFIG_MAPPING[method_of(own)](dequantize=True)
    return unpacked


def unpacked(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The model with weights in floating point, if it has others."""
    if own_quantization(model.config) is None:
        return model
    model = model.dequantize(dtype)
    model._weight_conversions = None  # it is saved as it now is, not packed again
    return model


def packed_bits(config: PretrainedConfig) -> int | None:
    """Bits of a weight in memory; None if weights are not packed."""
    own = own_quantization(config)
    return None if own is None else int(own.get("bits") or (8 if "8" in method_of(own) else 4))


def check_trainable(model: PreTrainedModel, path: str) -> None:
    """A ConfigError if weights are packed and can therefore not be trained."""
    own = own_quantization(model.config)
    if own is not None:
        raise ConfigError(
            f"adapter=none trains all weights, and those of {path!r} are packed ({method_of(own)}). Use "
            "adapter=lora, or the same model in bfloat16."
        )
