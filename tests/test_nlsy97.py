"""The NLSY97 from extracts of a few respondents, whose careers were worked out by hand."""

import math
import re
from pathlib import Path

import polars as pl
import pytest
from extracts import Rows, filled, layouts, number, write_zip
from hydra.utils import instantiate
from omegaconf import OmegaConf

from labor_llm.careers import Careers
from labor_llm.configs import conf_folder
from labor_llm.datasets import read
from labor_llm.datasets.nlsy import all_variables
from labor_llm.datasets.nlsy97 import NLSY97, week_year
from labor_llm.datasets.report import Report
from labor_llm.errors import ConfigError, DataError

ID = "R0000100"


def of(concept: str, year: int | None = None, job: int | None = None) -> str:
    return number("NLSY97", concept, year, job)


def person(id_: int, born: int = 1981, **values: int) -> dict[str, int]:
    """A man, neither Black nor Hispanic; ``occupation_1999=800``, ``occupation_1999_2=20`` for job 2 and so on."""
    row = {ID: id_, of("gender"): 1, of("ethnicity"): 4, of("birth year"): born}
    for name, value in values.items():
        concept, year, job = re.fullmatch(r"(.+?)_(\d{4})_?(\d*)", name).groups()
        row[of(concept.replace("_", " "), int(year), int(job or 1))] = value
    return row


def careers(folder: Path, rows: Rows, *, extra: dict[str, tuple[str, str]] | None = None, **settings) -> Careers:
    """What the reader makes of an extract of these respondents."""
    texts = layouts(filled(rows), "NLSY97", extra)
    return read(NLSY97(raw=write_zip(folder / "default.zip", texts), **settings))


def report_of(folder: Path, rows: Rows, extra: dict[str, tuple[str, str]] | None = None) -> Report:
    report, texts = Report(), layouts(filled(rows), "NLSY97", extra)
    read(NLSY97(raw=write_zip(folder / "default.zip", texts)), report)
    return report


def column(made: Careers, name: str) -> dict[int, str | float | None]:
    """Year -> value, of the only person."""
    return dict(made.table.select("year", name).iter_rows())


def test_a_career_worked_out_by_hand(tmp_path):
    row = person(
        9022,
        born=1980,
        occupation_1997=4700,  # first-line supervisors of retail sales workers
        occupation_2002=800,  # accountants and auditors, in a column that comes before that of 1997
        occupation_2019=1010,  # computer programmers
        hourly_pay_1997=515,
        hourly_pay_2002=0,
        region_2002=2,
        weight_2002=12345,
        highest_degree_2002=4,
    )
    made = careers(tmp_path, [row])
    assert list(filled([row])[0]).index("S1603000") < list(filled([row])[0]).index("S3659000")
    assert column(made, "occupation") == {1997: "243", 2002: "023", 2019: "229"}
    assert column(made, "log_wage") == {1997: pytest.approx(math.log(5.15)), 2002: None, 2019: None}
    assert column(made, "education") == {1997: None, 2002: "college", 2019: None}  # known 17 years before
    second = made.table.row(1, named=True)
    assert (second["region"], second["weight"], second["birth_year"]) == ("north central", 123.45, 1980)
    assert (second["person_id"], second["survey"], second["gender"]) == ("9022", "NLSY97", "male")


def test_groups_have_other_codes_than_in_the_nlsy79(tmp_path):
    rows = [
        person(id_, occupation_1997=800) | {of("ethnicity"): id_, of("gender"): id_ - 1} for id_ in (1, 2, 3, 4)
    ]
    rows[3][of("gender")] = 2
    table = careers(tmp_path, rows[1:] + rows[:1]).table
    assert table["ethnicity"].to_list() == [
        "Black",
        "Hispanic",
        "mixed-race non-Hispanic",
        "non-Black non-Hispanic",
    ]
    assert table["gender"].to_list() == [None, "male", "female", "female"]


