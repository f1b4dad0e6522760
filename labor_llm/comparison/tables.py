"""A comparison as people read it: in the terminal, in Markdown and in LaTeX; computes nothing.

A sheet is one table with its title and note; there is one per dataset for runs, for models and for events.
"""

from collections.abc import Iterable, Mapping, Sequence
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
    """Which value of a row is shown, and to how many decimals.

    The standard error is under ``<key>_se``, the ends of an interval under ``<key>_low`` and ``<key>_high``.
    """

    header: str
    key: str
    decimals: int = 3
    """For values below ten; each further digit before the point costs one after it."""
    interval: bool = False

    def value(self, row: Row) -> str:
        """The value as text: a word as it is, a number rounded, ``-`` where there is none."""
        value = row.get(self.key)
        if value is None or isinstance(value, str):
            return value or "-"
        return self._rounded(row, value)

    def se(self, row: Row) -> str:
        """The standard error in parentheses, rounded as the value, or nothing."""
        error = row.get(f"{self.key}_se")
        return "" if error is None else f"({self._rounded(row, error)})"

    def ends(self, row: Row) -> str:
        """The interval in brackets, rounded as the value, or nothing."""
        low, high = (row.get(f"{self.key}_{end}") for end in ("low", "high"))
        if not self.interval or low is None or high is None:
            return ""
        return f"[{self._rounded(row, low)}, {self._rounded(row, high)}]"

    def parts(self, row: Row) -> list[str]:
        """Value, standard error and interval, as far as there are any."""
        return [part for part in (self.value(row), self.se(row), self.ends(row)) if part]

    def _rounded(self, row: Row, value: float) -> str:
        if isinstance(value, int):
            return str(value)
        largest = max(abs(row[self.key]), row.get(f"{self.key}_se") or 0)
        return f"{value:.{max(0, self.decimals + 1 - len(str(int(largest))))}f}"


@dataclass(frozen=True)
class Sheet:
    """One table: ``names`` columns of words, then numbers."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    note: str
    names: int = 1


RUNS = (
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
MODELS = (
    Column("model", "model"),
    Column("seeds", "seeds"),
    Column("perplexity", "perplexity", interval=True),
    Column("weighted", "perplexity_weighted", interval=True),
    Column("seed sd", "training_sd"),
    Column("diff.", "difference", decimals=4, interval=True),
    Column("diff. weighted", "difference_weighted", decimals=4, interval=True),
    Column("seed se", "difference_se_training", decimals=4),
    Column("p", "difference_p"),
    Column("p Holm", "difference_p_holm"),
    Column("MCS p", "confidence_set_p"),
)
EVENTS = (
    Column("event", "event"),
    Column("run", "run"),
    Column("rate", "rate"),
    Column("AUC", "auc"),
    Column("AUC weighted", "auc_weighted"),
    Column("Brier", "brier", decimals=4),
    Column("Brier weighted", "brier_weighted", decimals=4),
    Column("relia- bility", "reliability", decimals=4),
    Column("reso- lution", "resolution", decimals=4),
    Column("uncer- tainty", "uncertainty", decimals=4),
    Column("slope", "slope"),
    Column("slope weighted", "slope_weighted"),
)


def run_sheets(table: pl.DataFrame, references: Mapping[str, str]) -> list[Sheet]:
    """One sheet per dataset; ``references`` names each dataset's reference run."""
    sheets = []
    for rows in _datasets(table):
        reference = references[rows[0]["dataset"]]
        counts = [row["outside_choice_set"] for row in rows]
        most = "some" if None in counts else f"up to {max(counts)}" if max(counts) else None
        outside = f", {most} of them outside a run's choice set" if most else ""
        title = f"{rows[0]['dataset']}: {rows[0]['records']} records of {rows[0]['persons']} persons{outside}"
        note = RUNS_NOTE.format(reference=reference)
        sheets.append(Sheet(title, RUNS, _marked(rows, "run", reference), note))
    return sheets


def model_sheets(table: pl.DataFrame, references: Mapping[str, str], level: float) -> list[Sheet]:
    """One sheet per dataset that has a model with a log score."""
    sheets = []
    for rows in _datasets(table):
        dataset = rows[0]["dataset"]
        if any(row.get("perplexity") is not None for row in rows):
            reference = references.get(dataset)
            note = MODELS_NOTE.format(level=f"{100 * level:g}%", reference=reference or "the reference")
            columns = _known(MODELS, rows)
            sheets.append(Sheet(f"{dataset}: models", columns, _marked(rows, "model", reference), note))
    return sheets


def event_sheets(table: pl.DataFrame) -> list[Sheet]:
    """One sheet per dataset that has event forecasts, of all persons together."""
    sheets = []
    for rows in _datasets(table.filter(pl.col("group") == "all") if not table.is_empty() else table):
        events = dict.fromkeys(row["event"] for row in rows)
        by_event = [row for event in events for row in rows if row["event"] == event]
        sheets.append(Sheet(f"{rows[0]['dataset']}: events", _known(EVENTS, rows), by_event, EVENTS_NOTE, names=2))
    return sheets


