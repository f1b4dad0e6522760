"""Forecasts of events, read off the distribution over occupations, and how well they did.

``move`` is to change one's occupation or state since the record before; the others are in ``events``. All are of
records after a person's first. Shapes: N records at risk.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.special import expit

from labor_llm.events import SET_EVENTS
from labor_llm.statistics.clustered import (
    UNDEFINED,
    Estimate,
    clustered_auc,
    clustered_ratio,
    distinct,
    renumbered,
)

EVENTS = ("move", *SET_EVENTS)


@dataclass(frozen=True)
class Forecasts:
    """What was foretold of an event, and what came, for the records at risk that have a forecast."""

    table: pl.DataFrame
    """One row per record: person (a number), happened, logit (log-odds of the event), weight; and all it had."""

    @classmethod
    def of(cls, table: pl.DataFrame, event: str) -> Self:
        """From a table of predictions; without records if nothing was at risk or no distribution was computed."""
        if event == "move":
            happened, logit = table["moved"], _logit_of_moving(table["log_prob_stay"])
        else:
            happened, logit = table[event], table[f"{event}_logit"]
        at_risk = table.with_columns(happened=happened, logit=logit).drop_nulls(["happened", "logit"])
        return cls(at_risk.with_columns(person=pl.col("person_id").rank("dense")))

    def where(self, condition: pl.Expr | pl.Series) -> Self:
        """Those of some of the records."""
        return type(self)(self.table.filter(condition))

    @property
    def weighable(self) -> Self:
        """Those of the records of positive survey weight."""
        return self.where(pl.col("weight") > 0)

    @cached_property
    def persons_N(self) -> NDArray[np.int64]:
        """Every record's person, numbered from zero."""
        return renumbered(self.table["person"].to_numpy())

    @cached_property
    def happened_N(self) -> NDArray[np.bool_]:
        return self.table["happened"].to_numpy()

    @cached_property
    def logits_N(self) -> NDArray[np.float64]:
        return self.table["logit"].to_numpy()

    @cached_property
    def probabilities_N(self) -> NDArray[np.float64]:
        """The forecast probabilities of the event."""
        probabilities_N: NDArray[np.float64] = expit(self.logits_N)
        return probabilities_N

    @cached_property
    def person_counts(self) -> tuple[int, int, int]:
        """Persons, those with an event, and those with a record of none."""
        parts = (self.persons_N, self.persons_N[self.happened_N], self.persons_N[~self.happened_N])
        persons, having, lacking = map(distinct, parts)
        return persons, having, lacking

    def weights_N(self, weighted: bool) -> NDArray[np.float64]:
        """Survey weights or ones."""
        return self.table["weight"].to_numpy() if weighted else np.ones(len(self.table))

    def mean(self, values_N: NDArray[np.floating] | NDArray[np.bool_], weighted: bool = False) -> Estimate:
        """The (weighted) mean of something known of every record."""
        if not len(values_N):
            return UNDEFINED
        weights_N = self.weights_N(weighted)
        sums_G, weights_G = (
            np.bincount(self.persons_N, each_N).astype(np.float64) for each_N in (weights_N * values_N, weights_N)
        )
        return Estimate(*clustered_ratio(sums_G, weights_G), len(values_N), len(sums_G))

    def auc(self, weighted: bool = False) -> Estimate:
        """How well the forecasts tell events from non-events."""
        if not len(self.table):
            return UNDEFINED
        return clustered_auc(self.persons_N, self.happened_N, self.logits_N, self.weights_N(weighted))

    def brier(self, weighted: bool = False) -> Estimate:
        """Mean square of the forecast probability minus what came, 1 or 0 (Brier 1950)."""
        return self.mean(np.square(self.probabilities_N - self.happened_N), weighted)


def _logit_of_moving(log_prob_stay: pl.Series) -> pl.Series:
    """Log-odds of not staying, to all digits in both tails; null where the former is."""
    log_prob_N = log_prob_stay.to_numpy()
    with np.errstate(divide="ignore"):
        return pl.Series(np.log(-np.expm1(log_prob_N.clip(max=0))) - log_prob_N, nan_to_null=True)