def test_the_flag_names_the_main_job_and_pay_is_of_the_same_job(tmp_path):
    rows = [
        person(1, main_job_1999=2, occupation_1999=800, occupation_1999_2=1010, hourly_pay_1999_2=900),
        person(2, main_job_1999=1, occupation_1999=800, occupation_1999_2=1010, hourly_pay_1999=700),
        person(3, main_job_1999=-4, occupation_1999=800, hourly_pay_1999=600),
        person(4, main_job_1999=9, occupation_1999=800, occupation_1999_9=1010, hourly_pay_1999_9=500),
        person(5, main_job_1999=12, occupation_1999=800, hourly_pay_1999=500),
        person(6, main_job_1999=-4, occupation_1999=-4, occupation_1999_2=-4),
        person(7, main_job_1999=2, occupation_1999=800, occupation_1999_2=-3),
    ]
    made, report = careers(tmp_path, rows, taxonomy="native"), report_of(tmp_path, rows)
    kept = made.table.select("person_id", "occupation", pl.col("log_wage").exp().round(2)).rows()
    assert kept == [
        ("1", "1010", 9.0),
        ("2", "800", 7.0),
        ("3", "800", 6.0),
        ("4", "1010", 5.0),
        ("6", "not_working", None),
    ]
    assert "the main job is not named in 1 person-years with a job: the first employer is taken" in report.notes
    lacking = "the extract lacks the occupation of the main job, which is not the first, in 1 person-years"
    assert lacking in report.notes
    assert report.dropped["neither a job nor a state is known"] == {"persons": 2, "records": 2}


def test_without_other_jobs_a_main_job_elsewhere_stays_unknown(tmp_path):
    rows = [person(1, main_job_1999=2, occupation_1999=800), person(2, main_job_1999=1, occupation_1999=800)]
    assert careers(tmp_path, rows).table["person_id"].to_list() == ["2"]
    notes = report_of(tmp_path, rows).notes
    cost = "main jobs that are not the first on the roster have no occupation"
    assert f"the extract lacks occupation of other jobs: {cost}" in notes
    only_first = [person(1, occupation_1999=800)]
    cost = "the first employer on the roster is taken for the main job"
    assert f"the extract lacks main job: {cost}" in report_of(tmp_path, only_first).notes


@pytest.mark.parametrize(
    ("values", "state"),
    [
        ((9701, 199901, 4), "800"),
        ((3, 200001, 5), "800"),
        ((4, 4, 9701), "unemployed"),
        ((1, 1, 9701), "out_of_labor_force"),
        ((5, 1, 4), "out_of_labor_force"),
        ((2, 2, 4), "not_working"),
        ((6, 6, 9701), "military"),
        ((7, 7, 4), "unemployed"),  # 7 means the forces in the NLSY79 only
        ((0, 0, -4), "unemployed"),  # no week is known: CV_ESR
    ],
)
def test_the_most_frequent_week_of_the_year_counts(tmp_path, values, state):
    row = person(1, occupation_2006=800, employment_status_2006=4)
    row |= {f"E00126{week:02d}": value for week, value in enumerate(values, start=1)}
    assert column(careers(tmp_path, [row], taxonomy="native"), "occupation") == {2006: state}


def test_weeks_that_the_list_lacks_are_known_by_their_names(tmp_path):
    row = person(1, occupation_2017=800) | {"E9991701": 5, "E9991801": 4, "E9991802": 4}
    extra = {
        name: (f"EMP_STATUS_20{name[4:6]}.{name[6:]}", "XRND") for name in ("E9991701", "E9991801", "E9991802")
    }
    made = careers(tmp_path, [row], extra=extra)
    assert column(made, "occupation") == {2017: "out_of_labor_force"}
    names = ("EMP_STATUS_2017.01", "EMP_STATUS_2017_01", "emp_status_2000.53", "EMP_HOURS_2017.01")
    assert [week_year(name) for name in names] == [2017, 2017, 2000, None]


def test_the_occupation_of_2021_is_known_by_its_name(tmp_path):
    row = person(1) | {"U9990100": 800, "U9990200": 1010, "U9990300": 2}
    extra = {
        "U9990100": ("YEMP_OCCODE-2002.01", "2021"),
        "U9990200": ("YEMP_OCCODE-2002.02", "2021"),
        "U9990300": ("CV_MAINJOB_FLG", "2021"),
    }
    assert column(careers(tmp_path, [row], extra=extra, taxonomy="native"), "occupation") == {2021: "1010"}


