"""The network of NEMO: an LSTM over occupations that a representation of the person sets out and accompanies.

Legend: T records of a batch, B careers, L records of the longest, E numbers of an embedding, S of a state,
K logits.
"""

import torch
from torch import Tensor, nn

from labor_llm.columns import CONSTANT
from labor_llm.sequences.batches import CodeBatch, Grid
from labor_llm.sequences.codes import CodeBook
from labor_llm.sequences.transformer import embedding


class ContextualLSTM(nn.Module):
    """Logits for every record of a batch from the person, the occupations before and the covariates up to it."""

    def __init__(self, book: CodeBook, logits: int, width: int, state: int, dropout: float) -> None:
        super().__init__()
        self.occupations = embedding(book.start + 2, width, book.outside)
        self.columns = book.columns
        self.covariates = nn.ModuleDict(
            {name: embedding(len(book.values[name]) + 1, width, 0) for name in self.columns}
        )
        self.of_person = [name for name in self.columns if name in CONSTANT]
        self.of_record = [name for name in self.columns if name not in CONSTANT]
        self.context = nn.Linear(width * len(self.of_person), state)
        self.lstm = nn.LSTM(width * (1 + len(self.of_record)) + state, state, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(state, logits)

    def forward(self, batch: CodeBatch) -> Tensor:
        """Logits (T, K)."""
        grid, first_T = Grid.of_careers(batch), batch["places_T"] == 0
        context_TS = self.context(self._read(batch, self.of_person)).tanh()
        records = self._read(batch, self.of_record)
        inputs = torch.cat([self.occupations(batch["before_T"]), records, context_TS], dim=1)
        start_1BS = context_TS[first_T][None]
        states_BLS, _ = self.lstm(grid.spread(self.dropout(inputs)), (start_1BS, torch.zeros_like(start_1BS)))
        logits_TK: Tensor = self.output(self.dropout(grid.collected(states_BLS)))
        return logits_TK

    def _read(self, batch: CodeBatch, names: list[str]) -> Tensor:
        """The embeddings of some covariates side by side, (T, E x covariates)."""
        parts = [self.covariates[name](batch["covariates_TC"][:, self.columns[name]]) for name in names]
        nothing = self.occupations.weight.new_empty(len(batch["before_T"]), 0)
        return torch.cat([nothing, *parts], dim=1)
