"""Training and scoring on several devices of one machine: a process each, by Lightning's DDP."""

import logging
import multiprocessing
import signal
import threading
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from logging.handlers import QueueHandler
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, TypeAlias

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
Sent: TypeAlias = "SimpleQueue[tuple[dict[str, float], int] | logging.LogRecord]"
"""Metrics and their step, or lines of the log, from the devices' processes."""
PATIENCE = 0.05
"""Seconds between two looks at what they have sent."""


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
    warnings.filterwarnings("ignore", ".*sync_dist=True", module="pytorch_lightning")  # sums are over all devices


@contextmanager
def together(devices: int, tracker: Tracker) -> Iterator[tuple[Strategy | str, Tracker]]:
    """How Lightning lets so many devices work together, and what their metrics are to be told."""
    if devices == 1:
        yield "auto", tracker
        return
    sent: Sent = multiprocessing.get_context("spawn").SimpleQueue()
    strategy, ended = Processes(sent), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        received = pool.submit(_receive, sent, tracker, ended)
        try:
            yield strategy, _Relay(sent)
        except BaseException:
            strategy.stop()
            raise
        finally:
            ended.set()
        received.result()


class Processes(DDPStrategy):
    """A process for each device, which this one starts: nothing else of a run is done twice."""

    def __init__(self, sent: Sent) -> None:
        self._sent = sent
        super().__init__(
            start_method="spawn",
            cluster_environment=LightningEnvironment(),  # under Slurm too
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )

    def stop(self) -> None:
        """End the processes that still run, so that none goes on behind a run that is over."""
        if self.launcher is not None:
            self.launcher.kill(signal.SIGKILL)

    def setup_environment(self) -> None:
        """Begin a process; what it logs, this one writes."""
        quiet()
        logging.getLogger().addHandler(_Sender(self._sent))
        logging.getLogger().setLevel(logging.INFO if self.local_rank == 0 else logging.WARNING)
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


class _Relay(NoTracker):
    """Sends metrics to the process that has the tracker."""

    def __init__(self, sent: Sent) -> None:
        self._sent = sent

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._sent.put((dict(metrics), step))


class _Sender(QueueHandler):
    """Sends log records to the process that has the log."""

    def __init__(self, sent: Sent) -> None:
        super().__init__(sent)  # type: ignore[arg-type]
        self._sent = sent

    def enqueue(self, record: logging.LogRecord) -> None:
        self._sent.put(record)


def _receive(sent: Sent, tracker: Tracker, ended: threading.Event) -> None:
    """Log what the devices' processes send until they have ended; what the tracker raises is raised then."""
    failure: Exception | None = None
    while not (sent.empty() and ended.is_set()):
        if sent.empty():
            ended.wait(PATIENCE)
            continue
        logged = sent.get()
        if isinstance(logged, logging.LogRecord):
            logging.getLogger(logged.name).handle(logged)
        elif failure is None:
            try:
                tracker.log(*logged)
            except Exception as error:  # the processes wait for whoever reads what they send
                failure = error
    if failure is not None:
        raise failure
