"""A comparison as people read it: in the terminal, in Markdown and in LaTeX; computes nothing.

All three take the table of a comparison, one row per run, and the name of the reference run per dataset.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """Which value of a row is shown, and to how many decimals; the standard error is under ``<key>_se``."""

    header: str
    key: str
    decimals: int = 3
    """For values below ten; each further digit before the point costs one after it."""

    def value(self, row: Row) -> str:
        """The value as text: a word as it is, a number rounded, ``-`` where there is none."""
        value = row[self.key]
        if value is None or isinstance(value, str):
            return value or "-"
        return f"{value:.{self._decimals(row)}f}"

    def se(self, row: Row) -> str:
        """The standard error in parentheses, rounded as the value, or nothing."""
        error = row.get(f"{self.key}_se")
        return "" if error is None else f"({error:.{self._decimals(row)}f})"

    def _decimals(self, row: Row) -> int:
        largest = max(abs(row[self.key]), row.get(f"{self.key}_se") or 0)
        return max(0, self.decimals + 1 - len(str(int(largest))))


COLUMNS = (
    Column("run", "run"),
    Column("perplexity", "perplexity"),
    Column("raw", "perplexity_raw"),
    Column("first", "first_perplexity"),
    Column("stayers", "stayers_perplexity"),
    Column("movers", "movers_perplexity"),
    Column("top-1", "top1"),
    Column("top-5", "top5"),
    Column("top-10", "top10"),
    Column("AUC", "move_auc"),
    Column("Brier", "move_brier"),
    Column("fit s", "seconds_fit", decimals=0),
    Column("score s", "seconds_score", decimals=0),
    Column("diff.", "difference", decimals=4),
)


def terminal(table: pl.DataFrame, references: Mapping[str, str]) -> RenderableType:
    """For rich: standard errors under their values."""
    parts: list[RenderableType] = []
    for rows, note in _parts(table, references):
        parts += [_terminal_table(rows), Text(note)]
    return Group(*parts)


def markdown(table: pl.DataFrame, references: Mapping[str, str]) -> str:
    """Pipe tables, standard errors beside their values."""
    return "\n".join(
        f"{_title(rows)}\n\n{_markdown_table(rows)}\n{note}\n" for rows, note in _parts(table, references)
    )


def latex(table: pl.DataFrame, references: Mapping[str, str]) -> str:
    """Tabulars for the package booktabs, standard errors in a line under their values."""
    return "\n".join(
        f"% {_title(rows)}\n% {note}\n{_latex_table(rows)}" for rows, note in _parts(table, references)
    )


def _parts(table: pl.DataFrame, references: Mapping[str, str]) -> Iterator[tuple[list[dict[str, Any]], str]]:
    """The rows and the note of every dataset."""
    for part in table.partition_by("dataset", maintain_order=True):
        rows = part.to_dicts()
        reference = references[rows[0]["dataset"]]
        for row in rows:
            row["difference"] = "ref." if row["run"] == reference else row["difference"]
        yield rows, NOTE.format(reference=reference)


def _title(rows: Sequence[Row]) -> str:
    """What the rows have in common."""
    most = max(row["outside_choice_set"] for row in rows)
    outside = f", up to {most} of them outside a run's choice set" if most else ""
    return f"{rows[0]['dataset']}: {rows[0]['records']} records of {rows[0]['persons']} persons{outside}"


def _terminal_table(rows: Sequence[Row]) -> Table:
    table = Table(title=Text(_title(rows)), title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    table.add_column(COLUMNS[0].header, overflow="fold", min_width=12)
    for column in COLUMNS[1:]:
        table.add_column(column.header.replace(" ", "\n"), justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(f"{column.value(row)}\n{column.se(row)}".strip()) for column in COLUMNS))
    return table


def _markdown_table(rows: Sequence[Row]) -> str:
    lines = [[column.header for column in COLUMNS], ["---"] + ["---:"] * (len(COLUMNS) - 1)]
    for row in rows:
        cells = (f"{column.value(row)} {column.se(row)}".strip() for column in COLUMNS)
        lines.append([cell.replace("|", r"\|") for cell in cells])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _latex_table(rows: Sequence[Row]) -> str:
    lines = [rf"\begin{{tabular}}{{l{'r' * (len(COLUMNS) - 1)}}}", r"\toprule"]
    lines += [_latex_line(column.header for column in COLUMNS), r"\midrule"]
    for row in rows:
        lines.append(_latex_line(column.value(row) for column in COLUMNS))
        lines.append(_latex_line(column.se(row) for column in COLUMNS))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _latex_line(cells: Iterable[str]) -> str:
    return " & ".join(cell.translate(LATEX) for cell in cells) + r" \\"


LATEX = str.maketrans(
    {character: rf"\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
)
NOTE = (
    "Standard errors, clustered by person, in parentheses. raw: perplexity before normalisation over the "
    "choice set. first, stayers, movers: perplexity of these records. AUC, Brier: changing occupation. "
    "diff.: mean log score minus that of {reference}, in nats per record; positive is better."
)
