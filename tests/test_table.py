"""Tables of one's own: formats, recodes, coding schemes, and tables that are read in parts."""

import gzip
import lzma

import pandas as pd
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from labor_llm.careers import Careers
from labor_llm.datasets import in_parts, read, table_files
from labor_llm.datasets.report import Report
from labor_llm.datasets.table import Table
from labor_llm.errors import ConfigError, DataError
from labor_llm.prepared import prepare

PANEL = """\
id,year,occ,state,sex,pay,wt,hours
3,2001,3255,1,2,12.5,150,9
3,2002,0050,1,2,0,150,9
1,2001,,2,1,,200,9
1,2002,9990,1,1,,200,9
"""
PACKED = {"csv": bytes, "csv.gz": gzip.compress, "csv.xz": lzma.compress}
SETTINGS = {
    "name": "mine",
    "survey": "Mine",
    "scheme": "census2010",
    "columns": {
        "person_id": "id",
        "occupation": "occ",
        "status": "state",
        "gender": "sex",
        "wage": "pay",
        "weight": "wt",
    },
    "recodes": {"status": {"1": "employed", "2": "in_school"}, "gender": {"1": "male", "2": "female"}},
    "units": {"weight": 0.01},
}


@pytest.fixture
def panel(tmp_path):
    path = tmp_path / "panel.csv"
    path.write_text(PANEL)
    return path


def test_codes_states_recodes_and_units_become_careers(panel):
    report = Report()
    careers = read(Table(raw=panel, **SETTINGS), report)
    assert careers.table.select("person_id", "year", "occupation", "gender", "weight").rows() == [
        ("1", 2001, "in_school", "male", 2.0),
        ("3", 2001, "095", "female", 1.5),
        ("3", 2002, "013", "female", 1.5),
    ]
    assert careers.table["log_wage"].to_list() == pytest.approx([None, 2.5257286, None])
    assert report.notes == ["columns of panel.csv that are not used: hours"]
    assert report.unmapped.rows() == [("census2010", "9990", "Uncodeable", 1, 1)]


def test_all_formats_give_the_same_careers(panel, tmp_path):
    (tmp_path / "panel.csv.xz").write_bytes(lzma.compress(PANEL.encode()))
    frame = pd.read_csv(panel)
    frame.to_parquet(tmp_path / "panel.parquet")
    pd.read_csv(panel, dtype={"occ": str}).to_excel(tmp_path / "panel.xlsx", index=False)
    frame.to_stata(tmp_path / "panel.dta", write_index=False)
    expected = read(Table(raw=panel, **SETTINGS)).table
    for ending in ("csv.xz", "parquet", "xlsx", "dta"):
        assert_frame_equal(read(Table(raw=tmp_path / f"panel.{ending}", **SETTINGS)).table, expected)


def test_codes_that_lost_their_leading_zeros_are_completed(tmp_path):
    frame = pd.DataFrame({"person_id": [1, 1, 1], "year": [2001, 2002, 2003], "occupation": [4, 22, 243]})
    frame.to_stata(tmp_path / "panel.dta", write_index=False)
    frame.to_csv(tmp_path / "panel.csv", index=False)
    frame.astype({"occupation": float}).to_parquet(tmp_path / "panel.parquet")
    for ending in ("dta", "csv", "parquet"):
        report = Report()
        careers = read(Table(name="mine", raw=tmp_path / f"panel.{ending}", survey="S"), report)
        assert careers.table["occupation"].to_list() == ["004", "022", "243"]
        assert len(report.notes) == 1
        assert report.notes[0].startswith("occupation codes that had lost leading zeros were completed")
    whole = frame.astype(str).assign(occupation=[" 004", "022", "243"])
    whole.to_csv(tmp_path / "panel.csv", index=False)
    report = Report()
    assert read(Table(name="mine", raw=tmp_path / "panel.csv", survey="S"), report).table["occupation"][0] == "004"
    assert not report.notes


