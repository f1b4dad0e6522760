"""Complete runs side by side: one table per dataset, every number with its standard error."""

import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import polars as pl
from omegaconf import DictConfig
from rich.console import Console, RenderableType
from rich.text import Text

from labor_llm.errors import RunError, unknown
from labor_llm.evaluate import PairedDifference, differing_records, paired_difference
from labor_llm.predictions import Predictions
from labor_llm.run_folder import CONFIG, METRICS, PREDICTIONS, is_complete, read_config
from labor_llm.tables import latex, markdown, terminal

logger = logging.getLogger(__name__)

IRRELEVANT = {"name", "outputs", "tracker"}
"""Sections of a config that do not tell two runs apart."""
WIDTH = 120
METRICS_SHOWN = {
    "perplexity": ("all", "perplexity"),
    "perplexity_raw": ("all", "perplexity_raw"),
    "perplexity_weighted": ("all", "perplexity_weighted"),
    "first_perplexity": ("first", "perplexity"),
    "stayers_perplexity": ("stayers", "perplexity"),
    "movers_perplexity": ("movers", "perplexity"),
    "top1": ("all", "top1"),
    "top5": ("all", "top5"),
    "top10": ("all", "top10"),
    "move_auc": ("transitions", "move_auc"),
    "move_brier": ("transitions", "move_brier"),
}


@dataclass(frozen=True)
class Run:
    """What a complete run folder says, without its predictions."""

    folder: Path
    config: Mapping[str, Any]
    metrics: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> "Run":
        """A RunError if a part of the folder is missing."""
        for name in (METRICS, PREDICTIONS):
            if not (folder / name).is_file():
                raise RunError(
                    f"run folder {folder} is marked complete but has no {name}; delete it and run it again."
                )
        return cls(folder, read_config(folder), json.loads((folder / METRICS).read_text(encoding="utf-8")))

    @property
    def dataset(self) -> str:
        """The dataset, and the part of its persons that was predicted if that is not the test part."""
        name, part = self.config["dataset"]["name"], self.config["predict"]
        return str(name) if part == "test" else f"{name} ({part})"

    @property
    def name(self) -> str:
        return str(self.config["name"])

    @property
    def perplexity(self) -> float:
        """Infinite where it is undefined, so that such runs come last."""
        value: float | None = self.metrics["metrics"]["all"]["perplexity"]["value"]
        return float("inf") if value is None else value

    def predictions(self) -> Predictions:
        return Predictions.read(self.folder / PREDICTIONS, distribution=False)


@dataclass(frozen=True)
class Comparison:
    """One row per run, sorted by dataset and perplexity; ``references`` names a reference run per dataset.

    ``difference`` is the mean log score (nats per record) minus that of the reference run on the same
    records, positive where the run is better; null for the reference. Standard errors, clustered by person,
    are in the columns that end in ``_se``.
    """

    table: pl.DataFrame
    references: Mapping[str, str]

    def write(self, folder: Path) -> list[Path]:
        """Write ``comparison.csv``, ``comparison.md`` and ``comparison.tex``; returns their paths."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"comparison.{ending}" for ending in ("csv", "md", "tex")]
        self.table.write_csv(paths[0])
        paths[1].write_text(markdown(self.table, self.references), encoding="utf-8")
        paths[2].write_text(latex(self.table, self.references), encoding="utf-8")
        return paths

    def __rich__(self) -> RenderableType:
        return terminal(self.table, self.references)


def compare(paths: Sequence[str | Path], reference: str | None = None) -> Comparison:
    """Compare all complete runs in the folders and below them.

    ``reference``: the run, by the name that the table shows or by its folder, that every run is compared
    with; the one of lowest perplexity if None. A RunError if there is no complete run, if runs of one dataset
    predict different records, or if the reference is unknown.
    """
    runs = sorted(_read_runs(paths), key=lambda run: (run.dataset, run.perplexity))
    rows: list[dict[str, Any]] = []
    references = {}
    for dataset, group in groupby(runs, key=lambda run: run.dataset):
        names = distinct_names(list(group))
        references[dataset] = _reference(names, reference, dataset)
        rows += _rows(dataset, names, references[dataset])
    return Comparison(pl.DataFrame(rows, infer_schema_length=None), references)


def compare_verb(cfg: DictConfig) -> Comparison:
    """Compare ``cfg.runs`` with ``cfg.reference``, print the tables and write them into ``cfg.folder``."""
    comparison = compare(cfg.runs, cfg.reference)
    folder = cfg.folder or f"{cfg.outputs}/comparisons/{datetime.now():%Y%m%d-%H%M%S}"
    paths = comparison.write(Path(folder))
    console = Console()
    console = Console(width=max(WIDTH, console.width))
    console.print(comparison, Text(f"\nwritten: {', '.join(map(str, paths))}"))
    return comparison


def distinct_names(runs: Sequence[Run]) -> dict[str, Run]:
    """The runs by name; those that share one also by what differs in their configs, else by their folder."""
    shown = []
    for run in runs:
        alike = [other for other in runs if other.name == run.name]
        differing = differing_settings([other.config for other in alike])
        words = [f"{key}={values[alike.index(run)]}" for key, values in differing.items()]
        shown.append(f"{run.name} ({', '.join(words)})" if words else run.name)
    times = Counter(shown)
    return {
        name if times[name] == 1 else f"{name} in {run.folder}": run for name, run in zip(shown, runs, strict=True)
    }


def differing_settings(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Dotted keys in which the configs differ, with their values as text, one per config.

    Left out: a key that repeats another one of the same ending (``model.adapter.rank``, ``adapter.rank``),
    and what follows from a section's name; ``adapter.name`` is called ``adapter``.
    """
    flat = [dict(_flat(config)) for config in configs]
    columns = {key: [config.get(key, "null") for config in flat] for config in flat for key in config}
    differing = {key: values for key, values in columns.items() if len(set(values)) > 1}

    def is_told_by(key: str, other: str) -> bool:
        if key.endswith(f".{other}"):
            return differing[key] == differing[other]
        pairs = set(zip(differing[other], differing[key], strict=True))
        of_section = other.endswith(".name") and key.startswith(other.removesuffix("name"))
        return of_section and len(pairs) == len(set(differing[other]))

    own = [key for key in differing if not any(is_told_by(key, other) for other in differing if other != key)]
    return {key.removesuffix(".name"): differing[key] for key in own}


