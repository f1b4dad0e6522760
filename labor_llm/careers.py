"""The careers table: one row per person and year, checked once on the way in.

Every step works on whole columns, so that tens of millions of records pass.
Shapes: N records, P persons.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from numpy.typing import NDArray

from labor_llm import parquet_files
from labor_llm.columns import COLUMNS, SHOWN, same_person, valid_table
from labor_llm.errors import DataError
from labor_llm.taxonomy import Taxonomy

METADATA = "labor_llm"


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
        ours = valid_table(table, taxonomy, rows, f"dataset {dataset!r} ({source})")
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
            pl.when(same_person()).then(pl.col("occupation").shift()).alias("previous")
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
        table = parquet_files.scanned(path).collect()
        return cls(table, facts["dataset"], Taxonomy.from_json(facts["taxonomy"]), facts["source"])

    @classmethod
    def read_parts(cls, path: Path) -> Iterator[Self]:
        """What ``write_parts`` wrote, part by part: whole persons, in the order of the table."""
        facts = _facts(path)
        taxonomy = Taxonomy.from_json(facts["taxonomy"])
        metadata, start = pq.read_metadata(path.absolute()), 0
        for group in range(metadata.num_row_groups):
            records = metadata.row_group(group).num_rows
            table = parquet_files.scanned(path).slice(start, records).collect()
            yield cls(table, facts["dataset"], taxonomy, facts["source"])
            start += records


def write_parts(parts: Iterable[Careers], path: Path) -> str:
    """Write careers that come in parts into one Parquet file, a row group each; returns their fingerprint.

    Parts are of one dataset; persons ascend from part to part, and nobody is in two of them. No more than one is
    in memory; a reader of the file never sees half of it, and none is left behind by an error.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        facts = _write_parts(parts, partial.absolute())
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
    with (
        ThreadPoolExecutor(1) as background,
        pq.ParquetWriter(path, schema, compression="zstd") as writer,
    ):
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
        starts = ~same_person()
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
        metadata, schema = parquet_files.metadata(path), parquet_files.schema(path)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}") from error
    if METADATA not in metadata:
        raise DataError(f"labor-llm did not write {path}: import it with dataset=table dataset.raw={path}")
    if schema != COLUMNS:
        raise DataError(f"{path} was written by another version of labor-llm: delete it and prepare it again")
    facts: dict[str, str] = json.loads(metadata[METADATA])
    return facts
