"""The columns of a careers table, and what must hold for its records.

Every step works on whole columns, so that tens of millions of records pass.
"""

from collections.abc import Callable, Collection, Iterable
from typing import Any

import numpy as np
import pandera.polars as pandera
import polars as pl
from pandera.errors import SchemaErrors

from labor_llm.errors import DataError
from labor_llm.taxonomy import Taxonomy

COLUMNS: dict[str, type[pl.DataType]] = {
    "person_id": pl.String,
    "survey": pl.String,
    "year": pl.Int32,
    "occupation": pl.String,
    "education": pl.String,
    "region": pl.String,
    "gender": pl.String,
    "ethnicity": pl.String,
    "birth_year": pl.Int32,
    "log_wage": pl.Float64,
    "weight": pl.Float64,
}
REQUIRED = ("person_id", "survey", "year", "occupation")
CONSTANT = ("survey", "gender", "ethnicity", "birth_year")
TEXT = ("person_id", "survey", "education", "region", "gender", "ethnicity")
YEARS = (1900, 2100)
OLDEST = 110
"""Years that a person can be old at a record."""
ISO_DATE = r"^(\d{4})-\d{2}-\d{2}([ T].*)?$"
SHOWN = 3
"""Records that a message names before it only counts them."""
COUNTED = 1000
"""Records that are counted before a message says "or more"; bounds the memory that a wrong table takes."""


def valid_table(table: pl.DataFrame, taxonomy: Taxonomy, rows: pl.Series | None, whose: str) -> pl.DataFrame:
    """A table in our columns, types and order, or one DataError that begins with ``whose`` and names all problems.

    ``rows`` are the rows of the records in their file, from 1; if None, their places in the table.
    """
    problems = _column_problems(table)
    ours = pl.DataFrame([_cast(table, name, dtype) for name, dtype in COLUMNS.items()])
    rows_N = pl.int_range(1, table.height + 1, eager=True) if rows is None else rows
    uncast = {name: problem for name in COLUMNS if (problem := _cast_problem(table, ours, rows_N, name))}
    if not ours.select(_in_order().all()).item():
        order_N = _order(ours)
        ours, rows_N = ours[order_N], rows_N[order_N]
    explained = uncast.keys() | (set(REQUIRED) - set(table.columns))
    problems += [*uncast.values(), *_rule_problems(ours, rows_N, taxonomy, explained)]
    if problems:
        raise DataError("\n- ".join([f"{whose} breaks the rules of a careers table:", *problems]))
    return ours


def same_person() -> pl.Expr:
    """Whether a record of a sorted table follows another one of the same person."""
    return (pl.col("person_id") == pl.col("person_id").shift()).fill_null(False)


def _column_problems(table: pl.DataFrame) -> list[str]:
    """Which columns are missing or not ours, and whether there are records at all."""
    have = table.columns
    missing = [f"{name}: required and missing; the columns are {have}" for name in REQUIRED if name not in have]
    unexpected = ", ".join(name for name in have if name not in COLUMNS)
    rule = f"unexpected; map each to one of {', '.join(COLUMNS)}, or drop it from the table"
    empty = ["the table is empty: it has no records"] if table.is_empty() else []
    return missing + ([f"{unexpected}: {rule}"] if unexpected else []) + empty


def _cast(table: pl.DataFrame, name: str, dtype: type[pl.DataType]) -> pl.Series:
    """A column in our type; absent columns, and values that the type cannot hold exactly, become null."""
    nothing = pl.repeat(None, table.height, dtype=dtype, eager=True).alias(name)
    column = table[name] if name in table.columns else nothing
    if column.dtype == dtype:
        return column
    if column.dtype.is_nested():
        return nothing
    if dtype == pl.String and not column.dtype.is_float():
        return column.cast(pl.String, strict=False)
    numbers = as_numbers(as_years(column) if dtype == pl.Int32 else column)
    if dtype == pl.Float64:
        return numbers
    whole = numbers.set(~numbers.is_finite() | (numbers != numbers.floor()), None)
    return whole.cast(pl.Int64, strict=False).cast(dtype, strict=False)


