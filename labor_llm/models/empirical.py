"""Occupation frequencies without history: what is known of a career before anything of it is seen."""

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from safetensors.numpy import load_file, save_file

from labor_llm.careers import Careers
from labor_llm.models.base import OccupationModel, Workspace
from labor_llm.predictions import ChoiceProbabilities, choice_indices

SMOOTHING_GRID = tuple(float(value) for value in np.logspace(-2, 3, 26))
"""Numbers of pseudo-records among which the validation split chooses."""


@dataclass(kw_only=True, config=ConfigDict(extra="forbid"))
class Empirical(OccupationModel):
    """The same distribution for every record: training frequencies, smoothed evenly over the choice set."""

    name: str = "empirical"

    file: ClassVar[str] = "empirical.safetensors"

    def _fit(self, train: Careers, valid: Careers, workspace: Workspace) -> None:
        counts_J = occupation_counts(train, self.choice_set)
        valid_counts_J = occupation_counts(valid, self.choice_set)
        smoothing = best_smoothing(lambda s: float(valid_counts_J @ np.log(smoothed_shares(counts_J, s))))
        self.shares_J_ = smoothed_shares(counts_J, smoothing)

    def _predict(self, careers: Careers, workspace: Workspace) -> ChoiceProbabilities:
        log_probs_NJ = np.tile(np.log(self.shares_J_), (len(careers), 1))
        return ChoiceProbabilities(log_probs_NJ, np.zeros(len(careers)))

    def _save(self, folder: Path) -> None:
        save_file({"shares_J": self.shares_J_}, folder / self.file)

    def _load(self, folder: Path) -> None:
        self.shares_J_ = load_file(folder / self.file)["shares_J"]


def occupation_counts(careers: Careers, choice_set: tuple[str, ...]) -> NDArray[np.float64]:
    """How many records hold each occupation of the choice set, shape (J,)."""
    places_N = choice_indices(careers.table["occupation"], choice_set)
    return np.bincount(places_N[places_N >= 0], minlength=len(choice_set)).astype(np.float64)


def smoothed_shares(counts_J: NDArray[np.float64], smoothing: float) -> NDArray[np.float64]:
    """Frequencies after ``smoothing`` pseudo-records were spread evenly over the choice set, shape (J,)."""
    shares_J: NDArray[np.float64] = (counts_J + smoothing / len(counts_J)) / (counts_J.sum() + smoothing)
    return shares_J


def best_smoothing(log_score: Callable[[float], float]) -> float:
    """The number of pseudo-records with the highest log score on the validation split."""
    return max(SMOOTHING_GRID, key=log_score)
