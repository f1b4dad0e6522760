"""Text -> token ids, piece by piece.

A career's ids are the concatenation of its pieces' ids, each piece encoded after a fixed anchor. Training and
scoring use the same concatenation, so they agree by construction; and since a dataset has few different pieces,
tokenizing a panel is looking ids up. Shapes: P persons, N records, T tokens of all careers, J titles.
"""

import hashlib
import json
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import polars as pl
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from labor_llm.careers import Careers
from labor_llm.errors import DataError
from labor_llm.taxonomy import Taxonomy
from labor_llm.templates import TITLE_END, Label, ResumeTemplate

logger = logging.getLogger(__name__)

Ids = tuple[int, ...]

PROMPT_ANCHOR = TITLE_END
"""What stands before a prompt: the end of the title (or of the header) before it."""
TITLE_ANCHOR = ":"
"""What stands before a title: the end of its prompt."""


@dataclass(frozen=True)
class EncodedCareers:
    """Token ids of careers laid end to end, with the places of prompts and titles in them."""

    ids_T: NDArray[np.int32]
    career_starts: NDArray[np.int64]
    """First token of every career and the end of the last, shape (P + 1,)."""
    record_starts: NDArray[np.int64]
    """First record of every career and the end of the last, shape (P + 1,)."""
    prompt_ends: NDArray[np.int64]
    """Per record, the token after the last one of its prompt: where the title begins, shape (N,)."""
    title_ends: NDArray[np.int64]
    """Per record, the token after the last one of its title, terminator included, shape (N,)."""
    header_ends: NDArray[np.int64]
    """Per career, the token after the last one of its header, shape (P,)."""

    def __len__(self) -> int:
        return len(self.career_starts) - 1

    def bounds(self, careers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First token of each of the given careers, and the token after its last."""
        return self.career_starts[careers], self.career_starts[careers + 1]

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of every career, shape (P,)."""
        return np.diff(self.career_starts)

    @cached_property
    def in_title_T(self) -> NDArray[np.bool_]:
        """Which tokens belong to a title or its terminator, shape (T,)."""
        steps = np.zeros(len(self.ids_T) + 1, dtype=np.int8)
        steps[self.prompt_ends] += 1
        steps[self.title_ends] -= 1
        return np.cumsum(steps[:-1]).astype(bool)

    def with_targets(self, titles: Collection[Ids]) -> "EncodedCareers":
        """The same careers, of whose records only those with one of these titles are to be predicted."""
        spans = zip(self.prompt_ends.tolist(), self.title_ends.tolist(), strict=True)
        kept_N = np.array([tuple(self.ids_T[start:end].tolist()) in titles for start, end in spans], dtype=bool)
        return replace(
            self,
            record_starts=np.append(0, np.cumsum(kept_N))[self.record_starts],
            prompt_ends=self.prompt_ends[kept_N],
            title_ends=self.title_ends[kept_N],
        )


class CareerEncoder:
    """Tokenizes careers for one tokenizer, template, label and taxonomy, after checking that they fit."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: ResumeTemplate,
        label: Label,
        taxonomy: Taxonomy,
        prompt: Ids = (),
    ) -> None:
        """``prompt``: tokens that stand before every header."""
        self.tokenizer, self.template, self.label, self.taxonomy = tokenizer, template, label, taxonomy
        self.prompt = prompt
        self.prefix: Ids = _prefix(tokenizer) + prompt
        texts = template.titles(label, taxonomy)
        self.titles: Mapping[str, Ids] = dict(
            zip(texts, self.encode_after(TITLE_ANCHOR, texts.values()), strict=True)
        )
        if len(set(self.titles.values())) < len(self.titles):
            raise DataError(
                f"two titles of taxonomy {taxonomy.name!r} have the same token ids under this tokenizer; "
                "the model could not tell them apart. Give them different titles, or use another tokenizer."
            )

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the ids of all titles: a model must be scored with the tokenizer that it was trained with."""
        return hashlib.sha256(json.dumps(sorted(self.titles.items())).encode()).hexdigest()

    def encode_after(self, anchor: str, texts: Iterable[str]) -> list[Ids]:
        """The ids of each text where it follows the anchor; decoding them must give the text back."""
        texts = list(texts)
        start = self._encode([anchor])[0]
        encoded = []
        for text, ids in zip(texts, self._encode([anchor + text for text in texts]), strict=True):
            if ids[: len(start)] != start or self._decode(ids) != anchor + text:
                raise DataError(
                    f"the tokenizer does not keep {text!r} whole after {anchor!r}: it reads "
                    f"{self._decode(ids)!r}. Probabilities of titles would be wrong. Check that the "
                    "tokenizer's files belong to the model, or reword the text."
                )
            encoded.append(ids[len(start) :])
        return encoded

    def encode(self, careers: Careers) -> EncodedCareers:
        """Tokenize every career, footer included."""
        headers_P = self.template.headers(careers)
        prompts_N = self.template.prompts(careers)
        pieces, header_P, prompt_N, title_N = self._pieces(headers_P, prompts_N, careers.table["occupation"])
        record_starts = careers.person_starts
        order, firsts_P, prompt_places_N = _interleave(header_P, prompt_N, title_N, record_starts)
        lengths = np.fromiter(map(len, pieces), dtype=np.int64, count=len(pieces))[order]
        ends = np.cumsum(lengths)
        return EncodedCareers(
            ids_T=_gather(pieces, order),
            career_starts=np.append((ends - lengths)[firsts_P], ends[-1]),
            record_starts=record_starts,
            prompt_ends=ends[prompt_places_N],
            title_ends=ends[prompt_places_N + 1],
            header_ends=ends[firsts_P],
        )

    def needed(self, careers: Careers) -> int:
        """Tokens of the longest header with what is before it, the longest prompt of a record and any title."""
        headers = self.encode_after("", self.template.headers(careers).unique())
        prompts = self.encode_after(PROMPT_ANCHOR, self.template.prompts(careers).unique())
        return len(self.prefix) + sum(max(map(len, pieces)) for pieces in (headers, prompts, self.titles.values()))

    def check_boundaries(self, careers: Careers) -> None:
        """Warn where the tokenizer, given a whole text, would cut it elsewhere than between the pieces.

        Probabilities are right all the same, since training and scoring share the pieces; but an
        off-the-shelf model has then seen such titles written with other tokens.
        """
        header, prompt = self.template.headers(careers)[0], self.template.prompts(careers)[0]
        start = self.encode_after("", [header])[0] + self.encode_after(PROMPT_ANCHOR, [prompt])[0]
        texts = self.template.titles(self.label, self.taxonomy)
        joint = self._encode([header + prompt + title + prompt for title in texts.values()])
        again = self.encode_after(PROMPT_ANCHOR, [prompt])[0]
        odd = [
            text.strip()
            for (code, text), ids in zip(texts.items(), joint, strict=True)
            if ids != start + self.titles[code] + again
        ]
        if odd:
            logger.warning(
                "the tokenizer cuts %d of %d titles otherwise in running text, for example %r",
                len(odd),
                len(texts),
                odd[0],
            )

    def _pieces(
        self, headers_P: pl.Series, prompts_N: pl.Series, codes_N: pl.Series
    ) -> tuple[list[Ids], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """All different pieces, the footer last, and which of them each header, prompt and title is."""
        headers, prompts, codes = (
            column.unique(maintain_order=True) for column in (headers_P, prompts_N, codes_N)
        )
        self.taxonomy.check(codes)
        pieces = [self.prefix + ids for ids in self.encode_after("", headers)]
        pieces += self.encode_after(PROMPT_ANCHOR, prompts)
        pieces += [self.titles[code] for code in codes]
        pieces += self.encode_after(PROMPT_ANCHOR, [self.template.footer])
        first_title = len(headers) + len(prompts)
        return (
            pieces,
            _places(headers_P, headers),
            _places(prompts_N, prompts) + len(headers),
            _places(codes_N, codes) + first_title,
        )

    def _encode(self, texts: Sequence[str]) -> list[Ids]:
        if not texts:
            return []
        return [tuple(ids) for ids in self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]]

    def _decode(self, ids: Ids) -> str:
        return str(self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


def _prefix(tokenizer: PreTrainedTokenizerBase) -> Ids:
    """What the tokenizer itself puts before a text: a beginning-of-text token, several tokens, or nothing."""
    bare, whole = (tuple(tokenizer("x", add_special_tokens=own)["input_ids"]) for own in (False, True))
    for place in range(len(whole) - len(bare) + 1):
        if whole[place : place + len(bare)] == bare:
            return whole[:place]
    raise DataError(
        f"the tokenizer {type(tokenizer).__name__} cuts a text otherwise when it adds tokens of its own: it makes "
        f"{whole} of 'x', and {bare} without them. Use another tokenizer."
    )


def _places(values: pl.Series, unique: pl.Series) -> NDArray[np.int64]:
    return values.replace_strict(unique, np.arange(len(unique)), return_dtype=pl.Int64).to_numpy()


def _interleave(
    header_P: NDArray[np.int64],
    prompt_N: NDArray[np.int64],
    title_N: NDArray[np.int64],
    record_starts: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Pieces in reading order, the place of each header in that order (P,), and of each prompt (N,)."""
    persons, records = len(header_P), len(prompt_N)
    firsts_P = 2 * record_starts[:-1] + 2 * np.arange(persons)
    person_N = np.repeat(np.arange(persons), np.diff(record_starts))
    prompt_places_N = 2 * np.arange(records) + 2 * person_N + 1
    footer = max(header_P.max(), prompt_N.max(), title_N.max()) + 1
    order = np.full(2 * (persons + records), footer)
    order[firsts_P], order[prompt_places_N], order[prompt_places_N + 1] = header_P, prompt_N, title_N
    return order, firsts_P, prompt_places_N


def _gather(pieces: Sequence[Ids], order: NDArray[np.int64]) -> NDArray[np.int32]:
    """The pieces' ids laid end to end in the given order."""
    piece_lengths = np.fromiter(map(len, pieces), dtype=np.int64, count=len(pieces))
    piece_starts = np.cumsum(piece_lengths) - piece_lengths
    flat = np.fromiter((token for piece in pieces for token in piece), dtype=np.int32)
    lengths = piece_lengths[order]
    offsets = np.repeat(piece_starts[order] - (np.cumsum(lengths) - lengths), lengths)
    return flat[np.arange(lengths.sum()) + offsets]