def as_numbers(column: pl.Series) -> pl.Series:
    """A column as decimal numbers; null for what is none: words, dates, durations, true and false."""
    if column.dtype.is_temporal() or column.dtype == pl.Boolean or column.dtype.is_nested():
        return pl.repeat(None, len(column), dtype=pl.Float64, eager=True).alias(column.name)
    return _plain(column).cast(pl.Float64, strict=False)


def as_years(column: pl.Series) -> pl.Series:
    """Dates as their years; all else as it is, but for text of numbers that may have lost digits: 2.0e+03."""
    if column.dtype in (pl.Date, pl.Datetime):
        return column.dt.year()
    column = _plain(column)
    if column.dtype != pl.String:
        return column
    text = column.set(column.str.contains("[eE]").fill_null(False), None)
    return text.str.replace(ISO_DATE, "$1")


def _plain(column: pl.Series) -> pl.Series:
    """Categories as their text, which polars can turn into numbers; all else as it is."""
    return column.cast(pl.String) if column.dtype in (pl.Categorical, pl.Enum) else column


def _cast_problem(table: pl.DataFrame, ours: pl.DataFrame, rows_N: pl.Series, name: str) -> str:
    """A sentence on the values that were lost in casting; empty if none was."""
    if name not in table.columns:
        return ""
    kind = {pl.String: "text", pl.Int32: "a whole number", pl.Float64: "a number"}[COLUMNS[name]]
    places = (ours[name].is_null() & table[name].is_not_null()).arg_true()
    if places.is_empty():
        return ""
    lost = ours.with_columns(table[name])[places]
    return _problem(name, f"must be {kind}, and null where unknown", lost, rows_N[places])


def _order(table: pl.DataFrame) -> pl.Series:
    """The rows by person, then by year. Persons are ranked once each, since comparing text takes long."""
    persons = table.select(pl.col("person_id").unique().sort(nulls_last=False)).to_series()
    ranks = pl.DataFrame({"person_id": persons, "rank": np.arange(len(persons), dtype=np.int64)})
    ranked = table.select("person_id", "year").join(
        ranks, on="person_id", how="left", nulls_equal=True, maintain_order="left"
    )
    key = pl.col("rank") * 2**32 + pl.col("year").fill_null(-1).cast(pl.Int64)
    return ranked.select(key.arg_sort()).to_series()


def _in_order() -> pl.Expr:
    """Whether each record comes after the one before it: by person, then by year."""
    person, year = pl.col("person_id"), pl.col("year")
    later = (person > person.shift()) | ((person == person.shift()) & (year >= year.shift()))
    return (pl.int_range(pl.len()) == 0) | later.fill_null(False)


Rule = tuple[Collection[str], str, Callable[[pl.Expr], pl.Expr]]
"""Columns, what they must be, and whether each record of a sorted table is so (null counts as yes)."""
NO_NULL = "is required and must not be null: fill it in or drop the record"
TEXT_RULES: tuple[Rule, ...] = (
    (TEXT, "must have no line break or control character", lambda column: ~column.str.contains(r"\p{Cc}")),
    (TEXT, "must not be empty text: use null where unknown", lambda column: column != ""),
    (TEXT, "must not begin or end with a space", lambda column: column == column.str.strip_chars()),
    (
        TEXT[1:],
        "looks like an unknown value written out: use null (for a CSV file, name it in dataset.missing)",
        lambda column: ~column.str.to_lowercase().is_in(["nan", "none", "null", "<na>"]),
    ),
)
RULES: tuple[Rule, ...] = (
    (
        CONSTANT,
        "must be the same in all records of a person, and differs from the record before",
        lambda column: ~same_person() | column.eq_missing(column.shift()),
    ),
    (["year"], "must be a calendar year in {}..{}".format(*YEARS), lambda year: year.is_between(*YEARS)),
    (
        ["year"],
        "must not occur twice for a person: keep one record a year, such as the main job",
        lambda year: ~same_person() | (year != year.shift()),
    ),
    (
        ["birth_year"],
        f"must make the person 0 to {OLDEST} years old at the record: two digits lack the century, and negative "
        "numbers are missing answers, such as '+dataset.recodes.birth_year={-5:null}'",
        lambda birth: (pl.col("year") - birth).is_between(0, OLDEST),
    ),
    (["log_wage", "weight"], "must be finite, and null where unknown", lambda column: column.is_finite()),
    (["weight"], "must not be negative", lambda weight: weight >= 0),
)


