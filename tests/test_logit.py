"""The logit's features, its optimum beside scikit-learn's, its stages and its table of coefficients."""

import numpy as np
import polars as pl
import pytest
import torch
from conftest import CHOICES, TEST, TRAIN, VALID, panel
from sklearn.linear_model import LogisticRegression

from labor_llm.models.logit import STAY, Logit
from labor_llm.predictions import choice_indices
from labor_llm.sequences.codes import CodeBook
from labor_llm.sequences.features import design, feature_names

CAREERS = panel(
    person_id=["a"] * 5 + ["b"] * 2,
    year=[1980, 1981, 1983, 1984, 1985, 1980, 1981],
    occupation=["095", "095", "095", "243", "095", "243", "243"],
    education=["school", "school", None, "college", "college", "school", "school"],
    gender=["female"] * 5 + ["male"] * 2,
)


def dense(careers, book) -> pl.DataFrame:
    """One column per feature, written out."""
    table = design(book, careers)
    full = torch.zeros(len(table), len(feature_names(book)))
    full.scatter_add_(1, table.features_NT, table.values_NT)
    return pl.DataFrame(full.numpy(), schema=list(feature_names(book)))


@pytest.fixture
def features():
    return dense(CAREERS, CodeBook.of(CAREERS, ("095", "243"), ("year", "education", "gender", "region")))


def test_features_are_those_of_the_reference(features):
    assert features["last occupation: none"].to_list() == [1, 0, 0, 0, 0, 1, 0]
    assert features["last occupation=095"].to_list() == [0, 1, 1, 1, 0, 0, 0]
    assert features["second last occupation=095"].to_list() == [0, 0, 1, 1, 1, 0, 0]
    assert features["second last occupation: none"].to_list() == [1, 1, 0, 0, 0, 1, 1]
    np.testing.assert_allclose(
        features["repeats of the last occupation / 10"] * 10, [0, 0, 1, 2, 0, 0, 0], atol=1e-6
    )
    np.testing.assert_allclose(features["position / 10"] * 10, [0, 1, 2, 3, 4, 0, 1], atol=1e-6)
    assert features["education: missing"].to_list() == [0, 0, 1, 0, 0, 0, 0]
    assert features["education changed"].to_list() == [1, 0, 1, 1, 0, 1, 0]
    assert features["gender=male"].to_list() == [0] * 5 + [1] * 2
    assert features["constant"].to_list() == [1] * 7
    assert not [name for name in features.columns if name.startswith("region")]


def test_a_gap_is_a_year_that_others_have_and_this_person_lacks():
    more = panel(person_id=["c"] * 3, year=[1980, 1981, 1985], occupation=["095"] * 3)
    gaps = dense(more, CodeBook.of(CAREERS, ("095", "243"), ("year",)))["gap"]
    assert gaps.to_list() == [0, 0, 1]
    assert dense(CAREERS, CodeBook.of(CAREERS, ("095", "243"), ("year",)))["gap"].sum() == 0
    assert dense(more, CodeBook.of(CAREERS, ("095", "243"), ()))["gap"].sum() == 0


def test_one_stage_is_the_regression_of_scikit_learn():
    penalty = 2.0
    model = Logit(two_stage=False, l2=(penalty,)).fit(TRAIN, VALID, CHOICES)
    book = CodeBook.of(TRAIN, CHOICES, model.covariates)
    x, y = (dense(careers, book).to_numpy()[:, 1:] for careers in (TRAIN, TEST))
    seen = sorted(set(TRAIN.table["occupation"]))
    theirs = LogisticRegression(C=1 / penalty, max_iter=2000, tol=1e-8).fit(x, TRAIN.table["occupation"].to_list())
    ours = np.exp(model.log_probs(TEST))[:, [CHOICES.index(code) for code in theirs.classes_]]
    assert list(theirs.classes_) == seen
    # Their constants are free; ours are drawn towards the shares a little.
    np.testing.assert_allclose(ours / ours.sum(1, keepdims=True), theirs.predict_proba(y), atol=5e-3)


def test_years_that_training_never_saw_are_no_gaps_of_their_own():
    book = CodeBook.of(CAREERS, ("095", "243"), ("year",))
    last = int(max(book.values["year"]))
    later = panel(person_id=["x"] * 4, year=[last - 1, last, last + 1, last + 2], occupation=["095"] * 4)
    assert dense(later, book)["gap"].to_list() == [0, 0, 0, 0]
    missed = panel(person_id=["x"] * 2, year=[last - 1, last + 1], occupation=["095"] * 2)
    assert dense(missed, book)["gap"].to_list() == [0, 1]


def test_states_that_training_never_saw_keep_a_probability():
    model = Logit(l2=(1.0, 0.1)).fit(TRAIN, VALID, CHOICES)
    unseen = [CHOICES.index(code) for code in CHOICES if code not in set(TRAIN.table["occupation"])]
    assert unseen
    log_probs = model.log_probs(TEST)[:, unseen]
    assert log_probs.min() > -12


def test_the_best_penalty_is_chosen_on_validation():
    def nll(model):
        places = choice_indices(VALID.table["occupation"], CHOICES)
        return -model.fit(TRAIN, VALID, CHOICES).log_probs(VALID)[np.arange(len(VALID)), places].mean()

    assert nll(Logit(l2=(30, 3, 0.3))) <= min(nll(Logit(l2=(l2,))) for l2 in (30, 3, 0.3)) + 1e-3


def test_coefficients_are_one_table_and_give_the_log_odds_of_staying(tmp_path):
    model = Logit().fit(TRAIN, VALID, CHOICES)
    model.save(tmp_path)
    table = pl.read_csv(tmp_path / "coefficients.csv", schema_overrides={"occupation": pl.String})
    assert table.columns == ["feature", "occupation", "coefficient"]
    stay = table.filter(pl.col("occupation") == STAY)["coefficient"].to_numpy()
    odds = dense(TEST, CodeBook.of(TRAIN, CHOICES, model.covariates)).to_numpy() @ stay
    before = choice_indices(TEST.previous, CHOICES)
    rows = np.flatnonzero(before >= 0)
    stayed = np.exp(model.log_probs(TEST))[rows, before[rows]]
    np.testing.assert_allclose(stayed, 1 / (1 + np.exp(-odds[rows])), atol=1e-4)
