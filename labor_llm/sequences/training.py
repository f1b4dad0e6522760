"""Training of a network that reads codes, and the probabilities that it gives, by Lightning's Trainer.

Legend: T records of a batch, N of a table, J occupations, K logits.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from labor_llm.sequences.batches import CodeBatch, CodeScoringBatches
from labor_llm.sequences.codes import CodedCareers
from labor_llm.sequences.heads import LIMIT, choice_log_probs, choice_nll
from labor_llm.training import LoopSettings, Training, predict_all

BETAS = (0.9, 0.98)
"""Adam's, as in the reference code of CAREER."""
SCORED_RECORDS = 8192
"""Records that are scored together."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class CodeTrainerSettings(LoopSettings):
    """How a network that reads codes is trained: AdamW, the rate falling with the inverse square root of steps."""

    warmup_steps: int = Field(default=200, ge=1)
    """Optimizer steps in which the learning rate rises; after four times as many it has fallen to a half."""


class CodeTraining(Training):
    """Trains a network to predict the occupation of every record of a career, and gives its probabilities."""

    monitor = "valid/perplexity"
    settings_key = "model.trainer"
    settings: CodeTrainerSettings

    def __init__(
        self, model: nn.Module, choices: int, settings: CodeTrainerSettings, total_steps: int, seed: int
    ) -> None:
        super().__init__(model, total_steps, seed)
        self.choices, self.settings = choices, settings
        self.layers = list(getattr(model, "layers", ()))
        self.fills_rows = getattr(model, "fills_rows", False)

    def recompute(self, again: bool) -> None:
        for layer in self.layers:
            layer.recomputed = again  # type: ignore[assignment]

    def training_step(self, batch: CodeBatch, batch_idx: int) -> Tensor:
        nll, _ = self._nll(batch)
        return self.step_loss(nll, max(batch["step_records"], 1))

    def validation_step(self, batch: CodeBatch, batch_idx: int) -> None:
        nll, records = self._nll(batch)
        self.valid_nll.update(nll)
        self.valid_records.update(records)

    def predict_step(self, batch: CodeBatch, batch_idx: int) -> tuple[Tensor, Tensor]:
        """The records' rows in the table and their log-probabilities (T, J)."""
        logits_TK = self.model(batch).float().clamp(-LIMIT, LIMIT)
        return batch["rows_T"], choice_log_probs(logits_TK, batch["before_T"], self.choices)

    def configure_optimizers(self) -> Any:
        settings = self.settings
        optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=settings.learning_rate,
            betas=BETAS,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: min((step + 1) / settings.warmup_steps, (settings.warmup_steps / (step + 1)) ** 0.5),
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _nll(self, batch: CodeBatch) -> tuple[Tensor, Tensor]:
        """Minus the log-probability of what was realised, summed, in nats, and over how many records."""
        records = (batch["targets_T"] >= 0).sum()
        nll = choice_nll(self.model(batch).float(), batch["before_T"], batch["targets_T"], self.choices)
        return nll, records


def score(module: CodeTraining, coded: CodedCareers, progress: bool) -> NDArray[np.float32]:
    """Log-probabilities of all records in the order of the table, (N, J), in nats."""
    batches = CodeScoringBatches(coded, SCORED_RECORDS, module.fills_rows)
    precision = module.settings.resolved_precision
    log_probs_NJ = np.empty((len(coded.targets_N), module.choices), dtype=np.float32)
    for rows, log_probs in predict_all(module, batches, precision, progress):
        log_probs_NJ[rows.numpy()] = log_probs.numpy()
    return log_probs_NJ
