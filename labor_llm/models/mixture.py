"""A mixture: convex weights over the distributions of models that earlier runs fitted.

p(j | record) = sum over k of w_k p_k(j | record), with weights w_k >= 0 that sum to one and maximize the mean log
score on the validation persons: a linear opinion pool (Stone 1961). Components are read, never fitted again.

Legend: N records, J occupations, K components, G groups of records.
"""

import json
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import AfterValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass
from scipy.optimize import minimize

from labor_llm.careers import Careers
from labor_llm.errors import ConfigError, RunError
from labor_llm.events import blocks
from labor_llm.models.base import Facts, OccupationModel, Workspace, person_hashes
from labor_llm.models.stored import stored_predictions
from labor_llm.paths import from_home
from labor_llm.predictions import ChoiceProbabilities, RealizedProbabilities, choice_indices
from labor_llm.run_folder import MODEL, from_here

logger = logging.getLogger(__name__)

Found = ChoiceProbabilities | RealizedProbabilities
"""What a component predicts."""
HISTORIES = {"first records": 0, "1 to 3 records before": 1, "more records before": 4}
"""Groups of records, and the number of earlier records from which each begins."""
FLOOR = 1e-9
"""Smallest weight that the search tries, so that the mixture of possible outcomes is possible."""
GAP = 1e-6
"""How far the mean log score of the weights may be from the best one, in nats."""


