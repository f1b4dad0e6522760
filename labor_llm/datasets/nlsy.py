"""What the NLSY79 and the NLSY97 share: which variables are needed, and how an extract becomes person-years.

``nlsy_variables.csv`` says which variable holds what: concept, survey year (null: constant), job (1: the first
employer of the round), reference number, question name, the year as the Investigator writes it, and how many
independent public sources agree on the number (2: two or more). Negative values are no data: -1 refusal, -2 don't
know, -3 invalid skip, -4 valid skip (for an occupation: no job to report), -5 not interviewed in that round.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from labor_llm.datasets.investigator import ID, Extract, check_cohort, opened, spelled
from labor_llm.datasets.report import Report
from labor_llm.datasets.survey import EDUCATION, EMPLOYED
from labor_llm.datasets.variables import Variables
from labor_llm.errors import ConfigError, DataError

OCCUPATION, WEEKS = "occupation", "weekly status"
NO_JOB, NOT_INTERVIEWED = -4, -5
LEVELS = dict(enumerate(EDUCATION))
"""Education as a rank, for which of two is higher, and in words."""
GRADES: dict[int, int | None] = {
    **dict.fromkeys(range(12), 0),
    12: 1,
    **dict.fromkeys(range(13, 16), 2),
    **dict.fromkeys((16, 17), 3),
    **dict.fromkeys((18, 19, 20), 4),
    **dict.fromkeys((93, 94, 95)),
}
"""Highest grade completed -> level; 13 to 20: years of college, 93 to 95: preschool, kindergarten, ungraded."""
FRESH = 5
"""Years for which what a round says of education holds; what is older is unknown."""
BASES = ("highest degree", "highest grade", "enrollment in the same round", "older", "nothing")
"""What the education of a record rests on: ``older`` and ``nothing`` leave it unknown."""
REGIONS = {1: "northeast", 2: "north central", 3: "south", 4: "west"}
WEEK_STATES = (EMPLOYED, "military", "unemployed", "out_of_labor_force", "not_working")
"""The states of a week; of two that are as frequent, the earlier one counts."""


@dataclass(frozen=True)
class Cohort:
    """What the extract's reader must know of one of the cohorts."""

    name: str
    birth_years: range
    """As the variable holds them: of two digits in the NLSY79."""
    week_year: Callable[[str], int | None]
    """Question name of a week's status -> calendar year; None for other questions."""
    week_codes: Mapping[int, str]
    """Status of a week -> state; 0 and others: no information."""
    first_job: int
    """The lowest status of a week that is the number of a job, and so means work."""
    costs: Mapping[str, str]
    """Concept -> what is lost without it."""

    @property
    def listed(self) -> pl.DataFrame:
        """The cohort's part of ``nlsy_variables.csv``."""
        return all_variables().filter(cohort=self.name).drop("cohort")


@dataclass(frozen=True)
class Panel:
    """What an extract has of a cohort."""

    extract: Extract
    columns: pl.DataFrame
    """concept, year, job and variable of each column that is known."""
    wide: pl.DataFrame
    """One row per respondent, columns by variable."""

    @property
    def rounds(self) -> pl.Series:
        """The years whose occupation the extract has."""
        return _first_jobs(self.columns).filter(concept=OCCUPATION)["year"].unique()


def read_panel(cohort: Cohort, dataset: str, raw: Path | None, report: Report) -> Panel:
    """An extract of this cohort; what it lacks is noted. ConfigError or DataError if it cannot be used."""
    if raw is None:
        raise ConfigError(
            f"dataset {dataset!r} has no file: give one with dataset.raw=PATH. It is an extract of the public-use "
            f"{cohort.name} from nlsinfo.org/investigator (free, after signing in): the zip, its folder or its "
            f"csv. For the list of variables to upload there: labor-llm variables dataset={dataset}"
        )
    extract = opened(raw, _questions())
    columns = _columns(extract, cohort, report)
    wide = extract.table(columns["variable"].to_list())
    if not check_cohort(extract, wide[ID], cohort.name):
        report.note(
            f"nothing in {extract.where} says which cohort it is (a tagset, sdf or codebook beside it would): it "
            f"is taken to be of the {cohort.name}, as dataset={dataset} says"
        )
    panel = Panel(extract, columns, wide)
    _check_birth_years(panel, cohort)
    if panel.rounds.is_empty():
        needed = _first_jobs(cohort.listed).filter(concept=OCCUPATION)
        shown = ", ".join(f"{number} ({year})" for number, year in needed.select("variable", "year").iter_rows())
        raise DataError(
            f"{extract.where} has none of the occupations of the {cohort.name}, of which it needs at least one: "
            f"{shown}. For the list to upload: labor-llm variables dataset={dataset}"
        )
    for note in _lacking(cohort, columns):
        report.note(f"the extract lacks {note}")
    blanks = int(wide.null_count().sum_horizontal()[0])
    if blanks:
        report.note(
            f"{blanks:,} cells of {extract.where} are blank where the Investigator writes why a value is missing: "
            "whether somebody was not interviewed or had no job cannot be told there"
        )
    return panel


