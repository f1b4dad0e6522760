"""Fine-tuning and scoring of a language model by Lightning's Trainer."""

from collections.abc import Callable
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, get_cosine_schedule_with_warmup

from labor_llm.language.attention import PACKED, attending
from labor_llm.language.batches import (
    CareerBatch,
    Layout,
    LossOn,
    ScoringBatch,
    ScoringBatches,
    TrainingBatches,
    ValidationBatches,
)
from labor_llm.language.checks import check_reading, check_scores
from labor_llm.language.loss import summed_nll
from labor_llm.language.optimizers import (
    OptimizerName,
    PiecewiseOptimizer,
    WeightType,
    give_back_memory,
    make_optimizer,
)
from labor_llm.language.residual_dropout import end_dropout
from labor_llm.language.scoring import (
    Scores,
    Scoring,
    tokens_per_pass,
)
from labor_llm.language.title_scorer import TitleScorer
from labor_llm.language.tokens import EncodedCareers
from labor_llm.language.trials import Trial
from labor_llm.language.trie import TitleTrie
from labor_llm.tracking import Tracker
from labor_llm.training import LoopSettings, Precision, Training, predict_all, train_to_best

MONITOR = "valid/perplexity_raw"
"""exp of minus the mean log-probability of the realised title before normalisation: one pass per career."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class TrainerSettings(LoopSettings):
    """How a language model is trained."""

    micro_batch_size: int = Field(default=8, ge=1)
    """Careers per forward pass on each device: smaller needs less memory, and gradients are alike."""
    clip_norm: float | None = Field(default=1.0, gt=0)
    layout: Layout = "packed"
    """Careers end to end in one row without padding, or one career a row, padded."""
    loss_on: LossOn = "all"
    """Learn to write the whole text, or only the titles in it."""
    warmup: float = Field(default=0.1, ge=0, le=1)
    """Share of all steps in which the learning rate rises."""
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """How several devices work together. ddp, and auto: each has all weights. fsdp: each has a part of them."""
    optimizer: OptimizerName = "adamw"
    """AdamW with states in float32 or in 8 bits, or Adafactor, which keeps sums of rows and columns only."""
    weights: WeightType = "float32"
    """What the weights are held in while all of them are trained: float32, or bfloat16, rounded stochastically."""
    update_in_backward: bool = False
    """Update each weight as soon as its gradient is complete, so that gradients never stand whole."""
    check_memory: bool = True
    """Refuse a run that is estimated not to fit into memory, before its model is loaded; otherwise only warn."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.optimizer == "adamw_8bit" and find_spec("bitsandbytes") is None:
            raise ValueError(
                "optimizer=adamw_8bit needs bitsandbytes: pip install 'labor-llm[quantization]', or use adafactor"
            )
        if self.weights == "bf16" and self.precision == "32-true":
            raise ValueError("weights=bf16 needs precision=auto or bf16-mixed, got precision=32-true")
        if self.sharded and (self.optimizer, self.weights) != ("adamw", "float32"):
            raise ValueError(
                "strategy=fsdp shards AdamW's states and float32 weights: set optimizer=adamw and weights=float32 "
                f"(now {self.optimizer} and {self.weights}), or strategy=ddp"
            )
        if self.update_in_backward:
            self._check_update_in_backward()

    def _check_update_in_backward(self) -> None:
        if self.micro_batch_size < self.batch_size:
            raise ValueError(
                "update_in_backward=true needs all careers of a step in one forward pass, on one device: set "
                f"micro_batch_size to batch_size, {self.batch_size} (now {self.micro_batch_size})"
            )
        if self.world > 1:
            raise ValueError(f"update_in_backward=true needs one device, got devices times nodes {self.world}")
        if self.clip_norm is not None:
            raise ValueError(
                "update_in_backward=true never holds the gradients together, whose length clip_norm limits: set "
                f"clip_norm=null (now {self.clip_norm})"
            )

    def decided_precision(self, bfloat16_pays: Callable[[], bool]) -> Precision:
        """Weights in bfloat16 are multiplied as such."""
        return "bf16-mixed" if self.weights == "bf16" else super().decided_precision(bfloat16_pays)

    @property
    def sharded(self) -> bool:
        return self.strategy == "fsdp" and self.world > 1


