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
from torch.utils.data import Dataset

from labor_llm.sequences.codes import CodedCareers
from labor_llm.shares import WHOLE, Share

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
    step_records: int
    """Records with a target in the whole optimizer step that this batch is a part of, on all devices."""
    width: int
    """Records of a row of that grid: those of the longest career of all, so that batches have few shapes."""


def collate(coded: CodedCareers, persons: NDArray[np.int64], step_records: int = 0) -> CodeBatch:
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
        step_records=step_records,
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
    """Batches of one epoch after another, every person once in each, in another order every time.

    A step's careers, ``batch_size`` or somewhat fewer, are cut into ``parts`` batches, of ``micro_batch_size`` or
    about that on each device; None for a step's share in one.
    """

    def __init__(
        self,
        coded: CodedCareers,
        batch_size: int,
        seed: int,
        micro_batch_size: int | None = None,
        share: Share = WHOLE,
    ) -> None:
        self.coded, self.seed, self.own = coded, seed, share
        self.steps = ceil(len(coded) / batch_size)
        """Optimizer steps of an epoch; they differ by one career at most."""
        smallest = share.even(len(coded) // self.steps)
        wanted = ceil(batch_size / ((micro_batch_size or batch_size) * share.devices))
        self.parts = min(wanted, smallest // share.devices)
        """Forward passes of an optimizer step."""
        self.epoch, self.batch = 0, 0
        self._given = batch_size, seed, micro_batch_size

    def share(self, share: Share) -> "CodeTrainingBatches":
        """What one of several devices has of these batches."""
        return CodeTrainingBatches(self.coded, *self._given, share)

    def __len__(self) -> int:
        return self.steps * self.parts

    def __iter__(self) -> Iterator[CodeBatch]:
        self.load_state_dict(self.state_dict())  # from the end of an epoch to the start of the next
        order = np.random.default_rng((self.seed, self.epoch)).permutation(len(self.coded))
        steps = np.array_split(order, self.steps)
        while self.batch < len(self):
            step, part = divmod(self.batch, self.parts)
            self.batch += 1
            records = int((self.coded.targets_N[self.coded.rows(steps[step])] >= 0).sum())
            chosen = np.array_split(steps[step], self.parts)[part]
            yield collate(self.coded, self.own.of(chosen), records)

    def state_dict(self) -> dict[str, Any]:
        """Where the next step is, on any number of devices."""
        if self.batch == len(self):
            return {"epoch": self.epoch + 1, "step": 0}
        return {"epoch": self.epoch, "step": self.batch // self.parts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on there."""
        self.epoch, self.batch = state["epoch"], state["step"] * self.parts


class CodeScoringBatches(Dataset[CodeBatch]):
    """Every career once, as many together as have about so many records.

    Those of a batch have similar lengths, or all lengths if ``mixed``: for networks that read several careers in a
    row, because short ones fill what long ones leave.
    """

    def __init__(self, coded: CodedCareers, records: int, mixed: bool, share: Share = WHOLE) -> None:
        self.coded, self.records, self.mixed = coded, records, mixed
        order = share.of(np.argsort(coded.lengths, kind="stable"))
        ends = coded.lengths[order].cumsum()
        if mixed:
            count = min(ceil(ends[-1] / records), len(order))
            self.batches = [order[first::count] for first in range(count)]
        else:
            cuts = np.searchsorted(ends, np.arange(records, ends[-1], records)) + 1
            self.batches = [persons for persons in np.split(order, cuts) if len(persons)]

    def share(self, share: Share) -> "CodeScoringBatches":
        """What one of several devices has of these careers."""
        return CodeScoringBatches(self.coded, self.records, self.mixed, share)

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, place: int) -> CodeBatch:
        return collate(self.coded, self.batches[place])

    def __iter__(self) -> Iterator[CodeBatch]:
        return map(self.__getitem__, range(len(self)))
