"""Models by the number of persons they were trained on, with paired differences to one of them at every number.

An *arm* is what a run does but for its training persons and its seed: ``career``, ``nano-title``.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from labor_llm.comparison.runs import Run, differing_settings, distinct_names, read_runs, seedless
from labor_llm.comparison.side_by_side import SideBySide, Statistics, side_by_side
from labor_llm.comparison.tables import Column
from labor_llm.errors import RunError

TRAINED_ON = "training_persons"
OF_MODELS = ("seeds", "perplexity", "perplexity_se", "difference", "difference_se", "difference_p")
"""Of the model, its seeds taken together."""
OF_RUNS = (
    *(f"{part}perplexity{end}" for part in ("first_", "stayers_", "movers_") for end in ("", "_se")),
    *(f"perplexity_raw{end}" for end in ("", "_se")),
    "seconds_fit",
    "seconds_score",
    "outside_choice_set",
)
"""Of the run; null if there are several seeds."""


def runs_of_test(folder: Path, test_persons: int | None = None) -> list[Run]:
    """The complete runs under a folder that predicted one sample of test persons.

    ``test_persons``: which sample; None takes the only one that there is. A RunError if there are several.
    """
    runs = [run for run in read_runs([folder]) if run.config["predict"] == "test"]
    sizes = {run.config.get("test_persons") for run in runs}
    size = test_persons if test_persons is not None or len(sizes) > 1 else next(iter(sizes), None)
    chosen = [run for run in runs if run.config.get("test_persons") == size]
    if not chosen or (test_persons is None and len(sizes) > 1):
        known = ", ".join(sorted("all" if each is None else str(each) for each in sizes)) or "none"
        raise RunError(
            f"runs under {folder} predicted samples of these numbers of test persons: {known}. Name one."
        )
    return chosen


def learning_curves(runs: Sequence[Run], reference: str, statistics: Statistics) -> pl.DataFrame:
    """One row per number of training persons and arm, best first within a number.

    Columns: ``training_persons``, ``arm``, ``OF_MODELS``, ``OF_RUNS``, and ``records`` and ``persons`` that were
    predicted. ``difference``: mean log score less that of the ``reference`` trained on as many persons, on the
    same records, in nats; null where there is no such run. Standard errors are clustered by person.
    """
    lacking = [str(run.folder) for run in runs if run.metrics.get(TRAINED_ON) is None]
    if lacking:
        raise RunError(
            f"{', '.join(lacking)}: written by an earlier version, which did not write on how many persons it "
            "trained. Delete these folders, and run them again if they belong to the table."
        )
    arms = _by_arm(runs)
    if not any(run.name == reference for run in arms):
        raise RunError(
            f"there is no arm {reference!r}; there are {', '.join(sorted({run.name for run in arms}))}."
        )
    rows = []
    for size in sorted({run.metrics[TRAINED_ON] for run in arms}):
        of_size = sorted((run for run in arms if run.metrics[TRAINED_ON] == size), key=lambda run: run.perplexity)
        known = reference if any(run.name == reference for run in of_size) else None
        rows += list(_rows(side_by_side(of_size[0].dataset, of_size, known, statistics), size, known is not None))
    return pl.DataFrame(rows, infer_schema_length=None)


def _by_arm(runs: Sequence[Run]) -> list[Run]:
    """The runs under the names of their arms, without what tells arms of one name and several sizes apart."""
    plain = [_unsized(run) for run in runs]
    kinds: list[Run] = []
    for run in map(seedless, plain):
        if not any(_alike(run, kind) for kind in kinds):
            kinds.append(run)
    names = distinct_names(kinds)
    of_kind = [next(name for name, kind in names.items() if _alike(seedless(run), kind)) for run in plain]
    return [replace(run, config={**run.config, "name": name}) for run, name in zip(plain, of_kind, strict=True)]


def _unsized(run: Run) -> Run:
    """The run without the setting of how many persons it trained on, and without where its raw file lies."""
    config = {key: value for key, value in run.config.items() if key != "train_persons"}
    config["dataset"] = {**config["dataset"], "raw": None}
    if isinstance(config.get("fitted_on"), Mapping):
        own = {**config["fitted_on"], "train_persons": None}
        config["fitted_on"] = own | {"dataset": {**own["dataset"], "raw": None}}
    return replace(run, config=config)


def _alike(run: Run, other: Run) -> bool:
    return run.name == other.name and not differing_settings([run.settings, other.settings])


def _rows(found: SideBySide, size: int, compared: bool) -> Iterator[dict[str, Any]]:
    """A row for every arm; without the difference unless it is that to the reference."""
    for model in found.models:
        of_arm = [run for run in found.runs if run["run"].partition(" (seed=")[0] == model["model"]]
        row = {key: model.get(key) for key in OF_MODELS}
        row |= {key: of_arm[0].get(key) if len(of_arm) == 1 else None for key in OF_RUNS}
        if not compared:
            row |= dict.fromkeys(("difference", "difference_se", "difference_p"))
        yield {TRAINED_ON: size, "arm": model["model"], **row, **_counts(found)}


def _counts(found: SideBySide) -> dict[str, int]:
    return {key: found.runs[0][key] for key in ("records", "persons")}


def markdown(table: pl.DataFrame, reference: str) -> str:
    """A row per arm, two columns per number of training persons: perplexity, and difference to the reference."""
    sizes = table[TRAINED_ON].unique().sort().to_list()
    cells = {(row["arm"], row[TRAINED_ON]): row for row in table.iter_rows(named=True)}
    largest = table.sort(TRAINED_ON, "perplexity", descending=[True, False], nulls_last=True)
    heads = [f"{size:,}" for size in sizes]
    lines = [
        f"| arm, trained on | {' | '.join(f'{head} | diff.' for head in heads)} |",
        f"|---|{'---:|' * (2 * len(sizes))}",
    ]
    for arm in largest["arm"].unique(maintain_order=True):
        shown = [_cells(cells.get((arm, size), {}), arm == reference) for size in sizes]
        lines.append(f"| `{arm}` | {' | '.join(cell for pair in shown for cell in pair)} |")
    records, persons = table.row(0, named=True)["records"], table.row(0, named=True)["persons"]
    note = (
        f"Perplexity on {records:,} records of {persons:,} test persons, less those outside the choice set of "
        f"each number of training persons. diff.: mean log score less that of `{reference}` trained on as many "
        "persons, in nats per record; positive is better. Standard errors, clustered by person, in parentheses."
    )
    return "\n".join([*lines, "", note])


def _cells(row: Mapping[str, Any], is_reference: bool) -> tuple[str, str]:
    """Perplexity and difference with their errors, ``-`` where there is none."""
    columns = Column("", "perplexity"), Column("", "difference", decimals=4)
    perplexity, difference = (" ".join(column.parts(row)) for column in columns)
    return perplexity, "ref." if is_reference and row else difference
