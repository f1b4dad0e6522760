"""Batches of coded careers, end to end; their order follows from the seed, the epoch and the place.

Shapes: B careers of a batch, T records of all of them, C covariates, R rows of a grid and L records of a row.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from labor_llm.sequences.codes import CodedCareers

ROWS = 4
"""Filled grids have a multiple of so many rows: a processor prepares its matrix products anew for every shape."""


class CodeBatch(TypedDict):
    """Whole careers, one after another; what stands at a record is known before its occupation."""

    before_T: Tensor
    """The occupation of the record before, numbered as in the book."""
    covariates_TC: Tensor
    places_T: Tensor
    """How many records of the person stand before."""
    careers_T: Tensor
    """Which of the batch's careers the record belongs to."""
    targets_T: Tensor
    """The occupation, a place in the choice set, -1 if it is outside."""
    rows_T: Tensor
    """The record's row in the table."""
    filled_T: Tensor
    """The record's slot in a grid whose rows hold as many whole careers as go into them."""
    width: int
    """Records of a row of that grid: those of the longest career of all, so that batches have few shapes."""


def collate(coded: CodedCareers, persons: NDArray[np.int64]) -> CodeBatch:
    """The careers of some persons."""
    rows, counts, width = coded.rows(persons), coded.lengths[persons], int(coded.lengths.max())
    places = np.arange(len(rows)) - np.repeat(counts.cumsum() - counts, counts)
    return CodeBatch(
        before_T=torch.from_numpy(coded.before_N[rows]),
        covariates_TC=torch.from_numpy(coded.covariates_NC[rows].astype(np.int64)),
        places_T=torch.from_numpy(places),
        careers_T=torch.from_numpy(np.repeat(np.arange(len(persons)), counts)),
        targets_T=torch.from_numpy(coded.targets_N[rows]),
        rows_T=torch.from_numpy(rows),
        filled_T=torch.from_numpy(np.repeat(_first_slots(counts, width), counts) + places),
        width=width,
    )


def _first_slots(lengths: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    """Where each career begins: the longest first, each in the first row that has room for it."""
    free: list[int] = []
    firsts = np.empty_like(lengths)
    for career in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[career])
        row = next((row for row, room in enumerate(free) if room >= length), len(free))
        if row == len(free):
            free.append(width)
        firsts[career] = row * width + width - free[row]
        free[row] -= length
    return firsts


@dataclass(frozen=True)
class Grid:
    """From records end to end to rows of equal length, and back."""

    slots_T: Tensor
    rows: int
    length: int

    @classmethod
    def of_careers(cls, batch: CodeBatch) -> "Grid":
        """One career a row, (B, L)."""
        longest = int(batch["places_T"].max()) + 1
        slots_T = batch["careers_T"] * longest + batch["places_T"]
        return cls(slots_T, int(batch["careers_T"][-1]) + 1, longest)

    @classmethod
    def filled(cls, batch: CodeBatch) -> "Grid":
        """Several whole careers a row where they fit, (R, L): little of it is empty."""
        rows = int(batch["filled_T"].max()) // batch["width"] + 1
        return cls(batch["filled_T"], ceil(rows / ROWS) * ROWS, batch["width"])

    def spread(self, values_TX: Tensor, empty: float = 0) -> Tensor:
        """The grid, (R, L, X), with ``empty`` where there is no record."""
        grid = values_TX.new_full((self.rows * self.length, values_TX.shape[1]), empty)
        return grid.index_copy(0, self.slots_T, values_TX).view(self.rows, self.length, -1)

    def collected(self, grid_RLX: Tensor) -> Tensor:
        """The records end to end again, (T, X)."""
        return grid_RLX.reshape(self.rows * self.length, -1).index_select(0, self.slots_T)


class CodeTrainingBatches:
    """Batches of one epoch after another, every person once in each, in another order every time."""

    parts = 1

    def __init__(self, coded: CodedCareers, batch_size: int, seed: int) -> None:
        self.coded, self.seed = coded, seed
        self.steps = ceil(len(coded) / batch_size)
        """Batches of an epoch; they differ by one career at most."""
        self.epoch, self.batch = 0, 0

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[CodeBatch]:
        self.load_state_dict(self.state_dict())  # from the end of an epoch to the start of the next
        order = np.random.default_rng((self.seed, self.epoch)).permutation(len(self.coded))
        steps = np.array_split(order, self.steps)
        while self.batch < len(self):
            self.batch += 1
            yield collate(self.coded, steps[self.batch - 1])

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch is."""
        if self.batch == len(self):
            return {"epoch": self.epoch + 1, "batch": 0}
        return {"epoch": self.epoch, "batch": self.batch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on there."""
        self.epoch, self.batch = state["epoch"], state["batch"]


class CodeScoringBatches(Dataset[CodeBatch]):
    """Every career once, similar lengths together, as many as have about so many records."""

    def __init__(self, coded: CodedCareers, records: int) -> None:
        self.coded = coded
        order = np.argsort(coded.lengths, kind="stable")
        ends = coded.lengths[order].cumsum()
        cuts = np.searchsorted(ends, np.arange(records, ends[-1], records)) + 1
        self.batches = [persons for persons in np.split(order, cuts) if len(persons)]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, place: int) -> CodeBatch:
        return collate(self.coded, self.batches[place])

    def loader(self) -> "DataLoader[CodeBatch]":
        """A loader that hands the batches on as they are."""
        return DataLoader(self, batch_size=None)
