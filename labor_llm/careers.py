"""The careers table: one row per person and year, checked once on the way in; and its split by person.

Every step works on whole columns, so that tens of millions of records pass.
Shapes: N records, P persons.
"""

import hashlib
import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import numpy as np
import pandera.polars as pandera
import polars as pl
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pandera.errors import SchemaErrors
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as settings

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
METADATA = "labor_llm"
SOURCE_MARK = "::"
"""Stands in a pool's person_id between the name of the dataset and the person_id there."""
SHOWN = 3
"""Records that a message names before it only counts them."""
COUNTED = 1000
"""Records that are counted before a message says "or more"; bounds the memory that a wrong table takes."""


@dataclass(frozen=True, eq=False)
class Careers:
    """The records of many persons, sorted by person and year. Build one with ``validated`` or ``read``."""

    table: pl.DataFrame
    """Columns and types of ``COLUMNS``; ``log_wage`` is the natural log of hourly pay in dollars of the year."""
    dataset: str
    taxonomy: Taxonomy
    source: str
    """One line: where the data come from."""

    @classmethod
    def validated(
        cls, table: pl.DataFrame, *, dataset: str, taxonomy: Taxonomy, source: str, rows: pl.Series | None = None
    ) -> Self:
        """Careers from a table with some or all of ``COLUMNS``; what is optional and absent becomes null.

        Values are cast where nothing is lost and never repaired. One DataError names all that is wrong, with
        the ``rows`` of the records in their file, from 1; by default their places in the table.
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
            lines = [f"dataset {dataset!r} ({source}) breaks the rules of a careers table:", *problems]
            raise DataError("\n- ".join(lines))
        return cls(ours, dataset, taxonomy, source)

    def __len__(self) -> int:
        """The number of records N."""
        return self.table.height

    @property
    def persons(self) -> int:
        """The number of persons P."""
        return len(self.person_starts) - 1

    @cached_property
    def person_starts(self) -> NDArray[np.int64]:
        """Row at which each person's records begin, and N at the end; shape (P + 1,)."""
        ids = self.table["person_id"]
        starts = ids.ne_missing(ids.shift()).arg_true().to_numpy()
        return np.append(starts, len(self)).astype(np.int64)

    @cached_property
    def previous(self) -> pl.Series:
        """The occupation of the person's record before, null at the first; shape (N,)."""
        return self.table.select(
            pl.when(_same_person()).then(pl.col("occupation").shift()).alias("previous")
        ).to_series()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of all records, the dataset's name and the taxonomy."""
        fingerprint = Fingerprint()
        fingerprint.add(self.table)
        return fingerprint.hexdigest(self.dataset, self.taxonomy)

    def select_persons(self, ids: Iterable[str]) -> Self:
        """The careers of some persons, in the order of the table."""
        wanted = pl.Series("person_id", list(ids), dtype=pl.String).unique()
        chosen = replace(self, table=self.table.filter(pl.col("person_id").is_in(wanted.implode())))
        if chosen.persons < len(wanted):
            absent = sorted(set(wanted) - set(chosen.table["person_id"].unique()))
            raise DataError(
                f"{len(absent)} of {len(wanted)} persons are not in dataset {self.dataset!r}, such as "
                f"{', '.join(map(repr, absent[:SHOWN]))}"
            )
        return chosen

    def write(self, path: Path) -> None:
        """Write one Parquet file that ``read`` takes back; a reader never sees half of it."""
        write_parts([self], path)

    @classmethod
    def read(cls, path: Path) -> Self:
        """What ``write`` wrote, with its taxonomy; DataError if the file is missing or something else."""
        facts = _facts(path)
        return cls(pl.read_parquet(path), facts["dataset"], Taxonomy.from_json(facts["taxonomy"]), facts["source"])

    @classmethod
    def read_parts(cls, path: Path) -> Iterator[Self]:
        """What ``write_parts`` wrote, part by part: whole persons, in the order of the table."""
        facts = _facts(path)
        taxonomy = Taxonomy.from_json(facts["taxonomy"])
        metadata, start = pq.read_metadata(path), 0
        for group in range(metadata.num_row_groups):
            records = metadata.row_group(group).num_rows
            table = pl.scan_parquet(path).slice(start, records).collect()
            yield cls(table, facts["dataset"], taxonomy, facts["source"])
            start += records


