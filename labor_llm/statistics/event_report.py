"""What may be told of event forecasts: overall and by group, small cells left out.

A cell is left out if it holds fewer persons than a threshold, or if at least one but fewer than the threshold have
an event, or have a record without one: rates would tell how many. The next smallest go with it until what is left
out, the unknown included, is not small either, for the total less what is shown would tell it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import polars as pl
from scipy.special import expit, logit
from scipy.stats import norm

from labor_llm.statistics.calibration import Line, calibration_line, decomposition, quantile_bins
from labor_llm.statistics.clustered import Estimate, weighted_name
from labor_llm.statistics.event_forecasts import EVENTS, Forecasts

HISTORY = (1, 2, 5, 10, 20)
"""Last number of earlier records in each band of history lengths."""
YEARS = 5
"""Calendar years of a band."""


def event_rows(
    table: pl.DataFrame, groups: Sequence[str], bins: int, min_persons: int
) -> tuple[list[dict[str, Any]], int]:
    """One row per event, group and level of a table of predictions, and how many were left out as too small.

    The group ``all`` has the level ``all``. Scores are unweighted, and under ``<name>_weighted`` weighted by
    survey weights if there are any. Events that never or always came, and groups that are not known, are absent.
    """
    cells = list(_sized_cells(table, groups, min_persons))
    rows = [head | _scores(cell, bins, min_persons) for head, cell, left_out in cells if not left_out]
    return rows, len(cells) - len(rows)


def curve_rows(
    table: pl.DataFrame, groups: Sequence[str], bins: int, min_persons: int, level: float
) -> tuple[list[dict[str, Any]], int]:
    """One row per event, group, level and bin of the forecast, with its band, and how many bins were left out.

    The bins are those of the cell's own forecasts; a cell that is left out whole is not counted. The band is that
    of the rate's log-odds, clustered by person, so that it stays within zero and one; there is none around a rate
    of zero or one.
    """
    rows: list[dict[str, Any]] = []
    withheld = 0
    for head, cell, cell_left_out in _sized_cells(table, groups, min_persons):
        if cell_left_out:
            continue
        bins_N = quantile_bins(cell.probabilities_N, bins)
        parts = [cell.where(pl.Series(bins_N == place)) for place in range(bins_N.max() + 1)]
        small = too_small([part.person_counts for part in parts], min_persons)
        withheld += sum(small)
        for place, (part, left_out) in enumerate(zip(parts, small, strict=True)):
            if not left_out:
                rows.append(head | {"bin": place + 1} | _point(part, level, min_persons))
    return rows, withheld


Counts = tuple[int, int, int]
"""Persons of a cell, those with an event and those with a record of none."""


def too_small(counts: Sequence[Counts], min_persons: int, hidden: Sequence[Counts] = ()) -> list[bool]:
    """Which cells are left out; ``hidden``: cells of the same total that are never shown, such as the unknown.

    What is left out must not be small when taken together, for the total less the cells that are shown tells it.
    """

    def is_small(cell: Sequence[int]) -> bool:
        return cell[0] < min_persons or any(0 < some < min_persons for some in cell[1:])

    small = [is_small(cell) for cell in counts]
    while not all(small):
        left_out = [*hidden, *(cell for cell, is_out in zip(counts, small, strict=True) if is_out)]
        persons, having, lacking = (
            (sum(column) for column in zip(*left_out, strict=True)) if left_out else (0, 0, 0)
        )
        if not left_out or not is_small((persons, having, lacking)):
            break
        _, place = min((cell[0], place) for place, cell in enumerate(counts) if not small[place])
        small[place] = True
    return small


def _sized_cells(
    table: pl.DataFrame, groups: Sequence[str], min_persons: int
) -> Iterator[tuple[dict[str, str], Forecasts, bool]]:
    """Event, group and level of every cell, its forecasts, and whether it is left out."""
    for event, forecasts in _forecasts(table.with_columns(_prior_records().alias("history"))):
        for group in ("all", *groups):
            cells = dict(_cells(forecasts, group))
            unknown = _unknown(forecasts, group)
            hidden = [] if unknown.table.is_empty() else [unknown.person_counts]
            small = too_small([cell.person_counts for cell in cells.values()], min_persons, hidden)
            for (level, cell), left_out in zip(cells.items(), small, strict=True):
                yield {"event": event, "group": group, "level": level}, cell, left_out


def _forecasts(table: pl.DataFrame) -> Iterator[tuple[str, Forecasts]]:
    for event in EVENTS:
        forecasts = Forecasts.of(table, event)
        _, having, lacking = forecasts.person_counts
        if having and lacking:
            yield event, forecasts


def _cells(forecasts: Forecasts, group: str) -> Iterator[tuple[str, Forecasts]]:
    """The levels of a group in order, and the records of each; those of unknown level are left out."""
    if group == "all":
        yield "all", forecasts
        return
    sort, level = GROUPS[group]
    levels = forecasts.table.select(sort=sort, level=level).drop_nulls().unique().sort("sort")["level"]
    for name in levels.unique(maintain_order=True):
        yield name, forecasts.where(level == name)


def _unknown(forecasts: Forecasts, group: str) -> Forecasts:
    """The records whose level of a group is not known."""
    if group == "all":
        return forecasts.where(pl.lit(False))
    return forecasts.where(forecasts.table.select(GROUPS[group][1].is_null()).to_series())


def _scores(forecasts: Forecasts, bins: int, min_persons: int) -> dict[str, Any]:
    row: dict[str, Any] = {"records": len(forecasts.table), "persons": forecasts.person_counts[0]}
    row |= _score(forecasts, bins, False)
    weighable = forecasts.weighable
    if not too_small([weighable.person_counts], min_persons)[0]:
        row |= {weighted_name(name): value for name, value in _score(weighable, bins, True).items()}
    return row


def _score(forecasts: Forecasts, bins: int, weighted: bool) -> dict[str, float | None]:
    """All that is said of one cell, weighted or not."""
    rate = forecasts.mean(forecasts.happened_N, weighted)
    row = _with_se("rate", rate)
    row["forecast"] = forecasts.mean(forecasts.probabilities_N, weighted).value
    row |= _with_se("auc", forecasts.auc(weighted)) | _with_se("brier", forecasts.brier(weighted))
    parts = decomposition(forecasts, quantile_bins(forecasts.probabilities_N, bins), weighted)
    line = calibration_line(forecasts, weighted)
    return row | asdict(parts) | (asdict(line) if line else dict.fromkeys(Line.__dataclass_fields__))


def _point(forecasts: Forecasts, level: float, min_persons: int) -> dict[str, Any]:
    """One point of a reliability curve."""
    row: dict[str, Any] = {"records": len(forecasts.table), "persons": forecasts.person_counts[0]}
    weighable = forecasts.weighable
    variants = [(forecasts, False)]
    if not too_small([weighable.person_counts], min_persons)[0]:
        variants.append((weighable, True))
    for some, weighted in variants:
        rate = some.mean(some.happened_N, weighted)
        low, high = _band(rate, level)
        point = {"forecast": some.mean(some.probabilities_N, weighted).value} | _with_se("rate", rate)
        point |= {"rate_low": low, "rate_high": high}
        row |= {weighted_name(name): value for name, value in point.items()} if weighted else point
    return row


def _band(rate: Estimate, level: float) -> tuple[float | None, float | None]:
    """An interval for a rate, symmetric in its log-odds."""
    if rate.value is None or rate.se is None or not 0 < rate.value < 1:
        return None, None
    half = norm.ppf((1 + level) / 2) * rate.se / (rate.value * (1 - rate.value))
    low, high = expit(logit(rate.value) + np.array([-half, half]))
    return float(low), float(high)


def _with_se(name: str, estimate: Estimate) -> dict[str, float | None]:
    return {name: estimate.value, f"{name}_se": estimate.se}


def _prior_records() -> pl.Expr:
    return pl.col("year").rank("ordinal").over("person_id").cast(pl.Int64) - 1


def _history_band() -> pl.Expr:
    band = pl.lit(f"{HISTORY[-1] + 1}+")
    for before, last in zip((*HISTORY[-2::-1], 0), HISTORY[::-1], strict=True):
        name = f"{last}" if last == before + 1 else f"{before + 1}-{last}"
        band = pl.when(pl.col("history") <= last).then(pl.lit(name)).otherwise(band)
    return band


def _year_band() -> pl.Expr:
    first = pl.col("year") // YEARS * YEARS
    return pl.format("{}-{}", first, first + YEARS - 1)


GROUPS: Mapping[str, tuple[pl.Expr, pl.Expr]] = {
    **{name: (pl.col(name), pl.col(name)) for name in ("gender", "ethnicity", "education")},
    "year": (pl.col("year"), _year_band()),
    "history": (pl.col("history"), _history_band()),
}
"""How the levels of a group are sorted, and their names."""
