"""The verbs about data: prepare a dataset, describe it, list the variables to download."""

import logging
from pathlib import Path
from typing import Any

import polars as pl
from omegaconf import DictConfig
from rich.console import Console

from labor_llm.build import build
from labor_llm.careers import Careers
from labor_llm.datasets import Dataset
from labor_llm.datasets.variables import HasVariables, Variables
from labor_llm.description.counts import Description
from labor_llm.description.counts import describe as described
from labor_llm.description.page import page, show
from labor_llm.description.typical import typical_careers
from labor_llm.errors import ConfigError, wrong_number
from labor_llm.prepared import prepare as prepared
from labor_llm.prepared import prepared_path
from labor_llm.run_folder import check_possible, write_atomically
from labor_llm.templates import Titles

logger = logging.getLogger(__name__)

SHOWN = 8
"""Codes that could not be carried over which are named in the terminal; prepare.json has all."""
FEWEST = 10
"""Persons with a code before the terminal names it."""


def prepare(cfg: DictConfig) -> None:
    """Read a dataset as downloaded, check it, and write it as one Careers table."""
    dataset: Dataset = build(cfg, ["dataset"])["dataset"]
    facts = prepared(dataset, Path(cfg.outputs))
    path = prepared_path(dataset, Path(cfg.outputs))
    description = described(Careers.read_parts(path), dataset.split)
    for line in (*_report_lines(facts["report"]), *_summary_lines(description), f"table: {path}"):
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
            f"The careers of {_counted(shown.persons, 'person')}, which are not on the page:", style="bold"
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
    check_possible(path.parent, "outputs")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, listed.text)
    for line in _variable_lines(listed):
        logger.info("%s", line)
    logger.info("list: %s", path)


def _report_lines(report: dict[str, Any]) -> list[str]:
    """What became of the source's records."""
    lines = [
        f"{_counted(sizes['persons'], 'person')}, {sizes['records']:,} {step}"
        for step, sizes in report["steps"].items()
    ]
    lines += [
        f"  left out: {_counted(sizes['records'], 'record')} of {_counted(sizes['persons'], 'person')}: {reason}"
        for reason, sizes in report["dropped"].items()
    ]
    found, carried = report["codes"]["found"], report["codes"]["carried"]
    if found:
        lines.append(f"  carried over: {carried:,} of {found:,} occupation codes ({100 * carried / found:.1f}%)")
    unmapped = report["unmapped"]
    frequent = [code for code in unmapped if code["persons"] >= FEWEST][:SHOWN]
    for code in frequent:
        title = code["title"] or "not in the scheme"
        lines.append(f"    {code['scheme']} {code['code']} ({title}): {code['records']:,} records")
    if len(unmapped) > len(frequent):
        lines.append(f"    {_counted(len(unmapped) - len(frequent), 'rarer code')}; all are in prepare.json")
    return lines + [f"note: {note}" for note in report["notes"]]


def _summary_lines(description: Description) -> list[str]:
    summary = description.summary()
    first, last = summary["years"]
    stays = "" if description.stay_rate is None else f"{100 * description.stay_rate:.1f}%"
    lines = [
        f"{description.dataset} ({description.source})",
        f"{_counted(summary['persons'], 'person')}, {_counted(summary['records'], 'record')}, {first} to {last}, "
        f"{_counted(summary['occupations'], 'occupation')} and {_counted(summary['states'], 'state')}; "
        "after a person's first record, the occupation or state of the one before in "
        f"{stays or 'none: nobody has two'}",
    ]
    sizes = {part: (persons, records) for part, records, persons in description.splits.iter_rows()}
    for part in ("train", "valid", "test"):
        persons, records = sizes.get(part, (0, 0))
        lines.append(f"  {part:<5} {_counted(persons, 'person')}, {_counted(records, 'record')}")
    return lines


def _variable_lines(listed: Variables) -> list[str]:
    """One line per concept: how many variables, which years, what an extract lacks and what that costs."""
    lines = [listed.hint]
    for rows in listed.table.partition_by("concept", maintain_order=True):
        concept: str = rows["concept"][0]
        years: list[int] = rows["year"].drop_nulls().to_list()
        span = f", {min(years)} to {max(years)}" if years else ""
        need = "needed" if rows["needed"].all() else "optional"
        lines.append(f"{concept}: {_counted(rows.height, 'variable')}{span} ({need})")
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


def _counted(number: int, noun: str) -> str:
    """A number with what it counts: 1 state, 2,000 states."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
