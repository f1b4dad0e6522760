"""Careers in the text format of the CAREER reference code (github keyonvafa/career-code), resumes included.

A folder has the files ``train.*``, ``valid.*`` and ``test.*``, plain or as ``.gz``, with a line for every person:

    job, year, education         a token for every record of the person, in the same order
    ethnicity, gender, location  one token for the person
    id                           optional, and not of the reference code: who the person is

``job`` and ``year`` are needed: a careers table has a record per person and year. Tokens have no spaces; the
underscores in those of covariates are read as spaces. The files are read side by side, some lines at a time, so
that tens of millions of resumes pass.
"""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Annotated, Literal

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import AfterValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from labor_llm import errors
from labor_llm.careers import Careers
from labor_llm.datasets.report import Report
from labor_llm.datasets.words import Recodes, Texts, check_words
from labor_llm.errors import ConfigError, DataError
from labor_llm.paths import from_home
from labor_llm.splits import Split
from labor_llm.taxonomy import Taxonomy

PERSONS_PER_PART = 200_000
BLOCK = 4_000_000
"""Bytes that are read at once."""
PER_RECORD = {"job": "occupation", "year": "year", "education": "education"}
PER_PERSON = {"ethnicity": "ethnicity", "gender": "gender", "location": "region"}
"""Ending of a file -> column of the careers table."""
NEEDED = ("job", "year")
ENDINGS = (*PER_RECORD, *PER_PERSON, "id")
RECODED = ("education", "ethnicity", "gender", "region")
SOURCE = "text files of the CAREER reference code"


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class SplitByFile(Split):
    """Train, valid and test as the files have them: the part stands before the person in ``person_id``."""

    def assign(self, careers: Careers) -> NDArray[np.intp]:
        parts_P = careers.table["person_id"].gather(careers.person_starts[:-1]).str.extract("^([a-z]+)/")
        places = {part: place for place, part in enumerate(self.PARTS)}
        places_P = parts_P.replace_strict(places, default=None, return_dtype=pl.Int64)
        if places_P.has_nulls():
            odd = careers.table["person_id"][int(careers.person_starts[places_P.is_null().arg_true()[0]])]
            raise DataError(f"person {odd!r} does not come from a file of train, valid or test: use another split")
        return places_P.to_numpy().astype(np.intp)

    def wants(self, part: str) -> bool:
        return True


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class CareerText:
    """Settings of text files of the CAREER reference code."""

    name: str = "career_text"
    raw: Annotated[Path, AfterValidator(from_home)] | None = None
    """The folder with the files."""
    taxonomy: str | None = None
    """Of which the job tokens are codes: a packaged name, or the path of a CSV file with the columns code, title
    and kind. Null: every token is an occupation, and its own title."""
    survey: str = "resumes"
    """The source's name as the text states it."""
    missing: Texts = Field(default_factory=lambda: ["<unk>", "unknown", "NA", "nan", "none"])
    """Tokens of covariates that say nothing."""
    recodes: Recodes = Field(default_factory=dict)
    """education, ethnicity, gender or region -> a token -> our word for it; null: unknown."""
    same_year: Literal["refuse", "first", "last"] = "refuse"
    """Which of several records that a person has in one year is kept, in the order of the line."""
    split: SplitByFile = Field(default_factory=SplitByFile)

    def __post_init__(self) -> None:
        for field in self.recodes:
            if field not in RECODED:
                raise ValueError(errors.unknown("column", field, RECODED, " in recodes"))

    @property
    def files(self) -> list[Path]:
        """Every file of the format that the folder has, and the taxonomy if it is a file."""
        own = [from_home(Path(self.taxonomy))] if self.taxonomy and self.taxonomy.endswith(".csv") else []
        return own if self.raw is None else [*(self.raw / name for name in _names() if self._has(name)), *own]

    def parts(self, report: Report) -> Iterator[Careers]:
        """The careers, of some 200,000 persons at a time; ConfigError or DataError if the files are not fit."""
        if self.raw is None:
            raise ConfigError(
                f"dataset {self.name!r} has no files: name the folder that has train.job, train.year, ... with "
                "dataset.raw=FOLDER. The format is that of github keyonvafa/career-code."
            )
        files = {part: self._files_of(part) for part in sorted(Split.PARTS)}
        _check_persons([of["id"] for of in files.values() if "id" in of])
        taxonomy = self._taxonomy([of["job"] for of in files.values()])
        for part, of in files.items():
            for records in self._records(part, of, report):
                report.count("records", records)
                if not records.is_empty():
                    yield Careers.validated(
                        records.drop("line"),
                        dataset=self.name,
                        taxonomy=taxonomy,
                        source=SOURCE,
                        rows=records["line"],
                    )

    def _has(self, name: str) -> bool:
        return self.raw is not None and (self.raw / name).is_file()

    def _files_of(self, part: str) -> dict[str, Path]:
        """Ending -> file of a part, plain or compressed."""
        assert self.raw is not None
        if not self.raw.is_dir():
            raise DataError(f"dataset.raw: no folder at {self.raw.absolute()}")
        found = {}
        for ending in ENDINGS:
            names = [name for name in (f"{part}.{ending}", f"{part}.{ending}.gz") if self._has(name)]
            if len(names) > 1:
                raise DataError(f"{self.raw} has both {names[0]} and {names[1]}: leave one of them there")
            if names:
                found[ending] = self.raw / names[0]
        for ending in NEEDED:
            if ending not in found:
                have = ", ".join(sorted(path.name for path in self.raw.iterdir())[:8]) or "nothing"
                raise DataError(f"{self.raw} has no {part}.{ending} and no {part}.{ending}.gz. It has {have}")
        return found

    def _taxonomy(self, jobs: list[Path]) -> Taxonomy:
        """The taxonomy of the settings, or the one that the tokens of all files make."""
        if self.taxonomy is not None:
            return Taxonomy.named(self.taxonomy)
        tokens = pl.Series("token", [], pl.String)
        for path in jobs:
            with ExitStack() as stack:
                file = Lines(path, stack)
                while len(lines := file.take(PERSONS_PER_PART)):
                    tokens = pl.concat([tokens, _tokens(lines).explode().drop_nulls().unique()]).unique()
        codes = pl.DataFrame([tokens]).sort(pl.col("token").cast(pl.Int64, strict=False), "token", nulls_last=True)
        return Taxonomy(f"{self.name}_tokens", {token: token for token in codes["token"]}, frozenset())

    def _records(self, part: str, files: dict[str, Path], report: Report) -> Iterator[pl.DataFrame]:
        """The records of a part as columns of a careers table, with the line that they stand on."""
        with ExitStack() as stack:
            readers = {ending: Lines(path, stack) for ending, path in files.items()}
            while len((lines := _next_lines(readers))["job"]):
                first = readers["job"].taken - len(lines["job"]) + 1
                yield self._table(part, files, lines, first, report)

    def _table(
        self, part: str, files: dict[str, Path], lines: dict[str, pl.Series], first: int, report: Report
    ) -> pl.DataFrame:
        """The records on some lines, of which the first has this number."""
        number = pl.int_range(first, first + len(lines["job"]), eager=True, dtype=pl.Int64).alias("line")
        table = pl.DataFrame([number]).with_columns(person_id=_person_ids(part, number, lines.get("id")))
        tokens = {ending: _tokens(lines[ending]) for ending in lines if ending in PER_RECORD}
        counts = tokens["job"].list.len()
        for ending, found in tokens.items():
            _check_counts(files[ending], found.list.len(), counts, files["job"], first)
        for ending in lines.keys() & PER_PERSON.keys():
            table = table.with_columns(_single(files[ending], lines[ending], first).alias(PER_PERSON[ending]))
        report.count("lines in the files", table)
        report.drop("the line has no records", table.filter(counts == 0))
        kept = counts > 0
        records = table.filter(kept).select(pl.all().repeat_by(counts.filter(kept)).explode())
        found_years = tokens["year"].filter(kept).explode()
        records = records.with_columns(
            occupation=tokens["job"].filter(kept).explode(),
            year=_years(files["year"], found_years, records["line"]),
            survey=pl.lit(self.survey),
        )
        if "education" in tokens:
            records = records.with_columns(education=tokens["education"].filter(kept).explode())
        return self._one_a_year(self._in_words(records), report)

    def _in_words(self, records: pl.DataFrame) -> pl.DataFrame:
        """Covariates in our words, null where unknown."""
        known = [pl.col(name).replace(dict.fromkeys(self.missing)) for name in RECODED if name in records.columns]
        records = records.with_columns(known)
        for field, words in self.recodes.items():
            if field in records.columns:
                records = records.with_columns(pl.col(field).replace(words))
        records = records.with_columns(
            pl.col(name).str.replace_all("_", " ", literal=True).str.strip_chars()
            for name in RECODED
            if name in records.columns
        )
        check_words(records, self.recodes, str(self.raw))
        return records

    def _one_a_year(self, records: pl.DataFrame, report: Report) -> pl.DataFrame:
        """One record per person and year, if the settings say which."""
        if self.same_year == "refuse":
            return records
        of_year = pl.struct("line", "year")
        kept = of_year.is_first_distinct() if self.same_year == "first" else of_year.is_last_distinct()
        report.drop("another record of the same year", records.filter(~kept))
        return records.filter(kept)


