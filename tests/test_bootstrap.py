import json

import numpy as np
import pytest

import labor_llm.statistics.bootstrap
from labor_llm.statistics.bootstrap import resampled_totals
from labor_llm.statistics.clustered import clustered_ratio


@pytest.fixture(scope="module")
def sums():
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 9, size=300)
    return np.column_stack([rng.normal(-2 * counts, np.sqrt(counts)), counts, counts])


def test_every_replicate_is_a_sample_of_as_many_persons(monkeypatch):
    """The identity as sums gives back the counts: whole numbers, G in all, of a multinomial's moments."""
    monkeypatch.setattr(labor_llm.statistics.bootstrap, "PERSONS", 7)
    counts_RG = resampled_totals(np.eye(20), 5000, 0)
    assert (counts_RG == counts_RG.round()).all()
    assert (counts_RG.sum(axis=1) == 20).all()
    np.testing.assert_allclose(counts_RG.mean(axis=0), 1, atol=0.06)
    expected = np.where(np.eye(20, dtype=bool), 1 - 1 / 20, -1 / 20)  # Multinomial(20, 1/20)
    np.testing.assert_allclose(np.cov(counts_RG.T), expected, atol=0.08)


def test_equal_columns_have_equal_totals_and_the_same_draws(sums):
    totals = resampled_totals(sums, 200, 1)
    assert totals.shape == (200, 3)
    assert (totals[:, 1] == totals[:, 2]).all()
    np.testing.assert_allclose(totals[:, :2], resampled_totals(sums[:, :2], 200, 1))


def test_seeds_and_cores(sums, monkeypatch):
    first = resampled_totals(sums, 150, 3)
    assert not np.array_equal(first, resampled_totals(sums, 150, 4))
    monkeypatch.setattr(labor_llm.statistics.bootstrap, "_cores", lambda: 1)
    np.testing.assert_array_equal(first, resampled_totals(sums, 150, 3))


def test_its_standard_error_is_the_formulas(sums):
    totals = resampled_totals(sums, 4000, 0)
    _, se = clustered_ratio(sums[:, 0], sums[:, 1])
    assert (totals[:, 0] / totals[:, 1]).std() == pytest.approx(se, rel=0.05)


def test_the_benchmark_runs_at_toy_size(tmp_path):
    from benchmarks.bootstrap import main

    main(["--toy", "--out", str(tmp_path / "toy.json")])
    result = json.loads((tmp_path / "toy.json").read_text())
    assert result["by_records_per_person"]["10"]["persons"] == 200
    assert result["by_records_per_person"]["25"]["seconds"] > 0