def person_years(panel: Panel, cohort: Cohort) -> pl.DataFrame:
    """A row per respondent and round, sorted: ``row`` (line of the file), person_id, year, a column per concept.

    Values are as coded, and null where a round or the extract lacks the concept; those of further jobs are named
    "occupation 2". The weekly status is the year's most frequent state, in words.
    """
    known = pl.concat([cohort.listed.select(panel.columns.columns), panel.columns]).filter(
        pl.col("concept") != WEEKS
    )
    names = known.select(_name()).to_series().unique(maintain_order=True).to_list()
    frames = []
    for year in known["year"].drop_nulls().unique().sort():
        found = panel.columns.filter(pl.col("year").is_null() | (pl.col("year") == year))
        places = dict(found.filter(pl.col("concept") != WEEKS).select(_name(), "variable").iter_rows())
        values = [
            (pl.col(places[name]) if name in places else pl.lit(None, pl.Int32)).alias(name) for name in names
        ]
        weeks = found.filter(concept=WEEKS)["variable"].to_list()
        frame = panel.wide.with_row_index("row", panel.extract.first_line)
        person = pl.col(ID).cast(pl.String).alias("person_id")
        frame = frame.select("row", person, pl.lit(year, pl.Int32).alias("year"), *values)
        frames.append(frame.with_columns(_usual_state(panel.wide, weeks, cohort).alias(WEEKS)))
    return pl.concat(frames).sort("row", "year", maintain_order=True)


def coded(
    values: pl.Series, words: Mapping[int, str | None] | Mapping[int, int | None], report: Report
) -> pl.Series:
    """A column in words, or ranks; codes that are not in ``words`` become null, and positive ones are noted."""
    odd = values.filter((values >= 0) & ~values.is_in(list(words)))
    if not odd.is_empty():
        report.note(
            f"{values.name}: {len(odd):,} values, such as {odd[0]}, are in no codebook and taken as unknown"
        )
    dtype = pl.String if any(isinstance(word, str) for word in words.values()) else pl.Int32
    old, new = pl.Series(list(words), dtype=pl.Int32), pl.Series(list(words.values()), dtype=dtype)
    return values.replace_strict(old, new, default=None, return_dtype=dtype)


def in_words(level: pl.Expr) -> pl.Expr:
    """A level of education in words."""
    return level.replace_strict(LEVELS, default=None, return_dtype=pl.String)


def last_told(told: pl.Expr) -> pl.Expr:
    """How many years ago something was said of a person's education, 0 for the same round; null for never."""
    return pl.col("year") - pl.when(told).then("year").forward_fill().over("row")


def note_education(years: pl.DataFrame, report: Report) -> None:
    """One line that says what education rests on; ``years`` has ``basis``, one of BASES, and ``told``, its age."""
    counts = dict.fromkeys(BASES, 0) | dict(years["basis"].value_counts().iter_rows())
    unknown = counts["older"] + counts["nothing"]
    rests = [f"{basis} {counts[basis]:,}" for basis in BASES[:3] if counts[basis]] + [f"unknown {unknown:,}"]
    carried = years.filter(pl.col("basis").is_in(BASES[:2]) & (pl.col("told") > 0)).height
    report.note(
        f"what education rests on, of {years.height:,} person-years: {', '.join(rests)}; {carried:,} are "
        f"as reported up to {FRESH} years before, {counts['older']:,} are unknown because the last report is older"
    )


