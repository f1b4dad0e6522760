"""The National Longitudinal Survey of Youth 1997, from an extract of the NLS Investigator.

8,984 persons born 1980 to 1984, interviewed every year from 1997 to 2011 and every other year since. From the
second round on, fieldwork runs into the next spring; the year is the round's.

Occupation. Codes are those of 2002 in every round. A round has several employers, and CV_MAINJOB_FLG names the
main one (1 is the first on the roster); where the flag is missing, the first is taken. Pay is that of the same
job. A round reports the jobs since the last interview, so a code does not mean work at the interview.

Status. The most frequent state over the weeks of the calendar year, where the extract has the weekly arrays
(EMP_STATUS_2000.01 and so on; the interview's week is not known); else CV_ESR, which exists in 1997 and 2006; else
a valid skip of the occupation, which says that there was no job to report. Who is enrolled and neither at work nor
in the forces is in school.

Education. The highest degree by round (CV_HIGHEST_DEGREE_EVER_EDT, else that of the school year, such as
CV_HIGHEST_DEGREE_9899), which years of college without a degree raise to some college; else the highest grade
(CV_HGC_EVER_EDT). Rounds without both have what was last known, for five years at most, and a degree is never
lost; else what the enrollment status of the same round says, as in 1997. The variables across rounds (CVC_...)
are not used: they know the future.
"""

import re
from collections.abc import Iterator, Sequence
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

SCHEME = "census2002"
GENDERS = {0: None, 1: "male", 2: "female"}
ETHNICITIES = {1: "Black", 2: "Hispanic", 3: "mixed-race non-Hispanic", 4: "non-Black non-Hispanic"}
"""Not the order of the NLSY79, where 1 is Hispanic and 2 is Black."""
DEGREES = {0: 0, 1: 1, 2: 1, 3: 2, 4: 3, 5: 4, 6: 4, 7: 4}
"""CV_HIGHEST_DEGREE_EVER_EDT -> level: none, GED, diploma, AA, BA, MA, PhD, professional."""
ENROLLMENTS = {1: 0, 2: 1, 3: 1, 4: 2, 5: 2, 6: 3, 7: 4, 8: 0, 9: 2, 10: 2, 11: 3}
"""CV_ENROLLSTAT -> level. Not enrolled, with: 1 no diploma, 2 GED, 3 diploma, 4 some college, 5 a two-year degree,
6 a four-year degree, 7 a graduate degree. Enrolled in: 8 grades 1 to 12, 9 a two-year college, 10 a four-year
college, 11 a graduate program."""
ENROLLED = (8, 9, 10, 11)
EMPLOYMENT = {
    1: "employed",
    2: "employed",
    3: "unemployed",
    4: "unemployed",
    5: "out_of_labor_force",
    6: "out_of_labor_force",
    7: "out_of_labor_force",
    8: "military",
}
"""CV_ESR."""


def week_year(question: str) -> int | None:
    """The calendar year of EMP_STATUS_2000.01, the first week of 2000."""
    match = re.fullmatch(r"EMP_STATUS_(\d{4})\W?_?\d{2}", question, re.IGNORECASE)
    return int(match[1]) if match else None


COHORT = Cohort(
    name="NLSY97",
    birth_years=range(1980, 1985),
    week_year=week_year,
    week_codes={
        1: "out_of_labor_force",  # not with an employer and not searching
        2: "not_working",
        3: "employed",
        4: "unemployed",
        5: "out_of_labor_force",
        6: "military",
    },
    first_job=9701,
    costs={
        "occupation": "these rounds have no records",
        "occupation of other jobs": "main jobs that are not the first on the roster have no occupation",
        "main job": "the first employer on the roster is taken for the main job",
        "weekly status": "in these years, who reports a job counts as working, and others as not working",
        "employment status": "the weekly status replaces it, if there is one",
        "enrollment": "who is without a job counts as not working, not as in school",
        "highest degree": "education follows from degrees by school year, years of schooling, or enrollment",
        "highest degree by school year": "it is only needed where the highest degree is missing",
        "highest grade": "education follows from degrees alone, without some college",
        "region": "region stays unknown",
        "hourly pay": "pay stays unknown",
        "hourly pay of other jobs": "pay stays unknown where the main job is not the first on the roster",
        "weight": "the survey weight stays unknown",
        "gender": "gender stays unknown",
        "ethnicity": "ethnicity stays unknown",
        "birth year": "the birth year stays unknown",
    },
)
HINT = (
    "Sign in at nlsinfo.org/investigator, choose the NLSY97, upload this list as a tagset, and download the csv "
    "with reference numbers, the short description file (sdf) and the codebook. What the list lacks can be added "
    "by hand, and the sdf or the codebook names it: occupation and main job of 2021 (YEMP_OCCODE-2002, "
    "CV_MAINJOB_FLG) and the weekly status from 2017 (EMP_STATUS_2017.01 and so on)."
)


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class NLSY97:
    """Settings of the NLSY97."""

    name: str = "nlsy97"
    raw: Annotated[Path, AfterValidator(from_home)] | None = None
    """The Investigator's zip, the folder it was unpacked to, or its csv, dat or dct."""
    taxonomy: Target = "occ1990dd"
    """occ1990dd, or native: the four-digit census codes of 2002."""
    split: SplitByPerson = Field(default_factory=SplitByPerson)

    @property
    def files(self) -> Sequence[Path]:
        """The files of the extract."""
        return files_named(self.raw)

    def variables(self) -> Variables:
        """The list to upload to the Investigator, and what the extract has of it."""
        return variables_of(COHORT, self.raw, "nlsy97.NLSY97", HINT)

    def parts(self, report: Report) -> Iterator[Careers]:
        """The extract as careers, in one part; ConfigError or DataError if it cannot be used."""
        panel = read_panel(COHORT, self.name, self.raw, report)
        years = interviewed(panel, _with_education(person_years(panel, COHORT), report), report)
        note_education(years, report)
        records = _records(_main_jobs(years, report), report)
        source = f"NLSY97, extract of the NLS Investigator ({Path(panel.extract.where).name})"
        rows = records["row"]
        yield careers_of(
            records.drop("row"), [SCHEME], self.taxonomy, report, dataset=self.name, source=source, rows=rows
        )


