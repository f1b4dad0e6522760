import math
import random
import re
import time

import numpy as np
import polars as pl
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from psid_downloads import (
    NAMES,
    Interview,
    Member,
    family_file,
    individual_file,
    job_of_individuals,
    statements,
    write_csv,
    write_files,
    write_packaged,
    write_zip,
)
from pydantic import ValidationError

from labor_llm.configs import conf_folder
from labor_llm.datasets import read
from labor_llm.datasets.psid import COSTS, NEEDED, Psid, catalogue
from labor_llm.datasets.report import Report
from labor_llm.errors import ConfigError, DataError, LaborLLMError

ANN, BOB, CAT, DAN, EVE = (1, 1), (1, 2), (7, 30), (5001, 1), (9308, 227)
SEXES = {ANN: 2, BOB: 1, CAT: 2, DAN: 1, EVE: 9}


def couple(year: int, ann: dict, bob: dict, **answers) -> Interview:
    """Bob is the head, Ann his wife; both were there in the wave's codes of relation."""
    rp, sp = (1, 2) if year < 1983 else (10, 20)
    number = 1 if year == 1968 else 11  # the interview number of 1968 is half of the identifier
    return Interview(year, number, [Member(BOB, 1, rp, bob), Member(ANN, 2, sp, ann)], answers)


def alone(year: int, person=DAN, number: int = 12, member: dict | None = None, **answers) -> Interview:
    """A household of one."""
    return Interview(year, number, [Member(person, 1, 1 if year < 1983 else 10, member or {})], answers)


def careers(tmp_path, interviews, report=None, sexes=SEXES, **settings) -> pl.DataFrame:
    """What the packaged files of the interviews become."""
    folder = write_packaged(tmp_path / "download", sexes, interviews)
    return read(Psid(raw=folder, **settings), report).table


def one(table: pl.DataFrame, person, year: int) -> dict:
    """A record."""
    rows = table.filter(person_id=str(person[0] * 1000 + person[1]), year=year)
    assert rows.height == 1
    return rows.row(0, named=True)


COUPLES = [
    couple(
        1981,
        {"age": 29, "education": 16},
        {"age": 33, "education": 12},
        rp_occupation=195, rp_status=1, rp_rate="12.50", rp_race=2, region=3,
        sp_occupation=372, sp_status=1, sp_salary="7.25",
    ),
    couple(
        1985,
        {"birth_year": 1951, "education": 17},
        {"birth_year": 1948, "education": 12},
        rp_occupation=0, rp_status=3, rp_race=2, sp_race=1, sp_hispanic=1, region=5,
        sp_occupation=391, sp_status=1,
    ),
    couple(
        2003,
        {"birth_year": 1952, "education": 17},
        {"birth_year": 9999, "education": 99},
        rp_occupation=470, rp_status=4, sp_occupation=313, sp_status=1, sp_rate="25.00", region=6, rp_race=1,
    ),
    couple(
        2017,
        {"birth_year": 1952, "education": 17},
        {"birth_year": 1948, "education": 12},
        rp_occupation=4720, rp_status=1, rp_salary="52000.00", rp_salary_unit=6,
        sp_occupation=9999, sp_status=1, region=0,
    ),
]  # fmt: skip


def test_a_couple_over_the_waves_by_hand(tmp_path):
    report = Report()
    table = careers(tmp_path, COUPLES, report)
    columns = ("person_id", "year", "occupation", "education", "region", "gender", "ethnicity", "birth_year")
    assert table.select(columns).rows() == [
        ("1001", 1981, "313", "college", "south", "female", "Hispanic", 1952),
        ("1001", 1985, "315", "graduate", "west", "female", "Hispanic", 1952),
        ("1001", 2003, "095", "graduate", None, "female", "Hispanic", 1952),
        ("1002", 1981, "022", "high school", "south", "male", "Black", 1948),
        ("1002", 1985, "unemployed", "high school", "west", "male", "Black", 1948),
        ("1002", 2003, "out_of_labor_force", None, None, "male", "Black", 1948),
        ("1002", 2017, "276", "high school", None, "male", "Black", 1948),
    ]
    assert set(table["survey"]) == {"PSID"}
    pay = [None if value is None else round(math.exp(value), 2) for value in table["log_wage"]]
    assert pay == [7.25, None, 25.0, 12.5, None, None, 26.0]
    assert report.dropped == {"at work, occupation not known": {"persons": 1, "records": 1}}
    assert report.steps["person-years in the source"] == {"persons": 2, "records": 8}