def test_codes_that_pandas_wrote_as_decimals_are_whole_numbers(tmp_path):
    frame = pd.DataFrame({"person_id": [1] * 3, "year": [2001, 2002, 2003], "occupation": [22, 243, None]})
    frame = frame.dropna()
    frame.to_csv(tmp_path / "panel.csv", index=False)
    assert "243.0" in (tmp_path / "panel.csv").read_text()
    frame.assign(occupation=[" 22.0", "243"]).to_parquet(tmp_path / "panel.parquet")
    text = pl.from_pandas(frame.astype(str)).with_columns(pl.col("occupation").cast(pl.Categorical))
    text.with_columns(pl.col("year").cast(pl.Int64)).write_parquet(tmp_path / "text.parquet")
    for name in ("panel.csv", "panel.parquet", "text.parquet"):
        report = Report()
        careers = read(Table(name="mine", raw=tmp_path / name, survey="S"), report)
        assert careers.table["occupation"].to_list() == ["022", "243"]
        assert any("22.0 as 22" in note for note in report.notes)
    settings = {"survey": "S", "scheme": "census2010", "taxonomy": "native", "columns": {"status": "status"}}
    lines = "1,2001,10.0,\n1,2002,4110.0,\n1,2003,,in_school"
    (tmp_path / "panel.csv").write_text(f"person_id,year,occupation,status\n{lines}\n")
    report = Report()
    careers = read(Table(name="mine", raw=tmp_path / "panel.csv", **settings), report)
    assert careers.table["occupation"].to_list() == ["10", "4110", "in_school"]
    assert report.codes == {"found": 2, "carried": 2}


def test_a_code_with_a_point_that_the_taxonomy_has_stays(tmp_path):
    (tmp_path / "own.csv").write_text("code,title,kind\n1.0,Nurse,occupation\n2,Clerk,occupation\n")
    (tmp_path / "panel.csv").write_text("person_id,year,occupation\n1,2001,1.0\n1,2002,2.0\n")
    table = Table(name="mine", raw=tmp_path / "panel.csv", survey="S", taxonomy=str(tmp_path / "own.csv"))
    assert read(table).table["occupation"].to_list() == ["1.0", "2"]
    (tmp_path / "panel.csv").write_text("person_id,year,occupation\n1,2001,3.0\n")
    with pytest.raises(DataError, match=r"3\.0"):
        read(table)


def test_codes_that_are_lists_are_refused_as_before(tmp_path):
    table = pl.DataFrame({"person_id": ["1"], "year": [2001], "occupation": [["004"]]})
    table.write_parquet(tmp_path / "panel.parquet")
    with pytest.raises(DataError, match="occupation: must be text"):
        read(Table(name="mine", raw=tmp_path / "panel.parquet", survey="S"))


def test_a_code_is_completed_only_if_it_stands_for_one(tmp_path):
    (tmp_path / "own.csv").write_text("code,title,kind\n01,Nurse,occupation\n001,Clerk,occupation\n")
    (tmp_path / "panel.csv").write_text("person_id,year,occupation\n1,2001,1\n")
    with pytest.raises(DataError, match="unknown occupation code '1'"):
        read(Table(name="mine", raw=tmp_path / "panel.csv", survey="S", taxonomy=str(tmp_path / "own.csv")))


def test_columns_that_are_separated_otherwise_are_said(tmp_path):
    text = b"person_id;year;occupation;log_wage\n1;2001;004;1,5\n"
    for ending, pack in {"csv": bytes, "CSV": bytes, "csv.gz": gzip.compress, "csv.xz": lzma.compress}.items():
        (tmp_path / f"panel.{ending}").write_bytes(pack(text))
        with pytest.raises(DataError, match=r"begins 'person_id;.*: columns must be separated by commas"):
            read(Table(name="mine", raw=tmp_path / f"panel.{ending}", survey="S"))