def write_parts(parts: Iterable[Careers], path: Path) -> str:
    """Write careers that come in parts into one Parquet file, a row group each; returns their fingerprint.

    Parts are of one dataset; persons ascend from part to part, and nobody is in two of them. No more than one is
    in memory; a reader of the file never sees half of it, and none is left behind by an error.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        facts = _write_parts(parts, partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return facts["fingerprint"]


def _write_parts(parts: Iterable[Careers], path: Path) -> dict[str, str]:
    """Write parts while the next ones are being read; returns the file's facts."""
    schema = pl.DataFrame(schema=COLUMNS).to_arrow(compat_level=pl.CompatLevel.oldest()).schema
    fingerprint = Fingerprint()
    last: Careers | None = None
    done: Future[None] | None = None
    with ThreadPoolExecutor(1) as background, pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for part in parts:
            if last is not None and done is not None:
                done.result()
                if part.table["person_id"][0] <= last.table["person_id"][-1]:
                    raise ValueError("persons of the parts of a dataset must ascend")
            done = background.submit(_write_part, part.table, writer, fingerprint)
            last = part
        if last is None or done is None:
            raise DataError("there are no careers to write")
        done.result()
        facts = {
            "dataset": last.dataset,
            "source": last.source,
            "fingerprint": fingerprint.hexdigest(last.dataset, last.taxonomy),
            "taxonomy": last.taxonomy.to_json(),
        }
        writer.add_key_value_metadata({METADATA: json.dumps(facts)})
    return facts


def _write_part(table: pl.DataFrame, writer: pq.ParquetWriter, fingerprint: "Fingerprint") -> None:
    writer.write_table(table.to_arrow(compat_level=pl.CompatLevel.oldest()), row_group_size=table.height)
    fingerprint.add(table)


class Fingerprint:
    """SHA-256 of a careers table that may come in parts of whole persons; it does not depend on the parts.

    What is hashed of every column are the runs of equal values within a person: how long, and which value. What
    a valid table cannot hold stands for null: a control character, a number that is not finite, a year before
    all others.
    """

    def __init__(self) -> None:
        self._lengths = {name: hashlib.sha256() for name in COLUMNS}
        self._values = {name: hashlib.sha256() for name in COLUMNS}

    def add(self, table: pl.DataFrame) -> None:
        """More records, after those that were added before."""
        starts = ~_same_person()
        for name in COLUMNS:
            column = pl.col(name)
            rows = table.select((starts | column.ne_missing(column.shift())).arg_true()).to_series()
            lengths = np.diff(rows.to_numpy(), append=table.height).astype(np.int32)
            self._lengths[name].update(lengths.tobytes())
            self._values[name].update(_as_bytes(table[name].gather(rows)))

    def hexdigest(self, dataset: str, taxonomy: Taxonomy) -> str:
        """The fingerprint of all that was added."""
        columns = [digest.hexdigest() for digest in (*self._lengths.values(), *self._values.values())]
        return hashlib.sha256("\n".join([dataset, taxonomy.to_json(), *columns]).encode()).hexdigest()


def _as_bytes(values: pl.Series) -> bytes:
    """The values of a valid column one after the other, such that two columns of the same bytes are equal."""
    if values.dtype == pl.String:
        lines: str = (values.fill_null("\0") + "\n").str.join("").item()
        return lines.encode()
    unknown = math.nan if values.dtype.is_float() else -(2**31)
    return values.fill_null(unknown).to_numpy().tobytes()


def _facts(path: Path) -> dict[str, str]:
    """Dataset, source, fingerprint and taxonomy of a careers file; DataError if it is none."""
    if not path.is_file():
        raise DataError(f"no careers file at {path}: check the path, or prepare the dataset first")
    try:
        metadata, schema = pl.read_parquet_metadata(path), pl.read_parquet_schema(path)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}") from error
    if METADATA not in metadata:
        raise DataError(f"labor-llm did not write {path}: import it with dataset=table dataset.raw={path}")
    if schema != COLUMNS:
        raise DataError(f"{path} was written by another version of labor-llm: delete it and prepare it again")
    facts: dict[str, str] = json.loads(metadata[METADATA])
    return facts


@dataclass(frozen=True)
class Splits:
    """Careers in three parts; no person is in two of them."""

    train: Careers
    valid: Careers
    test: Careers


