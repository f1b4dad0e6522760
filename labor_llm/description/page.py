"""A description of a dataset as people read it, in the terminal and as a page of HTML; computes no counts."""

from collections.abc import Iterable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import polars as pl
from rich import box
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from labor_llm.description.counts import COVARIATES, GROUPS, PERSONS, RECORDS, Description
from labor_llm.run_folder import write_atomically

TOP = 12
"""Lines of a list of occupations or transitions."""
FEW = "few"
"""Stands for a number of persons that is too small to show."""


def page(description: Description, made_up: Sequence[str], smallest: int) -> list[RenderableType]:
    """Everything about a dataset; cells of fewer than ``smallest`` persons are withheld.

    ``made_up``: careers as text, drawn from the counts.
    """
    return [
        _heading(f"{description.dataset}: {description.source}"),
        _overview(description, smallest),
        _years(description, smallest),
        _coverage(description),
        *(_values(description, name, smallest) for name in GROUPS if name != "birth_year"),
        _occupations(description, smallest),
        _moves(description, smallest),
        *_careers(made_up, smallest),
    ]


def show(blocks: Iterable[RenderableType], html: Path) -> None:
    """Print the page and write it as HTML."""
    terminal, paper = Console(), Console(record=True, width=110, file=StringIO())
    for block in blocks:
        terminal.print(block)
        paper.print(block)
    write_atomically(html, paper.export_html(inline_styles=True))


def _heading(text: str) -> RenderableType:
    return Padding(Text(text, style="bold"), (1, 0, 0, 0))


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> RenderableType:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*(f"{value:,}" if isinstance(value, int) else str(value) for value in row))
    return table


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}%" if whole else "-"


def _overview(description: Description, smallest: int) -> RenderableType:
    summary = description.summary()
    years = description.years.filter(pl.col(PERSONS) >= smallest)["year"].to_list()
    lengths = description.lengths.sort("length")
    middle = lengths.filter(pl.col(PERSONS).cum_sum() * 2 >= description.persons)["length"][0]
    common = lengths.filter(pl.col(PERSONS).cum_sum(reverse=True) >= smallest)["length"].to_list()
    stays = "-" if description.stay_rate is None else f"{100 * description.stay_rate:.1f}%"
    parts = {part: persons for part, _, persons in description.splits.iter_rows()}
    rows = [
        ("persons", description.persons),
        ("records", description.records),
        ("records per person, median", middle),
        (f"records per person, that {smallest} persons or more reach", common[-1] if common else FEW),
        ("years", f"{years[0]} to {years[-1]}" if years else FEW),
        ("occupations and states", f"{summary['occupations']} and {summary['states']}"),
        ("after the first record: occupation or state of the record before", stays),
        *((f"persons to {part}", parts.get(part, 0)) for part in ("train", "valid", "test")),
    ]
    return _table("Overview", ["", "value"], rows)


def _years(description: Description, smallest: int) -> RenderableType:
    years = _told(description.years, smallest).sort("year")
    rows = [(str(year), records) for year, records in years.select("year", RECORDS).iter_rows()]
    return _table("Records by year", ["year", RECORDS], [*rows, *_withheld(description.years, smallest, 1)])


def _coverage(description: Description) -> RenderableType:
    known = dict(description.known.select("column", RECORDS).iter_rows())
    rows = [(name, _percent(description.records - known.get(name, 0), description.records)) for name in COVARIATES]
    return _table("Unknown values", ["covariate", "share of records"], rows)


def _values(description: Description, name: str, smallest: int) -> RenderableType:
    counts = description.values.filter(column=name).sort(RECORDS, descending=True)
    shown = _told(counts, smallest).sort(RECORDS, descending=True).head(TOP)
    rows = [
        (value or "(unknown)", records, _percent(records, description.records), persons)
        for value, records, persons in shown.select("value", RECORDS, PERSONS).iter_rows()
    ]
    return _table(name.capitalize(), [name, RECORDS, "share", PERSONS], [*rows, *_withheld(counts, smallest, 3)])


def _occupations(description: Description, smallest: int) -> RenderableType:
    titles, states = description.taxonomy.titles, description.taxonomy.states
    counts = _told(description.occupations, smallest).sort(RECORDS, descending=True)
    listed = pl.concat([counts.head(TOP), counts.filter(pl.col("occupation").is_in(states))])
    rows = [
        (
            f"{titles[code]}{' (state)' if code in states else ''}",
            records,
            _percent(records, description.records),
            persons,
        )
        for code, records, persons in listed.unique(maintain_order=True)
        .select("occupation", RECORDS, PERSONS)
        .iter_rows()
    ]
    return _table("Most frequent occupations, and all states", ["occupation", RECORDS, "share", PERSONS], rows)


def _moves(description: Description, smallest: int) -> RenderableType:
    titles = description.taxonomy.titles
    moves = description.transitions.filter(pl.col("previous") != pl.col("occupation"))
    total = int(moves[RECORDS].sum())
    moves = moves.filter(pl.col(PERSONS) >= smallest).sort(RECORDS, descending=True).head(TOP)
    rows = [
        (f"{titles[before]} -> {titles[after]}", records, _percent(records, total), persons)
        for before, after, records, persons in moves.select("previous", "occupation", RECORDS, PERSONS).iter_rows()
    ]
    return _table("Most frequent changes", ["from -> to", RECORDS, "share of changes", PERSONS], rows)


def _told(counts: pl.DataFrame, smallest: int) -> pl.DataFrame:
    """The cells that may be shown: the others have ``smallest`` persons together, lest the total tell of few."""
    ascending = counts.sort(PERSONS)
    persons, few = ascending[PERSONS], int((ascending[PERSONS] < smallest).sum())
    while 0 < few < len(persons) and persons[:few].sum() < smallest:
        few += 1
    return ascending[few:]


def _withheld(counts: pl.DataFrame, smallest: int, columns: int) -> list[tuple[str, ...]]:
    """A last line that counts the cells that are left out, without saying which they are."""
    few = counts.height - _told(counts, smallest).height
    return [(f"{few} more, left out to tell of no fewer than {smallest} persons", *[""] * columns)] if few else []


def _careers(made_up: Sequence[str], smallest: int) -> list[RenderableType]:
    """Made-up careers one after the other."""
    if not made_up:
        return [_heading(f"No made-up careers: no occupation has {smallest} persons")]
    texts = [Padding(Text(text.rstrip()), (1, 0, 0, 2)) for text in made_up]
    return [_heading("Made-up careers, drawn from the counts"), *texts]
