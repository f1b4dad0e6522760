import numpy as np
import polars as pl
import pytest
from drawn_predictions import simulated

from labor_llm.predictions import COLUMNS
from labor_llm.statistics.event_forecasts import EVENTS, Forecasts
from labor_llm.statistics.event_report import curve_rows, event_rows, too_small

GROUPS = ("gender", "ethnicity", "education", "year", "history")


@pytest.fixture(scope="module")
def table() -> pl.DataFrame:
    """Predictions of 300 persons who are female, male or of unknown gender; ethnicity is not known at all."""
    table = simulated(300).table
    gender = pl.col("person_id").cast(pl.Int64) % 5
    return table.with_columns(
        gender=pl.when(gender < 2).then(pl.lit("female")).when(gender < 4).then(pl.lit("male")),
        ethnicity=pl.lit(None, pl.String),
        education=pl.when(pl.col("year") < 4).then(pl.lit("high school")).otherwise(pl.lit("college")),
        year=pl.col("year") + 1978,
    )


@pytest.fixture(scope="module")
def rows(table) -> list[dict]:
    return event_rows(table, GROUPS, bins=5, min_persons=10)[0]


def cell(rows, event, group="all", level="all") -> dict:
    (row,) = (row for row in rows if (row["event"], row["group"], row["level"]) == (event, group, level))
    return row


def test_events_and_groups(rows):
    assert {row["event"] for row in rows} == set(EVENTS)
    levels = {
        group: [row["level"] for row in rows if (row["event"], row["group"]) == ("move", group)]
        for group in GROUPS
    }
    assert levels == {
        "gender": ["female", "male"],
        "ethnicity": [],
        "education": ["college", "high school"],
        "year": ["1975-1979", "1980-1984", "1985-1989"],
        "history": ["1", "2", "3-5", "6-10"],
    }


def test_a_cell_is_what_the_records_of_the_group_say(table, rows):
    later = table.filter(~pl.col("first") & (pl.col("gender") == "female"))
    row, forecasts = cell(rows, "move", "gender", "female"), Forecasts.of(later, "move")
    assert (row["records"], row["persons"]) == (later.height, later["person_id"].n_unique())
    assert row["rate"] == pytest.approx(later["moved"].mean())
    assert row["forecast"] == pytest.approx((1 - later["log_prob_stay"].exp()).mean())
    assert (row["auc"], row["auc_se"]) == forecasts.auc()[:2]
    heavy = later.filter(pl.col("weight") > 0)
    assert row["rate_weighted"] == pytest.approx(np.average(heavy["moved"], weights=heavy["weight"]))
    whole = row["reliability_weighted"] - row["resolution_weighted"] + row["uncertainty_weighted"]
    whole += row["within_variance_weighted"] - row["within_covariance_weighted"]
    assert row["brier_weighted"] == pytest.approx(whole)


def test_without_weights_nothing_is_weighted(table):
    rows, _ = event_rows(table.with_columns(weight=pl.lit(None, pl.Float64)), (), bins=5, min_persons=10)
    curves, _ = curve_rows(table.with_columns(weight=pl.lit(None, pl.Float64)), (), 5, 10, 0.95)
    assert not any("weighted" in name for row in (*rows, *curves) for name in row)


def test_no_forecasts_no_rows(table):
    silent = {name: pl.lit(None, COLUMNS[name]) for name in COLUMNS if name.endswith(("_logit", "_stay"))}
    assert event_rows(table.with_columns(**silent), GROUPS, 5, 10) == ([], 0)
    assert curve_rows(table.with_columns(**silent), (), 5, 10, 0.95) == ([], 0)


def test_events_that_never_come_are_absent(table):
    never = pl.when(pl.col("leave_work").is_not_null()).then(pl.lit(False))
    rows, _ = event_rows(table.with_columns(leave_work=never), (), 5, 10)
    assert {row["event"] for row in rows} == set(EVENTS) - {"leave_work"}


@pytest.mark.parametrize(
    ("counts", "left_out"),
    [
        ([(50, 20, 40)], [False]),
        ([(9, 0, 9)], [True]),
        ([(50, 9, 50)], [True]),
        ([(50, 50, 1)], [True]),
        ([(50, 0, 50)], [False]),
        ([(50, 20, 40), (9, 0, 9), (30, 20, 20)], [False, True, True]),
        ([(9, 0, 9), (8, 0, 8), (30, 20, 20)], [True, True, False]),
        ([(50, 20, 40), (60, 20, 40)], [False, False]),
    ],
    ids=[
        "large",
        "persons",
        "events",
        "non-events",
        "none-is-no-cell",
        "complement",
        "two-hide-another",
        "all-large",
    ],
)
def test_small_cells_and_what_would_give_them_away(counts, left_out):
    assert too_small(counts, 10) == left_out


def test_small_cells_are_counted_and_absent(table):
    rare = table.with_columns(
        gender=pl.when(pl.col("person_id").cast(pl.Int64) < 8).then(pl.lit("x")).otherwise("gender")
    )
    rows, withheld = event_rows(rare, ("gender",), 5, 10)
    levels = {row["level"] for row in rows if row["group"] == "gender"}
    assert levels == {"female", "male"}  # the sixty of unknown gender hide the eight
    assert withheld == len(EVENTS)
    known = rare.drop_nulls("gender")
    rows, withheld = event_rows(known, ("gender",), 5, 10)
    assert len({row["level"] for row in rows if row["group"] == "gender"}) == 1
    assert withheld == 2 * len(EVENTS)


