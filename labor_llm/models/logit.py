"""Multinomial logistic regression: the economist's own model, on the features of the CAREER reference code."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import polars as pl
import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from safetensors.torch import load_file, save_file

from labor_llm.careers import Careers
from labor_llm.models.base import OccupationModel, Workspace
from labor_llm.predictions import ChoiceProbabilities
from labor_llm.sequences.codes import CodeBook, Covariate
from labor_llm.sequences.features import design, feature_names
from labor_llm.sequences.heads import can_stay, choice_log_probs
from labor_llm.sequences.regression import BLOCK, Equation, best_ridge

STAY = "(stay)"
"""Stands for the log-odds of staying where coefficients are listed by occupation."""


@dataclass(kw_only=True, config=ConfigDict(extra="forbid"))
class Logit(OccupationModel):
    """Linear in the features of ``sequences.features``, no interactions; a ridge penalty instead of none.

    Minimises -log-likelihood + l2 / 2 x sum of squared coefficients; a constant is penalised for its distance
    from the log of the training share (plus one record for each outcome), so that it exists for states which
    training never saw. The two stages have no coefficient in common, so each is fitted by itself, with an ``l2``
    of its own.
    """

    name: str = "logit"
    covariates: tuple[Covariate, ...] = ("year", "education", "region", "gender", "ethnicity")
    two_stage: bool = True
    """Stay or move first, then where to; else one softmax over all occupations."""
    l2: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (30, 10, 3, 1, 0.3, 0.1)
    """Penalties among which the validation split chooses."""
    max_iterations: int = Field(default=500, ge=1)
    """Steps of L-BFGS for each penalty."""

    file: ClassVar[str] = "logit.safetensors"
    table_file: ClassVar[str] = "coefficients.csv"

    def _fit(self, train: Careers, valid: Careers, workspace: Workspace) -> None:
        self._book = CodeBook.of(train, self.choice_set, self.covariates)
        features = len(feature_names(self._book))
        fitted = []
        for equation, held_out in zip(self._equations(train), self._equations(valid), strict=True):
            shares_K = torch.bincount(equation.targets_N, minlength=equation.outcomes).float() + 1
            offsets_K = (shares_K / shares_K.sum()).log()
            known, unseen = (replace(part, offsets_K=offsets_K) for part in (equation, held_out))
            coefficients_FK = best_ridge(known, unseen, self._penalties(equation), features, self.max_iterations)
            coefficients_FK[0] += offsets_K
            fitted.append(coefficients_FK)
        self.coefficients_FK_ = fitted[0]
        if self.two_stage:
            odds_F1 = fitted[1][:, [1]] - fitted[1][:, [0]]
            self.coefficients_FK_ = torch.cat([fitted[0], odds_F1], dim=1)

    def _penalties(self, equation: Equation) -> list[float]:
        """Twice as much for two outcomes: the log-odds are the difference of two columns, each penalised."""
        return [(2 if equation.outcomes == 2 else 1) * l2 for l2 in self.l2]

    def _equations(self, careers: Careers) -> list[Equation]:
        """Which occupation they choose, or in two stages: which one they move to, and whether they stay."""
        features, coded = design(self._book, careers), self._book.encode(careers)
        targets, before = torch.from_numpy(coded.targets_N), torch.from_numpy(coded.before_N)
        known, choices, open_to_all = targets >= 0, len(self.choice_set), torch.full_like(targets, -1)
        if not self.two_stage:
            return [Equation(features, targets, open_to_all, choices, torch.zeros(choices))[known]]
        could, stayed = can_stay(before, choices), targets == before
        move = Equation(features, targets, torch.where(could, before, -1), choices, torch.zeros(choices))
        stay = Equation(features, stayed.long(), open_to_all, 2, torch.zeros(2))
        return [move[known & ~(could & stayed)], stay[known & could]]

    def _predict(self, careers: Careers, workspace: Workspace) -> ChoiceProbabilities:
        features, choices = design(self._book, careers), len(self.choice_set)
        before_N = torch.from_numpy(self._book.encode(careers).before_N)
        log_probs_NJ = np.empty((len(careers), choices))
        for start in range(0, len(careers), BLOCK):
            rows = slice(start, start + BLOCK)
            logits = (features[rows] @ self.coefficients_FK_).double()
            log_probs_NJ[rows] = choice_log_probs(logits, before_N[rows], choices).numpy()
        return ChoiceProbabilities(log_probs_NJ, np.zeros(len(careers)))

    def coefficients(self) -> pl.DataFrame:
        """One row per feature and occupation; the log-odds of staying stand under the occupation ``(stay)``."""
        features = feature_names(self._book)
        outcomes = [*self.choice_set, *([STAY] if self.two_stage else [])]
        return pl.DataFrame(
            {
                "feature": np.repeat(features, len(outcomes)),
                "occupation": np.tile(outcomes, len(features)),
                "coefficient": self.coefficients_FK_.flatten().numpy(),
            }
        )

    def _save(self, folder: Path) -> None:
        self._book.write(folder)
        save_file({"coefficients_FK": self.coefficients_FK_}, folder / self.file)
        self.coefficients().write_csv(folder / self.table_file)

    def _load(self, folder: Path) -> None:
        self._book = CodeBook.read(folder)
        self.coefficients_FK_ = load_file(folder / self.file)["coefficients_FK"]
