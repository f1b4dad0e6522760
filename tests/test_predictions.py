import re
import tracemalloc
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import pytest

import labor_llm.events
from labor_llm.errors import RunError
from labor_llm.evaluate import _top
from labor_llm.predictions import ChoiceProbabilities, Predictions, RealizedProbabilities
from labor_llm.taxonomy import Taxonomy

CHOICE_SET = ("cook", "nurse", "pilot", "unemployed")
TAXONOMY = Taxonomy(
    "jobs", {code: code.title() for code in (*CHOICE_SET, "astronaut")}, states=frozenset({"unemployed"})
)


@dataclass(frozen=True)
class Panel:
    """As much of Careers as predictions look at."""

    table: pl.DataFrame
    taxonomy: Taxonomy = TAXONOMY

    def __len__(self) -> int:
        return self.table.height

    @property
    def previous(self) -> pl.Series:
        return self.table.select(pl.col("occupation").shift().over("person_id")).to_series()


def panel(careers: Mapping[str, list[str]]) -> Panel:
    lines = [(person, 2000 + t, job, None) for person, jobs in careers.items() for t, job in enumerate(jobs)]
    schema = {"person_id": pl.String, "year": pl.Int32, "occupation": pl.String, "weight": pl.Float64}
    covariates = {name: pl.lit(None, pl.String) for name in ("education", "gender", "ethnicity")}
    return Panel(pl.DataFrame(lines, schema=schema, orient="row").with_columns(**covariates))


@pytest.fixture
def careers():
    return panel({"a": ["cook", "cook", "astronaut", "nurse"], "b": ["pilot"], "c": ["nurse", "unemployed"]})


@pytest.fixture
def probabilities(careers):
    shares_NJ = np.random.default_rng(0).dirichlet(np.ones(len(CHOICE_SET)), size=len(careers))
    return ChoiceProbabilities(np.log(shares_NJ), -np.arange(len(careers), dtype=float))


@pytest.fixture
def predictions(careers, probabilities):
    return Predictions.of(careers, CHOICE_SET, probabilities)


def test_every_column_agrees_with_a_loop(careers, probabilities, predictions):
    before = None
    for line, log_probs_J, record in zip(
        predictions.table.iter_rows(named=True),
        probabilities.log_probs_NJ,
        careers.table.iter_rows(named=True),
        strict=True,
    ):
        history = before if before and before["person_id"] == record["person_id"] else None
        log_prob = dict(zip(CHOICE_SET, log_probs_J, strict=True))
        realised = log_prob.get(record["occupation"])
        stay = log_prob.get(history["occupation"]) if history else None
        assert line["in_choice_set"] == (realised is not None)
        assert line["log_prob"] == realised
        assert line["rank"] == (None if realised is None else 1 + sum(log_probs_J > realised))
        assert line["tied"] == (None if realised is None else 1)
        assert line["first"] == (history is None)
        assert line["moved"] == (None if history is None else record["occupation"] != history["occupation"])
        assert line["log_prob_stay"] == stay
        np.testing.assert_allclose(line["log_probs"], log_probs_J, rtol=1e-6)
        before = record


def test_columns_and_types(predictions):
    assert predictions.table.schema == {
        "person_id": pl.String,
        "year": pl.Int32,
        "occupation": pl.String,
        "in_choice_set": pl.Boolean,
        "log_prob": pl.Float64,
        "log_mass": pl.Float64,
        "log_prob_raw": pl.Float64,
        "error_bound": pl.Float64,
        "rank": pl.Int32,
        "tied": pl.Int32,
        "first": pl.Boolean,
        "moved": pl.Boolean,
        "log_prob_stay": pl.Float64,
        "leave_work": pl.Boolean,
        "leave_work_logit": pl.Float64,
        "leave_labor_force": pl.Boolean,
        "leave_labor_force_logit": pl.Float64,
        "enter_work": pl.Boolean,
        "enter_work_logit": pl.Float64,
        "weight": pl.Float64,
        "education": pl.String,
        "gender": pl.String,
        "ethnicity": pl.String,
        "log_probs": pl.Array(pl.Float32, 4),
    }
    assert predictions.table["log_mass"].to_list() == [0, -1, -2, -3, -4, -5, -6]


def test_equally_probable_occupations_share_the_better_rank(careers):
    uniform = ChoiceProbabilities(np.full((len(careers), 4), np.log(0.25)), np.zeros(len(careers)))
    table = Predictions.of(careers, CHOICE_SET, uniform).table.drop_nulls("log_prob")
    assert table.select("rank", "tied").unique().rows() == [(1, 4)]


def test_ties_below_a_better_one_share_what_is_left_of_the_top(careers):
    """After one occupation of probability 0.4, three of 0.2: each is in the top 2 by a third."""
    shares_NJ = np.tile([0.4, 0.2, 0.2, 0.2], (len(careers), 1))
    predictions = Predictions.of(careers, CHOICE_SET, ChoiceProbabilities(np.log(shares_NJ), np.zeros(7)))
    table = predictions.table.filter(occupation="nurse")
    assert table.select("rank", "tied").unique().rows() == [(2, 3)]
    values = {size: _top(table, size).value for size in (1, 2, 3, 4, 5)}
    assert values == pytest.approx({1: 0, 2: 1 / 3, 3: 2 / 3, 4: 1, 5: 1})


