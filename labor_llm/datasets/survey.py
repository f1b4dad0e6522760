"""What the readers of surveys share: a person-year with the code of a job, or a state, becomes a record.

A reader builds one table of person-years with the columns of a careers table, but instead of ``occupation``

    scheme, code   the coding scheme and the code of the year's main job, as text without leading zeros, or null
    status         one of STATUSES, or null where unknown

and hands it to ``careers_of``. What a record says is decided here, alike for all surveys: a state counts before
a code, since surveys ask those who do not work for their last job.
"""

from collections.abc import Sequence

import polars as pl

from labor_llm.careers import Careers
from labor_llm.columns import COLUMNS
from labor_llm.datasets.report import Report
from labor_llm.schemes import Target, crosswalk

EMPLOYED = "employed"
EDUCATION = ("less than high school", "high school", "some college", "college", "graduate")
"""Levels of education in the words of all surveys, from the lowest."""
STATES = ("in_school", "unemployed", "out_of_labor_force", "not_working", "military")
"""States of the taxonomies; ``not_working``: unemployed or out of the labor force, the survey does not say."""
STATUSES = (EMPLOYED, *STATES)


def careers_of(
    years: pl.DataFrame,
    schemes: Sequence[str],
    taxonomy: Target,
    report: Report,
    *,
    dataset: str,
    source: str,
    rows: pl.Series | None = None,
) -> Careers:
    """Careers from person-years; what has neither a state nor a code that can be carried over is dropped.

    Every drop is counted in the report. ``schemes``: all that the survey uses. ``rows``: see Careers.validated.
    """
    known, table = crosswalk(schemes, taxonomy, f"{dataset}_native")
    years = years.with_columns(row=pl.int_range(1, pl.len() + 1) if rows is None else rows)
    report.count("person-years in the source", years)
    mapped = years.join(table, on=["scheme", "code"], how="left", maintain_order="left")
    state = pl.when(pl.col("status").is_in(STATES)).then("status")
    records = mapped.with_columns(occupation=pl.coalesce(state, "occupation"))
    lost = records.filter(pl.col("occupation").is_null())
    uncoded = pl.col("code").is_null()
    at_work = pl.col("status").eq_missing(EMPLOYED)
    report.drop("neither a job nor a state is known", lost.filter(uncoded & ~at_work))
    report.drop("at work, occupation not known", lost.filter(uncoded & at_work))
    report.drop(f"the occupation code has no counterpart in {known.name}", lost.filter(~uncoded))
    by_code = records.filter(pl.col("code").is_not_null() & ~pl.col("status").is_in(STATES).fill_null(False))
    report.carry(by_code, lost.filter(~uncoded))
    kept = records.filter(pl.col("occupation").is_not_null())
    report.count("records with an occupation or a state", kept)
    columns = [name for name in COLUMNS if name in kept.columns]
    return Careers.validated(
        kept.select(columns), dataset=dataset, taxonomy=known, source=source, rows=kept["row"]
    )
