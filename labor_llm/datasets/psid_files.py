"""The files of a PSID download, packaged or from the Data Center, zipped or unpacked.

Data are fixed-width text without a header (``FAM2003ER.txt``, ``J342282.txt``); the statements beside them, under
the same name, say where each variable stands: ``infix`` of Stata (.do), ``DATA LIST`` of SPSS (.sps) or ``INPUT``
of SAS (.sas). Numbers have explicit decimal points, since Stata's infix knows no others. A Data Center job can
also be CSV. Layouts as in github jfang07/thesis, data/psid/J342282.do, and the packaged files of 2003 and 2017.
"""

import re
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from labor_llm.errors import DataError

BLOCK = 8_000_000
"""Bytes of a fixed-width file that are taken apart at once: whole lines are cut from them."""
STATEMENTS = {
    ".do": re.compile(r"\binfix\b(.*?)\busing\b", re.DOTALL | re.IGNORECASE),
    ".sps": re.compile(r"\bDATA\s+LIST\b[^/]*/(.*?)^\s*\.\s*$", re.DOTALL | re.IGNORECASE | re.MULTILINE),
    ".sas": re.compile(r"^\s*INPUT\b(.*?);", re.DOTALL | re.IGNORECASE | re.MULTILINE),
}
POSITION = re.compile(r"\b([A-Z]\w*)\s+(\d+)\s*-\s*(\d+)", re.IGNORECASE)
ROWS = re.compile(r"^\s*(?:Rows|N_OF_OBSERVATIONS)\s*:\s*(\d+)\s*$", re.IGNORECASE | re.MULTILINE)
DATA = (".txt", ".csv")
NEWLINE, RETURN, SPACE, ZERO = b"\n\r 0"


@dataclass(frozen=True)
class StoredFile:
    """A file in a folder or in a zip archive."""

    path: Path
    """The file, or the archive that it is in."""
    member: str | None = None

    def __str__(self) -> str:
        return str(self.path) if self.member is None else f"{self.path} ({self.member})"

    @property
    def place(self) -> PurePosixPath:
        """Its path, the archive counting as a folder."""
        return PurePosixPath(self.path.as_posix()) / (self.member or "")

    @property
    def ending(self) -> str:
        """Such as ``.txt``, in lower case."""
        return self.place.suffix.lower()

    @property
    def key(self) -> tuple[str, str]:
        """The folder and the name without ending, in lower case: alike for data and their statements."""
        return str(self.place.parent), self.place.stem.lower()

    @contextmanager
    def opened(self) -> Iterator[IO[bytes]]:
        """The bytes of the file; DataError for whatever is wrong with it or its archive."""
        with _translated(self.path):
            if self.member is None:
                with self.path.open("rb") as file:
                    yield file
            else:
                with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as file:
                    yield file

    def read(self) -> bytes:
        """All bytes."""
        with self.opened() as file:
            return file.read()


@dataclass(frozen=True)
class DataFile(ABC):
    """Data of a download, and the variables in it."""

    file: StoredFile

    @property
    @abstractmethod
    def variables(self) -> Collection[str]:
        """Names in upper case."""

    @abstractmethod
    def read(self, names: Sequence[str]) -> pl.DataFrame:
        """Some of its variables as numbers, null where nothing is written."""


