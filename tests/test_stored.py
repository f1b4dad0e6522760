"""Which predictions on disk stand for those of a fitted model, and which do not."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conftest import CHOICES, TEST, TRAIN, VALID
from made_up_runs import write_run

from labor_llm.models.markov import Markov
from labor_llm.models.stored import stored_predictions
from labor_llm.predictions import Predictions

MODEL = Markov().fit(TRAIN, VALID, CHOICES)
EXACT = {"scoring": {"name": "exact", "max_tokens": 4096}}
PRUNED = {"scoring": {"name": "pruned", "tolerance": 0.01, "max_tokens": 4096}}
FEW = VALID.select_persons(VALID.table["person_id"].unique(maintain_order=True)[:4])


def written(folder: Path, careers, distribution: bool = True, model=EXACT, **config) -> Path:
    predictions = Predictions.of(careers, CHOICES, MODEL.predict(careers), distribution)
    return write_run(folder, "markov", predictions, model=model, **config)


@pytest.fixture
def run(tmp_path) -> Path:
    """A run that predicted the test persons."""
    return written(tmp_path / "markov" / "1", TEST)


def test_predictions_of_the_run_itself_are_taken(run):
    found = stored_predictions(run, TEST, CHOICES)
    np.testing.assert_allclose(found.log_probs_NJ, MODEL.log_probs(TEST), atol=1e-5)
    assert found.error_bound_N is None
    assert stored_predictions(run, VALID, CHOICES) is None


def test_those_of_a_score_beside_it_are_taken_also_of_more_persons_and_after_a_move(run, tmp_path):
    written(
        run.parent / "2",
        VALID,
        fitted=f"/before/{run.name}",
        model=EXACT | {"scoring": EXACT["scoring"] | {"max_tokens": 9}},
    )
    found = stored_predictions(run, FEW, CHOICES)
    np.testing.assert_allclose(found.log_probs_NJ, MODEL.log_probs(FEW), atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"distribution": False},
        {"model": PRUNED},
        {"fitted": "/before/another"},
        {"complete": False},
    ],
    ids=["realised probabilities only", "scored otherwise", "of another model", "incomplete"],
)
def test_others_are_not_taken(run, changes):
    folder = written(
        run.parent / "2", VALID, **{"fitted": str(run)} | {k: v for k, v in changes.items() if k != "complete"}
    )
    if changes.get("complete") is False:
        (folder / "complete").unlink()
    assert stored_predictions(run, VALID, CHOICES) is None


@pytest.mark.parametrize(
    "change",
    [
        {"occupation": pl.when(pl.col("year") == 1982).then(pl.lit("004")).otherwise("occupation")},
        {"gender": pl.lit("other")},
        {"weight": pl.col("weight") + 1},
        {"year": pl.col("year") + 1},
    ],
    ids=" ".join,
)
def test_other_records_are_not_taken_for_these(run, change):
    changed = replace(TEST, table=TEST.table.with_columns(**change))
    assert stored_predictions(run, changed, CHOICES) is None


def test_a_career_with_fewer_records_or_another_choice_set_is_predicted_anew(run):
    assert stored_predictions(run, replace(TEST, table=TEST.table.filter(pl.col("year") > 1980)), CHOICES) is None
    assert stored_predictions(run, TEST, CHOICES[::-1]) is None


def test_bounds_of_pruned_scores_are_kept(tmp_path):
    careers = TEST
    probabilities = replace(MODEL.predict(careers), error_bound_N=np.full(len(careers), 0.01))
    folder = write_run(tmp_path / "1", "markov", Predictions.of(careers, CHOICES, probabilities), model=PRUNED)
    assert (stored_predictions(folder, careers, CHOICES).error_bound_N == 0.01).all()
