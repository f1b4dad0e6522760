from dataclasses import replace
from hashlib import sha256

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal, assert_series_equal
from pydantic import ValidationError

from labor_llm.careers import Careers
from labor_llm.columns import COLUMNS
from labor_llm.errors import DataError
from labor_llm.splits import SplitByPerson
from labor_llm.taxonomy import Taxonomy

TAXONOMY = Taxonomy.packaged("occ1990dd")
few = settings(max_examples=15, deadline=None)


def careers(table: pl.DataFrame) -> Careers:
    return Careers.validated(table, dataset="made", taxonomy=TAXONOMY, source="made for a test")


def crowd(persons: int) -> Careers:
    """Persons with two records each."""
    ids = [f"p{number}" for number in range(persons) for _ in range(2)]
    return careers(
        pl.DataFrame({"person_id": ids, "year": [1990, 1991] * persons, "survey": "S", "occupation": "095"})
    )


ids = st.integers(0, 9999).map(str)
words = st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=8).map(lambda text: f"a{text}z")
numbers = st.floats(allow_nan=False, allow_infinity=False)


@st.composite
def tables(draw) -> pl.DataFrame:
    """Tables that keep all rules, in any order of rows."""
    rows = []
    for person in draw(st.lists(words, min_size=1, max_size=4, unique=True)):
        constant = {
            "person_id": person,
            "survey": draw(words),
            "gender": draw(st.none() | words),
            "ethnicity": draw(st.none() | words),
            "birth_year": draw(st.none() | st.integers(1940, 1950)),
        }
        for year in draw(st.sets(st.integers(1950, 2050), min_size=1, max_size=4)):
            varying = {
                "year": year,
                "occupation": draw(st.sampled_from(TAXONOMY.codes)),
                "education": draw(st.none() | words),
                "region": draw(st.none() | words),
                "log_wage": draw(st.none() | numbers),
                "weight": draw(st.none() | numbers.map(abs)),
            }
            rows.append(constant | varying)
    return pl.DataFrame(draw(st.permutations(rows)), schema=COLUMNS)


@few
@given(tables())
def test_valid_tables_pass_and_come_back_from_parquet(tmp_path_factory, table):
    path = tmp_path_factory.mktemp("careers") / "careers.parquet"
    made = careers(table)
    made.write(path)
    again = Careers.read(path)
    assert_frame_equal(again.table, table.sort("person_id", "year"))
    assert (again.dataset, again.taxonomy, again.source) == (made.dataset, made.taxonomy, made.source)
    assert again.fingerprint == made.fingerprint
    assert [file.name for file in path.parent.iterdir()] == ["careers.parquet"]


WRONG = [
    ("person_id", None),
    ("person_id", "a\tb"),
    ("survey", None),
    ("survey", "NLSY\n79"),
    ("year", 1899),
    ("year", None),
    ("occupation", "95"),
    ("occupation", None),
    ("education", ""),
    ("region", "a\x85b"),
    ("gender", "two\nlines"),
    ("birth_year", 2100),
    ("birth_year", 57),
    ("birth_year", -5),
    ("log_wage", float("inf")),
    ("weight", float("nan")),
    ("weight", -1.0),
]


@few
@given(tables(), st.sampled_from(WRONG), st.data())
def test_one_wrong_value_is_refused_with_its_column(table, wrong, data):
    column, value = wrong
    row = data.draw(st.integers(0, len(table) - 1))
    corrupted = table.with_columns(
        pl.when(pl.int_range(pl.len()) == row).then(pl.lit(value, COLUMNS[column])).otherwise(column).alias(column)
    )
    with pytest.raises(DataError, match=f"(?m)^- {column}: (must|is required).*Found "):
        careers(corrupted)


