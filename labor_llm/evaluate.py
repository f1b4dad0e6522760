"""From predictions to metrics, each with a standard error clustered by person. Knows no model."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from math import isfinite
from typing import Any

import numpy as np
import polars as pl
from scipy.stats import norm

from labor_llm.errors import RunError
from labor_llm.predictions import Predictions
from labor_llm.statistics.clustered import UNDEFINED, Estimate, clustered_mean
from labor_llm.statistics.event_forecasts import EVENTS, Forecasts


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
    """Every metric on every subset, and of event forecasts their AUC and Brier score, which are of transitions.

    Weighted by survey weights, if there are any, the names end in ``_weighted``: records without a weight or with
    a zero one are left out. Events other than ``move`` are absent where nobody is at risk of them.
    """
    table = predictions.table.drop("log_probs", strict=False)  # every subset would be a copy of gigabytes
    weightings = {"": None} | ({"_weighted": WEIGHT} if (table["weight"] > 0).any() else {})
    lines = [
        (subset, f"{metric}{suffix}", *estimator(table.filter(condition), weight=weight))
        for subset, condition in SUBSETS.items()
        for metric, estimator in METRICS.items()
        for suffix, weight in weightings.items()
    ]
    lines += [line for event in EVENTS for line in _event_lines(Forecasts.of(table, event), event, weightings)]
    return Evaluation(
        pl.DataFrame(lines, schema=SCHEMA, orient="row"),
        records=table.height,
        persons=table["person_id"].n_unique(),
        outside_choice_set=int((~table["in_choice_set"]).sum()),
    )


def _event_lines(forecasts: Forecasts, event: str, weightings: Iterable[str]) -> Iterator[tuple[Any, ...]]:
    if not len(forecasts.table) and event != "move":
        return
    for suffix in weightings:
        chosen = forecasts.weighable if suffix else forecasts
        for metric, estimate in (("auc", chosen.auc(bool(suffix))), ("brier", chosen.brier(bool(suffix)))):
            yield "transitions", f"{event}_{metric}{suffix}", *estimate


def perplexity(table: pl.DataFrame, log_prob: pl.Expr, weight: pl.Expr | None = None) -> Estimate:
    """exp(- mean log-probability); standard error by the delta method: perplexity times that of the mean."""
    mean, se, records, persons = clustered_mean(table, log_prob, weight)
    if mean is None:
        return Estimate(None, None, records, persons)
    with np.errstate(over="ignore"):
        value = float(np.exp(-mean))
    return Estimate(value, None if se is None else value * se, records, persons)


def differing_records(a: Predictions, b: Predictions) -> int:
    """How many persons' years are in one of the two only, or with another occupation."""
    return int(_joined(a, b)["differs"].sum())


def paired_difference(a: Predictions, b: Predictions) -> PairedDifference:
    """Compare the log scores of two models, record by record; a RunError if the records differ.

    Records outside the choice set of either are left out. A model that scored realized occupations only is
    compared by its raw probabilities, ``Predictions.log_scores``. For panels what Diebold and Mariano (1995) test
    for a time series: the mean difference of a proper score, with errors clustered by person.
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
    left, right = (x.table.select(*key, "occupation", log_prob=x.log_scores) for x in (a, b))
    joined = left.join(right, on=key, how="full", suffix="_b", coalesce=True, maintain_order="left_right")
    return joined.with_columns(differs=pl.col("occupation").ne_missing(pl.col("occupation_b")))


def _top(table: pl.DataFrame, size: int, weight: pl.Expr | None = None) -> Estimate:
    """Share of records whose occupation is among the ``size`` most probable; outside the set is a miss.

    Equally probable occupations have the same chance of being among them: one of seven counts 1/7 in top 1.
    """
    if table["rank"].is_null().all() and table["in_choice_set"].any():  # realised occupations only: no ranks
        return UNDEFINED
    places = size + 1 - pl.col("rank")
    tied = pl.col("tied").fill_null(1)  # the first version counted none
    return clustered_mean(table, (places / tied).clip(0, 1).fill_null(0), weight)


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
WEIGHT = pl.when(pl.col("weight") > 0).then(pl.col("weight"))
METRICS: Mapping[str, Callable[..., Estimate]] = {
    "perplexity": partial(perplexity, log_prob=pl.col("log_prob")),
    "perplexity_raw": partial(perplexity, log_prob=pl.col("log_prob_raw")),
    "log_score": partial(clustered_mean, value=pl.col("log_prob")),
    "top1": partial(_top, size=1),
    "top5": partial(_top, size=5),
    "top10": partial(_top, size=10),
}
"""Each takes a table and, by keyword, a weight."""
