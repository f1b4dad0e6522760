"""Years and birth years: numbers and dates that are years, and those that are none."""

from datetime import date, datetime, timedelta

import pandas as pd
import polars as pl
import pytest

from labor_llm.datasets import read
from labor_llm.datasets.table import Table
from labor_llm.errors import DataError


def _read(path, year, birth_year):
    columns = {"person_id": ["a"], "occupation": ["095"], "year": [year], "birth_year": [birth_year]}
    if path.suffix == ".parquet":
        pl.DataFrame(columns).write_parquet(path)
    elif path.suffix == ".csv":
        pl.DataFrame(columns).write_csv(path)
    elif path.suffix == ".xlsx":
        pd.DataFrame(columns).to_excel(path, index=False)
    else:
        dates = {name: "td" for name in ("year", "birth_year") if isinstance(columns[name][0], date)}
        frame = pd.DataFrame(columns).astype(dict.fromkeys(dates, "datetime64[ns]"))
        frame.to_stata(path, write_index=False, convert_dates=dates)
    return read(Table(name="mine", raw=path, survey="S")).table.select("year", "birth_year").row(0)


@pytest.mark.parametrize("ending", ["parquet", "csv", "xlsx", "dta"])
def test_dates_are_read_as_their_years(tmp_path, ending):
    path = tmp_path / f"t.{ending}"
    assert _read(path, date(1975, 12, 31), datetime(1934, 1, 1)) == (1975, 1934)
    assert _read(path, 1975, date(1934, 5, 1)) == (1975, 1934)


@pytest.mark.parametrize("ending", ["parquet", "csv", "dta"])
@pytest.mark.parametrize("birth_year", [-5, -1, 0, 5, 62, 99, 1864, 1976, 9998, 19340501])
def test_who_would_be_no_0_to_110_years_old_is_refused_with_row_and_cure(tmp_path, ending, birth_year):
    found = rf"Found {birth_year} \(row 1: person 'a', 19"
    message = f"birth_year: must make the person 0 to 110 years.*recodes.*{found}"
    with pytest.raises(DataError, match=message):
        _read(tmp_path / f"t.{ending}", 1975, birth_year)


@pytest.mark.parametrize("birth_year", [1865, 1975])
def test_the_oldest_and_the_youngest_are_taken(tmp_path, birth_year):
    assert _read(tmp_path / "t.csv", 1975, birth_year) == (1975, birth_year)


@pytest.mark.parametrize("year", [75, -1975, 197504, True, timedelta(days=1975)])
@pytest.mark.parametrize("column", ["year", "birth_year"])
def test_what_is_no_year_is_refused(tmp_path, column, year):
    years = {"year": 1975, "birth_year": 1934} | {column: year}
    with pytest.raises(DataError, match=rf"{column}: must (be|make)"):
        _read(tmp_path / "t.parquet", **years)


@pytest.mark.parametrize("year", ["2.0e+03", "75", "01/04/1975", "April 1975", "1975.5"])
def test_text_that_is_no_year_is_refused(tmp_path, year):
    with pytest.raises(DataError, match=r"year: must be a (whole number|calendar year)"):
        _read(tmp_path / "t.csv", year, 1934)


@pytest.mark.parametrize("column", ["weight", "log_wage", "wage"])
@pytest.mark.parametrize("value", [True, date(1975, 4, 1), timedelta(hours=3)])
def test_what_is_no_number_is_none(tmp_path, column, value):
    path = tmp_path / "t.parquet"
    pl.DataFrame({"person_id": ["a"], "occupation": ["095"], "year": [1975], column: [value]}).write_parquet(path)
    with pytest.raises(DataError, match=rf"{column}: must be a number"):
        read(Table(name="mine", raw=path, survey="S", columns={column: column}))


@pytest.mark.parametrize("dtype", [pl.Categorical, pl.Enum(["1975", "1950-06-01", "2.5"])])
def test_categories_are_read_as_their_text(tmp_path, dtype):
    columns = {"year": "1975", "birth_year": "1950-06-01", "wage": "2.5"}
    who = {"person_id": ["a"], "occupation": ["095"]}
    table = pl.DataFrame(who | {name: pl.Series([text], dtype=dtype) for name, text in columns.items()})
    table.write_parquet(tmp_path / "t.parquet")
    careers = read(Table(name="mine", raw=tmp_path / "t.parquet", survey="S")).table
    assert careers.select("year", "birth_year").row(0) == (1975, 1950)
    assert careers["log_wage"].to_list() == pytest.approx([0.9162907])
