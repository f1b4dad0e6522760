"""Sources of careers: one module per source, each with settings and ``parts``, which reads it."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import polars as pl

from labor_llm.careers import Careers
from labor_llm.datasets.report import Report
from labor_llm.splits import Split


class Dataset(Protocol):
    """What a run needs of a source."""

    @property
    def name(self) -> str:
        """Names the dataset in folders and tables."""

    @property
    def split(self) -> Split:
        """How its persons are divided into train, valid and test."""

    @property
    def files(self) -> Sequence[Path]:
        """The files on this machine that its settings name."""

    def parts(self, report: Report) -> Iterator[Careers]:
        """The validated careers, from the raw files, in parts: persons ascend, and nobody is in two parts.

        A source that fits into memory has one part. What is counted and left out goes to the report.
        """


def read(dataset: Dataset, report: Report | None = None) -> Careers:
    """The whole dataset in memory."""
    parts = list(dataset.parts(report or Report()))
    return replace(parts[0], table=pl.concat([part.table for part in parts]))
