"""Extracts of the NLS Investigator (nlsinfo.org/investigator): which variables the columns are, and the numbers.

The csv, dat and dct of an extract hold the same numbers, a row per respondent, and any of them will do; the other
files say which variables the columns are. A variable is known by its reference number, here without the dot:
R0000100. Every cohort has its own numbers, and R0000100 is CASEID in the NLSY79 and PUBID in the NLSY97, so a
number never tells the cohort: the tagset's ending, the codebook or the respondents do.
"""

import csv
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import polars as pl

from labor_llm.datasets.investigator_files import OTHERWISE, Files, check_kind, files_of, readable
from labor_llm.errors import DataError
from labor_llm.text_files import check_encoding

ID = "R0000100"
"""The respondent's identifier, in both cohorts."""
ID_QUESTIONS = {"NLSY79": "CASEID", "NLSY97": "PUBID"}
RESPONDENTS = {"NLSY79": 12_686, "NLSY97": 8_984}
LAST_PUBID = 9022
"""The highest identifier of the NLSY97; those of the NLSY79 are the numbers from 1 to 12,686."""
NUMBER = re.compile(r"[A-Z][0-9]{5}\.?[0-9]{2}", re.IGNORECASE)
NUMBERED_LINE = re.compile(rf"^\s*({NUMBER.pattern})\b", re.IGNORECASE | re.MULTILINE)
QUESTION_AND_YEAR = re.compile(r"(.+)_(\d{4}|XRND|78SCRN|PSTR)", re.IGNORECASE)
CODEBOOK_LINE = re.compile(r"^([A-Z]\d{5}\.\d{2})\s+\[([^\]\n]+)\]\s+Survey Year:\s*(\S+)", re.MULTILINE)
ID_LINE = re.compile(r"R00001\.?00[^\n]*?(PUBID|CASEID|12686)", re.IGNORECASE)
"""What the scripts and the codebook say of the identifier: its question, or its label "ID# (1-12686) 79"."""
SECTIONS = {".sas": r"^\s*input\b(.*?);", ".sps": r"\bdata list\b[^/]*/(.*?)^\s*\."}
"""Where scripts list the columns."""
BLANKS = ["", ".", "NA"]
"""What stands for every negative code after a round trip through Stata, R or pandas."""

Questions = dict[str, tuple[str, str]]


@dataclass(frozen=True)
class Extract:
    """An extract whose columns are known; ``table`` reads its rows."""

    where: str
    """The file with the rows, for messages."""
    variables: tuple[str, ...]
    """What the columns are: reference numbers, or questions with their year (STATUS_WK_NUM0001_XRND)."""
    questions: Mapping[str, tuple[str, str]]
    """Variable -> question name and survey year (or XRND), where the extract says so."""
    named: tuple[str | None, str]
    """The cohort that a file of the extract names, if one does, and how."""
    rows: bytes
    first_line: int
    """The line of the file, from 1, at which the rows begin."""
    separator: str

    def table(self, wanted: Collection[str]) -> pl.DataFrame:
        """The wanted variables, which must be there, in this order, as Int32; null where a cell is blank."""
        self._check_shape()
        columns = {variable: place for place, variable in enumerate(self.variables)}
        places = {variable: str(columns[variable]) for variable in wanted}
        try:
            table = self._parsed(places.values(), pl.Int32)
        except pl.exceptions.PolarsError:
            table = self._converted(self._parsed(places.values(), pl.String), places)
        return table.select(pl.col(place).alias(variable) for variable, place in places.items())

    def _check_shape(self) -> None:
        """Every row has a value for every variable: Polars would fill up a short row in silence."""
        width, separator = len(self.variables), self.separator.encode()
        if not self.rows:
            raise DataError(f"{self.where} has no respondents: download it again")
        for line, row in enumerate(self.rows.split(b"\n"), start=self.first_line):
            values = row.count(separator) + 1 if row else 0
            if values != width:
                raise DataError(
                    f"{self.where}, line {line}: {values} values for {width} variables. The file is cut off or "
                    "was changed: download it again"
                )

    def _parsed(self, places: Collection[str], dtype: type[pl.DataType]) -> pl.DataFrame:
        text: dict[str, type[pl.DataType]] = {str(place): pl.String for place in range(len(self.variables))}
        return pl.read_csv(
            self.rows,
            has_header=False,
            schema=text | dict.fromkeys(places, dtype),
            columns=[int(place) for place in places],
            separator=self.separator,
            quote_char=None,
            null_values=BLANKS,
            encoding="utf8-lossy",
        )

    def _converted(self, texts: pl.DataFrame, places: Mapping[str, str]) -> pl.DataFrame:
        """Whole numbers, also where they are written 12.0 or "12"; DataError at the first cell that is none."""
        texts = texts.select(pl.all().str.strip_chars(' "').replace(dict.fromkeys(BLANKS)))
        numbers = texts.select(pl.all().cast(pl.Float64, strict=False))
        whole = numbers.select(pl.all().cast(pl.Int32, strict=False))
        for variable, place in places.items():
            exact = (numbers[place] == whole[place]).fill_null(False)
            wrong = (texts[place].is_not_null() & ~exact).arg_true()
            if not wrong.is_empty():
                value = texts[place][wrong[0]]
                raise DataError(
                    f"{self.where}, line {self.first_line + wrong[0]}: {variable} is {value!r:.50} and must be a "
                    "whole number. The file was changed or is no extract: download it again"
                )
        return whole


