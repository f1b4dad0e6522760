"""How sure one may be of a comparison: sampling of persons, training of models, and how many were compared.

A model is one or several runs that differ in their seed alone. Its log score is the mean over these runs, and two
things about it are uncertain. *Sampling*: other persons would have given other scores; standard errors are
clustered by person, by formula and by bootstrap. *Training*: other seeds would have; with S runs whose log scores
have the standard deviation s, the mean's error from training is s / sqrt(S). Persons and seeds are crossed, so
that the squares of both errors add up to that of the whole, or a little more, as their interaction is in both
(Owen 2007, The pigeonhole bootstrap, Annals of Applied Statistics 1). With one run training is not counted, and
the error is that of this run.

Shapes: N records, G persons, M runs, K models, R bootstrap replicates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite, sqrt
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from labor_llm.statistics.bootstrap import resampled_totals
from labor_llm.statistics.clustered import clustered_ratio
from labor_llm.statistics.multiple_comparisons import confidence_set_p_values

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PersonSums:
    """What every person contributes: sums of log scores and of the weights of the records scored."""

    scores_GM: Floats
    """Over the records that the run could score."""
    weights_GM: Floats
    common_scores_GM: Floats
    """Over the records that all runs could score: what differences are taken of."""
    common_weights_G: Floats

    @classmethod
    def of(cls, starts_G: NDArray[np.integer], log_probs_NM: Floats, weights_N: Floats | None = None) -> Self:
        """Sum log-probabilities, NaN where a run could not score, of records that are sorted by person.

        ``starts_G``: every person's first row. ``weights_N``: NaN or zero leaves a record out; None counts them.
        """
        weights_N = np.ones(len(log_probs_NM)) if weights_N is None else np.nan_to_num(weights_N)
        scored_NM = np.isfinite(log_probs_NM)
        scores_NM = np.where(scored_NM, log_probs_NM, 0.0) * weights_N[:, None]
        common_N = np.all(scored_NM, axis=1)
        return cls(
            np.add.reduceat(scores_NM, starts_G),
            np.add.reduceat(scored_NM * weights_N[:, None], starts_G),
            np.add.reduceat(scores_NM * common_N[:, None], starts_G),
            np.add.reduceat(common_N * weights_N, starts_G),
        )

    def averaged(self, models: Sequence[Sequence[int]]) -> Self:
        """The sums of models instead of runs: every model the mean of its runs."""
        mean_MK = np.zeros((self.scores_GM.shape[1], len(models)))
        for place, runs in enumerate(models):
            mean_MK[list(runs), place] = 1 / len(runs)
        return type(self)(
            self.scores_GM @ mean_MK,
            self.weights_GM @ mean_MK,
            self.common_scores_GM @ mean_MK,
            self.common_weights_G,
        )

    @property
    def columns_GK(self) -> Floats:
        """All sums side by side: own scores, own weights, common scores, the common weight."""
        return np.column_stack([self.scores_GM, self.weights_GM, self.common_scores_GM, self.common_weights_G])


def model_statistics(
    runs: PersonSums,
    models: Sequence[Sequence[int]],
    reference: int | None,
    replicates: int,
    level: float,
    seed: int,
) -> list[dict[str, Any]]:
    """For every model its perplexity, its difference to the reference, and their errors; None where undefined.

    ``models``: the runs of each. ``perplexity`` is exp of minus the mean log score, ``difference`` the mean log
    score less the reference's, in nats per record. Of both: ``_se`` (sampling, by formula), ``_se_bootstrap``,
    ``_low`` and ``_high`` (percentiles of the bootstrap), ``_se_training``, ``_se_total``. ``training_sd``: the
    standard deviation of the log score over seeds. ``difference_p``: two-sided, of Student's t with
    Satterthwaite's degrees of freedom; of the normal where training is not counted. ``confidence_set_p``: a model
    is in the set of level 1 - alpha if it is at least alpha.
    """
    sums = runs.averaged(models)
    totals_RK = resampled_totals(sums.columns_GK, replicates, seed)
    own_RK, own_weights_RK, common_RK, common_weight_R1 = np.split(
        totals_RK, np.arange(1, 4) * len(models), axis=1
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        scores_RK, paired_RK = own_RK / own_weights_RK, common_RK / common_weight_R1
        losses_K = -sums.common_scores_GM.sum(axis=0) / sums.common_weights_G.sum()
    training = [_training(runs, of_model) for of_model in models]
    rows = [_perplexity(sums, place, scores_RK[:, place], training[place], level) for place in range(len(models))]
    for place in range(len(models)):
        if reference is not None and place != reference:
            draws_R = paired_RK[:, place] - paired_RK[:, reference]
            parts = [training[place], training[reference]]
            rows[place] |= _difference(sums, place, reference, draws_R, parts, level)
    if np.isfinite(losses_K).all() and np.isfinite(paired_RK).all():
        p_values_K = confidence_set_p_values(losses_K, -paired_RK)
        rows = [row | {"confidence_set_p": float(p)} for row, p in zip(rows, p_values_K, strict=True)]
    return rows


@dataclass(frozen=True)
class _Training:
    """How a model's log score varies over its seeds."""

    seeds: int
    sd: float | None

    @property
    def variance(self) -> float:
        """Of the mean over the seeds; zero where there is one seed only."""
        return 0.0 if self.sd is None else self.sd**2 / self.seeds


