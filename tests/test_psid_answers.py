"""What the answers of PSID's waves become: who is head or spouse, states, occupations, covariates and pay."""

import math

import pytest
from psid_downloads import BOB, CAT, EVE, Interview, Member, alone, careers, couple, record

from labor_llm.datasets import read
from labor_llm.datasets.psid import Psid


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
    assert record(table, EVE, 1983)["gender"] is None


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
