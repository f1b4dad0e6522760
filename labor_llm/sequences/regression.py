"""Multinomial logistic regression with a ridge penalty, by L-BFGS over all records at once.

Shapes: N records, F features, K outcomes.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from labor_llm.sequences.features import Design

logger = logging.getLogger(__name__)

BLOCK = 1 << 12
"""Records whose logits are held together: 5 MB for 335 outcomes."""
TOLERANCE = 1e-6
"""Fits end when the mean objective in nats, or all its slopes, are below this, or no coefficient moves by more."""


@dataclass(frozen=True)
class Equation:
    """What is to be explained, and by what."""

    design: Design
    targets_N: Tensor
    """The realised outcome."""
    barred_N: Tensor
    """An outcome that was not open to the record, -1 if all were."""
    outcomes: int
    offsets_K: Tensor
    """Added to the logits: what is known of the outcomes before anything is explained."""

    def __len__(self) -> int:
        """The number of records N."""
        return len(self.design)

    def __getitem__(self, rows: Tensor | slice) -> "Equation":
        """The same for some records."""
        return replace(
            self, design=self.design[rows], targets_N=self.targets_N[rows], barred_N=self.barred_N[rows]
        )

    def mean_nll(self, coefficients_FK: Tensor) -> float:
        """Minus the mean log-probability of the outcomes, in nats; its gradient is added to the coefficients'."""
        total = 0.0
        for start in range(0, len(self), BLOCK):
            nll = self[start : start + BLOCK]._summed_nll(coefficients_FK) / len(self)
            if coefficients_FK.requires_grad:
                nll.backward()
            total += float(nll.detach())
        return total

    def _summed_nll(self, coefficients_FK: Tensor) -> Tensor:
        logits_NK = self.design @ coefficients_FK + self.offsets_K
        rows = (self.barred_N >= 0).nonzero()[:, 0]
        logits_NK[rows, self.barred_N[rows]] = float("-inf")
        return cross_entropy(logits_NK, self.targets_N, reduction="sum")


def best_ridge(
    train: Equation, valid: Equation, penalties: Sequence[float], features: int, iterations: int
) -> Tensor:
    """Coefficients (F, K) of the penalty with the best validation, from the largest until it gets worse.

    Each fit starts where the one before ended.
    """
    coefficients_FK = best_FK = torch.zeros(features, train.outcomes)
    best = float("inf")
    for penalty in sorted(penalties, reverse=True):
        coefficients_FK = ridge(train, penalty, coefficients_FK, iterations)
        nll = valid.mean_nll(coefficients_FK)
        logger.info("%d outcomes, l2=%g: %.4f nats a record on validation", train.outcomes, penalty, nll)
        if nll >= best:
            break
        best, best_FK = nll, coefficients_FK
    return best_FK


def ridge(equation: Equation, penalty: float, start_FK: Tensor, iterations: int) -> Tensor:
    """The coefficients (F, K) with the least -log-likelihood + penalty / 2 x sum of squares."""
    coefficients_FK = start_FK.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [coefficients_FK],
        max_iter=iterations,
        tolerance_grad=TOLERANCE,
        tolerance_change=TOLERANCE,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        squares = penalty / 2 / max(1, len(equation)) * coefficients_FK.square().sum()
        squares.backward()
        return squares.detach().double() + equation.mean_nll(coefficients_FK)

    optimizer.step(objective)
    taken = optimizer.state[coefficients_FK]["n_iter"]
    if taken >= iterations:
        logger.warning("l2=%g: %d steps did not suffice; raise model.max_iterations", penalty, taken)
    return coefficients_FK.detach()
