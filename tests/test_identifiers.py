"""Identifiers of persons: one person however a program wrote the column, or an error."""

from dataclasses import replace
from datetime import date, datetime
from decimal import Decimal

import pandas as pd
import polars as pl
import pytest

from labor_llm import WagePanel
from labor_llm.datasets import in_parts, read
from labor_llm.datasets.report import Report
from labor_llm.datasets.table import Table
from labor_llm.errors import DataError
from labor_llm.models.base import person_hashes


def _table(path, ids, **types):
    """A record a year of persons with these identifiers, in a file."""
    years = list(range(2001, 2001 + len(ids)))
    table = pl.DataFrame({"person_id": pl.Series(ids, **types), "year": years, "occupation": ["095"] * len(ids)})
    if path.suffix == ".csv":
        table.write_csv(path)
    elif path.suffix == ".parquet":
        table.write_parquet(path)
    elif path.suffix == ".dta":
        table.to_pandas().to_stata(path, write_index=False)
    else:
        table.to_pandas().to_excel(path, index=False)
    return Table(name="mine", raw=path, survey="S")


@pytest.mark.parametrize(
    "ids",
    [
        ["1.0e+05", "100002"],
        ["1E+05", "x"],
        ["1.23457E+11", "b"],
        ["1,0E+05", "2"],
        ["1e16", "17"],
        ["2.5E10", "person"],
        ["1e-05", "3"],
    ],
)
def test_text_of_an_exponent_is_refused_with_its_row_and_cure(tmp_path, ids):
    message = r"person_id: '[\d.,eE+-]+' in row 2 is a number that lost digits\. .*format %15\.0f"
    with pytest.raises(DataError, match=message):
        read(_table(tmp_path / "t.csv", ids[::-1]))


@pytest.mark.parametrize(
    ("ids", "types"),
    [
        ([True, False], {}),
        ([date(2001, 2, 3)], {}),
        ([datetime(2001, 2, 3, 4)], {}),
        ([12.5, 1.0], {}),
        ([12.5, 1.0], {"dtype": pl.Float32}),
        ([2.0**53 + 2], {}),
        ([2.0**25], {"dtype": pl.Float32}),
        ([float("inf")], {}),
        ([Decimal("1.5")], {}),
        ([b"ab"], {}),
        ([[1, 2]], {}),
    ],
)
def test_a_column_that_is_no_identifier_is_refused(tmp_path, ids, types):
    with pytest.raises(DataError, match=r"person_id: .* in row 1 (is a fraction|is of type)"):
        read(_table(tmp_path / "t.parquet", ids, **types))


def test_identifiers_of_a_stata_float_that_has_no_room_for_their_digits_are_refused(tmp_path):
    frame = pd.DataFrame({"person_id": [123456789.0], "year": [2001], "occupation": ["095"]})
    frame.astype({"person_id": "float32"}).to_stata(tmp_path / "t.dta", write_index=False)
    with pytest.raises(DataError, match=r"more digits than a column of Float32 keeps.*recast double"):
        read(Table(name="mine", raw=tmp_path / "t.dta", survey="S"))


def test_a_person_is_the_same_in_whatever_type_and_format_their_number_is_written(tmp_path):
    whole = [100001, 7, 12, 100002]
    expected = read(_table(tmp_path / "t.csv", whole))
    parts = WagePanel().split.assign(expected)
    written = {
        "floats.csv": [float(one) for one in whole],
        "some.csv": ["100001", "7.0", "12.", "100002.00"],
        "floats.parquet": [float(one) for one in whole],
        "floats.dta": [float(one) for one in whole],
        "whole.dta": whole,
        "whole.xlsx": whole,
        "floats.xlsx": [float(one) for one in whole],
        "decimals.parquet": [Decimal(one) for one in whole],
        "text.parquet": [f"{one}.0" for one in whole],
    }
    for name, ids in written.items():
        table = read(_table(tmp_path / name, ids))
        assert table.table["person_id"].to_list() == expected.table["person_id"].to_list(), name
        assert WagePanel().split.assign(table).tolist() == parts.tolist()


def test_decimals_beside_whole_numbers_are_one_person_and_noted_in_parts_too(tmp_path, monkeypatch):
    table = _table(tmp_path / "t.csv", ["12", "3", "12.0", "9", "12.0", "5"])
    monkeypatch.setattr(in_parts, "RECORDS_PER_PART", 2)
    report = Report()
    careers = read(table, report)
    assert careers.persons == 4
    assert careers.table.filter(person_id="12")["year"].to_list() == [2001, 2003, 2005]
    assert [note for note in report.notes if "12.0 as 12" in note]


@pytest.mark.parametrize(
    "ids", [["12.1", "12.0", "12"], ["12e4", "12f4"], ["007", "b7"], ["a::1", "b::1"], ["ab 1", "ab-1"]]
)
def test_names_stay_as_they_are(tmp_path, ids):
    report = Report()
    careers = read(_table(tmp_path / "t.csv", ids), report)
    assert set(careers.table["person_id"]) == set(ids)
    assert report.notes == []


def test_a_number_with_and_without_leading_zeros_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"'0012' and '12' may be one person"):
        read(_table(tmp_path / "t.csv", ["0012", "5", "12"]))
    assert read(_table(tmp_path / "t.csv", ["0012", "0005"])).persons == 2


def test_a_mark_of_pools_means_nothing_in_other_data():
    careers = read(WagePanel())
    marked = replace(careers, table=careers.table.with_columns(person_id="w::" + pl.col("person_id")))
    assert not person_hashes(careers) & person_hashes(marked)
    pooled = replace(marked, source="pool of wage_panel")
    assert person_hashes(pooled) == person_hashes(careers)


@pytest.mark.parametrize(
    ("ids", "what"),
    [
        (["TRUE", "FALSE"], "'TRUE' in row 1 is a truth value"),
        (["2001-02-03", "2001-02-04"], "'2001-02-03' in row 1 is a date"),
        (["3/4/2001", "11/12/01"], "'3/4/2001' in row 1 is a date"),
        (["a", "NaN"], "'NaN' in row 2 stands for no number"),
        (["7", "#####"], "'#####' in row 2 stands for no number"),
        (["7", ".b"], "'.b' in row 2 stands for no number"),
        (["-inf", "7"], "'-inf' in row 1 stands for no number"),
    ],
)
def test_text_that_is_no_identifier_is_refused(tmp_path, ids, what):
    with pytest.raises(DataError, match=rf"person_id: {what}"):
        read(_table(tmp_path / "t.csv", ids))


@pytest.mark.parametrize(
    "forms",
    [
        ("1,234", "1234"),
        ("1,000", "1000"),
        ("+12", "12"),
        ("-012", "-12"),
        ("'012", "012"),
        ('="012"', "012"),
        ("0012.0", "12"),
    ],
)
def test_two_forms_of_one_number_are_refused(tmp_path, forms):
    with pytest.raises(DataError, match=r"^person_id: .* and .* may be one person"):
        read(_table(tmp_path / "t.csv", ["5", *forms]))


@pytest.mark.parametrize(
    "ids", [["1,000", "2,000"], ["2001-02-03", "x"], ["true", "blue"], ["nan1", "#7"], ["-1", "1"]]
)
def test_names_that_resemble_numbers_stay_as_they_are(tmp_path, ids):
    assert set(read(_table(tmp_path / "t.csv", ids)).table["person_id"]) == set(ids)


def test_negative_decimals_are_whole_numbers_too(tmp_path):
    assert read(_table(tmp_path / "t.csv", ["-12.0", "-12"])).table["person_id"].to_list() == ["-12", "-12"]
