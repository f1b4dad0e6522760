"""How heavy the tails of careers are: the rank of the occupation that followed, by smoothed transition counts.

    python -m experiments.career_tails PANEL.csv.xz

Reads a long table with the columns person_id, year, census2010 and status (an occupation code, or a state where
there is none), one row per person and year. Every fifth person is held out.
"""

import lzma
import sys
from pathlib import Path

import numpy as np
import polars as pl

SMOOTHING = 20.0
"""Observations of the margin that are added to every row of the counts."""


def main(path: Path) -> None:
    """Print the share of stayers and quantiles of the rank."""
    content = path.read_bytes()
    table = pl.read_csv(lzma.decompress(content) if path.suffix == ".xz" else content, infer_schema_length=0)
    code = pl.when(pl.col("census2010").fill_null("") != "").then("census2010").otherwise("status")
    occupations = table.select(code.cast(pl.Categorical).to_physical()).to_series().to_numpy()
    persons = table["person_id"].to_numpy()
    going_on = persons[1:] == persons[:-1]
    before, after = occupations[:-1][going_on], occupations[1:][going_on]
    held_out = np.isin(persons[1:][going_on], np.unique(persons)[::5])
    size = int(occupations.max()) + 1
    counts = np.zeros((size, size))
    np.add.at(counts, (before[~held_out], after[~held_out]), 1)
    margin = np.bincount(after[~held_out], minlength=size) + 0.5
    smoothed = counts + SMOOTHING * margin / margin.sum()
    chosen = smoothed[before[held_out], after[held_out]]
    ranks = 1 + (smoothed[before[held_out]] > chosen[:, None]).sum(1)
    print(f"{size} codes, {(before == after).mean():.3f} stay, {held_out.sum()} held-out transitions")
    for share in (0.9, 0.95, 0.99, 0.999):
        print(f"in {1 - share:.1%} of them the rank is {np.quantile(ranks, share, method='lower')} or more")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
