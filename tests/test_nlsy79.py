"""The NLSY79 from extracts of a few respondents, whose careers were worked out by hand."""

import math
from pathlib import Path

import polars as pl
import pytest
from extracts import Rows, csv_text, filled, layouts, number, write, write_zip
from hydra.utils import instantiate
from omegaconf import OmegaConf

from labor_llm.careers import Careers
from labor_llm.configs import conf_folder
from labor_llm.datasets import read
from labor_llm.datasets.nlsy import all_variables
from labor_llm.datasets.nlsy79 import NLSY79, week_year
from labor_llm.datasets.report import Report
from labor_llm.datasets.variables import HasVariables
from labor_llm.errors import ConfigError, DataError

ID = "R0000100"


def of(concept: str, year: int | None = None) -> str:
    return number("NLSY79", concept, year)


def person(id_: int, born: int = 60, **values: int) -> dict[str, int]:
    """A woman, neither Black nor Hispanic; ``occupation_1979=23`` and so on give what is asked by year."""
    constant = {ID: id_, of("gender"): 2, of("ethnicity"): 3, of("birth year"): born}
    yearly = {}
    for name, value in values.items():
        concept, _, year = name.rpartition("_")
        yearly[of(concept.replace("_", " "), int(year))] = value
    return constant | yearly


def careers(folder: Path, rows: Rows, *, extra: dict[str, tuple[str, str]] | None = None, **settings) -> Careers:
    """What the reader makes of an extract of these respondents."""
    texts = layouts(filled(rows), "NLSY79", extra)
    return read(NLSY79(raw=write_zip(folder / "default.zip", texts), **settings))


def report_of(folder: Path, rows: Rows, extra: dict[str, tuple[str, str]] | None = None) -> Report:
    report, texts = Report(), layouts(filled(rows), "NLSY79", extra)
    read(NLSY79(raw=write_zip(folder / "default.zip", texts)), report)
    return report


def column(made: Careers, name: str) -> dict[int, str | float | None]:
    """Year -> value, of the only person."""
    return dict(made.table.select("year", name).iter_rows())


def test_a_career_worked_out_by_hand(tmp_path):
    made = careers(
        tmp_path,
        [
            person(
                12686,
                born=58,
                occupation_1979=3,  # computer programmers, in the list of 1970
                occupation_1990=1,  # accountants
                occupation_2002=80,  # accountants and auditors, in the list of 2000
                occupation_2004=1010,  # computer programmers, in that of 2000 with four digits
                region_1979=3,
                region_1990=4,
                hourly_pay_1979=385,
                hourly_pay_1990=-4,
                weight_1979=26453971,
                weight_1990=0,
                highest_grade_1979=12,
                highest_grade_1990=16,
            )
        ],
    )
    first = made.table.row(0, named=True)
    assert first.pop("log_wage") == pytest.approx(math.log(3.85))
    assert first == {
        "person_id": "12686",
        "survey": "NLSY79",
        "year": 1979,
        "occupation": "229",
        "education": "high school",
        "region": "south",
        "gender": "female",
        "ethnicity": "non-Black non-Hispanic",
        "birth_year": 1958,
        "weight": 264539.71,
    }
    assert column(made, "occupation") == {1979: "229", 1990: "023", 2002: "023", 2004: "229"}
    assert column(made, "region") == {1979: "south", 1990: "west", 2002: None, 2004: None}
    assert column(made, "education") == {1979: "high school", 1990: "college", 2002: None, 2004: None}
    assert column(made, "log_wage")[1990] is None
    assert column(made, "weight")[1990] is None
    assert made.source == "NLSY79, extract of the NLS Investigator (default.csv)"