def _rule_problems(table: pl.DataFrame, rows_N: pl.Series, taxonomy: Taxonomy, explained: set[str]) -> list[str]:
    """A sentence for every rule that some record of a sorted table breaks.

    ``rows_N`` is each record's row in its file, from 1. Nulls in the columns ``explained`` follow from a
    problem that has been reported already.
    """
    unknown = taxonomy.unknown(table["occupation"].drop_nulls().unique())
    codes = (
        f"must be a code of the taxonomy: {unknown} dataset.taxonomy names another list; for a table of your own, "
        "dataset.scheme a census list"
    )
    rules: tuple[Rule, ...] = (
        (set(REQUIRED) - explained, NO_NULL, lambda column: column.is_not_null()),
        (["occupation"], codes, lambda column: column.is_in(taxonomy.codes)),
        *TEXT_RULES,
        *RULES,
    )
    if _all_hold(table, rules):  # at a fraction of the time that finding the records takes
        return []
    schema = {
        name: pandera.Column(
            dtype,
            [_check(rule, holds(pl.col(name))) for columns, rule, holds in rules if name in columns],
            nullable=True,
        )
        for name, dtype in COLUMNS.items()
    }
    try:
        pandera.DataFrameSchema(schema, strict=True).validate(table, lazy=True)
    except SchemaErrors as error:
        broken = error.failure_cases.group_by("column", "check", maintain_order=True)
        return [
            _problem(name, rule, table[cases["index"]], rows_N[cases["index"]]) for (name, rule), cases in broken
        ]
    return []


def _all_hold(table: pl.DataFrame, rules: Iterable[Rule]) -> bool:
    """Whether no record breaks a rule; what text must be is looked up once per different text."""
    texts = {name: table.lazy().select(pl.col(name).unique()) for name in TEXT}
    held = []
    for columns, rule, holds in rules:
        for name in columns:
            alone = any(rule == of_text for _, of_text, _ in TEXT_RULES)
            frame = texts[name] if alone else table.lazy()
            held.append(frame.select(holds(pl.col(name)).fill_null(True).all()))
    return all(answer.item() for answer in pl.collect_all(held))


def _check(rule: str, holds: pl.Expr) -> Any:
    """A pandera check of an expression over all records."""
    return pandera.Check(
        lambda data: data.lazyframe.select(holds.fill_null(True)),
        error=rule,
        ignore_na=False,
        n_failure_cases=COUNTED,
    )


def _problem(name: str, rule: str, rows: pl.DataFrame, places: pl.Series) -> str:
    """What a column must be, the first records that are not so, and how many there are."""
    first = rows[:SHOWN].select("person_id", "year", row=places[:SHOWN], value=name)
    shown = ", ".join(
        f"{value!r} (row {row}: person {who!r}, {year})" for who, year, row, value in first.iter_rows()
    )
    more = " or more" if rows.height >= COUNTED else ""
    rest = f", ... ({rows.height:,}{more} records)" if rows.height > SHOWN else ""
    return f"{name}: {rule.rstrip('.')}. Found {shown}{rest}"
