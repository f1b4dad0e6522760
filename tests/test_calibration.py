import warnings

import numpy as np
import polars as pl
import pytest
import statsmodels.api as sm
from hypothesis import given
from hypothesis import strategies as st

from labor_llm.statistics.calibration import calibration_line, decomposition, quantile_bins
from labor_llm.statistics.event_forecasts import Forecasts


def forecasts(logits, happened, persons=None, weights=None) -> Forecasts:
    count = len(logits)
    columns = {
        "person_id": np.arange(count).astype(str) if persons is None else np.asarray(persons).astype(str),
        "leave_work": np.asarray(happened, dtype=bool),
        "leave_work_logit": np.asarray(logits, dtype=float),
        "weight": np.ones(count) if weights is None else weights,
    }
    return Forecasts.of(pl.DataFrame(columns), "leave_work")


def drawn(count: int = 400, slope: float = 0.6, seed: int = 0) -> Forecasts:
    """Forecasts whose true log-odds are 0.3 + slope x theirs, with a person's own taste for the event."""
    rng = np.random.default_rng(seed)
    persons = np.sort(rng.integers(count // 5, size=count))
    logits, taste = rng.normal(-1, 1.5, size=count), rng.normal(size=count // 5)[persons]
    happened = rng.random(count) < 1 / (1 + np.exp(-(0.3 + slope * logits + taste)))
    return forecasts(logits, happened, persons, rng.uniform(0.5, 2, count))


@given(
    st.lists(st.tuples(st.integers(-6, 6), st.booleans(), st.floats(0.1, 3)), min_size=1, max_size=40),
    st.integers(2, 6),
    st.booleans(),
)
def test_the_parts_of_the_brier_score_add_up_to_it(records, bins, weighted):
    logits, happened, weights = map(np.array, zip(*records, strict=True))
    given_ = forecasts(logits, happened, weights=weights)
    parts = decomposition(given_, quantile_bins(given_.probabilities_N, bins), weighted)
    whole = parts.reliability - parts.resolution + parts.uncertainty
    whole += parts.within_variance - parts.within_covariance
    assert whole == pytest.approx(given_.brier(weighted).value, abs=1e-12)


def test_the_parts_agree_with_a_loop():
    given_ = drawn()
    probabilities, happened = given_.probabilities_N, given_.happened_N
    bins = quantile_bins(probabilities, 5)
    parts = decomposition(given_, bins)
    reliability = resolution = 0.0
    for place in set(bins):
        inside = [i for i in range(len(bins)) if bins[i] == place]
        rate = sum(happened[i] for i in inside) / len(inside)
        forecast = sum(probabilities[i] for i in inside) / len(inside)
        reliability += len(inside) / len(bins) * (forecast - rate) ** 2
        resolution += len(inside) / len(bins) * (rate - happened.mean()) ** 2
    assert (parts.reliability, parts.resolution) == pytest.approx((reliability, resolution))
    assert parts.uncertainty == pytest.approx(happened.mean() * (1 - happened.mean()))


def test_murphys_three_parts_are_all_when_forecasts_within_bins_are_alike():
    given_ = forecasts([-1.0, -1.0, 2.0, 2.0, 2.0], [0, 1, 1, 1, 0])
    parts = decomposition(given_, quantile_bins(given_.probabilities_N, 3))
    assert (parts.within_variance, parts.within_covariance) == pytest.approx((0, 0))


def test_bins_are_of_equal_size_and_ties_stay_together():
    assert quantile_bins(np.arange(10.0), 5).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert quantile_bins(np.array([0.1] * 8 + [0.5, 0.9]), 5).tolist() == [0] * 8 + [1, 1]
    assert quantile_bins(np.full(4, 0.3), 10).tolist() == [0] * 4


@pytest.mark.parametrize("weighted", [False, True])
def test_the_line_and_its_errors_are_those_of_statsmodels(weighted):
    given_ = drawn()
    line = calibration_line(given_, weighted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # statsmodels on clusters with weights
        fit = sm.GLM(
            given_.happened_N.astype(float),
            sm.add_constant(given_.logits_N),
            family=sm.families.Binomial(),
            freq_weights=given_.weights_N(weighted),
        ).fit(cov_type="cluster", cov_kwds={"groups": given_.persons_N, "use_correction": False})
    persons = len(np.unique(given_.persons_N))
    factor = np.sqrt(persons / (persons - 1))
    assert (line.intercept, line.slope) == pytest.approx(tuple(fit.params), rel=1e-5)
    assert (line.intercept_se, line.slope_se) == pytest.approx(tuple(factor * fit.bse), rel=1e-5)


def test_calibrated_forecasts_have_a_slope_of_one():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=20_000)
    line = calibration_line(forecasts(logits, rng.random(20_000) < 1 / (1 + np.exp(-logits))))
    assert abs(line.slope - 1) < 3 * line.slope_se < 0.1
    assert abs(line.intercept) < 3 * line.intercept_se


def test_certain_forecasts_are_left_out_of_the_line():
    given_ = drawn()
    table = pl.concat(
        [
            given_.table.select("person_id", "leave_work", "leave_work_logit", "weight"),
            pl.DataFrame(
                {"person_id": ["0"], "leave_work": [True], "leave_work_logit": [-np.inf], "weight": [1.0]}
            ),
        ]
    )
    line = calibration_line(Forecasts.of(table, "leave_work"))
    assert line.slope == pytest.approx(calibration_line(given_).slope)


@pytest.mark.parametrize(
    ("logits", "happened"),
    [
        ([1.0, 1.0, 1.0], [0, 1, 1]),
        ([-1.0, 0.0, 1.0, 2.0], [0, 0, 1, 1]),
        ([-1.0, 2.0], [1, 1]),
        ([np.inf, -np.inf], [1, 0]),
        ([], []),
        (np.repeat([-0.775, -0.537], [576, 2]), np.arange(578) < 247),
    ],
    ids=["alike", "parted", "always", "certain", "none", "never at one of two"],
)
def test_what_determines_no_line_has_none(logits, happened):
    assert calibration_line(forecasts(logits, happened)) is None


def test_one_person_has_no_standard_errors():
    line = calibration_line(forecasts([-1.0, 0.0, 1.0, 0.5], [0, 1, 0, 1], persons=[1, 1, 1, 1]))
    assert line.slope_se is None
