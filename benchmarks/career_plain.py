"""CAREER's network and its training step written the usual way: the rival of ``benchmarks.career``.

One career a row, padded to the longest; torch's attention module with a mask; its dropout; float32; AdamW as it
comes. The same definition and the same starting weights, so that only the way of computing differs.

Legend: T records, B careers, L records of the longest, D numbers of a state, K logits.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, gelu

from labor_llm.sequences.batches import CodeBatch, Grid
from labor_llm.sequences.transformer import FIRST_POSITION, CareerTransformer, Layer, sinusoids


class PlainLayer(nn.Module):
    """A layer with the weights of one of ours."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.layer = layer
        self.attention = nn.MultiheadAttention(
            layer.read.in_features, layer.heads, layer.dropout.p, batch_first=True
        )
        self.attention.in_proj_weight, self.attention.in_proj_bias = layer.query_key_value.parameters()
        self.attention.out_proj = layer.read

    def forward(self, state_BLD: Tensor, future_LL: Tensor, empty_BL: Tensor) -> Tensor:
        """The state after the layer."""
        layer = self.layer
        x = layer.attention_norm(state_BLD)
        x, _ = self.attention(x, x, x, attn_mask=future_LL, key_padding_mask=empty_BL, need_weights=False)
        state_BLD = state_BLD + dropout(x, layer.dropout.p, self.training)
        x = layer.down(gelu(layer.up(layer.feed_forward_norm(state_BLD))))
        return state_BLD + dropout(x, layer.dropout.p, self.training)


class PlainTransformer(nn.Module):
    """The network with the weights of one of ours."""

    def __init__(self, network: CareerTransformer) -> None:
        super().__init__()
        self.network = network
        self.layers = nn.ModuleList(PlainLayer(layer) for layer in network.layers)

    def forward(self, batch: CodeBatch) -> Tensor:
        """Logits (T, K)."""
        network, grid = self.network, Grid.of_careers(batch)
        before_BL = grid.spread(batch["before_T"][:, None])[..., 0]
        covariates_BLC = grid.spread(batch["covariates_TC"])
        state_BLD = math.sqrt(network.width) * network.occupations(before_BL)
        state_BLD = state_BLD + sinusoids(torch.arange(grid.length) + FIRST_POSITION, network.width)
        for name, table in network.covariates.items():
            state_BLD = state_BLD + table(covariates_BLC[..., network.columns[name]])
        state_BLD = dropout(state_BLD, network.dropout.p, self.training)
        future_LL = torch.ones(grid.length, grid.length, dtype=torch.bool).triu(1)
        empty_BL = grid.spread(torch.ones_like(batch["before_T"])[:, None])[..., 0] == 0
        for layer in self.layers:
            state_BLD = layer(state_BLD, future_LL, empty_BL)
        return grid.collected(network.output(network.norm(state_BLD)))


def plain_optimizer(network: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW as it comes, with the betas of the reference code."""
    return torch.optim.AdamW(network.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=weight_decay)