def test_codes_are_of_three_lists(tmp_path):
    rows = [person(1, occupation_2000=1, occupation_2002=80, occupation_2004=800)]
    made = careers(tmp_path, rows, taxonomy="native")
    assert column(made, "occupation") == {
        2000: "census1970:1",
        2002: "census2000:80",
        2004: "census2000:80",  # the same title: one occupation
    }
    assert {made.taxonomy.title(code) for code in column(made, "occupation").values()} == {
        "Accountants",
        "Accountants and Auditors",
    }


def test_occupations_of_employer_1_before_1994_are_not_the_job(tmp_path):
    extra = {"R0338300": ("OCCALL-EMP.01", "1980")}
    made = careers(tmp_path, [person(1, occupation_1980=1) | {"R0338300": 23}], extra=extra, taxonomy="native")
    assert column(made, "occupation") == {1980: "census1970:1"}
    with pytest.raises(
        DataError, match=r"none of the occupations of the NLSY79.*R0046400 \(1979\).*T8982400 \(2022\)"
    ):
        careers(tmp_path, [person(1) | {"R0338300": 23}], extra=extra)


def test_groups_and_two_digit_birth_years(tmp_path):
    rows = [person(id_, occupation_1979=1) | {of("ethnicity"): id_, of("gender"): 1} for id_ in (1, 2, 3)]
    table = careers(tmp_path, rows).table
    assert table["ethnicity"].to_list() == ["Hispanic", "Black", "non-Black non-Hispanic"]
    assert set(table["gender"]) == {"male"}
    assert set(table["birth_year"]) == {1960}


@pytest.mark.parametrize("born", [1, 56, 65, 1980])
def test_a_birth_year_of_no_respondent_is_refused(tmp_path, born):
    with pytest.raises(DataError, match=rf"line 2: the birth year is {born}; in the NLSY79 it is 57 to 64"):
        careers(tmp_path, [person(1, born=born, occupation_1979=1)])


def test_who_was_not_interviewed_has_no_record_and_others_are_counted(tmp_path):
    rows = [
        person(1, occupation_1979=1, occupation_1980=-5),
        person(2, occupation_1979=-1, occupation_1980=-3),
        person(3, occupation_1979=-4, occupation_1980=995),
        person(4, occupation_1979=580, occupation_1980=0),
    ]
    report, made = report_of(tmp_path, rows), careers(tmp_path, rows)
    assert made.table.select("person_id", "year").rows() == [("1", 1979), ("3", 1979), ("4", 1979)]
    assert made.table["occupation"].to_list()[1:] == ["not_working", "military"]
    assert report.dropped == {
        "not interviewed in that round": {"persons": 1, "records": 1},
        "neither a job nor a state is known": {"persons": 1, "records": 2},
        "the occupation code has no counterpart in occ1990dd": {"persons": 2, "records": 2},
    }
    assert report.unmapped["code"].to_list() == ["0", "995"]


@pytest.mark.parametrize(
    ("year", "states"),
    [
        (1993, ["job", "job", "unemployed", "out_of_labor_force", "in_school", "out_of_labor_force", "military"]),
        (1994, ["job", "job", "unemployed", "unemployed", "out_of_labor_force", "out_of_labor_force", "military"]),
    ],
)
def test_the_employment_status_changes_its_meaning_in_1994(tmp_path, year, states):
    values = (1, 2, 3, 4, 5, 6, 8)
    rows = [
        person(id_, **{f"occupation_{year}": 1, f"employment_status_{year}": value, f"hourly_pay_{year}": 500})
        for id_, value in enumerate(values, start=1)
    ]
    table = careers(tmp_path, rows, taxonomy="native").table
    expected = ["census1970:1" if state == "job" else state for state in states]
    assert table["occupation"].to_list() == expected
    assert table["log_wage"].is_not_null().to_list() == [state == "job" for state in states]


