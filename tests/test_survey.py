import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labor_llm.datasets.report import Report
from labor_llm.datasets.survey import STATUSES, careers_of
from labor_llm.errors import DataError
from labor_llm.schemes import codes_of

TEXT = {"person_id": pl.String, "year": pl.Int32, "scheme": pl.String, "code": pl.String, "status": pl.String}


def years(*rows) -> pl.DataFrame:
    """Person-years: person_id, year, scheme, code, status."""
    return pl.DataFrame(rows, schema=TEXT, orient="row").with_columns(survey=pl.lit("S"))


def made(table: pl.DataFrame, taxonomy="occ1990dd"):
    report = Report()
    schemes = ["census1970", "census2000"]
    return careers_of(table, schemes, taxonomy, report, dataset="made", source="a test"), report


def test_a_state_counts_before_the_code_of_the_last_job():
    careers, report = made(
        years(
            ("a", 1980, "census1970", "75", "employed"),
            ("a", 1981, "census1970", "75", "unemployed"),
            ("a", 1982, "census1970", "75", None),
            ("a", 1983, None, None, "in_school"),
            ("a", 1984, "census1970", "580", "employed"),
            ("a", 2002, "census2000", "313", "employed"),
        )
    )
    assert careers.table["occupation"].to_list() == ["095", "unemployed", "095", "in_school", "military", "095"]
    assert report.dropped == {}
    assert report.codes == {"found": 4, "carried": 4}, "the last job of who is unemployed does not count"


def test_every_record_that_is_left_out_is_counted_with_its_reason():
    careers, report = made(
        years(
            ("a", 1980, "census1970", "75", "employed"),
            ("a", 1981, None, None, "employed"),
            ("b", 1981, None, None, None),
            ("b", 1982, "census1970", "995", "employed"),
            ("b", 1983, "census1970", "999999", None),
            ("c", 1983, "census1970", "995", None),
        )
    )
    assert len(careers) == 1
    assert report.dropped == {
        "at work, occupation not known": {"persons": 1, "records": 1},
        "neither a job nor a state is known": {"persons": 1, "records": 1},
        "the occupation code has no counterpart in occ1990dd": {"persons": 2, "records": 3},
    }
    assert report.unmapped.rows() == [
        ("census1970", "995", "Did not work, or not reported", 2, 2),
        ("census1970", "999999", None, 1, 1),
    ]
    assert report.codes == {"found": 4, "carried": 1}
    assert report.steps == {
        "person-years in the source": {"persons": 3, "records": 6},
        "records with an occupation or a state": {"persons": 1, "records": 1},
    }


def test_a_code_counts_in_its_own_scheme_only():
    careers, _ = made(years(("a", 1980, "census1970", "313", None), ("a", 2002, "census2000", "313", None)))
    assert careers.table.select("year", "occupation").rows() == [(1980, "378"), (2002, "095")]


def test_errors_name_the_row_of_the_person_year():
    twice = years(
        ("a", 1980, "census1970", "75", None), ("b", 1980, None, None, None), ("a", 1980, None, None, "in_school")
    )
    with pytest.raises(DataError, match=r"must not occur twice.*Found 1980 \(row [13]: person 'a', 1980\)"):
        made(twice)


codes = st.sampled_from(["census1970", "census2000"]).flatmap(
    lambda scheme: st.tuples(st.just(scheme), st.sampled_from(codes_of(scheme)["code"].to_list()))
)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.none() | codes, st.none() | st.sampled_from(STATUSES)), min_size=1, max_size=12))
def test_nothing_is_lost_without_being_counted(rows):
    table = years(
        *(("p", 1950 + n, *(code or (None, None)), status) for n, (code, status) in enumerate(rows)),
        ("q", 1990, None, None, "in_school"),
    )
    careers, report = made(table)
    dropped = sum(line["records"] for line in report.dropped.values())
    assert len(careers) + dropped == table.height
    assert report.unmapped["records"].sum() == sum(
        line["records"] for reason, line in report.dropped.items() if "counterpart" in reason
    )
