"""Training of any network on careers, and fine-tuning and scoring of a language model, by Lightning's Trainer."""

import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import pytorch_lightning as L
import torch
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from pytorch_lightning.callbacks import Callback, Checkpoint, EarlyStopping, ModelCheckpoint, RichProgressBar
from pytorch_lightning.loggers.logger import Logger
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric
from transformers import PreTrainedModel, get_cosine_schedule_with_warmup
from transformers.utils import logging as transformers_logging

from labor_llm.errors import RunError
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
from labor_llm.language.checks import check_packing, check_scores
from labor_llm.language.loss import summed_nll
from labor_llm.language.scoring import (
    RealizedScoring,
    Scores,
    Scoring,
    TitleScorer,
    tokens_per_pass,
)
from labor_llm.language.tokens import EncodedCareers
from labor_llm.language.trie import TitleTrie
from labor_llm.tracking import Tracker

MONITOR = "valid/perplexity_raw"
"""exp of minus the mean log-probability of the realised title before normalisation: one pass per career."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class LoopSettings:
    """How long, how fast and on what any network is trained."""

    learning_rate: float = Field(gt=0)
    """Peak learning rate, after the warm-up and before the decay."""
    max_epochs: int = Field(default=12, ge=1)
    batch_size: int = Field(default=8, ge=1)
    """Careers per optimizer step."""
    weight_decay: float = Field(default=0.01, ge=0)
    patience: int = Field(default=4, ge=1)
    """Stop after so many validations without a better perplexity; the best weights are kept."""
    validate_every: float = Field(default=1.0, gt=0, le=1)
    """Share of an epoch between validations."""
    checkpoint_every: int = Field(default=50, ge=1)
    """Optimizer steps between checkpoints to resume from."""
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    """auto: bfloat16 products where the GPU or the processor multiplies them faster, else float32."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"

    def __post_init__(self) -> None:
        if self.accelerator == "gpu" and not torch.cuda.is_available():
            raise ValueError("accelerator is gpu, but PyTorch finds no CUDA GPU on this machine; use auto or cpu")

    @property
    def resolved_precision(self) -> Literal["32-true", "bf16-mixed"]:
        """The precision with ``auto`` decided for this machine."""
        if self.precision != "auto":
            return self.precision
        if self.accelerator != "cpu" and torch.cuda.is_available():
            return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
        return "bf16-mixed" if _processor_has_bf16() else "32-true"


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class TrainerSettings(LoopSettings):
    """How a language model is trained."""

    micro_batch_size: int = Field(default=8, ge=1)
    """Careers per forward pass; smaller needs less memory, and gradients are the same up to rounding."""
    layout: Layout = "packed"
    """Careers end to end in one row without padding, or one career a row, padded."""
    loss_on: LossOn = "all"
    """Learn to write the whole text, or only the titles in it."""
    warmup: float = Field(default=0.1, ge=0, le=1)
    """Share of all steps in which the learning rate rises."""
    clip_norm: float = Field(default=1.0, gt=0)
    gradient_checkpointing: bool = False
    """Compute a layer's activations again for its gradients instead of keeping them: less memory, slower."""
    compile: bool = False
    """Let torch.compile fuse the layers' small operations; needs a C++ compiler on a CPU. Minutes at the start."""