class Lines:
    """A text file, plain or compressed, that gives some lines at a time; DataError if it is broken."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self.path = path
        self.taken = 0
        """Lines so far."""
        self._rest = b""
        try:
            plain = stack.enter_context(path.open("rb"))
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error}") from error
        self._stream: IO[bytes] | gzip.GzipFile = plain
        if path.suffix == ".gz":
            self._stream = stack.enter_context(gzip.GzipFile(fileobj=plain))

    def take(self, lines: int) -> pl.Series:
        """So many lines without their ends, fewer at the end of the file."""
        blocks, found = [self._rest], self._rest.count(b"\n")
        while found < lines and (block := self._block()):
            blocks.append(block)
            found += block.count(b"\n")
        text = b"".join(blocks)
        if found < lines and text and not text.endswith(b"\n"):
            text += b"\n"
        ends = np.flatnonzero(np.frombuffer(text, np.uint8) == ord("\n"))[:lines] + 1
        cut = int(ends[-1]) if len(ends) else 0
        self._rest = text[cut:]
        self._check_text(text[:cut])
        offsets = np.concatenate([[0], ends]).astype(np.int64)
        array = pa.LargeStringArray.from_buffers(len(ends), pa.py_buffer(offsets), pa.py_buffer(text[:cut]))
        self.taken += len(ends)
        return pl.Series("line", array, pl.String).str.strip_chars_end("\r\n")

    def _block(self) -> bytes:
        try:
            return self._stream.read(BLOCK)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{self.path} is broken after line {self.taken:,} or later: {error}") from error

    def _check_text(self, text: bytes) -> None:
        try:
            text.decode()
        except UnicodeDecodeError as error:
            line = self.taken + text.count(b"\n", 0, error.start) + 1
            raise DataError(
                f"{self.path} line {line:,} is not UTF-8 text: convert the file ({error.reason})"
            ) from error


def _names() -> list[str]:
    return [f"{part}.{ending}{gz}" for part in Split.PARTS for ending in ENDINGS for gz in ("", ".gz")]


def _next_lines(readers: dict[str, Lines]) -> dict[str, pl.Series]:
    """The next lines of all files; DataError if one ends before another."""
    lines = {ending: reader.take(PERSONS_PER_PART) for ending, reader in readers.items()}
    most = max(lines, key=lambda ending: len(lines[ending]))
    for ending, found in lines.items():
        if len(found) < len(lines[most]):
            reader = readers[ending]
            raise DataError(
                f"{reader.path} ends after line {reader.taken:,}, and {readers[most].path.name} goes on: all "
                "files of a part must have a line for every person, in the same order"
            )
    return lines


def _person_ids(part: str, number: pl.Series, ids: pl.Series | None) -> pl.Series:
    """``part/line``, in text order as in the files; and ``/id``, if there are ids."""
    line = pl.lit(part + "/") + number.cast(pl.String).str.zfill(9)
    whole = line if ids is None else line + "/" + ids.str.strip_chars()
    return pl.select(person_id=whole).to_series()


def _tokens(lines: pl.Series) -> pl.Series:
    """The tokens of every line, as a list."""
    lines = lines.str.strip_chars()
    if lines.str.contains(r"\s\s|[^\S ]").any():
        lines = lines.str.replace_all(r"\s+", " ")
    return lines.set(lines == "", None).str.split(" ").fill_null([])


def _check_counts(path: Path, found: pl.Series, wanted: pl.Series, job: Path, first: int) -> None:
    """DataError at the first line with more or fewer tokens than there are jobs."""
    wrong = (found != wanted).arg_true()
    if not wrong.is_empty():
        row = wrong[0]
        raise DataError(
            f"{path} line {first + row:,}: {found[row]} tokens, and {job.name} has {wanted[row]} there "
            f"({len(wrong):,} such lines so far); every job needs one"
        )


def _single(path: Path, lines: pl.Series, first: int) -> pl.Series:
    """The only token of every line; DataError if there are none or more."""
    lines = lines.str.strip_chars()
    wrong = (lines == "") | lines.str.contains(r"\s")
    if wrong.any():
        row = wrong.arg_true()[0]
        raise DataError(f"{path} line {first + row:,}: {lines[row]!r} is not one token; a person has one")
    return lines


def _years(path: Path, tokens: pl.Series, lines: pl.Series) -> pl.Series:
    """Year tokens as numbers."""
    years = tokens.cast(pl.Int32, strict=False)
    if years.has_nulls():
        row = years.is_null().arg_true()[0]
        raise DataError(f"{path} line {lines[row]:,}: {tokens[row]!r} is not a calendar year")
    return years


def _check_persons(files: list[Path]) -> None:
    """DataError if a person stands on two lines, of one file or of two; by hashes of the ids, to save memory."""
    seen = []
    for path in files:
        with ExitStack() as stack:
            file = Lines(path, stack)
            while len(lines := file.take(PERSONS_PER_PART)):
                ids = lines.str.strip_chars()
                if (ids == "").any():
                    raise DataError(
                        f"{path} line {file.taken - len(ids) + (ids == '').arg_true()[0] + 1:,}: no id"
                    )
                seen.append(ids.hash())
    hashes = pl.concat(seen) if seen else pl.Series([], dtype=pl.UInt64)
    if hashes.n_unique() < len(hashes):
        names = ", ".join(path.name for path in files)
        raise DataError(
            f"{len(hashes) - hashes.n_unique():,} lines of {names} repeat an id of another line: a person has one "
            "line, in train, valid or test"
        )