def is_header(names: Sequence[str]) -> bool:
    """Whether most columns of a table are an extract's: reference numbers, or questions with a year."""
    theirs = [name for name in names if NUMBER.fullmatch(name) or QUESTION_AND_YEAR.fullmatch(name)]
    return 2 * len(theirs) > len(names)


def opened(path: Path, known: Mapping[str, str]) -> Extract:
    """The extract at a path: a zip, a folder, or one of its files; DataError if there is none, or several.

    ``known``: question with its year, as ``spelled``, -> reference number, for a csv whose columns are so named.
    """
    with readable(path):
        files = files_of(path)
        content = files.read(files.data)
        check_kind(content, files.where)
        check_encoding(content, files.where)
        is_csv = files.data.lower().endswith(".csv")
        extract = _from_csv(files, content, known) if is_csv else _from_columns(files, content)
    if ID not in extract.variables:
        raise DataError(f"{extract.where} lacks {ID}, the respondent's identifier: add it and download again")
    twice = [name for name, times in Counter(extract.variables).items() if times > 1 and NUMBER.fullmatch(name)]
    if twice:
        raise DataError(f"{extract.where} has the variable {twice[0]} twice: download it again")
    return extract


def spelled(name: str) -> str:
    """A name as Stata writes it, in capitals: YEMP_OCCODE-2002.01_2017 is YEMP_OCCODE_2002_01_2017."""
    return re.sub(r"[^A-Z0-9]", "_", name.upper())


def check_cohort(extract: Extract, persons: pl.Series, cohort: str) -> bool:
    """Whether an extract says that it is of this cohort; DataError if it is of another, or lists a person twice.

    ``persons``: their identifiers, row by row.
    """
    lacking = (persons.is_null() | (persons < 1)).fill_null(True).arg_true()
    if not lacking.is_empty():
        where = f"{extract.where}, line {extract.first_line + lacking[0]}"
        raise DataError(
            f"{where}: the identifier of the respondent ({ID}) is {persons[lacking[0]]}, not 1 or more"
        )
    again = persons.is_duplicated().arg_true()
    if not again.is_empty():
        same = (persons == persons[again[0]]).arg_true()
        raise DataError(
            f"{extract.where}: respondent {persons[same[0]]} stands in the lines {extract.first_line + same[0]} "
            f"and {extract.first_line + same[1]}. An extract has one row per respondent: download it again"
        )
    found, because = extract.named if extract.named[0] else _of_respondents(persons)
    if found not in (None, cohort):
        fix = f"use dataset={found.lower()}" if found in RESPONDENTS else f"download one of the {cohort}"
        raise DataError(f"{extract.where} is an extract of the {found}, not of the {cohort} ({because}): {fix}")
    return found is not None