class Training(L.LightningModule):
    """What training any network has in common: dropout that resumes, validation, what a checkpoint holds."""

    monitor: ClassVar[str]
    """The metric of the validation that chooses the weights: a perplexity."""
    settings_key: ClassVar[str]
    """Where the settings stand in a config."""
    settings: LoopSettings

    def __init__(self, model: nn.Module, seed: int) -> None:
        super().__init__()
        self.model, self.seed = model, seed
        self.strict_loading = False  # checkpoints hold what is trained; load_trained checks the names
        self.valid_nll = MeanMetric(nan_strategy="disable")

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Dropout follows from the seed and the place in training, so that a resumed run repeats it."""
        state = np.random.SeedSequence((self.seed, self.current_epoch, batch_idx)).generate_state(1)
        torch.manual_seed(int(state[0]))

    def log_loss(self, loss: Tensor) -> None:
        """Tell the tracker and the progress bar."""
        self.log("train/loss", loss.detach(), batch_size=1)
        self.log("loss", loss.detach(), prog_bar=True, logger=False, batch_size=1)

    def on_validation_epoch_end(self) -> None:
        perplexity = self.valid_nll.compute().cpu().double().exp()  # titles of many tokens start above exp(88)
        self.log(self.monitor, perplexity)
        self.log("valid", perplexity, prog_bar=True, logger=False)
        self.valid_nll.reset()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only what is trained: a frozen base is not written again."""
        trained = {f"model.{name}" for name, value in self.model.named_parameters() if value.requires_grad}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}

    def load_trained(self, checkpoint: Path) -> None:
        """Take over the trained weights of a checkpoint; every one of them must be there."""
        weights = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
        trained = {f"model.{name}" for name, value in self.model.named_parameters() if value.requires_grad}
        if set(weights) != trained:
            raise RuntimeError(f"{checkpoint} does not hold the trained weights of this model")
        self.load_state_dict(weights, strict=False)


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
        super().__init__(model, seed)
        self.settings, self.total_steps = settings, total_steps

    def training_step(self, batch: CareerBatch, batch_idx: int) -> Tensor:
        loss = self._nll(batch) / batch["step_tokens"] * self.trainer.accumulate_grad_batches
        self.log_loss(loss)
        return loss

    def validation_step(self, batch: CareerBatch, batch_idx: int) -> None:
        self.valid_nll.update(self._nll(batch) / batch["records"], weight=batch["records"])

    def on_predict_start(self) -> None:
        """Lay the trie out on the model's device, and check the scores of two careers the plain way."""
        budget = tokens_per_pass(self.scoring, self.model.config.vocab_size)
        loader = self.trainer.predict_dataloaders
        assert isinstance(loader, DataLoader)
        batch: ScoringBatch = loader.dataset[len(loader) - 1]
        self.scorer = TitleScorer(self.model, self.trie, budget, self.scoring.allowed_error)
        with self.trainer.precision_plugin.predict_step_context():
            check_scores(self.scorer, batch["careers"].to(self.device))

    def predict_step(self, batch: ScoringBatch, batch_idx: int) -> tuple[Tensor, Scores]:
        """The places of the batch's records in the table, and their scores."""
        careers = batch["careers"]
        realised_only = isinstance(self.scoring, RealizedScoring)
        scores = self.scorer.score_realised(careers) if realised_only else self.scorer.score(careers)
        return batch["records_Q"], scores

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip; Lightning's own clipping refuses fused optimizers."""
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)

    def configure_optimizers(self) -> Any:
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": self.settings.weight_decay},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.settings.learning_rate, fused=True)
        warmup = round(self.settings.warmup * self.total_steps)
        schedule = get_cosine_schedule_with_warmup(optimizer, warmup, self.total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _nll(self, batch: CareerBatch) -> Tensor:
        """Minus the log-probability of all labelled tokens, summed, in nats."""
        return summed_nll(self.model, batch["inputs"], batch["labels"])


class TrackerLogger(Logger):
    """Hands Lightning's metrics to a tracker."""

    def __init__(self, tracker: Tracker) -> None:
        super().__init__()
        self._tracker = tracker

    @property
    def name(self) -> str:
        return "labor_llm"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The config is handed to the tracker when it starts, not here."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Pass the metrics on."""
        self._tracker.log(dict(metrics), step or 0)


class Batches(Protocol):
    """Batches of one epoch after another, and where the next one is."""

    parts: int
    """Batches of an optimizer step."""

    @property
    def steps(self) -> int: ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Any]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def fine_tune(
    module: FineTuning,
    train: TrainingBatches,
    valid: ValidationBatches,
    tracker: Tracker,
    folder: Path | None,
    progress: bool,
) -> None:
    """``train_to_best`` for a language model, with the attention and the layers that its settings ask for."""
    module.train()  # a loaded model comes without dropout
    if module.settings.layout == "packed":
        check_packing(module.model, train.encoded)
    with _prepared(module.model, module.settings):
        train_to_best(module, train, valid, tracker, folder, progress)


def train_to_best(
    module: Training, train: Batches, valid: Any, tracker: Tracker, folder: Path | None, progress: bool
) -> None:
    """Train until the epochs or the patience end, then take the weights of the best validation.

    A checkpoint in ``folder`` that an interrupted call left is resumed from, to the same weights as if it had
    not been interrupted (bit for bit in float32 on a CPU). A RunError if the loss was never a number.
    """
    settings = module.settings
    with tempfile.TemporaryDirectory() as scratch:
        checkpoints = folder or Path(scratch)
        last = checkpoints / "last.ckpt"
        trainer = lightning_trainer(
            settings,
            progress,
            callbacks=_fitting_callbacks(settings, checkpoints, module.monitor),
            logger=TrackerLogger(tracker),
            max_epochs=settings.max_epochs,
            accumulate_grad_batches=train.parts,
            val_check_interval=round(train.steps * settings.validate_every) * train.parts or train.parts,
            precision=settings.resolved_precision,
            log_every_n_steps=min(10, len(train)),
            num_sanity_val_steps=0,
        )
        trainer.fit(module, train, valid, ckpt_path=last if last.exists() else None, weights_only=True)
        best = trainer.checkpoint_callback
        assert isinstance(best, ModelCheckpoint)
        if best.best_model_score is None or not torch.isfinite(best.best_model_score):
            raise RunError(
                f"training diverged: {module.monitor} was never a number up to step {trainer.global_step}. "
                f"Lower {module.settings_key}.learning_rate (now {settings.learning_rate})."
            )
        module.load_trained(checkpoints / "best.ckpt")


