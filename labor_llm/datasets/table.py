"""A table of one's own, CSV or Parquet, that has one row per person and year."""

from pathlib import Path
from typing import Annotated

import polars as pl
from pydantic import AfterValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from labor_llm import errors
from labor_llm.careers import COLUMNS, Careers, SplitByPerson
from labor_llm.errors import ConfigError, DataError
from labor_llm.taxonomy import Taxonomy


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Table:
    """Settings of a table with the columns of a careers table, under its names or one's own."""

    name: str
    raw: Annotated[Path, AfterValidator(Path.expanduser)] | None = None
    """The file: .csv, .csv.gz or .parquet."""
    taxonomy: str = "occ1990dd"
    """A packaged taxonomy, or the path of a CSV file with the columns code, title and kind."""
    survey: str | None = None
    """The survey's name as the text states it; null if the file has a column ``survey``."""
    columns: dict[str, str | None] = Field(default_factory=dict)
    """Name of a careers column -> its name in the file; null if it has our name or is not there."""
    missing: list[str] = Field(default_factory=lambda: ["", "NA", "."])
    """How a CSV file writes that a value is unknown; by default as R, Stata and SAS do."""
    split: SplitByPerson = Field(default_factory=SplitByPerson)

    @property
    def files(self) -> list[Path]:
        """The table, and the taxonomy if it is a file."""
        own = [Path(self.taxonomy).expanduser()] if self.taxonomy.endswith(".csv") else []
        return own if self.raw is None else [self.raw, *own]

    def read(self) -> Careers:
        """The file as careers; ConfigError or DataError if it, its columns or its values are not fit."""
        if self.raw is None:
            raise ConfigError(f"dataset {self.name!r} has no file: give one with dataset.raw=PATH")
        names = {ours: theirs for ours, theirs in self.columns.items() if theirs is not None}
        table = renamed(read_file(self.raw, self.missing), names, str(self.raw))
        if self.survey is not None:
            if "survey" in table.columns:
                raise ConfigError(f"{self.raw} has a column 'survey': leave dataset.survey null, or drop it")
            table = table.with_columns(survey=pl.lit(self.survey))
        taxonomy = (
            Taxonomy.from_csv(Path(self.taxonomy).expanduser())
            if self.taxonomy.endswith(".csv")
            else Taxonomy.packaged(self.taxonomy)
        )
        return Careers.validated(table, dataset=self.name, taxonomy=taxonomy, source=f"table {self.raw.name}")


def read_file(path: Path, missing: list[str]) -> pl.DataFrame:
    """All columns of a CSV file, as text since leading zeros count, or of a Parquet file."""
    if not path.is_file():
        raise DataError(f"dataset.raw: no file at {path.absolute()}")
    if not path.name.endswith((".csv", ".csv.gz", ".parquet")):
        raise DataError(f"{path.name!r} must end in .csv, .csv.gz or .parquet")
    try:
        if path.suffix == ".parquet":
            return pl.read_parquet(path)
        return pl.read_csv(path, infer_schema=False, null_values=missing)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{path} is not readable as {path.suffix} file: {error}") from error


def renamed(table: pl.DataFrame, columns: dict[str, str], where: str) -> pl.DataFrame:
    """The table under our names. ``columns``: our name -> its name in the table."""
    for ours, theirs in columns.items():
        if ours not in COLUMNS:
            raise ConfigError(errors.unknown("careers column", ours, COLUMNS, " in dataset.columns"))
        if theirs not in table.columns:
            raise DataError(errors.unknown("column", theirs, table.columns, f" for {ours!r} in {where}"))
        if ours in table.columns and ours not in columns.values() and ours != theirs:
            raise DataError(f"{where} has a column {ours!r} beside {theirs!r}, which is to be {ours!r}: drop one")
    if len(set(columns.values())) < len(columns):
        raise ConfigError(f"dataset.columns gives one column of the file two names: {columns}")
    return table.rename({theirs: ours for ours, theirs in columns.items()})