def in_state(found: pl.Expr, enrolled: pl.Expr) -> pl.Expr:
    """The status of a year: who is enrolled and neither at work nor in the forces is in school."""
    idle = found.is_not_null() & ~found.is_in([EMPLOYED, "military"])
    return pl.when(idle & enrolled.fill_null(False)).then(pl.lit("in_school")).otherwise(found)


def log_wage(cents: pl.Expr, status: pl.Expr) -> pl.Expr:
    """Log of hourly pay in dollars, unless the status is one without work; null where pay is not positive."""
    return pl.when((cents > 0) & (status.is_null() | (status == EMPLOYED))).then((cents / 100).log())


def interviewed(panel: Panel, years: pl.DataFrame, report: Report) -> pl.DataFrame:
    """The rows of respondents who were interviewed, in the rounds whose occupation the extract has."""
    asked = years.filter(pl.col("year").is_in(panel.rounds.implode()))
    report.count("rounds of respondents in the extract", asked)
    absent = (pl.col(OCCUPATION) == NOT_INTERVIEWED).fill_null(False)
    report.drop("not interviewed in that round", asked.filter(absent))
    return asked.filter(~absent)


def weight_of(value: pl.Expr) -> pl.Expr:
    """A sampling weight, which has two implied decimals; 0 stands for not interviewed."""
    return pl.when(value > 0).then(value / 100)


def variables_of(cohort: Cohort, raw: Path | None, file_name: str, hint: str) -> Variables:
    """The list to upload to the Investigator, and what an extract has of it."""
    other = pl.col("job") > 1
    table = cohort.listed.sort("variable").select(
        "variable",
        pl.when(other).then(pl.format("{} of other jobs", "concept")).otherwise("concept").alias("concept"),
        "year",
        needed=pl.col("concept").is_in(["person id", OCCUPATION]) & ~other.fill_null(False),
        sources=pl.col("sources").cast(pl.Int8),
        found=pl.lit(None, pl.Boolean),
    )
    if raw is not None:
        extract = opened(raw, _questions())
        check_cohort(extract, extract.table([ID])[ID], cohort.name)
        found = _columns(extract, cohort, Report())["variable"]
        table = table.with_columns(found=pl.col("variable").is_in(found.implode()))
    text = "".join(f"{variable}\n" for variable in table["variable"])
    return Variables(table, dict(cohort.costs), file_name, text, hint)


@cache
def all_variables() -> pl.DataFrame:
    """``nlsy_variables.csv``."""
    content = (files("labor_llm.datasets") / "nlsy_variables.csv").read_bytes()
    return pl.read_csv(content, schema_overrides={"year": pl.Int32, "job": pl.Int32, "tag": pl.String})


def _questions() -> dict[str, str]:
    """Question with its year, as Stata spells it, -> variable; no two cohorts have one in common."""
    rows = all_variables().select("question", "tag", "variable").iter_rows()
    return {spelled(f"{question}_{tag}"): variable for question, tag, variable in rows}


def _first_jobs(columns: pl.DataFrame) -> pl.DataFrame:
    """All but what is of further jobs."""
    return columns.filter(pl.col("job").fill_null(1) == 1)


def _name() -> pl.Expr:
    """The column of a concept in ``person_years``."""
    several = pl.format("{} {}", "concept", "job")
    return pl.when(pl.col("job") > 1).then(several).otherwise("concept").alias("name")


def _columns(extract: Extract, cohort: Cohort, report: Report) -> pl.DataFrame:
    """concept, year, job and variable of the columns that are known by number, or by question and year.

    A number that one source gave is not believed where the extract says that it is another question.
    """
    listed = cohort.listed.filter(pl.col("variable").is_in(extract.variables))
    mistaken = []
    for variable, question in listed.filter(sources=1).select("variable", "question").iter_rows():
        own, tag = extract.questions.get(variable, (question, ""))
        if not spelled(question).startswith(spelled(own)):  # an sdf cuts long names
            mistaken.append(variable)
            report.note(f"{variable} is {own} of {tag} in the extract, and not {question}: it is not used")
    columns = listed.filter(~pl.col("variable").is_in(mistaken)).select("concept", "year", "job", "variable")
    have = {(concept, year, job) for concept, year, job, _ in columns.iter_rows() if concept != WEEKS}
    rows = [row for row in _by_question(extract, cohort, set(columns["variable"])) if row[:3] not in have]
    return columns.vstack(pl.DataFrame(rows, schema=columns.schema, orient="row"))


