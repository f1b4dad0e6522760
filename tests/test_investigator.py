"""Extracts of the NLS Investigator: every layout gives the same numbers, and what is broken is said."""

import random
import zipfile
from contextlib import suppress
from pathlib import Path

import polars as pl
import pytest
from extracts import csv_text, dat_text, dotted, layouts, write, write_zip
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from labor_llm.datasets.investigator import ID, check_cohort, opened
from labor_llm.datasets.investigator_files import files_of
from labor_llm.datasets.nlsy import _questions
from labor_llm.datasets.nlsy79 import NLSY79
from labor_llm.datasets.report import Report
from labor_llm.errors import DataError, LaborLLMError

ROWS = [
    {"A0002600": 585, ID: 1, "R0000500": 58, "R0046400": 23, "R0214700": 3, "R0214800": 2, "T5256900": -5},
    {"A0002600": -5, ID: 2, "R0000500": 64, "R0046400": -4, "R0214700": 1, "R0214800": 1, "T5256900": 4020},
    {"A0002600": 585, ID: 12686, "R0000500": 57, "R0046400": 984, "R0214700": 2, "R0214800": 1, "T5256900": -4},
]
VARIABLES = list(ROWS[0])
TEXTS = layouts(ROWS, "NLSY79")


def read(path: Path) -> pl.DataFrame:
    return opened(path, _questions()).table(VARIABLES)


def same(path: Path) -> bool:
    return read(path).to_dicts() == ROWS


def csv_file(folder: Path, text: str | bytes, *others: str) -> Path:
    """A csv of one's own, beside other files of the extract."""
    if others:
        write(folder, TEXTS, *others)
    path = folder / "default.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_the_zip_its_folder_and_each_of_its_files_give_the_same_numbers(tmp_path):
    folder = write(tmp_path / "unpacked", TEXTS)
    assert same(write_zip(tmp_path / "default.zip", TEXTS))
    assert same(write_zip(tmp_path / "nested.zip", TEXTS, name="download/default"))
    assert same(folder)
    assert all(same(folder / f"default{ending}") for ending in TEXTS)
    (tmp_path / "with zip").mkdir()
    write_zip(tmp_path / "with zip" / "default.zip", TEXTS)
    assert same(tmp_path / "with zip")


def test_a_zip_is_known_by_its_content_and_not_unpacked(tmp_path):
    assert same(write_zip(tmp_path / "download", TEXTS))
    assert [path.name for path in tmp_path.iterdir()] == ["download"]


@pytest.mark.parametrize("ending", [".NLSY79", ".sdf", ".dct", ".sas", ".sps"])
def test_a_dat_needs_one_file_that_lists_the_variables(tmp_path, ending):
    texts = TEXTS | {".dct": TEXTS[".dct"].partition("}")[0] + "}\n"}
    assert same(write(tmp_path, texts, ".dat", ending) / "default.dat")
    (tmp_path / f"default{ending}").unlink()
    with pytest.raises(DataError, match="has 7 columns, and the files beside it list no variables"):
        read(tmp_path / "default.dat")


@pytest.mark.parametrize(
    "text",
    [
        csv_text(ROWS, end="\n"),
        csv_text(ROWS) + "\r\n",
        csv_text(ROWS, end="\r"),
        csv_text(ROWS, end="\n").replace("\n", "\r\n", 2),
        csv_text(ROWS, head=VARIABLES),
        csv_text(ROWS, head=[variable.lower() for variable in VARIABLES]),
        csv_text(ROWS, head=map(dotted, VARIABLES)),
        "\ufeff" + csv_text(ROWS),
        csv_text(ROWS).replace(",", ";"),
        csv_text(ROWS).replace("23", "23.0").replace("-4", "-4.0"),
        csv_text(ROWS).replace("23", '"23"'),
    ],
)
def test_a_csv_may_have_been_saved_again(tmp_path, text):
    assert same(csv_file(tmp_path, text))


def test_a_dct_may_mix_line_ends_and_a_dat_may_pad_its_columns(tmp_path):
    folder = write(tmp_path / "a", {".dct": TEXTS[".dct"].replace("\n", "\r\n", 3)})
    assert same(folder)
    padded = "\n".join(" ".join(f"{value:6}" for value in row.values()) + " " for row in ROWS)
    assert same(write(tmp_path / "b", {".dat": padded, ".sdf": TEXTS[".sdf"]}))


