"""From predictions to metrics, each with a standard error clustered by person. Knows no model.

Formulas. A person g contributes the sums A_g and B_g, and a metric is R = sum A_g / sum B_g. Its variance by
linearisation is G/(G-1) sum_g (A_g - R B_g)^2 / (sum B_g)^2 (Cochran 1977, Sampling Techniques, ch. 6 and 9;
for a mean it equals least squares on a constant with person-clustered errors, Liang and Zeger 1986).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import isfinite, isnan, sqrt
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

from labor_llm.errors import RunError
from labor_llm.predictions import Predictions


class Estimate(NamedTuple):
    """A value and its standard error, from so many records of so many persons; None where undefined.

    A value is undefined without records (or, for the AUC, with one class only), its standard error with one
    person only or an infinite value.
    """

    value: float | None
    se: float | None
    records: int
    persons: int


@dataclass(frozen=True)
class Evaluation:
    """All metrics of one set of predictions; ``table`` has subset, metric, value, se, records, persons.

    A record whose occupation is outside the choice set has no log score: it is left out of the perplexities
    and of ``log_score``, counted in ``outside_choice_set``, and a miss in ``top1``, ``top5`` and ``top10``.
    """

    table: pl.DataFrame
    records: int
    persons: int
    outside_choice_set: int

    def estimate(self, metric: str, subset: str = "all") -> Estimate:
        """One line of the table."""
        line = self.table.row(by_predicate=(pl.col("subset") == subset) & (pl.col("metric") == metric))
        return Estimate(*line[2:])

    def to_dict(self) -> dict[str, Any]:
        """For JSON: counts, and ``metrics`` by subset and name; undefined and infinite values are None."""
        metrics: dict[str, dict[str, Any]] = {}
        for subset, metric, *line in self.table.iter_rows():
            estimate = Estimate(*line)._asdict()
            metrics.setdefault(subset, {})[metric] = {name: _finite(number) for name, number in estimate.items()}
        return {
            "records": self.records,
            "persons": self.persons,
            "outside_choice_set": self.outside_choice_set,
            "metrics": metrics,
        }

    def scalars(self, prefix: str = "test") -> dict[str, float]:
        """For trackers: ``test/perplexity``, ``test/perplexity_se``, ``test/movers/perplexity``, and so on.

        Undefined and infinite values are left out.
        """
        scalars: dict[str, float | None] = {}
        for subset, metric, value, se, *_ in self.table.iter_rows():
            name = f"{prefix}/{metric}" if subset == "all" else f"{prefix}/{subset}/{metric}"
            scalars |= {name: _finite(value), f"{name}_se": _finite(se)}
        return {name: number for name, number in scalars.items() if number is not None}

    def __str__(self) -> str:
        value, se, records, persons = self.estimate("perplexity")
        outside = f", {self.outside_choice_set} more outside the choice set" if self.outside_choice_set else ""
        name = "perplexity"
        if value is None:
            name = "perplexity before normalisation"
            value, se, records, persons = self.estimate("perplexity_raw")
        return f"{name} {_shown(value)} (se {_shown(se)}; {records} records of {persons} persons{outside})"


@dataclass(frozen=True)
class PairedDifference:
    """Mean log score of one model minus that of another on the same records, in nats; positive: better."""

    difference: float | None
    se: float | None
    """Clustered by person."""
    z: float | None
    p: float | None
    """Two-sided, of the normal distribution."""
    records: int
    persons: int

    def __str__(self) -> str:
        return (
            f"difference in log score {_shown(self.difference)} (se {_shown(self.se)}; p {_shown(self.p)}; "
            f"{self.records} records of {self.persons} persons)"
        )


def evaluate(predictions: Predictions) -> Evaluation:
    """Every metric on every subset; the event task, to leave one's occupation, on transitions only."""
    table = predictions.table
    lines = [
        (subset, metric, *estimator(table.filter(condition)))
        for subset, condition in SUBSETS.items()
        for metric, estimator in METRICS.items()
    ]
    lines += [("transitions", metric, *estimator(table)) for metric, estimator in MOVE_METRICS.items()]
    return Evaluation(
        pl.DataFrame(lines, schema=SCHEMA, orient="row"),
        records=table.height,
        persons=table["person_id"].n_unique(),
        outside_choice_set=int((~table["in_choice_set"]).sum()),
    )


