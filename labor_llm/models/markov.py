"""Transition frequencies of first or second order, backed off to those of shorter histories."""

from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from safetensors.numpy import load_file, save_file
from scipy.sparse import csr_array

from labor_llm.careers import Careers
from labor_llm.models.base import OccupationModel, Workspace
from labor_llm.models.empirical import best_smoothing, smoothed_shares
from labor_llm.predictions import ChoiceProbabilities, choice_indices

BLOCK = 1 << 12
"""Records whose distributions are put together at once."""


@dataclass(kw_only=True, config=ConfigDict(extra="forbid"))
class Markov(OccupationModel):
    """P(j | i) = (n_ij + s p_j) / (n_i + s): p the training frequencies, s chosen on the validation split.

    First records have a row of their own, as if every career began in a state before it. After an occupation
    that training never saw there, the model falls back on p.

    Of second order, P(j | h, i) = (n_hij + r P(j | i)) / (n_hi + r), with r chosen on the validation split; a
    history of one record is the beginning and that record, and after a pair that training never saw the model
    falls back on P(j | i).
    """

    name: str = "markov"
    order: Literal[1, 2] = 1
    """How many of the last occupations the next one depends on."""

    file: ClassVar[str] = "markov.safetensors"

    def _fit(self, train: Careers, valid: Careers, workspace: Workspace) -> None:
        counts_IJ = self._transition_counts(train)
        valid_counts_IJ = self._transition_counts(valid)
        shares_J = smoothed_shares(counts_IJ.sum(axis=0), smoothing=1.0)
        smoothing = best_smoothing(
            lambda s: float((valid_counts_IJ * np.log(_backed_off(counts_IJ, shares_J, s))).sum())
        )
        self.probabilities_IJ_ = _backed_off(counts_IJ, shares_J, smoothing)
        if self.order == 2:
            self._fit_pairs(train, valid)

    def _fit_pairs(self, train: Careers, valid: Careers) -> None:
        """Count what followed each pair of occupations, and choose how much a pair is trusted."""
        places_N = choice_indices(train.table["occupation"], self.choice_set)
        known_N = (places_N >= 0) & train.previous.is_not_null().to_numpy()
        self.pairs_C_, rows = np.unique(self._pairs(train)[known_N], return_inverse=True)
        shape = len(self.pairs_C_), len(self.choice_set)
        self.counts_CJ_ = csr_array((np.ones(len(rows)), (rows, places_N[known_N])), shape=shape)
        realised_N = choice_indices(valid.table["occupation"], self.choice_set)
        kept_N = realised_N >= 0
        rows_N, contexts_N = self._rows(valid)[kept_N], self._contexts(valid)[kept_N]
        shorter_N = self.probabilities_IJ_[rows_N, realised_N[kept_N]]
        seen_N = contexts_N >= 0
        counts_N, totals_N = np.zeros(len(rows_N)), np.zeros(len(rows_N))
        if seen_N.any():  # scipy gives a sparse array for no places
            counts_N[seen_N] = self.counts_CJ_[contexts_N[seen_N], realised_N[kept_N][seen_N]]
            totals_N[seen_N] = self.counts_CJ_.sum(axis=1)[contexts_N[seen_N]]
        self.trust_ = best_smoothing(lambda r: float(np.log((counts_N + r * shorter_N) / (totals_N + r)).sum()))

    def _predict(self, careers: Careers, workspace: Workspace) -> ChoiceProbabilities:
        probabilities_NJ = self.probabilities_IJ_[self._rows(careers)]
        if self.order == 2:
            contexts_N = self._contexts(careers)
            for start in range(0, len(careers), BLOCK):
                seen = start + np.flatnonzero(contexts_N[start : start + BLOCK] >= 0)
                counts = self.counts_CJ_[contexts_N[seen]].toarray()
                totals = counts.sum(axis=1, keepdims=True)
                probabilities_NJ[seen] = (counts + self.trust_ * probabilities_NJ[seen]) / (totals + self.trust_)
        return ChoiceProbabilities(np.log(probabilities_NJ, out=probabilities_NJ), np.zeros(len(careers)))

    def _pairs(self, careers: Careers) -> NDArray[np.int64]:
        """The two occupations before each record as one number, the row of ``_rows`` for each."""
        rows_N = self._rows(careers)
        before_N = np.where(careers.previous.is_null().to_numpy(), len(self.choice_set), np.roll(rows_N, 1))
        return before_N * (len(self.choice_set) + 2) + rows_N

    def _contexts(self, careers: Careers) -> NDArray[np.int64]:
        """The place of each record's pair among those that training saw, -1 for others."""
        pairs_N = self._pairs(careers)
        if not len(self.pairs_C_):
            return np.full_like(pairs_N, -1)
        places_N = np.searchsorted(self.pairs_C_, pairs_N).clip(max=len(self.pairs_C_) - 1)
        return np.where(self.pairs_C_[places_N] == pairs_N, places_N, -1)

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
        arrays = {"probabilities_IJ": self.probabilities_IJ_}
        if self.order == 2:
            counts = self.counts_CJ_
            arrays |= {"pairs_C": self.pairs_C_, "trust": np.array([self.trust_])}
            arrays |= {name: getattr(counts, name) for name in ("data", "indices", "indptr")}
        save_file(arrays, folder / self.file)

    def _load(self, folder: Path) -> None:
        arrays = load_file(folder / self.file)
        self.probabilities_IJ_ = arrays["probabilities_IJ"]
        if self.order == 2:
            self.pairs_C_, self.trust_ = arrays["pairs_C"], float(arrays["trust"][0])
            shape = len(self.pairs_C_), len(self.choice_set)
            self.counts_CJ_ = csr_array((arrays["data"], arrays["indices"], arrays["indptr"]), shape=shape)


def _backed_off(
    counts_IJ: NDArray[np.float64], shares_J: NDArray[np.float64], smoothing: float
) -> NDArray[np.float64]:
    """Row frequencies mixed with ``smoothing`` pseudo-records drawn from the margin, shape (J + 2, J)."""
    totals_I = counts_IJ.sum(axis=1, keepdims=True)
    probabilities_IJ: NDArray[np.float64] = (counts_IJ + smoothing * shares_J) / (totals_I + smoothing)
    return probabilities_IJ
