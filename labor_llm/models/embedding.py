"""A multinomial logit on what a language model knows when it is about to write an occupation's title.

One of the ways of arXiv 2406.17972 to make a language model an occupation model, and the cheap one if there is the
language model: a career is read once, and nothing but the logit is trained.

Legend: N records, E numbers of a state, F features, J occupations.
"""

import json
import logging
import math
import os
from dataclasses import dataclass as plain_dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import AfterValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass
from safetensors.numpy import load_file, save_file
from scipy.special import log_softmax
from sklearn.decomposition import PCA
from torch import Tensor
from torch.nn.functional import cross_entropy

from labor_llm.careers import Careers
from labor_llm.errors import ConfigError, DataError, RunError
from labor_llm.events import blocks
from labor_llm.language.states import device_of
from labor_llm.models.base import OccupationModel, Workspace
from labor_llm.models.empirical import Empirical
from labor_llm.models.language import LanguageModel
from labor_llm.paths import from_home
from labor_llm.predictions import ChoiceProbabilities, choice_indices
from labor_llm.run_folder import MODEL

logger = logging.getLogger(__name__)

PENALTIES = tuple(float(value) for value in np.logspace(5, -1, 13))
"""Strengths of the penalty, s / 2 times the sum of squared coefficients, in nats, from the strongest."""
ITERATIONS = 200
"""Of L-BFGS for one strength, which starts where the stronger one ended."""


@dataclass(kw_only=True, config=ConfigDict(extra="forbid", arbitrary_types_allowed=True))
class Embedding(OccupationModel):
    """P(j) proportional to p_j exp(a_j + b_j' h): h the state at the record's prompt, p the training frequencies.

    The states are standardised, and a and b are penalised by their squares; the validation split chooses how much.
    """

    name: str
    language: LanguageModel
    """Whose states are taken; fitted here unless ``fitted`` names a run in which it was."""
    fitted: Annotated[Path, AfterValidator(lambda path: from_home(path).absolute())] | None = None
    """The folder of a complete run of ``language``."""
    pca: int | None = Field(default=None, ge=1)
    """How many principal components of the states are used; all numbers of the states if None."""

    file: ClassVar[str] = "embedding.safetensors"
    facts_file: ClassVar[str] = "embedding.json"
    language_folder: ClassVar[str] = "language"

    def _fit(self, train: Careers, valid: Careers, workspace: Workspace) -> None:
        self._reader = self._language(train, valid, workspace)
        states_NE = self._reader.states(train, workspace)
        features = Features.of(states_NE, self.pca)
        log_shares_J = np.log(Empirical().fit(train, valid, self.choice_set).shares_J_)
        coefficients_FJ, offsets_J = penalised_logit(
            self._examples(features(states_NE), train),
            self._examples(features(self._reader.states(valid, workspace)), valid),
            log_shares_J,
        )
        self.weights_EJ_ = features.weights_EJ(coefficients_FJ)
        self.offsets_J_ = log_shares_J + offsets_J - features.mean_E @ self.weights_EJ_

    def _language(self, train: Careers, valid: Careers, workspace: Workspace) -> LanguageModel:
        """The model whose states are taken, ready to read."""
        if self.fitted is None:
            return self.language.fit(train, valid, self.choice_set, workspace)
        model = self.language.load(self.fitted / MODEL)
        if model.taxonomy != train.taxonomy:
            raise DataError(
                f"model.fitted: the language model in {self.fitted} was fitted on occupations of taxonomy "
                f"{model.taxonomy.name!r}; dataset {train.dataset!r} has those of {train.taxonomy.name!r}, or the "
                "same with other titles."
            )
        self._training_persons |= model._training_persons
        return model

    def _examples(self, features_NF: NDArray[np.float32], careers: Careers) -> tuple[Tensor, Tensor]:
        """Features and the places of occupations, of the records whose occupation is in the choice set."""
        device = device_of(self._reader.trainer)
        places_N = choice_indices(careers.table["occupation"], self.choice_set)
        known_N = places_N >= 0
        parts = features_NF[known_N], places_N[known_N]
        features, places = (torch.from_numpy(part).to(device) for part in parts)
        return features, places

    def _predict(self, careers: Careers, workspace: Workspace) -> ChoiceProbabilities:
        states_NE = self._reader.states(careers, workspace)
        log_probs_NJ = np.empty((len(careers), len(self.choice_set)))
        for rows in blocks(len(careers)):
            log_probs_NJ[rows] = log_softmax(states_NE[rows] @ self.weights_EJ_ + self.offsets_J_, axis=1)
        return ChoiceProbabilities(log_probs_NJ, np.zeros(len(careers)))

    def _save(self, folder: Path) -> None:
        """The logit, and the language model; if it is that of another run, only where that lies from here."""
        save_file({"weights_EJ": self.weights_EJ_, "offsets_J": self.offsets_J_}, folder / self.file)
        fitted = self.fitted and os.path.relpath(self.fitted.resolve(), folder.resolve())
        (folder / self.facts_file).write_text(json.dumps({"fitted": fitted}))
        if self.fitted is None:
            self._reader.save(folder / self.language_folder)

    def _load(self, folder: Path) -> None:
        logit = load_file(folder / self.file)
        self.weights_EJ_, self.offsets_J_ = logit["weights_EJ"], logit["offsets_J"]
        fitted = json.loads((folder / self.facts_file).read_text())["fitted"]
        language = folder / fitted / MODEL if fitted else folder / self.language_folder
        if not language.is_dir():
            raise RunError(
                f"{self.name} reads the states of the language model in {language.resolve()}, which is gone. Put "
                "that run back, or delete this one and run it again."
            )
        self._reader = self.language.load(language)


