"""The National Longitudinal Survey of Youth 1979, from an extract of the NLS Investigator.

12,686 persons born 1957 to 1964, interviewed every year from 1979 to 1994 and every other year since.

Occupation. The job of the CPS item, current or most recent, to 1993 (CPSOCC70), and of employer 1 from 1994
(OCCALL-EMP.01). OCCALL-EMP.01 exists before 1994, too, but leaves out the CPS job and is nearly empty. Codes are
those of the census of 1970 to 2000, of 2000 in 2002, and of 2000 written with four digits (census2002) from 2004.

Status. A code does not mean work at the interview, so the status decides: the most frequent state over the weeks
of the calendar year, where the extract has the weekly arrays (STATUS_WK_NUM; the interview's week is not known);
else ESR_KEY, whose codes 4 and 5 meant keeping house and in school to 1993 and mean unemployed and retired since;
else a valid skip of the occupation, which says that there was no job to report.

Education. Highest grade completed (HGCREV, else Q3-4) as last known in that year, and the highest degree so far
(Q3-10B, asked from 1988, and afterwards only of those with a new one), whichever is higher; unknown if the last
round that told of either, or skipped the questions of new ones, is more than five years back. Variables across
rounds ("ever") are not used: they know the future. Pay is that of the CPS job to 1994, then of employer 1.
"""

import re
from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Annotated

import polars as pl
from pydantic import AfterValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from labor_llm.careers import Careers
from labor_llm.datasets.investigator_files import files_named
from labor_llm.datasets.nlsy import (
    FRESH,
    GRADES,
    NO_JOB,
    OCCUPATION,
    REGIONS,
    WEEKS,
    Cohort,
    coded,
    in_state,
    in_words,
    interviewed,
    last_told,
    log_wage,
    note_education,
    person_years,
    read_panel,
    variables_of,
    weight_of,
)
from labor_llm.datasets.report import Report
from labor_llm.datasets.survey import careers_of
from labor_llm.datasets.variables import Variables
from labor_llm.paths import from_home
from labor_llm.schemes import Target
from labor_llm.splits import SplitByPerson

SCHEMES = ("census1970", "census2000", "census2002")
GENDERS = {1: "male", 2: "female"}
ETHNICITIES = {1: "Hispanic", 2: "Black", 3: "non-Black non-Hispanic"}
DEGREES = {1: 1, 2: 2, 3: 3, 4: 3, 5: 4, 6: 4, 7: 4, 8: None}
"""Q3-10B -> level: diploma, associate, BA, BS, master, doctorate, professional, other."""
VALID_SKIP = -4
ENROLLED = (2, 3)
"""In high school, in college."""
BEFORE_1994 = {
    1: "employed",
    2: "employed",
    3: "unemployed",
    4: "out_of_labor_force",
    5: "in_school",
    6: "out_of_labor_force",
    7: "out_of_labor_force",
    8: "military",
}
"""ESR_KEY: working, with a job but not at work, unemployed, keeping house, in school, unable, other, forces."""
FROM_1994 = BEFORE_1994 | {4: "unemployed", 5: "out_of_labor_force"}
"""ESR_KEY: employed, absent, on layoff, looking, retired, disabled, other, forces."""
FIRST_WEEK = date(1978, 1, 1)


def week_year(question: str) -> int | None:
    """The calendar year of STATUS_WK_NUM0001, the first week of 1978, and those after it."""
    match = re.fullmatch(r"STATUS_WK_NUM(\d{4})", question, re.IGNORECASE)
    return (FIRST_WEEK + timedelta(weeks=int(match[1]) - 1, days=3)).year if match else None