def _of_respondents(persons: pl.Series) -> tuple[str | None, str]:
    """The cohort by the highest identifier or the number of respondents; None if only some of them are there."""
    last = persons.sort()[-1]
    if last > LAST_PUBID:
        return "NLSY79", f"the highest identifier is {last:,}"
    full = persons.len() == RESPONDENTS["NLSY97"]
    return "NLSY97" if full else None, f"it has {persons.len():,} respondents"


def _from_csv(files: Files, content: bytes, known: Mapping[str, str]) -> Extract:
    header, _, rows = _line_feeds(content.removeprefix(b"\xef\xbb\xbf").lstrip(b"\r\n")).partition(b"\n")
    line = header.decode("latin-1")
    separator = max(",;\t", key=line.count)
    try:
        cells = [cell.strip() for cell in next(csv.reader([line], delimiter=separator))]
    except csv.Error as error:
        raise DataError(f"{files.where} does not begin with a row of variables: {error}") from error
    questions = _questions(files)
    if any(NUMBER.fullmatch(cell) for cell in cells):
        variables = [_number(cell) if NUMBER.fullmatch(cell) else cell for cell in cells]
        _check_tagset(files, variables)
    elif any(known.get(spelled(cell)) == ID for cell in cells):
        variables, questions = _from_questions(cells, known)
    else:
        variables = _in_order(files, cells)
    return Extract(files.where, tuple(variables), questions, _named(files, cells), rows, 2, separator)


def _from_columns(files: Files, content: bytes) -> Extract:
    """A dat, or a dct, which is a list of variables and a dat in one file; blanks part the values."""
    rows, first, lists = _line_feeds(content), 1, None
    if files.data.lower().endswith(".dct"):
        head, brace, rest = rows.partition(b"\n}")
        if not brace:
            raise DataError(f"{files.where} has no brace after its list of variables: download it again")
        rows, first, lists = rest.partition(b"\n")[2], head.count(b"\n") + 3, [files.data]
    if rows.startswith(b" ") or any(gap in rows for gap in (b"  ", b"\t", b" \n", b"\n ")):
        rows = re.sub(rb"(?m)^ | $", b"", re.sub(rb"[ \t]+", b" ", rows))
    variables = _order(files, rows.partition(b"\n")[0].count(b" ") + 1, lists)
    return Extract(files.where, tuple(variables), _questions(files), _named(files, ()), rows, first, " ")


def _line_feeds(content: bytes) -> bytes:
    """Line feeds only, and none at the end."""
    if b"\r" in content:
        content = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return content.rstrip(b"\n \x1a")


def _number(text: str) -> str:
    """A reference number without its dot."""
    return text.upper().replace(".", "")


def _check_tagset(files: Files, variables: Sequence[str]) -> None:
    """The tagset of another extract, left beside a csv of the same name, could name the wrong cohort."""
    tagset = files.tagset
    numbers = {variable for variable in variables if NUMBER.fullmatch(variable)}
    foreign = sorted(numbers.difference(_listed(files, tagset))) if tagset else []
    if foreign:
        raise DataError(
            f"{files.where} has {len(foreign)} variables that {tagset} beside it lacks, such as {foreign[0]}: "
            "they are not of one download. Put the files of the download into a folder of their own"
        )


def _from_questions(cells: Sequence[str], known: Mapping[str, str]) -> tuple[list[str], Questions]:
    """Columns that the Investigator's scripts renamed to a question with its year."""
    variables: list[str] = []
    questions: Questions = {}
    for cell in cells:
        name = spelled(cell)
        variables.append(known.get(name, name))
        if match := QUESTION_AND_YEAR.fullmatch(cell):
            questions[variables[-1]] = (match[1].upper(), match[2].upper())
    return variables, questions