@pytest.mark.parametrize("kind", ["do", "sps", "sas"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_job_of_all_individuals_gives_the_same_careers(tmp_path, kind, newline):
    packaged = careers(tmp_path, COUPLES)
    write_files(tmp_path / "job", "J123456", job_of_individuals(SEXES, COUPLES), [kind], newline)
    for raw in (tmp_path / "job", tmp_path / "job" / "J123456.txt", tmp_path / "job" / f"J123456.{kind}"):
        assert read(Psid(raw=raw)).table.equals(packaged)


def test_zipped_jobs_and_csv_give_the_same_careers_too(tmp_path):
    packaged, job = careers(tmp_path, COUPLES), job_of_individuals(SEXES, COUPLES)
    write_zip(tmp_path / "J1.zip", "J1", job)
    write_zip(tmp_path / "folder" / "below" / "J1.zip", "J1", job)
    write_csv(tmp_path / "J2.csv", job)
    for raw in ("J1.zip", "folder", "J2.csv"):
        assert read(Psid(raw=tmp_path / raw)).table.equals(packaged)


def test_unpacked_and_zipped_family_files_may_lie_side_by_side(tmp_path):
    packaged = careers(tmp_path, COUPLES)
    folder = tmp_path / "download"
    (folder / "ind2023er.zip").unlink()
    write_files(folder / "IND2023ER", "IND2023ER", individual_file(SEXES, COUPLES), ["sas"])
    assert read(Psid(raw=folder)).table.equals(packaged)


@pytest.mark.parametrize(
    ("year", "sequence", "relation", "role"),
    [
        (1982, 1, 1, "rp"),
        (1982, 2, 2, "sp"),
        (1982, 1, 10, None),
        (1983, 1, 10, "rp"),
        (1983, 1, 1, None),
        (1983, 2, 2, None),
        (1983, 2, 20, "sp"),
        (1983, 2, 22, "sp"),
        (1983, 2, 88, None),  # partner of less than a year
        (1983, 2, 90, None),  # husband of a head
        (1983, 3, 30, None),
        (1990, 71, 10, None),  # moved out
        (1990, 81, 10, None),  # died
        (1990, 51, 20, None),  # in an institution
        (1990, 2, 10, None),
        (1990, 0, 0, None),
    ],
)
def test_heads_and_spouses_are_told_by_sequence_and_relation(tmp_path, year, sequence, relation, role):
    other = alone(year, rp_occupation=195, rp_status=1)
    member = Member(CAT, sequence, relation)
    answers = {"rp_occupation": 372, "rp_status": 1, "sp_occupation": 391, "sp_status": 1}
    table = careers(tmp_path, [other, Interview(year, 15, [member], answers)])
    found = table.filter(person_id="7030")["occupation"].to_list()
    assert found == {"rp": ["313"], "sp": ["315"], None: []}[role]


@pytest.mark.parametrize(
    ("year", "status", "occupation"),
    [
        *((1990, status, expected) for status, expected in enumerate(
            ["022", "022", "unemployed", "unemployed", *["out_of_labor_force"] * 3, "in_school"]
        )),
        (1990, 8, "out_of_labor_force"),
        (1990, 9, "022"),
        (1994, 2, "unemployed"),
        (2003, 1, "243"),
        (2003, 7, "in_school"),
        (2003, 4, "out_of_labor_force"),
        (2003, 9, None),  # a job of the past, maybe
        (2003, 0, None),
    ],
)  # fmt: skip
def test_a_state_counts_before_an_occupation(tmp_path, year, status, occupation):
    sure = alone(year, BOB, 99, rp_occupation=313, rp_status=3)
    table = careers(tmp_path, [sure, alone(year, rp_occupation=195 if year < 2003 else 470, rp_status=status)])
    assert table.filter(person_id="5001001")["occupation"].to_list() == ([occupation] if occupation else [])


@pytest.mark.parametrize(
    ("year", "code", "occupation"),
    [
        (1990, 0, None),
        (1990, 999, None),
        (1990, 1, "023"),
        (1990, 600, "military"),
        (2001, 1, "023"),
        (2003, 1, "004"),
        (2003, 999, None),
        (2003, 983, "military"),
        (2015, 313, "095"),
        (2017, 3255, "095"),
        (2017, 10, "004"),
        (2017, 9999, None),
        (2021, 4720, "276"),
    ],
)
def test_occupations_are_read_in_the_scheme_of_their_wave(tmp_path, year, code, occupation):
    sure = alone(year, BOB, 99, rp_status=3)
    table = careers(tmp_path, [sure, alone(year, rp_occupation=code, rp_status=1)])
    assert table.filter(person_id="5001001")["occupation"].to_list() == ([occupation] if occupation else [])


@pytest.mark.parametrize(
    ("year", "race", "hispanic", "ethnicity"),
    [
        (1984, 1, 0, "white"),
        (1984, 3, 0, "Hispanic"),
        (1984, 7, 0, "other-ethnicity"),
        (1984, 9, 0, None),
        (1985, 3, 0, "American Indian"),
        (1985, 4, 0, "Asian or Pacific Islander"),
        (1985, 8, 0, "other-ethnicity"),
        (1985, 1, 7, "Hispanic"),
        (1985, 1, 9, "white"),
        (1997, 5, 0, "Hispanic"),
        (1997, 6, 0, "other-ethnicity"),
        (1997, 8, 0, None),
        (2003, 5, 0, "Hispanic"),
        (2005, 5, 0, "Asian or Pacific Islander"),
        (2005, 5, 3, "Hispanic"),
        (2021, 2, 0, "Black"),
    ],
)
def test_ethnicity_follows_the_codes_of_the_wave(tmp_path, year, race, hispanic, ethnicity):
    household = alone(year, rp_status=3, rp_race=race, rp_hispanic=hispanic)
    assert careers(tmp_path, [household])["ethnicity"].to_list() == [ethnicity]


def test_ethnicity_is_the_first_that_is_known_of_the_person(tmp_path):
    waves = {1984: 9, 1985: 2, 1986: 1, 1987: 1}
    households = [alone(year, rp_status=3, rp_race=race) for year, race in waves.items()]
    assert set(careers(tmp_path, households)["ethnicity"]) == {"Black"}


def test_a_wifes_race_is_not_her_husbands(tmp_path):
    table = careers(
        tmp_path, [couple(1990, {}, {}, rp_status=1, rp_occupation=1, sp_status=6, rp_race=1, sp_race=2)]
    )
    assert table["ethnicity"].to_list() == ["Black", "white"]


@pytest.mark.parametrize(
    ("grades", "level"),
    [(0, None), (1, "less than high school"), (11, "less than high school"), (12, "high school"),
     (13, "some college"), (15, "some college"), (16, "college"), (17, "graduate"), (98, None), (99, None)],
)  # fmt: skip
def test_grades_completed_become_levels(tmp_path, grades, level):
    assert careers(tmp_path, [alone(1999, rp_status=3, member={"education": grades})])["education"].to_list() == [
        level
    ]


@pytest.mark.parametrize(
    ("year", "answers", "dollars"),
    [
        (1981, {"rp_rate": "8.40"}, 8.4),
        (1981, {"rp_rate": "99.99"}, None),
        (1981, {"rp_salary": "15.00"}, 15.0),
        (1992, {"rp_salary": "99.99"}, None),
        (1993, {"rp_salary": "20.00", "rp_salary_unit": 1}, 20.0),
        (1994, {"rp_salary": "40000.00", "rp_salary_unit": 1}, 20.0),
        (1995, {"rp_salary": "800.00", "rp_salary_unit": 4}, 20.0),
        (1996, {"rp_salary": "1600.00", "rp_salary_unit": 4}, 20.0),
        (2001, {"rp_salary": "40000.00", "rp_salary_unit": 6}, 20.0),
        (2001, {"rp_salary": "3000.00", "rp_salary_unit": 5}, 18.0),
        (2001, {"rp_salary": "9999998.00", "rp_salary_unit": 6}, None),
        (2001, {"rp_salary": "500.00", "rp_salary_unit": 7}, None),
        (2001, {"rp_rate": "110.00"}, 110.0),
        (2001, {"rp_rate": "998.00"}, None),
        (2001, {"rp_rate": "998.00", "rp_salary": "40000.00", "rp_salary_unit": 6}, 20.0),
        (2001, {"rp_rate": "0.00"}, None),
        (2001, {"rp_rate": "20.00", "rp_status": 3}, None),
    ],
)
def test_pay_is_that_of_the_main_job_now(tmp_path, year, answers, dollars):
    (log_wage,) = careers(tmp_path, [alone(year, **{"rp_status": 1, "rp_occupation": 1} | answers)])["log_wage"]
    assert log_wage == (dollars and pytest.approx(math.log(dollars)))


def test_birth_years_are_the_most_frequent_report_or_follow_from_ages(tmp_path):
    reports = {1983: 1950, 1984: 1951, 1985: 1951, 1986: 9999, 1987: 0, 1988: 1950, 1989: 1951}
    years = [alone(y, rp_status=3, member={"birth_year": b, "age": 20}) for y, b in reports.items()]
    ages = [
        alone(y, CAT, 30, {"age": a}, rp_status=3) for y, a in {1981: 40, 1982: 42, 1983: 42, 1984: 999}.items()
    ]
    late = [alone(1983, EVE, 40, {"birth_year": 1990}, rp_status=3)]
    table = careers(tmp_path, years + ages + late)
    births = dict(table.select("person_id", "birth_year").unique().iter_rows())
    assert births == {"5001001": 1951, "7030": 1941, "9308227": None}
    assert one(table, EVE, 1983)["gender"] is None


def test_the_retrospective_codes_are_used_before_1981(tmp_path):
    early = [
        couple(1968, {"age": 30}, {"age": 31}, rp_occupation=195, rp_status=1, sp_occupation=372),
        couple(1975, {}, {}, rp_occupation=195, rp_status=3, sp_occupation=0),  # 3: retired, until 1975
        couple(1976, {}, {}, rp_occupation=195, rp_status=3, sp_occupation=391, sp_status=6),
        couple(1977, {}, {}, rp_occupation=600, rp_status=1, sp_occupation=391),
    ]
    late = [couple(1981, {}, {}, rp_occupation=195, rp_status=1, sp_occupation=372, sp_status=1)]
    table = careers(tmp_path, early + late, first_wave=1968)
    assert dict(zip(table["person_id"] + "/" + table["year"].cast(str), table["occupation"], strict=True)) == {
        "1001/1968": "313",
        "1001/1976": "out_of_labor_force",
        "1001/1977": "315",
        "1001/1981": "313",
        "1002/1968": "022",
        "1002/1975": "out_of_labor_force",
        "1002/1976": "unemployed",
        "1002/1977": "military",
        "1002/1981": "022",
    }
    assert set(read(Psid(raw=tmp_path / "download")).table["year"]) == {1981}


def test_without_a_taxonomy_of_its_own_the_schemes_stand_side_by_side(tmp_path):
    made = read(Psid(raw=write_packaged(tmp_path, SEXES, COUPLES), taxonomy="native"))
    assert made.taxonomy.name == "psid_native"
    assert made.taxonomy.title(one(made.table, ANN, 2003)["occupation"]).lower() == "registered nurses"


def test_what_an_extract_lacks_is_noted_with_its_cost(tmp_path):
    job = job_of_individuals(SEXES, COUPLES)
    for name in ("ER32000", NAMES["region", 1985], NAMES["region", 2003], NAMES["rp_rate", 1981]):
        del job[name]
    report = Report()
    table = read(Psid(raw=write_csv(tmp_path / "job.csv", job)), report).table
    assert table["gender"].null_count() == len(table)
    assert f"the download lacks sex: {COSTS['sex']}" in report.notes
    assert f"the download lacks region of 1985, 2003: {COSTS['region']}" in report.notes
    assert f"the download lacks rp_rate of 1981: {COSTS['rate']}" in report.notes
    assert any(note.startswith("the download lacks the waves 1982, 1983,") for note in report.notes)


def test_families_without_a_record_are_counted(tmp_path):
    households = [alone(1990, rp_status=3), alone(1990, CAT, 30, rp_status=3)]
    folder = write_packaged(tmp_path, SEXES, households)
    write_zip(folder / "fam1990.zip", "FAM1990", {
        name: values[:1] for name, values in family_file(1990, households).items()
    })  # fmt: skip
    report = Report()
    assert read(Psid(raw=folder), report).table["person_id"].to_list() == ["5001001"]
    assert report.dropped == {"the family file of 1990 lacks the family": {"persons": 1, "records": 1}}


def test_every_variable_is_listed_once_and_found_where_it_is(tmp_path):
    variables = Psid().variables()
    lines = variables.text.splitlines()
    assert variables.file_name == "psid_variables.txt"
    assert lines == variables.table["variable"].to_list()
    assert len(lines) == len(set(lines)) == 593
    assert variables.table["found"].null_count() == len(lines)
    assert {"ER30001", "ER30002", "ER32000", "V7712", "ER78512"} <= set(lines)
    assert "V3529" not in lines  # an occupation of 1974 that the index lists with those from 1981 on
    assert set(variables.table["year"].drop_nulls()) == {*range(1981, 1998), *range(1999, 2022, 2)}
    found = Psid(raw=write_packaged(tmp_path, SEXES, COUPLES)).variables().table
    assert set(found.filter("found")["year"].drop_nulls()) == {1981, 1985, 2003, 2017}


def test_the_variables_are_those_of_the_cross_year_index():
    table = catalogue(1968)
    assert table.height == 737
    assert table.filter(~pl.col("variable").str.contains(r"^(V\d+(_A)?|ER\d+[A-Z]?)$")).is_empty()
    assert table.group_by("concept", "year").len().filter(pl.col("len") > 1).is_empty()
    assert table["sources"].is_between(1, 3).all()
    counts = dict(table["concept"].value_counts().iter_rows())
    waves = {
        "interview": 42,
        "relation": 42,
        "family_interview": 42,
        "region": 42,
        "sequence": 41,
        "education": 41,
    }
    assert waves.items() <= counts.items()
    assert (counts["rp_occupation"], counts["sp_occupation"], counts["birth_year"]) == (42, 42, 27)
    assert {_plain(concept) for concept in counts if concept not in NEEDED} == COSTS.keys()


def _plain(concept: str) -> str:
    return re.sub("^(rp|sp)_", "", concept)


def test_the_yaml_says_what_the_class_does():
    config = OmegaConf.load(conf_folder() / "dataset" / "psid.yaml")
    assert instantiate(config, _convert_="all") == Psid()


def test_without_a_download_it_is_said_where_one_comes_from():
    with pytest.raises(ConfigError, match=r"psidonline(?s:.*)dataset\.raw=FOLDER_OR_FILE"):
        read(Psid())
    with pytest.raises(ValidationError, match="first_wave"):
        Psid(first_wave=1960)


def test_files_of_a_download_are_watched(tmp_path):
    folder = write_packaged(tmp_path, SEXES, COUPLES[:1])
    assert [path.name for path in Psid(raw=folder).files] == ["fam1981.zip", "ind2023er.zip"]
    assert Psid(raw=folder / "ind2023er.zip").files == [folder / "ind2023er.zip"]


def _without(job, *names):
    return {name: values for name, values in job.items() if name not in names}


def test_needed_variables_that_lack_are_all_named(tmp_path):
    lost = NAMES["sp_status", 1985], NAMES["sequence", 2003]
    job = _without(job_of_individuals(SEXES, COUPLES), *lost)
    with pytest.raises(DataError, match=rf"lacks what is needed: {lost[0]} \(sp_status 1985\), {lost[1]}"):
        read(Psid(raw=write_csv(tmp_path / "job.csv", job)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "ind2023er.zip").unlink(), "add the cross-year individual file"),
        (lambda folder: [path.unlink() for path in folder.glob("fam*")], "add family files"),
        (
            lambda folder: write_zip(folder / "ind2021er.zip", "IND2021ER", individual_file(SEXES, COUPLES)),
            r"more than one file .*ind2021er\.zip.*ind2023er\.zip.*Leave one",
        ),
        (
            lambda folder: write_files(folder, "FAM1985", family_file(1985, COUPLES)),
            r"more than one file has the wave of 1985",
        ),
        (
            lambda folder: write_zip(folder / "fam1985.zip", "FAM1985", family_file(1985, [alone(1985, DAN, 77)])),
            "none of its 1 families is in the individual file of 1985",
        ),
        (
            lambda folder: write_zip(
                folder / "fam1985.zip",
                "FAM1985",
                family_file(1985, [alone(1985, number=11, rp_status=status) for status in (1, 2)]),
            ),
            "two rows with different answers",
        ),
        (
            lambda folder: (folder / "fam1985.zip").write_bytes(b"PK\x03\x04"),
            r"fam1985\.zip is not a readable zip",
        ),
        (lambda folder: (folder / "fam1985.zip").write_bytes(b""), r"fam1985\.zip is not a readable zip"),
    ],
)
def test_incomplete_and_mixed_downloads_are_refused(tmp_path, change, message):
    change(write_packaged(tmp_path, SEXES, COUPLES))
    with pytest.raises(DataError, match=message):
        read(Psid(raw=tmp_path))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(1, 1), (1, 1)], "ER30001 = 1 with ER30002 = 1 occurs more than once"),
        ([(1, 1), (0, 5)], "row 2 has ER30001 = 0 and ER30002 = 5, which is no person"),
        ([(1, 1), (1, "")], "row 2 has ER30001 = 1 and ER30002 = None"),
    ],
)
def test_rows_that_are_no_persons_are_refused(tmp_path, rows, message):
    job = job_of_individuals({ANN: 2, BOB: 1}, COUPLES)
    job |= {"ER30001": [first for first, _ in rows], "ER30002": [second for _, second in rows]}
    write_files(tmp_path, "J1", job)
    with pytest.raises(DataError, match=message):
        read(Psid(raw=tmp_path))


