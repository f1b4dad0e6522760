"""A made-up PSID: interviews, and downloads in the layouts of the packaged files and of the Data Center."""

import io
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from labor_llm.datasets import read
from labor_llm.datasets.psid import Psid, catalogue
from labor_llm.datasets.report import Report

Person = tuple[int, int]
"""ER30001 and ER30002."""
Cells = Mapping[str, Sequence[object]]
"""Variable -> what stands in its rows."""
NAMES = {(what, year): name for what, year, name in catalogue(1968)["concept", "year", "variable"].iter_rows()}


@dataclass
class Member:
    """A person in an interview: sequence number, relation to head, and answers of the individual file."""

    person: Person
    sequence: int
    relation: int
    answers: dict[str, object] = field(default_factory=dict)


@dataclass
class Interview:
    """A family in a wave, with answers of the family file."""

    year: int
    number: int
    members: list[Member]
    answers: dict[str, object] = field(default_factory=dict)


ANN, BOB, CAT, DAN, EVE = (1, 1), (1, 2), (7, 30), (5001, 1), (9308, 227)
SEXES: Mapping[Person, int] = {ANN: 2, BOB: 1, CAT: 2, DAN: 1, EVE: 9}


def couple(year: int, ann: dict, bob: dict, **answers: object) -> Interview:
    """Bob is the head, Ann his wife; both were there in the wave's codes of relation."""
    rp, sp = (1, 2) if year < 1983 else (10, 20)
    number = 1 if year == 1968 else 11  # the interview number of 1968 is half of the identifier
    return Interview(year, number, [Member(BOB, 1, rp, bob), Member(ANN, 2, sp, ann)], answers)


def alone(
    year: int, person: Person = DAN, number: int = 12, member: dict | None = None, **answers: object
) -> Interview:
    """A household of one."""
    return Interview(year, number, [Member(person, 1, 1 if year < 1983 else 10, member or {})], answers)


def individual_file(sexes: Mapping[Person, int], interviews: Iterable[Interview]) -> dict[str, list[object]]:
    """The cross-year individual file: one row per person, zeros where a person was not in a wave."""
    interviews, people = list(interviews), list(sexes)
    cells: dict[str, list[object]] = {
        "ER30000": [1] * len(people),
        "ER30001": [one for one, _ in people],
        "ER30002": [two for _, two in people],
        "ER32000": list(sexes.values()),
    }
    for year in sorted({interview.year for interview in interviews}):
        here = {m.person: (i.number, m) for i in interviews if i.year == year for m in i.members}
        for what in ("interview", "sequence", "relation", "age", "birth_year", "education"):
            if (what, year) in NAMES and NAMES[what, year] not in cells:
                cells[NAMES[what, year]] = [
                    _of_member(*here[person], what) if person in here else 0 for person in people
                ]
    return cells


def _of_member(number: int, member: Member, what: str) -> object:
    own = {"interview": number, "sequence": member.sequence, "relation": member.relation}
    return own[what] if what in own else member.answers.get(what, 0)


def family_file(year: int, interviews: Iterable[Interview]) -> dict[str, list[object]]:
    """The family file of a wave: one row per interview."""
    here = [interview for interview in interviews if interview.year == year]
    names = catalogue(1968).filter(file="family", year=year)["concept", "variable"].iter_rows()
    cells: dict[str, list[object]] = {
        name: [i.number if what == "family_interview" else i.answers.get(what, 0) for i in here]
        for what, name in names
    }
    return cells


def job_of_individuals(sexes: Mapping[Person, int], interviews: Iterable[Interview]) -> dict[str, list[object]]:
    """A Data Center job of all individuals: family variables stand in the rows of the persons, blank if none."""
    interviews = list(interviews)
    cells = individual_file(sexes, interviews)
    for year in sorted({interview.year for interview in interviews}):
        here = [i for i in interviews if i.year == year]
        rows = {member.person: row for row, i in enumerate(here) for member in i.members}
        for name, values in family_file(year, here).items():
            cells[name] = [values[rows[person]] if person in rows else "" for person in sexes]
    return cells


def fixed_width(cells: Cells, newline: str = "\n") -> tuple[str, dict[str, tuple[int, int]]]:
    """Text and the columns of the variables, which stand to the right as in PSID's files."""
    widths = {name: max(len(str(value)) for value in values) or 1 for name, values in cells.items()}
    columns, first = {}, 1
    for name, width in widths.items():
        columns[name] = (first, first + width - 1)
        first += width
    rows = zip(*cells.values(), strict=True)
    lines = ["".join(str(v).rjust(w) for v, w in zip(row, widths.values(), strict=True)) for row in rows]
    return "".join(line + newline for line in lines), columns


