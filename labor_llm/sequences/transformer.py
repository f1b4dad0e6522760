"""The network of CAREER: a transformer over occupation codes that reads covariates beside them.

As in the reference code (keyonvafa/career-code), which is a fairseq decoder: layer norms before attention and
feed-forward layers and at the end, GELU, fixed sinusoidal positions, an output matrix of its own without bias, no
layer norm on the embedding.

Legend: T records of a batch, R rows of its grid, which hold several careers each, L records of a row,
C covariates, D numbers of a record's state, H heads, K logits.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu
from torch.utils.checkpoint import checkpoint

from labor_llm.dropout import Dropout
from labor_llm.sequences.batches import CodeBatch, Grid
from labor_llm.sequences.codes import CodeBook

FIRST_POSITION = 2
"""fairseq counts positions from the number after its padding symbol's, which is 1."""

_ONEDNN = torch.backends.mkldnn.is_available()
JOINED = {torch.float32: _ONEDNN, torch.bfloat16: _ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported()}
"""Whether oneDNN joins products of a type with what follows them on this processor."""


class CareerTransformer(nn.Module):
    """Logits for every record of a batch from the occupations before it and the covariates up to it."""

    fills_rows = True
    """It reads several careers in a row, so batches of many lengths leave little of a row empty."""

    def __init__(
        self, book: CodeBook, logits: int, layers: int, width: int, feed_forward: int, heads: int, dropout: float
    ) -> None:
        super().__init__()
        self.width, self.dropout = width, Dropout(dropout)
        self.occupations = embedding(book.start + 2, width, book.outside)
        self.columns = book.columns
        self.covariates = nn.ModuleDict(
            {name: embedding(len(book.values[name]) + 1, width, 0) for name in self.columns}
        )
        self.layers = nn.ModuleList(Layer(width, feed_forward, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, logits, bias=False)
        nn.init.normal_(self.output.weight, std=width**-0.5)

    def forward(self, batch: CodeBatch) -> Tensor:
        """Logits (T, K)."""
        logits_TK: Tensor = self.output(self.states(batch))
        return logits_TK

    def states(self, batch: CodeBatch) -> Tensor:
        """What is known of a career before each record's occupation, (T, D)."""
        grid = Grid.filled(batch)
        state_TD = math.sqrt(self.width) * self.occupations(batch["before_T"])
        state_TD = state_TD + sinusoids(batch["places_T"] + FIRST_POSITION, self.width)
        for name, table in self.covariates.items():
            state_TD = state_TD + table(batch["covariates_TC"][:, self.columns[name]])
        state_RLD = self.dropout(grid.spread(state_TD))
        bias_R1LL = attention_bias(grid.spread(batch["careers_T"][:, None], empty=-1)[..., 0])
        for layer in self.layers:
            if layer.recomputed and self.training:
                state_RLD = checkpoint(layer, state_RLD, bias_R1LL, use_reentrant=False)
            else:
                state_RLD = layer(state_RLD, bias_R1LL)
        states_TD: Tensor = self.norm(grid.collected(state_RLD))
        return states_TD


class Layer(nn.Module):
    """Attention to the records before and the own one, then two feed-forward maps."""

    def __init__(self, width: int, feed_forward: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, Dropout(dropout)
        self.recomputed = False
        """Whether its activations are computed again for the gradients, instead of kept."""
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.read = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, feed_forward), nn.Linear(feed_forward, width)
        for part in self.query_key_value.weight.chunk(3):
            nn.init.xavier_uniform_(part, gain=2**-0.5)
        for linear in (self.read, self.up, self.down):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, state_RLD: Tensor, bias_R1LL: Tensor) -> Tensor:
        """The state after the layer, (R, L, D)."""
        read_RLD = mapped(self.read, self._attention(self.attention_norm(state_RLD), bias_R1LL))
        state_RLD = state_RLD + self.dropout(read_RLD)
        change_RLD = mapped(self.down, mapped(self.up, self.feed_forward_norm(state_RLD), then="gelu"))
        after_RLD: Tensor = state_RLD + self.dropout(change_RLD)
        return after_RLD

    def _attention(self, state_RLD: Tensor, bias_R1LL: Tensor) -> Tensor:
        """What each record reads, (R, L, D); the softmax is taken in float32."""
        rows, length, width = state_RLD.shape
        parts = (
            mapped(self.query_key_value, state_RLD).view(rows, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        )
        query, key, value = parts.contiguous().flatten(1, 2).unbind(0)  # each (R H, L, D / H)
        scores = torch.bmm(query * query.shape[-1] ** -0.5, key.transpose(1, 2)).float()
        shares = (scores.view(rows, -1, length, length) + bias_R1LL).softmax(-1).to(value.dtype)
        read = torch.bmm(self.dropout(shares).flatten(0, 1), value)
        return read.view(rows, -1, length, width // self.heads).transpose(1, 2).reshape(rows, length, width)


def mapped(linear: nn.Linear, values: Tensor, then: Literal["none", "gelu"] = "none") -> Tensor:
    """A linear map and what follows it.

    Where nothing is trained on a CPU, they are one operation of oneDNN: it rounds once, and neither bias nor GELU
    reads and writes a tensor of its own.
    """
    compiling = torch.compiler.is_compiling()  # a compiler has its own ways to join them
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else values.dtype
    if compiling or torch.is_grad_enabled() or values.device.type != "cpu" or not JOINED.get(dtype, False):
        return gelu(linear(values)) if then == "gelu" else linear(values)
    parts = (part.to(dtype) for part in (values, linear.weight, linear.bias))
    result: Tensor = torch.ops.mkldnn._linear_pointwise(*parts, then, [], "none")
    return result


def attention_bias(careers_RL: Tensor) -> Tensor:
    """Minus infinity where a record (third place) may not read another one (fourth place), (R, 1, L, L)."""
    same_RLL = careers_RL[:, :, None] == careers_RL[:, None, :]
    seen_RLL = same_RLL & torch.ones_like(same_RLL).tril()
    return torch.zeros(seen_RLL.shape, device=seen_RLL.device).masked_fill_(~seen_RLL, float("-inf"))[:, None]


def embedding(count: int, width: int, unknown: int) -> nn.Embedding:
    """A table of vectors of about length one; that of what is unknown is zero and stays so."""
    table = nn.Embedding(count, width, padding_idx=unknown)
    nn.init.normal_(table.weight, std=width**-0.5)
    nn.init.zeros_(table.weight[unknown])
    return table


def sinusoids(positions_T: Tensor, width: int) -> Tensor:
    """Sines of the positions at falling frequencies, then cosines, (T, D)."""
    steps = torch.arange(width // 2, device=positions_T.device)
    angles = positions_T[:, None] * torch.exp(steps * (-math.log(10_000) / (width // 2 - 1)))
    return torch.cat([angles.sin(), angles.cos()], dim=1)
