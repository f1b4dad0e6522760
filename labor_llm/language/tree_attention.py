"""Attention for the nodes of a token tree that hangs on every record of a career.

A node attends to the career up to its record's prompt, whose keys all records of the career share, and to its own
ancestors in the tree, of which there are few. Neither needs a mask over all nodes, so the cost stays close to that
of the model's matrix products. It is registered with transformers' AttentionInterface, and thus serves every
architecture that reads its attention from there.

Legend: B careers, R records of each, L tokens of the longest, W nodes of a level of the tree, C of them in a
node's path (itself included), K key-value heads, G query heads for each, H = K G, D numbers of a head.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, DynamicCache, PreTrainedModel

from labor_llm.errors import RunError

NAME = "labor_llm_tree"


class TreeState:
    """Keys and values of careers, shared by their records, and of the tree's nodes reached so far."""

    def __init__(self, past: DynamicCache, prompt_ends_BR: Tensor, nodes: int) -> None:
        self.past, self.prompt_ends_BR, self.nodes = past, prompt_ends_BR, nodes
        self.node_keys: dict[int, Tensor] = {}
        self.node_values: dict[int, Tensor] = {}
        self.level = slice(0, 0)
        self.paths_WC = torch.empty(0, 0, dtype=torch.long)
        length = past.layers[0].keys.shape[-2]
        self.places_L = torch.arange(length, device=prompt_ends_BR.device)
        self._biases: dict[int | None, Tensor] = {}

    def enter(self, level: slice, paths_WC: Tensor) -> None:
        """Go on to the nodes of the next level, given the path of each from the root."""
        self.level, self.paths_WC = level, paths_WC
        self._biases = {}

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None
    ) -> Tensor:
        """What each node of the level reads, shape (B, R W, H, D), from queries (B, H, R W, D)."""
        (careers, records), heads, width = self.prompt_ends_BR.shape, key.shape[1], len(self.paths_WC)
        groups = query.shape[1] // heads
        path_keys = self._keep(self.node_keys, layer, key)
        path_values = self._keep(self.node_values, layer, value)
        past_keys, past_values = self._past(layer)
        flat = query.reshape(careers, heads, groups * records * width, -1)
        rows = query.reshape(careers, heads, groups, records, width, -1)
        to_past = torch.matmul(flat, past_keys.transpose(-1, -2)).view(*rows.shape[:-1], -1)
        to_path = torch.einsum("bkgrwd,bkrwcd->bkgrwc", rows, path_keys)
        scores = torch.cat([to_past, to_path], dim=-1).float().mul_(scale)
        scores[..., : len(self.places_L)] += self._bias(window)
        weights = scores.softmax(-1).to(query.dtype)
        from_past, from_path = weights.split([len(self.places_L), to_path.shape[-1]], dim=-1)
        read = torch.matmul(from_past.reshape(*flat.shape[:-1], -1), past_values).view_as(rows)
        read = read + torch.einsum("bkgrwc,bkrwcd->bkgrwd", from_path, path_values)
        return read.reshape(careers, heads * groups, records * width, -1).transpose(1, 2)

    def _keep(self, store: dict[int, Tensor], layer: int, new: Tensor) -> Tensor:
        """Store the level's keys or values and return those of every node's path, (B, K, R, W, C, D)."""
        careers, heads, _, size = new.shape
        records = self.prompt_ends_BR.shape[1]
        if layer not in store:
            store[layer] = new.new_empty(careers, heads, records, self.nodes, size)
        store[layer][:, :, :, self.level] = new.view(careers, heads, records, -1, size)
        return store[layer][:, :, :, self.paths_WC]

    def _past(self, layer: int) -> tuple[Tensor, Tensor]:
        keys, values = self.past.layers[layer].keys, self.past.layers[layer].values
        if keys.shape[-2] != len(self.places_L):
            raise RunError("the model does not keep the whole career in its cache; its titles cannot be scored")
        return keys, values

    def _bias(self, window: int | None) -> Tensor:
        """Minus infinity on tokens after the prompt and outside a sliding window, (B, 1, 1, R, 1, L)."""
        if window not in self._biases:
            ends = self.prompt_ends_BR[..., None, None]
            hidden = self.places_L >= ends
            if window is not None:
                hidden = hidden | (ends - 1 + self.paths_WC.shape[1] - self.places_L >= window)
            bias = torch.zeros(hidden.shape, device=hidden.device).masked_fill_(hidden, float("-inf"))
            self._biases[window] = bias[:, None, None]
        return self._biases[window]


_STATE: ContextVar[TreeState] = ContextVar("labor_llm_tree_state")


def tree_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers calls in every layer while ``attending_to_tree`` is open."""
    if softcap is not None or s_aux is not None:
        raise RunError(f"{type(module).__name__} caps its attention or has sinks, which tree scoring does not do")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    return _STATE.get().attend(module.layer_idx, query, key, value, scale, sliding_window), None


AttentionInterface.register(NAME, tree_attention)


@contextmanager
def attending_to_tree(model: PreTrainedModel, state: TreeState) -> Iterator[None]:
    """Let the model's forward passes read the tree's nodes with their careers and paths."""
    before, token = model.config._attn_implementation, _STATE.set(state)
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
        _STATE.reset(token)
