"""How far long work has come: a bar where one can be seen to move, else lines in the log at a steady pace."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytorch_lightning as L
from pytorch_lightning.callbacks import ProgressBar, RichProgressBar
from rich.console import Console
from rich.progress import Progress

logger = logging.getLogger(__name__)

PACE = 60.0
"""Seconds between lines; a validation has one of its own."""


def training_progress() -> ProgressBar:
    """What Lightning's Trainer is to show of its work."""
    return RichProgressBar(console_kwargs={"stderr": True}) if _bar_shows() else LoggedProgress()


@contextmanager
def counting(what: str, shown: bool = True) -> Iterator[Callable[[int, int], None]]:
    """Yields a function that is told how much of the work is done, and of how much, and shows it."""
    if not shown:
        yield lambda done, total: None
    elif _bar_shows():
        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(what)
            yield lambda done, total: bar.update(task, completed=done, total=total)
    else:
        lines = Lines()
        yield lambda done, total: lines.say_if_due(f"{what}: {done:,} of {total:,}")


class Lines:
    """Lines in the log that end with the time since the beginning."""

    def __init__(self) -> None:
        self._started = self._last = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether the last line, or the beginning, was long enough ago."""
        return time.monotonic() - self._last >= PACE

    def say(self, text: str) -> None:
        """Write a line."""
        self._last = time.monotonic()
        logger.info("%s, after %s", text, timedelta(seconds=round(self._last - self._started)))

    def say_if_due(self, text: str) -> None:
        """Write a line unless there was one just now."""
        if self.due:
            self.say(text)


class LoggedProgress(ProgressBar):
    """A line per validation, and one a minute in training, in validation and in prediction."""

    def __init__(self) -> None:
        super().__init__()
        self._lines, self._enabled = Lines(), True

    def disable(self) -> None:
        """Processes on other devices than the first say nothing."""
        self._enabled = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._lines = Lines()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if self._enabled and self._lines.due:
            self._lines.say(f"{_place(trainer)}, loss {trainer.progress_bar_metrics['loss']:.4f}")

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        if self._enabled:
            batches = trainer.num_val_batches[0]
            self._lines.say_if_due(f"{_place(trainer)}, validation batch {batch_idx + 1:,} of {batches:,}")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._enabled:
            loss, perplexity = (trainer.progress_bar_metrics[name] for name in ("loss", "valid"))
            self._lines.say(f"{_place(trainer)}, loss {loss:.4f}, validation perplexity {perplexity:.4f}")

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._lines = Lines()

    def on_predict_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        if self._enabled:
            self._lines.say_if_due(f"predicted {batch_idx + 1:,} of {trainer.num_predict_batches[0]:,} batches")


def _place(trainer: L.Trainer) -> str:
    """Where training is, of all that it does unless its patience ends."""
    steps = f"step {trainer.global_step:,} of {trainer.estimated_stepping_batches:,}"
    return f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}, {steps}"


def _bar_shows() -> bool:
    console = Console(stderr=True)
    return console.is_terminal or console.is_jupyter