def clustered_mean(table: pl.DataFrame, value: pl.Expr, weight: pl.Expr | None = None) -> Estimate:
    """The (weighted) mean over the records where neither is null; formulas at the head of the module."""
    records = table.select(
        "person_id", value=value.cast(pl.Float64), weight=pl.lit(1.0) if weight is None else weight
    )
    records = records.drop_nulls()
    if records.is_empty():
        return Estimate(None, None, 0, 0)
    sums = records.group_by("person_id", maintain_order=True).agg(
        (pl.col("weight") * pl.col("value")).sum().alias("value"), pl.col("weight").sum()
    )
    values_G, weights_G = sums["value"].to_numpy(), sums["weight"].to_numpy()
    mean, persons = float(values_G.sum() / weights_G.sum()), len(sums)
    se = None
    if persons > 1 and isfinite(mean):
        squares = float(np.square(values_G - mean * weights_G).sum())
        se = sqrt(persons / (persons - 1) * squares) / float(weights_G.sum())
    return Estimate(None if isnan(mean) else mean, se, records.height, persons)


def perplexity(table: pl.DataFrame, log_prob: pl.Expr, weight: pl.Expr | None = None) -> Estimate:
    """exp(- mean log-probability); standard error by the delta method: perplexity times that of the mean."""
    mean, se, records, persons = clustered_mean(table, log_prob, weight)
    if mean is None:
        return Estimate(None, None, records, persons)
    with np.errstate(over="ignore"):
        value = float(np.exp(-mean))
    return Estimate(value, None if se is None else value * se, records, persons)


def clustered_auc(
    persons_N: NDArray[np.integer], events_N: NDArray[np.bool_], scores_N: NDArray[np.floating]
) -> Estimate:
    """Area under the ROC curve, ties counted half; ``persons_N`` numbers the persons from zero.

    A placement value is the share of the other class that a record outranks: with m events and n others,
    V10_i = (R_i - R_i among events) / n and V01_j = 1 - (R_j - R_j among others) / m in midranks R (DeLong,
    DeLong and Clarke-Pearson 1988; Sun and Xu 2014). Deviations from the AUC are summed within persons to
    D10_g and D01_g, and with I10 and I01 persons who have an event or a non-event, and I persons in all,
    var = I10/(I10-1) sum D10^2 / m^2 + I01/(I01-1) sum D01^2 / n^2 + 2 I/(I-1) sum D10 D01 / (m n)
    (Obuchowski 1997, Biometrics 53). With one record per person it is DeLong's variance.
    """
    count = len(np.unique(persons_N))
    m, n = int(events_N.sum()), int((~events_N).sum())
    if m == 0 or n == 0:
        return Estimate(None, None, m + n, count)
    ranks_N = rankdata(scores_N)
    placements_N = np.empty(len(scores_N))
    placements_N[events_N] = (ranks_N[events_N] - rankdata(scores_N[events_N])) / n
    placements_N[~events_N] = 1 - (ranks_N[~events_N] - rankdata(scores_N[~events_N])) / m
    auc = float(placements_N[events_N].mean())
    variance = _auc_variance(persons_N, events_N, placements_N - auc)
    # The three factors differ, so that with few persons the sum can fall below zero.
    return Estimate(auc, sqrt(variance) if variance >= 0 else None, m + n, count)


def _auc_variance(
    persons_N: NDArray[np.integer], events_N: NDArray[np.bool_], deviations_N: NDArray[np.float64]
) -> float:
    """The sum of three terms in ``clustered_auc``; NaN where a class has fewer than two persons."""
    sums, factors = [], []
    for chosen_N in (events_N, ~events_N):
        deviations_G = np.bincount(persons_N[chosen_N], deviations_N[chosen_N], minlength=persons_N.max() + 1)
        sums.append(deviations_G / chosen_N.sum())
        factors.append(_correction(persons_N[chosen_N]))
    (events_G, others_G), (of_events, of_others) = sums, factors
    own = of_events * (events_G @ events_G) + of_others * (others_G @ others_G)
    return float(own + 2 * _correction(persons_N) * (events_G @ others_G))


