"""The panel of Vella and Verbeek (1998): 545 young men of the NLSY79, every year from 1980 to 1987.

It is small, public and real, and comes with linearmodels, so everything can be tried on it without a download.
It is not a sample of the labor force: men only, who had left school by 1980 and worked in every one of the eight
years. So nobody is unemployed, in school or out of the labor force, and nobody drops out; occupations are the nine
major groups of the 1970 census. Each of the 545 has 8 records, 4360 in all.

F. Vella and M. Verbeek (1998), "Whose Wages Do Unions Raise? A Dynamic Model of Unionism and Wage Rate
Determination for Young Men", Journal of Applied Econometrics 13(2), 163-183.
"""

from collections.abc import Iterator

import polars as pl
from linearmodels.datasets import wage_panel
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from labor_llm.careers import Careers
from labor_llm.datasets.report import Report
from labor_llm.splits import SplitByPerson
from labor_llm.taxonomy import Taxonomy

SOURCE = "Vella and Verbeek (1998), NLSY79 men 1980-1987, as bundled with linearmodels"
SPLIT = SplitByPerson(salt="career-peer:wage_panel")
"""The salt of the split on which the reference code of CAREER was measured, so that numbers can be compared."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class WagePanel:
    """Settings of the wage panel; nothing needs to be downloaded."""

    name: str = "wage_panel"
    split: SplitByPerson = SPLIT

    @property
    def files(self) -> tuple[()]:
        """None: the panel comes with a Python package."""
        return ()

    def parts(self, report: Report) -> Iterator[Careers]:
        """The panel as careers, in one part; region and weight are not in the source and stay null."""
        wages = wage_panel.load()
        raw = pl.DataFrame({column: wages[column].to_numpy() for column in wages.columns})
        table = raw.select(
            person_id="nr",
            survey=pl.lit("NLSY79"),
            year="year",
            occupation="occupation",
            education=education_level(pl.col("educ")),
            gender=pl.lit("male"),
            ethnicity=ethnicity(pl.col("black"), pl.col("hisp")),
            birth_year=birth_year(pl.col("year"), pl.col("educ"), pl.col("exper")),
            log_wage="lwage",
        )
        report.count("person-years in the source", table)
        taxonomy = Taxonomy.packaged("census1970_major_groups")
        yield Careers.validated(table, dataset=self.name, taxonomy=taxonomy, source=SOURCE)


def education_level(years: pl.Expr) -> pl.Expr:
    """Years of schooling as a level. The panel gives one number per man, so a level never changes."""
    return (
        pl.when(years < 12)
        .then(pl.lit("less than high school"))
        .when(years == 12)
        .then(pl.lit("high school"))
        .when(years < 16)
        .then(pl.lit("some college"))
        .otherwise(pl.lit("college"))
    )


def ethnicity(black: pl.Expr, hispanic: pl.Expr) -> pl.Expr:
    """The three groups of the NLSY79; the panel tells no more of who is in the third."""
    groups = pl.when(black == 1).then(pl.lit("Black")).when(hispanic == 1).then(pl.lit("Hispanic"))
    return groups.otherwise(pl.lit("non-Black non-Hispanic"))


def birth_year(year: pl.Expr, schooling: pl.Expr, experience: pl.Expr) -> pl.Expr:
    """Derived, not reported: the panel's experience is potential, age - 6 - schooling.

    It is the same in a man's eight records and lies in 1957-1963; the NLSY79 took those born 1957 to 1964.
    """
    return year - 6 - schooling - experience
