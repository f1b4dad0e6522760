"""Career -> text. A text is built from pieces, so that training, scoring and showing cannot disagree:

    header, then for every record a prompt ("1984 (some college):") and a title (" Cooks\\n"), then a footer.

The text of a career up to record t is a prefix of the text up to record t + 1, the header holds only what is
known before the first record, and what varies stands on the record's own line, before the title. The wording
follows the public description of LABOR-LLM (arXiv 2406.17972).
"""

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass as plain_dataclass
from typing import ClassVar

import polars as pl
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from labor_llm.careers import Careers
from labor_llm.taxonomy import Taxonomy

TITLE_START = " "
"""Stands before a title. It belongs to the title, not to the prompt: tokenizers merge it into the first word."""
TITLE_END = "\n"
"""The terminator: it belongs to every title, so that no title is the beginning of another."""

SETTINGS = ConfigDict(extra="forbid")


class Label(ABC):
    """How an occupation is written in the text."""

    name: str

    @abstractmethod
    def names(self, taxonomy: Taxonomy) -> dict[str, str]:
        """The written name of every code of the taxonomy; names are distinct."""


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class Titles(Label):
    """Occupations by their English titles."""

    name: str = "title"

    def names(self, taxonomy: Taxonomy) -> dict[str, str]:
        return dict(taxonomy.titles)


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class Codes(Label):
    """Occupations by meaningless codes such as ``job_017``: the ablation of arXiv 2406.17972.

    The numbers follow a hash of the code, so that neighbours in the taxonomy do not get similar numbers.
    """

    name: str = "code"

    def names(self, taxonomy: Taxonomy) -> dict[str, str]:
        shuffled = sorted(taxonomy.codes, key=lambda code: hashlib.sha256(code.encode()).digest())
        width = max(3, len(str(len(shuffled))))
        return {code: f"job_{number:0{width}d}" for number, code in enumerate(shuffled)}


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class Tokens(Titles):
    """Occupations by their English titles, but each with its terminator is one new entry of the vocabulary.

    The text stays the same; the whole distribution over the choice set then follows from one forward pass.
    """

    name: str = "token"


@plain_dataclass(frozen=True)
class RenderedCareer:
    """The text of one person and the place of every title in it."""

    text: str
    title_spans: tuple[tuple[int, int], ...]
    """Per record, first character of the title and the one after its last; space and terminator left out."""


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class ResumeTemplate:
    """A short resume in English; values that are unknown are left out."""

    name: str = "resume"
    birth_year: bool = True
    """Whether the header states the birth year."""

    footer: ClassVar[str] = "<END OF DATA>\n"

    def headers(self, careers: Careers) -> pl.Series:
        """The header of every person, in the order of the table, shape (P,)."""
        first = careers.table.group_by("person_id", maintain_order=True).first()
        worker = pl.concat_str("gender", "ethnicity", pl.lit("US worker"), separator=" ", ignore_nulls=True)
        article = pl.when(worker.str.contains("^[AEIOaeio]")).then(pl.lit("an ")).otherwise(pl.lit("a "))
        region = _known("region", " residing in the {} region")
        born = _known("birth_year", "The worker was born in {}.\n") if self.birth_year else pl.lit("")
        header = pl.concat_str(
            pl.format("<A worker from the {} dataset>\n", "survey"),
            pl.lit("The following information is available about the work history of "),
            article,
            worker,
            region,
            pl.lit(".\n"),
            born,
            pl.lit("The worker has the following records of work experience, one entry per line, "),
            pl.lit("including year, education level, and the job title:\n"),
        )
        return first.select(header.alias("header")).to_series()

    def prompts(self, careers: Careers) -> pl.Series:
        """What stands before the title of every record, in the order of the table, shape (N,)."""
        prompt = pl.concat_str(pl.col("year").cast(pl.String), _known("education", " ({})"), pl.lit(":"))
        return careers.table.select(prompt.alias("prompt")).to_series()

    def titles(self, label: Label, taxonomy: Taxonomy) -> dict[str, str]:
        """Every title as it stands in the text, its leading space and its terminator included."""
        return {code: f"{TITLE_START}{name}{TITLE_END}" for code, name in label.names(taxonomy).items()}

    def texts(self, careers: Careers, label: Label) -> pl.Series:
        """The whole text of every person, footer included, in the order of the table, shape (P,)."""
        titles = careers.table["occupation"].replace_strict(self.titles(label, careers.taxonomy))
        lines = careers.table.select("person_id", line=self.prompts(careers) + titles)
        bodies = lines.group_by("person_id", maintain_order=True).agg(pl.col("line").str.join(""))["line"]
        return self.headers(careers) + bodies + self.footer

    def render(self, career: Careers, label: Label) -> RenderedCareer:
        """The text of one person's records; without the footer, since the next record may still follow."""
        if career.persons != 1:
            raise ValueError(f"render takes the records of one person, got {career.persons} persons")
        titles = self.titles(label, career.taxonomy)
        text, spans = self.headers(career)[0], []
        for prompt, code in zip(self.prompts(career), career.table["occupation"], strict=True):
            title = titles[code]
            start = len(text) + len(prompt) + len(TITLE_START)
            spans.append((start, start + len(title) - len(TITLE_START) - len(TITLE_END)))
            text += prompt + title
        return RenderedCareer(text, tuple(spans))


def _known(column: str, wording: str) -> pl.Expr:
    """The wording with the column's value in it, or nothing where the value is unknown."""
    return pl.when(pl.col(column).is_null()).then(pl.lit("")).otherwise(pl.format(wording, column))
