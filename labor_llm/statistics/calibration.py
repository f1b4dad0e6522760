"""Whether foretold probabilities are those with which events come: decomposed scores, curves, and the slope.

Shapes: N records at risk, B bins of the forecast probability, G persons.
"""

from dataclasses import dataclass
from math import isfinite, sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from labor_llm.statistics.clustered import distinct, renumbered
from labor_llm.statistics.event_forecasts import Forecasts

SINGULAR = 1e-7
"""Smallest eigenvalue of a weighted mean of (1, x)(1, x)' p(1 - p), x standardised, that determines a line.

Where an event never comes at one of two forecasts, the search for a line without end stops at some 1e-9.
"""


@dataclass(frozen=True)
class Decomposition:
    """The Brier score = reliability - resolution + uncertainty + within_variance - within_covariance.

    Exact for any bins (Stephenson, Coelho and Jolliffe 2008, Two extra components in the Brier score
    decomposition, Weather and Forecasting 23, eq. 5). The first three are Murphy's (1973) of the bin means;
    the last two are the variance of the forecasts within bins and twice their covariance with the events,
    which Murphy's decomposition leaves out.
    """

    reliability: float
    resolution: float
    uncertainty: float
    within_variance: float
    within_covariance: float


@dataclass(frozen=True)
class Line:
    """Log-odds of the event = intercept + slope x log-odds that were foretold; 0 and 1 if calibrated (Cox 1958).

    A slope below one: forecasts too extreme. Standard errors are clustered by person. Forecasts of exactly zero
    or one have no log-odds and are left out.
    """

    intercept: float
    intercept_se: float | None
    slope: float
    slope_se: float | None


def quantile_bins(probabilities_N: NDArray[np.floating], bins: int) -> NDArray[np.int64]:
    """The bin of every forecast, from 0: ``bins`` of as equal size as ties permit, which are never parted."""
    edges = np.quantile(probabilities_N, np.arange(1, bins) / bins, method="inverted_cdf")
    return renumbered(np.searchsorted(edges, probabilities_N))


def decomposition(forecasts: Forecasts, bins_N: NDArray[np.int64], weighted: bool = False) -> Decomposition:
    """The parts of the (weighted) Brier score."""
    weights_N = forecasts.weights_N(weighted)
    shares_N = weights_N / weights_N.sum()
    forecast_N, happened_N = forecasts.probabilities_N, forecasts.happened_N.astype(np.float64)
    share_B = np.bincount(bins_N, shares_N)
    forecast_B, rate_B = (np.bincount(bins_N, shares_N * each) / share_B for each in (forecast_N, happened_N))
    rate = float(share_B @ rate_B)
    apart_N = forecast_N - forecast_B[bins_N]
    return Decomposition(
        reliability=float(share_B @ np.square(forecast_B - rate_B)),
        resolution=float(share_B @ np.square(rate_B - rate)),
        uncertainty=rate * (1 - rate),
        within_variance=float(shares_N @ np.square(apart_N)),
        within_covariance=float(2 * (shares_N * apart_N) @ (happened_N - rate_B[bins_N])),
    )


def calibration_line(forecasts: Forecasts, weighted: bool = False) -> Line | None:
    """Logistic regression of the event on the foretold log-odds; None where the data determine no line.

    That is: forecasts all alike, or a threshold that parts events from non-events. Standard errors are those of
    the sandwich with scores summed within persons, times G/(G-1) (Liang and Zeger 1986).
    """
    kept_N = np.isfinite(forecasts.logits_N)
    logits_N, happened_N = forecasts.logits_N[kept_N], forecasts.happened_N[kept_N]
    spread = logits_N.std() if len(logits_N) else 0.0
    if spread <= SINGULAR or happened_N.all() or not happened_N.any():
        return None
    weights_N = forecasts.weights_N(weighted)[kept_N]
    weights_N = weights_N / weights_N.sum()
    design_N2 = np.column_stack([np.ones(len(logits_N)), (logits_N - logits_N.mean()) / spread])
    line_2 = _maximised(design_N2, happened_N, weights_N)
    fitted_N = expit(design_N2 @ line_2)
    bread_22 = _information(design_N2, fitted_N, weights_N)
    if np.linalg.eigvalsh(bread_22)[0] < SINGULAR:
        return None
    scores_N2 = (weights_N * (happened_N - fitted_N))[:, None] * design_N2
    covariance_22 = _sandwich(bread_22, scores_N2, forecasts.persons_N[kept_N])
    back_22 = np.array([[1.0, -logits_N.mean() / spread], [0.0, 1 / spread]])
    intercept, slope = back_22 @ line_2
    errors = [sqrt(v) if isfinite(v) else None for v in np.diag(back_22 @ covariance_22 @ back_22.T)]
    return Line(float(intercept), errors[0], float(slope), errors[1])


def _maximised(
    design_N2: NDArray[np.float64], happened_N: NDArray[np.bool_], weights_N: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The line of the highest weighted likelihood: a convex problem of two unknowns."""

    def loss(line_2: NDArray[np.float64]) -> float:
        odds_N = design_N2 @ line_2
        return float(weights_N @ (np.logaddexp(0, odds_N) - happened_N * odds_N))

    def slope(line_2: NDArray[np.float64]) -> NDArray[np.float64]:
        residuals_2: NDArray[np.float64] = (weights_N * (expit(design_N2 @ line_2) - happened_N)) @ design_N2
        return residuals_2

    def curvature(line_2: NDArray[np.float64]) -> NDArray[np.float64]:
        return _information(design_N2, expit(design_N2 @ line_2), weights_N)

    options = {"gtol": 1e-10, "maxiter": 100}
    found = minimize(loss, np.zeros(2), jac=slope, hess=curvature, method="trust-exact", options=options)
    return np.asarray(found.x, dtype=np.float64)


def _information(
    design_N2: NDArray[np.float64], fitted_N: NDArray[np.float64], weights_N: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The weighted mean of p (1 - p) times the square of a row."""
    curvature_N = weights_N * fitted_N * (1 - fitted_N)
    information_22: NDArray[np.float64] = design_N2.T @ (curvature_N[:, None] * design_N2)
    return information_22


def _sandwich(
    bread_22: NDArray[np.float64], scores_N2: NDArray[np.float64], persons_N: NDArray[np.int64]
) -> NDArray[np.float64]:
    """The covariance of the line, clustered by person; not a number with one person only."""
    persons = distinct(persons_N)
    scores_G2 = np.column_stack([np.bincount(persons_N, column_N) for column_N in scores_N2.T])
    inverse_22 = np.linalg.inv(bread_22)
    factor = persons / (persons - 1) if persons > 1 else np.nan
    covariance_22: NDArray[np.float64] = factor * inverse_22 @ (scores_G2.T @ scores_G2) @ inverse_22
    return covariance_22