def test_who_is_enrolled_is_in_school_only_without_a_job(tmp_path):
    rows = [
        person(1, occupation_1997=-4, enrollment_1997=8),
        person(2, occupation_1997=-4, enrollment_1997=7),
        person(3, occupation_1997=800, enrollment_1997=10),
        person(4, occupation_1997=800, enrollment_1997=10, employment_status_1997=5),
        person(5, occupation_1997=800, enrollment_1997=10, employment_status_1997=8),
        person(6, occupation_1997=-2, enrollment_1997=10),
        person(7, occupation_1997=-5, enrollment_1997=-5),
    ]
    table = careers(tmp_path, rows, taxonomy="native").table
    assert table["occupation"].to_list() == ["in_school", "not_working", "800", "in_school", "military"]


def test_education_is_what_was_known_in_that_round(tmp_path):
    made = careers(
        tmp_path,
        [
            person(
                1,
                **{f"occupation_{year}": 800 for year in (1997, 1998, 1999, 2000, 2001, 2002, 2003, 2004, 2005)},
                enrollment_1997=8,
                highest_degree_1998=1,
                highest_degree_1999=2,
                highest_grade_1999=13,
                highest_grade_2000=13,
                enrollment_2001=-5,
                highest_degree_2002=2,
                highest_grade_2002=16,
                highest_degree_2003=4,
                highest_grade_2003=16,
                highest_degree_2004=4,
                highest_grade_2004=20,
                highest_degree_2005=7,
            )
            | {"Z9083900": 7, "Z9083800": 20}
        ],
        extra={"Z9083900": ("CVC_HIGHEST_DEGREE_EVER", "XRND"), "Z9083800": ("CVC_HGC_EVER", "XRND")},
    )
    assert column(made, "education") == {
        1997: "less than high school",
        1998: "high school",
        1999: "some college",
        2000: "some college",
        2001: "some college",
        2002: "some college",
        2003: "college",
        2004: "college",
        2005: "graduate",
    }


def test_non_occupations_are_left_out_and_the_forces_are_a_state(tmp_path):
    rows = [person(1, occupation_2011=9950), person(2, occupation_2011=9990), person(3, occupation_2011=9840)]
    table, report = careers(tmp_path, rows).table, report_of(tmp_path, rows)
    assert table.select("person_id", "occupation").rows() == [("3", "military")]
    assert report.unmapped["code"].to_list() == ["9950", "9990"]


def test_an_extract_of_the_other_cohort_is_refused(tmp_path):
    texts = layouts(filled([person(1, occupation_1997=800)]), "NLSY79")
    with pytest.raises(DataError, match=r"of the NLSY79, not of the NLSY97 .*use dataset=nlsy79"):
        read(NLSY97(raw=write_zip(tmp_path / "a.zip", texts)))
    with pytest.raises(DataError, match=r"line 2: the birth year is 60; in the NLSY97 it is 1980 to 1984"):
        careers(tmp_path, [person(1, born=60, occupation_1997=800)])


def test_the_list_of_variables_is_a_tagset():
    listed = NLSY97().variables()
    assert (listed.file_name, listed.table["found"].null_count()) == ("nlsy97.NLSY97", listed.table.height)
    assert listed.text.splitlines() == sorted(set(listed.text.splitlines()))
    needed = listed.table.filter("needed")
    assert (needed["concept"].unique().sort().to_list(), needed.height) == (["occupation", "person id"], 20)
    assert set(listed.costs) == set(listed.table["concept"]) - {"person id"}


def test_weeks_and_jobs_are_numbered_as_the_investigator_does():
    table = all_variables().filter(cohort="NLSY97")
    by_name = dict(table.select(pl.format("{} {}", "question", "tag"), "variable").iter_rows())
    assert by_name["EMP_STATUS_2000.53 XRND"] == "E0012053"
    assert by_name["EMP_STATUS_1997.01 XRND"] == "E0011701"
    assert by_name["YEMP_OCCODE-2002.13 2011"] == "T7733000"
    assert by_name["YEMP_OCCODE-2002.14 2017"] == "U1720700"
    assert by_name["CV_HRLY_PAY.09 2010"] == "T5209300"
    assert by_name["CV_HRLY_PAY.02 1997"] == "R1208600"
    assert by_name["CV_HIGHEST_DEGREE_9900 1999"] == "R3885701"
    assert by_name["CV_HIGHEST_DEGREE_1314 2013"] == "T8129700"
    weeks = table.filter(concept="weekly status").group_by("year").len().sort("year")
    assert set(weeks["len"]) == {52, 53}
    assert weeks.filter(len=53)["year"].to_list() == [2000, 2005, 2011]


