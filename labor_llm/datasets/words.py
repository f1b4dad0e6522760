"""Words of the text (gender, education, ...): recoded from the values of a file, and never mere numbers."""

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any

import polars as pl
from pydantic import BeforeValidator

from labor_llm.errors import DataError

WORDS = ("education", "region", "gender", "ethnicity")
"""Columns whose values the text states."""
NUMBER = r"^([+\x{2212}\x{2013}-]?(\d+([.,]\d*)*|[.,]\d+)([eE][+-]?\d+)?|(?i:[+-]?inf)|\.[a-z_]|(?i:true|false))$"
"""Numbers, whatever their minus; missing values of Stata and SAS, and truth values."""
AS_KEY = r"-?(0|[1-9]\d*)(\.0+|\.\d*[1-9])?|(?i:true|false)"
"""Values that Hydra reads back as they are."""
SHOWN = 30
"""Values that the recodes of a message name."""


def as_text(value: Any) -> Any:
    """A key or value as a file writes it: YAML and Hydra read 1 as a number, and true as a truth value."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return str(value).removesuffix(".0")
    return str(value) if isinstance(value, int) else value


def as_texts(setting: Any) -> Any:
    """Numbers of a setting, at any depth, as text."""
    if isinstance(setting, Mapping):
        return {as_text(key): as_texts(value) for key, value in setting.items()}
    if isinstance(setting, list | tuple):
        return [as_texts(value) for value in setting]
    return as_text(setting)


Recodes = Annotated[dict[str, dict[str, str | None]], BeforeValidator(as_texts)]
"""Field -> the file's value -> ours; null: unknown."""
Texts = Annotated[list[str], BeforeValidator(as_texts)]


def text_of(column: str, dtype: pl.DataType) -> pl.Expr:
    """A column as text. Stata and Excel hold whole numbers as decimals: 1.0 is "1"."""
    if dtype.is_nested():
        raise DataError(f"{column}: must be text or numbers, and the column is of type {dtype}")
    values, text = pl.col(column), pl.col(column).cast(pl.String)
    if not dtype.is_float():
        return text
    return (
        pl.when(values == values.round()).then(values.cast(pl.Int64, strict=False).cast(pl.String)).otherwise(text)
    )


def recoded(text: pl.Expr, words: Mapping[str, str | None]) -> pl.Expr:
    """Values in our words; 16.0 is 16, and True true, if only that has a word. All others stay."""
    truth = text.str.contains("^(?i:true|false)$")
    plain = pl.when(truth).then(text.str.to_lowercase()).otherwise(text.str.replace(r"^([+-]?\d+)\.0*$", "$1"))
    named = pl.lit(pl.Series(list(words), dtype=pl.String)).implode()
    exactly = pl.when(text.is_in(named)).then(text.replace(words))
    return exactly.when(plain.is_in(named)).then(plain.replace(words)).otherwise(text)


def check_words(texts: pl.DataFrame, recodes: Mapping[str, Mapping[str, str | None]], where: str) -> None:
    """A DataError if a column of WORDS has numbers that no recode asks for, with the recodes that mend it."""
    problems = []
    for field in WORDS:
        if field in texts.columns:
            allowed = [word for word in recodes.get(field, {}).values() if word is not None]
            numbers = texts[field].drop_nulls().value_counts(sort=True).filter(pl.col(field).str.contains(NUMBER))
            numbers = numbers.filter(~pl.col(field).is_in(pl.Series(allowed, dtype=pl.String).implode()))
            if not numbers.is_empty():
                problems.append(_problem(field, dict(numbers.iter_rows())))
    if problems:
        raise DataError("\n".join([f"{where} has numbers where the text needs words:", *problems]))


def _problem(field: str, counts: dict[str, int]) -> str:
    """The values with their numbers of records, and the recodes that say what they mean."""
    shown = list(counts.items())[:SHOWN]
    more = f", ... ({len(counts)} values)" if len(counts) > SHOWN else ""
    values = ", ".join(f"{value!r} in {records:,} record{'s' * (records > 1)}" for value, records in shown)
    words = {value: None if value.startswith(("-", ".")) else "WORD" for value, _ in shown}
    line = ",".join(f"{value}:{word or 'null'}" for value, word in words.items())
    typed = f"'+dataset.recodes.{field}={{{line}}}' on the command line, or "
    in_file = json.dumps(words).replace('"WORD"', "WORD")
    return (
        f"- {field}: {values}{more}. Say what they mean, null for unknown: "
        f"{typed if all(re.fullmatch(AS_KEY, value) for value in words) else ''}"
        f"recodes: {{{field}: {in_file}}} in the dataset's file. A number that is recoded to itself is kept."
    )
