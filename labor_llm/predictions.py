"""What a model said about every record, as one table: all that evaluation needs, and no model.

Shapes: N records in the order of the careers table, J occupations in the order of the choice set.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.special import logsumexp

from labor_llm import parquet_files
from labor_llm.careers import Careers
from labor_llm.errors import RunError
from labor_llm.events import SET_EVENTS, blocks, event_columns

METADATA_KEY = "labor_llm.choice_set"
COVARIATES = ("education", "gender", "ethnicity")
"""What groups are told by; carried along, so that reports need no other file of persons."""
COLUMNS: dict[str, type[pl.DataType]] = {
    "person_id": pl.String,
    "year": pl.Int32,
    "occupation": pl.String,
    "in_choice_set": pl.Boolean,
    "log_prob": pl.Float64,
    "log_mass": pl.Float64,
    "log_prob_raw": pl.Float64,
    "error_bound": pl.Float64,
    "rank": pl.Int32,
    "tied": pl.Int32,
    "first": pl.Boolean,
    "moved": pl.Boolean,
    "log_prob_stay": pl.Float64,
    **{
        column: dtype
        for event in SET_EVENTS
        for column, dtype in ((event, pl.Boolean), (f"{event}_logit", pl.Float64))
    },
    "weight": pl.Float64,
    **dict.fromkeys(COVARIATES, pl.String),
}
TOLERANCE = 1e-4
"""By how much the probabilities of a row may miss one."""


@dataclass(frozen=True)
class ChoiceProbabilities:
    """What a model predicts, in natural logs."""

    log_probs_NJ: NDArray[np.floating]
    """Log-probabilities; the probabilities of a row sum to one."""
    log_mass_N: NDArray[np.floating]
    """Log of what the row summed to before it was normalised; zero for models that need no normalising."""
    error_bound_N: NDArray[np.floating] | None = None
    """How far the probability of any set of occupations can be from the model's own, if not everything was
    computed; None where it was."""

    @classmethod
    def normalised(cls, raw_NJ: NDArray[np.float64], error_bound_N: NDArray[np.floating] | None = None) -> Self:
        """Of log-probabilities that need not sum to one; in place, for there may be gigabytes of them."""
        log_mass_N = np.empty(len(raw_NJ))
        for rows in blocks(len(raw_NJ)):
            log_mass_N[rows] = logsumexp(raw_NJ[rows], axis=1)
            raw_NJ[rows] -= log_mass_N[rows, None]
        return cls(raw_NJ, log_mass_N, error_bound_N)

    def of_rows(self, rows: NDArray[np.int64]) -> Self:
        """The same of some records."""
        bound_N = self.error_bound_N
        return replace(
            self,
            log_probs_NJ=self.log_probs_NJ[rows],
            log_mass_N=self.log_mass_N[rows],
            error_bound_N=None if bound_N is None else bound_N[rows],
        )


@dataclass(frozen=True)
class RealizedProbabilities:
    """What a model predicts for what happened, and nothing else."""

    log_prob_raw_N: NDArray[np.floating]
    """Log-probability of the realised occupation before normalisation; NaN outside the choice set."""

    def of_rows(self, rows: NDArray[np.int64]) -> Self:
        """The same of some records."""
        return replace(self, log_prob_raw_N=self.log_prob_raw_N[rows])


@dataclass(frozen=True)
class Predictions:
    """One row per record, in the order of the careers table.

    ``in_choice_set``: whether the model could have named the occupation; where it could not, ``log_prob``,
    ``rank`` and ``tied`` are null. ``log_prob_raw``: before normalisation, ``log_prob + log_mass``; all that there
    is if only the realised occupation was scored. ``error_bound``: how far any probability can be from the model's
    own, null if not at all. ``rank``: one plus the number of occupations that are strictly more probable;
    ``tied``: how many are as probable as the realised one, itself included.
    ``first``: the person has no earlier record; ``moved`` and ``log_prob_stay`` (of the occupation of the
    record before) are then null, and ``log_prob_stay`` also where that occupation is outside the choice set.
    ``log_probs``: the whole distribution in float32, if kept.
    """

    table: pl.DataFrame
    choice_set: tuple[str, ...]

    @classmethod
    def of(
        cls,
        careers: Careers,
        choice_set: Sequence[str],
        probabilities: ChoiceProbabilities | RealizedProbabilities,
        keep_distribution: bool = True,
    ) -> Self:
        """Look up what was realised; a RuntimeError, for it is our mistake, if these are no probabilities."""
        if isinstance(probabilities, RealizedProbabilities):
            return cls(_realised(careers, choice_set, probabilities), tuple(choice_set))
        _check(probabilities, len(careers), len(choice_set))
        log_probs_NJ = probabilities.log_probs_NJ
        realised_N = choice_indices(careers.table["occupation"], choice_set)
        log_prob = _picked(log_probs_NJ, realised_N)
        known, log_mass = log_prob.is_not_null(), pl.Series(probabilities.log_mass_N, dtype=pl.Float64)
        rank_N, tied_N = _ranks(log_probs_NJ, realised_N)
        table = _table(
            careers,
            in_choice_set=known,
            log_prob=log_prob,
            log_mass=log_mass,
            log_prob_raw=log_prob + log_mass,
            error_bound=_bound(probabilities),
            rank=pl.when(known).then(pl.Series(rank_N)),
            tied=pl.when(known).then(pl.Series(tied_N)),
            log_prob_stay=_picked(log_probs_NJ, choice_indices(careers.previous, choice_set)),
            **event_columns(careers, choice_set, log_probs_NJ),
        )
        if keep_distribution:
            table = table.with_columns(log_probs=_distribution(log_probs_NJ))
        return cls(table, tuple(choice_set))

    @property
    def realized_only(self) -> bool:
        """Whether only the realized occupation was scored, so that there are no normalized probabilities."""
        return bool(self.table["log_prob"].is_null().all() and self.table["log_prob_raw"].is_not_null().any())

    @property
    def log_scores(self) -> pl.Series:
        """``log_prob``, or ``log_prob_raw`` where only the realized occupation was scored.

        Raw probabilities of a choice set sum to at most one, so normalization can only raise them.
        """
        return self.table["log_prob_raw" if self.realized_only else "log_prob"]

    def write(self, path: Path) -> None:
        """Write a Parquet file, whole or not at all."""
        partial = path.with_name(f"{path.name}.partial")
        self.table.write_parquet(partial.absolute(), metadata={METADATA_KEY: json.dumps(self.choice_set)})
        partial.replace(path)

    @classmethod
    def read(cls, path: Path, distribution: bool = True) -> Self:
        """Read what ``write`` wrote, without the column ``log_probs`` if ``distribution`` is false.

        A RunError if the file is missing or is something else.
        """
        if not path.is_file():
            raise RunError(f"there are no predictions at {path}; name the file of a complete run.")
        try:
            choice_set = parquet_files.metadata(path)[METADATA_KEY]
        except (pl.exceptions.ComputeError, KeyError):
            raise RunError(f"{path} is not a file of predictions written by labor-llm.") from None
        columns = [name for name in parquet_files.schema(path) if distribution or name != "log_probs"]
        table = parquet_files.scanned(path).select(columns).collect()
        if "log_prob_raw" not in columns:  # written by the first version
            table = table.with_columns(log_prob_raw=pl.col("log_prob") + pl.col("log_mass"))
        return cls(_completed(table), tuple(json.loads(choice_set)))


def choice_indices(codes: pl.Series, choice_set: Sequence[str]) -> NDArray[np.int64]:
    """The place of every code in the choice set, -1 where it is missing from it or null; shape (N,)."""
    places = {code: place for place, code in enumerate(choice_set)}
    return codes.replace_strict(places, default=-1, return_dtype=pl.Int64).fill_null(-1).to_numpy()


def _realised(careers: Careers, choice_set: Sequence[str], probabilities: RealizedProbabilities) -> pl.DataFrame:
    """The table with null for all that was not computed."""
    return _table(
        careers,
        in_choice_set=pl.Series(choice_indices(careers.table["occupation"], choice_set) >= 0),
        log_prob_raw=pl.Series(probabilities.log_prob_raw_N, dtype=pl.Float64, nan_to_null=True),
        **event_columns(careers, choice_set, None),
    )


def _table(careers: Careers, **columns: pl.Series | pl.Expr) -> pl.DataFrame:
    """What is known of the records, and these columns; null for all others."""
    known = ("person_id", "year", "occupation", "weight", *COVARIATES)
    previous = careers.previous
    table = careers.table.select(known).with_columns(
        first=previous.is_null(), moved=careers.table["occupation"] != previous, **columns
    )
    return _completed(table).select(list(COLUMNS))


def _completed(table: pl.DataFrame) -> pl.DataFrame:
    """With null for the columns that it lacks."""
    absent = COLUMNS.keys() - set(table.columns)
    return table.with_columns(pl.lit(None, dtype).alias(name) for name, dtype in COLUMNS.items() if name in absent)


def _bound(probabilities: ChoiceProbabilities) -> pl.Series | pl.Expr:
    if probabilities.error_bound_N is None:
        return pl.lit(None, dtype=pl.Float64)
    return pl.Series(probabilities.error_bound_N, dtype=pl.Float64)


def _picked(log_probs_NJ: NDArray[np.floating], places_N: NDArray[np.int64]) -> pl.Series:
    """One log-probability per row, null where the place is -1."""
    picked_N = log_probs_NJ[np.arange(len(places_N)), places_N.clip(min=0)].astype(np.float64)
    return pl.Series(np.where(places_N < 0, np.nan, picked_N), nan_to_null=True)


def _ranks(
    log_probs_NJ: NDArray[np.floating], places_N: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """One plus the number of greater entries of the row, and of equal ones; meaningless where the place is -1."""
    rank_N, tied_N = (np.empty(len(places_N), dtype=np.int32) for _ in range(2))
    for rows in blocks(len(places_N)):
        chosen = np.take_along_axis(log_probs_NJ[rows], places_N[rows, None].clip(min=0), axis=1)
        rank_N[rows] = 1 + (log_probs_NJ[rows] > chosen).sum(axis=1)
        tied_N[rows] = (log_probs_NJ[rows] == chosen).sum(axis=1)
    return rank_N, tied_N


def _distribution(log_probs_NJ: NDArray[np.floating]) -> pl.Series:
    values = np.ascontiguousarray(log_probs_NJ, dtype=np.float32)
    return pl.Series(values, dtype=pl.Array(pl.Float32, values.shape[1]))


def _check(probabilities: ChoiceProbabilities, records: int, occupations: int) -> None:
    """Raise a RuntimeError that names the first row that is no distribution."""
    log_probs_NJ, log_mass_N = probabilities.log_probs_NJ, probabilities.log_mass_N
    if log_probs_NJ.shape != (records, occupations) or log_mass_N.shape != (records,):
        raise RuntimeError(
            f"expected log-probabilities of shape {(records, occupations)} and log-masses of shape "
            f"{(records,)}, got {log_probs_NJ.shape} and {log_mass_N.shape}"
        )
    if np.isnan(log_mass_N).any():
        raise RuntimeError(f"the log-mass of row {np.isnan(log_mass_N).argmax()} is not a number")
    for rows in blocks(records):
        with np.errstate(over="ignore"):
            sums = np.exp(log_probs_NJ[rows]).sum(axis=1, dtype=np.float64)
        wrong = ~(np.abs(sums - 1) <= TOLERANCE)  # true for a NaN
        if wrong.any():
            first = int(wrong.argmax())
            raise RuntimeError(
                f"the probabilities of row {rows.start + first} sum to {sums[first]:.6g}, not to one"
            )