@few
@given(tables(), st.sampled_from(["survey", "gender", "ethnicity", "birth_year", "year"]))
def test_contradictions_between_records_are_refused_with_their_column(table, column):
    first = table[:1]
    change = {"year": pl.col("year"), "birth_year": pl.lit(1799)}.get(column, pl.lit("an other"))
    other = first.with_columns((pl.lit(2100) if column != "year" else pl.col("year")).cast(pl.Int32).alias("year"))
    other = other.with_columns(change.cast(COLUMNS[column]).alias(column))
    with pytest.raises(DataError, match=f"(?m)^- {column}: must"):
        careers(pl.concat([table, other]))


def test_all_that_is_wrong_is_said_in_one_message():
    table = pl.DataFrame(
        {
            "person_id": [1, 1, 2],
            "year": [1990, 1990, 19],
            "occupation": ["95", "004", "004"],
            "wage": 1,
            "weight": "x",
        }
    )
    with pytest.raises(DataError) as error:
        careers(table)
    beginnings = [line.split(":")[0] for line in str(error.value).splitlines()[1:]]
    assert beginnings == ["- survey", "- wage", "- weight", "- year", "- year", "- occupation"]
    assert "Did you mean '095'" in str(error.value)
    assert "Found 19 (row 3: person '2', 19)" in str(error.value)


def test_an_empty_table_is_refused():
    with pytest.raises(DataError, match="the table is empty"):
        careers(pl.DataFrame(schema=COLUMNS))


def test_casting_loses_nothing():
    table = pl.DataFrame(
        {
            "person_id": [10.0, 9.0],
            "year": ["1990", "1991.0"],
            "survey": "S",
            "occupation": "095",
            "weight": [1, 2],
        }
    )
    made = careers(table.with_columns(pl.col("survey").cast(pl.Categorical)))
    assert made.table["person_id"].to_list() == ["10", "9"]
    assert made.table["year"].to_list() == [1990, 1991]
    assert dict(made.table.schema) == COLUMNS
    for column, values in {
        "year": [1990.5, 1991.0],
        "person_id": [1.5, 2.0],
        "occupation": [["095"], ["095"]],
    }.items():
        with pytest.raises(DataError, match=f"- {column}: must be (a whole number|text)"):
            careers(table.with_columns(pl.Series(column, values)))


@few
@given(tables())
def test_persons_and_previous_agree_with_a_loop(table):
    made = careers(table)
    rows, previous, starts = list(made.table.iter_rows(named=True)), [], []
    for number, row in enumerate(rows):
        follows = number > 0 and rows[number - 1]["person_id"] == row["person_id"]
        previous.append(rows[number - 1]["occupation"] if follows else None)
        starts += [] if follows else [number]
    assert_series_equal(made.previous, pl.Series("previous", previous, dtype=pl.String))
    np.testing.assert_array_equal(made.person_starts, [*starts, len(rows)])
    assert (made.persons, len(made)) == (len(starts), len(rows))


def test_the_fingerprint_follows_the_content_not_the_order_of_rows():
    made = crowd(3)
    assert careers(made.table.reverse()).fingerprint == made.fingerprint
    assert replace(made, source="elsewhere").fingerprint == made.fingerprint
    assert replace(made, dataset="other").fingerprint != made.fingerprint
    assert careers(made.table.with_columns(education=pl.lit("college"))).fingerprint != made.fingerprint


def test_the_fingerprint_is_the_same_in_every_version():
    """A change here makes every run on record look like one on other data."""
    table = crowd(1).table.with_columns(
        log_wage=pl.Series([0.1, 1e-20]), education=pl.Series(['"so-called", x', None])
    )
    made = Careers(table, "made", Taxonomy("one", {"095": "Nurses"}, frozenset()), "a test")
    assert made.fingerprint == "5abbccc6cad02ff5990c977fecc22caea41b21b72d48958b8c19f0aa8a01b2d5"


def test_select_persons_names_those_who_are_absent():
    made = crowd(4)
    assert made.select_persons(["p3", "p1"]).table["person_id"].to_list() == ["p1", "p1", "p3", "p3"]
    with pytest.raises(DataError, match=r"1 of 2 persons are not in dataset 'made', such as 'p9'"):
        made.select_persons(["p1", "p9"])


