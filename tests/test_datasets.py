import hashlib
from pathlib import Path

import polars as pl
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from pydantic import ValidationError

from labor_llm.careers import Careers
from labor_llm.configs import conf_folder
from labor_llm.datasets import read
from labor_llm.datasets.table import FIELDS, Table
from labor_llm.datasets.wage_panel import WagePanel
from labor_llm.errors import ConfigError, DataError

ROWS = "person_id,year,job,education,log_wage\n07,1990,095,college,2.5\n07,1991,004,NA,\n8,1990,in_school,,.\n"


@pytest.fixture(scope="module")
def wage_panel() -> Careers:
    return read(WagePanel())


@pytest.fixture
def csv(tmp_path) -> Path:
    path = tmp_path / "long.csv"
    path.write_text(ROWS)
    return path


def from_yaml(name: str, **changes):
    """A dataset as a run builds it from its configuration file."""
    config = OmegaConf.load(conf_folder() / "dataset" / f"{name}.yaml")
    return instantiate(OmegaConf.merge(config, changes), _convert_="all")


def test_the_wage_panel_is_that_of_vella_and_verbeek(wage_panel):
    assert (wage_panel.persons, len(wage_panel)) == (545, 4360)
    assert wage_panel.table["year"].unique().sort().to_list() == list(range(1980, 1988))
    groups = wage_panel.table["occupation"].value_counts().sort("occupation")["count"].to_list()
    assert groups == [453, 399, 233, 486, 934, 881, 401, 64, 509]
    assert wage_panel.table["log_wage"].mean() == pytest.approx(1.649, abs=5e-4)


def test_the_men_of_the_wage_panel_are_of_the_nlsy79(wage_panel):
    men = wage_panel.table.unique("person_id")
    assert men["ethnicity"].value_counts().sort("ethnicity").rows() == [
        ("Black", 63),
        ("Hispanic", 85),
        ("non-Black non-Hispanic", 397),
    ]
    assert men["birth_year"].is_between(1957, 1964).all()
    assert set(men["gender"]) == {"male"}
    assert men["education"].value_counts().sort("count").rows() == [
        ("college", 4),
        ("some college", 126),
        ("less than high school", 184),
        ("high school", 231),
    ]


def test_the_split_of_the_wage_panel_is_that_of_the_reference_code_of_career(wage_panel):
    splits = WagePanel().split(wage_panel)
    assert [part.persons for part in (splits.train, splits.valid, splits.test)] == [376, 53, 116]
    persons = ",".join(sorted(splits.test.table["person_id"].unique(), key=int))
    assert hashlib.sha256(persons.encode()).hexdigest()[:16] == "ecf4da00021b3250"


def test_the_yaml_of_the_wage_panel_says_what_the_class_does():
    assert from_yaml("wage_panel") == WagePanel()


def test_the_yaml_of_a_table_lists_all_columns():
    assert set(from_yaml("table").columns) == set(FIELDS)


def test_a_csv_table_keeps_leading_zeros_and_missing_values(csv):
    dataset = from_yaml("table", raw=str(csv), survey="Mine", columns={"occupation": "job"})
    table = read(dataset).table
    assert table["person_id"].to_list() == ["07", "07", "8"]
    assert table["occupation"].to_list() == ["095", "004", "in_school"]
    assert table["education"].to_list() == ["college", None, None]
    assert table["log_wage"].to_list() == [2.5, None, None]
    assert set(table["survey"]) == {"Mine"}


def test_a_parquet_table_gives_the_same_careers(csv, tmp_path):
    pl.read_csv(csv, schema_overrides={"person_id": pl.String}, null_values=["NA", "."]).write_parquet(
        tmp_path / "long.parquet"
    )
    tables = [
        read(Table(name="mine", raw=path, survey="Mine", columns={"occupation": "job"})).table
        for path in (csv, tmp_path / "long.parquet")
    ]
    assert tables[0].equals(tables[1])


def test_a_taxonomy_of_ones_own_is_read_from_its_path(csv, tmp_path):
    path = tmp_path / "jobs.csv"
    path.write_text("code,title,kind\n095,Nurses,occupation\n004,Chiefs,occupation\nin_school,In school,state\n")
    made = read(Table(name="mine", raw=csv, survey="S", columns={"occupation": "job"}, taxonomy=str(path)))
    assert (made.taxonomy.name, made.taxonomy.title("095")) == ("jobs", "Nurses")


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"raw": None}, ConfigError, r"give one with dataset\.raw=PATH"),
        ({"raw": "absent.csv"}, DataError, r"no file at .*absent\.csv"),
        (
            {},
            DataError,
            r"no column 'survey' and no column 'occupation'\. Its columns are person_id, year, job",
        ),
        ({"columns": {"occupation": "jobs"}}, DataError, r"unknown column 'jobs' for 'occupation'.*mean 'job'"),
        (
            {"columns": {"occupaton": "job"}},
            ValidationError,
            r"unknown careers column 'occupaton'.*mean 'occupation'",
        ),
        ({"columns": {"education": "job"}, "survey": "S"}, DataError, "a column 'education' beside 'job'"),
        (
            {"columns": {"occupation": "job", "region": "job"}, "survey": "S"},
            ConfigError,
            "one column of the file two names",
        ),
        (
            {"taxonomy": "occ1990", "survey": "S", "columns": {"occupation": "job"}},
            ConfigError,
            "unknown packaged taxonomy 'occ1990'",
        ),
    ],
)
def test_what_is_wrong_with_a_table_is_said(csv, settings, error, message):
    with pytest.raises(error, match=message):
        read(Table(**{"name": "mine", "raw": csv, **settings}))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("long.sav", b"x", r"must end in \.csv, .* or \.xlsx"),
        ("long.xlsx", b"no sheet", r"not readable as Excel file"),
        ("long.dta", b"no data", r"not readable as Stata file"),
        ("long.csv.xz", b"no xz", r"not readable as \.xz file"),
        ("long.parquet", b"not Parquet", r"not readable as \.parquet file"),
        ("long.csv", b"", "is an empty file"),
        ("long.csv", b"person_id,year\n\xff,1\n", r"not readable as \.csv file"),
    ],
)
def test_files_that_are_no_tables_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(Table(name="mine", raw=tmp_path / name))


def test_a_survey_named_twice_and_a_setting_unknown_are_refused(tmp_path):
    (tmp_path / "long.csv").write_text("person_id,year,occupation,survey\n1,1990,095,S\n")
    with pytest.raises(ConfigError, match=r"leave dataset\.survey null"):
        read(Table(name="mine", raw=tmp_path / "long.csv", survey="T"))
    with pytest.raises(ValidationError, match="path"):
        Table(name="mine", path=tmp_path / "long.csv")