def test_blank_cells_are_null(tmp_path):
    blank = {-4: "", -5: "NA", 64: "."}
    saved_again = [{variable: blank.get(value, value) for variable, value in row.items()} for row in ROWS]
    expected = [tuple(None if value in blank else value for value in row.values()) for row in ROWS]
    assert read(csv_file(tmp_path, csv_text(saved_again))).rows() == expected


def test_columns_named_by_questions_need_a_list_in_the_same_order(tmp_path):
    head = ["version", "caseid", "Q1-3_A~Y", "CPSOCC70", "SAMPLE_RACE", "SAMPLE_SEX", "OCCALL-EMP.01"]
    with pytest.raises(DataError, match=r"names its columns by questions, which are the same in every year"):
        read(csv_file(tmp_path, csv_text(ROWS, head=head)))
    assert same(csv_file(tmp_path / "tagset", csv_text(ROWS, head=head), ".NLSY79"))
    assert same(csv_file(tmp_path / "sdf", csv_text(ROWS, head=head), ".sdf"))
    with pytest.raises(DataError, match="another order"):
        read(csv_file(tmp_path / "other", csv_text(ROWS, head=[head[1], head[0], *head[2:]]), ".sdf"))


@pytest.mark.parametrize("style", [str, str.lower, lambda name: name.replace("-", "_").replace(".", "_")])
def test_columns_named_by_questions_and_years_are_known(tmp_path, style):
    head = ["VERSION_XRND", "CASEID_1979", "Q1-3_A~Y_1979", "CPSOCC70_1979"]
    head += ["SAMPLE_RACE_78SCRN", "SAMPLE_SEX_1979", "OCCALL-EMP.01_2016"]
    extract = opened(csv_file(tmp_path, csv_text(ROWS, head=map(style, head))), _questions())
    assert extract.variables == ("VERSION_XRND", *VARIABLES[1:])
    assert extract.table(VARIABLES[1:]).rows() == [tuple(row.values())[1:] for row in ROWS]
    assert extract.named[0] == "NLSY79"


def test_questions_come_from_the_sdf_and_uncut_from_the_codebook(tmp_path):
    texts = TEXTS | {".sdf": TEXTS[".sdf"].replace("OCCALL-EMP.01", "OCCALL-EM    ")}
    short = opened(write(tmp_path / "sdf", texts, ".csv", ".sdf"), {}).questions
    full = opened(write(tmp_path / "cdb", texts, ".csv", ".sdf", ".cdb"), {}).questions
    assert (short["T5256900"], full["T5256900"]) == (("OCCALL-EM", "2016"), ("OCCALL-EMP.01", "2016"))
    assert short["R0214700"] == full["R0214700"] == ("SAMPLE_RACE", "78SCRN")


@pytest.mark.parametrize("ending", [".NLSY97", ".sdf", ".cdb", ".sas", ".sps", ".dct", "-value-labels.do"])
def test_the_cohort_is_what_a_file_says_and_never_the_numbers(tmp_path, ending):
    texts = layouts([{ID: 1, "R0046400": 1}], "NLSY97")
    extract = opened(write(tmp_path, texts, ".csv", ending) / "default.csv", {})
    persons = extract.table([ID])[ID]
    assert check_cohort(extract, persons, "NLSY97")
    with pytest.raises(DataError, match=r"is an extract of the NLSY97, not of the NLSY79 .*use dataset=nlsy97"):
        check_cohort(extract, persons, "NLSY79")


def test_without_such_a_file_the_respondents_tell_the_cohort(tmp_path):
    extract = opened(csv_file(tmp_path, TEXTS[".csv"]), {})
    assert check_cohort(extract, pl.Series([1, 12686]), "NLSY79")
    with pytest.raises(DataError, match=r"the highest identifier is 9,023"):
        check_cohort(extract, pl.Series([1, 9023]), "NLSY97")
    with pytest.raises(DataError, match=r"it has 8,984 respondents"):
        check_cohort(extract, pl.int_range(1, 8985, eager=True), "NLSY79")
    assert not check_cohort(extract, pl.Series([1, 2]), "NLSY79")
    assert not check_cohort(extract, pl.Series([1, 2]), "NLSY97")


