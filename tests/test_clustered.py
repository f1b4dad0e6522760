import math

import numpy as np
import polars as pl
import pytest
import statsmodels.api as sm
from drawn_predictions import simulated
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from labor_llm.statistics.clustered import clustered_auc, clustered_mean, weighted_name


@pytest.fixture(scope="module")
def predictions():
    return simulated(60)


def test_log_score_agrees_with_sklearn():
    rng = np.random.default_rng(0)
    shares_NJ = rng.dirichlet(np.ones(4), size=50)
    realised_N = rng.integers(4, size=50)
    table = pl.DataFrame({"person_id": np.arange(50) // 5, "score": np.log(shares_NJ[np.arange(50), realised_N])})
    expected = -log_loss(realised_N, shares_NJ, labels=np.arange(4))
    assert clustered_mean(table, pl.col("score")).value == pytest.approx(expected)


@pytest.mark.parametrize("weight", [None, "weight"])
def test_standard_errors_are_those_of_clustered_least_squares(predictions, weight):
    records = predictions.table.drop_nulls(["log_prob", "weight"])
    persons = records["person_id"].to_numpy().astype(int)
    weights_N = records[weight].to_numpy() if weight else np.ones(len(records))
    fit = sm.WLS(records["log_prob"].to_numpy(), np.ones(len(records)), weights=weights_N).fit(
        cov_type="cluster", cov_kwds={"groups": persons}
    )
    estimate = clustered_mean(records, pl.col("log_prob"), pl.col(weight) if weight else None)
    assert estimate[:2] == pytest.approx((fit.params[0], fit.bse[0]))


def naive_auc(events_N, scores_N):
    """The AUC and DeLong's standard error by comparing every event with every other record."""
    kernel = (scores_N[events_N][:, None] > scores_N[~events_N]) + 0.5 * (
        scores_N[events_N][:, None] == scores_N[~events_N]
    )
    m, n = kernel.shape
    return kernel.mean(), math.sqrt(kernel.mean(1).var(ddof=1) / m + kernel.mean(0).var(ddof=1) / n)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=4, max_size=40))
def test_auc_of_one_record_per_person_is_delongs_ties_included(records):
    events_N, scores_N = np.array([r[0] for r in records]), np.array([float(r[1]) for r in records])
    if min(events_N.sum(), (~events_N).sum()) < 2:
        return
    estimate = clustered_auc(np.arange(len(records)), events_N, scores_N)
    assert estimate[:2] == pytest.approx(naive_auc(events_N, scores_N), abs=1e-7)
    assert estimate.value == pytest.approx(roc_auc_score(events_N, scores_N))


def test_auc_of_doubled_records_has_the_standard_error_of_the_single_ones():
    rng = np.random.default_rng(0)
    events_N, scores_N = rng.random(300) < 0.4, rng.normal(size=300)
    single = clustered_auc(np.arange(300), events_N, scores_N)
    double = clustered_auc(np.repeat(np.arange(300), 2), np.repeat(events_N, 2), np.repeat(scores_N, 2))
    assert double[:2] == pytest.approx(single[:2])


def test_a_weight_counts_a_record_as_often():
    rng = np.random.default_rng(0)
    persons, events, scores = (
        rng.integers(40, size=200),
        rng.random(200) < 0.4,
        rng.integers(9, size=200).astype(float),
    )
    persons = np.unique(persons, return_inverse=True)[1]
    times = rng.integers(1, 4, size=200)
    weighted = clustered_auc(persons, events, scores, times.astype(float))
    repeated = clustered_auc(*(np.repeat(each, times) for each in (persons, events, scores)))
    assert weighted[:2] == pytest.approx(repeated[:2])


def test_names_of_weighted_twins():
    twins = {"auc": "auc_weighted", "auc_se": "auc_weighted_se", "difference_p_holm": "difference_weighted_p_holm"}
    assert {name: weighted_name(name) for name in twins} == twins
