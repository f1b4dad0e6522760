"""Complete runs side by side: tables and plots per dataset, every number with its standard error."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import polars as pl
from matplotlib.figure import Figure
from omegaconf import DictConfig
from rich.console import Console, RenderableType
from rich.text import Text

from labor_llm.build import build
from labor_llm.comparison.plots import difference_plot, perplexity_plot, reliability_plot, save
from labor_llm.comparison.runs import read_runs
from labor_llm.comparison.side_by_side import SideBySide, Statistics, check_families, check_reference, side_by_side
from labor_llm.comparison.tables import Sheet, event_sheets, latex, markdown, model_sheets, run_sheets, terminal
from labor_llm.run_folder import check_possible

WIDTH = 120


@dataclass(frozen=True)
class Comparison:
    """One row per run in ``table``, sorted by dataset and perplexity; ``references`` names a run per dataset.

    ``difference`` is the mean log score (nats per record) minus that of the reference run on the same
    records, positive where the run is better; null for the reference. Standard errors, clustered by person,
    are in the columns that end in ``_se``. Numbers of fewer persons than ``min_persons`` are null or absent.
    """

    table: pl.DataFrame
    references: Mapping[str, str]
    models: pl.DataFrame
    """One row per model, its seeds taken together (see ``inference``)."""
    model_references: Mapping[str, str]
    events: pl.DataFrame
    """One row per run, event and group (see ``event_report``)."""
    curves: pl.DataFrame
    """One row per run, event, group and bin of the forecast probability."""
    notes: Sequence[str]
    level: float
    """Of the intervals and bands."""

    def write(self, folder: Path) -> list[Path]:
        """Write tables as CSV, Markdown and LaTeX, and plots as PNG and SVG; returns their paths."""
        folder.mkdir(parents=True, exist_ok=True)
        tables = {"comparison": self.table, "models": self.models, "events": self.events, "curves": self.curves}
        paths = [folder / f"{name}.csv" for name, table in tables.items() if not table.is_empty()]
        for path in paths:
            tables[path.stem].write_csv(path)
        for ending, text in (("md", markdown), ("tex", latex)):
            paths.append(folder / f"comparison.{ending}")
            paths[-1].write_text(text(self._sheets(), self.notes), encoding="utf-8")
        return paths + [path for name, figure in self._figures() for path in save(figure, folder, name)]

    def __rich__(self) -> RenderableType:
        return terminal(self._sheets(), self.notes)

    def _sheets(self) -> list[Sheet]:
        return [
            *run_sheets(self.table, self.references),
            *model_sheets(self.models, self.model_references, self.level),
            *event_sheets(self.events),
        ]

    def _figures(self) -> Iterator[tuple[str, Figure]]:
        for models in _parts(self.models, "dataset"):
            dataset = models["dataset"][0]
            if "perplexity" in models.columns:
                yield f"perplexity {dataset}", perplexity_plot(models, self.level)
            if "difference" in models.columns:
                yield f"differences {dataset}", difference_plot(models, self.model_references[dataset], self.level)
        overall = self.curves if self.curves.is_empty() else self.curves.filter(group="all")
        for curves in _parts(overall, "dataset", "event"):
            dataset, event = curves.select("dataset", "event").row(0)
            yield f"reliability {event} {dataset}", reliability_plot(curves, self.level)


def compare(
    paths: Sequence[str | Path], reference: str | None = None, statistics: Statistics | None = None
) -> Comparison:
    """Compare all complete runs in the folders and below them.

    ``reference``: the run, by the name that the table shows or by its folder, or the model, by its name, that all
    are compared with; the one of lowest perplexity if None, or on datasets that have no such run. A RunError if
    there is no complete run, if runs of one dataset predict different records, or if no dataset has the reference.
    """
    statistics = statistics or Statistics()
    runs = sorted(read_runs(paths), key=lambda run: (run.dataset, run.perplexity))
    by_dataset = {dataset: list(group) for dataset, group in groupby(runs, key=lambda run: run.dataset)}
    if reference is not None:
        check_reference(list(by_dataset.values()), reference)
    results = [side_by_side(dataset, group, reference, statistics) for dataset, group in by_dataset.items()]
    check_families(results, statistics.families or {})
    return _comparison(results, statistics.level)


def compare_verb(cfg: DictConfig) -> Comparison:
    """Compare ``cfg.runs`` with ``cfg.reference``, print the tables and write all into ``cfg.folder``."""
    folder = Path(cfg.folder or f"{cfg.outputs}/comparisons/{datetime.now():%Y%m%d-%H%M%S}")
    check_possible(folder, "folder" if cfg.folder else "outputs")
    comparison = compare(cfg.runs, cfg.reference, build(cfg, ["statistics"])["statistics"])
    paths = comparison.write(folder)
    console = Console()
    console = Console(width=max(WIDTH, console.width))
    console.print(comparison, Text(f"\nwritten into {folder}: {', '.join(path.name for path in paths)}"))
    return comparison


def _comparison(results: Sequence[SideBySide], level: float) -> Comparison:
    references = {result.dataset: result.model_reference for result in results}
    return Comparison(
        table=_table(row for result in results for row in result.runs),
        references={result.dataset: result.reference for result in results},
        models=_table(row for result in results for row in result.models),
        model_references={dataset: name for dataset, name in references.items() if name is not None},
        events=_table(row for result in results for row in result.events),
        curves=_table(row for result in results for row in result.curves),
        notes=[note for result in results for note in result.notes],
        level=level,
    )


def _table(rows: Iterable[Mapping[str, Any]]) -> pl.DataFrame:
    """One column for every key of any row."""
    rows = list(rows)
    keys = dict.fromkeys(key for row in rows for key in row)
    return pl.DataFrame({key: [row.get(key) for row in rows] for key in keys}, strict=False)


def _parts(table: pl.DataFrame, *columns: str) -> list[pl.DataFrame]:
    return table.partition_by(columns, maintain_order=True) if not table.is_empty() else []
