"""How this project fine-tunes, on a clock: the only place in the benchmarks that knows how training is made."""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.panel import generated_panel
from benchmarks.training_rivals import Recipe, StepClock
from labor_llm.careers import Careers
from labor_llm.language.batches import CareerBatch, TrainingBatches, ValidationBatches
from labor_llm.language.finetune import MONITOR, FineTuning, TrainerSettings, fine_tune
from labor_llm.language.tokens import CareerEncoder, EncodedCareers
from labor_llm.templates import ResumeTemplate, Titles
from labor_llm.tracking import NoTracker


def encode(tokenizer: PreTrainedTokenizerBase, careers: Careers) -> EncodedCareers:
    """Careers as resumes with titles, tokenized."""
    return CareerEncoder(tokenizer, ResumeTemplate(), Titles(), careers.taxonomy).encode(careers)


class TimedFineTuning(FineTuning):
    """The project's own module on a clock that validation stops; it keeps the last weights, as rivals do."""

    clock: StepClock
    _steps = 0

    def on_train_start(self) -> None:
        self.clock.resume()

    def on_train_batch_end(self, outputs: Any, batch: CareerBatch, batch_idx: int) -> None:
        if self.global_step > self._steps:
            self._steps = self.global_step
            self.clock.step(int(batch["step_tokens"]))

    def on_validation_start(self) -> None:
        self.clock.pause()

    def on_validation_end(self) -> None:
        """Lightning calls this after the checkpoints were written."""
        self.clock.resume()

    def on_validation_epoch_end(self) -> None:
        """Any number does: nobody looks, and a perplexity of random weights can be more than float32 holds."""
        self.log(MONITOR, torch.zeros(()))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Rivals write no weights either, and those of a large model fill a disk."""
        checkpoint["state_dict"], checkpoint["optimizer_states"] = {}, []

    def load_trained(self, checkpoint: Path) -> None:
        """Not the best validation's weights: nobody else has a validation here."""


def train_ours(
    model: PreTrainedModel, encoded: EncodedCareers, tokenizer: PreTrainedTokenizerBase, recipe: Recipe
) -> StepClock:
    """The project's training path, from batches to the optimizer."""
    settings = TrainerSettings(
        learning_rate=recipe.learning_rate,
        max_epochs=recipe.epochs,
        batch_size=recipe.careers_per_step,
        micro_batch_size=recipe.careers_per_pass,
        warmup=recipe.warmup,
        weight_decay=recipe.weight_decay,
        clip_norm=recipe.clip_norm,
        patience=recipe.epochs + 1,
        checkpoint_every=10**9,
        precision="bf16-mixed" if recipe.bf16 else "32-true",
        accelerator="cpu" if recipe.device == "cpu" else "gpu",
    )
    batches = TrainingBatches(
        encoded,
        settings.batch_size,
        settings.micro_batch_size,
        settings.loss_on,
        recipe.seed,
        settings.layout,
    )
    module = TimedFineTuning(model, settings, settings.max_epochs * batches.steps, recipe.seed)
    module.clock = StepClock(recipe.device)
    one = generated_panel(1, seed=2, max_records=6)
    validation = ValidationBatches(encode(tokenizer, one), 1, settings.layout)
    fine_tune(module, batches, validation, NoTracker(), None, False)
    return module.clock
