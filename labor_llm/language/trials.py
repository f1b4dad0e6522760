"""Careers on which a model is tried: one longer than any of the panel beside two short ones.

A sliding window, or positions that change beyond some length, show only in a text that reaches so far, or in a
short text that stands in one row with it.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from labor_llm.language.tokens import EncodedCareers

COPIES = 2
"""How many times the records of the longest career stand in the long one: other persons' may be longer."""


@dataclass(frozen=True)
class Trial:
    """Careers with their first and last record."""

    careers: EncodedCareers
    """The long one and the short ones."""
    short: EncodedCareers
    """The short ones alone."""

    @classmethod
    def of(cls, encoded: EncodedCareers, room: int) -> "Trial":
        """The long career has up to ``room`` tokens, or as many as the longest of the careers."""
        order = np.argsort(encoded.lengths, kind="stable")
        room = max(room, int(encoded.lengths[order[-1]]))
        short = [_Text.of(encoded, int(place)) for place in order[:2]]
        return cls(_laid([_Text.of(encoded, int(order[-1])).repeated(room), *short]), _laid(short))

    @property
    def longest(self) -> int:
        """Tokens of the long career."""
        return int(self.careers.lengths.max())


@dataclass(frozen=True)
class _Text:
    """The tokens of one career, and the places of its titles in them."""

    ids_L: NDArray[np.int32]
    header: int
    prompt_ends: NDArray[np.int64]
    title_ends: NDArray[np.int64]

    @classmethod
    def of(cls, encoded: EncodedCareers, place: int) -> "_Text":
        start, end = encoded.career_starts[place : place + 2].tolist()
        records = slice(*encoded.record_starts[place : place + 2].tolist())
        return cls(
            encoded.ids_T[start:end],
            int(encoded.header_ends[place]) - start,
            encoded.prompt_ends[records] - start,
            encoded.title_ends[records] - start,
        )

    def repeated(self, room: int) -> "_Text":
        """The records several times behind the header; of what has no room, the most recent tokens."""
        body = self.ids_L[self.header : self.title_ends[-1]]
        tail = np.tile(body, COPIES)[-max(len(body), room - self.header) :]
        shift = len(tail) - COPIES * len(body)
        moved = shift + np.arange(COPIES)[:, None] * len(body)
        prompt_ends, title_ends = ((ends + moved).ravel() for ends in (self.prompt_ends, self.title_ends))
        whole = prompt_ends >= self.header
        return _Text(
            np.concatenate([self.ids_L[: self.header], tail]), self.header, prompt_ends[whole], title_ends[whole]
        )


def _laid(texts: list[_Text]) -> EncodedCareers:
    """The texts end to end, each with its first and last record."""
    starts = np.cumsum([0, *(len(text.ids_L) for text in texts)])
    records = [np.unique([0, len(text.prompt_ends) - 1]) for text in texts]
    return EncodedCareers(
        ids_T=np.concatenate([text.ids_L for text in texts]),
        career_starts=starts,
        record_starts=np.cumsum([0, *map(len, records)]),
        prompt_ends=np.concatenate(
            [text.prompt_ends[of] + start for text, of, start in zip(texts, records, starts[:-1], strict=True)]
        ),
        title_ends=np.concatenate(
            [text.title_ends[of] + start for text, of, start in zip(texts, records, starts[:-1], strict=True)]
        ),
        header_ends=starts[:-1] + [text.header for text in texts],
    )
