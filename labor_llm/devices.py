"""Training and scoring on several devices: a process each, by Lightning's strategies."""

import logging
import multiprocessing
import signal
import threading
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from logging.handlers import QueueHandler
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, TypeAlias, TypeVar

import pytorch_lightning as L
import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment, find_free_network_port
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.strategies import DDPStrategy, ParallelStrategy, Strategy
from pytorch_lightning.strategies.launchers.multiprocessing import _MultiProcessingLauncher, _WorkerOutput
from torch.multiprocessing.spawn import ProcessRaisedException
from torch.utils.data import DataLoader

from labor_llm.errors import ConfigError, DataError, RunError
from labor_llm.processes import starter
from labor_llm.sharding import EqualPasses, Sharded
from labor_llm.shares import Share
from labor_llm.tracking import NoTracker, Tracker

Module = TypeVar("Module", bound=L.LightningModule)
Outputs = tuple[torch.Tensor, ...]
"""What is predicted of one batch."""
Sent: TypeAlias = "SimpleQueue[tuple[dict[str, float], int] | logging.LogRecord]"
"""Metrics and their step, or lines of the log, from the devices' processes."""
REPLICATED: dict[str, Any] = {"broadcast_buffers": False, "gradient_as_bucket_view": True}
"""What DDP is told."""
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
        self.idle = False
        """Whether the device has nothing of its own to predict."""

    def train_dataloader(self) -> Any:
        """Batches that know where the next one is."""
        assert self.train is not None
        return self.train.share(self._own)

    def val_dataloader(self) -> Any:
        """Batches to validate on."""
        assert self.valid is not None
        return self.valid.share(self._own)

    def predict_dataloader(self) -> Any:
        """Batches to predict; a device without any repeats those of the first, to take part in its passes."""
        assert self.predict is not None
        own = self.predict.share(self._own)
        self.idle = not len(own)
        chosen = self.predict.share(Share(0, self._own.devices)) if self.idle else own
        return DataLoader(chosen, batch_size=None)

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


class OneMachine(LightningEnvironment):
    """This machine alone: the variables of a surrounding allocation change nothing."""

    @classmethod
    def alone(cls) -> "OneMachine":
        """For a single process, which is the one that logs."""
        environment = cls()
        environment.set_global_rank(0)
        return environment

    @property
    def main_address(self) -> str:
        """The machine itself."""
        return "127.0.0.1"

    @property
    def main_port(self) -> int:
        """A free port, the same in all processes."""
        if self._main_port == -1:
            self._main_port = find_free_network_port()
        return self._main_port

    @property
    def creates_processes_externally(self) -> bool:
        """Lightning starts them."""
        return False

    def node_rank(self) -> int:
        """There is no other machine."""
        return 0


@contextmanager
def together(
    devices: int, tracker: Tracker, sharded: bool = False, nodes: int = 1
) -> Iterator[tuple[Strategy | str, Tracker]]:
    """How Lightning lets so many devices work together, and what their metrics are to be told.

    Their processes are those that torchrun or srun started, or are started here.
    """
    if devices * nodes == 1:
        yield "auto", tracker
        return
    environment = starter(devices, nodes)
    if environment is not None:
        replicated = partial(DDPStrategy, cluster_environment=environment, **REPLICATED)
        yield Sharded(devices * nodes, environment) if sharded else replicated(), tracker
        return
    sent: Sent = multiprocessing.get_context("spawn").SimpleQueue()
    strategy: Replicas | Shards = Shards(sent, devices) if sharded else Replicas(sent)
    ended = threading.Event()
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


class _Started(ParallelStrategy):
    """A process for each device, which this one starts: nothing else of a run is done twice."""

    _sent: Sent

    def _configure_launcher(self) -> None:
        self._launcher = _Launcher(self, start_method="spawn")

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


class Replicas(_Started, DDPStrategy):
    """All weights on every device."""

    def __init__(self, sent: Sent) -> None:
        self._sent = sent
        super().__init__(cluster_environment=OneMachine(), **REPLICATED)


class Shards(_Started, Sharded):
    """A part of the weights on every device."""

    def __init__(self, sent: Sent, devices: int) -> None:
        self._sent = sent
        super().__init__(devices, OneMachine())


class _Launcher(_MultiProcessingLauncher):
    """Brings no weights back: the best ones are in a checkpoint."""

    def _collect_rank_zero_results(self, trainer: L.Trainer, results: Any) -> _WorkerOutput | None:
        if self._strategy.local_rank != 0:
            return None
        return _WorkerOutput(None, None, trainer.state, results, self.get_extra_results(trainer))


def worked_on(trainer: L.Trainer, module: Module) -> Module:
    """The module, or a copy on the same weights if it stays in this process: the trainer moves or shards it."""
    if not _started_elsewhere(trainer):
        return module
    weights = [weight for weight in module.parameters() if type(weight) is torch.nn.Parameter]
    same = {id(weight): torch.nn.Parameter(weight.detach(), weight.requires_grad) for weight in weights}
    return deepcopy(module, same)


def predicted(trainer: L.Trainer, module: L.LightningModule, batches: Batches) -> list[Outputs]:
    """What ``predict_step`` gives for every batch, those of one device after those of another."""
    data = Shared(predict=batches)
    if trainer.world_size == 1:
        outputs: Any = trainer.predict(module, datamodule=data)
        return list(outputs)
    if isinstance(trainer.strategy, Sharded):
        trainer.callbacks.append(EqualPasses())  # type: ignore[attr-defined]
    if _started_elsewhere(trainer):
        return _gathered(trainer, module, data)
    with TemporaryDirectory() as folder, raising_own_errors():
        trainer.callbacks.append(_Left(Path(folder)))  # type: ignore[attr-defined]
        trainer.predict(module, datamodule=data, return_predictions=False)
        files = sorted(Path(folder).iterdir())
        return [outputs for file in files for outputs in torch.load(file, weights_only=True)]


def _gathered(trainer: L.Trainer, module: L.LightningModule, data: Shared) -> list[Outputs]:
    """What all processes predict, in each of them: they may have no folder in common."""
    kept = _Kept()
    trainer.callbacks.append(kept)  # type: ignore[attr-defined]
    trainer.predict(worked_on(trainer, module), datamodule=data, return_predictions=False)
    everything: list[Any] = [None] * trainer.world_size
    group = torch.distributed.new_group(backend="gloo")
    torch.distributed.all_gather_object(everything, kept.outputs, group=group)
    torch.distributed.destroy_process_group(group)
    return [outputs for own in everything for outputs in own]


def _started_elsewhere(trainer: L.Trainer) -> bool:
    """Whether torchrun or srun started the processes, of which this is one."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    return trainer.world_size > 1 and environment is not None and environment.creates_processes_externally


class _Kept(Callback):
    """Keeps what this process predicts."""

    def __init__(self) -> None:
        self.outputs: list[Outputs] = []

    def on_predict_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, *_: Any) -> None:
        if not trainer.datamodule.idle:  # type: ignore[attr-defined]
            self.outputs.append(tuple(output.cpu() for output in outputs))


class _Left(_Kept):
    """Lets each process leave what it predicted in a folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

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
