"""Careers from whole downloads of the PSID, in all their forms, and what is said of those that lack something."""

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
    ANN,
    BOB,
    CAT,
    DAN,
    NAMES,
    SEXES,
    alone,
    careers,
    couple,
    family_file,
    individual_file,
    job_of_individuals,
    record,
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


def test_without_a_taxonomy_of_its_own_the_schemes_stand_side_by_side(tmp_path):
    made = read(Psid(raw=write_packaged(tmp_path, SEXES, COUPLES), taxonomy="native"))
    assert made.taxonomy.name == "psid_native"
    assert made.taxonomy.title(record(made.table, ANN, 2003)["occupation"]).lower() == "registered nurses"


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
