"""What may be told of event forecasts: overall and by group, small cells left out.

A cell is left out if it holds fewer persons than a threshold, or if at least one but fewer than the threshold have
an event, or have a record without one: rates would tell how many. The next smallest go with it until what is left
out, the unknown included, is not small either, for the total less what is shown would tell it.
"""

import itertools
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
    rows: list[dict[str, Any]] = []
    withheld = 0
    for event, forecasts in _forecasts(table.with_columns(_prior_records().alias("history"))):
        for group in ("all", *groups):
            for level, cell, left_out in _sized_cells(forecasts, group, min_persons):
                withheld += left_out
                if not left_out:
                    head = {"event": event, "group": group, "level": level}
                    rows.append(head | _scores(cell, bins, min_persons))
    return rows, withheld


def curve_rows(
    table: pl.DataFrame, groups: Sequence[str], bins: int, min_persons: int, level: float
) -> tuple[list[dict[str, Any]], int]:
    """One row per event, group, level and bin of the forecast, with its band, and how many bins were left out.

    The bins are those of all records. The band is that of the rate's log-odds, clustered by person, so that it
    stays within zero and one; there is none around a rate of zero or one.
    """
    rows: list[dict[str, Any]] = []
    withheld = 0
    for event, forecasts in _forecasts(table.with_columns(_prior_records().alias("history"))):
        bins_N = quantile_bins(forecasts.probabilities_N, bins)
        binned = [forecasts.where(pl.Series(bins_N == place)) for place in range(bins_N.max() + 1)]
        hidden_bins: set[int] = set()
        for group in ("all", *groups):
            small_levels = {name: small for name, _, small in _sized_cells(forecasts, group, min_persons)}
            parts = {
                (name, place): cell for place, part in enumerate(binned) for name, cell in _cells(part, group)
            }
            hidden = {key for key in parts if small_levels[key[0]] or key[1] in hidden_bins}
            unknown = [_unknown(part, group).person_counts for part in binned]
            counts = {key: cell.person_counts for key, cell in parts.items()}
            left_out = _not_to_be_told(counts, hidden, unknown, min_persons)
            hidden_bins |= {place for _, place in left_out} if group == "all" else set()
            withheld += sum(not small_levels[name] for name, _ in left_out)
            rows += [
                {"event": event, "group": group, "level": name, "bin": place + 1}
                | _point(parts[name, place], level, min_persons)
                for name, place in itertools.product(small_levels, range(len(binned)))
                if (name, place) in parts.keys() - left_out
            ]
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


Part = tuple[str, int]
"""A level of a group and a bin of the forecast."""


def _not_to_be_told(
    counts: Mapping[Part, Counts], left_out: set[Part], unknown: Sequence[Counts], min_persons: int
) -> set[Part]:
    """The parts that are left out, until neither the total of a level nor that of a bin tells a small one.

    ``left_out``: those that are anyway; ``unknown``: the records of each bin whose level is not known.
    """
    before = -1
    while before < len(left_out):
        before = len(left_out)
        for axis, name in dict.fromkeys(
            (axis, part[axis]) for axis in (0, 1) for part in counts
        ):  # in their order
            parts = [part for part in counts if part[axis] == name]
            shown = [part for part in parts if part not in left_out]
            hidden = [counts[part] for part in parts if part in left_out]
            hidden += [unknown[int(name)]] if axis == 1 and unknown[int(name)][0] else []
            small = too_small([counts[part] for part in shown], min_persons, hidden)
            left_out = left_out | {part for part, is_small in zip(shown, small, strict=True) if is_small}
    return left_out


def _sized_cells(forecasts: Forecasts, group: str, min_persons: int) -> Iterator[tuple[str, Forecasts, bool]]:
    """The levels of a group, the forecasts of each, and whether it is left out."""
    cells = dict(_cells(forecasts, group))
    unknown = _unknown(forecasts, group)
    hidden = [] if unknown.table.is_empty() else [unknown.person_counts]
    small = too_small([cell.person_counts for cell in cells.values()], min_persons, hidden)
    for (level, cell), left_out in zip(cells.items(), small, strict=True):
        yield level, cell, left_out


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
