"""What a network's layers keep for the gradients: counted on the same layers made narrower.

Everything that a layer keeps for a token grows in proportion to its width, so a narrow copy with the same ratios
tells what the real one keeps, whatever its architecture, attention and adapter; it takes milliseconds.

Legend: T tokens, L tokens of one career, E numbers of a hidden state.
"""

import copy
import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from labor_llm.language.adapters import Adapter
from labor_llm.language.attention import PACKED, attending
from labor_llm.language.backbones import Backbone
from labor_llm.language.batches import Layout

PROBE = 64
"""Tokens of the careers that the narrow copy reads: a multiple of the blocks that attention on a CPU reads."""
VOCABULARY = 64


@dataclass(frozen=True)
class Activations:
    """Bytes that are kept from the forward pass until the gradients are computed."""

    token: float
    """Per token, outside the layers."""
    layer_token: float
    """Per token and layer, from all that a token keeps by itself."""
    layer_pair: float
    """Per layer and square of a career's length: 0 where attention keeps no shares."""
    between: float
    """Per token, what goes from one layer to the next: all that is kept of a layer that is computed again."""

    def of_layer(self, lengths: Sequence[int]) -> float:
        """Bytes of one layer for careers of these lengths."""
        return self.layer_token * sum(lengths) + self.layer_pair * sum(length**2 for length in lengths)

    def kept(self, lengths: Sequence[int], layers: int, recomputed: bool) -> float:
        """Bytes of a whole pass at its peak, at which one layer's temporary results count like a layer more."""
        tokens = sum(lengths)
        kept = (
            layers * self.between * tokens + self.of_layer(lengths)
            if recomputed
            else layers * self.of_layer(lengths)
        )
        return self.token * tokens + kept + self.of_layer(lengths)


def count_activations(
    config: PreTrainedConfig,
    adapter: Adapter,
    backbone: Backbone,
    dtype: torch.dtype,
    mixed: bool,
    layout: Layout,
    device: torch.device,
) -> Activations:
    """Count on networks of one and of two layers, with one career, two of them, and one of twice the length."""
    narrow, factor = _narrowed(config)

    def kept(layers: int, lengths: Sequence[int]) -> float:
        narrow.num_hidden_layers = layers
        network = adapter.apply(_network(narrow, dtype), backbone).to(device).train()
        return factor * _kept(network, lengths, mixed, layout)

    one, two, long = (kept(1, lengths) for lengths in ([PROBE], [PROBE] * 2, [2 * PROBE]))
    layer = (kept(2, [PROBE] * 2) - kept(2, [PROBE])) - (two - one)
    pair = max(0.0, (long - two) / (2 * PROBE**2))
    return Activations(
        token=(two - one - layer) / PROBE,
        layer_token=layer / PROBE - pair * PROBE,
        layer_pair=pair,
        between=config.hidden_size * torch.finfo(dtype).bits / 8,
    )


def _narrowed(config: PreTrainedConfig) -> tuple[PreTrainedConfig, int]:
    """The configuration with the fewest heads of the same size, and how many times narrower it is."""
    narrow = copy.deepcopy(config.get_text_config())
    heads = narrow.num_attention_heads
    sizes = {
        "num_attention_heads": heads,
        "num_key_value_heads": getattr(narrow, "num_key_value_heads", None) or heads,
        "hidden_size": narrow.hidden_size,
        "intermediate_size": getattr(narrow, "intermediate_size", None) or narrow.hidden_size,
    }
    factor = math.gcd(*sizes.values())
    for name, size in sizes.items():
        if getattr(narrow, name, None) is not None:
            setattr(narrow, name, size // factor)
    narrow.vocab_size, narrow.pad_token_id = VOCABULARY, None
    return narrow, factor


def _network(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    if kinds := getattr(config, "layer_types", None):
        config.layer_types = (list(kinds) * 2)[: config.num_hidden_layers]
    network = AutoModelForCausalLM.from_config(config)
    for weight in network.parameters():
        weight.data = weight.data.to(dtype)
    return network


def _kept(network: PreTrainedModel, lengths: Sequence[int], mixed: bool, layout: Layout) -> int:
    """Bytes of all storages that a forward pass over such careers keeps, but for the weights themselves."""
    weights = {weight.untyped_storage().data_ptr() for weight in network.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # holding them, so that no address is used twice

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage
        return tensor

    bare = getattr(network, "get_base_model", lambda: network)().base_model
    packed = layout == "packed"
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast(network.device.type, torch.bfloat16, enabled=mixed),
        attending(network, PACKED) if packed else nullcontext(),
    ):
        states = bare(**_inputs(lengths, packed, network.device), use_cache=False).last_hidden_state
    del states
    return sum(storage.nbytes() for address, storage in kept.items() if address not in weights)


def _inputs(lengths: Sequence[int], packed: bool, device: torch.device) -> dict[str, Any]:
    if not packed:
        ids_BL = torch.zeros(len(lengths), lengths[0], dtype=torch.long, device=device)
        return {"input_ids": ids_BL, "attention_mask": torch.ones_like(ids_BL)}
    places_T = torch.cat([torch.arange(length, device=device) for length in lengths])[None]
    starts = [sum(lengths[:career]) for career in range(len(lengths) + 1)]
    return {"input_ids": torch.zeros_like(places_T), "position_ids": places_T, "career_starts": starts}
