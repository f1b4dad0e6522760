import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from labor_llm.statistics.multiple_comparisons import confidence_set_p_values, holm


@pytest.mark.parametrize("p_values", [[0.3], [0.04, 0.01, 0.01, 0.2, 0.9, 0.0], [1.0, 0.6, 0.7]])
def test_holm_agrees_with_statsmodels(p_values):
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])


def test_what_is_no_test_counts_for_nothing():
    assert holm([None, 0.02, None, 0.01]) == [None, 0.02, None, 0.02]
    assert holm([]) == []


def naive_confidence_set(losses, draws):
    """Hansen, Lunde and Nason (2011), section 3.1.2, T_max, model by model and replicate by replicate."""
    left, p_values, largest = set(range(len(losses))), {}, 0.0
    while len(left) > 1:
        relative = {i: losses[i] - sum(losses[j] for j in left) / len(left) for i in left}
        drawn = [{i: draw[i] - sum(draw[j] for j in left) / len(left) for i in left} for draw in draws]
        errors = {i: (sum((d[i] - relative[i]) ** 2 for d in drawn) / len(draws)) ** 0.5 for i in left}
        statistic = {i: relative[i] / errors[i] for i in left}
        worst = max(left, key=statistic.__getitem__)
        exceeding = [max((d[i] - relative[i]) / errors[i] for i in left) > statistic[worst] for d in drawn]
        largest = max(largest, sum(exceeding) / len(draws))
        p_values[worst] = largest
        left.remove(worst)
    return [p_values.get(i, 1.0) for i in range(len(losses))]


def test_the_confidence_set_agrees_with_a_loop():
    rng = np.random.default_rng(0)
    losses = np.array([1.0, 1.02, 1.05, 1.3, 1.01])
    draws = losses + 0.03 * rng.normal(size=(200, 5)) + 0.1 * rng.normal(size=(200, 1))
    p_values = confidence_set_p_values(losses, draws)
    assert p_values.tolist() == naive_confidence_set(losses, draws)
    assert p_values[0] == 1
    assert p_values[3] < 0.05 < p_values[4]


def test_models_that_do_not_differ_are_all_in_the_set():
    draws = np.random.default_rng(0).normal(2, 0.1, size=(100, 1)).repeat(3, axis=1)
    assert confidence_set_p_values(np.full(3, 2.0), draws).tolist() == [1, 1, 1]
    assert confidence_set_p_values(np.array([2.0]), draws[:, :1]).tolist() == [1]


def test_the_best_model_is_in_the_set_as_often_as_promised():
    """Four models of the same mean loss: all are the best, and at 90% the set loses one in at most 10%."""
    rng, lost = np.random.default_rng(0), 0
    for _ in range(200):
        scores = rng.normal(size=(100, 4))
        counts = rng.multinomial(100, np.full(100, 0.01), size=200)
        lost += (confidence_set_p_values(scores.mean(axis=0), counts @ scores / 100) < 0.1).any()
    assert lost / 200 < 0.16