def test_who_is_enrolled_is_in_school_only_without_a_job(tmp_path):
    rows = [
        person(1, occupation_1980=-4, enrollment_1980=2),
        person(2, occupation_1980=1, enrollment_1980=3),
        person(3, occupation_1980=1, enrollment_1980=3, employment_status_1980=3),
        person(4, occupation_1980=1, enrollment_1980=3, employment_status_1980=1),
        person(5, occupation_1980=1, enrollment_1980=3, employment_status_1980=8),
        person(6, occupation_1980=-4, enrollment_1980=4),
        person(7, occupation_1980=-4, enrollment_1980=-4),
    ]
    table = careers(tmp_path, rows, taxonomy="native").table
    job, school = "census1970:1", "in_school"
    assert table["occupation"].to_list() == [school, job, school, job, "military", "not_working", "not_working"]


def named_weeks(row: dict[str, int]) -> dict[str, tuple[str, str]]:
    """The questions of the weekly status in a row: W0005300 is week 53 here, and any number may be in truth."""
    return {name: (f"STATUS_WK_NUM{int(name[1:]) // 100:04d}", "XRND") for name in row if name[0] == "W"}


def test_weeks_are_counted_from_the_first_of_1978():
    assert [week_year(f"STATUS_WK_NUM{week:04d}") for week in (1, 52, 53, 105, 1879)] == [
        1978,
        1978,
        1979,
        1980,
        2014,
    ]
    assert week_year("HRS_WORKED_WK_NUM0053") is None


@pytest.mark.parametrize(
    ("values", "state"),
    [
        ((101, 101, 4), "job"),
        ((3, 2615, 5), "job"),
        ((4, 4, 101), "unemployed"),
        ((5, 5, 4), "out_of_labor_force"),
        ((2, 2, 0), "not_working"),
        ((7, 7, 101), "military"),
        ((0, 0, 4), "unemployed"),
        ((101, 4, 0), "job"),  # as often: work counts
        ((0, 0, 0), "out_of_labor_force"),  # no week is known: ESR_KEY
        ((0, 50, -4), "out_of_labor_force"),
    ],
)
def test_the_most_frequent_week_of_the_year_counts_before_the_employment_status(tmp_path, values, state):
    row = person(1, occupation_1979=1, employment_status_1979=4)
    for place, value in enumerate(values):
        row[f"W{100 * (53 + place):07d}"] = value
    made = careers(tmp_path, [row], extra=named_weeks(row), taxonomy="native")
    assert column(made, "occupation") == {1979: "census1970:1" if state == "job" else state}


def test_weeks_of_another_year_and_nameless_weeks_say_nothing(tmp_path):
    row = person(1, occupation_1980=1) | {"W0005300": 4, "W0010400": 4}  # 1979
    assert column(careers(tmp_path, [row], extra=named_weeks(row)), "occupation")[1980] == "023"
    lacking = "the extract lacks weekly status: who works is taken from ESR_KEY, or else from whether there is an "
    assert lacking + "occupation" in report_of(tmp_path, [row]).notes
    assert lacking + "occupation" not in report_of(tmp_path, [row], named_weeks(row)).notes


def test_education_is_what_was_known_in_that_year(tmp_path):
    made = careers(
        tmp_path,
        [
            person(
                1,
                **{f"occupation_{year}": 1 for year in (1979, 1980, 1988, 1989, 1990, 1991)},
                occupation_2016=800,
                occupation_2018=800,
                highest_grade_1979=11,
                highest_grade_1980=-5,
                highest_grade_as_reported_1980=12,
                highest_degree_1988=1,
                highest_grade_1989=15,
                highest_degree_1989=-4,
                highest_degree_1990=3,
                highest_grade_1991=95,
                highest_degree_1991=8,
                highest_grade_as_reported_2016=-4,
                highest_grade_as_reported_2018=18,
            )
            | {"T9900000": 20}
        ],
        extra={"T9900000": ("HGC_EVER", "XRND")},
    )
    assert column(made, "education") == {
        1979: "less than high school",
        1980: "high school",
        1988: "high school",
        1989: "some college",
        1990: "college",
        1991: "college",
        2016: "college",
        2018: "graduate",
    }


