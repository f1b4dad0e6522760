"""Careers as numbers: occupations and covariates, each value of which has a number of its own.

Shapes: N records in the order of the table, P persons, C covariates, J occupations of the choice set.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from labor_llm.careers import Careers
from labor_llm.predictions import choice_indices

Covariate = Literal["year", "education", "region", "gender", "ethnicity", "birth_year", "survey"]
"""All are read as categories, the years too."""
MISSING = ""
"""How a missing value is written where values are listed; no text of a careers table is empty."""
FILE = "codes.json"


@dataclass(frozen=True)
class CodeBook:
    """Which number stands for what.

    An occupation has its place in the choice set; J stands for the beginning of a career and J + 1 for any
    occupation outside the choice set. A covariate's values count from 1 in alphabetical order, a missing value
    being one of them if training has both; 0 is what training never saw. A year that training never saw has the
    number of the last one before it, so that forecasts go on from the last year that is known; one before all of
    them has the first's. A covariate that is missing throughout training has no values.
    """

    occupations: tuple[str, ...]
    values: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, train: Careers, choice_set: Sequence[str], covariates: Sequence[Covariate]) -> Self:
        """The numbers for what the training careers hold."""
        seen: dict[str, tuple[str, ...]] = {name: tuple(_text(train, name).unique().sort()) for name in covariates}
        known = {name: () if values == (MISSING,) else values for name, values in seen.items()}
        return cls(tuple(choice_set), known)

    @property
    def start(self) -> int:
        """The number J: nothing stands before the record."""
        return len(self.occupations)

    @property
    def outside(self) -> int:
        """The number J + 1: an occupation stands before the record that is not in the choice set."""
        return len(self.occupations) + 1

    @property
    def columns(self) -> dict[str, int]:
        """The covariates that have values, and their columns in what ``encode`` gives."""
        return {name: column for column, (name, values) in enumerate(self.values.items()) if values}

    def encode(self, careers: Careers) -> "CodedCareers":
        """Careers in numbers."""
        before_N = choice_indices(careers.previous, self.occupations)
        first_N = careers.previous.is_null().to_numpy()
        covariates_NC = np.empty((len(careers), len(self.values)), dtype=np.int32)
        for place, (name, values) in enumerate(self.values.items()):
            covariates_NC[:, place] = _numbers(careers, name, values)
        return CodedCareers(
            starts=careers.person_starts,
            targets_N=choice_indices(careers.table["occupation"], self.occupations).copy(),
            before_N=np.where(first_N, self.start, np.where(before_N < 0, self.outside, before_N)),
            covariates_NC=covariates_NC,
        )

    def write(self, folder: Path) -> None:
        """Write the book into a model's folder."""
        content = {"occupations": self.occupations, "values": self.values}
        (folder / FILE).write_text(json.dumps(content), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """What ``write`` wrote."""
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return cls(
            tuple(content["occupations"]), {name: tuple(values) for name, values in content["values"].items()}
        )


@dataclass(frozen=True)
class CodedCareers:
    """Careers in the numbers of a book."""

    starts: NDArray[np.int64]
    """Row at which each person's records begin, and N at the end; shape (P + 1,)."""
    targets_N: NDArray[np.int64]
    """The occupation of the record, a place in the choice set; -1 if it is outside."""
    before_N: NDArray[np.int64]
    """The occupation of the record before, which is what a model may read at this one."""
    covariates_NC: NDArray[np.int32]
    """The record's own covariates, known before its occupation."""

    def __len__(self) -> int:
        """The number of persons P."""
        return len(self.starts) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Records of each person, shape (P,)."""
        return np.diff(self.starts)

    @property
    def places_N(self) -> NDArray[np.int64]:
        """How many records of the person stand before each record."""
        return np.arange(len(self.targets_N)) - np.repeat(self.starts[:-1], self.lengths)

    def rows(self, persons: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows of the records of some persons, person after person."""
        counts = self.lengths[persons]
        ends = counts.cumsum()
        return np.arange(counts.sum()) + np.repeat(self.starts[:-1][persons] - ends + counts, counts)


def _numbers(careers: Careers, name: str, values: Sequence[str]) -> NDArray[np.int32]:
    """The numbers of a covariate's values, as in a book."""
    if name == "year":
        known = np.array(list(map(int, values)), dtype=np.int64)
        return np.searchsorted(known, careers.table["year"].to_numpy(), "right").clip(1).astype(np.int32)
    numbers = {value: number for number, value in enumerate(values, 1)}
    return _text(careers, name).replace_strict(numbers, default=0, return_dtype=pl.Int32).to_numpy()


def _text(careers: Careers, name: str) -> pl.Series:
    """A covariate as text, a missing value too."""
    return careers.table[name].cast(pl.String).fill_null(MISSING)