def test_a_broken_download_is_refused_or_read_but_never_crashes(tmp_path):
    write_packaged(tmp_path / "zips", SEXES, COUPLES)
    write_files(tmp_path / "job", "J1", job_of_individuals(SEXES, COUPLES), ["do"])
    (tmp_path / "csv").mkdir()
    write_csv(tmp_path / "csv" / "J2.csv", job_of_individuals(SEXES, COUPLES))
    choose = random.Random(0)
    refused = 0
    for trial in range(120):
        folder = tmp_path / choose.choice(["zips", "job", "csv"])
        path = choose.choice(sorted(folder.iterdir()))
        whole = path.read_bytes()
        broken = bytearray(whole)
        for _ in range(choose.choice([1, 5])):
            broken[choose.randrange(len(broken))] = choose.randrange(256)
        path.write_bytes(broken[: choose.randrange(len(broken))] if trial % 3 == 0 else broken)
        try:
            assert len(read(Psid(raw=folder))) > 0
        except LaborLLMError:
            refused += 1
        path.write_bytes(whole)
    assert 30 < refused < 120


@pytest.mark.slow
def test_a_job_of_85_000_persons_takes_seconds(tmp_path):
    persons, row = 85_000, np.arange(85_000)
    heads = {"sequence": 1, "relation": 10, "rp_status": 1, "rp_occupation": 313, "rp_rate": 12}
    numbers = {"ER30001": 1 + row // 200, "ER30002": 1 + row % 200}
    for what, year, name in catalogue(1981)["concept", "year", "variable"].iter_rows():
        if name not in numbers:
            value = 1 if what == "relation" and year < 1983 else heads.get(what, 0)
            numbers[name] = row + 1 if what == "interview" else np.where(row % 5 == 0, value, 0)
    columns = {name: (1 + 6 * place, 6 + 6 * place) for place, name in enumerate(numbers)}
    ends = np.full((persons, 1), b"\n")
    cells = np.hstack([*(np.char.rjust(values.astype("S6"), 6)[:, None] for values in numbers.values())])
    lines = np.hstack([cells.view("S1"), ends])
    (tmp_path / "J1.txt").write_bytes(lines.tobytes())
    (tmp_path / "J1.do").write_text(statements("do", "J1", columns, persons))
    began = time.perf_counter()
    assert read(Psid(raw=tmp_path)).table.height == 17_000 * 26  # 313 is no code of 2010
    assert time.perf_counter() - began < 30
