"""The occupation codes that surveys use, and their way into a taxonomy. Sources: taxonomies/README.md."""

from collections.abc import Iterable
from functools import cache
from typing import Literal

import polars as pl

from labor_llm import errors
from labor_llm.errors import ConfigError
from labor_llm.taxonomy import PACKAGED, Taxonomy

Target = Literal["occ1990dd", "native"]
"""``occ1990dd``: carried to Dorn's codes. ``native``: as the survey coded them."""
SCHEMES = ("census1970", "census1980", "census1990", "census2000", "census2002", "census2010")
"""The US census lists. 2000 has three digits; 2002 is 2000 written with four; 2010 has four of its own."""
OCC1990DD = "occ1990dd"


@cache
def codes_of(scheme: str) -> pl.DataFrame:
    """Every code of a scheme: ``code`` (no leading zeros), ``title``, ``occ1990dd`` (null: not an occupation)."""
    if scheme not in SCHEMES:
        raise ConfigError(errors.unknown("coding scheme", scheme, SCHEMES))
    content = (PACKAGED / "schemes" / f"{scheme}.csv").read_bytes()
    return pl.read_csv(content, infer_schema=False, null_values="").select("code", "title", "occ1990dd")


def crosswalk(schemes: Iterable[str], target: Target, name: str) -> tuple[Taxonomy, pl.DataFrame]:
    """The taxonomy that codes are carried to, and the table that carries them: scheme, code, title, occupation.

    ``occupation`` is null for a code that is no occupation. A code of the armed forces, or of the unemployed,
    becomes the state. Natively, codes with the same title are one occupation, in one scheme or in several,
    since a title is all that a language model sees; ``name`` names that taxonomy.
    """
    schemes = tuple(schemes)
    table = pl.concat([codes_of(scheme).with_columns(scheme=pl.lit(scheme)) for scheme in schemes])
    if target == OCC1990DD:
        return Taxonomy.packaged(OCC1990DD), table.rename({OCC1990DD: "occupation"})
    if target != "native":
        raise ConfigError(errors.unknown("taxonomy", target, ["occ1990dd", "native"]))
    packaged = Taxonomy.packaged(OCC1990DD)
    own = pl.col("code") if len(schemes) == 1 else pl.format("{}:{}", "scheme", "code")
    first = own.first().over(pl.col("title").str.to_lowercase())
    is_job = ~pl.col(OCC1990DD).is_in(packaged.states)
    table = table.with_columns(occupation=pl.when(is_job).then(first).otherwise(OCC1990DD))
    jobs = table.filter(is_job.fill_null(False)).unique("occupation", keep="first", maintain_order=True)
    states = {code: title for code, title in packaged.titles.items() if code in packaged.states}
    titles = dict(jobs.select("occupation", "title").iter_rows()) | states
    return Taxonomy(name, titles, packaged.states), table.drop(OCC1990DD)