@dataclass(frozen=True)
class FixedWidth(DataFile):
    """Text whose lines are all alike."""

    columns: dict[str, tuple[int, int]]
    """Variable -> its first and last column, from 1."""
    statements: StoredFile
    rows: int | None
    """How many lines the statements promise."""

    @property
    def variables(self) -> Collection[str]:
        return self.columns.keys()

    @property
    def width(self) -> int:
        """Columns of a line."""
        return max(last for _, last in self.columns.values())

    def read(self, names: Sequence[str]) -> pl.DataFrame:
        blocks, lines, full = [], 0, False
        with self.file.opened() as stream:
            for text in _whole_lines(stream):
                cells, longest = self._cells(text, lines)
                blocks.append(pl.DataFrame({name: self._numbers(cells, name, lines) for name in names}))
                lines, full = lines + len(cells), full or longest == self.width
        if not lines:
            raise DataError(f"{self.file} is an empty file: download it again")
        if not full:
            raise DataError(
                f"{self.file} has no line of the {self.width:,} characters that {self.statements} says"
            )
        if self.rows is not None and lines != self.rows:
            raise DataError(
                f"{self.file} has {lines:,} lines, and {self.statements} promises {self.rows:,}: download it again"
            )
        return pl.concat(blocks, how="vertical_relaxed", rechunk=True)

    def _cells(self, text: bytes, before: int) -> tuple[NDArray[np.uint8], int]:
        """The characters of lines, shape (lines, width), after ``before`` others; and the longest length.

        Blanks at the end of a line may have been cut off, but not from the last one if it does not end.
        """
        is_cut = not text.endswith(b"\n")
        characters = np.frombuffer(text + b"\n" if is_cut else text, np.uint8)
        ends = np.flatnonzero(characters == NEWLINE)
        starts = np.concatenate([[0], ends[:-1] + 1])
        ends = ends - ((ends > starts) & (characters[ends - 1] == RETURN))
        lengths = ends - starts
        wrong = np.flatnonzero((lengths > self.width) | ((lengths < self.width) & is_cut & (ends == ends[-1])))
        if len(wrong):
            line = int(wrong[0])
            raise DataError(
                f"{self.file} line {before + line + 1:,}: it has {lengths[line]:,} characters, and "
                f"{self.statements} says {self.width:,}. The file is cut off, or the two are not of one download."
            )
        step, rest = divmod(len(characters), len(starts))
        if rest == 0 and (starts == np.arange(len(starts)) * step).all() and (lengths == self.width).all():
            return characters.reshape(len(starts), step)[:, : self.width], self.width
        places = np.arange(self.width)
        cells = characters[np.minimum(starts[:, None] + places, len(characters) - 1)]
        return np.where(places < lengths[:, None], cells, np.uint8(SPACE)), int(lengths.max())

    def _numbers(self, cells: NDArray[np.uint8], name: str, before: int) -> pl.Series:
        """A variable of some lines: whole numbers if all are, else decimal ones."""
        first, last = self.columns[name]
        cut = np.ascontiguousarray(cells[:, first - 1 : last])
        digits = cut - np.uint8(ZERO)
        is_digit = digits < 10
        in_one_piece = not (is_digit[:, :-1] & ~is_digit[:, 1:]).any()
        if cut.shape[1] <= 9 and in_one_piece and (is_digit | (cut == SPACE)).all():
            values = np.where(is_digit, digits, 0) @ (10 ** np.arange(cut.shape[1] - 1, -1, -1, dtype=np.int32))
            return pl.Series(name, values, pl.Int32).set(pl.Series(~is_digit[:, -1]), None)
        return _as_numbers(_texts(cut, name), f"{self.file}", before, f"Does {self.statements} belong to it?")


@dataclass(frozen=True)
class Csv(DataFile):
    """A Data Center job with a header of variable names."""

    header: tuple[str, ...]
    """As it is written."""

    @property
    def variables(self) -> Collection[str]:
        return [name.upper() for name in self.header]

    def read(self, names: Sequence[str]) -> pl.DataFrame:
        wanted = [written for written in self.header if written.upper() in set(names)]
        if len(wanted) > len(set(names)):
            raise DataError(f"{self.file}: two columns have the same name, of {', '.join(sorted(wanted)[:5])} ...")
        with _translated(self.file.path):
            table = pl.read_csv(self.file.read(), columns=wanted, infer_schema=False, encoding="utf8-lossy")
        if table.is_empty():
            raise DataError(f"{self.file} has a header and no rows: download it again")
        table = table.rename(str.upper)
        return table.select(_as_numbers(table[name], f"{self.file}", 1, "Is it a PSID file?") for name in names)


def data_files(raw: Path) -> list[DataFile]:
    """All data with known variables in a file, an archive or a folder and what is below it, by name."""
    stored = _stored(raw)
    statements: dict[tuple[str, str], list[StoredFile]] = {}
    for file in stored:
        if file.ending in STATEMENTS:
            statements.setdefault(file.key, []).append(file)
    found = [
        data for file in stored if file.ending in DATA if (data := _data_file(file, statements.get(file.key, [])))
    ]
    if not found:
        kinds = ", ".join(sorted({file.place.name for file in stored})[:5]) or "nothing"
        raise DataError(
            f"{raw} holds no PSID data, but {kinds}. Expected are a .txt file and, under the same name, its .do, "
            ".sps or .sas file with the columns of the variables, or a .csv file; in a folder or in zip archives."
        )
    return found


