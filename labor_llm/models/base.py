"""The contract of every occupation model: fit, then log-probabilities over the choice set for every record."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from labor_llm.careers import Careers
from labor_llm.errors import DataError, RunError
from labor_llm.predictions import ChoiceProbabilities, RealizedProbabilities
from labor_llm.splits import own_ids
from labor_llm.taxonomy import Taxonomy
from labor_llm.tracking import NoTracker, Tracker

FACTS_FILE = "occupation_model.json"


def choice_set(train: Careers) -> tuple[str, ...]:
    """The codes seen in training and the taxonomy's special states, in the taxonomy's order."""
    seen = set(train.table["occupation"].unique()) | train.taxonomy.states
    return tuple(code for code in train.taxonomy.codes if code in seen)


def check_scorable(careers: Careers, choices: Sequence[str], whom: str, purpose: str) -> None:
    """A DataError unless some record has an occupation of the choice set; others have no probability."""
    if not careers.table["occupation"].is_in(choices).any():
        raise DataError(
            f"no record of the {careers.persons} {whom} of dataset {careers.dataset!r} has an occupation of the "
            f"choice set, which are those seen in training and the taxonomy's states: nothing to {purpose}"
        )


@dataclass(frozen=True)
class Workspace:
    """Where a model that takes long keeps what it needs to resume, and whom it tells how it fares."""

    folder: Path | None = None
    """Checkpoints go here; None keeps nothing, and an interrupted fit starts again."""
    tracker: Tracker = field(default_factory=NoTracker)
    progress: bool = False
    tokens: Path | None = None
    """Tokenized careers are kept here and used again; None keeps none."""


@dataclass(frozen=True)
class Facts:
    """What every fitted model writes of itself, whatever its kind."""

    choice_set: tuple[str, ...]
    taxonomy: Taxonomy
    training_persons: frozenset[str]
    """See ``person_hashes``."""

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The facts of the model in a folder; a RunError if there is none."""
        path = folder / FACTS_FILE
        if not path.is_file():
            raise RunError(f"no fitted model in {folder}: {FACTS_FILE} is missing. Name a complete run folder.")
        facts = json.loads(path.read_text(encoding="utf-8"))
        taxonomy = Taxonomy.from_json(facts["taxonomy"])
        return cls(tuple(facts["choice_set"]), taxonomy, frozenset(facts["training_persons"]))


class OccupationModel(ABC):
    """Predicts the occupation of every record from the records before it and what is known at it.

    Shapes: N records in the order of the table, J occupations in ``choice_set`` order. A subclass writes
    ``_fit``, ``_predict``, ``_save`` and ``_load``; the public methods check.
    """

    name: str
    choice_set: tuple[str, ...] = ()
    taxonomy: Taxonomy

    def fit(
        self,
        train: Careers,
        valid: Careers,
        choice_set: Sequence[str],
        workspace: Workspace | None = None,
    ) -> Self:
        """Learn from ``train``; ``valid`` is for choosing (smoothing, stopping), never for learning."""
        check_scorable(valid, choice_set, "validation persons", "validate on")
        self.choice_set = tuple(choice_set)
        self.taxonomy = train.taxonomy
        self._training_persons = person_hashes(train)
        self._fit(train, valid, workspace or Workspace())
        return self

    def predict(
        self, careers: Careers, workspace: Workspace | None = None
    ) -> ChoiceProbabilities | RealizedProbabilities:
        """Log-probabilities (N, J) and the log of the mass before normalisation (N,), natural logs.

        A model that was told to score realised occupations only gives no more than that.
        """
        self._check_fitted("predict")
        self._check_taxonomy(careers)
        return self._predict(careers, workspace or Workspace())

    def predict_last(
        self, careers: Careers, workspace: Workspace | None = None
    ) -> ChoiceProbabilities | RealizedProbabilities:
        """As ``predict``, of every person's last record alone: a row per person. Forecasts need no more."""
        self._check_fitted("predict_last")
        self._check_taxonomy(careers)
        return self._predict_last(careers, workspace or Workspace())

    def log_probs(self, careers: Careers) -> NDArray[np.floating]:
        """Log-probabilities in nats, shape (N, J); the probabilities of a row sum to one."""
        probabilities = self.predict(careers)
        if isinstance(probabilities, RealizedProbabilities):
            raise RuntimeError(f"{self.name} scores realised occupations only: there is no distribution")
        return probabilities.log_probs_NJ

    def persons_seen(self, careers: Careers) -> int:
        """How many of the persons were in the training data, by survey and person_id."""
        return len(self._training_persons & person_hashes(careers))

    def save(self, folder: Path) -> None:
        """Write all that ``load`` needs into the folder; no pickles."""
        self._check_fitted("save")
        folder.mkdir(parents=True, exist_ok=True)
        facts = {
            "choice_set": self.choice_set,
            "taxonomy": self.taxonomy.to_json(),
            "training_persons": sorted(self._training_persons),
        }
        (folder / FACTS_FILE).write_text(json.dumps(facts), encoding="utf-8")
        self._save(folder)

    def load(self, folder: Path) -> Self:
        """Take over what ``save`` wrote for a model of the same settings."""
        facts = Facts.read(folder)
        self.choice_set, self.taxonomy = facts.choice_set, facts.taxonomy
        self._training_persons = set(facts.training_persons)
        self._load(folder)
        return self

    def _check_fitted(self, method: str) -> None:
        if not self.choice_set:
            raise RuntimeError(f"{type(self).__name__}.{method} was called before fit")

    def _check_taxonomy(self, careers: Careers) -> None:
        if careers.taxonomy != self.taxonomy:
            raise DataError(
                f"{self.name} was fitted on occupations of taxonomy {self.taxonomy.name!r}; dataset "
                f"{careers.dataset!r} has those of {careers.taxonomy.name!r}, or the same with other titles."
            )

    @abstractmethod
    def _fit(self, train: Careers, valid: Careers, workspace: Workspace) -> None: ...

    @abstractmethod
    def _predict(self, careers: Careers, workspace: Workspace) -> ChoiceProbabilities | RealizedProbabilities: ...

    def _predict_last(self, careers: Careers, workspace: Workspace) -> ChoiceProbabilities | RealizedProbabilities:
        """For models to which a record costs little; others override it."""
        return self._predict(careers, workspace).of_rows(careers.person_starts[1:] - 1)

    @abstractmethod
    def _save(self, folder: Path) -> None: ...

    @abstractmethod
    def _load(self, folder: Path) -> None: ...


def person_hashes(careers: Careers) -> set[str]:
    """What recognises a person again: 64 bits of a hash of the survey and the person_id."""
    person = pl.concat_str("survey", own_ids(careers), separator="\n")
    persons = careers.table.select(person.unique()).to_series()
    return {hashlib.sha256(person.encode()).hexdigest()[:16] for person in persons}
