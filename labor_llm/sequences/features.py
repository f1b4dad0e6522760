"""The regressors of the multinomial logit: those of the reference code of CAREER, as a sparse table.

A constant; the last occupation and the one before it; each covariate; how often the last occupation was repeated
in a row; the place in the career; whether the year is not the next one that training knows, which is a gap;
whether education differs from that of the record before. At a first record the last two are 0 and 1.

Shapes: N records, F features, T features of a record that need not be zero.
"""

from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding_bag

from labor_llm.careers import Careers
from labor_llm.sequences.codes import MISSING, CodeBook, CodedCareers

UNIT = 10.0
"""Repeats and positions are counted in tens of records, so that all features are of about the same size."""
NUMERIC = ("repeats of the last occupation / 10", "position / 10", "gap", "education changed")
"""The last two are 0 throughout if year or education is not among the covariates."""


@dataclass(frozen=True)
class Design:
    """The features of records: which ones, and their values."""

    features_NT: Tensor
    values_NT: Tensor

    def __len__(self) -> int:
        """The number of records N."""
        return len(self.features_NT)

    def __getitem__(self, rows: Tensor | slice) -> "Design":
        """The features of some records."""
        return Design(self.features_NT[rows], self.values_NT[rows])

    def __matmul__(self, coefficients_FK: Tensor) -> Tensor:
        """The product of the table (N, F) with coefficients, (N, K)."""
        return embedding_bag(self.features_NT, coefficients_FK, per_sample_weights=self.values_NT, mode="sum")


def feature_names(book: CodeBook) -> tuple[str, ...]:
    """The name of each feature, the constant first."""
    names = ["constant"]
    for lag in ("last occupation", "second last occupation"):
        names += [*(f"{lag}={code}" for code in book.occupations), f"{lag}: none"]
    for covariate, values in book.values.items():
        names += [f"{covariate}={value}" if value != MISSING else f"{covariate}: missing" for value in values]
    return (*names, *NUMERIC)


def design(book: CodeBook, careers: Careers) -> Design:
    """The features of careers; what training never saw has no feature."""
    coded = book.encode(careers)
    numbers = [np.zeros_like(coded.before_N), coded.before_N, _second_last(coded, book.start)]
    numbers += [column - 1 for column in coded.covariates_NC.T.astype(np.int64)]
    sizes = [1, book.start + 1, book.start + 1, *map(len, book.values.values())]
    starts = list(accumulate(sizes, initial=0))
    known_NT = np.stack([(n >= 0) & (n < size) for n, size in zip(numbers, sizes, strict=True)], axis=1)
    places_NT = np.stack([start + n for start, n in zip(starts, numbers, strict=False)], axis=1) * known_NT
    numeric_NT = np.stack(
        [
            _repeats(careers) / UNIT,
            coded.places_N / UNIT,
            _gaps(careers, book.values.get("year", ())),
            _education_changed(careers) & ("education" in book.values),
        ],
        axis=1,
    )
    last_NT = np.broadcast_to(starts[-1] + np.arange(len(NUMERIC)), numeric_NT.shape)
    return Design(
        torch.from_numpy(np.concatenate([places_NT, last_NT], axis=1)),
        torch.from_numpy(np.concatenate([known_NT, numeric_NT], axis=1).astype(np.float32)),
    )


def _second_last(coded: CodedCareers, start: int) -> NDArray[np.int64]:
    """The occupation two records before, numbered as in the book."""
    return np.where(coded.places_N > 0, np.roll(coded.before_N, 1), start)


def _repeats(careers: Careers) -> NDArray[np.int64]:
    """How many records in a row, before the last one, had its occupation."""
    again_N = (careers.previous == careers.previous.shift()).fill_null(False).to_numpy()
    rows_N = np.arange(len(careers))
    return rows_N - np.maximum.accumulate(np.where(again_N, 0, rows_N))


def _gaps(careers: Careers, years: tuple[str, ...]) -> NDArray[np.bool_]:
    """Whether, among the years of the training data, another one lies since the record before."""
    known, year_N = np.array(list(map(int, years)), dtype=np.int64), careers.table["year"].to_numpy()
    before_N = np.searchsorted(known, np.roll(year_N, 1), "right")
    gap_N: NDArray[np.bool_] = np.searchsorted(known, year_N, "left") > before_N
    return gap_N & careers.previous.is_not_null().to_numpy()


def _education_changed(careers: Careers) -> NDArray[np.bool_]:
    """Whether education is not that of the record before; so it is at a first record."""
    education = careers.table["education"]
    return (education.ne_missing(education.shift()) | careers.previous.is_null()).to_numpy()
