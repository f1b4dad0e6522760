"""Extracts of a few respondents in the layouts of the NLS Investigator, for the tests of its readers."""

import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import polars as pl

from labor_llm.datasets.nlsy import all_variables

IDS = {"NLSY79": ("CASEID", "ID# (1-12686) 79"), "NLSY97": ("PUBID", "PUBID - YTH ID CODE 1997")}
Rows = list[dict[str, int]]
"""One dict per respondent: reference number -> value."""


def number(cohort: str, concept: str, year: int | None = None, job: int | None = None) -> str:
    """The reference number of a concept."""
    listed = all_variables().filter(cohort=cohort, concept=concept)
    listed = listed.filter(pl.col("year").eq_missing(pl.lit(year, pl.Int32)))
    if concept in ("occupation", "hourly pay") and cohort == "NLSY97":
        listed = listed.filter(job=job or 1)
    return listed["variable"][0]


def filled(rows: Rows) -> Rows:
    """Every respondent with a value for every variable of any, sorted by number; -5 where there is none."""
    variables = sorted({variable for row in rows for variable in row})
    return [{variable: row.get(variable, -5) for variable in variables} for row in rows]


def dotted(variable: str) -> str:
    return f"{variable[:6]}.{variable[6:]}"


def question(cohort: str, variable: str, extra: Mapping[str, tuple[str, str]]) -> tuple[str, str]:
    """Question name and year of a variable, from the list or the test's own."""
    if variable in extra:
        return extra[variable]
    found = all_variables().filter(cohort=cohort, variable=variable).select("question", "tag").rows()
    return found[0] if found else ("Q1-1", "1979")


def csv_text(rows: Rows, end: str = "\r\n", head: Iterable[str] | None = None) -> str:
    """Quoted names, unquoted values, and no line end after the last row, as the Investigator writes it."""
    lines = [",".join(head or (f'"{variable}"' for variable in rows[0]))]
    lines += [",".join(map(str, row.values())) for row in rows]
    return end.join(lines)


def dat_text(rows: Rows, end: str = "\r\n") -> str:
    return end.join(" ".join(map(str, row.values())) for row in rows)


def layouts(rows: Rows, cohort: str, extra: Mapping[str, tuple[str, str]] | None = None) -> dict[str, str]:
    """Ending -> text of each file of the extract."""
    variables = list(rows[0])
    named = {variable: question(cohort, variable, extra or {}) for variable in variables}
    label = {variable: f"{name} {tag}" for variable, (name, tag) in named.items()}
    label["R0000100"] = IDS[cohort][1]
    listed = "".join(f'  {variable} "{label[variable]}"\n' for variable in variables)
    sdf = (
        "\n\nReference\nNumber     Year    Variable Description               Question Name              \n"
        + "-" * 80
    )
    cdb = []
    for variable, (name, tag) in named.items():
        sdf += f"\n{dotted(variable)}  {tag:<7} {'SOME WORDS':<34} {name:<27}"
        cdb.append(
            f"{dotted(variable)}    [{name}]      Survey Year: {tag}\n  PRIMARY VARIABLE\n\n   SOME WORDS\n"
        )
    fields = "".join(f"  {variable} (F5)\n" for variable in variables)
    names = "".join(f"  {variable}\n" for variable in variables)
    return {
        f".{cohort}": names,
        ".csv": csv_text(rows),
        ".dat": dat_text(rows),
        ".dct": f"infile dictionary {{\n{listed}}}\n{dat_text(rows)}",
        ".sdf": sdf + "\n",
        ".cdb": ("\n" + "-" * 80 + "\n").join(cdb),
        ".sas": f"data new_data;\ninfile 'x.dat' lrecl=103 missover DSD DLM=' ' print;\ninput\n{names};\narray nv "
        f'_numeric_;\n  label R0000100 = "{IDS[cohort][1]}";\n',
        ".sps": f"file handle pcdat/name='x.dat' /lrecl=103.\ndata list file pcdat free /\n{fields}.\n"
        f"variable labels\n{listed}.\n",
        ".R": f"new_data <- read.table('x.dat', sep=' ')\nvarlabels <- c(\"{IDS[cohort][1]}\")\n",
        "-value-labels.do": f'label variable R0000100 "{IDS[cohort][1]}"\n',
    }


def write(folder: Path, texts: Mapping[str, str], *endings: str, name: str = "default") -> Path:
    """Some of the files of an extract, or all of them, in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for ending in endings or texts:
        (folder / f"{name}{ending}").write_bytes(texts[ending].encode())
    return folder


def write_zip(path: Path, texts: Mapping[str, str], *endings: str, name: str = "default") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for ending in endings or texts:
            archive.writestr(f"{name}{ending}", texts[ending])
    return path
