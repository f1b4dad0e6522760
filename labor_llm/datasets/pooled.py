"""Several prepared datasets in one, so that a model learns from careers of more than one population.

For the claim of arXiv 2406.17972 that careers added from another survey let smaller models beat larger ones. The
first line of each text names the person's survey. A person_id gets the dataset's name before it, and everybody
stays in the part (train, valid, test) that they have in their own dataset, as long as all use the same salt and
shares; so a model of the pool can be scored on the test persons of each.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from labor_llm.careers import Careers
from labor_llm.datasets.report import Report
from labor_llm.errors import DataError
from labor_llm.splits import POOL, SOURCE_MARK, Share, SplitByPerson, hashed_places, without_source


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class SplitBySource(SplitByPerson):
    """The split of the pooled datasets: by the person_id that a person has there."""

    def _ids(self, person_ids: pl.Series) -> pl.Series:
        return person_ids.to_frame().select(without_source(pl.col(person_ids.name))).to_series()


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Pooled:
    """Settings of a pool of datasets that have been prepared before."""

    name: str
    sources: list[str] = Field(min_length=1)
    """Names of prepared datasets."""
    shares: dict[str, Share] = Field(default_factory=dict)
    """Name of a dataset -> the share of its training persons to take; 1 if it is not named."""
    weights: dict[str, float] = Field(default_factory=dict)
    """Name of a dataset -> what its survey weights are multiplied by; 1 if it is not named."""
    folder: Path = Path("outputs")
    """Where the datasets were prepared: <folder>/<dataset>/careers.parquet."""
    split: SplitBySource = Field(default_factory=SplitBySource)

    def __post_init__(self) -> None:
        for setting in ("shares", "weights"):
            odd = sorted(getattr(self, setting).keys() - set(self.sources))
            if odd:
                raise ValueError(
                    f"{setting} names {', '.join(odd)}, which is not among the sources {self.sources}"
                )

    @property
    def files(self) -> list[Path]:
        """The prepared tables."""
        return [self._path(source) for source in self.sources]

    def parts(self, report: Report) -> Iterator[Careers]:
        """The careers of all sources, one source after the other; DataError if their taxonomies differ."""
        absent = [source for source in self.sources if not self._path(source).is_file()]
        if absent:
            raise DataError(
                f"dataset {self.name!r} pools {', '.join(absent)}, not prepared in {self.folder}. First run "
                f"labor-llm prepare dataset={absent[0]} with its dataset.raw"
            )
        for source in self.sources:
            split = json.loads(self._path(source).with_name("prepare.json").read_text(encoding="utf-8"))["split"]
            if split.partition("(")[2] != repr(self.split).partition("(")[2]:
                raise DataError(
                    f"{source!r} is divided by {split} and the pool by {self.split}: persons whom one trains on "
                    "would be tested in the other. Give both the same shares and salt; a dataset divided by its "
                    "own files cannot be pooled."
                )
        first = next(Careers.read_parts(self._path(self.sources[0])))
        for source in sorted(self.sources, key=lambda name: name + SOURCE_MARK):
            for part in Careers.read_parts(self._path(source)):
                if part.taxonomy != first.taxonomy:
                    raise DataError(
                        f"{source!r} has occupations of taxonomy {part.taxonomy.name!r} and {first.dataset!r} "
                        f"those of {first.taxonomy.name!r}: prepare all with one taxonomy, such as occ1990dd"
                    )
                report.count(f"records of {source}", part.table)
                taken = self._sampled(part, source)
                report.count(f"records taken of {source}", taken)
                if not taken.is_empty():
                    yield replace(part, table=taken, dataset=self.name, source=f"{POOL}{', '.join(self.sources)}")

    def _path(self, source: str) -> Path:
        return self.folder / source / "careers.parquet"

    def _sampled(self, part: Careers, source: str) -> pl.DataFrame:
        """The records to take, with the dataset's name in person_id, and weights.

        Everybody keeps their place, so a larger share takes those of a smaller one, and more.
        """
        share = self.shares.get(source, 1.0)
        prefixed = pl.concat_str(pl.lit(f"{source}{SOURCE_MARK}"), "person_id").alias("person_id")
        named = replace(part, table=part.table.with_columns(prefixed))
        ids = named.table["person_id"].gather(named.person_starts[:-1])
        training_P = self.split.assign(named) == 0
        taken_P = ~training_P | (hashed_places(ids, "share") < share)
        taken_N = pl.Series(np.repeat(taken_P, np.diff(named.person_starts)))
        return named.table.filter(taken_N).with_columns(pl.col("weight") * self.weights.get(source, 1.0))