def test_without_a_file_it_says_where_to_get_one():
    with pytest.raises(ConfigError, match=r"public-use NLSY97.*labor-llm variables dataset=nlsy97"):
        list(NLSY97().parts(Report()))


def test_the_yaml_says_what_the_class_does():
    config = OmegaConf.load(conf_folder() / "dataset" / "nlsy97.yaml")
    assert instantiate(config, _convert_="all") == NLSY97()


def test_a_degree_is_not_lost_where_a_round_knows_less(tmp_path):
    """A bachelor of 2005 stays one, whatever grade or college is reported after."""
    row = person(
        1,
        **{f"occupation_{year}": 800 for year in (2005, 2006, 2007, 2008)},
        highest_degree_2005=4,
        highest_degree_2006=-3,
        highest_grade_2006=14,
        highest_degree_2007=2,
        enrollment_2008=9,
    )
    assert set(column(careers(tmp_path, [row]), "education").values()) == {"college"}


def test_years_of_college_raise_a_diploma_and_enrollment_counts_in_its_own_round(tmp_path):
    row = person(
        1,
        **{f"occupation_{year}": 800 for year in (1998, 1999, 2000, 2001)},
        enrollment_1998=8,
        highest_degree_1999=2,
        enrollment_2000=10,
    )
    assert column(careers(tmp_path, [row]), "education") == {
        1998: "less than high school",
        1999: "high school",
        2000: "some college",
        2001: "high school",
    }


def test_who_was_enrolled_in_1997_is_not_without_a_diploma_in_2017(tmp_path):
    """Enrollment of 1997 and no more; then with the degree of the school year 2011, six years old in 2017."""
    degree = "T6657300"  # CV_HIGHEST_DEGREE_1112
    years = {"occupation_1997": 4700, "occupation_2013": 800, "occupation_2017": 800}
    rows = [person(id_, enrollment_1997=8, **years) for id_ in (1, 2)]
    table = careers(tmp_path, [rows[0], rows[1] | {degree: 4}]).table
    assert table.select("person_id", "year", "education").rows() == [
        ("1", 1997, "less than high school"),
        ("1", 2013, None),
        ("1", 2017, None),
        ("2", 1997, "less than high school"),
        ("2", 2013, "college"),
        ("2", 2017, None),
    ]
    assert (
        "what education rests on, of 6 person-years: highest degree 1, enrollment in the same round 2, unknown 3; "
        "1 are as reported up to 5 years before, 1 are unknown because the last report is older"
    ) in report_of(tmp_path, [rows[0], rows[1] | {degree: 4}]).notes


def test_what_was_known_holds_five_years_and_a_new_report_confirms_a_degree(tmp_path):
    jobs = {f"occupation_{year}": 800 for year in (2005, 2010, 2011, 2017, 2019)}
    row = person(1, **jobs, highest_degree_2005=4, highest_grade_2017=14, enrollment_2011=5)
    assert column(careers(tmp_path, [row]), "education") == {
        2005: "college",
        2010: "college",
        2011: "college",  # enrolled nowhere, with a two-year degree: no less than the degree of before
        2017: "college",  # a grade of 2017 is no news of a degree lost
        2019: "college",
    }


def test_the_degree_of_the_round_comes_before_that_of_the_school_year(tmp_path):
    row = person(1, occupation_2010=800, occupation_2011=800, highest_degree_2011=4) | {
        "T5207500": 3,
        "T6657300": 3,
    }
    assert column(careers(tmp_path, [row]), "education") == {2010: "some college", 2011: "college"}


@pytest.mark.parametrize("name", ["careers.csv.xz", "careers.csv", "careers.parquet"])
def test_a_table_of_careers_is_sent_to_its_own_reader(tmp_path, name):
    (tmp_path / name).write_text("person_id,year,census2010,status\n1,1997,4700,employed\n")
    with pytest.raises(DataError, match=r"row per person and year is read by dataset=table.*dataset=nlsy97_panel"):
        read(NLSY97(raw=tmp_path / name))
