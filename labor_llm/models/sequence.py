"""What all models have in common that train a network on occupation codes."""

from abc import abstractmethod
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytorch_lightning as L
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from safetensors.torch import load_file, save_file
from torch import nn

from labor_llm.careers import Careers
from labor_llm.models.base import OccupationModel, Workspace
from labor_llm.predictions import ChoiceProbabilities
from labor_llm.sequences.batches import CodeScoringBatches, CodeTrainingBatches
from labor_llm.sequences.codes import CodeBook, Covariate
from labor_llm.sequences.heads import logit_count
from labor_llm.sequences.training import SCORED_RECORDS, CodeTrainerSettings, CodeTraining, score
from labor_llm.training import train_to_best


@dataclass(kw_only=True, config=ConfigDict(extra="forbid"))
class SequenceModel(OccupationModel):
    """A network reads careers as numbers and gives logits; ``sequences.heads`` makes probabilities of them."""

    name: str
    covariates: tuple[Covariate, ...]
    """What is known of a record before its occupation. What training never saw adds nothing."""
    two_stage: bool
    """Stay or move first, then where to; else one softmax over all occupations."""
    trainer: CodeTrainerSettings
    seed: int

    file: ClassVar[str] = "network.safetensors"

    @abstractmethod
    def _network(self, book: CodeBook, logits: int) -> nn.Module:
        """The network with random weights."""

    def _fit(self, train: Careers, valid: Careers, workspace: Workspace) -> None:
        L.seed_everything(self.seed, verbose=False)
        self._book = CodeBook.of(train, self.choice_set, self.covariates)
        settings, coded = self.trainer, self._book.encode(train)
        batches = CodeTrainingBatches(coded, settings.batch_size, self.seed, settings.micro_batch_size)
        self._module = self._training(self._start(), settings.max_epochs * batches.steps)
        held_out = CodeScoringBatches(self._book.encode(valid), SCORED_RECORDS, self._module.fills_rows)
        train_to_best(self._module, batches, held_out, workspace.tracker, workspace.folder, workspace.progress)

    def _start(self) -> nn.Module:
        """The network as it is before training."""
        return self._network(self._book, logit_count(len(self.choice_set), self.two_stage))

    def _training(self, network: nn.Module, total_steps: int = 1) -> CodeTraining:
        return CodeTraining(network, len(self.choice_set), self.trainer, total_steps, self.seed)

    def _predict(self, careers: Careers, workspace: Workspace) -> ChoiceProbabilities:
        log_probs_NJ = score(self._module, self._book.encode(careers), workspace.progress)
        return ChoiceProbabilities(log_probs_NJ, np.zeros(len(careers)))

    def _save(self, folder: Path) -> None:
        self._book.write(folder)
        weights = {name: value.contiguous() for name, value in self._module.model.state_dict().items()}
        save_file(weights, folder / self.file)

    def _load(self, folder: Path) -> None:
        self._book = CodeBook.read(folder)
        network = self._network(self._book, logit_count(len(self.choice_set), self.two_stage))
        network.load_state_dict(load_file(folder / self.file))
        self._module = self._training(network)