def terminal(sheets: Sequence[Sheet], notes: Sequence[str]) -> RenderableType:
    """For rich: standard errors and intervals under their values."""
    parts: list[RenderableType] = []
    for sheet in sheets:
        parts += [_terminal_table(sheet), Text(f"{sheet.note}\n")]
    return Group(*parts, *map(Text, notes))


def markdown(sheets: Sequence[Sheet], notes: Sequence[str]) -> str:
    """Pipe tables, standard errors and intervals beside their values."""
    parts = [f"{sheet.title}\n\n{_markdown_table(sheet)}\n{sheet.note}\n" for sheet in sheets]
    return "\n".join([*parts, *(f"{note}\n" for note in notes)])


def latex(sheets: Sequence[Sheet], notes: Sequence[str]) -> str:
    """Tabulars for the package booktabs, standard errors and intervals in lines under their values."""
    parts = [f"% {sheet.title}\n% {sheet.note}\n{_latex_table(sheet)}" for sheet in sheets]
    return "\n".join([*parts, *(f"% {note}\n" for note in notes)])


def _datasets(table: pl.DataFrame) -> list[list[dict[str, Any]]]:
    """The rows of every dataset."""
    if table.is_empty():
        return []
    return [part.to_dicts() for part in table.partition_by("dataset", maintain_order=True)]


def _marked(rows: Sequence[dict[str, Any]], name: str, reference: str | None) -> list[Row]:
    """The rows with ``ref.`` in place of the reference's difference to itself."""
    return [row | {"difference": "ref."} if row[name] == reference else row for row in rows]


def _known(columns: Sequence[Column], rows: Sequence[Row]) -> list[Column]:
    """The columns that have a value somewhere."""
    return [column for column in columns if any(row.get(column.key) is not None for row in rows)]


def _terminal_table(sheet: Sheet) -> Table:
    title = Text(sheet.title)
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    for column in sheet.columns[: sheet.names]:
        table.add_column(column.header, overflow="fold", min_width=12)
    for column in sheet.columns[sheet.names :]:
        table.add_column(column.header.replace(" ", "\n"), justify="right", no_wrap=True)
    for row in sheet.rows:
        table.add_row(*(Text("\n".join(column.parts(row))) for column in sheet.columns))
    return table


def _markdown_table(sheet: Sheet) -> str:
    columns = sheet.columns
    rules = ["---"] * sheet.names + ["---:"] * (len(columns) - sheet.names)
    lines = [[column.header.replace("- ", "") for column in columns], rules]
    for row in sheet.rows:
        cells = (" ".join(column.parts(row)) for column in columns)
        lines.append([cell.replace("|", r"\|") for cell in cells])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _latex_table(sheet: Sheet) -> str:
    columns = sheet.columns
    layout = "l" * sheet.names + "r" * (len(columns) - sheet.names)
    lines = [rf"\begin{{tabular}}{{{layout}}}", r"\toprule"]
    lines += [_latex_line(column.header.replace("- ", "") for column in columns), r"\midrule"]
    for row in sheet.rows:
        lines.append(_latex_line(column.value(row) for column in columns))
        for under in (Column.se, Column.ends):
            cells = [under(column, row) for column in columns]
            lines += [_latex_line(cells)] if any(cells) else []
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _latex_line(cells: Iterable[str]) -> str:
    return " & ".join(cell.translate(LATEX) for cell in cells) + r" \\"


LATEX = str.maketrans(
    {character: rf"\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
)
RUNS_NOTE = (
    "Standard errors, clustered by person, in parentheses. raw: perplexity before normalisation over the "
    "choice set. first, stayers, movers: perplexity of these records. AUC, Brier: changing occupation. "
    "diff.: mean log score minus that of {reference}, in nats per record; positive is better."
)
MODELS_NOTE = (
    "Runs that differ in their seed alone are one model, of their mean log score. In parentheses standard errors "
    "clustered by person, in brackets {level} intervals from a bootstrap of persons. weighted: by survey weights. "
    "seed sd: standard deviation of the log score over seeds. diff.: mean log score minus that of {reference}, in "
    "nats per record; seed se: its standard error from training. p: of no difference, with both errors; Holm: "
    "adjusted within the family. MCS p: the model confidence set of level 1 - a holds the models of at least a."
)
EVENTS_NOTE = (
    "Events read off the distribution over occupations, of records after a person's first; standard errors "
    "clustered by person. Brier = reliability - resolution + uncertainty + terms within bins (events.csv). slope: "
    "of the event's log-odds on those foretold: 1 if calibrated, below if too extreme. By group: events.csv and "
    "curves.csv."
)
