"""The Panel Study of Income Dynamics: heads and spouses of American families in all waves from 1981 to 2021.

Careers are those of the reference person (RP, the "head" until 2015) and the spouse or partner (SP) of each wave:
of others the survey knows no occupation. A career begins when a person forms a household. Waves are yearly until
1997 and every two years after.

What a record says, and where measurement changes:

- A state counts before an occupation: from 2003 on, those who do not work are asked for their last main job.
- Occupations are coded in the census lists of 1970 (until 2001), 2000 (2003-2015) and 2010 (from 2017): apparent
  moves are more frequent between 2001 and 2003 and between 2015 and 2017. Before 1981 there are only codes that
  were added later, with all answers of a person in view, for selected original members of the sample: persons
  switch less often, and many workers have no code. Hence the default ``first_wave``.
- Education is what the individual file carries from wave to wave.
- Pay is that of the main job at the interview: the hourly rate, or the salary at PSID's own rate of 2000 hours a
  year or 40 a week. Average hourly earnings are of the year before, maybe of another job, and are not used.
- Weights stay unknown: their variable numbers are in none of the sources below.
- Ethnicity is the first that is known of a person; until 1984 spouses were not asked, and take a later one.

Variable numbers: psid_variables.csv beside this module, from the PSID cross-year index (github floswald/psidR,
inst/psid-lists/psid.xlsx), with a column that counts the sources which agree: that index, labels in github
jfang07/thesis, data/psid, and lists in floswald/psidR, R/makeids.r and cpfdata/CPF-Code,
03_PSID/us_01_3_Get_vars.do. Salaries of SP (none for 2021), and of RP before 1993, are from the last one only.
"""

from collections.abc import Iterator
from dataclasses import dataclass as record
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated

import polars as pl
from pydantic import AfterValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from labor_llm.careers import Careers
from labor_llm.columns import OLDEST
from labor_llm.datasets.psid_codes import recoded
from labor_llm.datasets.psid_files import DataFile, data_files
from labor_llm.datasets.report import Report
from labor_llm.datasets.survey import careers_of
from labor_llm.datasets.variables import Variables
from labor_llm.errors import ConfigError, DataError
from labor_llm.paths import from_home
from labor_llm.schemes import Target
from labor_llm.splits import SplitByPerson

ROLES = ("rp", "sp")
ID, NUMBER = "ER30001", "ER30002"
"""1968 interview number and person number: together they identify a person."""
OF_ROLES = ("rp_occupation", "sp_occupation", "rp_status", "sp_status")
"""A download without any of these of a wave does not have the wave."""
NEEDED = ("person", "person_number", "interview", "sequence", "relation", "family_interview", *OF_ROLES)
COSTS = {
    "sex": "gender stays unknown",
    "birth_year": "birth years rest on other waves, or on ages, which may be a year off",
    "age": "birth years rest on other waves",
    "education": "education stays unknown in that wave",
    "region": "region stays unknown in that wave",
    "race": "ethnicity rests on other waves",
    "hispanic": "Hispanics are told apart only where the question on race does it",
    "rate": "pay of those paid by the hour stays unknown in that wave",
    "salary": "pay of the salaried stays unknown in that wave",
    "salary_unit": "pay of the salaried stays unknown in that wave",
}
"""Concept, without the role -> what is lost without it."""
CITATION = "Panel Study of Income Dynamics, public use data, ISR, University of Michigan"
ORIGIN = (
    "Register at https://psidonline.isr.umich.edu. Then either download the packaged family files and the "
    "cross-year individual file into one folder; or put the list that `labor-llm variables dataset=psid` writes "
    "into the cart of the Data Center, and take all individuals, as ASCII with Stata, SAS or SPSS statements, or "
    "as CSV."
)


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Psid:
    """Settings of the PSID."""

    name: str = "psid"
    raw: Annotated[Path, AfterValidator(from_home)] | None = None
    """A folder with the packaged files, zipped or not; or a Data Center job of all individuals."""
    taxonomy: Target = "occ1990dd"
    first_wave: int = Field(default=1981, ge=1968, le=2021)
    """The first wave to use; before 1981, occupations are those of the retrospective recoding."""
    split: SplitByPerson = Field(default_factory=SplitByPerson)

    @property
    def files(self) -> list[Path]:
        """The archive, or every file in the folder, so that one that is added is noticed."""
        if self.raw is None:
            return []
        return sorted(path for path in self.raw.rglob("*") if path.is_file()) if self.raw.is_dir() else [self.raw]

    def parts(self, report: Report) -> Iterator[Careers]:
        """The careers, in one part; ConfigError or DataError if the files are not there or not fit."""
        if self.raw is None:
            command = "labor-llm prepare dataset=psid dataset.raw=FOLDER_OR_FILE"
            raise ConfigError(f"dataset {self.name!r} has no files. {ORIGIN} Then: {command}")
        table, found = catalogue(self.first_wave), data_files(self.raw)
        persons = _file_of_persons(found, self.raw)
        waves = _waves(found, persons, self.raw, table)
        _note_what_lacks(table, waves, persons, report)
        individuals = _individuals(persons, waves)
        years = pl.concat([_person_years(wave, individuals, report) for wave in waves])
        ours = individuals.join(years, on="person_id", how="semi")
        years = recoded(years).join(_births_and_sex(ours, waves), on="person_id", how="left")
        yield careers_of(
            _constant(years),
            ("census1970", "census2000", "census2010"),
            self.taxonomy,
            report,
            dataset=self.name,
            source=f"{CITATION}; {persons.file.place.name}",
        )

    def variables(self) -> Variables:
        """The list for the Data Center; a variable counts as found in whatever file of the download it is."""
        table = catalogue(self.first_wave).unique("variable", keep="first", maintain_order=True)
        is_found = pl.lit(None, pl.Boolean)
        if self.raw is not None:
            found = {name for data in data_files(self.raw) for name in data.variables}
            is_found = pl.col("variable").is_in(list(found))
        costs = {concept: COSTS.get(_without_role(concept), "") for concept in table["concept"].unique()}
        return Variables(
            table=table.select("variable", "concept", "year", "needed", "sources", found=is_found),
            costs={concept: cost for concept, cost in costs.items() if cost},
            file_name="psid_variables.txt",
            text="".join(f"{name}\n" for name in table["variable"]),
            hint=ORIGIN,
        )


