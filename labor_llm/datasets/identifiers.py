"""Identifiers of persons as text: the same person whatever program wrote the column, or an error."""

import polars as pl

from labor_llm.datasets.report import Report
from labor_llm.errors import DataError

EXACT = {True: 2**53, False: 2**24}
"""Whether a type has double precision -> the whole numbers below this one are exact."""
NUMBER = r"^[+-]?\d+([.,]\d*)?([eE][+-]?\d+)?$"
EXPONENT = r"^[+-]?\d+([.,]\d+)?[eE][+-]?\d+$"
EXPONENT_OF_A_PROGRAM = r"^[+-]?\d+([.,]\d+[eE][+-]?|[eE][+-])\d+$"
"""With a point or a sign. 12e4 may be a name where others, such as 12f4, are no numbers."""
WHOLE_DECIMAL = r"^-?\d+(\.0*|,0{0,2}|,0{4,})$"
"""1,000 is a thousand."""
FRACTION = r"^\d+(\.\d*[1-9]\d*|,(\d\d?|\d{4,}))$"
NOTHING = r"^((?i:[+-]?(nan|inf|infinity)|<na>|#n/a)|NULL|null|None|\.[a-z_]?|#+)$"
"""How programs write numbers that are unknown, without bounds or too wide for a cell."""
TRUTH = r"^(?i:true|false)$"
DATE = r"^((19|20)\d\d-(0[1-9]|1[0-2])-[0-3]\d([ T].*)?|\d\d?/\d\d?/(\d\d){1,2})$"
AS_TEXT = r"""^\+|^=?["']+|"$"""
"""What spreadsheets set about a number that is to stay text, such as ="0012" or '0012; and a plus."""
THOUSANDS = r"^-?\d{1,3}(,\d{3})+$"
ANOTHER_FORM = rf"^-?0+\d|{AS_TEXT}|{THOUSANDS}"
CURE = (
    "Write identifiers as text or as whole numbers with all digits (Stata: recast double and format %15.0f before "
    "the export; spreadsheets: a number format without decimals)."
)


def identifiers(scan: pl.LazyFrame, column: str, dtype: pl.DataType, row: str, report: Report) -> pl.Expr:
    """The column as text, 12.0 as 12; DataError if a value lost digits, is a fraction, a date or true or false.

    Text may be any name. ``row``: the column with the row in the file.
    """
    values = pl.col(column)
    if dtype.is_float():
        limit = EXACT[dtype == pl.Float64]
        wrong = values.is_not_nan() & ((values != values.floor()) | (values.abs() >= limit))
        _refuse(scan, values, wrong, row, f"is a fraction, or has more digits than a column of {dtype} keeps")
        return values.fill_nan(None).cast(pl.Int64, strict=False).cast(pl.String)
    if dtype.is_decimal():
        _refuse(scan, values, values != values.floor(), row, "is a fraction")
        return values.cast(pl.Int64, strict=False).cast(pl.String)
    if dtype.is_integer() or dtype == pl.Null:
        return values.cast(pl.String)
    if dtype not in (pl.String, pl.Categorical, pl.Enum):
        _refuse(scan, values, values.is_not_null(), row, f"is of type {dtype}")
        return values.cast(pl.String, strict=False)
    return _of_text(scan, values.cast(pl.String), row, report)


def _of_text(scan: pl.LazyFrame, text: pl.Expr, row: str, report: Report) -> pl.Expr:
    """Names as they are, and whole numbers without the point; DataError for exponents and two forms of one."""
    found = scan.select(
        numbers=text.str.contains(NUMBER).all(),
        decimal=text.str.contains(WHOLE_DECIMAL).any(),
        fraction=text.str.contains(FRACTION).any(),
        truth=text.str.contains(TRUTH).all(),
        dates=text.str.contains(DATE).all(),
        others=text.str.contains(ANOTHER_FORM).any(),
    )
    numbers, decimal, fraction, truth, dates, others = found.collect(engine="streaming").row(0)
    exponent = EXPONENT if numbers else EXPONENT_OF_A_PROGRAM
    _refuse(scan, text, text.str.contains(exponent), row, "is a number that lost digits")
    _refuse(
        scan, text, text.str.contains(NOTHING), row, "stands for no number. If it means unknown, drop the record"
    )
    if truth or dates:
        _refuse(
            scan, text, text.is_not_null(), row, f"is a {'truth value' if truth else 'date'}, as all others are"
        )
    if decimal and not fraction:  # 12.0 beside 12.1 are names
        report.note("identifiers of persons that were written as decimals were taken as whole numbers: 12.0 as 12")
        text = pl.when(text.str.contains(WHOLE_DECIMAL)).then(text.str.extract(r"^(-?\d+)")).otherwise(text)
    if others:
        _refuse_two_forms(scan, text)
    return text


def _refuse(scan: pl.LazyFrame, values: pl.Expr, wrong: pl.Expr, row: str, what: str) -> None:
    """A DataError that names the first value that is wrong, if there is one."""
    found = scan.filter(wrong).select(row, value=values, records=pl.len())
    first = found.head(1).collect()
    if not first.is_empty():
        place, value, records = first.row(0)
        such = f" ({records:,} such records)" if records > 1 else ""
        raise DataError(f"person_id: {str(value)!r} in row {place} {what}{such}. {CURE}")


def _refuse_two_forms(scan: pl.LazyFrame, text: pl.Expr) -> None:
    """A DataError if two identifiers are one number: with and without zeros, separators, quotes, plus."""
    plain = text.str.replace_all(AS_TEXT, "")
    plain = pl.when(plain.str.contains(THOUSANDS)).then(plain.str.replace_all(",", "")).otherwise(plain)
    forms = scan.select(text=text, number=plain.str.replace(r"^(-?)0+(\d)", "$1$2"))
    forms = forms.filter(pl.col("number").str.contains(r"^-?\d+$")).unique()
    several = forms.group_by("number").agg(pl.col("text").sort()).filter(pl.col("text").list.len() > 1)
    both = several.sort("number").head(1).collect(engine="streaming")
    if not both.is_empty():
        shown = " and ".join(map(repr, both["text"][0]))
        raise DataError(f"person_id: {shown} may be one person. Write each person's identifier in one way.")
