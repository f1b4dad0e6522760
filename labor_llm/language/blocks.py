"""Causal attention of careers laid end to end in one row, on a CPU: some tokens of all careers at a time.

PyTorch's kernel for CPUs reads one career at a time and makes little use of the cache on a few hundred tokens,
backward above all. Here the careers stand in a grid from the longest to the shortest, so that those that reach as
far as a block are its first rows, and a block of all of them is one batched product.

Query heads that share a key-value head are rows of the same product.

Legend: T tokens of all careers, C careers, H = K G query heads on K key-value heads, L tokens of the longest
career, D numbers of a head.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from typing import Any

import torch
from torch import Tensor

BLOCK = 64
"""Tokens of a career that read together: enough for a product, and few beyond the end of a career."""
MOST_SLOTS = 4
"""Slots of a grid per token, so that memory grows with the tokens: much shorter careers get another grid."""


def block_attention(query: Tensor, key: Tensor, value: Tensor, scale: float, starts: Sequence[int]) -> Tensor:
    """What each token reads of its own career up to itself, (T, H, D), from queries (T, H, D) and keys (T, K, D).

    ``starts`` are the first tokens of the careers, and T.
    """
    groups, heads = _groups(tuple(starts)), key.shape[1]
    if len(groups) == 1:
        read: Tensor = _BlockAttention.apply(query, key, value, scale, _grid(tuple(starts), heads))
        return read
    reads = [
        _BlockAttention.apply(query[tokens], key[tokens], value[tokens], scale, _grid(its_starts, heads))
        for tokens, its_starts in groups
    ]
    return torch.cat(reads)[torch.cat([tokens for tokens, _ in groups]).argsort()]


@lru_cache(maxsize=1)  # the layers of a network ask for the same
def _groups(starts: tuple[int, ...]) -> list[tuple[Tensor, tuple[int, ...]]]:
    """The tokens of careers of like lengths, and where the careers start among them."""
    lengths = [end - start for start, end in itertools.pairwise(starts)]
    groups: list[list[int]] = []
    tokens = 0
    for career in sorted(range(len(lengths)), key=lambda career: -lengths[career]):
        tokens += lengths[career]
        if not groups or (len(groups[-1]) + 1) * lengths[groups[-1][0]] > MOST_SLOTS * tokens:
            groups.append([])
            tokens = lengths[career]
        groups[-1].append(career)
    return [
        (
            torch.cat([torch.arange(starts[career], starts[career + 1]) for career in group]),
            (0, *itertools.accumulate(lengths[career] for career in group)),
        )
        for group in groups
    ]


@dataclass(frozen=True)
class _Grid:
    """A row per career and key-value head, the longest careers first, (C K, L)."""

    slots_TK: Tensor
    rows: int
    length: int
    blocks: list[tuple[slice, slice]]
    """The places of each block, and the rows that reach so far."""

    def spread(self, values_THD: Tensor) -> Tensor:
        """The grid, (C K, L G, D), zero where a career has ended; the G heads of a row are next to each other."""
        width = values_THD.shape[1] // self.slots_TK.shape[1] * values_THD.shape[2]
        flat = values_THD.reshape(-1, width)
        grid = flat.new_zeros(self.rows * self.length, width)
        grid.index_copy_(0, self.slots_TK.flatten(), flat)
        return grid.view(self.rows, -1, values_THD.shape[2])

    def collected(self, grid: Tensor) -> Tensor:
        """The tokens end to end again, (T, H, D)."""
        flat = grid.reshape(self.rows * self.length, -1).index_select(0, self.slots_TK.flatten())
        return flat.view(len(self.slots_TK), -1, grid.shape[2])


@lru_cache(maxsize=8)
def _grid(starts: tuple[int, ...], heads: int) -> _Grid:
    lengths_C = torch.tensor(starts).diff()
    ranks_C = lengths_C.argsort(descending=True).argsort()
    length, rows = int(lengths_C.max()), len(lengths_C) * heads
    places_T = torch.arange(starts[-1]) - torch.tensor(starts[:-1]).repeat_interleave(lengths_C)
    rows_TK = ranks_C.repeat_interleave(lengths_C)[:, None] * heads + torch.arange(heads)
    block = ceil(length / ceil(length / BLOCK))
    blocks = [
        (slice(first, min(first + block, length)), slice(int((lengths_C > first).sum()) * heads))
        for first in range(0, length, block)
    ]
    return _Grid(rows_TK * length + places_T[:, None], rows, length, blocks)


class _BlockAttention(torch.autograd.Function):
    """Like eager attention it keeps the shares that tokens have in each other for the gradients."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float, grid: _Grid) -> Tensor:
        groups = query.shape[1] // key.shape[1]
        query, key, value = grid.spread(query * scale), grid.spread(key), grid.spread(value)
        read, shares, trained = torch.empty_like(query), [], any(ctx.needs_input_grad[:3])
        for places, rows in grid.blocks:
            readers = slice(places.start * groups, places.stop * groups)
            scores = torch.bmm(query[rows, readers], key[rows, : places.stop].transpose(1, 2))
            scores[:, :, places.start :] += _future(places.stop - places.start, groups, query.dtype)
            share = scores.softmax(-1)
            torch.bmm(share, value[rows, : places.stop], out=read[rows, readers])
            shares += [share] if trained else []
        ctx.scale, ctx.grid, ctx.groups = scale, grid, groups
        ctx.save_for_backward(query, key, value, *shares)
        return grid.collected(read)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        query, key, value, *shares = ctx.saved_tensors
        grid: _Grid = ctx.grid
        gradient = grid.spread(gradients[0])
        to_query, to_key, to_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for (places, rows), share in zip(grid.blocks, shares, strict=True):
            seen, readers = (rows, slice(places.stop)), slice(places.start * ctx.groups, places.stop * ctx.groups)
            to_value[seen].baddbmm_(share.transpose(1, 2), gradient[rows, readers])
            to_share = torch.bmm(gradient[rows, readers], value[seen].transpose(1, 2))
            to_scores = torch.ops.aten._softmax_backward_data(to_share, share, -1, share.dtype)
            torch.bmm(to_scores, key[seen], out=to_query[rows, readers])
            to_key[seen].baddbmm_(to_scores.transpose(1, 2), query[rows, readers])
        to_query.mul_(ctx.scale)
        return *(grid.collected(each) for each in (to_query, to_key, to_value)), None, None


@lru_cache(maxsize=8)
def _future(size: int, groups: int, dtype: torch.dtype) -> Tensor:
    """Minus infinity on later tokens of a block for each reader in it, (size G, size)."""
    return torch.full((size, size), float("-inf"), dtype=dtype).triu(1).repeat_interleave(groups, dim=0)
