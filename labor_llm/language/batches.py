"""Careers in batches. For training, the order follows from the seed, the epoch and the batch, so it can resume.

On several devices each has its share of every batch, careers of all lengths in it.

Shapes: B careers of a batch, L tokens of its longest, T of all of them; a packed batch has B = 1 and L = T.
"""

from collections.abc import Iterator
from copy import copy
from itertools import pairwise
from math import ceil
from typing import Any, Literal, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from labor_llm.language.loss import IGNORED
from labor_llm.language.scoring import PackedCareers
from labor_llm.language.tokens import EncodedCareers
from labor_llm.shares import WHOLE, Share

Layout = Literal["packed", "padded"]
LossOn = Literal["all", "titles"]

SORTED_STEPS = 32
"""Optimizer steps whose careers are sorted by length together, so that padding them wastes little."""


class CareerBatch(TypedDict):
    """Whole careers: end to end in one row, or one career a row, padded on the right."""

    inputs: dict[str, Any]
    """What the model is called with."""
    labels: Tensor
    """The tokens themselves, IGNORED where there is no loss (B, L)."""
    step_tokens: Tensor
    """Tokens with a loss in the whole optimizer step that this batch is a part of, on all devices."""
    records: Tensor
    """How many titles the batch holds."""


def collate(
    encoded: EncodedCareers,
    careers: NDArray[np.int64],
    layout: Layout,
    loss_on: LossOn,
    step_tokens: int = 0,
) -> CareerBatch:
    """Lay the given careers out; the first token of each has no loss, since nothing stands before it."""
    spans = [slice(start, end) for start, end in zip(*encoded.bounds(careers), strict=True)]
    ids = [encoded.ids_T[span].astype(np.int64) for span in spans]
    labels = [
        np.where(encoded.in_title_T[span], tokens, IGNORED) if loss_on == "titles" else tokens.copy()
        for span, tokens in zip(spans, ids, strict=True)
    ]
    for career in labels:
        career[0] = IGNORED
    records = (encoded.record_starts[careers + 1] - encoded.record_starts[careers]).sum()
    inputs, labels_BL = _packed(ids, labels) if layout == "packed" else _padded(ids, labels)
    return CareerBatch(
        inputs=inputs,
        labels=labels_BL,
        step_tokens=torch.tensor(step_tokens),
        records=torch.tensor(records),
    )


def _packed(ids: list[NDArray[np.int64]], labels: list[NDArray[np.int64]]) -> tuple[dict[str, Any], Tensor]:
    """One row; places begin again in every career, and attention keeps to ``career_starts``."""
    starts = np.cumsum([0, *map(len, ids)]).tolist()
    places = np.concatenate([np.arange(end - start) for start, end in pairwise(starts)])
    inputs = {
        "input_ids": torch.from_numpy(np.concatenate(ids))[None],
        "position_ids": torch.from_numpy(places)[None],
        "career_starts": starts,
    }
    return inputs, torch.from_numpy(np.concatenate(labels))[None]


def _padded(ids: list[NDArray[np.int64]], labels: list[NDArray[np.int64]]) -> tuple[dict[str, Any], Tensor]:
    lengths = np.array([len(career) for career in ids])
    known = np.arange(lengths.max()) < lengths[:, None]
    ids_BL, labels_BL = np.zeros(known.shape, dtype=np.int64), np.full(known.shape, IGNORED)
    ids_BL[known], labels_BL[known] = np.concatenate(ids), np.concatenate(labels)
    inputs = {"input_ids": torch.from_numpy(ids_BL), "attention_mask": torch.from_numpy(known.astype(np.int64))}
    return inputs, torch.from_numpy(labels_BL)


