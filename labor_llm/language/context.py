"""Careers that are longer than a model's context: what is kept of them, counted in records.

A header always stays, and whole records only; a record is never cut.
"""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from labor_llm.errors import DataError
from labor_llm.language.tokens import EncodedCareers


def most_recent(encoded: EncodedCareers, context: int) -> EncodedCareers:
    """Every career with as many of its most recent records as fit; for training, where the rest is left out.

    A DataError if the context does not hold a career's last record.
    """
    return _viewed(encoded, encoded.lengths <= context, lambda place: _last_view(encoded, place, context))


def every_record(encoded: EncodedCareers, context: int, longest_title: int) -> EncodedCareers:
    """Every record once, after as many of the records before it as fit; for prediction, where none is left out.

    A career that is too long becomes several, each with the records that have the same first record before them.
    """
    room = context - longest_title  # any title may be tried at the last record
    return _viewed(encoded, encoded.lengths <= room, lambda place: _views(encoded, place, room))


def last_record(encoded: EncodedCareers, context: int, longest_title: int) -> EncodedCareers:
    """Every career's last record, after as many of the records before it as fit; for forecasts."""
    room, none = context - longest_title, np.zeros(len(encoded), dtype=bool)
    return _viewed(encoded, none, lambda place: _views(encoded, place, room, last_only=True))


View = tuple[int, int, int, int]
"""First record that is shown, first that is a target, and the ones after the last; then the end of the text."""


def _last_view(encoded: EncodedCareers, place: int, room: int) -> Iterator[View]:
    stop, end = int(encoded.record_starts[place + 1]), int(encoded.career_starts[place + 1])
    shown = _first_that_fits(encoded, place, end, room)
    if shown < stop:
        yield shown, shown, stop, end
    else:
        raise _too_short(room)


def _views(encoded: EncodedCareers, place: int, room: int, last_only: bool = False) -> Iterator[View]:
    target, stop = encoded.record_starts[place : place + 2].tolist()
    target = stop - 1 if last_only else target
    while target < stop:
        shown = _first_that_fits(encoded, place, int(encoded.prompt_ends[target]), room)
        if shown > target:
            raise _too_short(room)
        after = target + 1
        while after < stop and _first_that_fits(encoded, place, int(encoded.prompt_ends[after]), room) == shown:
            after += 1
        yield shown, target, after, int(encoded.title_ends[after - 1])
        target = after


def _begin(encoded: EncodedCareers, place: int, record: int) -> int:
    """The first token of a record's line."""
    first = record == encoded.record_starts[place]
    return int(encoded.header_ends[place] if first else encoded.title_ends[record - 1])


def _first_that_fits(encoded: EncodedCareers, place: int, end: int, room: int) -> int:
    """The earliest record from which on the text up to ``end`` fits behind the header."""
    first, stop = encoded.record_starts[place : place + 2].tolist()
    begins = np.append(encoded.header_ends[place], encoded.title_ends[first : stop - 1])
    header = int(encoded.header_ends[place] - encoded.career_starts[place])
    return first + int(np.searchsorted(begins, end - (room - header)))


def _viewed(
    encoded: EncodedCareers, fits_P: NDArray[np.bool_], views: Callable[[int], Iterator[View]]
) -> EncodedCareers:
    """The careers that fit as they are, and the views of those that do not."""
    if fits_P.all():
        return encoded
    ids, lengths, counts, headers, prompt_ends, title_ends = [], [], [], [], [], []
    total = 0
    for place in range(len(encoded)):
        start, end = encoded.career_starts[place : place + 2].tolist()
        first, stop = encoded.record_starts[place : place + 2].tolist()
        header = slice(start, int(encoded.header_ends[place]))
        for shown, target, after, until in [(first, first, stop, end)] if fits_P[place] else views(place):
            body = slice(_begin(encoded, place, shown), until)
            shift = total + (header.stop - header.start) - body.start
            ids += [encoded.ids_T[header], encoded.ids_T[body]]
            headers.append(total + header.stop - header.start)
            prompt_ends.append(encoded.prompt_ends[target:after] + shift)
            title_ends.append(encoded.title_ends[target:after] + shift)
            counts.append(after - target)
            lengths.append(header.stop - header.start + body.stop - body.start)
            total += lengths[-1]
    return EncodedCareers(
        ids_T=np.concatenate(ids),
        career_starts=np.cumsum([0, *lengths]),
        record_starts=np.cumsum([0, *counts]),
        prompt_ends=np.concatenate(prompt_ends),
        title_ends=np.concatenate(title_ends),
        header_ends=np.array(headers),
    )


def _too_short(room: int) -> DataError:
    return DataError(
        f"a career's header and one record do not fit into {room} tokens. Use a backbone with a longer context "
        "(for one from scratch, set backbone.context)."
    )