@contextmanager
def _prepared(model: PreTrainedModel, settings: TrainerSettings) -> Iterator[None]:
    """The model as it is trained: its attention, what it keeps for the gradients, what is compiled."""
    layers = [module for module in model.modules() if type(module).__name__ in (model._no_split_modules or ())]
    if settings.gradient_checkpointing:
        _checkpointing(model, "enable", {"use_reentrant": False})
    for layer in layers if settings.compile else ():
        layer.compile(dynamic=True)
    try:
        with attending(model, PACKED) if settings.layout == "packed" else nullcontext():
            yield
    finally:
        if settings.gradient_checkpointing:
            _checkpointing(model, "disable")
        for layer in layers:
            layer._compiled_call_impl = None  # scoring calls the layers with other attention


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
    """Scores of all records, in the order of the table, by the Trainer's predict loop.

    ``realised_N`` holds the place of each record's occupation among the trie's titles, -1 where it is outside.
    """
    module.trie, module.scoring = trie, scoring
    budget = tokens_per_pass(scoring, module.model.config.vocab_size)
    loader = DataLoader(ScoringBatches(encoded, realised_N, budget), batch_size=None)
    in_float32 = all(parameter.dtype == torch.float32 for parameter in module.parameters())
    precision = "32-true" if in_float32 else module.settings.resolved_precision
    scored = lightning_trainer(module.settings, progress, logger=False, precision=precision).predict(
        module, loader
    )
    assert scored is not None
    records, scores = zip(*scored, strict=True)
    assert torch.equal(torch.cat(records), torch.arange(len(realised_N)))
    return Scores.joined(scores)


def lightning_trainer(settings: LoopSettings, progress: bool, **arguments: Any) -> L.Trainer:
    """A Trainer on one device, quiet but for its progress bar and its warnings."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*treespec, LeafSpec", module="pytorch_lightning")  # its own use of torch
    transformers_logging.disable_progress_bar()
    callbacks: list[Callback] = arguments.pop("callbacks", [])
    return L.Trainer(
        accelerator="gpu" if settings.accelerator != "cpu" and torch.cuda.is_available() else "cpu",
        devices=1,
        callbacks=[*callbacks, *([RichProgressBar(console_kwargs={"stderr": True})] if progress else [])],
        enable_progress_bar=progress,
        enable_model_summary=False,
        enable_checkpointing=bool(callbacks),
        use_distributed_sampler=False,
        **arguments,
    )


class ResumePoint(Checkpoint):
    """Keeps ``last.ckpt``, every so many steps and after every validation.

    Not on a step that a validation follows: Lightning would not validate again when it resumes there, and the
    choice of the best weights would differ from that of a run that was not interrupted.
    """

    def __init__(self, path: Path, every: int, stopping: EarlyStopping) -> None:
        self.path, self.every, self.stopping = path, every, stopping

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A run that was interrupted after its patience had ended does not train on."""
        out_of_patience = self.stopping.wait_count >= self.stopping.patience
        trainer.should_stop = trainer.should_stop or out_of_patience

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        batches = trainer.fit_loop.epoch_loop.batch_idx + 1
        stepped = batches % trainer.accumulate_grad_batches == 0
        validates = batches % int(trainer.val_check_batch or 1) == 0
        if stepped and trainer.global_step % self.every == 0 and not validates:
            self._save(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        trainer.save_checkpoint(self.path)


def _fitting_callbacks(settings: LoopSettings, folder: Path, monitor: str) -> list[Callback]:
    """Best weights, patience, and last of all the point to resume from, which holds the others' state."""
    stopping = EarlyStopping(monitor, mode="min", patience=settings.patience, check_on_train_epoch_end=False)
    best = ModelCheckpoint(
        folder, "best", monitor, mode="min", save_on_train_epoch_end=False, enable_version_counter=False
    )
    return [stopping, best, ResumePoint(folder / "last.ckpt", settings.checkpoint_every, stopping)]


def _processor_has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 faster than float32, as far as torch can tell."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
