"""The verbs about data: prepare a dataset, describe it, list the variables to download."""

import logging
from pathlib import Path

import polars as pl
from omegaconf import DictConfig
from rich.console import Console

from labor_llm.build import build
from labor_llm.careers import Careers
from labor_llm.datasets import Dataset
from labor_llm.datasets.report import counted
from labor_llm.datasets.variables import HasVariables, Variables
from labor_llm.description.counts import Description
from labor_llm.description.counts import describe as described
from labor_llm.description.page import page, show
from labor_llm.description.typical import typical_careers
from labor_llm.errors import ConfigError, wrong_number
from labor_llm.prepared import lines_of, prepared_path
from labor_llm.prepared import prepare as prepared
from labor_llm.run_folder import make_folder, write_atomically
from labor_llm.templates import Titles

logger = logging.getLogger(__name__)

SHOWN = 8
"""Variables that a line names."""
MOST_FREQUENT = 3
"""Occupations that ``prepare`` names."""


def prepare(cfg: DictConfig) -> None:
    """Read a dataset as downloaded, check it, and write it as one Careers table."""
    dataset: Dataset = build(cfg, ["dataset"])["dataset"]
    facts = prepared(dataset, Path(cfg.outputs))
    path = prepared_path(dataset, Path(cfg.outputs))
    description = described(Careers.read_parts(path), dataset.split)
    for line in (*lines_of(facts), *_summary_lines(description), f"table: {path}"):
        logger.info("%s", line)


def describe(cfg: DictConfig) -> None:
    """Show what a dataset holds, with made-up careers; with real ones only if ``show_records`` says so."""
    problems = [
        *wrong_number("show_records", cfg.show_records, 0),
        *wrong_number("smallest_cell", cfg.smallest_cell, 1),
    ]
    if problems:
        raise ConfigError("\n".join(problems))
    parts = build(cfg, ["dataset", "template"])
    dataset, template = parts["dataset"], parts["template"]
    prepared(dataset, Path(cfg.outputs))
    path = prepared_path(dataset, Path(cfg.outputs))
    description = described(Careers.read_parts(path), dataset.split)
    made_up = typical_careers(description, 3, cfg.smallest_cell)
    texts = [] if made_up is None else list(template.texts(made_up, Titles()))
    html = path.with_name("describe.html")
    show(page(description, texts, cfg.smallest_cell), html)
    if cfg.show_records:
        first = next(Careers.read_parts(path))
        shown = first.select_persons(first.table["person_id"].unique(maintain_order=True)[: cfg.show_records])
        Console().print(
            f"The careers of {counted(shown.persons, 'person')}, which are not on the page:", style="bold"
        )
        for text in template.texts(shown, Titles()):
            Console().print(text, markup=False, highlight=False)
    logger.info("page: %s", html)


def variables(cfg: DictConfig) -> None:
    """Write the list of variables to download, and say which of them an extract lacks."""
    dataset: Dataset = build(cfg, ["dataset"])["dataset"]
    name = dataset.name
    if not isinstance(dataset, HasVariables):
        raise ConfigError(f"dataset {name!r} is not downloaded variable by variable; it has no such list.")
    listed = dataset.variables()
    path = Path(cfg.outputs) / name / listed.file_name
    make_folder(path.parent, "outputs")
    write_atomically(path, listed.text)
    for line in _variable_lines(listed):
        logger.info("%s", line)
    logger.info("list: %s", path)


def _summary_lines(description: Description) -> list[str]:
    summary = description.summary()
    first, last = summary["years"]
    stays = "" if description.stay_rate is None else f"{100 * description.stay_rate:.1f}%"
    lines = [
        f"{description.dataset} ({description.source})",
        f"{counted(summary['persons'], 'person')}, {counted(summary['records'], 'record')}, {first} to {last}, "
        f"{counted(summary['occupations'], 'occupation')} and {counted(summary['states'], 'state')}; "
        "after a person's first record, the occupation or state of the one before in "
        f"{stays or 'none: nobody has two'}",
    ]
    lines.append(f"most frequent: {'; '.join(_most_frequent(description)) or 'no occupation'}")
    sizes = {part: (persons, records) for part, records, persons in description.splits.iter_rows()}
    for part in ("train", "valid", "test"):
        persons, records = sizes.get(part, (0, 0))
        lines.append(f"  {part:<5} {counted(persons, 'person')}, {counted(records, 'record')}")
    return lines


def _most_frequent(description: Description) -> list[str]:
    """The most frequent occupations with their titles, so that a wrong coding shows."""
    titles, states = description.taxonomy.titles, list(description.taxonomy.states)
    jobs = description.occupations.filter(~pl.col("occupation").is_in(states))
    jobs = jobs.sort("records", "occupation", descending=[True, False]).head(MOST_FREQUENT)
    return [
        f"{titles[code]} ({code}), {counted(records, 'record')}"
        for code, records in jobs.select("occupation", "records").iter_rows()
    ]


def _variable_lines(listed: Variables) -> list[str]:
    """One line per concept: how many variables, which years, what an extract lacks and what that costs."""
    lines = [listed.hint]
    for rows in listed.table.partition_by("concept", maintain_order=True):
        concept: str = rows["concept"][0]
        years: list[int] = rows["year"].drop_nulls().to_list()
        span = f", {min(years)} to {max(years)}" if years else ""
        need = "needed" if rows["needed"].all() else "optional"
        lines.append(f"{concept}: {counted(rows.height, 'variable')}{span} ({need})")
        once = rows.filter(sources=1)
        if not once.is_empty():
            lines.append(f"  one source only, check before relying on them: {_listed(once)}")
        lacking = rows.filter(~pl.col("found"))
        if not lacking.is_empty():
            cost = f": {listed.costs[concept]}" if concept in listed.costs else ""
            lines.append(f"  the extract lacks {_listed(lacking)}{cost}")
    return lines


def _listed(rows: pl.DataFrame) -> str:
    """Variables by name, with their years, as many as fit a line."""
    names = [
        f"{name} ({year})" if year else str(name) for name, year in rows.select("variable", "year").iter_rows()
    ]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