@dataclass(kw_only=True, config=ConfigDict(extra="forbid", arbitrary_types_allowed=True))
class Mixture(OccupationModel):
    """A weighted mean of the probabilities of complete runs, each with the weight that validation persons give it.

    The runs must have the same training persons: with others, a component may have seen whom another is tested
    on. What a run, or a ``labor-llm score`` of it, has predicted on disk is taken; the rest is computed.
    """

    name: str = "mixture"
    runs: Annotated[
        list[Annotated[Path, AfterValidator(lambda path: from_home(path).absolute())]], Field(min_length=2)
    ]
    """Folders of the runs."""
    by: Literal["history"] | None = None
    """Weights of their own for first records, for records after 1 to 3 others, and for later ones."""
    components: dict[str, OccupationModel] = Field(default_factory=dict)
    """The models of ``runs`` in the same order, by name, as their configs describe them."""

    file: ClassVar[str] = "mixture.json"
    table_file: ClassVar[str] = "weights.csv"

    def _fit(self, train: Careers, valid: Careers, workspace: Workspace) -> None:
        self._check_alike()
        places_N = choice_indices(valid.table["occupation"], self.choice_set)
        known_N = places_N >= 0
        found = self._predictions(valid, workspace)
        realized_NK = np.column_stack([_realized(each, places_N)[known_N] for each in found])
        self.table_ = self._fitted_table(realized_NK, self._groups(valid)[known_N])
        self._training_persons |= person_hashes(valid)  # the weights are learned from them
        for line in self._lines():
            logger.info("%s: %s", self.name, line)

    def _check_alike(self) -> None:
        """A RunError unless all components were fitted on the training persons and choice set of this fit."""
        if len(self.components) != len(self.runs):
            raise ConfigError(
                f"model.components: {len(self.components)} models are given for {len(self.runs)} runs"
            )
        problems = []
        for run in self.runs:
            facts = Facts.read(run / MODEL)
            if facts.training_persons != self._training_persons:
                theirs, ours = facts.training_persons, self._training_persons
                problems.append(
                    f"model.runs: the run in {from_here(run)} was fitted on {len(theirs)} persons, "
                    f"{len(theirs & ours)} of them among the {len(ours)} training persons here. Fit all runs of a "
                    "mixture on the same dataset, split and train_persons."
                )
            elif (facts.taxonomy, facts.choice_set) != (self.taxonomy, self.choice_set):
                problems.append(
                    f"model.runs: the run in {from_here(run)} has {len(facts.choice_set)} occupations of taxonomy "
                    f"{facts.taxonomy.name!r} to choose from; here they are {len(self.choice_set)} of "
                    f"{self.taxonomy.name!r}, or others. Fit all runs of a mixture on the same records."
                )
        if problems:
            raise RunError("\n".join(problems))

    def _fitted_table(self, realized_NK: NDArray[np.float64], groups_N: NDArray[np.intp]) -> pl.DataFrame:
        """A row per group and component: group, records, component, weight, log_score, mixture_log_score.

        ``realized_NK``: log-probabilities of what happened. Log scores are means over the validation records of
        the group, in nats. A group without validation records has the weights of all records.
        """
        rows = []
        for place, group in enumerate(self._group_names):
            own_NK = realized_NK[groups_N == place]
            weights_K = convex_weights(own_NK if len(own_NK) else realized_NK)
            mixed = float(np.logaddexp.reduce(own_NK + np.log(weights_K), axis=1).mean()) if len(own_NK) else None
            for component, weight, scores_N in zip(self.components, weights_K, own_NK.T, strict=True):
                score = float(scores_N.mean()) if len(own_NK) else None
                rows.append((group, len(own_NK), component, float(weight), score, mixed))
        return pl.DataFrame(rows, schema=TABLE, orient="row")

    def _lines(self) -> Iterator[str]:
        """The weights in words, a line for each group of records."""
        for rows in self.table_.partition_by("group", maintain_order=True):
            weights = zip(rows["component"], rows["weight"], strict=True)
            shown = ", ".join(f"{weight:.3f} of {component}" for component, weight in weights)
            yield f"{rows['group'][0]} ({rows['records'][0]:,} validation records): {shown}"

    @property
    def weights_GK_(self) -> NDArray[np.float64]:
        """The weights; every row sums to one."""
        return self.table_["weight"].to_numpy().reshape(len(self._group_names), len(self.runs))

    @property
    def _group_names(self) -> list[str]:
        return list(HISTORIES) if self.by else ["all records"]

    def _groups(self, careers: Careers) -> NDArray[np.intp]:
        """The group of every record, known before the record, shape (N,)."""
        if self.by is None:
            return np.zeros(len(careers), dtype=np.intp)
        starts = careers.person_starts
        earlier_N = np.arange(len(careers)) - np.repeat(starts[:-1], np.diff(starts))
        return np.searchsorted(list(HISTORIES.values()), earlier_N, side="right") - 1

    def _predict(self, careers: Careers, workspace: Workspace) -> Found:
        places_N = choice_indices(careers.table["occupation"], self.choice_set)
        return self._mixed(self._predictions(careers, workspace), places_N, self._groups(careers))

    def _predict_last(self, careers: Careers, workspace: Workspace) -> Found:
        self._check_unseen(careers)
        last_P = careers.person_starts[1:] - 1
        found = (self._loaded(name).predict_last(careers, workspace) for name in self.components)
        places_P = choice_indices(careers.table["occupation"].gather(last_P), self.choice_set)
        return self._mixed(found, places_P, self._groups(careers)[last_P])

    def _predictions(self, careers: Careers, workspace: Workspace) -> Iterator[Found]:
        """What each component predicts, one at a time: from disk if a run predicted these very records."""
        self._check_unseen(careers)
        for name, run in zip(self.components, self.runs, strict=True):
            stored = stored_predictions(run, careers, self.choice_set)
            yield stored or self._loaded(name).predict(careers, workspace)

    def _check_unseen(self, careers: Careers) -> None:
        """A RunError if a component was trained on one of the persons."""
        persons = person_hashes(careers)
        for run in self.runs:
            if seen := len(Facts.read(run / MODEL).training_persons & persons):
                raise RunError(
                    f"{self.name} cannot predict {seen} of the {len(persons)} persons: the run in "
                    f"{from_here(run)} was trained on them. Predict the test or validation persons."
                )

    def _loaded(self, name: str) -> OccupationModel:
        """A component, read from its run the first time."""
        model = self.components[name]
        if not model.choice_set:
            model.load(self.runs[list(self.components).index(name)] / MODEL)
        return model

    def _mixed(
        self,
        found: Iterable[Found],
        places_N: NDArray[np.intp],
        groups_N: NDArray[np.intp],
    ) -> Found:
        """The weighted mean of the probabilities; their masses before normalization play no part.

        Where a component scores realized occupations only, so does the mixture, with that one's raw probabilities.
        """
        log_probs_NJ = np.full((len(groups_N), len(self.choice_set)), -np.inf)
        known_N = places_N >= 0
        realized_N = np.where(known_N, -np.inf, np.nan)
        bound_N, bounded, whole = np.zeros(len(groups_N)), False, True
        for each, weights_G in zip(found, self.weights_GK_.T, strict=True):
            weights_N = weights_G[groups_N]
            own_N = (_realized(each, places_N) + np.log(weights_N))[known_N]
            realized_N[known_N] = np.logaddexp(realized_N[known_N], own_N)
            if isinstance(each, RealizedProbabilities):
                whole = False
                continue
            for rows in blocks(len(groups_N)):
                weighted = each.log_probs_NJ[rows] + np.log(weights_N[rows, None])
                log_probs_NJ[rows] = np.logaddexp(log_probs_NJ[rows], weighted)
            if each.error_bound_N is not None:
                bound_N, bounded = bound_N + weights_N * each.error_bound_N, True
        if not whole:
            return RealizedProbabilities(realized_N)
        normalized = ChoiceProbabilities.normalised(log_probs_NJ)  # stored ones are rounded to float32
        return ChoiceProbabilities(normalized.log_probs_NJ, np.zeros(len(groups_N)), bound_N if bounded else None)

    def _save(self, folder: Path) -> None:
        """The weights, as JSON and as a table, and where the runs lie from here."""
        runs = [os.path.relpath(run.resolve(), folder.resolve()) for run in self.runs]
        (folder / self.file).write_text(json.dumps({"runs": runs, "table": self.table_.to_dicts()}, indent=1))
        self.table_.write_csv(folder / self.table_file)

    def _load(self, folder: Path) -> None:
        facts = json.loads((folder / self.file).read_text())
        self.table_ = pl.DataFrame(facts["table"], schema=TABLE)
        self.runs = [(folder / run).resolve() for run in facts["runs"]]
        for run in self.runs:
            if not (run / MODEL).is_dir():
                raise RunError(
                    f"{self.name} reads the model of the run in {run}, which is gone. Put that run back, or "
                    "delete this one and run it again."
                )


