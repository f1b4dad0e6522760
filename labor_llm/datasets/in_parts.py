"""Long tables that do not fit into memory, read in parts of whole persons."""

from collections.abc import Iterator

import numpy as np
import polars as pl
from numpy.typing import NDArray

RECORDS_PER_PART = 2_000_000
SAMPLE = 100_000
"""Rows whose persons say where parts are cut."""
RUNS = 1_000
"""Runs of rows of one part up to which they are read one by one; else the scan is searched for them."""


def by_person(scan: pl.LazyFrame, person: pl.Expr, records: int) -> Iterator[pl.DataFrame]:
    """The rows of a scan of so many records, in parts: persons ascend as text, nobody is in two parts.

    The rows of a part stand in the order of the file. ``person``: the column, as text. A scan should be cheap to
    begin anywhere, such as Parquet: a part reads its own rows if they stand together, else all persons.
    """
    parts = -(-records // RECORDS_PER_PART)
    if parts <= 1:
        yield scan.collect()
        return
    every = max(1, records // SAMPLE)
    sample = scan.select(person.gather_every(every).alias("person")).collect(engine="streaming")["person"]
    places = [len(sample) * part // parts for part in range(1, parts)]
    cuts = sample.drop_nulls().sort().gather(places).unique(maintain_order=True).to_list()
    of_part = pl.sum_horizontal((person >= cut).fill_null(False).cast(pl.UInt16) for cut in cuts)
    parts_N = scan.select(of_part.alias("part")).collect(engine="streaming")["part"].to_numpy()
    starts = np.flatnonzero(np.append(True, parts_N[1:] != parts_N[:-1]))
    for part in range(len(cuts) + 1):
        rows = _of_part(scan, of_part, parts_N, starts, part)
        if not rows.is_empty():
            yield rows


def _of_part(
    scan: pl.LazyFrame, of_part: pl.Expr, parts_N: NDArray[np.uint16], starts: NDArray[np.int64], part: int
) -> pl.DataFrame:
    """The rows of one part; ``starts``: the rows at which runs of rows of one part begin."""
    if len(starts) > RUNS:
        return scan.filter(of_part == part).collect(engine="streaming")
    ends = np.append(starts[1:], len(parts_N))
    own = np.flatnonzero(parts_N[starts] == part)
    runs = [scan.slice(int(starts[run]), int(ends[run] - starts[run])) for run in own]
    return pl.concat([rows.collect() for rows in runs]) if runs else scan.clear().collect()