COHORT = Cohort(
    name="NLSY79",
    birth_years=range(57, 65),
    week_year=week_year,
    week_codes={2: "not_working", 3: "employed", 4: "unemployed", 5: "out_of_labor_force", 7: "military"},
    first_job=100,
    costs={
        "occupation": "these rounds have no records",
        "weekly status": "who works is taken from ESR_KEY, or else from whether there is an occupation",
        "employment status": "without weekly status, who reports a job counts as working in these rounds",
        "enrollment": "who is without a job counts as not working, not as in school, unless ESR_KEY says so",
        "highest grade": "education is taken from the grade as reported",
        "highest grade as reported": "education stays as last known where the revised grade is missing, too",
        "highest degree": "education follows from years of schooling alone",
        "region": "region stays unknown",
        "hourly pay": "pay stays unknown",
        "weight": "the survey weight stays unknown",
        "gender": "gender stays unknown",
        "ethnicity": "ethnicity stays unknown",
        "birth year": "the birth year stays unknown",
    },
)
HINT = (
    "Sign in at nlsinfo.org/investigator, choose the NLSY79, upload this list as a tagset, and download the csv "
    "with reference numbers, the short description file (sdf) and the codebook. Add the weekly status by hand: "
    "search the question names that begin with STATUS_WK_NUM and add them all; the sdf or the codebook names them."
)


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class NLSY79:
    """Settings of the NLSY79."""

    name: str = "nlsy79"
    raw: Annotated[Path, AfterValidator(from_home)] | None = None
    """The Investigator's zip, the folder it was unpacked to, or its csv, dat or dct."""
    taxonomy: Target = "occ1990dd"
    """occ1990dd, or native: as the survey coded it, in three census lists."""
    split: SplitByPerson = Field(default_factory=SplitByPerson)

    @property
    def files(self) -> Sequence[Path]:
        """The extract; of a folder, what is in it."""
        return files_named(self.raw)

    def variables(self) -> Variables:
        """The list to upload to the Investigator, and what the extract has of it."""
        return variables_of(COHORT, self.raw, "nlsy79.NLSY79", HINT)

    def parts(self, report: Report) -> Iterator[Careers]:
        """The extract as careers, in one part; ConfigError or DataError if it cannot be used."""
        panel = read_panel(COHORT, self.name, self.raw, report)
        years = interviewed(panel, _with_education(person_years(panel, COHORT), report), report)
        note_education(years, report)
        records = _records(years, report)
        source = f"NLSY79, extract of the NLS Investigator ({Path(panel.extract.where).name})"
        rows = records["row"]
        yield careers_of(
            records.drop("row"), SCHEMES, self.taxonomy, report, dataset=self.name, source=source, rows=rows
        )


def _with_education(years: pl.DataFrame, report: Report) -> pl.DataFrame:
    """Adds ``education`` as known in a round, what it rests on (``basis``), and its age in years (``told``).

    Who is skipped by the questions of new grades and degrees has none since the last interview.
    """
    revised, reported = (
        coded(years[name], GRADES, report) for name in ("highest grade", "highest grade as reported")
    )
    levels = years.select(
        "row",
        "year",
        skipped=pl.any_horizontal(pl.col("highest grade as reported", "highest degree") == VALID_SKIP),
        grade=revised.fill_null(reported),
        degree=coded(years["highest degree"], DEGREES, report),
    )
    told = pl.any_horizontal(pl.col("grade", "degree").is_not_null())
    known = levels.with_columns(
        pl.col("grade").forward_fill().over("row"),
        pl.col("degree").cum_max().forward_fill().over("row"),
        told=last_told(told | pl.col("skipped").fill_null(False)),
    )
    level, fresh = pl.max_horizontal("grade", "degree"), (pl.col("told") <= FRESH).fill_null(False)
    by_degree = (pl.col("degree") > pl.col("grade")).fill_null(pl.col("grade").is_null())
    known = known.with_columns(
        basis=pl.when(level.is_null())
        .then(pl.lit("nothing"))
        .when(~fresh)
        .then(pl.lit("older"))
        .when(by_degree)
        .then(pl.lit("highest degree"))
        .otherwise(pl.lit("highest grade"))
    )
    return years.with_columns(known.select("basis", "told", education=in_words(pl.when(fresh).then(level))))


def _records(years: pl.DataFrame, report: Report) -> pl.DataFrame:
    """Person-years of those who were interviewed, as ``careers_of`` wants them."""
    job, year, esr = pl.col(OCCUPATION), pl.col("year"), years["employment status"]
    years = years.with_columns(
        esr=pl.when(year < 1994).then(coded(esr, BEFORE_1994, report)).otherwise(coded(esr, FROM_1994, report))
    )
    enrolled = pl.col("enrollment").is_in(ENROLLED).fill_null(False) | (pl.col("esr") == "in_school").fill_null(
        False
    )
    found = pl.coalesce(WEEKS, "esr", pl.when(job == NO_JOB).then(pl.lit("not_working")))
    years = years.with_columns(status=in_state(found, enrolled))
    lists = pl.when(year <= 2000).then(0).when(year == 2002).then(1).otherwise(2)
    return years.select(
        "row",
        "person_id",
        "year",
        "status",
        "education",
        survey=pl.lit("NLSY79"),
        scheme=pl.when(job >= 0).then(lists.replace_strict(dict(enumerate(SCHEMES)))),
        code=pl.when(job >= 0).then(job.cast(pl.String)),
        region=coded(years["region"], REGIONS, report),
        gender=coded(years["gender"], GENDERS, report),
        ethnicity=coded(years["ethnicity"], ETHNICITIES, report),
        birth_year=pl.when(pl.col("birth year") >= 0).then(pl.col("birth year") + 1900),
        log_wage=log_wage(pl.col("hourly pay"), pl.col("status")),
        weight=weight_of(pl.col("weight")),
    )