def test_one_of_seven_equal_ones_is_the_first_with_a_chance_of_a_seventh():
    codes = [f"job {place}" for place in range(7)]
    lone = panel({str(person): [code] for person, code in enumerate(codes)})
    uniform = ChoiceProbabilities(np.full((7, 7), -np.log(7)), np.zeros(7))
    top = {size: _top(Predictions.of(lone, codes, uniform).table, size).value for size in (1, 5, 10)}
    assert top == pytest.approx({1: 1 / 7, 5: 5 / 7, 10: 1})


def test_blocks_do_not_show(careers, probabilities, predictions, monkeypatch):
    monkeypatch.setattr(labor_llm.events, "BLOCK", 3)
    assert Predictions.of(careers, CHOICE_SET, probabilities).table.equals(predictions.table)


def test_normalising_keeps_the_mass_and_takes_no_second_copy(monkeypatch):
    monkeypatch.setattr(labor_llm.events, "BLOCK", 64)
    raw_NJ = np.random.default_rng(0).normal(size=(2000, 100)) - 9
    before_NJ = raw_NJ.copy()
    tracemalloc.start()
    found = ChoiceProbabilities.normalised(raw_NJ)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < raw_NJ.nbytes / 2
    np.testing.assert_allclose(np.exp(found.log_probs_NJ).sum(axis=1), 1)
    np.testing.assert_allclose(found.log_probs_NJ + found.log_mass_N[:, None], before_NJ)


def test_impossible_is_allowed(careers):
    certain_NJ = np.full((len(careers), 4), -np.inf)
    certain_NJ[:, 0] = 0
    table = Predictions.of(careers, CHOICE_SET, ChoiceProbabilities(certain_NJ, np.zeros(len(careers)))).table
    assert table["log_prob"].to_list() == [0, 0, None, -np.inf, -np.inf, -np.inf, -np.inf]


def test_no_records():
    nothing = ChoiceProbabilities(np.zeros((0, 4)), np.zeros(0))
    predictions = Predictions.of(panel({}), CHOICE_SET, nothing)
    assert predictions.table.is_empty()
    assert predictions.table.schema["log_probs"] == pl.Array(pl.Float32, 4)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 5000.0, 0.5])
def test_what_is_no_distribution_is_refused_with_its_row(careers, probabilities, wrong):
    probabilities.log_probs_NJ[4, 2] = wrong
    with pytest.raises(RuntimeError, match="row 4 sum"):
        Predictions.of(careers, CHOICE_SET, probabilities)


def test_wrong_shapes_and_masses_are_refused(careers, probabilities):
    with pytest.raises(RuntimeError, match=re.escape("(7, 3)")):
        Predictions.of(careers, CHOICE_SET[:3], probabilities)
    with pytest.raises(RuntimeError, match="log-masses"):
        Predictions.of(careers, CHOICE_SET, replace(probabilities, log_mass_N=np.zeros(3)))
    with pytest.raises(RuntimeError, match="log-mass of row 0"):
        Predictions.of(careers, CHOICE_SET, replace(probabilities, log_mass_N=np.full(7, np.nan)))


def test_a_file_holds_everything(predictions, tmp_path):
    path = tmp_path / "predictions.parquet"
    predictions.write(path)
    again = Predictions.read(path)
    assert again.table.equals(predictions.table)
    assert again.table.schema == predictions.table.schema
    assert again.choice_set == CHOICE_SET
    assert Predictions.read(path, distribution=False).table.equals(predictions.table.drop("log_probs"))
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_of_an_earlier_version_lacks_events_and_covariates(predictions, tmp_path):
    path = tmp_path / "predictions.parquet"
    newer = [name for name in predictions.table.columns if name.startswith(("leave", "enter"))]
    newer += ["education", "gender", "ethnicity", "error_bound", "log_prob_raw"]
    Predictions(predictions.table.drop(newer), CHOICE_SET).write(path)
    again = Predictions.read(path).table
    assert again["log_prob_raw"].equals(predictions.table["log_prob_raw"])
    assert again["leave_work"].null_count() == again["gender"].null_count() == again.height


def test_realised_occupations_tell_what_happened_and_foretell_nothing(careers, predictions):
    table = Predictions.of(careers, CHOICE_SET, RealizedProbabilities(np.zeros(len(careers)))).table
    assert table["leave_work"].equals(predictions.table["leave_work"])
    assert table["leave_work_logit"].null_count() == table.height
    assert table.schema == predictions.table.drop("log_probs").schema


def test_the_distribution_may_be_left_out(careers, probabilities, predictions):
    table = Predictions.of(careers, CHOICE_SET, probabilities, keep_distribution=False).table
    assert table.equals(predictions.table.drop("log_probs"))


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(RunError, match="no predictions at"):
        Predictions.read(tmp_path / "nowhere.parquet")
    pl.DataFrame({"x": [1]}).write_parquet(tmp_path / "other.parquet")
    (tmp_path / "text.parquet").write_text("not Parquet at all")
    for name in ("other.parquet", "text.parquet"):
        with pytest.raises(RunError, match=f"{name} is not a file of predictions"):
            Predictions.read(tmp_path / name)
