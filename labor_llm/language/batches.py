"""Careers in batches. For training, the order follows from the seed, the epoch and the batch, so it can resume.

Shapes: B careers of a batch, L tokens of its longest, R records of the one that has most.
"""

from collections.abc import Iterator
from math import ceil
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from labor_llm.language.tokens import EncodedCareers

IGNORED = -100
"""Label of a token that carries no loss."""


class CareerBatch(TypedDict):
    """Whole careers, padded on the right."""

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    """The tokens themselves, IGNORED where there is no loss (B, L)."""
    step_tokens: Tensor
    """Tokens with a loss in the whole optimizer step that this batch is a part of."""
    records: Tensor
    """How many titles the batch holds."""


def collate(
    encoded: EncodedCareers, careers: NDArray[np.int64], loss_on: str, step_tokens: int = 0
) -> CareerBatch:
    """Pad the given careers; the first token of each has no loss, since nothing stands before it."""
    lengths = encoded.lengths[careers]
    shape = (len(careers), int(lengths.max()))
    ids, labels = np.zeros(shape, dtype=np.int64), np.full(shape, IGNORED)
    for row, (career, length) in enumerate(zip(careers, lengths, strict=True)):
        span = slice(encoded.career_starts[career], encoded.career_starts[career + 1])
        ids[row, :length] = encoded.ids_T[span]
        supervised = encoded.in_title_T[span] if loss_on == "titles" else True
        labels[row, :length] = np.where(supervised, ids[row, :length], IGNORED)
    labels[:, 0] = IGNORED
    records = (encoded.record_starts[careers + 1] - encoded.record_starts[careers]).sum()
    return CareerBatch(
        input_ids=torch.from_numpy(ids),
        attention_mask=torch.from_numpy((np.arange(shape[1]) < lengths[:, None]).astype(np.int64)),
        labels=torch.from_numpy(labels),
        step_tokens=torch.tensor(step_tokens),
        records=torch.tensor(records),
    )


class TrainingBatches:
    """Shuffled batches of one epoch after another; an epoch's last, incomplete step is left out.

    One optimizer step reads ``batch_size`` careers, at most ``micro_batch_size`` at a time. Lightning saves
    ``state_dict`` in its checkpoints, so a resumed run goes on with the batch after the last one.
    """

    def __init__(
        self, encoded: EncodedCareers, batch_size: int, micro_batch_size: int, loss_on: str, seed: int
    ) -> None:
        self.encoded, self.loss_on, self.seed = encoded, loss_on, seed
        self.batch_size = min(batch_size, len(encoded))
        self.parts = ceil(self.batch_size / micro_batch_size)
        """Forward passes of an optimizer step."""
        self.epoch, self.batch = 0, 0

    @property
    def steps(self) -> int:
        """Optimizer steps of an epoch."""
        return len(self.encoded) // self.batch_size

    def __len__(self) -> int:
        return self.steps * self.parts

    def __iter__(self) -> Iterator[CareerBatch]:
        self.load_state_dict(self.state_dict())  # from the end of an epoch to the start of the next
        order = np.random.default_rng((self.seed, self.epoch)).permutation(len(self.encoded))
        while self.batch < len(self):
            step, part = divmod(self.batch, self.parts)
            careers = order[step * self.batch_size : (step + 1) * self.batch_size]
            careers = careers[np.argsort(self.encoded.lengths[careers], kind="stable")]
            self.batch += 1
            tokens = self._supervised_tokens(careers)
            yield collate(self.encoded, np.array_split(careers, self.parts)[part], self.loss_on, tokens)

    def _supervised_tokens(self, careers: NDArray[np.int64]) -> int:
        starts, ends = self.encoded.career_starts[careers], self.encoded.career_starts[careers + 1]
        if self.loss_on == "all":
            return int((ends - starts - 1).sum())
        return sum(int(self.encoded.in_title_T[start:end].sum()) for start, end in zip(starts, ends, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch is."""
        if self.batch == len(self):
            return {"epoch": self.epoch + 1, "batch": 0}
        return {"epoch": self.epoch, "batch": self.batch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on there."""
        self.epoch, self.batch = state["epoch"], state["batch"]


class ValidationBatches:
    """All careers once, similar lengths together, with a loss on titles only."""

    def __init__(self, encoded: EncodedCareers, batch_size: int) -> None:
        self.encoded, self.batch_size = encoded, batch_size

    def __len__(self) -> int:
        return ceil(len(self.encoded) / self.batch_size)

    def __iter__(self) -> Iterator[CareerBatch]:
        order = np.argsort(self.encoded.lengths, kind="stable")
        for start in range(0, len(order), self.batch_size):
            yield collate(self.encoded, order[start : start + self.batch_size], "titles")


class ScoringBatch(TypedDict):
    """Careers with about as many records each, padded on the right."""

    ids_BL: Tensor
    prompt_ends_BR: Tensor
    """Where each record's title begins; 1 where a career has fewer records."""
    records_BR: Tensor
    """The record's place in the table; -1 where a career has fewer records."""


class ScoringBatches(Dataset[ScoringBatch]):
    """All careers once, in batches whose careers and trees keep within a budget of tokens.

    ``width`` is the number of nodes that the widest level of the tree of one record has.
    """

    def __init__(self, encoded: EncodedCareers, width: int, max_tokens: int) -> None:
        self.encoded = encoded
        records = np.diff(encoded.record_starts)
        order = np.lexsort((encoded.lengths, records))
        self.batches: list[NDArray[np.int64]] = []
        start = 0
        for end in range(1, len(order) + 1):
            longest = max(encoded.lengths[order[start:end]].max(), records[order[end - 1]] * width)
            if end - start > 1 and (end - start) * longest > max_tokens:
                self.batches.append(order[start : end - 1])
                start = end - 1
        self.batches.append(order[start:])

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, place: int) -> ScoringBatch:
        careers, encoded = self.batches[place], self.encoded
        records = np.diff(encoded.record_starts)[careers]
        shape = (len(careers), int(records.max()))
        ids_BL = np.zeros((len(careers), int(encoded.lengths[careers].max())), dtype=np.int64)
        prompt_ends_BR, records_BR = np.ones(shape, dtype=np.int64), np.full(shape, -1)
        for row, (career, count) in enumerate(zip(careers, records, strict=True)):
            ids, prompt_ends = encoded.career(int(career))
            ids_BL[row, : len(ids)] = ids
            prompt_ends_BR[row, :count] = prompt_ends
            records_BR[row, :count] = encoded.record_starts[career] + np.arange(count)
        return ScoringBatch(
            ids_BL=torch.from_numpy(ids_BL),
            prompt_ends_BR=torch.from_numpy(prompt_ends_BR),
            records_BR=torch.from_numpy(records_BR),
        )
