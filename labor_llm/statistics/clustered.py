"""Means, ratios and areas under the ROC curve, with standard errors clustered by person.

A person g contributes the sums A_g and B_g, and a statistic is R = sum A_g / sum B_g. Its variance by
linearisation is G/(G-1) sum_g (A_g - R B_g)^2 / (sum B_g)^2 (Cochran 1977, Sampling Techniques, ch. 6 and 9;
for a mean it equals least squares on a constant with person-clustered errors, Liang and Zeger 1986). With survey
weights the sums are weighted, and persons are the primary sampling units. Shapes: N records, G persons.
"""

import re
from math import isfinite, isnan, sqrt
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray


class Estimate(NamedTuple):
    """A value and its standard error, from so many records of so many persons; None where undefined.

    A value is undefined without records (or, for the AUC, with one class only), its standard error with one
    person only or an infinite value.
    """

    value: float | None
    se: float | None
    records: int
    persons: int


UNDEFINED = Estimate(None, None, 0, 0)


def weighted_name(name: str) -> str:
    """How the survey-weighted twin of a statistic is called: ``auc_weighted``, ``auc_weighted_se``."""
    stem = re.sub(r"(_se|_se_bootstrap|_se_training|_se_total|_low|_high|_p|_p_holm)$", "", name)
    return f"{stem}_weighted{name[len(stem) :]}"


def clustered_ratio(values_G: NDArray[np.floating], weights_G: NDArray[np.floating]) -> tuple[float, float | None]:
    """The ratio of two sums over persons, and its standard error if it has one; formulas above."""
    ratio, persons = float(values_G.sum() / weights_G.sum()), len(values_G)
    if persons < 2 or not isfinite(ratio):
        return ratio, None
    squares = float(np.square(values_G - ratio * weights_G).sum())
    return ratio, sqrt(persons / (persons - 1) * squares) / float(weights_G.sum())


def clustered_mean(table: pl.DataFrame, value: pl.Expr, weight: pl.Expr | None = None) -> Estimate:
    """The (weighted) mean over the records where neither value nor weight is null."""
    records = table.select(
        "person_id", value=value.cast(pl.Float64), weight=pl.lit(1.0) if weight is None else weight
    )
    records = records.drop_nulls()
    if records.is_empty():
        return UNDEFINED
    sums = records.group_by("person_id", maintain_order=True).agg(
        (pl.col("weight") * pl.col("value")).sum().alias("value"), pl.col("weight").sum()
    )
    mean, se = clustered_ratio(sums["value"].to_numpy(), sums["weight"].to_numpy())
    return Estimate(None if isnan(mean) else mean, se, records.height, len(sums))


def clustered_auc(
    persons_N: NDArray[np.integer],
    events_N: NDArray[np.bool_],
    scores_N: NDArray[np.floating],
    weights_N: NDArray[np.floating] | None = None,
) -> Estimate:
    """Area under the ROC curve, ties counted half; ``persons_N`` numbers the persons from zero.

    A placement value is the (weighted) share of the other class that a record outranks (DeLong, DeLong and
    Clarke-Pearson 1988). Deviations of the placement values from the AUC, as shares of their class's weight, are
    summed within persons to D10_g over events and D01_g over the others; with I10 and I01 persons who have an
    event or a non-event, and I persons in all,
    var = I10/(I10-1) sum D10^2 + I01/(I01-1) sum D01^2 + 2 I/(I-1) sum D10 D01 (Obuchowski 1997, Biometrics 53).
    With one record per person and no weights it is DeLong's variance.
    """
    count = distinct(persons_N)
    if events_N.all() or not events_N.any():
        return Estimate(None, None, len(events_N), count)
    weights_N = np.ones(len(events_N)) if weights_N is None else weights_N
    order_N = np.argsort(scores_N)
    outranked_N = _outranked(scores_N, order_N, np.where(events_N, 0.0, weights_N))
    outranking_N = _outranked(scores_N, order_N, np.where(events_N, weights_N, 0.0))
    placements_N = np.where(events_N, outranked_N, 1 - outranking_N)
    auc = float(np.average(placements_N[events_N], weights=weights_N[events_N]))
    variance = _auc_variance(persons_N, events_N, weights_N * (placements_N - auc), weights_N)
    # The three factors differ, so that with few persons the sum can fall below zero.
    return Estimate(auc, sqrt(variance) if variance >= 0 else None, len(events_N), count)


def distinct(numbers_N: NDArray[np.integer]) -> int:
    """How many different numbers there are, which begin near zero."""
    return int(np.count_nonzero(np.bincount(numbers_N)))


def renumbered(numbers_N: NDArray[np.integer]) -> NDArray[np.int64]:
    """The same numbers in the same order, without gaps from zero."""
    places = np.cumsum(np.bincount(numbers_N) > 0) - 1
    return places[numbers_N].astype(np.int64)


def _outranked(
    scores_N: NDArray[np.floating], order_N: NDArray[np.integer], weights_N: NDArray[np.floating]
) -> NDArray[np.float64]:
    """The share of all weight that lies below each score, half of that at it included."""
    sorted_N = scores_N[order_N]
    starts_T = np.flatnonzero(np.append(True, sorted_N[1:] != sorted_N[:-1]))  # T groups of ties
    weights_T = np.add.reduceat(weights_N[order_N], starts_T)
    below_T = np.cumsum(weights_T) - weights_T / 2
    shares_N = np.empty(len(scores_N))
    shares_N[order_N] = np.repeat(below_T / weights_T.sum(), np.diff(starts_T, append=len(scores_N)))
    return shares_N


def _auc_variance(
    persons_N: NDArray[np.integer],
    events_N: NDArray[np.bool_],
    deviations_N: NDArray[np.float64],
    weights_N: NDArray[np.floating],
) -> float:
    """The sum of three terms in ``clustered_auc``; NaN where a class has fewer than two persons."""
    sums, factors = [], []
    for chosen_N in (events_N, ~events_N):
        deviations_G = np.bincount(persons_N[chosen_N], deviations_N[chosen_N], minlength=persons_N.max() + 1)
        sums.append(deviations_G / weights_N[chosen_N].sum())
        factors.append(_correction(persons_N[chosen_N]))
    (events_G, others_G), (of_events, of_others) = sums, factors
    own = of_events * (events_G @ events_G) + of_others * (others_G @ others_G)
    return float(own + 2 * _correction(persons_N) * (events_G @ others_G))


def _correction(persons_N: NDArray[np.integer]) -> float:
    count = distinct(persons_N)
    return count / (count - 1) if count > 1 else np.nan
