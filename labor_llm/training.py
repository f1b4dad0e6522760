"""Training of any network on careers, by Lightning's Trainer: the best weights are kept, and it can be resumed."""

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import pytorch_lightning as L
import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from pytorch_lightning.callbacks import Callback, Checkpoint, EarlyStopping, ModelCheckpoint
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import SIGTERMException
from torch import Tensor, nn
from torchmetrics import SumMetric
from transformers.utils import logging as transformers_logging

from labor_llm import checkpoints, devices
from labor_llm.errors import ConfigError, RunError
from labor_llm.precision import bfloat16_pays
from labor_llm.processes import starter
from labor_llm.progress import training_progress
from labor_llm.sharding import Sharded, check_shardable, shard_for_scoring, shard_for_training
from labor_llm.shares import Share
from labor_llm.tracking import NoTracker, Tracker

logger = logging.getLogger(__name__)

Precision = Literal["32-true", "bf16-mixed"]
PRODUCTS: dict[Precision, str] = {"32-true": "float32", "bf16-mixed": "bfloat16"}
"""Precision -> the type that matrix products are computed in."""
PARTS, PRECISION = "batches_of_a_step", "precision"
"""Where a checkpoint says how many batches an optimizer step had, and in which precision it was computed."""


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
    micro_batch_size: int | None = Field(default=None, ge=1)
    """Careers per forward pass on each device, None for all of a step: smaller needs less memory, and gradients
    are the same up to rounding."""
    clip_norm: float | None = Field(default=None, gt=0)
    """Longest gradient; None leaves gradients as they are."""
    dropout_until: float = Field(default=1.0, ge=0, le=1)
    """Share of all steps after which nothing is dropped; patience may end training before."""
    gradient_checkpointing: bool = False
    """Compute a layer's activations again for its gradients instead of keeping them: less memory, slower."""
    compile: bool = False
    """Let torch.compile fuse the layers' small operations; needs a C++ compiler on a CPU. Minutes at the start."""
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    """auto: bfloat16 products where the GPU has them or the processor multiplies them faster, else float32."""
    tf32: bool = False
    """Let a GPU round what float32 products multiply to 10 bits: faster where the precision is 32-true."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int = Field(default=1, ge=1)
    """GPUs of a machine, or processes on its CPU where there is none, that share the careers of every step."""
    nodes: int = Field(default=1, ge=1)
    """Machines with as many devices each; torchrun or srun starts the processes of several."""

    def __post_init__(self) -> None:
        if self.accelerator == "gpu" and not torch.cuda.is_available():
            raise ValueError("accelerator is gpu, but PyTorch finds no CUDA GPU on this machine; use auto or cpu")
        if self.batch_size % self.world:
            times_nodes = f" times nodes, {self.world}" if self.nodes > 1 else f", {self.world}"
            raise ValueError(f"batch_size must be a multiple of devices{times_nodes}, got {self.batch_size}")

    @property
    def world(self) -> int:
        """Devices of all machines."""
        return self.devices * self.nodes

    @property
    def sharded(self) -> bool:
        """Whether each device has a part of the weights, instead of all of them."""
        return False

    @property
    def on_gpu(self) -> bool:
        """Whether the settings let a network compute on a GPU of this machine."""
        return self.accelerator != "cpu" and torch.cuda.is_available()

    @property
    def resolved_precision(self) -> Precision:
        """The precision with ``auto`` decided for this machine."""
        return self.decided_precision(bfloat16_pays)

    def decided_precision(self, bfloat16_pays: Callable[[], bool]) -> Precision:
        """The precision, if ``auto`` by what this machine's GPU has, or by whether its processor gains."""
        if self.precision != "auto":
            return self.precision
        if self.on_gpu:
            return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
        return "bf16-mixed" if bfloat16_pays() else "32-true"