class Split(ABC):
    """Divides the persons of a dataset into train, valid and test."""

    PARTS: ClassVar = ("train", "valid", "test")

    @abstractmethod
    def assign(self, careers: Careers) -> NDArray[np.intp]:
        """The part of every person, as a place in ``PARTS``, in the order of the table; shape (P,)."""

    @abstractmethod
    def wants(self, part: str) -> bool:
        """Whether a part should have persons."""

    def __call__(self, careers: Careers) -> Splits:
        """Split the persons; DataError if a part that should have some of them gets none."""
        parts_N = pl.Series(np.repeat(self.assign(careers), np.diff(careers.person_starts)))
        splits = Splits(*(replace(careers, table=careers.table.filter(parts_N == part)) for part in range(3)))
        for part in self.PARTS:
            if self.wants(part) and len(getattr(splits, part)) == 0:
                raise DataError(
                    f"{part} gets nobody of the {careers.persons} persons of dataset {careers.dataset!r}: too few "
                    "persons, or too small a share. Use more persons or other shares."
                )
        return splits


Share = Annotated[float, Field(ge=0, le=1)]


@settings(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class SplitByPerson(Split):
    """Three parts by a salted hash of the person's identifier: more persons, or fewer, move nobody.

    With u = (first 8 hex digits of SHA-256 of "salt:person_id") / 2**32, a person is in train if u < train,
    in valid if u < train + valid, and else in test.
    """

    train: Share = 0.7
    valid: Share = 0.1
    test: Share = 0.2
    salt: str = "labor-llm"

    def __post_init__(self) -> None:
        total = self.train + self.valid + self.test
        if not math.isclose(total, 1):
            raise ValueError(f"the shares train, valid and test must sum to 1, and sum to {total:g}")

    def assign(self, careers: Careers) -> NDArray[np.intp]:
        ids = self._ids(careers.table["person_id"].gather(careers.person_starts[:-1]))
        return np.searchsorted([self.train, self.train + self.valid], hashed_places(ids, self.salt), side="right")

    def wants(self, part: str) -> bool:
        return bool(getattr(self, part) > 0)

    def _ids(self, person_ids: pl.Series) -> pl.Series:
        """What is hashed of every person."""
        return person_ids


def own_ids(person_ids: pl.Expr) -> pl.Expr:
    """The person_id that a person has in their own dataset, pooled or not."""
    return person_ids.str.replace(f"^.*?{SOURCE_MARK}", "")


def hashed_places(person_ids: pl.Series, salt: str) -> NDArray[np.float64]:
    """A number in [0, 1) for every person: the first 32 bits of SHA-256 of "salt:person_id", over 2**32."""
    texts = map(str.encode, f"{salt}:" + person_ids)
    first_bytes = b"".join([hashlib.sha256(text).digest()[:4] for text in texts])
    return np.frombuffer(first_bytes, ">u4") / 2**32


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
    numbers = column.cast(pl.Float64, strict=False)
    if dtype == pl.Float64:
        return numbers
    whole = numbers.set(~numbers.is_finite() | (numbers != numbers.floor()), None)
    return whole.cast(pl.Int64, strict=False).cast(dtype, strict=False)


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


def _same_person() -> pl.Expr:
    """Whether a record of a sorted table follows another one of the same person."""
    return (pl.col("person_id") == pl.col("person_id").shift()).fill_null(False)


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
        lambda column: ~_same_person() | column.eq_missing(column.shift()),
    ),
    (["year"], "must be a calendar year in {}..{}".format(*YEARS), lambda year: year.is_between(*YEARS)),
    (
        ["year"],
        "must not occur twice for a person: keep one record a year, such as the main job",
        lambda year: ~_same_person() | (year != year.shift()),
    ),
    (["birth_year"], "must not lie after the year of the record", lambda birth: birth <= pl.col("year")),
    (["log_wage", "weight"], "must be finite, and null where unknown", lambda column: column.is_finite()),
    (["weight"], "must not be negative", lambda weight: weight >= 0),
)


def _rule_problems(table: pl.DataFrame, rows_N: pl.Series, taxonomy: Taxonomy, explained: set[str]) -> list[str]:
    """A sentence for every rule that some record of a sorted table breaks.

    ``rows_N`` is each record's row in its file, from 1. Nulls in the columns ``explained`` follow from a
    problem that has been reported already.
    """
    codes = f"must be a code of the taxonomy: {taxonomy.unknown(table['occupation'].drop_nulls().unique())}"
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
