"""Attention for careers laid end to end in one row, and for the token trees that hang on their records.

Both are registered with transformers' AttentionInterface and so serve every architecture that reads its
attention from there. Neither builds a mask over all tokens: a career attends to itself alone, and a node of a tree
attends to its career up to the record's prompt, whose keys all records share, and to its own ancestors, of which
there are few.

Legend: T tokens of all careers, N nodes of one pass, A ancestors of each, H = K G query heads on K key-value
heads, D numbers of a head.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, DynamicCache, PreTrainedModel

from labor_llm.errors import LaborLLMError, RunError
from labor_llm.language.blocks import block_attention
from labor_llm.language.layers import fast_layers

ADVICE = "Use another architecture: Llama 2 or 3, Qwen 2 or 3, Mistral, Gemma 1 or 3, GPT-2 or GPT-NeoX."
PACKED, TREE = "labor_llm_packed", "labor_llm_tree"

BLOCK_ROWS = 64
"""Nodes below which several records share one call on a CPU, at the price of a mask."""


def architecture(model: PreTrainedModel) -> str:
    """Its name, without that of an adapter."""
    return type(getattr(model, "get_base_model", lambda: model)()).__name__


@contextmanager
def attempting(model: PreTrainedModel, what: str) -> Iterator[None]:
    """Turn an error of the model's own code into a RunError that says which architecture cannot do what."""
    try:
        yield
    except (LaborLLMError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # any code of any architecture
        reason = str(error).strip().splitlines() or [""]
        raise RunError(
            f"{architecture(model)} cannot {what} ({type(error).__name__}: {reason[0]}). {ADVICE}"
        ) from error


@contextmanager
def attending(model: PreTrainedModel, name: str, fast: bool = True) -> Iterator[None]:
    """Let the model's forward passes use the attention of that name; a RunError if its architecture cannot.

    ``fast``: other parts of its layers take the fast way of ``labor_llm.language.layers``, too.
    """
    before = model.config._attn_implementation
    with attempting(model, "replace its attention"):
        model.set_attn_implementation(name)
    if model.config._attn_implementation != name:
        raise RunError(f"{architecture(model)} has attention of its own, which cannot be replaced. {ADVICE}")
    try:
        with fast_layers(model) if fast else nullcontext():
            yield
    finally:
        model.set_attn_implementation(before)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def packed_attention(
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
    career_starts: Sequence[int] = (),
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each career of a single row, (1, T, H, D); ``career_starts`` includes the end T."""
    _refuse(module, softcap, s_aux)
    if not career_starts:
        raise RunError(
            f"{type(module).__name__} is not told where careers begin: its model keeps it back. {ADVICE}"
        )
    lengths = [end - start for start, end in pairwise(career_starts)]
    on_cpu = value.device.type == "cpu"
    in_blocks = on_cpu and not dropout and (sliding_window is None or max(lengths) <= sliding_window)
    # Under autocast, norms may have left float32; and PyTorch's attention is no faster in bfloat16 on a CPU.
    dtype, groups = torch.float32 if on_cpu and not in_blocks else value.dtype, query.shape[1] // key.shape[1]
    parts = query.to(dtype), key.to(dtype), value.to(dtype)
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    with torch.autocast(value.device.type, enabled=False):
        if in_blocks:
            q, k, v = (part[0].transpose(0, 1) for part in parts)
            return block_attention(q, k, v, scale, career_starts)[None], None
        parts = parts[0], _repeated(parts[1], groups), _repeated(parts[2], groups)
        read = [
            scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=_window_mask(q.shape[2], sliding_window, value),
                dropout_p=dropout,
                is_causal=sliding_window is None or q.shape[2] <= sliding_window,
                scale=scale,
            )
            for q, k, v in zip(*(part.split(lengths, dim=2) for part in parts), strict=True)
        ]
    return torch.cat(read, dim=2).transpose(1, 2).contiguous().to(value.dtype), None


def _repeated(heads: Tensor, groups: int) -> Tensor:
    """Every key-value head once for each of its query heads."""
    return heads if groups == 1 else heads.repeat_interleave(groups, dim=1)


def _window_mask(length: int, window: int | None, like: Tensor) -> Tensor | None:
    """True on the window's tokens, each token its own last, (L, L); None where the window hides nothing."""
    if window is None or length <= window:
        return None
    ones = torch.ones(length, length, dtype=torch.bool, device=like.device)
    return ones.tril() & ones.triu(1 - window)


def _refuse(module: Any, softcap: float | None, s_aux: Tensor | None) -> None:
    if softcap is not None or s_aux is not None:
        raise RunError(
            f"{type(module).__name__} caps its attention or has sinks, which is not done here. {ADVICE}"
        )


@dataclass
class Block:
    """Some consecutive nodes of a pass that hang on one career."""

    nodes: slice
    start: int
    """Where the career begins in the row of careers."""
    ends_N: Tensor
    """Per node, where its record's prompt ends in the row of careers."""
    shared_end: int | None
    """That end where it is the same for all nodes."""
    depths_N: Tensor
    """Tokens from the prompt to each node."""
    _views: dict[int | None, tuple[slice, Tensor | None]] = field(default_factory=dict)

    def view(self, window: int | None) -> tuple[slice, Tensor | None]:
        """The tokens of careers that some node sees, and minus infinity on those that a node does not, (N, L).

        A RunError if the nodes are deeper than a sliding window.
        """
        if window not in self._views:
            first, last = self.start, self.shared_end or int(self.ends_N.max())
            if window is not None:
                if int(self.depths_N.max()) >= window:
                    raise RunError(f"a title is longer than the {window} tokens that the model attends to")
                first = max(first, int((self.ends_N + self.depths_N).min()) - window)
            self._views[window] = slice(first, last), self._bias(first, last, window)
        return self._views[window]

    def _bias(self, first: int, last: int, window: int | None) -> Tensor | None:
        reach = 0 if window is None else int((self.ends_N + self.depths_N).max()) - window
        if self.shared_end is not None and reach <= first:
            return None
        places_L = torch.arange(first, last, device=self.ends_N.device)
        hidden_NL = places_L >= self.ends_N[:, None]
        if window is not None:
            hidden_NL |= places_L < (self.ends_N + self.depths_N)[:, None] - window
        return torch.zeros(hidden_NL.shape, device=hidden_NL.device).masked_fill_(hidden_NL, float("-inf"))


@dataclass(frozen=True)
class Paths:
    """The nodes of a pass in order of depth, and the way to each from the prompt, itself included."""

    path_AN: Tensor
    """Numbers in the forest, the first token's first."""
    starts: Sequence[int]
    """For each step of the way, the first node of the pass whose way is so long."""

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        for start, path_N in zip(self.starts, self.path_AN, strict=True):
            yield start, path_N[start:]

    def __len__(self) -> int:
        return len(self.starts)


class Forest:
    """Keys and values of careers in one row, and of the nodes reached so far of the trees on their records."""

    def __init__(self, past: DynamicCache) -> None:
        self.past = past
        self.size = 0
        """Nodes kept so far."""
        self._kept: dict[int, Tensor] = {}
        self.paths = Paths(torch.empty(0, 0, dtype=torch.long), ())
        self.blocks: list[Block] = []
        self.order_N: Tensor | None = None

    def enter(self, paths: Paths, blocks: list[Block], order_N: Tensor | None) -> None:
        """Begin a pass over nodes; blocks are cut from its nodes in the given order, None for as they are."""
        self.paths, self.blocks, self.order_N = paths, blocks, order_N

    def leave(self, kept: bool) -> None:
        """End the pass; its nodes have the next numbers if they are kept."""
        self.size += self.paths.path_AN.shape[1] if kept else 0

    def fell(self) -> None:
        """Forget all nodes, and keep their memory for the next trees."""
        self.size = 0

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None
    ) -> Tensor:
        """What each node reads, shape (1, N, H, D), from queries (1, H, N, D) and its own key (1, K, N, D)."""
        count, heads, width = query.shape[2], key.shape[1], query.shape[3]
        query, key = query.to(value.dtype), key.to(value.dtype)  # as in packed_attention
        keys, values = self._keep(layer, key[0].transpose(0, 1), value[0].transpose(0, 1))
        past, past_norm = self._read_past(layer, query, scale, window)
        grouped = query[0].transpose(0, 1).reshape(count, heads, -1, width).float().contiguous()
        logs = grouped.new_full((len(self.paths) + 1, *grouped.shape[:3]), float("-inf"))
        logs[0] = past_norm.view_as(logs[0])
        products = torch.empty_like(grouped)
        for depth, (start, path_N) in enumerate(self.paths, start=1):  # one step at a time stays in the cache
            torch.mul(grouped[start:], keys.index_select(0, path_N)[:, :, None].float(), out=products[start:])
            torch.sum(products[start:], -1, out=logs[depth, start:])
        logs[1:] *= scale
        shares = logs.softmax(0)[..., None]
        read = past.view_as(grouped).float() * shares[0]
        for depth, (start, path_N) in enumerate(self.paths, start=1):
            read[start:].addcmul_(values.index_select(0, path_N)[:, :, None].float(), shares[depth, start:])
        return read.reshape(1, count, -1, width).to(value.dtype)

    def _keep(self, layer: int, key_NKD: Tensor, value_NKD: Tensor) -> tuple[Tensor, Tensor]:
        """Keep the nodes' own keys and values; returns those of all nodes so far, (M, K, D) each."""
        needed, kept = self.size + len(key_NKD), self._kept.get(layer)
        if kept is None or kept.shape[1] < needed:
            grown = key_NKD.new_empty(2, max(2 * self.size, needed), *key_NKD.shape[1:])
            if kept is not None:
                grown[:, : self.size] = kept[:, : self.size]
            self._kept[layer] = kept = grown
        kept[0, self.size : needed], kept[1, self.size : needed] = key_NKD, value_NKD
        return kept[0], kept[1]

    def _read_past(self, layer: int, query: Tensor, scale: float, window: int | None) -> tuple[Tensor, Tensor]:
        """What the nodes read of their careers, (N, H, D), and the log of what the softmax divides by, (N, H)."""
        keys, values = self.past.layers[layer].keys, self.past.layers[layer].values
        query = query if self.order_N is None else query.index_select(2, self.order_N)
        reads, norms = [], []
        for block in self.blocks:
            seen, bias = block.view(window)
            read, norm = _attention_with_norm(
                query[:, :, block.nodes], keys[:, :, seen], values[:, :, seen], bias, scale
            )
            reads.append(read[0].transpose(0, 1))
            norms.append(norm[0].transpose(0, 1))
        read, norm = torch.cat(reads), torch.cat(norms)
        if self.order_N is None:
            return read, norm
        back_N = self.order_N.argsort()
        return read.index_select(0, back_N), norm.index_select(0, back_N)


def _attention_with_norm(
    query: Tensor, key: Tensor, value: Tensor, bias_NL: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention (1, H, N, D) and the log of its normalising sums (1, H, N), float32."""
    heads, groups = key.shape[1], query.shape[1] // key.shape[1]
    count, width = query.shape[2:]
    key, value = key.to(query.dtype), value.to(query.dtype)
    query = query.reshape(1, heads, groups * count, width)  # the groups of a head share its keys
    if bias_NL is not None:
        bias_NL = bias_NL.repeat(groups, 1)
    if query.device.type == "cpu":
        mask = None if bias_NL is None else bias_NL.to(query.dtype)[None, None]
        read, norm = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, attn_mask=mask, scale=scale
        )
    else:
        scores = torch.matmul(query, key.transpose(-1, -2)).float() * scale
        scores = scores if bias_NL is None else scores + bias_NL
        norm = scores.logsumexp(-1)
        read = torch.matmul((scores - norm[..., None]).exp().to(query.dtype), value)
    return read.reshape(1, heads * groups, count, width), norm.reshape(1, heads * groups, count)


_FOREST: ContextVar[Forest] = ContextVar("labor_llm_forest")


@contextmanager
def attending_to(model: PreTrainedModel, forest: Forest) -> Iterator[None]:
    """Let the model's forward passes read nodes with their careers and ancestors."""
    token = _FOREST.set(forest)
    try:
        with attending(model, TREE):
            yield
    finally:
        _FOREST.reset(token)


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
    """The attention function that transformers calls in every layer while ``attending_to`` is open."""
    _refuse(module, softcap, s_aux)
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    return _FOREST.get().attend(module.layer_idx, query, key, value, scale, sliding_window), None


AttentionInterface.register(PACKED, packed_attention)
AttentionInterface.register(TREE, tree_attention)