TABLE = {
    "group": pl.String,
    "records": pl.Int64,
    "component": pl.String,
    "weight": pl.Float64,
    "log_score": pl.Float64,
    "mixture_log_score": pl.Float64,
}


def convex_weights(log_probs_NK: NDArray[np.float64]) -> NDArray[np.float64]:
    """The weights of the highest mean of log sum_k w_k exp(log_probs_nk), within ``GAP`` of it; shape (K,).

    With the gains g_k = mean over n of p_nk / sum_j w_j p_nj, the concave mean rises by at most max_k g_k - 1 from
    any weights, so that a small maximum certifies them. A search by quadratic programs ends near the optimum;
    steps of expectation maximization, w_k g_k, go the rest of the way, if there is one.
    """
    best_N1 = log_probs_NK.max(axis=1, keepdims=True)
    possible_N = np.isfinite(best_N1[:, 0])  # what no component thinks possible has no say
    ratios_NK = np.exp(log_probs_NK[possible_N] - best_N1[possible_N])
    weights_K = _searched(ratios_NK)
    while len(ratios_NK):
        gains_K = (ratios_NK / (ratios_NK @ weights_K)[:, None]).mean(axis=0)
        if gains_K.max() - 1 <= GAP:
            break
        weights_K = weights_K * gains_K
    return weights_K


def _searched(ratios_NK: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights near the optimum; equal ones if there are no records."""
    components = ratios_NK.shape[1]
    equal_K = np.full(components, 1 / components)
    if not len(ratios_NK):
        return equal_K

    def loss(weights_K: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        mixed_N = ratios_NK @ weights_K
        return -float(np.log(mixed_N).mean()), -(ratios_NK / mixed_N[:, None]).mean(axis=0)

    sums_to_one = {"type": "eq", "fun": lambda weights_K: weights_K.sum() - 1, "jac": np.ones_like}
    options = {"ftol": 1e-12, "maxiter": 1000}
    found = minimize(
        loss,
        equal_K,
        jac=True,
        method="SLSQP",
        bounds=[(FLOOR, 1)] * components,
        constraints=sums_to_one,
        options=options,
    )
    if not np.isfinite(found.x).all():
        return equal_K
    weights_K = np.clip(found.x, FLOOR, 1)
    normalized_K: NDArray[np.float64] = weights_K / weights_K.sum()
    return normalized_K


def _realized(found: Found, places_N: NDArray[np.intp]) -> NDArray[np.float64]:
    """The log-probability of what happened, NaN outside the choice set, shape (N,)."""
    if isinstance(found, RealizedProbabilities):
        return found.log_prob_raw_N.astype(np.float64)
    picked_N = found.log_probs_NJ[np.arange(len(places_N)), places_N].astype(np.float64)
    return np.where(places_N >= 0, picked_N, np.nan)
