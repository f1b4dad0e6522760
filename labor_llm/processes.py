"""The processes of a run that torchrun or srun started. All compute; the first alone writes, tracks and reports.

Each of them runs the whole command. They read the same prepared table, so they take the same steps in the same
order, and Lightning lets them train and score together. What only one process may do, the first does. The others
wait for it and receive its result.
"""

import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from labor_llm.errors import ConfigError, LaborLLMError, RunError

if TYPE_CHECKING:  # a model without a network needs neither
    from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
    from torch._C._distributed_c10d import Store
    from torch.distributed import ProcessGroup

T = TypeVar("T")
PATIENCE = timedelta(days=7)
"""How long the other processes wait for the first while it prepares or evaluates."""
LAST_WORDS = timedelta(seconds=10)
"""How long one process waits for another to give, or to take, the reason of a failure."""
REASON, HEARD = "labor_llm/reason", "labor_llm/heard"
"""Keys of the store that all processes reach."""
LOST = ("closed by peer", "reset by peer", "Broken pipe", "remote process exited")
"""Words in PyTorch's errors when another process has ended."""


@dataclass(frozen=True)
class Processes:
    """The processes of one run, and the place of this one among them."""

    rank: int = 0
    size: int = 1
    group: "ProcessGroup | None" = None
    store: "Store | None" = None

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def from_first(self, compute: Callable[[], T]) -> T:
        """What the first process computes, sent to all. If it fails there, the others end."""
        if self.size == 1:
            return compute()
        from torch import distributed

        sent: list[Any] = [False, None]
        try:
            if self.first:
                sent = [True, compute()]
        finally:
            distributed.broadcast_object_list(sent, src=0, group=self.group)
        if not sent[0]:
            raise SystemExit(2)
        computed: T = sent[1]
        return computed

    def after_first(self, compute: Callable[[], T]) -> T:
        """What every process computes, the others after the first: they find what it wrote."""
        done: list[T] = []
        self.from_first(lambda: done.append(compute()))
        return done[0] if done else compute()


ALONE = Processes()


def starter(devices: int, nodes: int) -> "ClusterEnvironment | None":
    """Lightning's view of the torchrun or srun that started a process for each device; None if neither did.

    A run on one device ignores the variables of a surrounding allocation.
    """
    if devices * nodes == 1:
        return None
    from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    if TorchElasticEnvironment.detect():
        started, here = (int(os.environ[name]) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
        _check("torchrun", started, here, devices, nodes)
        return TorchElasticEnvironment()
    started = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    if started > 1:
        _check("srun", started, started // int(os.environ.get("SLURM_STEP_NUM_NODES", "1")), devices, nodes)
        return _slurm()
    if nodes > 1:
        raise ConfigError(
            f"trainer.nodes={nodes}: start the same command on every machine, by torchrun (torchrun "
            f"--nnodes={nodes} --nproc-per-node={devices} ... -m labor_llm run ...) or srun (srun --nodes={nodes} "
            f"--ntasks-per-node={devices} labor-llm run ...)."
        )
    return None


def _check(tool: str, started: int, here: int, devices: int, nodes: int) -> None:
    """A ConfigError unless there is one process for each device."""
    if (started, here) != (devices * nodes, devices):
        raise ConfigError(
            f"{tool} started {started} processes, {here} of them on this machine, but trainer.devices={devices} "
            f"and trainer.nodes={nodes} need {devices * nodes}, {devices} on each machine. Make them agree."
        )


def _slurm() -> "ClusterEnvironment":
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

    try:
        return SLURMEnvironment(auto_requeue=False)  # the same command resumes by itself
    except RuntimeError as error:
        raise ConfigError(f"srun: {error}") from error


@contextmanager
def joined(devices: int, nodes: int, on_gpu: bool) -> Iterator[Processes]:
    """The processes that torchrun or srun started for a run; this one alone if the run starts others itself.

    If one of them fails, all end, and the first gives the reason.
    """
    if starter(devices, nodes) is None:
        yield ALONE
        return
    processes = _met(devices, nodes, on_gpu)
    if not processes.first:
        logging.disable(logging.WARNING)
        warnings.simplefilter("ignore")
    try:
        yield processes
    except Exception as error:
        end = _end_of_first(processes, error) if processes.first else _end_of_other(processes, error)
        if end is error:
            raise
        raise end from error


@cache
def _met(devices: int, nodes: int, on_gpu: bool) -> Processes:
    """Let the processes meet, once for all runs of a sweep. Lightning uses the group that it finds.

    Waiting for the first process has a group of its own, with more patience.
    """
    import torch
    from torch import distributed
    from torch.distributed.rendezvous import rendezvous

    environment = starter(devices, nodes)
    assert environment is not None
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = environment.main_address, str(environment.main_port)
    rank, size = environment.global_rank(), environment.world_size()
    on_gpu = on_gpu and torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(environment.local_rank())
    store, _, _ = next(rendezvous("env://", rank, size))
    distributed.init_process_group("nccl" if on_gpu else "gloo", store=store, rank=rank, world_size=size)
    return Processes(rank, size, distributed.new_group(backend="gloo", timeout=PATIENCE), store)


def _end_of_first(processes: Processes, error: Exception) -> Exception:
    """The error itself or, if it only shows that another process has ended, the other's reason."""
    if not _lost(error):
        return error
    assert processes.store is not None
    try:
        processes.store.wait([REASON], LAST_WORDS)
    except RuntimeError:
        return RunError(
            "another process of this run ended. If it left no message, the system may have ended it for lack of "
            "memory."
        )
    processes.store.set(HEARD, "")
    return RunError(processes.store.get(REASON).decode())


def _end_of_other(processes: Processes, error: Exception) -> BaseException:
    """Give the first process the reason and end without a message, unless it does not hear."""
    if _lost(error):
        return SystemExit(2)
    if not isinstance(error, LaborLLMError):
        return error
    from torch import distributed

    assert processes.store is not None
    processes.store.set(REASON, str(error))
    if distributed.get_backend() == "gloo":
        distributed.destroy_process_group()  # the others notice at once
    try:
        processes.store.wait([HEARD], LAST_WORDS)
    except RuntimeError:
        return error
    time.sleep(1)  # torchrun ends all processes as soon as one has ended: the first is to be heard before
    return SystemExit(2)


def _lost(error: Exception) -> bool:
    """Whether an error says no more than that another process has ended."""
    return isinstance(error, RuntimeError) and any(word in str(error) for word in LOST)
