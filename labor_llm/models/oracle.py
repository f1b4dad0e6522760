"""The true probabilities, on data that were made by a process which is known: no model can be better."""

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from labor_llm.careers import Careers
from labor_llm.errors import ConfigError
from labor_llm.models.base import OccupationModel, Workspace
from labor_llm.predictions import ChoiceProbabilities, choice_indices


@runtime_checkable
class KnownProcess(Protocol):
    """A dataset that knows the probabilities which its careers were drawn with."""

    @property
    def choice_set(self) -> tuple[str, ...]:
        """The occupations that occur in it."""

    def true_log_probs(self, careers: Careers) -> NDArray[np.float64]:
        """Log-probabilities of ``choice_set`` given what a model sees, in nats, shape (N, J)."""


@dataclass(kw_only=True, config=ConfigDict(extra="forbid"))
class Oracle(OccupationModel):
    """What the dataset says of itself, normalised over the choice set; the mass before that is kept.

    It learns nothing. Occupations of the choice set that the process never makes have probability zero.
    """

    name: str = "oracle"
    dataset: Any
    """A dataset that is a ``KnownProcess``."""

    def _fit(self, train: Careers, valid: Careers, workspace: Workspace) -> None:
        if not isinstance(self.dataset, KnownProcess):
            name = getattr(self.dataset, "name", self.dataset)
            raise ConfigError(
                f"model=oracle: nobody knows the true probabilities of dataset {name!r}. Use dataset=simulated, "
                "or another model; a dataset of your own knows them if it has choice_set and true_log_probs."
            )

    def _predict(self, careers: Careers, workspace: Workspace) -> ChoiceProbabilities:
        log_probs_NI = self.dataset.true_log_probs(careers)
        impossible_N1 = np.full((len(careers), 1), -np.inf)
        places_J = choice_indices(pl.Series(self.choice_set), self.dataset.choice_set)  # -1 is the last column
        log_probs_NJ = np.hstack([log_probs_NI, impossible_N1])[:, places_J]
        return ChoiceProbabilities.normalised(log_probs_NJ)

    def _save(self, folder: Path) -> None:
        """Nothing was learned."""

    def _load(self, folder: Path) -> None:
        """The dataset knows it all."""
