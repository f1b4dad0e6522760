"""Counts of a dataset, the page that shows them, and made-up careers."""

from io import StringIO
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from conftest import TRAIN
from polars.testing import assert_frame_equal
from rich.console import Console

from labor_llm.careers import Careers, write_parts
from labor_llm.datasets import read
from labor_llm.datasets.wage_panel import SPLIT, WagePanel
from labor_llm.description.counts import describe
from labor_llm.description.page import page
from labor_llm.description.typical import typical_careers
from labor_llm.splits import SplitByPerson


@pytest.fixture(scope="module")
def careers():
    return read(WagePanel())


@pytest.fixture(scope="module")
def description(careers):
    return describe([careers], SPLIT)


def test_counts_are_those_of_plain_loops(careers, description):
    table = careers.table
    assert (description.persons, description.records) == (545, 4360)
    assert dict(description.splits.select("part", "persons").iter_rows()) == {
        "train": 376,
        "valid": 53,
        "test": 116,
    }
    rows = list(table.select("person_id", "occupation").iter_rows())
    pairs = [(a[1], b[1]) for a, b in pairwise(rows) if a[0] == b[0]]
    assert description.stay_rate == pytest.approx(np.mean([a == b for a, b in pairs]))
    counted = {
        (a, b): n for a, b, n in description.transitions.select("previous", "occupation", "records").iter_rows()
    }
    assert all(counted[pair] == pairs.count(pair) for pair in set(pairs))
    movers = {a[0] for a, b in pairwise(rows) if a[0] == b[0] and (a[1], b[1]) == ("5", "6")}
    assert description.transitions.filter(previous="5", occupation="6")["persons"].item() == len(movers)
    assert description.known.filter(column="region")["records"].item() == 0
    assert description.lengths.rows() == [(8, 4360, 545)]


def test_a_description_does_not_depend_on_the_parts(careers, description, tmp_path):
    ids = careers.table["person_id"].unique().sort()
    parts = [careers.select_persons(ids[start : start + 50]) for start in range(0, len(ids), 50)]
    write_parts(parts, tmp_path / "careers.parquet")
    again = describe(Careers.read_parts(tmp_path / "careers.parquet"), SPLIT)
    for name in ("splits", "years", "occupations", "transitions", "values", "known", "lengths"):
        assert_frame_equal(getattr(again, name), getattr(description, name))


def shown(description, smallest) -> str:
    console = Console(file=StringIO(), width=200)
    for block in page(description, ["a career"], smallest):
        console.print(block)
    return console.file.getvalue()


def test_small_cells_are_withheld_and_not_named(description):
    everything, little = shown(description, 1), shown(description, 400)
    (line,) = [line for line in everything.splitlines() if line.split()[:1] == ["college"]]
    assert line.split()[1:] == ["32", "0.7%", "4"]
    assert "college" not in little
    assert "4 more, left out to tell of no fewer than 400 persons" in little
    assert "Professional, technical" in everything
    assert "Professional, technical" not in little


def test_a_total_does_not_tell_the_only_small_cell(description):
    """Four of 545 persons went to college: they are left out with the next smallest group."""
    few = shown(description, 10)
    assert "2 more, left out to tell of no fewer than 10 persons" in few
    education = few[few.index("Education") : few.index("2 more")]
    assert "high school" in education
    assert "college" not in education


def test_made_up_careers_hold_nothing_that_only_few_persons_have():
    description = describe([TRAIN], SplitByPerson())
    made = typical_careers(description, 20, smallest=10, seed=1)
    common = description.occupations.filter(pl.col("persons") >= 10)["occupation"]
    assert set(made.table["occupation"]) <= set(common)
    assert typical_careers(description, 20, smallest=10, seed=1).table.equals(made.table)
    assert typical_careers(description, 2, smallest=10**6) is None
