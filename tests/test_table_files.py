"""Damaged tables: one sentence, whatever the reader of the format raises."""

from pathlib import Path

import pandas as pd
import polars as pl
import pytest

from labor_llm.datasets import read
from labor_llm.datasets.table import Table
from labor_llm.datasets.table_files import readable
from labor_llm.errors import DataError

FRAME = pd.DataFrame(
    {"person_id": ["a", "b"], "year": [2001, 2002], "occupation": "095", "wage": 5.0, "gage": 6.0}
)


def test_a_stata_file_with_two_columns_of_one_name_is_refused(tmp_path):
    path = tmp_path / "t.dta"
    FRAME.to_stata(path, write_index=False)
    path.write_bytes(path.read_bytes().replace(b"gage", b"wage"))
    with pytest.raises(DataError, match=r"t\.dta is not readable as Stata file: .*non-unique"):
        read(Table(name="mine", raw=path, survey="S"))


@pytest.mark.parametrize("ending", ["parquet", "dta", "xlsx"])
def test_what_remains_of_a_file_is_refused(tmp_path, ending):
    path = tmp_path / f"t.{ending}"
    writers = {"parquet": FRAME.to_parquet, "dta": FRAME.to_stata, "xlsx": FRAME.to_excel}
    writers[ending](path)
    whole = path.read_bytes()
    for length in range(1, len(whole) // 2, len(whole) // 40):
        path = tmp_path / f"{length}.{ending}"  # a file of its own: readers may still have mapped the one before
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match="is not readable as"):
            read(Table(name="mine", raw=path, survey="S"))


def test_a_reader_that_panics_is_a_damaged_file():
    with pytest.raises(DataError, match=r"t\.parquet is not readable"), readable(Path("t.parquet")):
        raise pl.exceptions.PanicException("called `Option::unwrap()` on a `None` value")


@pytest.mark.parametrize("column", ["gender", "occupation", "year", "wage", "person_id"])
@pytest.mark.parametrize("value", [["x"], {"x": 1}])
def test_a_column_of_lists_is_refused(tmp_path, column, value):
    table = pl.from_pandas(FRAME[:1].drop(columns="gage")).with_columns(pl.Series(column, [value]))
    table.write_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match=rf"{column}: .*(must be|is of type)"):
        read(Table(name="mine", raw=tmp_path / "t.parquet", survey="S"))