@cache
def catalogue(first_wave: int) -> pl.DataFrame:
    """The variables of a panel that begins with a wave: file, concept, year, variable, sources, needed."""
    content = (resources.files("labor_llm") / "datasets" / "psid_variables.csv").read_bytes()
    table = pl.read_csv(content, schema_overrides={"year": pl.Int32, "sources": pl.Int8})
    in_panel = pl.col("year").is_null() | (pl.col("year") >= first_wave)
    return table.filter(in_panel).with_columns(needed=pl.col("concept").is_in(NEEDED))


@record(frozen=True)
class Wave:
    """Where a download has the variables of a wave."""

    year: int
    family: DataFile | None
    """The family file; None if the family's variables stand in the rows of the persons, as in a job of them."""
    of_persons: dict[str, str]
    """Concept -> variable, for those that the file of persons has."""
    of_family: dict[str, str]
    """Concept -> variable, for those that the family file has."""


def _file_of_persons(found: list[DataFile], raw: Path) -> DataFile:
    """The one file with a row per person."""
    fit = [data for data in found if {ID, NUMBER} <= set(data.variables)]
    if len(fit) == 1:
        return fit[0]
    if fit:
        raise DataError(
            f"more than one file in {raw} has a row per person: {_listed(fit)}. Leave one of them there, or name "
            "it with dataset.raw=PATH."
        )
    raise DataError(
        f"no file in {raw} has {ID} and {NUMBER}, which identify persons: add the cross-year individual file "
        f"(ind2023er.zip), or take a Data Center job of all individuals. It has {_listed(found)}."
    )


def _waves(found: list[DataFile], persons: DataFile, raw: Path, table: pl.DataFrame) -> list[Wave]:
    """The waves of the download, in order; DataError names the needed variables that those waves lack."""
    waves, lacking = [], []
    for year in table["year"].drop_nulls().unique().sort():
        names = dict(table.filter(year=year).select("concept", "variable").iter_rows())
        marks = {names[concept] for concept in OF_ROLES if concept in names}
        fit = [data for data in found if marks & set(data.variables)]
        fit = [persons] if persons in fit else fit
        if len(fit) > 1:
            raise DataError(f"more than one file has the wave of {year}: {_listed(fit)}. Leave one in {raw}.")
        if fit:
            of_persons = {what: name for what, name in names.items() if name in set(persons.variables)}
            of_family = {what: name for what, name in names.items() if name in set(fit[0].variables)}
            wave = Wave(year, None if fit[0] is persons else fit[0], of_persons, of_family)
            free = of_persons | of_family | ({} if wave.family else {"family_interview": ""})
            lacking += [f"{names[what]} ({what} {year})" for what in names if what in NEEDED and what not in free]
            waves.append(wave)
    if not waves:
        lacking = ["occupations and employment status of all waves: add family files"]
    if lacking:
        more = f", ... ({len(lacking)} in all)" if len(lacking) > 12 else ""
        raise DataError(
            f"{raw} lacks what is needed: {', '.join(lacking[:12])}{more}. "
            "`labor-llm variables dataset=psid dataset.raw=...` lists all that a download should have."
        )
    return waves