def _by_question(
    extract: Extract, cohort: Cohort, have: Collection[str]
) -> Iterator[tuple[str, int, int | None, str]]:
    """Columns that the list does not number: weeks, further jobs and later rounds, by the extract's own words."""
    known: dict[str, tuple[str, int | None, int]] = {}
    yearly = cohort.listed.filter(pl.col("year").is_not_null() & (pl.col("concept") != WEEKS)).sort("year")
    for concept, year, job, question in yearly.select("concept", "year", "job", "question").iter_rows():
        if not question.startswith(("CPSOCC", "OCCALL")):  # a later round may be coded in another scheme
            known.setdefault(_in_any_year(question, year), (concept, job, year))
    for variable in extract.variables:
        question, tag = extract.questions.get(variable, ("", ""))
        if variable in have:
            continue
        if (week := cohort.week_year(question)) is not None:
            yield WEEKS, week, None, variable
        elif tag.isdigit() and (found := known.get(_in_any_year(question, int(tag)))) and found[2] <= int(tag):
            yield found[0], int(tag), found[1], variable


def _in_any_year(question: str, year: int) -> str:
    """A question's name without the year that some end in: HGCREV79 is HGCREV."""
    return re.sub(rf"(?<=[A-Z]){year % 100:02d}$", "", spelled(question))


def _check_birth_years(panel: Panel, cohort: Cohort) -> None:
    allowed, found = cohort.birth_years, panel.columns.filter(concept="birth year")["variable"]
    if found.is_empty():
        return
    born = panel.wide[found[0]]
    wrong = ((born >= 0) & ~born.is_between(allowed.start, allowed.stop - 1)).fill_null(False).arg_true()
    if not wrong.is_empty():
        place = f"{panel.extract.where}, line {panel.extract.first_line + wrong[0]}"
        raise DataError(
            f"{place}: the birth year is {born[wrong[0]]}; in the {cohort.name} it is {allowed.start} to "
            f"{allowed.stop - 1}. Is it an extract of another cohort, or was it changed?"
        )


def _lacking(cohort: Cohort, columns: pl.DataFrame) -> Iterator[str]:
    """What an extract has not, with the years and the cost, a sentence per concept."""
    have = set(_first_jobs(columns).select("concept", "year").iter_rows())
    for concept, cost in cohort.costs.items():
        name = concept.removesuffix(" of other jobs")
        found = columns.filter(pl.col("concept") == name)
        years = cohort.listed.filter(pl.col("concept") == name)["year"].unique().sort().to_list()
        lacking = [year for year in years if (name, year) not in have]
        if concept != name:
            if found.filter(pl.col("job") > 1).is_empty():
                yield f"{concept}: {cost}"
        elif not years:
            if found.is_empty():
                yield f"{concept}: {cost}"
        elif lacking:
            yield f"{concept}{'' if lacking == years else f' of {_spans(lacking, years)}'}: {cost}"


def _spans(some: list[int], years: list[int]) -> str:
    """Some of the years in words; rounds that follow each other are one span: 1979-1985, 1990."""
    spans: list[list[int]] = []
    for place, year in enumerate(years):
        if year in some and place and years[place - 1] in some:
            spans[-1].append(year)
        elif year in some:
            spans.append([year])
    return ", ".join(str(span[0]) if len(span) == 1 else f"{span[0]}-{span[-1]}" for span in spans)


def _usual_state(wide: pl.DataFrame, weeks: list[str], cohort: Cohort) -> pl.Series:
    """The most frequent state of a year's weeks by respondent, of the weeks that it is known for."""
    if not weeks:
        return pl.repeat(None, wide.height, dtype=pl.String, eager=True)
    values_PW: NDArray[np.int32] = wide.select(weeks).fill_null(0).to_numpy()
    counts = {state: np.zeros(wide.height, np.int32) for state in WEEK_STATES}
    counts[EMPLOYED] += (values_PW >= cohort.first_job).sum(axis=1, dtype=np.int32)
    for code, state in cohort.week_codes.items():
        counts[state] += (values_PW == code).sum(axis=1, dtype=np.int32)
    counts_SP = np.stack(list(counts.values()))
    usual = pl.Series(WEEK_STATES).gather(counts_SP.argmax(axis=0))
    return usual.zip_with(pl.Series(counts_SP.any(axis=0)), pl.Series([None], dtype=pl.String))
