"""Occupation codes of a table as other programs write them, and whether they are of the list that is named."""

from collections import Counter
from collections.abc import Collection
from pathlib import Path

import polars as pl

from labor_llm.datasets.report import Report
from labor_llm.datasets.words import text_of
from labor_llm.errors import DataError
from labor_llm.schemes import SCHEMES, codes_of
from labor_llm.taxonomy import Taxonomy

FEW = 0.05
"""Share of the codes that may be missing from a scheme before a note asks whether it is the right one."""


def in_whole_numbers(
    table: pl.DataFrame, report: Report, stay: Collection[str] = (), numbers: Collection[str] | None = None
) -> pl.DataFrame:
    """Codes that other programs wrote as decimals because some are missing, 22.0, without the point.

    Those in ``stay`` stay, and so do those whose whole number is none of ``numbers``, if these are given.
    """
    if table["occupation"].dtype not in (pl.String, pl.Categorical, pl.Enum):
        return table
    text = pl.col("occupation").cast(pl.String).str.strip_chars()
    whole = text.str.split(".").list.first()
    decimal = text.str.contains(r"^\d+\.0+$") & ~text.is_in(list(stay))
    if numbers is not None:
        decimal &= whole.str.replace(r"^0+(\d)", "$1").is_in(list(numbers))
    if not table.select(decimal.any()).item():
        return table
    report.note("occupation codes that were written as decimals were taken as whole numbers: 22.0 as 22")
    return table.with_columns(occupation=pl.when(decimal).then(whole).otherwise(text))


def with_leading_zeros(table: pl.DataFrame, taxonomy: Taxonomy, report: Report) -> pl.DataFrame:
    """Codes of the taxonomy that Stata and spreadsheets hold as numbers, or wrote so, as the taxonomy has them."""
    dtype = table["occupation"].dtype
    if not (dtype.is_numeric() or dtype in (pl.String, pl.Categorical, pl.Enum)):
        return table
    shorter = {code: code.lstrip("0") or "0" for code in taxonomy.codes}
    times = Counter(shorter.values())
    whole = {short: code for code, short in shorter.items() if short != code and times[short] == 1}
    table = table.with_columns(text_of("occupation", dtype).str.strip_chars())
    if table["occupation"].is_in(list(whole)).any():
        report.note(
            "occupation codes that had lost leading zeros were completed: 22 is 022 if the taxonomy says so"
        )
    return table.with_columns(pl.col("occupation").replace(whole))


def check_scheme(codes: pl.Series, scheme: str, where: Path) -> None:
    """A DataError if none of the codes is in the scheme."""
    found = codes.drop_nulls()
    if len(found) and not found.is_in(codes_of(scheme)["code"].implode()).any():
        raise DataError(
            f"{where}: none of the {len(found):,} occupation codes, such as {found[0]!r}, is in "
            f"dataset.scheme={scheme}. Known schemes: {', '.join(SCHEMES)}. Codes of another list: leave the "
            "scheme null and name the list with dataset.taxonomy"
        )


def note_other_scheme(report: Report, scheme: str) -> None:
    """A remark if many codes are not in the scheme at all: it may be another one."""
    lacking = report.unmapped.filter(pl.col("title").is_null())["records"].sum()
    if lacking > FEW * report.codes["found"]:
        report.note(
            f"{lacking:,} of {report.codes['found']:,} occupation codes are not in dataset.scheme={scheme}. "
            f"Is it another of {', '.join(SCHEMES)}, or a list of your own for dataset.taxonomy?"
        )