def test_education_does_not_pass_from_one_person_to_the_next(tmp_path):
    rows = [person(1, occupation_1979=1, highest_grade_1979=16), person(2, occupation_1979=1)]
    assert careers(tmp_path, rows).table["education"].to_list() == ["college", None]


def test_codes_of_no_codebook_are_noted(tmp_path):
    rows = [person(1, occupation_1979=1, region_1979=7, highest_grade_1979=44)]
    report = report_of(tmp_path, rows)
    assert "region: 1 values, such as 7, are in no codebook and taken as unknown" in report.notes
    assert "highest grade: 1 values, such as 44, are in no codebook and taken as unknown" in report.notes


def test_codes_of_no_list_are_counted(tmp_path):
    rows = [person(1, occupation_1979=1, region_1979=-4, occupation_2016=5), person(2, occupation_2016=174)]
    assert column(careers(tmp_path, rows), "region") == {1979: None}
    assert report_of(tmp_path, rows).unmapped.select("scheme", "code", "title").rows() == [
        ("census2002", "174", None),
        ("census2002", "5", None),
    ]


def test_an_extract_of_some_rounds_will_do_and_what_it_lacks_is_noted(tmp_path):
    rows = [person(1, occupation_1979=1, occupation_1980=1, occupation_1994=1, region_1979=1)]
    notes = report_of(tmp_path, rows).notes
    assert "the extract lacks occupation of 1981-1993, 1996-2022: these rounds have no records" in notes
    assert "the extract lacks region of 1980-2020: region stays unknown" in notes
    assert "the extract lacks weight: the survey weight stays unknown" in notes


def test_a_later_round_and_a_wrong_number_are_known_by_the_question(tmp_path):
    row = person(1, occupation_2022=800) | {"T9999900": 2, of("weight", 1979): 5}
    extra = {"T9999900": ("REGION", "2022"), of("weight", 1979): ("FAMSIZE", "1979")}
    assert column(careers(tmp_path, [row], extra=extra), "region") == {2022: "north central"}
    wrong = "R0216100 is FAMSIZE of 1979 in the extract, and not SAMPWEIGHT: it is not used"
    assert wrong in report_of(tmp_path, [row], extra).notes


def test_an_extract_of_the_other_cohort_is_refused(tmp_path):
    texts = layouts(filled([person(1, occupation_1979=1)]), "NLSY97")
    with pytest.raises(
        DataError, match=r"of the NLSY97, not of the NLSY79 .*tagset ends in \.NLSY97.*dataset=nlsy97"
    ):
        read(NLSY79(raw=write(tmp_path, texts)))


def test_a_csv_alone_is_read_with_a_note(tmp_path):
    path = tmp_path / "default.csv"
    path.write_text(csv_text(filled([person(1, occupation_1979=1)])).replace("-5", ""))
    report = Report()
    assert len(read(NLSY79(raw=path), report)) == 1
    assert any("says which cohort it is" in note for note in report.notes)
    assert not any("blank" in note for note in report.notes)


def test_the_list_of_variables_is_a_tagset(tmp_path):
    listed = NLSY79().variables()
    assert isinstance(NLSY79(), HasVariables)
    assert (listed.file_name, listed.table["found"].null_count()) == ("nlsy79.NLSY79", listed.table.height)
    lines = listed.text.splitlines()
    assert lines == sorted(set(lines)) == listed.table["variable"].to_list()
    assert all(len(line) == 8 and line[1:].isdigit() for line in lines)
    needed = listed.table.filter("needed")
    assert (needed["concept"].unique().sort().to_list(), needed.height) == (["occupation", "person id"], 31)
    once = listed.table.filter(sources=1)["concept"].value_counts().sort("concept").rows()
    assert once == [
        ("employment status", 19),
        ("highest grade", 1),
        ("hourly pay", 2),
        ("region", 2),
        ("weight", 26),
    ]
    assert set(listed.costs) >= set(listed.table["concept"]) - {"person id"}


