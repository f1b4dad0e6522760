"""What a prepared dataset holds: counts and shares, and what its text looks like. Aggregates only.

Careers pass part by part, so that tens of millions of records need little memory.
"""

from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from labor_llm.careers import Careers
from labor_llm.columns import CONSTANT
from labor_llm.splits import Split
from labor_llm.taxonomy import Taxonomy

COVARIATES = ("education", "region", "gender", "ethnicity", "birth_year", "log_wage", "weight")
GROUPS = ("survey", "gender", "ethnicity", "education", "region", "birth_year")
"""Columns whose values are counted."""
RECORDS, PERSONS = "records", "persons"
AT_A_TIME = 2
"""Parts that are counted side by side."""


@dataclass(frozen=True)
class Description:
    """Tables of counts: ``records``, and (but for ``known``) ``persons``."""

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
        """The most important numbers."""
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
    counted: deque[Future[dict[str, pl.DataFrame]]] = deque()
    last: Careers | None = None
    total: dict[str, pl.DataFrame] = {}
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        for last in parts:
            counted.append(pool.submit(_counts, last, split))
            if len(counted) > AT_A_TIME:
                total = _added(total, counted.popleft().result())
        for table in counted:
            total = _added(total, table.result())
    assert last is not None
    summed = {name: _summed([table]) for name, table in total.items()}
    return Description(last.dataset, last.source, last.taxonomy, **summed)


def _added(total: dict[str, pl.DataFrame], more: dict[str, pl.DataFrame]) -> dict[str, pl.DataFrame]:
    return more if not total else {name: _summed([total[name], more[name]]) for name in more}


def _summed(tables: list[pl.DataFrame]) -> pl.DataFrame:
    """Counts of several parts, added; no person is in two of them."""
    table = pl.concat(tables)
    keys = [name for name in table.columns if name not in (RECORDS, PERSONS, "stays")]
    return table.group_by(keys).sum().sort(keys)


def _counts(careers: Careers, split: Split) -> dict[str, pl.DataFrame]:
    """The tables of a Description, for one part."""
    table, lengths_P = careers.table, np.diff(careers.person_starts)
    person_N = np.repeat(np.arange(careers.persons, dtype=np.int64), lengths_P)
    codes = pl.Series("occupation", [*careers.taxonomy.codes, None], dtype=pl.String)
    job_N = table["occupation"].cast(pl.Enum(careers.taxonomy.codes)).to_physical().to_numpy().astype(np.int64)
    first_N = np.append(True, person_N[1:] != person_N[:-1]) if len(careers) else np.zeros(0, dtype=bool)
    previous_N = np.where(first_N, len(codes) - 1, np.roll(job_N, 1))
    moves = _sizes(person_N, previous_N * len(codes) + job_N)
    pairs = moves["code"].to_numpy()
    stayed = pl.Series("stays", (previous_N == job_N).astype(np.int64))
    persons = table[careers.person_starts[:-1]].select(
        *CONSTANT,
        part=pl.Series(split.PARTS).gather(pl.Series(split.assign(careers))),
        length=pl.Series(lengths_P.astype(np.int64)),
    )
    by_year = (
        table.select("year", stayed).group_by("year").agg(pl.len().cast(pl.Int64).alias(RECORDS), pl.sum("stays"))
    )
    jobs = _sizes(person_N, job_N)
    known = table.select(pl.col(name).count().cast(pl.Int64) for name in COVARIATES)
    return {
        "splits": _of_persons(persons, "part"),
        "years": by_year.with_columns(pl.col(RECORDS).alias(PERSONS)),
        "occupations": jobs.select(codes.gather(jobs["code"]), RECORDS, PERSONS),
        "transitions": moves.select(
            codes.gather(pairs // len(codes)).alias("previous"), codes.gather(pairs % len(codes)), RECORDS, PERSONS
        ),
        "values": pl.concat(_values(table, persons, person_N, name) for name in GROUPS),
        "known": known.unpivot(variable_name="column", value_name=RECORDS),
        "lengths": _of_persons(persons, "length"),
    }


def _of_persons(persons: pl.DataFrame, name: str) -> pl.DataFrame:
    """Counts by what is constant for a person, from one row per person."""
    return persons.group_by(pl.col(name)).agg(
        pl.sum("length").alias(RECORDS), pl.len().cast(pl.Int64).alias(PERSONS)
    )


def _sizes(person_N: NDArray[np.int64], code_N: NDArray[np.int64]) -> pl.DataFrame:
    """Records and persons of every code; equal records in a row count once for the person."""
    size = int(code_N.max(initial=0)) + 1
    pair_N = person_N * size + code_N
    new_N = np.append(True, pair_N[1:] != pair_N[:-1])
    pairs = pl.Series(pair_N[new_N]).unique().to_numpy()
    counts = pl.DataFrame(
        {
            "code": np.arange(size),
            RECORDS: np.bincount(code_N, minlength=size),
            PERSONS: np.bincount(pairs % size, minlength=size),
        }
    )
    return counts.filter(pl.col(RECORDS) > 0)


def _values(table: pl.DataFrame, persons: pl.DataFrame, person_N: NDArray[np.int64], name: str) -> pl.DataFrame:
    """Counts of a column's values, null among them."""
    if name in CONSTANT:
        counts = _of_persons(persons, name)
    else:
        words = table[name].drop_nulls().unique().sort()
        code_N = table[name].cast(pl.Enum(words)).to_physical().fill_null(len(words)).to_numpy().astype(np.int64)
        sizes = _sizes(person_N, code_N)
        counts = sizes.select(words.extend_constant(None, 1).gather(sizes["code"]), RECORDS, PERSONS)
    value = pl.col(name).cast(pl.String).alias("value")
    return counts.select(pl.lit(name).alias("column"), value, RECORDS, PERSONS)