def test_reading_what_is_not_ours_is_refused(tmp_path):
    with pytest.raises(DataError, match="no careers file"):
        Careers.read(tmp_path / "absent.parquet")
    (tmp_path / "text.parquet").write_text("not Parquet")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        Careers.read(tmp_path / "text.parquet")
    crowd(1).table.write_parquet(tmp_path / "plain.parquet")
    with pytest.raises(DataError, match=r"dataset=table dataset\.raw="):
        Careers.read(tmp_path / "plain.parquet")


@few
@given(st.sets(ids, min_size=40, max_size=60), st.sets(ids, max_size=30), st.integers(0, 99).map(str))
def test_adding_persons_moves_nobody(persons, more, salt):
    def parts(ids):
        table = pl.DataFrame({"person_id": sorted(ids), "year": 1990, "survey": "S", "occupation": "095"})
        splits = SplitByPerson(train=0.5, valid=0.25, test=0.25, salt=salt)(careers(table))
        return {part: set(getattr(splits, part).table["person_id"]) for part in ("train", "valid", "test")}

    before, after = parts(persons), parts(persons | more)
    assert sum(map(len, before.values())) == len(persons)
    assert set().union(*before.values()) == persons
    assert all(before[part] <= after[part] for part in before)


@few
@given(st.sets(ids, min_size=10, max_size=40), ids, st.integers(1, 9), st.integers(0, 99).map(str))
def test_samples_are_nested_and_one_person_more_replaces_at_most_one(persons, more, size, salt):
    def sample(ids, size):
        table = pl.DataFrame({"person_id": sorted(ids), "year": 1990, "survey": "S", "occupation": "095"})
        return set(SplitByPerson(salt=salt).sample(careers(table), size).table["person_id"])

    smaller, larger = sample(persons, size), sample(persons, size + 1)
    assert len(smaller) == size
    assert smaller < larger
    assert sample(persons | {more}, size) <= smaller | {more}


def test_a_sample_holds_the_lowest_hashes_and_whole_careers():
    everybody = crowd(500)
    hashes = {
        person: int(sha256(f"labor-llm:{person}".encode()).hexdigest()[:8], 16)
        for person in everybody.table["person_id"].unique()
    }
    sample = SplitByPerson().sample(everybody, 20)
    assert set(sample.table["person_id"]) == set(sorted(hashes, key=hashes.get)[:20])
    assert len(sample) == 40
    assert sample.table["person_id"].is_sorted()
    with pytest.raises(ValueError, match="a sample of 501 of 500 persons"):
        SplitByPerson().sample(everybody, 501)


def test_shares_are_about_right_and_careers_stay_whole():
    splits = SplitByPerson()(crowd(4000))
    shares = [part.persons / 4000 for part in (splits.train, splits.valid, splits.test)]
    np.testing.assert_allclose(shares, [0.7, 0.1, 0.2], atol=0.03)
    assert all(len(part) == 2 * part.persons for part in (splits.train, splits.valid, splits.test))


def test_a_part_without_persons_is_refused_unless_it_has_no_share():
    with pytest.raises(DataError, match=r"gets nobody of the 2 persons of dataset 'made'"):
        SplitByPerson()(crowd(2))
    assert SplitByPerson(train=1, valid=0, test=0)(crowd(2)).test.persons == 0


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"train": 0.8}, "must sum to 1, and sum to 1.1"),
        ({"train": -0.1, "test": 1}, "greater"),
        ({"dev": 0.1}, "dev"),
    ],
)
def test_shares_that_are_none_are_refused(shares, message):
    with pytest.raises(ValidationError, match=message):
        SplitByPerson(**shares)


@pytest.mark.parametrize("odd", [" male", "male ", "nan", "None", "NULL"])
def test_unknown_values_written_out_and_stray_spaces_are_refused(odd):
    table = crowd(2).table.with_columns(gender=pl.lit(odd))
    with pytest.raises(DataError, match=r"gender: (must not begin|looks like)"):
        careers(table)