def _note_what_lacks(table: pl.DataFrame, waves: list[Wave], persons: DataFile, report: Report) -> None:
    """Say which waves and which optional variables are not in the download, and what that costs."""
    years = [wave.year for wave in waves]
    absent = [year for year in sorted(set(table["year"].drop_nulls())) if year not in years]
    if absent:
        report.note(f"the download lacks the waves {', '.join(map(str, absent))}")
    have = set(persons.variables).union(*(wave.of_family.values() for wave in waves))
    in_use = pl.col("year").is_null() | pl.col("year").is_in(years)
    lost = table.filter(in_use, ~pl.col("needed"), ~pl.col("variable").is_in(list(have)))
    for (concept,), rows in lost.group_by("concept", maintain_order=True):
        of = ", ".join(str(year) for year in rows["year"].drop_nulls())
        cost = COSTS[_without_role(str(concept))]
        report.note(f"the download lacks {concept}{' of ' if of else ''}{of}: {cost}")


def _individuals(persons: DataFile, waves: list[Wave]) -> pl.DataFrame:
    """All persons with a ``person_id`` and the variables of the waves; DataError if some identifier is not one."""
    sex = [name for name in _variables_of("sex") if name in persons.variables]
    names = [ID, NUMBER, *sex, *(name for wave in waves for name in wave.of_persons.values())]
    table = persons.read(list(dict.fromkeys(names)))
    odd = table.with_row_index("row", offset=1).filter(
        ~(pl.col(ID).is_between(1, 9999) & pl.col(NUMBER).is_between(1, 999)).fill_null(False)
    )
    if not odd.is_empty():
        row, first, second = odd.select("row", ID, NUMBER).row(0)
        raise DataError(
            f"{persons.file}: row {row:,} has {ID} = {first} and {NUMBER} = {second}, which is no person "
            f"({odd.height:,} such rows). Do data and statements belong together?"
        )
    twice = table.filter(pl.struct(ID, NUMBER).is_duplicated())
    if not twice.is_empty():
        raise DataError(
            f"{persons.file}: {ID} = {twice[ID][0]} with {NUMBER} = {twice[NUMBER][0]} occurs more than once "
            f"({twice.height:,} such rows); a file of all individuals has each person once"
        )
    person = pl.col(ID).cast(pl.Int64) * 1000 + pl.col(NUMBER).cast(pl.Int64)
    return table.with_columns(person_id=person.cast(pl.String))


def _person_years(wave: Wave, individuals: pl.DataFrame, report: Report) -> pl.DataFrame:
    """RP and SP of a wave with PSID's own codes.

    A RP has sequence number 1; who has moved out, died or lives in an institution keeps the relation to the head
    of the wave before, and is neither. Partners of less than a year (88) and husbands of a head (90) are not SP.
    """
    rp, sp, cohabitor = (1, 2, 2) if wave.year < 1983 else (10, 20, 22)
    relation, interview = pl.col(wave.of_persons["relation"]), wave.of_persons["interview"]
    sequence = pl.col(wave.of_persons["sequence"]) if "sequence" in wave.of_persons else pl.lit(1)
    is_rp = (relation == rp) & (sequence == 1)
    is_sp = ((relation == sp) | (relation == cohabitor)) & sequence.is_between(1, 20)
    of_wave = individuals.select("person_id", *dict.fromkeys(wave.of_persons.values()))
    rows = of_wave.filter(pl.col(interview) > 0, is_rp | is_sp).with_columns(is_rp=is_rp)
    if wave.family is not None:
        rows = _with_family(rows, interview, wave, wave.family, report)
    have = wave.of_persons | wave.of_family
    return pl.concat([_of_role(rows.filter(is_rp=role == "rp"), role, wave.year, have) for role in ROLES])


