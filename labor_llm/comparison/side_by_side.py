"""The runs on one dataset side by side: rows for the tables of runs, models, events and reliability curves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as settings

from labor_llm.comparison.runs import Run, by_seed, distinct_names, seedless
from labor_llm.errors import RunError, unknown
from labor_llm.evaluate import PairedDifference, differing_records, paired_difference
from labor_llm.predictions import Predictions
from labor_llm.statistics.clustered import weighted_name
from labor_llm.statistics.event_forecasts import EVENTS
from labor_llm.statistics.event_report import curve_rows, event_rows
from labor_llm.statistics.inference import PersonSums, model_statistics
from labor_llm.statistics.multiple_comparisons import holm

Row = dict[str, Any]
METRICS_SHOWN = {
    "perplexity": ("all", "perplexity"),
    "perplexity_raw": ("all", "perplexity_raw"),
    "first_perplexity": ("first", "perplexity"),
    "stayers_perplexity": ("stayers", "perplexity"),
    "movers_perplexity": ("movers", "perplexity"),
    "top1": ("all", "top1"),
    "top5": ("all", "top5"),
    "top10": ("all", "top10"),
    "move_auc": ("transitions", "move_auc"),
    "move_brier": ("transitions", "move_brier"),
}
PARTS = ("first", "stayers", "movers")
"""Subsets of records that make up all of them."""
Group = Literal["gender", "ethnicity", "education", "year", "history"]


@settings(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Statistics:
    """How runs are compared."""

    replicates: Annotated[int, Field(ge=100)] = 10_000
    """Resamples of persons."""
    level: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Of intervals, bands and the model confidence set."""
    seed: Annotated[int, Field(ge=0)] = 0
    bins: Annotated[int, Field(ge=2, le=100)] = 10
    """Of the foretold probability of an event, of equal size as far as ties permit."""
    groups: tuple[Group, ...] = ("gender", "ethnicity", "education", "year", "history")
    min_persons: Annotated[int, Field(ge=1)] = 10
    """Cells of fewer persons are left out of all that is written."""
    families: dict[str, tuple[str, ...]] | None = None
    """P-values adjusted together: patterns of models' names, by family; all others are one more family."""


@dataclass
class SideBySide:
    """What is said of the runs on one dataset; models are runs with their seeds taken together."""

    dataset: str
    reference: str
    """The name of the run that runs are compared with."""
    model_reference: str | None = None
    runs: list[Row] = field(default_factory=list)
    models: list[Row] = field(default_factory=list)
    events: list[Row] = field(default_factory=list)
    curves: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    foretold: dict[str, list[str]] = field(default_factory=lambda: {event: [] for event in EVENTS})
    """The runs that have forecasts, by event."""


def side_by_side(dataset: str, runs: Sequence[Run], reference: str | None, statistics: Statistics) -> SideBySide:
    """Compare the runs on one dataset, given best first; two tables of predictions are in memory at a time."""
    names, models = distinct_names(runs), _models(runs)
    best, asked = next(iter(names)), _reference(names, models, reference)
    result = SideBySide(dataset, asked or best)
    if reference is not None and asked is None:
        result.notes.append(
            f"{dataset}: there is no {Path(reference).name!r}; the reference is the best run, {best}."
        )
    first = _sorted(names[result.reference].predictions())
    persons = first.table["person_id"].n_unique()
    columns, withheld, misfits, raw = {}, 0, [], []
    for name, run in names.items():
        predictions = first if name == result.reference else _sorted(run.predictions())
        if count := differing_records(predictions, first):
            misfits.append(f"{name} ({count} records differ)")
            continue
        paired = None if name == result.reference else paired_difference(predictions, first)
        outside = predictions.table.filter(~pl.col("in_choice_set"))["person_id"].n_unique()
        result.runs.append(_run_row(dataset, name, run, paired, outside, statistics.min_persons))
        columns[run.folder] = predictions.log_scores.to_numpy()
        raw += [name] if predictions.realized_only else []
        withheld += _add_events(result, name, predictions, statistics)
    if misfits:
        raise RunError(
            f"runs on {dataset} predict other records than {result.reference}: {', '.join(misfits)}. "
            "Run them again with the same dataset, split and predict=..., or compare them apart."
        )
    if raw:
        result.notes.append(
            f"{dataset}: log scores and perplexities of {', '.join(raw)} are of raw probabilities "
            "(scoring=realized). Normalization over the choice set can only raise these."
        )
    if persons < statistics.min_persons:
        return _withheld(result, persons, statistics.min_persons)
    _add_models(result, models, first.table, columns, names[asked] if asked else None, statistics)
    if first.table["first"].all():
        result.notes.append(f"{dataset}: there are no events, for nobody has a second record.")
    else:
        result.notes += _event_notes(result, list(names), withheld, statistics.min_persons)
    return result


