"""Long tables that do not fit into memory, read in parts of whole persons."""

from collections.abc import Iterator

import polars as pl

RECORDS_PER_PART = 2_000_000
SAMPLE = 100_000
"""Rows whose persons say where parts are cut."""


def by_person(scan: pl.LazyFrame, person: pl.Expr, records: int) -> Iterator[pl.DataFrame]:
    """The rows of a scan of so many records, in parts: persons ascend as text, nobody is in two parts.

    The rows of a part stand in the order of the file. ``person``: the column, as text. Every part reads the
    scan again, so a scan should be cheap: Parquet, where only the persons are decoded for all rows.
    """
    parts = -(-records // RECORDS_PER_PART)
    if parts <= 1:
        yield scan.collect()
        return
    every = max(1, records // SAMPLE)
    sample = scan.select(person.gather_every(every).alias("person")).collect(engine="streaming")["person"]
    places = [len(sample) * part // parts for part in range(1, parts)]
    cuts = sample.drop_nulls().sort().gather(places).unique(maintain_order=True).to_list()
    for low, high in zip([None, *cuts], [*cuts, None], strict=True):
        rows = scan
        if low is not None:
            rows = rows.filter(person >= low)
        if high is not None:
            rows = rows.filter((person < high).fill_null(low is None))  # unknown persons: refused with the first
        part = rows.collect(engine="streaming")
        if not part.is_empty():
            yield part