@plain_dataclass(frozen=True)
class Features:
    """What the logit is given of a state: its numbers, standardised, or their principal components."""

    mean_E: NDArray[np.float32]
    scale_E: NDArray[np.float32]
    components_EF: NDArray[np.float32] | None

    @classmethod
    def of(cls, states_NE: NDArray[np.float32], components: int | None) -> Self:
        """Means, standard deviations and components of the training records."""
        most = min(states_NE.shape)
        if components is not None and components > most:
            raise ConfigError(
                f"model.pca must be at most {most}: there are {states_NE.shape[0]} training records, with states "
                f"of {states_NE.shape[1]} numbers; got {components}"
            )
        mean_E, scale_E = states_NE.mean(axis=0, dtype=np.float64), states_NE.std(axis=0, dtype=np.float64)
        scale_E[scale_E == 0] = 1
        plain = cls(mean_E.astype(np.float32), scale_E.astype(np.float32), None)
        if components is None:
            return plain
        found = PCA(components, svd_solver="covariance_eigh").fit(plain(states_NE))
        return cls(plain.mean_E, plain.scale_E, found.components_.T.astype(np.float32))

    def __call__(self, states_NE: NDArray[np.float32]) -> NDArray[np.float32]:
        standardised_NE: NDArray[np.float32] = (states_NE - self.mean_E) / self.scale_E
        return standardised_NE if self.components_EF is None else standardised_NE @ self.components_EF

    def weights_EJ(self, coefficients_FJ: NDArray[np.float64]) -> NDArray[np.float64]:
        """The coefficients of a state less the mean, from those of its features."""
        rotated = coefficients_FJ if self.components_EF is None else self.components_EF @ coefficients_FJ
        weights_EJ: NDArray[np.float64] = rotated / self.scale_E[:, None]
        return weights_EJ


def penalised_logit(
    train: tuple[Tensor, Tensor], valid: tuple[Tensor, Tensor], log_shares_J: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coefficients (F, J) and offsets (J,) beyond the log shares, of the penalty that validation prefers.

    From the strongest penalty, which leaves the shares, to weaker ones, as long as the validation split gains.
    """
    features, places = train
    base_J = torch.as_tensor(log_shares_J, dtype=torch.float32, device=features.device)
    point = torch.zeros(features.shape[1] + 1, len(base_J), device=features.device)
    best, lowest, chosen = point, float(_nll(valid, base_J, point)), math.inf
    for penalty in PENALTIES:
        point = _minimised(train, base_J, penalty / len(places), start=point)
        nll = float(_nll(valid, base_J, point))
        if nll >= lowest:
            break
        best, lowest, chosen = point, nll, penalty
    logger.info("logit: penalty %.3g, perplexity %.4f on the validation split", chosen, math.exp(lowest))
    coefficients = best.double().cpu().numpy()
    return coefficients[:-1], coefficients[-1]


def _nll(examples: tuple[Tensor, Tensor], base_J: Tensor, point: Tensor) -> Tensor:
    """Minus the mean log-probability; the last row of the point holds the offsets."""
    features, places = examples
    return cross_entropy(torch.addmm(base_J + point[-1], features, point[:-1]), places)


def _minimised(train: tuple[Tensor, Tensor], base_J: Tensor, penalty: float, start: Tensor) -> Tensor:
    """Where L-BFGS ends on the mean loss and half the penalty times the sum of squares."""
    point = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [point], max_iter=ITERATIONS, tolerance_grad=1e-6, tolerance_change=1e-9, line_search_fn="strong_wolfe"
    )

    def loss() -> float:
        optimizer.zero_grad()
        value = _nll(train, base_J, point) + penalty / 2 * point.square().sum()
        value.backward()
        return float(value.detach())

    optimizer.step(loss)
    return point.detach()
