"""Careers drawn from the counts of a dataset, so that its text can be shown without showing anybody's.

Every covariate is drawn by itself and every occupation from the one before; nothing is drawn that fewer than
``smallest`` persons have, and nobody if that leaves no occupation.
"""

from typing import Any

import numpy as np
import polars as pl

from labor_llm.careers import Careers
from labor_llm.columns import COLUMNS
from labor_llm.description.counts import PERSONS, RECORDS, Description

LENGTH = 8
"""Records of a career at most; all are in successive years that the dataset has."""
CONSTANT = ("survey", "gender", "ethnicity", "region", "education")


def typical_careers(description: Description, number: int, smallest: int, seed: int = 0) -> Careers | None:
    """Made-up careers of a described dataset; None if no occupation has so many persons."""
    if _most_frequent(description, smallest) is None:
        return None
    draw = np.random.default_rng(seed)
    rows = [row for person in range(number) for row in _career(description, f"made up {person}", smallest, draw)]
    table = pl.DataFrame(rows, schema={name: COLUMNS[name] for name in rows[0]})
    return Careers.validated(
        table, dataset=description.dataset, taxonomy=description.taxonomy, source="drawn from counts"
    )


def _career(
    description: Description, person: str, smallest: int, draw: np.random.Generator
) -> list[dict[str, Any]]:
    values = description.values.filter(pl.col(PERSONS) >= smallest)
    constant = {name: _drawn(values.filter(column=name), "value", draw) for name in CONSTANT}
    if constant["survey"] is None:
        constant["survey"] = description.dataset
    born = _drawn(values.filter(column="birth_year"), "value", draw)
    years = description.years.filter(pl.col(PERSONS) >= smallest)["year"].to_list()
    start = int(draw.integers(0, max(1, len(years) - LENGTH + 1)))
    if born is not None:
        start = max(start, sum(year < int(born) + 18 for year in years))
    transitions = description.transitions.filter(pl.col(PERSONS) >= smallest)
    rows, before = [], None
    for year in years[start : start + LENGTH] or years[-1:]:
        moves = transitions.filter(pl.col("previous").eq_missing(pl.lit(before)))
        before = _drawn(moves, "occupation", draw) or before or _most_frequent(description, smallest)
        rows.append({"person_id": person, "year": year, "occupation": before, "birth_year": born, **constant})
    return [row | {"birth_year": None if born is None else int(born)} for row in rows]


def _drawn(counts: pl.DataFrame, column: str, draw: np.random.Generator) -> str | None:
    """A value with the probability of its records; null if none has enough persons."""
    if counts.is_empty():
        return None
    weights = counts[RECORDS].to_numpy()
    value: str | None = counts[column][int(draw.choice(len(weights), p=weights / weights.sum()))]
    return value


def _most_frequent(description: Description, smallest: int) -> str | None:
    common = description.occupations.filter(pl.col(PERSONS) >= smallest).sort(RECORDS, descending=True)
    return None if common.is_empty() else common["occupation"][0]
