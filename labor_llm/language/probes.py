"""Probes: small float32 models that read their attention as a large or rounded model does.

In bfloat16 rounding hides mistakes of attention, and a float32 copy of a model may not fit. A probe has the class
and the configuration of the model, hence its attention, but few layers and random weights.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PretrainedConfig, PreTrainedModel

LAYERS = 2
"""A probe's layers at least: the second reads what the first computed with attention."""
SPREAD = 0.3
"""Standard deviation of what is added to biases and norms, which may start at zero or one."""


@contextmanager
def exactly(model: PreTrainedModel) -> Iterator[None]:
    """Let nothing be rounded to bfloat16 or TF32 within the context, and nothing be dropped."""
    training, precision = model.training, torch.get_float32_matmul_precision()
    model.eval()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(model.device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
        model.train(training)


def stands_in_float32(model: PreTrainedModel) -> bool:
    """Whether no weight has another type or is sharded over devices, which may compute in another type."""
    return all(value.dtype == torch.float32 and not isinstance(value, DTensor) for value in model.parameters())


def probe_of(model: PreTrainedModel) -> PreTrainedModel:
    """A model of the same class and configuration on the same device, without adapters, its weights random.

    It has the first layers, as many as show every kind of layer, and the full width and vocabulary.
    """
    bare = getattr(model, "get_base_model", lambda: model)()
    config = deepcopy(bare.config)
    for part in (config.get_text_config(), *(getattr(config, name, None) for name in config.sub_configs)):
        if getattr(part, "num_hidden_layers", None):
            _shorten(part)
            part.dtype = torch.float32
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices), model.device:
        torch.manual_seed(0)
        probe = type(bare)(config).float().eval().requires_grad_(False)
        for weight in probe.parameters():
            _randomize(weight)
    return probe


def _shorten(config: PretrainedConfig) -> None:
    """Cut the layers, and every list that has an entry for each of them."""
    layers = config.num_hidden_layers
    kinds = {name: value for name, value in vars(config).items() if _lists_layers(value, layers)}
    kept = min(layers, max([LAYERS, *(_first_with_all(value) for value in kinds.values())]))
    for name, value in kinds.items():
        setattr(config, name, value[:kept])
    config.num_hidden_layers = kept


def _lists_layers(value: Any, layers: int) -> bool:
    return isinstance(value, list | tuple) and len(value) == layers


def _first_with_all(kinds: Any) -> int:
    """How many of the first entries show every value that occurs."""
    return max(list(map(str, kinds)).index(kind) + 1 for kind in set(map(str, kinds)))


def _randomize(weight: Tensor) -> None:
    """Weights under which no part is without effect, and whose sums are about as large as what goes in."""
    if weight.ndim < 2:
        weight.add_(torch.randn_like(weight), alpha=SPREAD)
    else:
        weight.normal_(std=weight.shape[-1] ** -0.5)