def test_labels_of_stata_are_words_but_codes_stay_numbers(tmp_path):
    frame = pd.DataFrame({"person_id": [1, 1], "year": [2001, 2002], "occupation": [3255, 50], "gender": [2, 2]})
    labels = {"gender": {1: "male", 2: "female"}, "occupation": {3255: "Nurses", 50: "Managers"}}
    frame.to_stata(tmp_path / "long.dta", write_index=False, value_labels=labels)
    careers = read(Table(name="mine", raw=tmp_path / "long.dta", survey="S", scheme="census2010"))
    assert set(careers.table["gender"]) == {"female"}
    assert careers.table["occupation"].to_list() == ["095", "013"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("5,2001,3255,7,1,,1,", r"unknown status '7' in row 5 of .*panel\.csv.*dataset\.recodes\.status"),
        ("5,2001,3255,1,1,lots,1,", r"wage: must be a number, and 'lots' in row 5"),
        ("5,2001,3255,1,1,,heavy,", r"weight: must be a number, and 'heavy' in row 5"),
        ("5,year,3255,1,1,,1,", r"year: must be a whole number.*'year' \(row 5"),
        ("3,2002,3255,1,2,,150,", r"must not occur twice"),
        (",2002,3255,1,2,,150,", r"person_id: is required"),
    ],
)
def test_what_is_wrong_with_a_value_is_said_with_its_row(panel, line, message):
    panel.write_text(f"{PANEL}{line}\n")
    with pytest.raises(DataError, match=message):
        read(Table(raw=panel, **SETTINGS))


@pytest.fixture
def long_table(tmp_path):
    """Persons in no order, in a file larger than a part."""
    ids = [f"p{number * 7919 % 1000}" for number in range(1000)]
    rows = pl.DataFrame(
        {
            "person_id": [person for person in ids for _ in range(3)],
            "year": [2003, 2001, 2002] * 1000,
            "occupation": ["095", "004", "in_school"] * 1000,
            "survey": ["S"] * 3000,
        }
    )
    path = tmp_path / "long.csv"
    rows.write_csv(path)
    return path


def test_a_large_table_in_parts_is_the_table_in_one(long_table, tmp_path, monkeypatch):
    dataset = Table(name="long", raw=long_table)
    prepare(dataset, tmp_path / "one")
    monkeypatch.setattr(in_parts, "RECORDS_PER_PART", 400)
    monkeypatch.setattr(table_files, "IN_MEMORY", 0)
    report = Report()
    parts = list(dataset.parts(report))
    assert len(parts) > 4
    assert report.steps == {"records in the source": {"persons": 1000, "records": 3000}}
    prepare(dataset, tmp_path / "many")
    one, many = (Careers.read(tmp_path / folder / "long" / "careers.parquet") for folder in ("one", "many"))
    assert_frame_equal(many.table, one.table)
    assert many.fingerprint == one.fingerprint
    again = list(Careers.read_parts(tmp_path / "many" / "long" / "careers.parquet"))
    assert [len(part) for part in again] == [len(part) for part in parts]


@pytest.mark.parametrize("runs", [0, 10**6])
def test_parts_are_the_same_whether_their_rows_stand_together_or_not(long_table, monkeypatch, runs):
    monkeypatch.setattr(in_parts, "RECORDS_PER_PART", 400)
    expected = [part.table for part in Table(name="long", raw=long_table).parts(Report())]
    monkeypatch.setattr(in_parts, "RUNS", runs)
    found = [part.table for part in Table(name="long", raw=long_table).parts(Report())]
    assert all(left.equals(right) for left, right in zip(found, expected, strict=True))


def test_a_mistake_in_a_later_part_leaves_nothing_behind_and_names_its_row(long_table, tmp_path, monkeypatch):
    monkeypatch.setattr(in_parts, "RECORDS_PER_PART", 400)
    monkeypatch.setattr(table_files, "IN_MEMORY", 0)
    with long_table.open("a") as file:
        file.write("zz,2001,no such code,S\n")
    with pytest.raises(DataError, match=r"'no such code' \(row 3001: person 'zz', 2001\)"):
        prepare(Table(name="long", raw=long_table), tmp_path)
    assert [path.name for path in (tmp_path / "long").iterdir()] == [".prepare.lock"]