def _correction(persons_N: NDArray[np.integer]) -> float:
    count = len(np.unique(persons_N))
    return count / (count - 1) if count > 1 else np.nan


def differing_records(a: Predictions, b: Predictions) -> int:
    """How many persons' years are in one of the two only, or with another occupation."""
    return int(_joined(a, b)["differs"].sum())


def paired_difference(a: Predictions, b: Predictions) -> PairedDifference:
    """Compare the log scores of two models, record by record; a RunError if the records differ.

    Records outside the choice set of either are left out. For panels what Diebold and Mariano (1995) test for
    a time series: the mean difference of a proper score, with errors clustered by person.
    """
    joined = _joined(a, b)
    if count := joined["differs"].sum():
        raise RunError(
            f"{count} records differ between the two predictions; score both models on the same records."
        )
    mean, se, records, persons = clustered_mean(joined, pl.col("log_prob") - pl.col("log_prob_b"))
    z = mean / se if mean is not None and se else None
    p = None if z is None else float(2 * norm.sf(abs(z)))
    return PairedDifference(mean, se, z, p, records, persons)


def _joined(a: Predictions, b: Predictions) -> pl.DataFrame:
    key = ["person_id", "year"]
    left, right = (x.table.select(*key, "occupation", "log_prob") for x in (a, b))
    joined = left.join(right, on=key, how="full", suffix="_b", coalesce=True, maintain_order="left_right")
    return joined.with_columns(differs=pl.col("occupation").ne_missing(pl.col("occupation_b")))


def _top(table: pl.DataFrame, size: int) -> Estimate:
    """Share of records whose occupation is among the ``size`` most probable; outside the set is a miss."""
    if table["rank"].is_null().all() and table["in_choice_set"].any():  # realised occupations only: no ranks
        return Estimate(None, None, 0, 0)
    return clustered_mean(table, (pl.col("rank") <= size).fill_null(False))


def _move_auc(table: pl.DataFrame) -> Estimate:
    """How well the probability of leaving one's occupation tells movers from stayers."""
    transitions = table.select("person_id", "moved", "log_prob_stay").drop_nulls()
    persons = transitions["person_id"].rank("dense").to_numpy().astype(np.int64) - 1
    # The order of 1 - exp(log_prob_stay), without its rounding.
    return clustered_auc(persons, transitions["moved"].to_numpy(), -transitions["log_prob_stay"].to_numpy())


def _move_brier(table: pl.DataFrame) -> Estimate:
    """Mean square of the probability of leaving one's occupation minus whether one did (Brier 1950)."""
    return clustered_mean(table, (1 - pl.col("log_prob_stay").exp() - pl.col("moved").cast(pl.Float64)).pow(2))


def _finite(number: float | None) -> float | None:
    return number if number is not None and isfinite(number) else None


def _shown(number: float | None) -> str:
    return "undefined" if number is None else f"{number:.3f}"


SCHEMA = {
    "subset": pl.String,
    "metric": pl.String,
    "value": pl.Float64,
    "se": pl.Float64,
    "records": pl.Int64,
    "persons": pl.Int64,
}
SUBSETS: Mapping[str, pl.Expr] = {
    "all": pl.lit(True),
    "first": pl.col("first"),
    "transitions": ~pl.col("first"),
    "stayers": ~pl.col("moved"),
    "movers": pl.col("moved"),
}
Estimator = Callable[[pl.DataFrame], Estimate]
METRICS: Mapping[str, Estimator] = {
    "perplexity": partial(perplexity, log_prob=pl.col("log_prob")),
    "perplexity_raw": partial(perplexity, log_prob=pl.col("log_prob_raw")),
    "perplexity_weighted": partial(
        perplexity,
        log_prob=pl.col("log_prob"),
        weight=pl.when(pl.col("weight") > 0).then(pl.col("weight")),
    ),
    "log_score": partial(clustered_mean, value=pl.col("log_prob")),
    "top1": partial(_top, size=1),
    "top5": partial(_top, size=5),
    "top10": partial(_top, size=10),
}
MOVE_METRICS: Mapping[str, Estimator] = {"move_auc": _move_auc, "move_brier": _move_brier}