class TrainingBatches:
    """Shuffled batches of one epoch after another; an epoch's last, incomplete step is left out.

    A step's ``batch_size`` careers are cut into ``parts`` batches of at most ``micro_batch_size`` on each device.
    Padded careers are batched with others of about their length.
    """

    def __init__(
        self,
        encoded: EncodedCareers,
        batch_size: int,
        micro_batch_size: int,
        loss_on: LossOn,
        seed: int,
        layout: Layout = "packed",
        share: Share = WHOLE,
    ) -> None:
        self.encoded, self.loss_on, self.seed, self.layout, self.own = encoded, loss_on, seed, layout, share
        self.batch_size = share.even(min(batch_size, len(encoded)))
        self.parts = ceil(self.batch_size / (micro_batch_size * share.devices))
        """Forward passes of an optimizer step."""
        self.epoch, self.batch = 0, 0
        self._given = batch_size, micro_batch_size, loss_on, seed, layout

    def share(self, share: Share) -> "TrainingBatches":
        """What one of several devices has of these batches."""
        return TrainingBatches(self.encoded, *self._given, share)

    @property
    def steps(self) -> int:
        """Optimizer steps of an epoch."""
        return len(self.encoded) // self.batch_size

    def __len__(self) -> int:
        return self.steps * self.parts

    def __iter__(self) -> Iterator[CareerBatch]:
        self.load_state_dict(self.state_dict())  # from the end of an epoch to the start of the next
        order = self._order()
        while self.batch < len(self):
            step, part = divmod(self.batch, self.parts)
            careers = order[step]
            careers = careers[np.argsort(self.encoded.lengths[careers], kind="stable")]
            self.batch += 1
            tokens = self._supervised_tokens(careers)
            alike = careers.reshape(-1, self.own.devices)  # careers of about one length for all devices
            chosen = np.array_split(alike, self.parts)[part][:, self.own.device]
            yield collate(self.encoded, chosen, self.layout, self.loss_on, tokens)

    def _order(self) -> NDArray[np.int64]:
        """The careers of every step of the epoch, (steps, batch_size)."""
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(len(self.encoded))[: self.steps * self.batch_size]
        if self.layout == "packed":
            return order.reshape(self.steps, self.batch_size)
        together = SORTED_STEPS * self.batch_size
        groups = [order[start : start + together] for start in range(0, len(order), together)]
        groups = [group[np.argsort(self.encoded.lengths[group], kind="stable")] for group in groups]
        return rng.permutation(np.concatenate(groups).reshape(self.steps, self.batch_size))

    def _supervised_tokens(self, careers: NDArray[np.int64]) -> int:
        starts, ends = self.encoded.bounds(careers)
        if self.loss_on == "all":
            return int((ends - starts - 1).sum())
        return sum(int(self.encoded.in_title_T[start:end].sum()) for start, end in zip(starts, ends, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Where the next step is, on any number of devices."""
        if self.batch == len(self):
            return {"epoch": self.epoch + 1, "step": 0}
        return {"epoch": self.epoch, "step": self.batch // self.parts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on there."""
        self.epoch, self.batch = state["epoch"], state["step"] * self.parts


class ValidationBatches:
    """All careers once, similar lengths together, with a loss on titles only."""

    def __init__(
        self, encoded: EncodedCareers, batch_size: int, layout: Layout = "packed", share: Share = WHOLE
    ) -> None:
        self.encoded, self.batch_size, self.layout = encoded, batch_size, layout
        self._order = share.of(np.argsort(encoded.lengths, kind="stable"))
        self._most = ceil(len(encoded) / share.devices)

    def share(self, share: Share) -> "ValidationBatches":
        """What one of several devices has of these careers."""
        return ValidationBatches(self.encoded, self.batch_size, self.layout, share)

    def __len__(self) -> int:
        """As many on all devices: where weights are sharded, each takes part in the passes of the others."""
        return ceil(self._most / self.batch_size)

    def __iter__(self) -> Iterator[CareerBatch]:
        for place in range(len(self)):
            chosen = self._order[place * self.batch_size : (place + 1) * self.batch_size]
            yield collate(self.encoded, chosen, self.layout, "titles") if len(chosen) else self._empty()

    def _empty(self) -> CareerBatch:
        """A career that counts for nothing, for a device that has one fewer than others."""
        batch = collate(self.encoded, self._order[:1], self.layout, "titles")
        batch["labels"][:] = IGNORED
        batch["records"][...] = 0
        return batch


class ScoringBatch(TypedDict):
    """Careers in one row, and their records."""

    careers: PackedCareers
    records_Q: Tensor
    """The records' places in the table."""


class ScoringBatches(Dataset[ScoringBatch]):
    """All careers once, as many together as have up to ``max_tokens`` tokens.

    ``realised_N`` holds the place of every record's occupation in the choice set, -1 where it is outside.
    """

    def __init__(self, encoded: EncodedCareers, realised_N: NDArray[np.int64], max_tokens: int) -> None:
        self.encoded, self.realised_N = encoded, realised_N
        self.batches: list[range] = []
        start = tokens = 0
        for career, length in enumerate(encoded.lengths.tolist()):
            if career > start and tokens + length > max_tokens:
                self.batches.append(range(start, career))
                start, tokens = career, 0
            tokens += length
        self.batches.append(range(start, len(encoded)))

    def share(self, share: Share) -> "ScoringBatches":
        """What one of several devices has of these batches."""
        own = copy(self)
        own.batches = self.batches[share.device :: share.devices]
        return own

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, place: int) -> ScoringBatch:
        careers, encoded = self.batches[place], self.encoded
        first, stop = encoded.record_starts[careers.start], encoded.record_starts[careers.stop]
        start, end = encoded.career_starts[careers.start], encoded.career_starts[careers.stop]
        counts = np.diff(encoded.record_starts[careers.start : careers.stop + 1])
        return ScoringBatch(
            careers=PackedCareers(
                ids_T=torch.from_numpy(encoded.ids_T[start:end].astype(np.int64)),
                career_starts=(encoded.career_starts[careers.start : careers.stop + 1] - start).tolist(),
                careers_Q=torch.from_numpy(np.repeat(np.arange(len(careers)), counts)),
                prompt_ends_Q=torch.from_numpy(encoded.prompt_ends[first:stop] - start),
                title_ends_Q=torch.from_numpy(encoded.title_ends[first:stop] - start),
                realised_Q=torch.tensor(self.realised_N[first:stop]),
            ),
            records_Q=torch.arange(first, stop),
        )