def _training(runs: PersonSums, of_model: Sequence[int]) -> _Training:
    columns = list(of_model)
    scores_S = runs.scores_GM[:, columns].sum(axis=0) / runs.weights_GM[:, columns].sum(axis=0)
    return _Training(len(columns), float(scores_S.std(ddof=1)) if len(columns) > 1 else None)


def _perplexity(
    sums: PersonSums, place: int, scores_R: Floats, training: _Training, level: float
) -> dict[str, Any]:
    weights_G = sums.weights_GM[:, place]
    score, se = clustered_ratio(sums.scores_GM[:, place], weights_G)
    perplexity = float(np.exp(-score))
    errors = {name: None if e is None else perplexity * e for name, e in _errors(se, [training]).items()}
    low, high = np.exp(-_interval(scores_R, level)[::-1])
    return {
        "log_score": score,
        "training_sd": training.sd,
        "perplexity": perplexity,
        **{f"perplexity_{name}": error for name, error in errors.items()},
        "perplexity_se_bootstrap": _number(np.nanstd(np.exp(-scores_R), ddof=1)),
        "perplexity_low": _number(low),
        "perplexity_high": _number(high),
    }


def _difference(
    sums: PersonSums,
    place: int,
    reference: int,
    draws_R: Floats,
    training: Sequence[_Training],
    level: float,
) -> dict[str, Any]:
    if not sums.common_weights_G.any():
        return {}
    values_G = sums.common_scores_GM[:, place] - sums.common_scores_GM[:, reference]
    difference, se = clustered_ratio(values_G, sums.common_weights_G)
    errors = _errors(se, training)
    low, high = _interval(draws_R, level)
    return {
        "difference": difference,
        **{f"difference_{name}": error for name, error in errors.items()},
        "difference_se_bootstrap": _number(np.nanstd(draws_R, ddof=1)),
        "difference_low": _number(low),
        "difference_high": _number(high),
        "difference_p": _p_value(difference, errors["se_total"], training),
    }


def _errors(se: float | None, training: Sequence[_Training]) -> dict[str, float | None]:
    """Sampling, training and both; training is None unless some model has several seeds."""
    known = any(part.sd is not None for part in training)
    variance = sum(part.variance for part in training)
    return {
        "se": se,
        "se_training": sqrt(variance) if known else None,
        "se_total": None if se is None else sqrt(se**2 + variance),
    }


def _p_value(difference: float, se: float | None, training: Sequence[_Training]) -> float | None:
    if not se:
        return None
    spread = sum(part.variance**2 / (part.seeds - 1) for part in training if part.seeds > 1)
    freedom = se**4 / spread if spread else inf
    return float(2 * t.sf(abs(difference) / se, freedom))


def _interval(draws_R: Floats, level: float) -> Floats:
    """The percentiles of the draws that leave out equal tails."""
    return np.nanquantile(draws_R, [(1 - level) / 2, (1 + level) / 2])


def _number(value: float | np.floating) -> float | None:
    return float(value) if isfinite(value) else None
