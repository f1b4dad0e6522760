"""Whole future careers drawn from an occupation model, and the distribution of occupations h years ahead.

As the CAREER paper evaluates it (arXiv 2202.08370): a model that knows careers up to a year draws what follows,
one record at a time, each from its own distribution given the records drawn before; the distribution of a later
year is the average, over the paths, of the distributions that its record was drawn from. Unlike there, persons
need not be in the data to its last year.

Legend: N records after the last known year, J occupations, K paths, Q persons with a record at the step at hand.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.special import logsumexp

from labor_llm.careers import Careers
from labor_llm.errors import ConfigError, DataError
from labor_llm.models.base import OccupationModel, check_scorable
from labor_llm.predictions import RealizedProbabilities, choice_indices
from labor_llm.statistics.clustered import Estimate, clustered_auc, clustered_mean, weighted_name
from labor_llm.statistics.event_report import too_small

VARYING = ("education", "region", "weight")
"""Covariates that change within a person; no model is told a wage after the last known year."""
Known = Literal["observed", "carried"]
"""Covariates after the last known year: as they came, or as they were last known."""
RECORDS_AT_A_TIME = 100_000
"""Records that a model is given at once; bounds memory."""
SCHEMA = ("years_ahead", "metric", "value", "se", "records", "persons")


@dataclass(frozen=True)
class Future:
    """The records after the last known year, and what a model foretold of them."""

    records: pl.DataFrame
    """person_id, year, occupation, weight, years_ahead, log_prob (null outside the choice set) and log_probs."""
    paths: pl.DataFrame
    """person_id, year, path, occupation: the careers that were drawn."""
    choice_set: tuple[str, ...]
    states: frozenset[str]

    def table(self, min_persons: int = 1) -> pl.DataFrame:
        """``SCHEMA``: the perplexity, and for every state the AUC of its probability; by year, and for ``all``.

        Where there are survey weights, all of it weighted, too. Standard errors are clustered by person; records
        outside the choice set have no perplexity. What rests on fewer persons, with the state or without it, is
        left out, and so is what would give that away.
        """
        lines = self._lines(self.records, min_persons, weighted=False)
        weighable = self.records.filter(pl.col("weight") > 0)
        if not weighable.is_empty():
            lines += self._lines(weighable, min_persons, weighted=True)
        return pl.DataFrame(lines, schema=SCHEMA, orient="row", infer_schema_length=None)

    def _lines(self, records: pl.DataFrame, min_persons: int, weighted: bool) -> list[tuple[Any, ...]]:
        """The lines of the table, weighted or not."""
        years = records["years_ahead"].unique().sort()
        frames = {str(ahead): records.filter(years_ahead=ahead) for ahead in years}
        metrics = [None, *(code for code in self.choice_set if code in self.states)]
        shown = {
            (ahead, code)
            for code in metrics
            for part in (frames, {"all": records})
            for ahead, small in zip(
                part, too_small([_counts(frame, code) for frame in part.values()], min_persons), strict=True
            )
            if not small
        }
        return [
            (ahead, _metric(code, weighted), *self._estimate(frame, code, weighted))
            for ahead, frame in (*frames.items(), ("all", records))
            for code in metrics
            if (ahead, code) in shown
        ]

    def _estimate(self, frame: pl.DataFrame, code: str | None, weighted: bool) -> Estimate:
        """The AUC of a state, or the perplexity."""
        if code is None:
            return _perplexity(clustered_mean(frame, pl.col("log_prob"), pl.col("weight") if weighted else None))
        log_probs_NJ = frame["log_probs"].to_numpy()
        persons_N = np.unique(frame["person_id"].to_numpy(), return_inverse=True)[1]
        happened_N = (frame["occupation"] == code).to_numpy()
        weights_N = frame["weight"].to_numpy() if weighted else None
        return clustered_auc(persons_N, happened_N, log_probs_NJ[:, self.choice_set.index(code)], weights_N)


def _metric(code: str | None, weighted: bool) -> str:
    name = "perplexity" if code is None else f"auc_{code}"
    return weighted_name(name) if weighted else name


def _counts(frame: pl.DataFrame, code: str | None) -> tuple[int, int, int]:
    """Persons with a log score; or all, those with a record in the state and those with one in another."""
    if code is None:
        return frame.drop_nulls("log_prob")["person_id"].n_unique(), 0, 0
    is_in = pl.col("occupation") == code
    having, lacking = (frame.filter(part)["person_id"].n_unique() for part in (is_in, ~is_in))
    return frame["person_id"].n_unique(), having, lacking


def _perplexity(score: Estimate) -> Estimate:
    """exp of minus a mean log-probability, its error by the delta method."""
    if score.value is None:
        return score
    value = float(np.exp(-score.value))
    return score._replace(value=value, se=None if score.se is None else value * score.se)


def foretell(
    model: OccupationModel,
    careers: Careers,
    cutoff: int,
    horizon: int,
    paths: int,
    covariates: Known,
    seed: int,
    progress: Callable[[int, int], None],
) -> Future:
    """Draw the records of careers after ``cutoff``, up to ``horizon`` years ahead.

    Of the persons with a record by then and one after; drawn are the records that a person really has, since
    surveys have gaps. ``progress`` is told how many persons are done, and of how many.
    """
    chosen = _with_future(careers, cutoff, horizon)
    future = replace(chosen, table=chosen.table.filter(pl.col("year") > cutoff))
    check_scorable(future, model.choice_set, f"persons with records after {cutoff}", "forecast")
    no_wages = pl.when(pl.col("year") <= cutoff).then("log_wage").alias("log_wage")
    chosen = replace(chosen, table=chosen.table.with_columns(no_wages))
    if covariates == "carried":
        chosen = replace(chosen, table=_carried(chosen.table, cutoff))
    size = max(1, RECORDS_AT_A_TIME // (paths * int(np.diff(chosen.person_starts).max())))
    records, drawn = [], []
    for first in range(0, chosen.persons, size):
        last = min(first + size, chosen.persons)
        rows = slice(int(chosen.person_starts[first]), int(chosen.person_starts[last]))
        some = replace(chosen, table=chosen.table[rows])
        of_records, of_paths = _drawn(model, some, cutoff, paths, np.random.default_rng((seed, first)))
        records.append(of_records)
        drawn.append(of_paths)
        progress(last, chosen.persons)
    return Future(pl.concat(records), pl.concat(drawn), model.choice_set, careers.taxonomy.states)


def _with_future(careers: Careers, cutoff: int, horizon: int) -> Careers:
    """The records up to the horizon of those who have one up to the cutoff and one after it."""
    table = careers.table.filter(pl.col("year") <= cutoff + horizon)
    counts = table.group_by("person_id").agg((pl.col("year") <= cutoff).any().alias("before"), pl.max("year"))
    both = counts.filter(pl.col("before") & (pl.col("year") > cutoff))
    if both.is_empty():
        first, last = (
            int(year) for year in careers.table.select(pl.min("year"), pl.max("year").alias("last")).row(0)
        )
        raise DataError(
            f"nobody of the persons to predict of dataset {careers.dataset!r} has records both up to {cutoff} and "
            f"in the {horizon} years after; its years are {first} to {last}"
        )
    return replace(careers, table=table.filter(pl.col("person_id").is_in(both["person_id"].implode())))


def _carried(table: pl.DataFrame, cutoff: int) -> pl.DataFrame:
    """What varies as it was last known by the cutoff."""
    known = pl.col("year") <= cutoff
    last = [
        pl.col(name).filter(known & pl.col(name).is_not_null()).last().over("person_id").alias(f"last {name}")
        for name in VARYING
    ]
    table = table.with_columns(last)
    kept = [pl.when(known).then(name).otherwise(f"last {name}").alias(name) for name in VARYING]
    return table.with_columns(kept).drop(f"last {name}" for name in VARYING)


def _drawn(
    model: OccupationModel, careers: Careers, cutoff: int, paths: int, rng: np.random.Generator
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The tables of a Future, of some persons."""
    codes, size = np.array(model.choice_set), len(model.choice_set)
    is_future_M = (careers.table["year"] > cutoff).to_numpy()
    starts, ends = careers.person_starts[:-1], careers.person_starts[1:]
    known_P = np.add.reduceat(~is_future_M, starts)
    occupations_KM = np.tile(careers.table["occupation"].to_numpy(), (paths, 1))
    occupations_KM[:, is_future_M] = codes[0]
    log_probs_MJ = np.zeros((len(careers), size))
    for step in range(int((ends - starts - known_P).max())):
        (persons,) = np.nonzero(ends - starts - known_P > step)
        targets_Q = starts[persons] + known_P[persons] + step
        log_probs_KQJ = _of_targets(model, careers, occupations_KM, starts[persons], targets_Q)
        log_probs_MJ[targets_Q] = logsumexp(log_probs_KQJ, axis=0) - np.log(paths)
        choices_KQ = (log_probs_KQJ + rng.gumbel(size=log_probs_KQJ.shape)).argmax(-1)
        occupations_KM[:, targets_Q] = codes[choices_KQ]
    future = careers.table.filter(is_future_M).select("person_id", "year", "occupation", "weight")
    log_probs_NJ = log_probs_MJ[is_future_M]
    places_N = choice_indices(future["occupation"], model.choice_set)
    picked_N = pl.Series(np.take_along_axis(log_probs_NJ, places_N.clip(0)[:, None], 1)[:, 0])
    records = future.with_columns(
        years_ahead=pl.col("year") - cutoff,
        log_prob=picked_N.set(pl.Series(places_N < 0), None),
        log_probs=pl.Series(log_probs_NJ, dtype=pl.Array(pl.Float64, size)),
    )
    of_paths = [
        future.select(
            "person_id", "year", path=pl.lit(path, pl.Int32), occupation=pl.Series(occupations_M[is_future_M])
        )
        for path, occupations_M in enumerate(occupations_KM)
    ]
    return records, pl.concat(of_paths)


def _of_targets(
    model: OccupationModel,
    careers: Careers,
    occupations_KM: NDArray[np.str_],
    starts_Q: NDArray[np.int64],
    targets_Q: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Log-probabilities of the records ``targets_Q`` given those before them, on every path, (K, Q, J)."""
    rows = np.concatenate(
        [np.arange(start, target + 1) for start, target in zip(starts_Q, targets_Q, strict=True)]
    )
    so_far = careers.table[rows]
    person = pl.col("person_id")
    tables = [
        so_far.with_columns(
            pl.concat_str(pl.lit(f"{path}#"), person).alias("person_id"), occupation=pl.Series(of_path[rows])
        )
        for path, of_path in enumerate(occupations_KM)
    ]
    probabilities = model.predict_last(replace(careers, table=pl.concat(tables)))
    if isinstance(probabilities, RealizedProbabilities):
        raise ConfigError("a forecast needs whole distributions: score the run with scoring=exact, not realized")
    log_probs_NJ = np.asarray(probabilities.log_probs_NJ, dtype=np.float64)
    return log_probs_NJ.reshape(len(occupations_KM), len(targets_Q), -1)