def _with_education(years: pl.DataFrame, report: Report) -> pl.DataFrame:
    """Adds ``education`` as known in a round, what it rests on (``basis``), and its age in years (``told``)."""
    by_year = coded(years["highest degree by school year"], DEGREES, report)
    levels = years.select(
        "row",
        "year",
        degree=coded(years["highest degree"], DEGREES, report).fill_null(by_year),
        grade=coded(years["highest grade"], GRADES, report),
        enrolled=coded(years["enrollment"], ENROLLMENTS, report),
    )
    known = levels.with_columns(
        pl.col("degree").cum_max().forward_fill().over("row"),
        pl.col("grade").forward_fill().over("row"),
        told=last_told(pl.any_horizontal(pl.col("degree", "grade").is_not_null())),
    )
    degree, enrolled, fresh = pl.col("degree"), pl.col("enrolled"), (pl.col("told") <= FRESH).fill_null(False)
    in_college = pl.when((pl.col("grade") >= 2) | (enrolled >= 2)).then(2)
    with_degree = pl.when(degree.is_not_null()).then(pl.max_horizontal(degree, in_college))
    of_round = pl.when(enrolled.is_not_null()).then(pl.max_horizontal(enrolled, degree))
    known = known.with_columns(
        level=pl.when(fresh).then(pl.coalesce(with_degree, "grade")).otherwise(of_round),
        basis=pl.when(fresh & degree.is_not_null())
        .then(pl.lit("highest degree"))
        .when(fresh)
        .then(pl.lit("highest grade"))
        .when(enrolled.is_not_null())
        .then(pl.lit("enrollment in the same round"))
        .when(pl.col("told").is_not_null())
        .then(pl.lit("older"))
        .otherwise(pl.lit("nothing")),
    )
    return years.with_columns(known.select("basis", "told", education=in_words(pl.col("level"))))


def _main_jobs(years: pl.DataFrame, report: Report) -> pl.DataFrame:
    """Adds ``code`` and ``cents``, occupation and pay of the main job, and ``no_job``."""
    flag = pl.when(pl.col("main job") >= 1).then("main job")
    main = flag.fill_null(1)
    jobs = {concept: _by_job(years, concept) for concept in (OCCUPATION, "hourly pay")}
    code, cents = (
        pl.coalesce(pl.when(main == job).then(name) for job, name in names.items()) for names in jobs.values()
    )
    unnamed = years.filter(flag.is_null() & (pl.col(OCCUPATION) >= 0)).height
    if unnamed:
        report.note(
            f"the main job is not named in {unnamed:,} person-years with a job: the first employer is taken"
        )
    absent = years.filter((flag > 1) & code.is_null()).height
    if absent:
        report.note(
            f"the extract lacks the occupation of the main job, which is not the first, in {absent:,} person-years"
        )
    return years.with_columns(
        code=pl.when(code >= 0).then(code.cast(pl.String)),
        cents=cents,
        no_job=flag.is_null() & (pl.col(OCCUPATION) == NO_JOB),
    )


def _by_job(years: pl.DataFrame, concept: str) -> dict[int, str]:
    """Number of a job -> the column that a concept of it has in ``years``."""
    further = [name for name in years.columns if re.fullmatch(rf"{concept} \d+", name)]
    return {1: concept} | {int(name.rpartition(" ")[2]): name for name in further}


def _records(years: pl.DataFrame, report: Report) -> pl.DataFrame:
    """Person-years of those who were interviewed, as ``careers_of`` wants them."""
    years = years.with_columns(esr=coded(years["employment status"], EMPLOYMENT, report))
    found = pl.coalesce(WEEKS, "esr", pl.when("no_job").then(pl.lit("not_working")))
    years = years.with_columns(status=in_state(found, pl.col("enrollment").is_in(ENROLLED)))
    return years.select(
        "row",
        "person_id",
        "year",
        "status",
        "education",
        "code",
        survey=pl.lit("NLSY97"),
        scheme=pl.when(pl.col("code").is_not_null()).then(pl.lit(SCHEME)),
        region=coded(years["region"], REGIONS, report),
        gender=coded(years["gender"], GENDERS, report),
        ethnicity=coded(years["ethnicity"], ETHNICITIES, report),
        birth_year=pl.when(pl.col("birth year") >= 0).then("birth year"),
        log_wage=log_wage(pl.col("cents"), pl.col("status")),
        weight=weight_of(pl.col("weight")),
    )
