"""What a prepared dataset holds: counts and shares, and what its text looks like. Aggregates only.

Careers pass part by part, so that tens of millions of records need little memory.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from labor_llm.careers import Careers, Split
from labor_llm.taxonomy import Taxonomy

COVARIATES = ("education", "region", "gender", "ethnicity", "birth_year", "log_wage", "weight")
GROUPS = ("survey", "gender", "ethnicity", "education", "region", "birth_year")
"""Columns whose values are counted."""
RECORDS, PERSONS = "records", "persons"


@dataclass(frozen=True)
class Description:
    """Tables of counts; every one has the columns ``records`` and ``persons``."""

    dataset: str
    source: str
    taxonomy: Taxonomy
    splits: pl.DataFrame
    """part: train, valid or test."""
    years: pl.DataFrame
    """year, and stays: records with the same occupation as the one before."""
    occupations: pl.DataFrame
    """occupation."""
    transitions: pl.DataFrame
    """previous (null: none, the first record) and occupation."""
    values: pl.DataFrame
    """column, value (null: unknown): of ``GROUPS``."""
    known: pl.DataFrame
    """column: records in which a covariate is known."""
    lengths: pl.DataFrame
    """length: of a career in records."""

    @property
    def records(self) -> int:
        """N."""
        return int(self.splits[RECORDS].sum())

    @property
    def persons(self) -> int:
        """P."""
        return int(self.splits[PERSONS].sum())

    @property
    def stay_rate(self) -> float | None:
        """Share of the records after a person's first that name the occupation of the one before."""
        later = self.records - self.persons
        return int(self.years["stays"].sum()) / later if later else None

    def summary(self) -> dict[str, Any]:
        """The most important numbers, for prepare.json and the terminal."""
        jobs = self.occupations.filter(~pl.col("occupation").is_in(self.taxonomy.states))
        return {
            "persons": self.persons,
            "records": self.records,
            "years": [self.years["year"].min(), self.years["year"].max()],
            "occupations": jobs.height,
            "states": self.occupations.height - jobs.height,
            "stay_rate": self.stay_rate,
        }


def describe(parts: Iterable[Careers], split: Split) -> Description:
    """Count what the parts of a dataset hold."""
    tables: dict[str, list[pl.DataFrame]] = {}
    last: Careers | None = None
    for last in parts:
        for name, table in _counts(last, split).items():
            tables.setdefault(name, []).append(table)
            tables[name] = [_summed(tables[name])] if len(tables[name]) > 8 else tables[name]
    assert last is not None
    summed = {name: _summed(counted) for name, counted in tables.items()}
    return Description(last.dataset, last.source, last.taxonomy, **summed)


def _summed(tables: list[pl.DataFrame]) -> pl.DataFrame:
    """Counts of several parts, added; no person is in two of them."""
    table = pl.concat(tables)
    keys = [name for name in table.columns if name not in (RECORDS, PERSONS, "stays")]
    return table.group_by(keys).sum().sort(keys)


def _counts(careers: Careers, split: Split) -> dict[str, pl.DataFrame]:
    """The tables of a Description, for one part."""
    lengths_P = np.diff(careers.person_starts)
    person_N = pl.Series("person", np.repeat(np.arange(careers.persons, dtype=np.int32), lengths_P))
    table = careers.table.with_columns(person_N, previous=careers.previous)
    stays = (pl.col("previous") == pl.col("occupation")).fill_null(False)
    persons = pl.DataFrame({"part": split.assign(careers), "length": lengths_P.astype(np.int64)})
    names = dict(enumerate(split.PARTS))
    of_parts = persons.with_columns(pl.col("part").replace_strict(names, return_dtype=pl.String)).group_by("part")
    known = [
        table.filter(pl.col(name).is_not_null()).select(pl.lit(name).alias("column"), *_sizes())
        for name in COVARIATES
    ]
    values = [
        table.select("person", pl.lit(name).alias("column"), pl.col(name).cast(pl.String).alias("value"))
        .group_by("column", "value")
        .agg(*_sizes())
        for name in GROUPS
    ]
    return {
        "splits": of_parts.agg(pl.col("length").sum().alias(RECORDS), pl.len().cast(pl.Int64).alias(PERSONS)),
        "years": table.group_by("year").agg(*_sizes(), stays=stays.sum().cast(pl.Int64)),
        "occupations": table.group_by("occupation").agg(*_sizes()),
        "transitions": table.group_by("previous", "occupation").agg(*_sizes()),
        "values": pl.concat(values),
        "known": pl.concat(known),
        "lengths": persons.group_by("length").agg(
            (pl.len() * pl.col("length").first()).cast(pl.Int64).alias(RECORDS),
            pl.len().cast(pl.Int64).alias(PERSONS),
        ),
    }


def _sizes() -> tuple[pl.Expr, pl.Expr]:
    return pl.len().cast(pl.Int64).alias(RECORDS), pl.col("person").n_unique().cast(pl.Int64).alias(PERSONS)