class Training(L.LightningModule):
    """What training any network has in common: dropout that resumes, validation, what a checkpoint holds."""

    monitor: ClassVar[str]
    """The metric of the validation that chooses the weights: a perplexity."""
    settings_key: ClassVar[str]
    """Where the settings stand in a config."""
    settings: LoopSettings
    layers: Sequence[nn.Module] = ()
    """Those of the network that are compiled, or computed again for their gradients."""

    def __init__(self, model: nn.Module, total_steps: int, seed: int) -> None:
        super().__init__()
        self.model, self.total_steps, self.seed = model, total_steps, seed
        self.strict_loading = False  # checkpoints hold what is trained; load_trained checks the names
        self.valid_nll, self.valid_records = (SumMetric(nan_strategy="disable") for _ in range(2))

    def configure_model(self) -> None:
        """Leave each device its part of the weights, if they are sharded."""
        strategy = self.trainer.strategy
        if isinstance(strategy, Sharded):
            if self.trainer.state.fn == TrainerFn.FITTING:
                shard_for_training(self, self.layers, strategy.mesh)
            else:
                shard_for_scoring(self.model, self.layers, strategy.mesh)

    def setup(self, stage: str) -> None:
        """How products are rounded, in every process."""
        if self.settings.on_gpu:
            torch.set_float32_matmul_precision("high" if self.settings.tf32 else "highest")
            torch.backends.cudnn.allow_tf32 = self.settings.tf32

    def check_layers(self) -> None:
        """A ConfigError if a setting asks for layers of a network that has none."""
        for name in ("gradient_checkpointing", "compile"):
            if getattr(self.settings, name) and not self.layers:
                raise ConfigError(
                    f"{self.settings_key}.{name}: {type(self.model).__name__} does not say which of its modules "
                    "are layers; leave it out"
                )

    def recompute(self, again: bool) -> None:
        """Whether activations within layers are computed again for the gradients, instead of kept."""

    def on_fit_start(self) -> None:
        """Prepare the layers as they are trained."""
        self.recompute(self.settings.gradient_checkpointing)
        for layer in self.layers if self.settings.compile else ():
            layer.compile(dynamic=True)

    def on_fit_end(self) -> None:
        """Leave the layers as they are scored, with other attention."""
        self.recompute(False)
        for layer in self.layers:
            layer._compiled_call_impl = None

    def on_predict_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Stop before the next batch if the process is to end; Lightning itself looks only while it trains."""
        if self.trainer.received_sigterm:
            raise SIGTERMException

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Dropout follows from the seed and the place in training, so that a resumed run repeats it.

        There is none in the last steps, in which a model learns how sure it may be without.
        """
        place = self.seed, self.current_epoch, batch_idx, self.global_rank
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1)[0]))
        if self.global_step >= self.settings.dropout_until * self.total_steps:
            self.end_dropout()

    def end_dropout(self) -> None:
        """From here on the network drops nothing."""
        for module in self.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0

    def step_loss(self, nll: Tensor, predicted: Tensor | int) -> Tensor:
        """The batch's part of the step's mean loss, from its sum and from how much the whole step predicts.

        As large as makes the mean over the step's batches and over all devices that of the step: Lightning takes
        the one, and the synchronised gradients are the other.
        """
        loss = nll / predicted * (self.trainer.accumulate_grad_batches * self.trainer.world_size)
        self.log("train/loss", loss.detach(), batch_size=1, sync_dist=self.trainer.world_size > 1)
        self.log("loss", loss.detach(), prog_bar=True, logger=False, batch_size=1)
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip; Lightning's own clipping refuses fused optimizers."""
        if self.settings.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)

    def on_validation_epoch_end(self) -> None:
        nll, records = (metric.compute().cpu().double() for metric in (self.valid_nll, self.valid_records))
        perplexity = (nll / records).exp()  # in float64, since titles of many tokens start above exp(88)
        self.log(self.monitor, perplexity)  # the sums are those of all devices already
        self.log("valid", perplexity, prog_bar=True, logger=False)
        self.valid_nll.reset()
        self.valid_records.reset()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only what is trained: a frozen base is not written again."""
        trained = {f"model.{name}" for name, value in self.model.named_parameters() if value.requires_grad}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}
        checkpoint[PARTS] = self.trainer.accumulate_grad_batches
        checkpoint[PRECISION] = self.settings.resolved_precision

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Count batches anew: on another number of devices, a step has more or fewer of them.

        A RunError if the weights were trained in another precision so far.
        """
        now, before = self.settings.resolved_precision, checkpoint.get(PRECISION)
        if before not in (None, now):  # the first version wrote none
            raise RunError(
                f"{self.settings_key}.precision: training was interrupted in {before} and cannot go on in {now}. "
                f"Set {self.settings_key}.precision={before}, or begin again in an empty folder."
            )
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            begun = counts["ready"] // checkpoint[PARTS] * self.trainer.accumulate_grad_batches
            counts.update({name: begun - (counts["ready"] - batches) for name, batches in counts.items()})

    def load_trained(self, checkpoint: Path) -> None:
        """Take over the trained weights of a checkpoint; every one of them must be there."""
        weights = checkpoints.read_weights(checkpoint)
        trained = {f"model.{name}" for name, value in self.model.named_parameters() if value.requires_grad}
        if set(weights) != trained:
            raise RuntimeError(f"{checkpoint} does not hold the trained weights of this model")
        self.load_state_dict(weights, strict=False)


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

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Pass the metrics on, those of all devices once."""
        self._tracker.log(dict(metrics), step or 0)


class TrainingBatches(devices.Batches, Protocol):
    """Batches of one epoch after another, and where the next one is."""

    parts: int
    """Batches of an optimizer step."""

    @property
    def steps(self) -> int: ...

    def share(self, share: Share) -> "TrainingBatches": ...

    def __iter__(self) -> Iterator[Any]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def train_to_best(
    module: Training,
    train: TrainingBatches,
    valid: devices.Batches,
    tracker: Tracker,
    folder: Path | None,
    progress: bool,
) -> None:
    """Train until the epochs or the patience end, then take the weights of the best validation.

    Several devices train as one does, up to rounding and to what dropout drops: each has its share of every step's
    careers.

    A checkpoint in ``folder`` that an interrupted call left is resumed from, to the same weights as if it had
    not been interrupted (bit for bit in float32 on a CPU). A RunError if the loss was never a number.
    """
    settings = module.settings
    module.check_layers()
    if settings.sharded:
        check_shardable(module)
    one = train.share(Share(0, settings.world))
    valid.share(Share(0, settings.world))  # so that too few careers are found out here
    with (
        tempfile.TemporaryDirectory() as scratch,
        devices.together(settings.devices, tracker, settings.sharded, settings.nodes) as (strategy, reachable),
    ):
        kept = folder or Path(scratch)
        trainer = lightning_trainer(
            settings,
            progress,
            strategy=strategy,
            callbacks=_fitting_callbacks(settings, kept, module.monitor),
            logger=TrackerLogger(reachable),
            max_epochs=settings.max_epochs,
            accumulate_grad_batches=one.parts,
            val_check_interval=round(one.steps * settings.validate_every) * one.parts or one.parts,
            precision=settings.resolved_precision,
            log_every_n_steps=min(10, len(one)),
            num_sanity_val_steps=0,
        )
        logger.info("products are computed in %s", PRODUCTS[settings.resolved_precision])
        with devices.raising_own_errors():
            data = devices.Shared(train, valid)
            last = checkpoints.existing(kept / "last.ckpt")
            trainer.fit(devices.worked_on(trainer, module), datamodule=data, ckpt_path=last, weights_only=True)
        _take_best(module, kept, trainer)


def _take_best(module: Training, folder: Path, trainer: L.Trainer) -> None:
    """Take over the weights of the best validation, as its file has them; a RunError if none was a number."""
    best = trainer.checkpoint_callback
    assert isinstance(best, ModelCheckpoint)
    last = checkpoints.read_rest(folder / "last.ckpt")
    score = last["callbacks"][best.state_key]["best_model_score"]
    if score is None or not torch.isfinite(score):
        raise RunError(
            f"training diverged: {module.monitor} was never a number up to step {last['global_step']}. "
            f"Lower {module.settings_key}.learning_rate (now {module.settings.learning_rate})."
        )
    module.load_trained(folder / "best.ckpt")


def lightning_trainer(settings: LoopSettings, progress: bool, **arguments: Any) -> L.Trainer:
    """A Trainer on the settings' devices, quiet but for its progress and its warnings."""
    devices.quiet()
    transformers_logging.disable_progress_bar()
    callbacks: list[Callback] = arguments.pop("callbacks", [])
    number = arguments.pop("devices", settings.devices)
    plugins: list[Any] = [] if isinstance(arguments["strategy"], Sharded) else [checkpoints.FileOrFolder()]
    if number * settings.nodes == 1:
        plugins.append(devices.OneMachine.alone())
    if settings.on_gpu and number > torch.cuda.device_count():
        raise ConfigError(f"devices={number}, but this machine has {torch.cuda.device_count()}: ask for fewer")
    return L.Trainer(
        accelerator="gpu" if settings.on_gpu else "cpu",
        devices=number,
        num_nodes=settings.nodes,
        callbacks=[*callbacks, *([training_progress()] if progress else [])],
        enable_progress_bar=progress,
        enable_model_summary=False,
        enable_checkpointing=bool(callbacks),
        use_distributed_sampler=False,
        plugins=plugins,
        **arguments,
    )


