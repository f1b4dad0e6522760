"""Many models at once: which of them may be the best, and p-values that know how many were looked at.

Shapes: M models, R bootstrap replicates.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """P-values adjusted so that the chance of any false rejection in the family stays below the level.

    Holm (1979), A simple sequentially rejective multiple test procedure: the k-th smallest of m is multiplied by
    m - k + 1, and none may be below one before it. What is None is no test and stays None.
    """
    tests = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, place) in enumerate(tests):
        largest = max(largest, min(1.0, (len(tests) - rank) * p))
        adjusted[place] = largest
    return adjusted


def confidence_set_p_values(losses_M: NDArray[np.float64], draws_RM: NDArray[np.float64]) -> NDArray[np.float64]:
    """P-value of every model in the model confidence set; those of at least alpha are the set of level 1 - alpha.

    Hansen, Lunde and Nason (2011), The Model Confidence Set, Econometrica 79(2), with their statistic T_max and
    its elimination rule e_max: of the models that are left, t_i is the mean loss of model i less the average of
    all, over its bootstrap standard error; T_max = max t_i is compared with the bootstrap distribution of the
    same, recentred; the model of the largest t_i is dropped. A model's p-value is the largest of the tests up to
    the one that dropped it, and 1 for the last. T_max needs M numbers per replicate; T_R, of all pairs, M^2.

    ``losses_M``: mean losses; ``draws_RM``: the same of resampled data. Theirs is a time series and a bootstrap of
    blocks; here persons are drawn, which the procedure does not mind: it uses the draws alone.
    """
    left, p_values_M, largest = list(range(len(losses_M))), np.ones(len(losses_M)), 0.0
    while len(left) > 1:
        relative_L = losses_M[left] - losses_M[left].mean()
        draws_RL = draws_RM[:, left] - draws_RM[:, left].mean(axis=1, keepdims=True) - relative_L
        errors_L = np.sqrt(np.square(draws_RL).mean(axis=0))
        errors_L[errors_L <= TINY * np.abs(losses_M[left]).max()] = np.inf  # models that do not differ at all
        t_L = relative_L / errors_L
        p = float(((draws_RL / errors_L).max(axis=1) > t_L.max()).mean()) if t_L.any() else 1.0
        largest = max(largest, p)
        p_values_M[left.pop(int(t_L.argmax()))] = largest
    return p_values_M


TINY = 1e-12
"""Differences below this share of the loss are rounding."""
