"""How others fine-tune a causal language model on careers: the Trainer of transformers, and TRL's SFTTrainer.

Both get what is best for them on one device: no evaluation, checkpoints, reports or worker processes in the way.
"""

import tempfile
import time
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    DataCollatorForLanguageModeling,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback

from labor_llm.language.loss import IGNORED
from labor_llm.language.tokens import EncodedCareers


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What every system is told alike: optimizer, schedule, and how much is read."""

    learning_rate: float
    careers_per_step: int
    careers_per_pass: int
    """Careers of one forward pass; a step accumulates the gradients of several where it has more."""
    epochs: int
    row_tokens: int
    """Length of the rows into which TRL packs careers; the longest career must fit."""
    bf16: bool
    """bfloat16 products over float32 weights (or over a frozen bfloat16 base), else float32 throughout."""
    seed: int
    device: str = "cpu"
    warmup: float = 0.1
    """Share of the steps in which the rate rises; then it falls by a cosine."""
    weight_decay: float = 0.01
    clip_norm: float = 1.0


@dataclass
class StepClock:
    """Seconds and supervised tokens of every optimizer step; a pause costs nothing."""

    device: str = "cpu"
    seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    _since: float = 0.0
    _passed: float = 0.0
    _seen: list[Tensor] = field(default_factory=list)

    def resume(self) -> None:
        """Start, or go on after a pause."""
        self._since = self._now()

    def pause(self) -> None:
        """Keep what has passed of the step, and stop."""
        self._passed += self._now() - self._since

    def see(self, labels: Tensor) -> None:
        """Count the labels of one forward pass, (B, L); the first of each row predicts nothing."""
        self._seen.append((labels[:, 1:] != IGNORED).sum())

    def step(self, tokens: int | None = None) -> None:
        """An optimizer step is done, on so many supervised tokens, or on those that were seen."""
        self.pause()
        self.seconds.append(self._passed)
        self.tokens.append(sum(int(count) for count in self._seen) if tokens is None else tokens)
        self._passed, self._seen = 0.0, []
        self.resume()

    def rate(self, warm_up: int) -> float:
        """Supervised tokens per second, the first steps left out."""
        if len(self.tokens) <= warm_up:
            raise ValueError(f"{len(self.tokens)} optimizer steps leave none to time after {warm_up} of warm-up")
        return sum(self.tokens[warm_up:]) / sum(self.seconds[warm_up:])

    def _now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def has_trl() -> bool:
    """Whether TRL can be imported here, and datasets, which it reads from."""
    return find_spec("trl") is not None and find_spec("datasets") is not None


def train_padded(
    model: PreTrainedModel,
    encoded: EncodedCareers,
    tokenizer: PreTrainedTokenizerBase,
    recipe: Recipe,
    *,
    grouped: bool = False,
) -> StepClock:
    """Trainer with a collator that pads every batch; ``grouped`` puts careers of similar length together."""
    clock = StepClock(recipe.device)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            **_arguments(recipe, folder),
            per_device_train_batch_size=recipe.careers_per_pass,
            gradient_accumulation_steps=recipe.careers_per_step // recipe.careers_per_pass,
            train_sampling_strategy="group_by_length" if grouped else "random",
        )
        trainer = _counting(Trainer)(
            model=model,
            args=arguments,
            train_dataset=[{"input_ids": ids} for ids in token_lists(encoded)],
            data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
            callbacks=[_OnTheClock(clock)],
        )
        _run(trainer, clock)
    return clock


def train_trl(
    model: PreTrainedModel, encoded: EncodedCareers, tokenizer: PreTrainedTokenizerBase, recipe: Recipe
) -> StepClock:
    """SFTTrainer with packing, best fit decreasing: rows without padding, one row in a forward pass.

    Several rows in a pass would be laid end to end into one, and attention other than FlashAttention pays for the
    square of its length; so a step accumulates over rows. TRL's own defaults would recompute activations and
    multiply in bfloat16: neither is left to them.
    """
    import datasets
    from trl import SFTConfig, SFTTrainer

    if (longest := int(encoded.lengths.max())) > recipe.row_tokens:
        raise ValueError(f"the longest career has {longest} tokens and would be cut at {recipe.row_tokens}")
    datasets.disable_progress_bars()
    clock = StepClock(recipe.device)
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            **_arguments(recipe, folder),
            per_device_train_batch_size=1,
            gradient_accumulation_steps=rows_per_step(encoded, recipe),
            packing=True,
            max_length=recipe.row_tokens,
            shuffle_dataset=True,
            gradient_checkpointing=False,
        )
        trainer = _counting(SFTTrainer)(
            model=model,
            args=arguments,
            train_dataset=datasets.Dataset.from_dict({"input_ids": token_lists(encoded)}),
            processing_class=tokenizer,
            callbacks=[_OnTheClock(clock)],
        )
        _run(trainer, clock)
    return clock


def rows_per_step(encoded: EncodedCareers, recipe: Recipe) -> int:
    """Packed rows with about as many tokens as the careers of a step."""
    return max(1, round(recipe.careers_per_step * float(np.mean(encoded.lengths)) / recipe.row_tokens))


def token_lists(encoded: EncodedCareers) -> list[list[int]]:
    """The careers as other libraries take them."""
    return [career_ids(encoded, place) for place in range(len(encoded))]


def career_ids(encoded: EncodedCareers, place: int) -> list[int]:
    """The tokens of one career."""
    return encoded.ids_T[encoded.career_starts[place] : encoded.career_starts[place + 1]].tolist()


def _arguments(recipe: Recipe, folder: str) -> dict[str, Any]:
    """What both trainers are told."""
    return {
        "output_dir": folder,
        "num_train_epochs": recipe.epochs,
        "learning_rate": recipe.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": recipe.warmup,
        "weight_decay": recipe.weight_decay,
        "max_grad_norm": recipe.clip_norm,
        "bf16": recipe.bf16,
        "use_cpu": recipe.device == "cpu",
        "seed": recipe.seed,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": recipe.device != "cpu",
        "eval_strategy": "no",
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


class _OnTheClock(TrainerCallback):
    """Starts the clock with training and tells it of every optimizer step."""

    def __init__(self, clock: StepClock) -> None:
        self.clock = clock

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.clock.resume()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.clock.step()


def _counting(trainer_class: type[Trainer]) -> type[Any]:
    """The trainer, made to count the labels of its forward passes."""

    class Counting(trainer_class):  # type: ignore[valid-type, misc]
        clock: StepClock

        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
            self.clock.see(inputs["labels"])
            return super().training_step(model, inputs, num_items_in_batch)

    return Counting


def _run(trainer: Any, clock: StepClock) -> None:
    trainer.clock = clock
    trainer.remove_callback(PrinterCallback)
    trainer.train()