def _in_order(files: Files, cells: Sequence[str]) -> list[str]:
    """Columns named by questions without a year, which only another file of the extract can tell apart."""
    names = [cell.upper() for cell in cells]
    if not set(ID_QUESTIONS.values()).intersection(names):
        raise DataError(
            f"{files.where} does not begin with the variables of an extract, such as {ID}, but with "
            f"{','.join(cells[:3])!r:.60}: give the csv of the Investigator's download. {OTHERWISE}"
        )
    try:
        variables = _order(files, len(cells))
    except DataError as error:
        raise DataError(
            f"{files.where} names its columns by questions, which are the same in every year, and no tagset or "
            f"sdf beside it tells them apart: download the csv with reference numbers ({error})"
        ) from error
    if ID in variables and names[variables.index(ID)] not in ID_QUESTIONS.values():
        raise DataError(f"{files.where} has its columns in another order than the list of variables beside it")
    return variables


def _order(files: Files, width: int, lists: Sequence[str] | None = None) -> list[str]:
    """The variables in the order of the columns, from the first file that lists as many."""
    if lists is None:
        lists = [*([files.tagset] if files.tagset else []), *files.ending(".sdf", ".dct", *SECTIONS)]
    listed = {name: _listed(files, name) for name in lists}
    for variables in listed.values():
        if len(variables) == width:
            return variables
    counts = ", ".join(f"{len(variables)} in {name}" for name, variables in listed.items())
    raise DataError(
        f"{files.where} has {width} columns, and the files beside it list {counts or 'no'} variables: take the "
        "tagset, sdf, sas, sps or dct of the same download, or the csv"
    )


def _listed(files: Files, name: str) -> list[str]:
    """The variables that a tagset, sdf, dct, sas or sps lists, in its order."""
    text = files.text(name)
    if pattern := SECTIONS.get(PurePosixPath(name).suffix.lower()):
        section = re.search(pattern, text, re.IGNORECASE | re.DOTALL | re.MULTILINE)
        text = section[1] if section else ""
    return [_number(number) for number in NUMBERED_LINE.findall(text)]


def _questions(files: Files) -> Questions:
    """Variable -> question and year, from the sdf and from the codebook, which does not cut long names."""
    questions: Questions = {}
    for name in files.ending(".sdf"):
        lines = files.text(name).split("\n")
        head = next((line for line in lines if "Question Name" in line and "Year" in line), "")
        for line in filter(NUMBER.match, lines if head else ()):
            year = line[head.index("Year") :].partition(" ")[0]
            questions[_number(line.split()[0])] = (line[head.index("Question Name") :].strip(), year)
    for name in files.ending(".cdb"):
        for number, question, year in CODEBOOK_LINE.findall(files.text(name)):
            questions[_number(number)] = (question, year)
    return questions


def _named(files: Files, cells: Sequence[str]) -> tuple[str | None, str]:
    """The cohort by the tagset's ending, by the question name of the identifier, or by its label."""
    if files.tagset:
        suffix = PurePosixPath(files.tagset).suffix
        return suffix[1:].upper(), f"its tagset ends in {suffix}"
    name, word = _id_word(files, cells)
    if not word:
        return None, ""
    cohort = "NLSY97" if word.upper().startswith("PUBID") else "NLSY79"
    return cohort, f"{name} names {ID_QUESTIONS[cohort]}"


def _id_word(files: Files, cells: Sequence[str]) -> tuple[str, str]:
    """The first file that says more of the identifier than its number, and what it says."""
    for cell in cells:
        if cell.upper().startswith(tuple(ID_QUESTIONS.values())):
            return files.data, cell
    for name in files.ending(".sdf", ".cdb", ".dct", ".sas", ".sps", ".r", ".do"):
        if line := ID_LINE.search(files.text(name)):
            return name, line[1]
    return "", ""