def _stored(raw: Path) -> list[StoredFile]:
    """The files that the path leads to; what archives hold stands for the archives."""
    if raw.is_dir():
        paths = sorted(path for path in raw.rglob("*") if path.is_file())
    elif not raw.exists():
        raise DataError(f"dataset.raw: no file or folder at {raw.absolute()}")
    elif raw.suffix.lower() == ".zip":
        paths = [raw]
    else:
        with _translated(raw):
            paths = sorted(path for path in raw.parent.iterdir() if path.stem.lower() == raw.stem.lower())
        paths = [path for path in paths if path.suffix.lower() != ".zip" and path.is_file()]
    files = []
    for path in paths:
        if path.suffix.lower() == ".zip":
            with _translated(path), zipfile.ZipFile(path) as archive:
                files += [StoredFile(path, name) for name in archive.namelist() if not name.endswith("/")]
        else:
            files.append(StoredFile(path))
    return files


def _data_file(file: StoredFile, statements: list[StoredFile]) -> DataFile | None:
    """The file with its variables; None if nothing says which it has, as for a readme."""
    if file.ending == ".csv":
        with file.opened() as stream:
            first = stream.readline(10_000_000).decode("utf-8-sig", errors="replace")
        return Csv(file, tuple(name.strip().strip('"') for name in first.split(",")))
    for other in sorted(statements, key=lambda one: list(STATEMENTS).index(one.ending)):
        text = other.read().decode("latin-1")
        section = STATEMENTS[other.ending].search(text)
        positions = POSITION.findall(section[1]) if section else []
        columns = {name.upper(): (int(first), int(last)) for name, first, last in positions}
        if columns:
            wrong = [name for name, (first, last) in columns.items() if not 0 < first <= last <= 1_000_000]
            if wrong:
                raise DataError(f"{other}: the columns of variable {wrong[0]} are {columns[wrong[0]]}")
            rows = ROWS.search(text)
            return FixedWidth(file, columns, other, int(rows[1]) if rows else None)
    return None


def _whole_lines(stream: IO[bytes]) -> Iterator[bytes]:
    """The text in blocks that end with a line break, if the text does; blank lines at its end are left out."""
    rest = b""
    while block := stream.read(BLOCK):
        text = rest + block
        cut = len(text.rstrip(b"\r\n"))
        cut = text.rfind(b"\n", 0, cut) + 1
        rest = text[cut:]
        if cut:
            yield text[:cut]
    last = rest.rstrip(b"\r\n\x1a")
    if last:
        yield last + (b"\n" if b"\n" in rest else b"")


def _texts(cells: NDArray[np.uint8], name: str) -> pl.Series:
    """Rows of characters as a column of text; what is not ASCII becomes a question mark."""
    rows, width = cells.shape
    ascii_only = np.where(cells < 128, cells, np.uint8(ord("?")))
    offsets = np.arange(rows + 1, dtype=np.int64) * width
    array = pa.LargeStringArray.from_buffers(rows, pa.py_buffer(offsets), pa.py_buffer(ascii_only))
    return pl.Series(name, array)


def _as_numbers(texts: pl.Series, file: str, before: int, misfit: str) -> pl.Series:
    """Texts as decimal numbers; null for blanks and the points by which SAS and Stata write unknown values."""
    stripped = texts.str.strip_chars()
    stripped = stripped.set(stripped.is_in(["", "."]), None)
    numbers = stripped.cast(pl.Float64, strict=False)
    wrong = (stripped.is_not_null() & ~numbers.is_finite().fill_null(False)).arg_true()
    if not wrong.is_empty():
        raise DataError(
            f"{file} line {before + wrong[0] + 1:,}: variable {texts.name} is {stripped[wrong[0]]!r}, which is no "
            f"number. {misfit}"
        )
    return numbers


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """What reading a broken file or archive raises, as DataError."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, KeyError) as error:
        raise DataError(f"{path} is not a readable zip archive: download it again ({error})") from error
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
