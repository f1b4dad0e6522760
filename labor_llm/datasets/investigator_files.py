"""The files of an extract of the NLS Investigator: the one extract that a zip, a folder or a file stands for."""

import lzma
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from labor_llm.errors import DataError

DATA = (".csv", ".dat", ".dct")
"""Files with the numbers; the first of them that is there is read."""
TAGSET = re.compile(r"\.NLS\w+", re.IGNORECASE)
BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    OSError,
    RuntimeError,  # a password
    NotImplementedError,  # a compression that Python lacks
    ValueError,
    OverflowError,
)
SPREADSHEETS = (".xlsx", ".xlsm", ".xls", ".ods")
OTHERWISE = (
    "A table that has one row per person and year is read by dataset=table, and the cleaned panel of the NLSY97 "
    "by dataset=nlsy97_panel"
)
"""What else a file may be that is no extract."""
KINDS = {b"<": "a web page", b"%pdf": "a PDF", b"\xd0\xcf\x11\xe0": "an Office document"}
"""How files begin, in lower case, that a browser saves in place of an extract."""


@dataclass(frozen=True)
class Files:
    """The files of one extract, which have one name and different endings."""

    place: str
    """The zip or the folder, for messages."""
    data: str
    """The file with the numbers."""
    names: tuple[str, ...]
    """All of them."""
    read: Callable[[str], bytes]

    @property
    def where(self) -> str:
        """The file with the numbers, for messages."""
        return f"{self.place}/{self.data}"

    @property
    def tagset(self) -> str | None:
        """The list of variables whose ending is the cohort."""
        tagsets = [name for name in self.names if TAGSET.fullmatch(PurePosixPath(name).suffix)]
        if len(tagsets) > 1:
            raise DataError(f"{self.place} has the tagsets {', '.join(tagsets)}: leave only that of {self.data}")
        return tagsets[0] if tagsets else None

    def ending(self, *endings: str) -> Iterator[str]:
        """The names of the files with these endings, in the order of the endings."""
        for ending in endings:
            yield from (name for name in self.names if name.lower().endswith(ending))

    def text(self, name: str) -> str:
        """A file that describes variables, with line feeds only; of a dct, the part before the numbers."""
        text = self.read(name).decode("latin-1").replace("\r\n", "\n").replace("\r", "\n")
        return text.partition("\n}")[0] if name.lower().endswith(".dct") else text


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Whatever a broken or missing file raises, as one DataError."""
    try:
        yield
    except BROKEN as error:
        reason = "it is locked with a password" if "password" in str(error) else str(error) or repr(error)
        raise DataError(f"{path} cannot be read ({reason}): download it again") from error


def files_of(path: Path) -> Files:
    """The files of the one extract that a path stands for; DataError if there is none, or several."""
    if path.is_dir():
        names = _names(path)
        zips = [name for name in names if name.lower().endswith(".zip")]
        if len(zips) == 1 and not any(map(_has_numbers, names)):
            return files_of(path / zips[0])
        return _only_extract(path, names, lambda name: (path / name).read_bytes(), zips)
    if not path.is_file():
        raise DataError(f"dataset.raw: there is neither a file nor a folder at {path.absolute()}")
    if path.suffix.lower() in SPREADSHEETS:
        raise DataError(f"{path} is a spreadsheet: give the zip as downloaded, or the csv in it. {OTHERWISE}")
    if path.suffix.lower() == ".zip" or zipfile.is_zipfile(path):
        return _of_zip(path)
    family = [name for name in _names(path.parent) if _stem(name) == _stem(path.name)]
    if not any(map(_has_numbers, [path.name, *family])):
        raise DataError(
            f"{path} is not an extract: give the zip, its folder, or the csv, dat or dct in it. {OTHERWISE}"
        )
    files = _only_extract(path.parent, family, lambda name: (path.parent / name).read_bytes())
    data = path.name if _has_numbers(path.name) else files.data
    return Files(files.place, data, files.names, files.read)


def files_named(path: Path | None) -> list[Path]:
    """The files on which an extract at a path depends: that of a zip, those of a folder or of the same name."""
    if path is None:
        return []
    if path.is_dir():
        return [path / name for name in _names(path)]
    if path.suffix.lower() == ".zip" or not path.is_file():
        return [path]
    return [path.parent / name for name in _names(path.parent) if _stem(name) == _stem(path.name)]


def check_kind(content: bytes, where: str) -> None:
    """DataError for an empty file, and for what a browser saves in place of an extract."""
    start = content[:1000].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not start:
        raise DataError(f"{where} is empty: download it again")
    for signature, kind in KINDS.items():
        if start.startswith(signature):
            raise DataError(
                f"{where} is {kind}, not an extract: sign in to the Investigator and download the zip again"
            )


def _of_zip(path: Path) -> Files:
    """What is in a zip; nothing is unpacked to disk."""
    with path.open("rb") as file:
        check_kind(file.read(1000), str(path))
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if not name.startswith("__MACOSX")]

    def read(name: str) -> bytes:
        with zipfile.ZipFile(path) as archive:
            return archive.read(name)

    return _only_extract(path, names, read)


def _only_extract(
    path: Path, names: Sequence[str], read: Callable[[str], bytes], zips: Sequence[str] = ()
) -> Files:
    """The one extract among files; DataError if there is none, or several."""
    stems = sorted({_stem(name) for name in names if _has_numbers(name)})
    if len(stems) > 1 or (not stems and zips):
        found = [next(name for name in names if _stem(name) == stem and _has_numbers(name)) for stem in stems]
        shown = ", ".join((found or zips)[:5])
        raise DataError(f"{path} holds several extracts ({shown}): unpack zips and name one file in dataset.raw")
    if not stems:
        shown = ", ".join(names[:5]) or "nothing"
        raise DataError(f"{path} holds no csv, dat or dct of an extract, but {shown}: download the csv, too")
    family = tuple(name for name in names if _stem(name) == stems[0])
    data = next(name for ending in DATA for name in family if name.lower().endswith(ending))
    return Files(str(path), data, family, read)


def _names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_file() and not entry.name.startswith("."))


def _has_numbers(name: str) -> bool:
    return name.lower().endswith(DATA)


def _stem(name: str) -> str:
    """What the names of an extract's files have in common."""
    path = PurePosixPath(name)
    return str(path.parent / path.stem.removesuffix("-value-labels"))