def test_the_list_says_what_an_extract_has(tmp_path):
    raw = write_zip(tmp_path / "a.zip", layouts(filled([person(1, occupation_1979=1)]), "NLSY79"))
    table = NLSY79(raw=raw).variables().table
    assert table.filter("found")["variable"].to_list() == [ID, "R0000500", "R0046400", "R0214700", "R0214800"]
    with pytest.raises(DataError, match="of the NLSY97, not of the NLSY79"):
        NLSY79(raw=write_zip(tmp_path / "b.zip", layouts([{ID: 1}], "NLSY97"))).variables()


def test_variables_stand_for_one_thing_each():
    table = all_variables()
    assert not table.select("cohort", "variable").is_duplicated().any()
    but_weeks = table.filter(table["concept"] != "weekly status").select("cohort", "concept", "year", "job")
    assert not but_weeks.is_duplicated().any()
    assert table["variable"].str.contains(r"^[A-Z]\d{7}$").all()
    rounds = [*range(1979, 1995), *range(1996, 2023, 2)]
    assert table.filter(cohort="NLSY79", concept="occupation")["year"].sort().to_list() == rounds
    by_name = dict(
        table.filter(cohort="NLSY79").select(pl.format("{} {}", "question", "tag"), "variable").iter_rows()
    )
    assert by_name["CPSOCC70 1979"] == "R0046400"
    assert by_name["OCCALL-EMP.01 1994"] == "R4587904"
    assert by_name["OCCALL-EMP.01 2016"] == "T5256900"
    assert by_name["CPSHRP 1994"] == "R5079800"
    assert by_name["HRP1 1996"] == "R5165200"


def test_without_a_file_it_says_where_to_get_one():
    with pytest.raises(ConfigError, match=r"dataset\.raw=PATH.*nlsinfo\.org.*labor-llm variables dataset=nlsy79"):
        list(NLSY79().parts(Report()))


def test_its_files_are_those_beside_it_too(tmp_path):
    folder = write(tmp_path, layouts(filled([person(1)]), "NLSY79"), ".csv", ".NLSY79", "-value-labels.do")
    names = ["default-value-labels.do", "default.NLSY79", "default.csv"]
    for raw in (folder, folder / "default.csv"):
        assert [path.name for path in NLSY79(raw=raw).files] == names
    assert NLSY79().files == []
    assert NLSY79(raw=tmp_path / "absent.zip").files == [tmp_path / "absent.zip"]


def test_the_yaml_says_what_the_class_does():
    config = OmegaConf.load(conf_folder() / "dataset" / "nlsy79.yaml")
    assert instantiate(config, _convert_="all") == NLSY79()


def test_education_holds_five_years_unless_later_questions_are_skipped(tmp_path):
    """Who has no new grade and no new degree skips both questions: what was known is still so."""
    jobs = {f"occupation_{year}": 1 for year in (1988, 1993, 1994)}
    made = {
        skipped: column(
            careers(tmp_path, [person(1, **jobs, highest_degree_1988=3, **skipped_rounds)]), "education"
        )
        for skipped, skipped_rounds in {
            "never": {},
            "degree": {"highest_degree_1990": -4},
            "grade": {"highest_grade_as_reported_1989": -4},
            "refused": {"highest_degree_1990": -1},
        }.items()
    }
    late = {"never": None, "degree": "college", "grade": "college", "refused": None}
    assert made == {name: {1988: "college", 1993: "college", 1994: known} for name, known in late.items()}


def test_one_line_says_what_education_rests_on(tmp_path):
    row = person(1, occupation_1979=3, occupation_1984=3, occupation_1985=3, highest_grade_1979=12)
    assert (
        "what education rests on, of 3 person-years: highest grade 2, unknown 1; 1 are as reported up to 5 years "
        "before, 1 are unknown because the last report is older"
    ) in report_of(tmp_path, [row]).notes