def statements(kind: str, stem: str, columns: Mapping[str, tuple[int, int]], rows: int) -> str:
    """What reads the text: of Stata (do), SPSS (sps) or SAS (sas), three variables a line."""
    head = f"   Label           : made up\n   Rows            : {rows}\n   Columns         : {len(columns)}\n"
    spans = [f"      {name:<12}{first:>7} - {last:<7}" for name, (first, last) in columns.items()]
    body = "".join("".join(spans[i : i + 3]) + "\n" for i in range(0, len(spans), 3))
    labels = [(name, 'GRADES 1 - 5 "HEAD"/WIFE') for name in columns]
    if kind == "do":
        text = "".join(f'label variable {name} `"{label}"\' ;\n' for name, label in labels)
        return f"#delimit ;\n*\n{head}\n*** ;\n\ninfix\n{body}using [path]\\{stem}.txt, clear\n;\n{text}"
    if kind == "sps":
        text = "".join(f"      {name} '{label}'\n" for name, label in labels)
        handle = f"FILE HANDLE PSID / NAME = '[PATH]\\{stem}.TXT' LRECL = 99 .\nDATA LIST FILE = PSID FIXED /\n"
        return f"***\n{head}***.\n\n{handle}{body}   .\n   EXECUTE .\n   VARIABLE LABELS\n{text}   .\n"
    text = "".join(f'      {name} LABEL="GRADES 1 - 5" format=f4.\n' for name, _ in labels)
    file = f'INFILE "[path]\\{stem}.txt" LRECL = 99 ;'
    return f"/***\n{head}***/\n\nDATA {stem} ;\n   ATTRIB\n{text}   ;\n   {file}\n   INPUT\n{body}   ;\nrun ;\n"


def write_files(
    folder: Path, stem: str, cells: Cells, kinds: Sequence[str] = ("do", "sps", "sas"), newline: str = "\n"
) -> None:
    """The text and its statements in a folder."""
    text, columns = fixed_width(cells, newline)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{stem}.txt").write_bytes(text.encode())
    rows = len(next(iter(cells.values())))
    for kind in kinds:
        (folder / f"{stem}.{kind}").write_text(statements(kind, stem, columns, rows))


def write_zip(path: Path, stem: str, cells: Cells, kinds: Sequence[str] = ("do", "sps", "sas")) -> None:
    """The same in an archive, with a readme and a codebook beside it."""
    text, columns = fixed_width(cells)
    rows, content = len(next(iter(cells.values()))), io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{stem}.txt", text)
        archive.writestr("readme.txt", "Please cite.")
        archive.writestr(f"{stem}_codebook.pdf", b"%PDF-1.4")
        archive.writestr(f"{stem}_formats.do", "label define ER30003L 1 - 2 ;")
        for kind in kinds:
            archive.writestr(f"{stem}.{kind}", statements(kind, stem, columns, rows))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.getvalue())


def write_packaged(folder: Path, sexes: Mapping[Person, int], interviews: Sequence[Interview]) -> Path:
    """The packaged files: an archive per wave and the individual one."""
    for year in sorted({interview.year for interview in interviews}):
        name = f"FAM{year}" + ("ER" if year > 1993 else "")
        write_zip(folder / f"{name.lower()}.zip", name, family_file(year, interviews))
    write_zip(folder / "ind2023er.zip", "IND2023ER", individual_file(sexes, interviews))
    return folder


def write_csv(path: Path, cells: Cells) -> Path:
    """A Data Center job as CSV."""
    pl.DataFrame({name: [str(v) for v in values] for name, values in cells.items()}).write_csv(path)
    return path


def careers(
    folder: Path, interviews: Sequence[Interview], report: Report | None = None, **settings
) -> pl.DataFrame:
    """What the packaged files of the interviews become; they are written to ``download`` in the folder."""
    raw = write_packaged(folder / "download", SEXES, interviews)
    return read(Psid(raw=raw, **settings), report).table


def record(table: pl.DataFrame, person: Person, year: int) -> dict[str, object]:
    """The one record of a person's year."""
    return table.row(
        by_predicate=(pl.col("person_id") == str(person[0] * 1000 + person[1])) & (pl.col("year") == year),
        named=True,
    )
