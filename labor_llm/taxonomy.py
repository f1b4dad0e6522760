"""Occupation codes and their titles, special states such as "In school" included."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import polars as pl

from labor_llm import errors
from labor_llm.errors import ConfigError, DataError
from labor_llm.paths import from_home
from labor_llm.text_files import check_encoding

COLUMNS = ("code", "title", "kind")
KINDS = ("occupation", "state")
LABOR_FORCE = "labor_force"
"""An optional column: what a state is, one of PLACES; empty where it is not known."""
PLACES = ("working", "unemployed", "outside")
BY_CODE = {"military": "working", "unemployed": "unemployed"}
"""What states are of which the column says nothing, or is not there."""
PACKAGED = Path(__file__).parent / "taxonomies"
SHOWN = 3
"""Mistakes of one kind that a message names before it only counts them."""


@dataclass(frozen=True)
class Taxonomy:
    """The occupations a dataset may name. Codes and titles are both unique, so a title stands for its code."""

    name: str
    titles: Mapping[str, str]
    """Code -> title, in the taxonomy's order."""
    states: frozenset[str]
    """The codes that are states of a person, not occupations."""
    labor_force: Mapping[str, str] = field(default_factory=dict)
    """State -> one of PLACES, where the taxonomy says so."""

    @property
    def codes(self) -> tuple[str, ...]:
        """All codes, states included, in the taxonomy's order."""
        return tuple(self.titles)

    def states_of(self, place: str) -> frozenset[str]:
        """The states that are one of PLACES."""
        places = BY_CODE | dict(self.labor_force)
        return frozenset(code for code in self.states if places.get(code) == place)

    def title(self, code: str) -> str:
        """The English title of a code."""
        self.check([code])
        return self.titles[code]

    def check(self, codes: Iterable[str]) -> None:
        """Raise a DataError that names the codes which the taxonomy lacks."""
        problem = self.unknown(codes)
        if problem:
            raise DataError(problem)

    def unknown(self, codes: Iterable[str]) -> str:
        """A sentence for each of the first codes that the taxonomy lacks; empty if it has them all."""
        lacking = sorted(set(codes) - self.titles.keys())
        sentences = [self._unknown(code) for code in lacking[:SHOWN]]
        if len(lacking) > SHOWN:
            sentences.append(f"{len(lacking)} unknown codes in all.")
        return " ".join(sentences)

    def _unknown(self, code: str) -> str:
        where = f" in taxonomy {self.name!r}"
        padded = [known for known in self.titles if known.lstrip("0") == code]
        if padded:
            hint = f"Did you mean {padded[0]!r}? Leading zeros count."
            return f"unknown occupation code {code!r}{where}. {hint}"
        titled = [known for known, title in self.titles.items() if title.lower() == code.lower()]
        if titled:
            return f"unknown occupation code {code!r}{where}. It is a title. Did you mean {titled[0]!r}?"
        return errors.unknown("occupation code", code, self.titles, where)

    @classmethod
    def packaged(cls, name: str) -> Self:
        """A taxonomy that comes with labor-llm; see the README beside the files for their sources."""
        names = sorted(file.name.removesuffix(".csv") for file in PACKAGED.iterdir() if file.name.endswith(".csv"))
        if name not in names:
            raise ConfigError(errors.unknown("packaged taxonomy", name, names))
        content = (PACKAGED / f"{name}.csv").read_bytes()
        return cls._from_table(_read(content, f"taxonomy {name!r}"), name, f"taxonomy {name!r}")

    @classmethod
    def from_csv(cls, path: Path, name: str | None = None) -> Self:
        """A taxonomy of one's own: a CSV file with the columns code, title and kind (occupation or state).

        A column ``labor_force`` says which states are working, unemployed or outside.
        """
        if not path.is_file():
            raise DataError(f"no taxonomy file at {path}")
        where = f"taxonomy file {path}"
        return cls._from_table(_read(path.read_bytes(), where), name or path.stem, where)

    @classmethod
    def named(cls, name: str) -> Self:
        """A packaged taxonomy, or that of a CSV file if the name ends so."""
        return cls.from_csv(from_home(Path(name))) if name.endswith(".csv") else cls.packaged(name)

    def to_json(self) -> str:
        """The whole taxonomy as text, for the metadata of a file; ``from_json`` reads it."""
        facts = {"name": self.name, "titles": dict(self.titles), "states": sorted(self.states)}
        return json.dumps(facts | ({LABOR_FORCE: dict(self.labor_force)} if self.labor_force else {}))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """What ``to_json`` wrote."""
        content = json.loads(text)
        states = frozenset(content["states"])
        return cls(content["name"], content["titles"], states, content.get(LABOR_FORCE, {}))

    @classmethod
    def _from_table(cls, table: pl.DataFrame, name: str, where: str) -> Self:
        problems = _problems(table)
        if problems:
            raise DataError("\n".join([f"{where} cannot be used:", *(f"- {problem}" for problem in problems)]))
        titles = dict(table.select("code", "title").iter_rows())
        places = dict(table.select("code", LABOR_FORCE).drop_nulls().iter_rows())
        return cls(name, titles, frozenset(table.filter(kind="state")["code"]), places)


def _read(content: bytes, where: str) -> pl.DataFrame:
    check_encoding(content, where)
    try:
        table = pl.read_csv(content, infer_schema=False)  # codes are text: leading zeros count
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{where} is not a readable CSV file: {error}") from error
    missing = [column for column in COLUMNS if column not in table.columns]
    if missing:
        raise DataError(
            f"{where} lacks the column {', '.join(map(repr, missing))}; "
            f"it must have code, title and kind, and has {', '.join(map(repr, table.columns))}"
        )
    if LABOR_FORCE not in table.columns:
        table = table.with_columns(pl.lit(None, pl.String).alias(LABOR_FORCE))
    return table.select(*COLUMNS, pl.col(LABOR_FORCE).replace("", None))


def _problems(table: pl.DataFrame) -> list[str]:
    """What keeps a table of codes, titles and kinds from being a taxonomy, a sentence each."""
    code, title, kind = pl.col("code"), pl.col("title"), pl.col("kind")
    broken = {
        "empty code": code.is_null() | (code == ""),
        "empty title": title.is_null() | (title == ""),
        "code that occurs twice": code.is_duplicated() & code.is_not_null(),
        "title that occurs twice (no two codes may be written alike)": title.is_duplicated() & title.is_not_null(),
        "line break or control character in a title (a line break ends it)": title.str.contains(r"\p{Cc}"),
        "space before or after a code or title": pl.any_horizontal(
            value != value.str.strip_chars() for value in (code, title)
        ),
        f"kind other than {' or '.join(KINDS)}": ~kind.fill_null("").is_in(KINDS),
        f"{LABOR_FORCE} other than {', '.join(PLACES)} or nothing": ~pl.col(LABOR_FORCE).is_in(PLACES),
        f"{LABOR_FORCE} of an occupation, which is work": (kind == "occupation")
        & pl.col(LABOR_FORCE).is_not_null(),
    }
    problems = ["it has no rows"] if table.is_empty() else []
    for what, condition in broken.items():
        rows = table.with_row_index("row", offset=1).filter(condition)
        shown = ", ".join(f"{row} (code {code!r}, {title!r})" for row, code, title, *_ in rows[:SHOWN].iter_rows())
        if not rows.is_empty():
            problems.append(f"{what}: row {shown}{'' if len(rows) <= SHOWN else f', ... ({len(rows)} rows)'}")
    return problems
