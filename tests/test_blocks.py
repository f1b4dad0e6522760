"""Attention of all careers at once, beside PyTorch's of one career at a time."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from labor_llm.language.blocks import BLOCK, MOST_SLOTS, _grid, _groups, block_attention

SCALE = 0.3
LENGTHS = {
    "short and long ones": [3, 2 * BLOCK + 5, 1, BLOCK, BLOCK + 1],
    "all alike": [BLOCK] * 3,
    "one token": [1],
    "very different ones": [4, 5 * BLOCK, 1, 3, 3, 2, 1, 2],
    "a long one": [16 * BLOCK],
}


def drawn(length: int, dtype: torch.dtype) -> list[Tensor]:
    """Query, key, value and the gradient of what is read, each (T, H, D)."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(length, 2, 8, generator=generator).to(dtype) for _ in range(4)]


def one_by_one(query: Tensor, key: Tensor, value: Tensor, starts: list[int]) -> Tensor:
    """PyTorch's attention, career by career."""
    parts = [part.transpose(0, 1)[None] for part in (query, key, value)]
    reads = [
        scaled_dot_product_attention(*(part[:, :, start:end] for part in parts), is_causal=True, scale=SCALE)
        for start, end in pairwise(starts)
    ]
    return torch.cat(reads, dim=2)[0].transpose(0, 1)


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.bfloat16, 0.05)])
def test_reads_and_gradients_are_those_of_each_career_alone(
    lengths: list[int], dtype: torch.dtype, tolerance: float
) -> None:
    starts = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    *given, gradient = drawn(starts[-1], dtype)
    results = []
    for exact in (True, False):
        parts = [part.double() if exact else part for part in given]
        for part in parts:
            part.requires_grad_()
        read = one_by_one(*parts, starts) if exact else block_attention(*parts, SCALE, starts)
        results.append((read, *torch.autograd.grad(read, parts, gradient.to(read.dtype))))
    for expected, found in zip(*results, strict=True):
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("lengths", [*LENGTHS.values(), [1024, *[50] * 61], [9] * 200])
def test_memory_grows_with_the_tokens_however_different_careers_are(lengths: list[int]) -> None:
    starts = (0, *torch.tensor(lengths).cumsum(0).tolist())
    groups = _groups(starts)
    assert sorted(torch.cat([tokens for tokens, _ in groups]).tolist()) == list(range(starts[-1]))
    for tokens, its_starts in groups:
        grid = _grid(its_starts, 1)
        assert grid.rows * grid.length <= MOST_SLOTS * len(tokens)
    assert len(groups) == 1 or len(set(lengths)) > 1
