"""Training and scoring on several devices of one machine: a process each, by Lightning's DDP."""

import logging
import multiprocessing
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import pytorch_lightning as L
import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.strategies import DDPStrategy, Strategy
from torch.multiprocessing.spawn import ProcessRaisedException
from torch.utils.data import DataLoader

from labor_llm.errors import ConfigError, DataError, RunError
from labor_llm.shares import Share
from labor_llm.tracking import NoTracker, Tracker

Outputs = tuple[torch.Tensor, ...]
"""What is predicted of one batch."""


class Batches(Protocol):
    """Batches of all devices, from which each takes its share."""

    def share(self, share: Share) -> Any: ...

    def __len__(self) -> int: ...


class Shared(L.LightningDataModule):
    """Hands every device its share."""

    def __init__(
        self, train: Batches | None = None, valid: Batches | None = None, predict: Batches | None = None
    ) -> None:
        super().__init__()
        self.train, self.valid, self.predict = train, valid, predict

    def train_dataloader(self) -> Any:
        """Batches that know where the next one is."""
        assert self.train is not None
        return self.train.share(self._own)

    def val_dataloader(self) -> Any:
        """Batches to validate on."""
        assert self.valid is not None
        return self.valid.share(self._own)

    def predict_dataloader(self) -> Any:
        """Batches to predict."""
        assert self.predict is not None
        return DataLoader(self.predict.share(self._own), batch_size=None)

    @property
    def _own(self) -> Share:
        assert self.trainer is not None
        return Share(self.trainer.global_rank, self.trainer.world_size)


def quiet() -> None:
    """Keep Lightning's own messages and warnings about itself from a process."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*treespec, LeafSpec", module="pytorch_lightning")
    warnings.filterwarnings("ignore", ".*`broadcast_buffers` is deprecated", module="pytorch_lightning")


def strategy(devices: int) -> Strategy | str:
    """How Lightning lets so many devices work together."""
    return "auto" if devices == 1 else Processes()


class Processes(DDPStrategy):
    """A process for each device, which this one starts: nothing else of a run is done twice."""

    def __init__(self) -> None:
        super().__init__(
            start_method="spawn",
            cluster_environment=LightningEnvironment(),  # under Slurm too
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )

    def setup_environment(self) -> None:
        """Begin a process."""
        quiet()
        super().setup_environment()


def predicted(trainer: L.Trainer, module: L.LightningModule, batches: Batches) -> list[Outputs]:
    """What ``predict_step`` gives for every batch, those of one device after those of another."""
    data = Shared(predict=batches)
    if trainer.num_devices == 1:
        outputs: Any = trainer.predict(module, datamodule=data)
        return list(outputs)
    with TemporaryDirectory() as folder, raising_own_errors():
        trainer.callbacks.append(_Left(Path(folder)))  # type: ignore[attr-defined]
        trainer.predict(module, datamodule=data, return_predictions=False)
        files = sorted(Path(folder).iterdir())
        return [outputs for file in files for outputs in torch.load(file, weights_only=True)]


class _Left(Callback):
    """Lets each process leave what it predicted in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.outputs: list[Outputs] = []

    def on_predict_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, *_: Any) -> None:
        self.outputs.append(tuple(output.cpu() for output in outputs))

    def on_predict_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        torch.save(self.outputs, self.folder / f"{trainer.global_rank:04d}")


@contextmanager
def raising_own_errors() -> Iterator[None]:
    """Raise the mistakes that a device's process found as what they are."""
    try:
        yield
    except ProcessRaisedException as error:
        for kind in (ConfigError, DataError, RunError):
            _, named, message = str(error).rpartition(f"{kind.__module__}.{kind.__name__}: ")
            if named:
                raise kind(message.strip()) from error
        raise


@contextmanager
def reachable(tracker: Tracker, devices: int) -> Iterator[Tracker]:
    """The tracker or, for other processes, one that hands over to it what they log."""
    if devices == 1:
        yield tracker
        return
    queue = multiprocessing.get_context("spawn").SimpleQueue()
    thread = threading.Thread(target=_pass_on, args=(queue, tracker), daemon=True)
    thread.start()
    try:
        yield _Relay(queue)
    finally:
        queue.put(None)
        thread.join()


class _Relay(NoTracker):
    """Logs in another process."""

    def __init__(self, queue: "SimpleQueue[tuple[dict[str, float], int] | None]") -> None:
        self._queue = queue

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._queue.put((dict(metrics), step))


def _pass_on(queue: "SimpleQueue[tuple[dict[str, float], int] | None]", tracker: Tracker) -> None:
    while (logged := queue.get()) is not None:
        tracker.log(*logged)