def test_a_file_that_breaks_off_is_refused_whatever_its_kind(panel, tmp_path):
    frame = pd.read_csv(panel)
    frame.to_parquet(tmp_path / "panel.parquet")
    frame.to_stata(tmp_path / "panel.dta", write_index=False)
    frame.to_excel(tmp_path / "panel.xlsx", index=False)
    (tmp_path / "panel.csv.xz").write_bytes(lzma.compress(PANEL.encode()))
    (tmp_path / "panel.csv.gz").write_bytes(gzip.compress(PANEL.encode()))
    for ending in ("parquet", "dta", "xlsx", "csv.xz", "csv.gz"):
        path = tmp_path / f"panel.{ending}"
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(DataError, match="not readable"):
            read(Table(raw=path, **SETTINGS))


def test_states_may_be_numbers_and_a_wage_is_one_of_two(panel, tmp_path):
    frame = pl.read_csv(panel, infer_schema_length=None)
    frame.write_parquet(tmp_path / "panel.parquet")
    assert len(read(Table(raw=tmp_path / "panel.parquet", **SETTINGS))) == 3
    with pytest.raises(DataError, match="unknown status '1' in row 1"):
        read(Table(raw=tmp_path / "panel.parquet", **SETTINGS | {"recodes": {"gender": {"1": None, "2": None}}}))
    frame.with_columns(log_wage=2.5).write_parquet(tmp_path / "both.parquet")
    with pytest.raises(ConfigError, match="name one of the two only"):
        read(Table(raw=tmp_path / "both.parquet", **SETTINGS))


def test_a_column_named_status_is_a_state_only_if_the_settings_say_so(tmp_path):
    rows = "person_id,year,occupation,status,survey\n1,2001,095,married,S\n"
    (tmp_path / "long.csv").write_text(rows)
    report = Report()
    assert len(read(Table(name="mine", raw=tmp_path / "long.csv"), report)) == 1
    assert report.notes == ["columns of long.csv that are not used: status"]


def test_columns_with_our_names_are_used_without_being_named(tmp_path):
    lines = ["k,2001,3255,employed,20", "k,2002,,unemployed,", "k,2003,,in_school,0", "m,2001,3255,employed,-4"]
    (tmp_path / "t.csv").write_text("\n".join(["person_id,year,occupation,status,wage", *lines]))
    report = Report()
    careers = read(Table(name="mine", raw=tmp_path / "t.csv", survey="S", scheme="census2010"), report)
    assert careers.table["occupation"].to_list() == ["095", "unemployed", "in_school", "095"]
    assert careers.table["log_wage"].to_list() == pytest.approx([2.9957323, None, None, None])
    assert report.notes == []
    assert report.to_dict()["notes"] == ["a wage of 0 or below is taken as unknown in 2 records of 2 persons"]


def test_a_wage_and_its_log_under_our_names_are_refused(tmp_path):
    (tmp_path / "t.csv").write_text("person_id,year,occupation,wage,log_wage\na,2001,095,20,3.0\n")
    with pytest.raises(ConfigError, match="name one of the two only"):
        read(Table(name="mine", raw=tmp_path / "t.csv", survey="S"))


def _refused(path, **settings):
    with pytest.raises(DataError) as refused:
        read(Table(**{"name": "mine", "raw": path, "survey": "S"} | settings))
    return str(refused.value)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize(
    ("ending", "pack"), [("csv", bytes), ("csv.gz", gzip.compress), ("csv.xz", lzma.compress)]
)
def test_utf_16_is_recognized(tmp_path, encoding, ending, pack):
    path = tmp_path / f"t.{ending}"
    path.write_bytes(pack("person_id\tyear\toccupation\na\t2001\t095\n".encode(encoding)))
    assert "is written in UTF-16" in _refused(path)