def _with_family(rows: pl.DataFrame, interview: str, wave: Wave, family: DataFile, report: Report) -> pl.DataFrame:
    """The persons of a wave with the variables of their families; counted and left out without a family."""
    key = wave.of_family["family_interview"]
    families = family.read(list(wave.of_family.values())).filter(pl.col(key) > 0).unique()
    twice = families.filter(pl.col(key).is_duplicated())
    if not twice.is_empty():
        raise DataError(f"{family.file}: interview {key} = {twice[key][0]} has two rows with different answers")
    left, right = (pl.col(name).cast(pl.Float64) for name in (interview, key))
    merged = rows.join(families, left_on=left, right_on=right, how="inner", maintain_order="left")
    if merged.is_empty() and not rows.is_empty():
        raise DataError(
            f"{family.file}: none of its {families.height:,} families is in the individual file of {wave.year}. "
            "Are both complete, and is the individual file no older?"
        )
    report.drop(f"the family file of {wave.year} lacks the family", rows.join(merged, on="person_id", how="anti"))
    return merged


def _of_role(rows: pl.DataFrame, role: str, year: int, have: dict[str, str]) -> pl.DataFrame:
    """The answers of RPs or SPs in columns without the role; null for what was not asked or is not there."""
    own = ("occupation", "status", "race", "hispanic", "rate", "salary", "salary_unit")
    names = {what: have.get(f"{role}_{what}") for what in own} | {
        what: have.get(what) for what in ("education", "region")
    }
    answers = {
        what: pl.lit(None, pl.Float64) if name is None else pl.col(name).cast(pl.Float64)
        for what, name in names.items()
    }
    return rows.select("person_id", year=pl.lit(year, pl.Int32), **answers)


def _births_and_sex(individuals: pl.DataFrame, waves: list[Wave]) -> pl.DataFrame:
    """Birth year and gender of every person.

    The birth year is the one that most waves report, the earliest of several; without a report (none was asked
    before 1983) it is likewise that of the ages.
    """
    value, ages = pl.col("value"), _long(individuals, waves, "age")
    reported = _most_frequent(_long(individuals, waves, "birth_year").filter(value.is_between(1850, 2021)))
    from_age = _most_frequent(ages.filter(value.is_between(1, 120)).with_columns(value=pl.col("year") - value))
    (sex,) = _variables_of("sex")
    code = pl.col(sex).cast(pl.Int64, strict=False) if sex in individuals.columns else pl.lit(None, pl.Int64)
    gender = code.replace_strict({1: "male", 2: "female"}, default=None, return_dtype=pl.String)
    return (
        individuals.select("person_id", gender=gender)
        .join(reported, on="person_id", how="left")
        .join(from_age, on="person_id", how="left", suffix="_from_age")
        .select("person_id", "gender", birth_year=pl.coalesce("value", "value_from_age").cast(pl.Int32))
    )


def _long(individuals: pl.DataFrame, waves: list[Wave], concept: str) -> pl.DataFrame:
    """person_id, year and value of a concept in all waves that have it."""
    empty = pl.DataFrame(schema={"person_id": pl.String, "year": pl.Int32, "value": pl.Float64})
    tables = [
        individuals.select("person_id", year=pl.lit(wave.year, pl.Int32), value=pl.col(name).cast(pl.Float64))
        for wave in waves
        if (name := wave.of_persons.get(concept)) is not None
    ]
    return pl.concat([empty, *tables])


def _most_frequent(table: pl.DataFrame) -> pl.DataFrame:
    """Every person's most frequent value, the lowest of several."""
    counted = table.group_by("person_id", "value").len()
    ranked = counted.sort("person_id", "len", "value", descending=[False, True, False])
    return ranked.unique("person_id", keep="first", maintain_order=True).drop("len")


def _constant(years: pl.DataFrame) -> pl.DataFrame:
    """The ethnicity that is known first, for all years; no birth year that makes an age impossible."""
    years = years.sort("person_id", "year")
    ethnicity = pl.col("ethnicity").drop_nulls().first()
    ages = pl.col("year") - pl.col("birth_year")
    return years.with_columns(
        ethnicity=ethnicity.over("person_id"),
        birth_year=pl.when(ages.is_between(0, OLDEST).all().over("person_id")).then("birth_year"),
    )


def _variables_of(concept: str) -> list[str]:
    return catalogue(1968).filter(concept=concept)["variable"].to_list()


def _without_role(concept: str) -> str:
    return concept.removeprefix("rp_").removeprefix("sp_")


def _listed(found: list[DataFile]) -> str:
    more = f", ... ({len(found)} files)" if len(found) > 4 else ""
    return ", ".join(str(data.file) for data in found[:4]) + more