def test_what_is_left_out_is_not_small_together():
    assert too_small([(100, 50, 90), (2, 1, 1), (3, 1, 2)], 10) == [True, True, True]
    assert too_small([(100, 50, 90), (90, 40, 70), (2, 1, 1), (3, 1, 2)], 10) == [False, True, True, True]
    assert too_small([(100, 50, 90), (80, 40, 70)], 10, hidden=[(3, 1, 2)]) == [False, True]
    assert too_small([(100, 50, 90), (80, 40, 70)], 10, hidden=[(30, 11, 20)]) == [False, False]


def test_curves_agree_with_a_loop_and_bands_hold_the_rate(table):
    curve = [row for row in curve_rows(table, (), 4, 10, 0.9)[0] if row["event"] == "enter_work"]
    later = table.drop_nulls("enter_work").sort("enter_work_logit")
    size = later.height / 4
    assert [row["records"] for row in curve] == pytest.approx([size] * 4, abs=1)
    start = 0
    for row in curve:
        part = later.slice(start, row["records"])
        start += row["records"]
        assert row["rate"] == pytest.approx(part["enter_work"].mean())
        assert row["persons"] == part["person_id"].n_unique()
        assert 0 < row["rate_low"] < row["rate"] < row["rate_high"] < 1


def test_the_curves_of_groups_cut_the_bins_of_all(table):
    known = table.drop_nulls("gender")
    rows, _ = curve_rows(known, ("gender",), 4, 1, 0.9)
    moves = {(row["level"], row["bin"]): row for row in rows if row["event"] == "move"}
    assert set(moves) == {(level, place) for level in ("all", "female", "male") for place in (1, 2, 3, 4)}
    for place in (1, 2, 3, 4):
        whole, *parts = (moves[level, place] for level in ("all", "female", "male"))
        assert whole["records"] == sum(part["records"] for part in parts)
        for name in ("rate", "forecast"):
            told = np.average([part[name] for part in parts], weights=[part["records"] for part in parts])
            assert whole[name] == pytest.approx(told)
        assert whole["forecast"] == pytest.approx(
            known.filter(~pl.col("first"))
            .select(chance=1 - pl.col("log_prob_stay").exp())
            .sort("chance")
            .slice(sum(moves["all", before]["records"] for before in range(1, place)), whole["records"])["chance"]
            .mean()
        )


def test_no_total_gives_a_bin_of_few_persons_away(table):
    """Of every bin and every level, what is left out is nothing, all, or not small together."""
    rare = pl.when(pl.col("person_id").cast(pl.Int64) < 40).then(pl.lit("rare")).otherwise("gender")
    table = table.with_columns(gender=rare).drop_nulls("gender")
    everything, _ = curve_rows(table, ("gender",), 6, 1, 0.9)
    told, withheld = curve_rows(table, ("gender",), 6, 10, 0.9)
    assert 0 < withheld < len(everything)

    def part(row: dict) -> tuple:
        return row["event"], row["group"], row["level"], row["bin"]

    shown = set(map(part, told))
    lines = {(row["event"], key, row[key]) for row in everything for key in ("level", "bin")}
    for event, key, value in lines:
        line = [
            row for row in everything if (row["event"], row[key]) == (event, value) and row["group"] == "gender"
        ]
        left_out = [row["persons"] for row in line if part(row) not in shown]
        assert len(left_out) in (0, len(line)) or sum(left_out) >= 10


def test_the_bins_of_a_cell_that_is_left_out_are_left_out(table):
    rare = pl.when(pl.col("person_id").cast(pl.Int64) < 8).then(pl.lit("x")).otherwise("gender")
    rows, _ = curve_rows(table.with_columns(gender=rare), ("gender",), 4, 1, 0.9)
    few, _ = curve_rows(table.with_columns(gender=rare), ("gender",), 4, 10, 0.9)
    assert {row["level"] for row in rows if row["group"] == "gender"} == {"x", "female", "male"}
    assert {row["level"] for row in few if row["group"] == "gender"} == {"female", "male"}


def test_a_rate_of_zero_has_no_band():
    table = simulated(60).table
    logit, later = pl.col("leave_work_logit"), ~pl.col("first")
    split = table.with_columns(leave_work=pl.when(later).then(logit > logit.median()))
    curve = [row for row in curve_rows(split, (), 2, 1, 0.95)[0] if row["event"] == "leave_work"]
    assert [(row["rate"], row["rate_low"]) for row in curve] == [(0, None), (1, None)]


def test_an_interval_covers_the_truth_as_often_as_promised():
    """Persons differ in their rate: intervals that ignored it would be too short."""
    rng, hits = np.random.default_rng(0), 0
    for _ in range(100):
        rates = np.clip(rng.beta(2, 6, size=120), 1e-6, 1)
        happened = rng.random((120, 6)) < rates[:, None]
        table = pl.DataFrame(
            {
                "person_id": np.repeat(np.arange(120), 6).astype(str),
                "year": np.tile(np.arange(6, dtype=np.int32), 120),
                "weight": pl.Series([None] * 720, dtype=pl.Float64),
                "moved": happened.ravel(),
                "log_prob_stay": np.full(720, np.log(0.75)),
            }
        ).with_columns(
            **{name: pl.lit(None, COLUMNS[name]) for name in COLUMNS if name.startswith(("leave", "enter"))}
        )
        ((row,), _) = curve_rows(table, (), 5, 10, 0.9)
        hits += row["rate_low"] < 0.25 < row["rate_high"]
    assert 82 <= hits <= 97