def test_an_extract_of_a_third_cohort_is_refused(tmp_path):
    write(tmp_path, {".csv": TEXTS[".csv"], ".NLSCYA": TEXTS[".NLSY79"]})
    extract = opened(tmp_path, {})
    with pytest.raises(
        DataError, match=r"is an extract of the NLSCYA, not of the NLSY79.*download one of the NLSY79"
    ):
        check_cohort(extract, extract.table([ID])[ID], "NLSY79")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("\r\n\r\n", "is empty"),
        ("<!DOCTYPE html><html>", "is a web page, not an extract: sign in"),
        ("%PDF-1.7", "is a PDF"),
        ('"' + ID + '","R0046400"', "has no respondents"),
        (b"\xff\xfeR\x000\x00", "is written in UTF-16"),
        (
            "name,age\nAnn,3\n",
            "does not begin with the variables of an extract, such as R0000100, but with 'name,age'",
        ),
        ("R0046400,R0214800\n1,2\n", "lacks R0000100"),
        ("R0000100,R0214800,R0214800\n1,2,2\n", "has the variable R0214800 twice"),
        ("R0000100,R0214800\n1,2\n2\n", "line 3: 1 values for 2 variables. The file is cut off"),
        ("R0000100,R0214800\n1,2\n2,3,4\n", "line 3: 3 values for 2 variables"),
        ("R0000100,R0214800\n1,2\n\n2,3\n", "line 3: 0 values for 2 variables"),
        ("R0000100,R0214800,R0214700\n1,2\n2,3,4,5\n", "line 2: 2 values for 3 variables"),
        ("R0000100,R0214800\n1,2\n2,male\n", "line 3: R0214800 is 'male' and must be a whole number"),
        ("R0000100,R0214800\n1,2\n2,1.5\n", "line 3: R0214800 is '1.5' and must be"),
        ("R0000100,R0214800\n1,2\n2,99999999999\n", "line 3: R0214800 is '99999999999' and must be"),
        (b"R0000100,R0214800\n1,2\n2,\xe9\n", "line 3: R0214800 is .* and must be"),
    ],
)
def test_a_csv_that_cannot_be_used_says_where_and_why(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        opened(csv_file(tmp_path, content), {}).table([ID, "R0214800"])


@pytest.mark.parametrize(
    ("persons", "message"),
    [
        ([7, 8, 7], "respondent 7 stands in the lines 2 and 4"),
        ([1, None], r"line 3: the identifier of the respondent \(R0000100\) is None"),
        ([1, -5], r"line 3: the identifier of the respondent \(R0000100\) is -5"),
    ],
)
def test_every_row_is_another_respondent(tmp_path, persons, message):
    with pytest.raises(DataError, match=message):
        check_cohort(opened(csv_file(tmp_path, TEXTS[".csv"]), {}), pl.Series(persons), "NLSY79")


def test_paths_without_one_extract_say_what_is_there(tmp_path):
    with pytest.raises(DataError, match=r"neither a file nor a folder at .*absent\.zip"):
        opened(tmp_path / "absent.zip", {})
    with pytest.raises(DataError, match="holds no csv, dat or dct of an extract, but nothing"):
        opened(tmp_path, {})
    (tmp_path / "notes.txt").write_text("notes")
    with pytest.raises(DataError, match=r"notes\.txt is not an extract: give the zip"):
        opened(tmp_path / "notes.txt", {})
    with pytest.raises(DataError, match=r"but default\.sdf: download the csv, too"):
        opened(write_zip(tmp_path / "a.zip", TEXTS, ".sdf"), {})
    write_zip(tmp_path / "b.zip", TEXTS)
    with pytest.raises(DataError, match=r"several extracts \(a\.zip, b\.zip\)"):
        opened(tmp_path, {})
    write(tmp_path, TEXTS, ".csv", name="one")
    write(tmp_path, TEXTS, ".csv", name="two")
    with pytest.raises(
        DataError, match=r"several extracts \(one\.csv, two\.csv\): .* name one file in dataset\.raw"
    ):
        opened(tmp_path, {})
    assert same(tmp_path / "two.csv")


def test_broken_zips_are_said_to_be_broken(tmp_path):
    whole = write_zip(tmp_path / "default.zip", TEXTS).read_bytes()
    for name, content in {"cut": whole[: len(whole) // 2], "page": b"<html>", "none": b""}.items():
        (tmp_path / f"{name}.zip").write_bytes(content)
        with pytest.raises(DataError, match=r"cannot be read|is a web page|is empty"):
            opened(tmp_path / f"{name}.zip", {})
    with zipfile.ZipFile(tmp_path / "locked.zip", "w") as archive:
        archive.writestr("default.csv", TEXTS[".csv"])
    locked = bytearray((tmp_path / "locked.zip").read_bytes())
    locked[6] |= 1  # the flag of a password, in the file's head and in the directory
    locked[locked.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "locked.zip").write_bytes(locked)
    with pytest.raises(DataError, match="locked with a password"):
        opened(tmp_path / "locked.zip", {})


def test_files_of_two_downloads_are_not_taken_together(tmp_path):
    write(tmp_path / "a", TEXTS | {".NLSY97": "R0000100\nR0536300\n"}, ".csv", ".NLSY97")
    with pytest.raises(DataError, match=r"has 6 variables that default\.NLSY97 beside it lacks, such as A0002600"):
        opened(tmp_path / "a", {})
    write(tmp_path / "b", TEXTS | {".NLSY97": "R0000100\n"}, ".csv", ".NLSY97", ".NLSY79")
    with pytest.raises(DataError, match=r"has the tagsets default\.NLSY79, default\.NLSY97"):
        opened(tmp_path / "b", {})
    write(tmp_path / "c", TEXTS | {".NLSY79": "R0000100\nR0046400\n"}, ".dat", ".NLSY79")
    with pytest.raises(DataError, match=r"has 7 columns, .* list 2 in default\.NLSY79 variables"):
        opened(tmp_path / "c", {})
    write(tmp_path / "d", {".dct": TEXTS[".dct"].replace("}", "")})
    with pytest.raises(DataError, match="has no brace after its list"):
        opened(tmp_path / "d", {})


NUMBERS = st.builds("{}{:07}".format, st.sampled_from("RSTUEWZ"), st.integers(200, 10**7 - 1))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_numbers_come_back_from_any_layout(tmp_path, data):
    variables = [ID, *data.draw(st.lists(NUMBERS.filter(lambda number: number != ID), unique=True, max_size=6))]
    variables = data.draw(st.permutations(variables))
    values = st.lists(st.integers(-(2**31), 2**31 - 1), min_size=len(variables), max_size=len(variables))
    rows = [dict(zip(variables, row, strict=True)) for row in data.draw(st.lists(values, min_size=1, max_size=5))]
    texts = layouts(rows, "NLSY79", {variable: ("Q", "1979") for variable in variables if variable != ID})
    texts[".csv"] = csv_text(rows, data.draw(st.sampled_from(["\n", "\r\n"])))
    texts[".dat"] = dat_text(rows, data.draw(st.sampled_from(["\n", "\r\n", " \n"])))
    write(tmp_path, texts)
    for ending in (".csv", ".dat", ".dct"):
        assert opened(tmp_path / f"default{ending}", {}).table(variables).to_dicts() == rows


def mutant(content: bytes, chance: random.Random) -> bytes:
    """The content with some bytes changed, lost or doubled, or cut off."""
    mutated = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(mutated) or 1)
        change = chance.randrange(4)
        if change == 0 and mutated:
            mutated[place] = chance.randrange(256)
        elif change == 1:
            del mutated[place : place + chance.randint(1, 9)]
        elif change == 2:
            mutated[place:place] = mutated[place : place + chance.randint(1, 9)]
        elif chance.random() < 0.2:
            del mutated[place:]
    return bytes(mutated)


@pytest.mark.parametrize("name", ["default.zip", "default.csv", "default.dat", "default.dct", "default.sdf"])
def test_broken_bytes_give_a_message_or_numbers_and_nothing_else(tmp_path, name):
    folder = write(tmp_path / "extract", TEXTS, ".csv", ".dat", ".dct", ".sdf", ".cdb")
    path = folder / name
    write_zip(folder / "default.zip", TEXTS)
    content, chance = path.read_bytes(), random.Random(name)
    for round_ in range(120):
        path.write_bytes(mutant(content, chance))
        with suppress(LaborLLMError):
            if round_ % 6:
                extract = opened(path, _questions())
                extract.table([variable for variable in VARIABLES if variable in extract.variables])
            else:
                list(NLSY79(raw=path).parts(Report()))


@pytest.mark.parametrize("ending", ["xlsx", "xls", "ods"])
def test_a_spreadsheet_of_an_extract_is_recognized(tmp_path, ending):
    path = tmp_path / f"extract.{ending}"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
    with pytest.raises(DataError, match="is a spreadsheet: give the zip as downloaded"):
        files_of(path)


def test_an_extract_in_utf_16_is_recognized(tmp_path):
    (tmp_path / "extract.csv").write_bytes("R0000100,R1482600\n1,2\n".encode("utf-16"))
    with pytest.raises(DataError, match="is written in UTF-16"):
        opened(tmp_path / "extract.csv", {})
