import numpy as np
import pytest
import statsmodels.api as sm
from scipy.stats import norm, ttest_1samp

from labor_llm.statistics.inference import PersonSums, model_statistics


def panel(persons: int = 80, seed: int = 0, runs: int = 4):
    """First rows of persons and log-probabilities of runs that find the same persons hard; some are not scored."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 9, size=persons)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    hard = np.repeat(rng.normal(size=persons), lengths)[:, None]
    log_probs = -np.exp(0.3 * (hard + rng.normal(size=(len(hard), runs))) + 0.02 * np.arange(runs))
    log_probs[rng.random(log_probs.shape) < 0.03] = np.nan
    return starts, log_probs, rng.uniform(0.5, 2, len(hard))


@pytest.mark.parametrize("weighted", [False, True])
def test_sums_agree_with_a_loop(weighted):
    starts, log_probs, weights = panel(persons=10)
    weights = np.where(np.arange(len(weights)) % 7 == 0, np.nan, weights) if weighted else None
    sums = PersonSums.of(starts, log_probs, weights)
    for person, (start, end) in enumerate(zip(starts, [*starts[1:], len(log_probs)], strict=True)):
        for run in range(log_probs.shape[1]):
            own = common = own_weight = common_weight = 0.0
            for i in range(start, end):
                weight = 1.0 if weights is None else np.nan_to_num(weights[i])
                if not np.isnan(log_probs[i, run]):
                    own, own_weight = own + weight * log_probs[i, run], own_weight + weight
                if not np.isnan(log_probs[i]).any():
                    common, common_weight = common + weight * log_probs[i, run], common_weight + weight
            found = (sums.scores_GM, sums.weights_GM, sums.common_scores_GM)
            assert [each[person, run] for each in found] == pytest.approx([own, own_weight, common])
            assert sums.common_weights_G[person] == pytest.approx(common_weight)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_difference_is_that_of_clustered_least_squares(weighted):
    starts, log_probs, weights = panel()
    sums = PersonSums.of(starts, log_probs, weights if weighted else None)
    row = model_statistics(sums, [[0], [1], [2], [3]], 0, 2000, 0.95, 0)[3]
    common = ~np.isnan(log_probs).any(axis=1)
    persons = np.repeat(np.arange(len(starts)), np.diff([*starts, len(log_probs)]))[common]
    values, weights = (log_probs[:, 3] - log_probs[:, 0])[common], weights[common]
    fit = sm.WLS(values, np.ones(len(values)), weights=weights if weighted else 1.0).fit(
        cov_type="cluster", cov_kwds={"groups": persons}
    )
    assert row["difference"] == pytest.approx(fit.params[0])
    # A person without a common record contributes nothing, but is one of the persons drawn.
    assert row["difference_se"] == pytest.approx(fit.bse[0], rel=0.01)
    assert row["difference_p"] == pytest.approx(2 * norm.sf(abs(row["difference"] / row["difference_se"])))
    assert row["difference_se_bootstrap"] == pytest.approx(row["difference_se"], rel=0.07)
    assert row["difference_low"] < row["difference"] < row["difference_high"]
    half = (row["difference_high"] - row["difference_low"]) / 2
    assert half == pytest.approx(1.96 * row["difference_se"], rel=0.1)


def test_perplexity_and_its_errors():
    starts, log_probs, _ = panel()
    row = model_statistics(PersonSums.of(starts, log_probs), [[0], [1, 2, 3]], 0, 2000, 0.9, 0)[0]
    assert row["perplexity"] == pytest.approx(np.exp(-np.nanmean(log_probs[:, 0])))
    assert row["perplexity_se"] == pytest.approx(row["perplexity_se_bootstrap"], rel=0.07)
    assert row["perplexity_low"] < row["perplexity"] < row["perplexity_high"]
    assert row["training_sd"] is row["perplexity_se_training"] is None
    assert row["perplexity_se_total"] == row["perplexity_se"]
    assert "difference" not in row


def test_seeds_are_averaged_and_their_variation_is_told_apart():
    starts, log_probs, _ = panel()
    log_probs = np.nan_to_num(log_probs, nan=-1.0)
    model = model_statistics(PersonSums.of(starts, log_probs), [[0], [1, 2, 3]], 0, 1000, 0.95, 0)[1]
    scores = log_probs[:, 1:].mean(axis=0)
    assert model["log_score"] == pytest.approx(scores.mean())
    assert model["perplexity"] == pytest.approx(np.exp(-scores.mean()))
    assert model["training_sd"] == pytest.approx(scores.std(ddof=1))
    assert model["difference_se_training"] == pytest.approx(scores.std(ddof=1) / np.sqrt(3))
    alone = model_statistics(
        PersonSums.of(starts, np.column_stack([log_probs[:, 0], log_probs[:, 1:].mean(axis=1)])),
        [[0], [1]],
        0,
        1000,
        0.95,
        0,
    )[1]
    assert model["difference_se"] == pytest.approx(alone["difference_se"])
    total = np.hypot(model["difference_se"], model["difference_se_training"])
    assert model["difference_se_total"] == pytest.approx(total)


def test_with_sampling_error_out_of_the_way_p_is_that_of_a_t_test_of_seeds():
    """Every person has the same records, so that persons do not vary and only seeds do."""
    seeds = np.array([0.0, -1.0, -1.3, -0.9, -1.2])
    log_probs = np.tile(seeds, (60, 1)) + 1e-9 * np.random.default_rng(0).normal(size=(60, 5))
    row = model_statistics(PersonSums.of(np.arange(0, 60, 3), log_probs), [[0], [1, 2, 3, 4]], 0, 100, 0.95, 0)[1]
    assert row["difference_p"] == pytest.approx(ttest_1samp(seeds[1:], 0.0).pvalue, rel=1e-4)


def test_the_confidence_set_keeps_the_good_and_drops_the_bad():
    starts, log_probs, _ = panel(persons=300)
    log_probs[:, 3] -= 0.5
    rows = model_statistics(PersonSums.of(starts, log_probs), [[0], [1], [2], [3]], None, 1000, 0.95, 0)
    assert rows[3]["confidence_set_p"] < 0.05
    assert max(row["confidence_set_p"] for row in rows) == 1
    assert not any("difference" in row for row in rows)


def test_runs_without_a_common_record_have_no_difference():
    log_probs = np.array([[-1.0, np.nan], [np.nan, -2.0], [-1.5, np.nan], [np.nan, -1.0]])
    rows = model_statistics(PersonSums.of(np.array([0, 2]), log_probs), [[0], [1]], 0, 100, 0.95, 0)
    assert rows[1]["perplexity"] == pytest.approx(np.exp(1.5))
    assert "difference" not in rows[1]
    assert "confidence_set_p" not in rows[1]


@pytest.mark.parametrize("persons", [1, 2])
def test_one_person_has_no_errors_and_two_have(persons):
    starts, log_probs, _ = panel(persons=persons, seed=2)
    row = model_statistics(PersonSums.of(starts, log_probs), [[0], [1]], 0, 100, 0.95, 0)[1]
    assert (row["difference_se"] is None) == (row["difference_p"] is None) == (persons == 1)