class FineTuning(Training):
    """Trains a causal language model to write careers, validates on their titles, and scores choice sets."""

    monitor = MONITOR
    settings_key = "trainer"
    model: PreTrainedModel
    settings: TrainerSettings
    trie: TitleTrie
    scoring: Scoring
    scorer: TitleScorer

    def __init__(self, model: PreTrainedModel, settings: TrainerSettings, total_steps: int, seed: int) -> None:
        super().__init__(model, total_steps, seed)
        self.settings = settings
        names = model._no_split_modules or ()
        self.layers = [module for module in model.modules() if type(module).__name__ in names]

    def recompute(self, again: bool) -> None:
        if again:
            _checkpointing(self.model, "enable", {"use_reentrant": False})
        elif self.settings.gradient_checkpointing:
            _checkpointing(self.model, "disable")

    def end_dropout(self) -> None:
        end_dropout(self.model, self.layers if self.settings.gradient_checkpointing else ())

    def optimizer_step(self, *arguments: Any, **how: Any) -> None:
        """Update the weights; the gradients do not stand beside what the next step computes."""
        super().optimizer_step(*arguments, **how)
        self.model.zero_grad()

    def on_fit_end(self) -> None:
        """Leave the weights to scoring, without the optimizer's states."""
        super().on_fit_end()
        for optimizer in self.trainer.optimizers:
            if isinstance(optimizer, PiecewiseOptimizer):
                optimizer.release()
        self.trainer.strategy.optimizers, self.trainer.strategy.lr_scheduler_configs = [], []
        give_back_memory()

    def training_step(self, batch: CareerBatch, batch_idx: int) -> Tensor:
        return self.step_loss(self._nll(batch), batch["step_tokens"])

    def validation_step(self, batch: CareerBatch, batch_idx: int) -> None:
        self.valid_nll.update(self._nll(batch))
        self.valid_records.update(batch["records"])

    def on_predict_start(self) -> None:
        """Lay the trie out on the model's device, and check the scores of a few careers the plain way."""
        loader = self.trainer.predict_dataloaders
        assert isinstance(loader, DataLoader)
        assert isinstance(loader.dataset, ScoringBatches)
        with self.trainer.precision_plugin.predict_step_context():
            self._check_scores(Trial.of(loader.dataset.encoded, room=0))
        budget = tokens_per_pass(self.scoring, vocabulary_of(self.model))
        self.scorer = TitleScorer(self.model, self.trie, budget, self.scoring.allowed_error)

    def check(self, trial: Trial) -> None:
        """A RunError if the model cannot be trained and then scored, or not rightly: what both need is tried."""
        check_reading(self.model, trial, self.settings.layout)
        self._check_scores(trial)

    def _check_scores(self, trial: Trial) -> None:
        budget = tokens_per_pass(self.scoring, vocabulary_of(self.model))
        check_scores(self.model, self.trie if self.scoring.all_titles else None, budget, trial)

    def predict_step(self, batch: ScoringBatch, batch_idx: int) -> tuple[Tensor, Tensor, Tensor]:
        """The places of the batch's records in the table, their scores, and what was not expanded of them."""
        careers = batch["careers"]
        score = self.scorer.score if self.scoring.all_titles else self.scorer.score_realised
        scores = score(careers)
        return batch["records_Q"], scores.raw_QJ, scores.unexpanded_Q

    def configure_optimizers(self) -> Any:
        optimizer = make_optimizer(
            self.model.parameters(),
            self.settings.optimizer,
            self.settings.learning_rate,
            self.settings.weight_decay,
            self.settings.update_in_backward,
            self.seed,
        )
        warmup = round(self.settings.warmup * self.total_steps)
        schedule = get_cosine_schedule_with_warmup(optimizer, warmup, self.total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _nll(self, batch: CareerBatch) -> Tensor:
        """Minus the log-probability of all labelled tokens, summed, in nats."""
        return summed_nll(self.model, batch["inputs"], batch["labels"])


def fine_tune(
    module: FineTuning,
    train: TrainingBatches,
    valid: ValidationBatches,
    tracker: Tracker,
    folder: Path | None,
    progress: bool,
) -> None:
    """``train_to_best`` for a language model, with the attention that its settings ask for."""
    module.train()  # a loaded model comes without dropout
    packed, fast = module.settings.layout == "packed", not module.settings.compile
    with attending(module.model, PACKED, fast) if packed else nullcontext():
        train_to_best(module, train, valid, tracker, folder, progress)


def vocabulary_of(model: PreTrainedModel) -> int:
    """Tokens that the model gives logits for."""
    return int(model.config.get_text_config().vocab_size)


def _checkpointing(model: PreTrainedModel, change: Literal["enable", "disable"], *arguments: Any) -> None:
    """By the name that this version of transformers has for it."""
    old, new = f"gradient_checkpointing_{change}", f"activation_checkpointing_{change}"
    getattr(model, new if hasattr(model, new) else old)(*arguments)


def score_careers(
    module: FineTuning,
    encoded: EncodedCareers,
    realised_N: NDArray[np.int64],
    trie: TitleTrie,
    scoring: Scoring,
    progress: bool,
) -> Scores:
    """Scores of all records, in the order of the table, by the Trainer's predict loop on all devices.

    ``realised_N`` holds the place of each record's occupation among the trie's titles, -1 where it is outside.
    """
    module.trie, module.scoring = trie, scoring
    batches = ScoringBatches(encoded, realised_N, tokens_per_pass(scoring, vocabulary_of(module.model)))
    in_float32 = all(parameter.dtype == torch.float32 for parameter in module.parameters())
    precision = "32-true" if in_float32 else module.settings.resolved_precision
    scored = predict_all(module, batches, precision, progress)
    records_N, *scores = (torch.cat(parts) for parts in zip(*scored, strict=True))
    if not torch.equal(records_N, torch.arange(len(realised_N))):  # one device after another
        scores = [part[records_N.argsort()] for part in scores]
    return Scores(*scores)
