"""PSID's codes of employment, occupation, education, race and pay, which change over the waves, as ours.

Sources: value labels in github jfang07/thesis, data/psid (race, grades, employment status); the notes in github
cpfdata/CPF-Code, 03_PSID/us_01_3_Get_vars.do (employment status to 1975, occupation 600, salaries, their units).
Not confirmed from a source: 99.98 and 997 as the highest hourly rates, taken from those of salaries.
"""

import polars as pl

from labor_llm.datasets.survey import EDUCATION, EMPLOYED

OUT = "out_of_labor_force"
STATUS_TO_1975 = {1: EMPLOYED, 2: "unemployed", 3: OUT, 4: OUT, 5: "in_school", 6: OUT}
"""Working or laid off for a time, unemployed, retired or disabled, housewife, student, other."""
STATUS = {1: EMPLOYED, 2: "unemployed", 3: "unemployed", 4: OUT, 5: OUT, 6: OUT, 7: "in_school", 8: OUT}
"""Working, laid off for a time, unemployed, retired, disabled, keeping house, student, other."""
REGIONS = {1: "northeast", 2: "north central", 3: "south", 4: "west", 5: "west"}
"""5 is Alaska and Hawaii, in the West of the Census Bureau; 6 is abroad."""
ARMED_FORCES = {"600": "590"}
"""PSID's own code for current members, and one that the census list has for them."""
HOURS = {1: 1.0, 2: 8.0, 3: 40.0, 4: 80.0, 5: 2000 / 12, 6: 2000.0}
"""Unit of a salary (hour, day, week, two weeks, month, year) -> the hours that it pays."""
HOURS_1994_1995 = {1: 2000.0, 2: 2000 / 12, 3: 80.0, 4: 40.0}
"""Year, month, two weeks, week."""


def recoded(years: pl.DataFrame) -> pl.DataFrame:
    """Person-years with PSID's codes as person-years of ``careers_of``."""
    years = years.with_columns(status=_status()).with_columns(
        survey=pl.lit("PSID"),
        scheme=_scheme(),
        code=_code(),
        education=_education(),
        region=pl.col("region").replace_strict(REGIONS, default=None, return_dtype=pl.String),
        ethnicity=_ethnicity(),
        log_wage=pl.when(pl.col("status") == EMPLOYED).then(_hourly_pay().log()),
    )
    return years.drop("occupation", "race", "hispanic", "rate", "salary", "salary_unit")


def _status() -> pl.Expr:
    """Employment status (first mention, where several are recorded)."""
    early = pl.col("status").replace_strict(STATUS_TO_1975, default=None, return_dtype=pl.String)
    late = pl.col("status").replace_strict(STATUS, default=None, return_dtype=pl.String)
    return pl.when(pl.col("year") <= 1975).then(early).otherwise(late)


def _scheme() -> pl.Expr:
    """The census list in which the wave's occupations are coded."""
    year = pl.col("year")
    scheme = pl.when(year <= 2001).then(pl.lit("census1970")).when(year <= 2015).then(pl.lit("census2000"))
    return scheme.otherwise(pl.lit("census2010"))


def _code() -> pl.Expr:
    """The occupation, null for 0 (no job) and 999 or 9999 (not known).

    Null also from 2003 on where the status is not known: it may be a job of the past.
    """
    year, code = pl.col("year"), pl.col("occupation").cast(pl.Int64, strict=False)
    unknown = pl.when(year >= 2017).then(9999).otherwise(999)
    known = (code > 0) & (code != unknown) & ((year < 2003) | pl.col("status").is_not_null())
    text = pl.when(known).then(code.cast(pl.String))
    return pl.when(year <= 2001).then(text.replace(ARMED_FORCES)).otherwise(text)


def _education() -> pl.Expr:
    """Grades completed as a level: 17 is some postgraduate work; 0 (not asked), 98 and 99 are unknown."""
    grades = pl.col("education")
    levels = (grades.is_between(low, high) for low, high in ((1, 11), (12, 12), (13, 15), (16, 16), (17, 17)))
    return _first_that_holds(dict(zip(EDUCATION, levels, strict=True)))


def _ethnicity() -> pl.Expr:
    """Origin where it is Hispanic, else the first race that is mentioned, in groups that all waves can tell."""
    year, race = pl.col("year"), pl.col("race")
    named = ((race == 3) & (year <= 1984)) | ((race == 5) & year.is_between(1990, 2003))
    other = (race == 7) | ((race == 6) & year.is_between(1990, 2003)) | ((race == 8) & year.is_between(1985, 1989))
    asian = ((race == 4) & (year >= 1985)) | ((race == 5) & (year >= 2005))
    groups = {
        "Hispanic": pl.col("hispanic").is_between(1, 7) | named,
        "white": race == 1,
        "Black": race == 2,
        "American Indian": (race == 3) & (year >= 1985),
        "Asian or Pacific Islander": asian,
        "other-ethnicity": other,
    }
    return _first_that_holds(groups)


def _hourly_pay() -> pl.Expr:
    """Dollars per hour in the main job: the rate, or the salary for the hours that it pays.

    Until 1992 PSID had divided salaries by hours itself, and 99.98 stood for that much or more, 99.99 for unknown;
    later the highest values (from 997 dollars an hour, from 9,999,997 of salary) stand for these.
    """
    year, rate, salary, unit = (pl.col(name) for name in ("year", "rate", "salary", "salary_unit"))
    hours = pl.when(year.is_in([1994, 1995])).then(_hours(unit, HOURS_1994_1995)).otherwise(_hours(unit, HOURS))
    most = pl.when(year <= 1993).then(99.98).otherwise(997.0)
    divided, whole = pl.when(salary < 99.98).then(salary), pl.when(salary < 9_999_997).then(salary) / hours
    values = (pl.when(rate < most).then(rate), pl.when(year <= 1992).then(divided).otherwise(whole))
    return pl.coalesce(pl.when(value > 0).then(value) for value in values)


def _hours(unit: pl.Expr, hours: dict[int, float]) -> pl.Expr:
    return unit.replace_strict(hours, default=None, return_dtype=pl.Float64)


def _first_that_holds(names: dict[str, pl.Expr]) -> pl.Expr:
    return pl.coalesce(pl.when(holds).then(pl.lit(name)) for name, holds in names.items())
