"""The network of the bag-of-jobs baseline, linear throughout, as in the reference code of CAREER.

The logits of a record are the sum of

    W1 e1(last occupation) + W2 mean of e2(occupations before the last)
    and for each covariate that varies   W3 e3(the record's) + W4 mean of e4(earlier records')
    and for each that does not           W5 e5(the person's)

without bias. Every mean counts one entry more than there are records: a symbol for the time before.

All of it is linear, so a product E W of all embeddings with their matrix is formed once a batch, and records look
their logits up in it: the width, 1024, meets as many rows as there are values, not as there are records.

Legend: T records, B careers, L records of the longest, V values, D width, K logits.
"""

from torch import Tensor, nn

from labor_llm.columns import CONSTANT
from labor_llm.sequences.batches import CodeBatch, Grid
from labor_llm.sequences.codes import CodeBook
from labor_llm.sequences.transformer import embedding


class BagOfJobsNetwork(nn.Module):
    """Logits for every record of a batch from what stands before it, in whatever order."""

    def __init__(self, book: CodeBook, logits: int, width: int) -> None:
        super().__init__()
        self.last = Table(book.start + 2, book.outside, width, logits)
        self.earlier = Earlier(book.start + 2, book.outside, width, logits)
        self.columns = book.columns
        sizes = {name: len(book.values[name]) + 1 for name in self.columns}
        self.current = nn.ModuleDict({name: Table(size, 0, width, logits) for name, size in sizes.items()})
        self.past = nn.ModuleDict(
            {name: Earlier(size, 0, width, logits) for name, size in sizes.items() if name not in CONSTANT}
        )

    def forward(self, batch: CodeBatch) -> Tensor:
        """Logits (T, K)."""
        grid = Grid.of_careers(batch)
        before_T = batch["before_T"]
        logits_TK = self.last(before_T) + self.earlier(before_T, batch["places_T"], grid)
        for name, table in self.current.items():
            logits_TK = logits_TK + table(batch["covariates_TC"][:, self.columns[name]])
        for name, table in self.past.items():
            values_T = batch["covariates_TC"][:, self.columns[name]]
            logits_TK = logits_TK + table(values_T, batch["places_T"], grid)
        return logits_TK


class Table(nn.Module):
    """The logits that each value adds: its embedding times a matrix."""

    def __init__(self, values: int, unknown: int, width: int, logits: int) -> None:
        super().__init__()
        self.embedding = embedding(values, width, unknown)
        self.projection = nn.Linear(width, logits, bias=False)

    def product(self) -> Tensor:
        """All of them, (V, K)."""
        logits_VK: Tensor = self.projection(self.embedding.weight)
        return logits_VK

    def forward(self, values_T: Tensor) -> Tensor:
        """Those of the records' values, (T, K)."""
        return nn.functional.embedding(values_T, self.product(), self.embedding.padding_idx)


class Earlier(Table):
    """The mean over a symbol for the time before and the values at the records before each one."""

    def __init__(self, values: int, unknown: int, width: int, logits: int) -> None:
        super().__init__(values, unknown, width, logits)
        self.symbol = nn.Parameter(nn.init.normal_(self.embedding.weight.new_empty(1, width), std=width**-0.5))

    def forward(self, values_T: Tensor, places_T: Tensor, grid: Grid) -> Tensor:  # type: ignore[override]
        """The means, (T, K)."""
        own_TK = super().forward(values_T).float()
        up_to_TK = grid.collected(grid.spread(own_TK).cumsum(1))
        return (self.projection(self.symbol) + up_to_TK - own_TK) / (places_T[:, None] + 1)