def check_families(results: Sequence[SideBySide], families: Mapping[str, Sequence[str]]) -> None:
    """A RunError if a pattern fits no model of any dataset."""
    names = [row["model"] for result in results for row in result.models]
    for family, patterns in families.items():
        for pattern in patterns:
            if not any(_fits(name, pattern) for name in names):
                raise RunError(unknown("model", pattern, names, f" in statistics.families.{family}"))


def _sorted(predictions: Predictions) -> Predictions:
    return Predictions(predictions.table.sort("person_id", "year"), predictions.choice_set)


def _models(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs of every model, by its name."""
    together = by_seed(runs)
    return dict(zip(distinct_names([seedless(of_model[0]) for of_model in together]), together, strict=True))


def check_reference(runs: Sequence[Sequence[Run]], reference: str) -> None:
    """A RunError if the reference is known among the runs of no dataset."""
    known: set[str] = set()
    for of_dataset in runs:
        names, models = distinct_names(of_dataset), _models(of_dataset)
        if _reference(names, models, reference) is not None:
            return
        known |= {*names, *models}
    raise RunError(unknown("reference", reference, known))


def _reference(names: Mapping[str, Run], models: Mapping[str, Sequence[Run]], reference: str | None) -> str | None:
    """The name of the run that is asked for, or of the oldest of a model; None if there is none."""
    if reference is None:
        return None
    oldest = models[reference][0].folder if reference in models else None
    for name, run in names.items():
        if reference == name or run.folder.resolve() == Path(reference).resolve():
            return name
    for name, run in names.items():
        if run.folder == oldest:
            return name
    return None


def _run_row(
    dataset: str, name: str, run: Run, paired: PairedDifference | None, outside: int, min_persons: int
) -> Row:
    """The row of a run; null where it is not defined, or is of too few persons.

    ``outside``: persons with a record outside the choice set. Of first records, stayers, movers and changes all is
    told or nothing, for what is told of all records and of two of them tells the third.
    """
    metrics, seconds = run.metrics["metrics"], run.metrics.get("seconds", {})
    row: Row = {"dataset": dataset, "run": name}
    for suffix in ("", "_weighted"):
        parts = [metrics[part].get(f"perplexity{suffix}") for part in PARTS]
        few = any(0 < part["persons"] < min_persons for part in parts if part is not None)
        for key, (subset, metric) in METRICS_SHOWN.items():
            estimate = metrics[subset].get(f"{metric}{suffix}")
            if estimate is not None:
                told = estimate["persons"] >= min_persons and not (few and subset != "all")
                column = weighted_name(key) if suffix else key
                row |= {column: estimate["value"] if told else None}
                row |= {f"{column}_se": estimate["se"] if told else None}
    row |= {key: run.metrics[key] for key in ("records", "persons")}
    row["outside_choice_set"] = None if 0 < outside < min_persons else run.metrics["outside_choice_set"]
    row |= {f"seconds_{part}": seconds.get(part) for part in ("fit", "score")}
    fields = {"difference": "difference", "difference_se": "se", "difference_z": "z", "difference_p": "p"}
    told = paired is not None and paired.persons >= min_persons
    row |= {column: getattr(paired, name) if told else None for column, name in fields.items()}
    return row | {"folder": str(run.folder)}


def _add_events(result: SideBySide, name: str, predictions: Predictions, statistics: Statistics) -> int:
    """Add the rows of a run's event forecasts; returns how many cells were left out as too small."""
    for event, runs in result.foretold.items():
        if predictions.table["log_prob_stay" if event == "move" else f"{event}_logit"].count():
            runs.append(name)
    head = {"dataset": result.dataset, "run": name}
    cells = event_rows(predictions.table, statistics.groups, statistics.bins, statistics.min_persons)
    curves = curve_rows(
        predictions.table, statistics.groups, statistics.bins, statistics.min_persons, statistics.level
    )
    result.events += [head | row for row in cells[0]]
    result.curves += [head | row for row in curves[0]]
    return cells[1] + curves[1]


def _event_notes(result: SideBySide, names: Sequence[str], withheld: int, min_persons: int) -> list[str]:
    """Which runs foretell no event, and how much was left out."""
    notes = []
    for event, foretelling in result.foretold.items():
        silent = [name for name in names if name not in foretelling]
        if silent and (foretelling or event == "move"):
            notes.append(
                f"{result.dataset}: {event} is undefined for {', '.join(silent)}: the predictions hold no "
                "forecasts of it (scored with scoring=realized or by an earlier version); "
                "`labor-llm score RUN scoring=exact` makes some."
            )
    if withheld:
        notes.append(
            f"{result.dataset}: {withheld} cells and bins of event forecasts are left out, for they tell of fewer "
            f"than {min_persons} persons or would give away another one that does (statistics.min_persons)."
        )
    return notes


def _withheld(result: SideBySide, persons: int, min_persons: int) -> SideBySide:
    note = (
        f"{result.dataset}: models and events are left out, for there are {persons} persons, fewer than "
        f"statistics.min_persons={min_persons}."
    )
    return SideBySide(result.dataset, result.reference, runs=result.runs, notes=[note])


def _add_models(
    result: SideBySide,
    models: Mapping[str, Sequence[Run]],
    table: pl.DataFrame,
    columns: Mapping[Path, NDArray[np.float64]],
    asked: Run | None,
    statistics: Statistics,
) -> None:
    """Add one row per model, best first; those with an undefined or infinite log score have no numbers.

    ``columns``: the log-probabilities of every run, NaN where it could not score. ``asked``: a run of the model
    that is to be the reference; the best one if None.
    """
    sound = {
        name: runs
        for name, runs in models.items()
        if all(np.isfinite(columns[run.folder]).any() and not np.isinf(columns[run.folder]).any() for run in runs)
    }
    rows = {name: {"dataset": result.dataset, "model": name, "seeds": len(runs)} for name, runs in models.items()}
    if sound:
        log_probs_NM = np.column_stack([columns[run.folder] for runs in sound.values() for run in runs])
        reference = _model_reference(sound, log_probs_NM, asked)
        result.model_reference = None if reference is None else list(sound)[reference]
        for suffixed, weights_N in _weightings(table):
            found = _statistics(sound, table, log_probs_NM, weights_N, reference, statistics)
            for name, row in zip(sound, found, strict=True):
                rows[name] |= {weighted_name(key) if suffixed else key: value for key, value in row.items()}
    result.models = sorted(rows.values(), key=lambda row: row.get("perplexity", np.inf))


def _weightings(table: pl.DataFrame) -> list[tuple[bool, NDArray[np.float64] | None]]:
    weighted = bool((table["weight"] > 0).any())
    return [(False, None), *([(True, table["weight"].to_numpy())] if weighted else [])]


def _places(models: Mapping[str, Sequence[Run]]) -> list[list[int]]:
    """Every model's runs, as columns of a matrix that has them one model after another."""
    ends = np.cumsum([len(runs) for runs in models.values()])
    return [list(range(end - len(runs), end)) for end, runs in zip(ends, models.values(), strict=True)]


def _model_reference(
    models: Mapping[str, Sequence[Run]], log_probs_NM: NDArray[np.float64], asked: Run | None
) -> int | None:
    """The model of the run that was asked for, else the one of the highest mean log score."""
    if asked is not None:
        of_asked = [place for place, runs in enumerate(models.values()) if asked in runs]
        return of_asked[0] if of_asked else None
    scores_M = np.nanmean(log_probs_NM, axis=0)
    return int(np.argmax([scores_M[places].mean() for places in _places(models)]))


def _statistics(
    models: Mapping[str, Sequence[Run]],
    table: pl.DataFrame,
    log_probs_NM: NDArray[np.float64],
    weights_N: NDArray[np.float64] | None,
    reference: int | None,
    statistics: Statistics,
) -> list[Row]:
    """Every model's numbers, with p-values adjusted within families."""
    sums = PersonSums.of(_starts(table), log_probs_NM, weights_N)
    rows = model_statistics(
        sums, _places(models), reference, statistics.replicates, statistics.level, statistics.seed
    )
    families = [_family(name, statistics.families or {}) for name in models]
    for family in dict.fromkeys(families):
        members = [row for row, own in zip(rows, families, strict=True) if own == family and "difference_p" in row]
        for row, p in zip(members, holm([row["difference_p"] for row in members]), strict=True):
            row["difference_p_holm"] = p
    return rows


def _starts(table: pl.DataFrame) -> NDArray[np.int64]:
    """The first row of every person."""
    ids = table["person_id"]
    return ids.ne_missing(ids.shift()).arg_true().to_numpy().astype(np.int64)


def _family(name: str, families: Mapping[str, Sequence[str]]) -> str | None:
    for family, patterns in families.items():
        if any(_fits(name, pattern) for pattern in patterns):
            return family
    return None


def _fits(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)
