"""Which variables of a survey a dataset needs: the list to download, and what an extract lacks of it."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import polars as pl

COLUMNS = {
    "variable": pl.String,
    "concept": pl.String,
    "year": pl.Int32,
    "needed": pl.Boolean,
    "sources": pl.Int8,
    "found": pl.Boolean,
}


@dataclass(frozen=True)
class Variables:
    """Variables in the order of the download."""

    table: pl.DataFrame
    """``variable`` (its number in the survey), ``concept``, ``year`` (null: constant), ``needed`` (else optional),
    ``sources`` (independent sources that agree on the number; 1: check it before relying on it) and ``found``
    (whether the extract has it; null without an extract)."""
    costs: dict[str, str]
    """Concept -> what is lost without it, in a few words, such as "education stays unknown"."""
    file_name: str
    """Name of the list, as the survey's website wants it, such as ``nlsy79.NLSY79``."""
    text: str
    """The list itself, to upload or to paste."""
    hint: str
    """One or two sentences: where to take the list, and what to download."""


@runtime_checkable
class HasVariables(Protocol):
    """A dataset that is downloaded variable by variable."""

    def variables(self) -> Variables:
        """The list; ``found`` is filled in if the settings name an extract."""