def _flat(node: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for name, child in node.items():
        key = f"{above}{name}"
        if isinstance(child, Mapping):
            yield from _flat(child, f"{key}.")
        elif key.partition(".")[0] not in IRRELEVANT:
            yield key, "null" if child is None else str(child)


def _read_runs(paths: Sequence[str | Path]) -> list[Run]:
    """Every complete run under the paths, once; a RunError if there is none under one of them."""
    complete: dict[Path, Path] = {}
    for path in map(Path, paths):
        folders = list(_run_folders(path))
        found = [folder for folder in folders if is_complete(folder)]
        rest = len(folders) - len(found)
        left = f"{rest} incomplete {'run' if rest == 1 else 'runs'}"
        if not found:
            there = f"{left} there; the same command again resumes a run" if rest else "no run at all there"
            raise RunError(f"no complete run under {path}: {there if path.exists() else 'it does not exist'}.")
        if rest:
            unfinished = [str(folder) for folder in folders if folder not in found]
            logger.warning("%s left out: %s", left, ", ".join(unfinished))
        complete |= {folder.resolve(): folder for folder in found}
    if not complete:
        raise RunError("nothing to compare: name at least one run folder, or a folder above some.")
    return [Run.read(folder) for folder in complete.values()]


def _run_folders(path: Path) -> Iterator[Path]:
    """Folders with a config, in order; what lies inside a run is not looked at."""
    for folder, below, files in os.walk(path):
        if CONFIG in files:
            yield Path(folder)
            below.clear()
        below.sort()


def _reference(names: Mapping[str, Run], reference: str | None, dataset: str) -> str:
    """The name of the reference run; the runs come best first."""
    if reference is None:
        return next(iter(names))
    for name, run in names.items():
        if reference == name or Path(reference).resolve() == run.folder.resolve():
            return name
    raise RunError(unknown("reference", reference, names, f" among the runs of {dataset}"))


def _rows(dataset: str, names: Mapping[str, Run], reference: str) -> list[dict[str, Any]]:
    """One row per run; no more than two tables of predictions are in memory at a time."""
    predictions = names[reference].predictions()
    rows, misfits = [], []
    for name, run in names.items():
        other = predictions if name == reference else run.predictions()
        if count := differing_records(other, predictions):
            misfits.append(f"{name} ({count} records differ)")
        else:
            paired = None if name == reference else paired_difference(other, predictions)
            rows.append(
                {"dataset": dataset, "run": name}
                | _metrics(run)
                | _difference(paired)
                | {"folder": str(run.folder)}
            )
    if misfits:
        raise RunError(
            f"runs on {dataset} predict other records than {reference}: {', '.join(misfits)}. "
            "Run them again with the same dataset, split and predict=..., or compare them apart."
        )
    return rows


def _metrics(run: Run) -> dict[str, float | None]:
    metrics, seconds = run.metrics["metrics"], run.metrics.get("seconds", {})
    row: dict[str, float | None] = {}
    for key, (subset, metric) in METRICS_SHOWN.items():
        row |= {key: metrics[subset][metric]["value"], f"{key}_se": metrics[subset][metric]["se"]}
    row |= {key: run.metrics[key] for key in ("records", "persons", "outside_choice_set")}
    return row | {f"seconds_{part}": seconds.get(part) for part in ("fit", "score")}


def _difference(paired: PairedDifference | None) -> dict[str, float | None]:
    """Null for the reference, which is not compared with itself."""
    names = {"difference": "difference", "difference_se": "se", "difference_z": "z", "difference_p": "p"}
    return {column: getattr(paired, field, None) for column, field in names.items()}
