"""First-order transition frequencies, backed off to the frequencies without history."""

from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from safetensors.numpy import load_file, save_file

from labor_llm.careers import Careers
from labor_llm.models.base import OccupationModel, Workspace
from labor_llm.models.empirical import best_smoothing, smoothed_shares
from labor_llm.predictions import ChoiceProbabilities, choice_indices


@dataclass(kw_only=True, config=ConfigDict(extra="forbid"))
class Markov(OccupationModel):
    """P(j | i) = (n_ij + s p_j) / (n_i + s): p the training frequencies, s chosen on the validation split.

    First records have a row of their own, as if every career began in a state before it. After an occupation
    that training never saw there, the model falls back on p.
    """

    name: str = "markov"

    file: ClassVar[str] = "markov.safetensors"

    def _fit(self, train: Careers, valid: Careers, workspace: Workspace) -> None:
        counts_IJ = self._transition_counts(train)
        valid_counts_IJ = self._transition_counts(valid)
        shares_J = smoothed_shares(counts_IJ.sum(axis=0), smoothing=1.0)
        smoothing = best_smoothing(
            lambda s: float((valid_counts_IJ * np.log(_backed_off(counts_IJ, shares_J, s))).sum())
        )
        self.probabilities_IJ_ = _backed_off(counts_IJ, shares_J, smoothing)

    def _predict(self, careers: Careers, workspace: Workspace) -> ChoiceProbabilities:
        log_probs_NJ = np.log(self.probabilities_IJ_[self._rows(careers)])
        return ChoiceProbabilities(log_probs_NJ, np.zeros(len(careers)))

    def _transition_counts(self, careers: Careers) -> NDArray[np.float64]:
        """Transitions from row to occupation, shape (J + 2, J)."""
        rows_N = self._rows(careers)
        places_N = choice_indices(careers.table["occupation"], self.choice_set)
        counts_IJ = np.zeros((len(self.choice_set) + 2, len(self.choice_set)))
        known_N = places_N >= 0
        np.add.at(counts_IJ, (rows_N[known_N], places_N[known_N]), 1.0)
        return counts_IJ

    def _rows(self, careers: Careers) -> NDArray[np.int64]:
        """What each record is predicted from: the place of the occupation before, J if none, J + 1 if unknown."""
        size = len(self.choice_set)
        before_N = choice_indices(careers.previous, self.choice_set)
        first_N = careers.previous.is_null().to_numpy()
        return np.where(first_N, size, np.where(before_N < 0, size + 1, before_N))

    def _save(self, folder: Path) -> None:
        save_file({"probabilities_IJ": self.probabilities_IJ_}, folder / self.file)

    def _load(self, folder: Path) -> None:
        self.probabilities_IJ_ = load_file(folder / self.file)["probabilities_IJ"]


def _backed_off(
    counts_IJ: NDArray[np.float64], shares_J: NDArray[np.float64], smoothing: float
) -> NDArray[np.float64]:
    """Row frequencies mixed with ``smoothing`` pseudo-records drawn from the margin, shape (J + 2, J)."""
    totals_I = counts_IJ.sum(axis=1, keepdims=True)
    probabilities_IJ: NDArray[np.float64] = (counts_IJ + smoothing * shares_J) / (totals_I + smoothing)
    return probabilities_IJ
