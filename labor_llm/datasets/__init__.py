"""Sources of careers: one module per source, each with settings and a ``read``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from labor_llm.careers import Careers, SplitByPerson


class Dataset(Protocol):
    """What a run needs of a source."""

    @property
    def name(self) -> str:
        """Names the dataset in folders and tables."""

    @property
    def split(self) -> SplitByPerson:
        """How its persons are divided into train, valid and test."""

    @property
    def files(self) -> Sequence[Path]:
        """The files on this machine that its settings name."""

    def read(self) -> Careers:
        """The validated table, from the raw files."""