def predict_all(
    module: Training, batches: devices.Batches, precision: Precision, progress: bool
) -> list[devices.Outputs]:
    """What ``predict_step`` gives for every batch, those of one device after those of another."""
    settings = module.settings
    together = settings.sharded or starter(settings.devices, settings.nodes)
    number = settings.devices if together else min(settings.devices, len(batches))
    with devices.together(number, NoTracker(), settings.sharded, settings.nodes) as (strategy, _):
        how = {"devices": number, "strategy": strategy, "precision": precision, "logger": False}
        return devices.predicted(lightning_trainer(settings, progress, **how), module, batches)


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
        if trainer.global_step % self.every == 0 and _can_resume_here(trainer):
            self._save(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Keep the steps since the last checkpoint when the process is to end; Lightning lets a batch finish."""
        ends = isinstance(exception, SIGTERMException) and trainer.state.fn == TrainerFn.FITTING
        if ends and trainer.world_size == 1 and _can_resume_here(trainer):
            self._save(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        trainer.save_checkpoint(self.path)


def _can_resume_here(trainer: L.Trainer) -> bool:
    """Whether the last batch completed a step, and neither a validation nor the end of an epoch follows."""
    loop = trainer.fit_loop.epoch_loop
    batches = loop.batch_idx + 1
    stepped = batches % trainer.accumulate_grad_batches == 0
    validates = batches % int(trainer.val_check_batch or 1) == 0
    return stepped and not validates and not loop.batch_progress.is_last_batch


def _fitting_callbacks(settings: LoopSettings, folder: Path, monitor: str) -> list[Callback]:
    """Best weights, patience, and last of all the point to resume from, which holds the others' state."""
    stopping = EarlyStopping(monitor, mode="min", patience=settings.patience, check_on_train_epoch_end=False)
    kept = str(folder.absolute())  # Lightning would store a path of another kind that no checkpoint may hold
    best = ModelCheckpoint(
        kept, "best", monitor, mode="min", save_on_train_epoch_end=False, enable_version_counter=False
    )
    return [stopping, best, ResumePoint(folder / "last.ckpt", settings.checkpoint_every, stopping)]