def test_a_taxonomy_in_utf_16_is_recognized(tmp_path):
    (tmp_path / "own.csv").write_bytes("code,title,kind\n1,Cook,occupation\n".encode("utf-16"))
    (tmp_path / "t.csv").write_text("person_id,year,occupation\na,2001,1\n")
    assert "own.csv is written in UTF-16" in _refused(tmp_path / "t.csv", taxonomy=str(tmp_path / "own.csv"))


@pytest.mark.parametrize("header", ["R0000100,R1482600,T6657000", "PUBID_1997,CV_ESR_2003,YEMP_OCCODE_01_2004,x"])
@pytest.mark.parametrize("ending", ["csv", "xlsx", "dta"])
def test_an_extract_of_the_investigator_is_recognized_by_its_columns(tmp_path, header, ending):
    frame, path = pd.DataFrame({name: [1] for name in header.split(",")}), tmp_path / f"t.{ending}"
    write = {"csv": frame.to_csv, "xlsx": frame.to_excel}.get(ending)
    write(path, index=False) if write else frame.to_stata(path, write_index=False)
    assert "the columns of an extract of the NLS Investigator" in _refused(path)


def test_unknown_codes_name_what_the_list_is_chosen_by(tmp_path):
    (tmp_path / "t.csv").write_text("person_id,year,occupation\na,2001,3255\nb,2001,Registered nurses\n")
    said = _refused(tmp_path / "t.csv")
    assert "dataset.taxonomy names another list; for a table of your own, dataset.scheme a census list" in said
    assert "'Registered nurses' in taxonomy 'occ1990dd'. It is a title. Did you mean '095'?" in said


def test_codes_of_another_scheme_are_refused_if_none_fits_and_noted_if_many_do_not(tmp_path):
    table = Table(name="mine", raw=tmp_path / "t.csv", survey="S", scheme="census1970")
    rows = [f"p{number},2001,{code}" for number, code in enumerate([3255, 4110, 75])]
    (tmp_path / "t.csv").write_text("\n".join(["person_id,year,occupation", *rows[:2]]))
    with pytest.raises(DataError, match=r"none of the 2 .*'3255', is in dataset\.scheme=census1970.*census2010"):
        read(table)
    (tmp_path / "t.csv").write_text("\n".join(["person_id,year,occupation", *rows]))
    report = Report()
    read(table, report)
    assert any("2 of 3 occupation codes are not in dataset.scheme=census1970" in note for note in report.notes)


def test_labels_of_stata_that_stand_for_two_numbers_are_refused_with_their_column(tmp_path):
    frame = pd.DataFrame({"person_id": [1, 2], "year": 2001, "occupation": "095", "gender": [1, 2]})
    labels = {"gender": {1: "male", 2: "male"}}
    frame.to_stata(tmp_path / "t.dta", write_index=False, value_labels=labels)
    said = _refused(tmp_path / "t.dta")
    assert "labels for column gender are not unique: give every number a label of its own" in said


@pytest.mark.parametrize("ending", ["csv", "csv.gz", "csv.xz"])
def test_text_that_is_not_utf_8_is_refused_with_the_cure(tmp_path, ending):
    text = "person_id,year,occupation\nJosé,2001,095\n".encode("latin-1")
    (tmp_path / f"t.{ending}").write_bytes(PACKED[ending](text))
    assert "Save it as UTF-8" in _refused(tmp_path / f"t.{ending}")


def test_a_value_without_a_label_of_stata_is_no_word(tmp_path):
    frame = pd.DataFrame({"person_id": [1, 2], "year": 2001, "occupation": "095", "gender": [1, -4]})
    frame.to_stata(tmp_path / "t.dta", write_index=False, value_labels={"gender": {1: "male"}})
    assert "gender: '-4' in 1 record" in _refused(tmp_path / "t.dta")
