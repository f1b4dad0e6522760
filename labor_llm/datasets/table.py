"""A table of one's own that has one row per person and year: CSV, Parquet, Stata or Excel."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import polars as pl
from pydantic import AfterValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from labor_llm import errors
from labor_llm.careers import Careers
from labor_llm.columns import COLUMNS, REQUIRED, TEXT, as_numbers
from labor_llm.datasets.identifiers import identifiers
from labor_llm.datasets.in_parts import by_person
from labor_llm.datasets.investigator import is_header
from labor_llm.datasets.report import Report
from labor_llm.datasets.survey import STATUSES, careers_of
from labor_llm.datasets.table_codes import check_scheme, in_whole_numbers, note_other_scheme, with_leading_zeros
from labor_llm.datasets.table_files import guarded, readable, scanned
from labor_llm.datasets.words import WORDS, Recodes, Texts, check_words, recoded, text_of
from labor_llm.errors import ConfigError, DataError
from labor_llm.paths import from_home
from labor_llm.schemes import SCHEMES, Target
from labor_llm.splits import SplitByPerson
from labor_llm.taxonomy import Taxonomy

ROW = "the row in the file"
STATUS, WAGE = "status", "wage"
FIELDS = (*COLUMNS, STATUS, WAGE)
"""What a column of the file can be: a careers column, the state of those without a job, or hourly pay."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Table:
    """Settings of a table with the columns of a careers table, under its names or one's own."""

    name: str
    raw: Annotated[Path, AfterValidator(from_home)] | None = None
    """The file: .csv, .csv.gz, .csv.xz, .parquet, .dta or .xlsx."""
    origin: str = ""
    """Where such a file comes from: said when ``raw`` is not given."""
    taxonomy: str = "occ1990dd"
    """A packaged taxonomy, or the path of a CSV file with the columns code, title and kind. With a ``scheme``:
    occ1990dd, or native for the scheme's own codes."""
    scheme: str | None = None
    """The census list of which ``occupation`` holds codes, if they are to be carried to the taxonomy."""
    survey: str | None = None
    """The survey's name as the text states it; null if the file has a column ``survey``."""
    columns: dict[str, str | None] = Field(default_factory=dict)
    """Name of a field -> its name in the file; null if it has our name, which is then used, or is not there."""
    recodes: Recodes = Field(default_factory=dict)
    """Field -> the file's value -> ours; null: unknown. A value that is not named stays as it is."""
    units: dict[str, float] = Field(default_factory=dict)
    """Field -> what its numbers are multiplied by, such as 0.01 for implied decimals."""
    missing: Texts = Field(default_factory=lambda: ["", "NA", "."])
    """How a CSV file writes that a value is unknown; by default as R, Stata and SAS do."""
    split: SplitByPerson = Field(default_factory=SplitByPerson)

    def __post_init__(self) -> None:
        for setting in ("columns", "recodes", "units"):
            for field in getattr(self, setting):
                if field not in FIELDS:
                    raise ValueError(errors.unknown("careers column", field, FIELDS, f" in {setting}"))
        if self.scheme is not None and self.scheme not in SCHEMES:
            raise ValueError(errors.unknown("coding scheme", self.scheme, SCHEMES))
        if self.scheme is not None and self.taxonomy not in ("occ1990dd", "native"):
            raise ValueError(f"codes of a scheme are carried to occ1990dd or native, not to {self.taxonomy!r}")
        if self.scheme is None and self.columns.get(STATUS):
            raise ValueError("columns.status needs a scheme: without one, states are codes of the taxonomy")

    @property
    def files(self) -> list[Path]:
        """The table, and the taxonomy if it is a file."""
        own = [from_home(Path(self.taxonomy))] if self.taxonomy.endswith(".csv") else []
        return own if self.raw is None else [self.raw, *own]

    def parts(self, report: Report) -> Iterator[Careers]:
        """The file as careers; ConfigError or DataError if it, its columns or its values are not fit."""
        if self.raw is None:
            origin = f" {self.origin}" if self.origin else ""
            raise ConfigError(f"dataset {self.name!r} has no file: give one with dataset.raw=PATH.{origin}")
        words = {self.columns.get(name) or name for name in (*TEXT[1:], STATUS)}
        dates = {self.columns.get(name) or name for name in ("year", "birth_year")}
        with scanned(self.raw, self.missing, words, dates) as scan:
            with readable(self.raw):
                schema = scan.collect_schema()
            names = schema.names()
            fields = self._fields(names)
            unused = [name for name in names if name not in fields.values()]
            if unused:
                report.note(f"columns of {self.raw.name} that are not used: {', '.join(unused)}")
            column, numbered = fields["person_id"], scan.with_row_index(ROW, offset=1)
            with readable(self.raw):
                person = identifiers(numbered, column, schema[column], ROW, report)
                records = scan.select(pl.len()).collect(engine="streaming").item()
            for part in guarded(self.raw, by_person(numbered, person, records)):
                ours = self._renamed(part.with_columns(person.alias(column)), fields, report)
                yield self._careers(ours, report)
            if self.scheme is not None:
                note_other_scheme(report, self.scheme)

    def _fields(self, names: list[str]) -> dict[str, str]:
        """Field -> its column in the file, for all fields that the file has; nothing of ours is unexpected."""
        fields = {ours: theirs for ours, theirs in self.columns.items() if theirs is not None}
        for ours, theirs in fields.items():
            if theirs not in names:
                raise DataError(errors.unknown("column", theirs, names, f" for {ours!r} in {self.raw}"))
            if ours in names and ours not in fields.values() and ours != theirs:
                raise DataError(
                    f"{self.raw} has a column {ours!r} beside {theirs!r}, which is to be {ours!r}: drop one"
                )
        if len(set(fields.values())) < len(fields):
            raise ConfigError(f"dataset.columns gives one column of the file two names: {fields}")
        if "survey" in names and self.survey is not None:
            raise ConfigError(f"{self.raw} has a column 'survey': leave dataset.survey null, or drop it")
        possible = FIELDS if self.scheme is not None else tuple(field for field in FIELDS if field != STATUS)
        free = [name for name in names if name in possible and name not in fields.values()]
        fields |= {name: name for name in free if name not in fields}
        if {WAGE, "log_wage"} <= fields.keys():
            raise ConfigError(
                f"{self.raw}: wage is hourly pay and log_wage its log: name one of the two only in "
                "dataset.columns, and drop the other column if it has our name"
            )
        given = {"survey"} if self.survey is not None else set()
        lacking = [name for name in REQUIRED if name not in fields.keys() | given]
        if lacking and is_header(names):
            raise DataError(
                f"{self.raw} has the columns of an extract of the NLS Investigator ({', '.join(names[:3])}, ...): "
                "use dataset=nlsy79 or dataset=nlsy97, with the zip as downloaded"
            )
        if lacking:
            unused = next((name for name in names if name not in fields.values()), "NAME")
            survey = "; or give dataset.survey=NAME" if "survey" in lacking else ""
            raise DataError(
                f"{self.raw} has no column {' and no column '.join(map(repr, lacking))}. Its columns are "
                f"{', '.join(names)}: say which is which with dataset.columns, for example "
                f"dataset.columns.{lacking[0]}={unused}{survey}"
            )
        return fields

    def _renamed(self, part: pl.DataFrame, fields: dict[str, str], report: Report) -> pl.DataFrame:
        """The file's rows under our names, recoded and in our units."""
        table = part.select(ROW, *(pl.col(theirs).alias(ours) for ours, theirs in fields.items()))
        if self.survey is not None:
            table = table.with_columns(survey=pl.lit(self.survey))
        for field, words in self.recodes.items():
            if field in table.columns:
                table = table.with_columns(recoded(text_of(field, table[field].dtype), words))
        stated = [name for name in WORDS if name in table.columns]
        texts = table.select(text_of(name, table[name].dtype) for name in stated)
        check_words(texts, self.recodes, str(self.raw))
        for field, unit in self.units.items():
            if field in table.columns:
                table = self._numbers(table, field).with_columns(pl.col(field) * unit)
        if WAGE in table.columns:
            table, pay = self._numbers(table, WAGE), pl.col(WAGE)
            report.take_as_unknown("a wage of 0 or below", table.filter(pay <= 0))
            table = table.with_columns(log_wage=pl.when(pay > 0).then(pay.log())).drop(WAGE)
        return table

    def _numbers(self, table: pl.DataFrame, field: str) -> pl.DataFrame:
        """The table with a field as numbers; DataError if a value is none."""
        numbers = as_numbers(table[field])
        wrong = table.filter(numbers.is_null() & table[field].is_not_null())
        if not wrong.is_empty():
            value, row = wrong.select(field, ROW).row(0)
            also = f" ({wrong.height:,} such records)" if wrong.height > 1 else ""
            raise DataError(
                f"{field}: must be a number, and {value!r} in row {row} of {self.raw} is none{also}. "
                "If it stands for an unknown value, name it in dataset.missing or dataset.recodes."
            )
        return table.with_columns(numbers)

    def _careers(self, table: pl.DataFrame, report: Report) -> Careers:
        assert self.raw is not None
        rows, table = table[ROW], table.drop(ROW)
        dataset, source = self.name, f"table {self.raw.name}"
        if self.scheme is None:
            report.count("records in the source", table)
            taxonomy = Taxonomy.named(self.taxonomy)
            numbers = {code.lstrip("0") or "0" for code in taxonomy.codes}
            table = in_whole_numbers(table, report, stay=taxonomy.codes, numbers=numbers)
            table = with_leading_zeros(table, taxonomy, report)
            return Careers.validated(table, dataset=dataset, taxonomy=taxonomy, source=source, rows=rows)
        target: Target = "native" if self.taxonomy == "native" else "occ1990dd"
        years = self._years(in_whole_numbers(table, report), rows)
        check_scheme(years["code"], self.scheme, self.raw)
        return careers_of(years, [self.scheme], target, report, dataset=dataset, source=source, rows=rows)

    def _years(self, table: pl.DataFrame, rows: pl.Series) -> pl.DataFrame:
        """Person-years with a scheme, a code and a status, as the readers of surveys make them."""
        code = text_of("occupation", table["occupation"].dtype).str.strip_chars().str.strip_chars_start("0")
        code = pl.when(code == "").then(pl.lit("0")).otherwise(code)
        if STATUS not in table.columns:
            table = table.with_columns(pl.lit(None, pl.String).alias(STATUS))
        table = table.with_columns(text_of(STATUS, table[STATUS].dtype))
        odd = ~pl.col(STATUS).is_in(STATUSES)
        wrong = table.select(STATUS, row=rows).filter(odd)
        if not wrong.is_empty():
            value, row = wrong.row(0)
            raise DataError(
                f"{errors.unknown('status', value, STATUSES, f' in row {row} of {self.raw}')} "
                f"Say what it means with dataset.recodes.status ({len(wrong):,} such records); if the column is "
                "something else, give it another name in the file."
            )
        scheme = pl.when(code.is_not_null()).then(pl.lit(self.scheme))
        return table.with_columns(scheme=scheme, code=code).drop("occupation")
