"""Weights, gradients and optimizer states in shards: every device keeps its part, PyTorch's FSDP2 gathers layers.

Lightning's FSDPStrategy wraps FSDP1 and refuses CPUs. Its ModelParallelStrategy leaves the sharding to the module
(``configure_model``) and runs on CPUs, too: what is tested there is what runs on GPUs.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytorch_lightning as L
import torch
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from labor_llm import checkpoints
from labor_llm.errors import ConfigError

STEPS = ("training_step", "validation_step")
"""What FSDP2 takes for forward passes of the module that trains."""


def shard_for_training(module: L.LightningModule, layers: Iterable[nn.Module], mesh: DeviceMesh) -> None:
    """Shard each layer and the rest, embeddings and head, over the mesh.

    The rest is whole during a whole step, since the loss uses the head outside of the network's own forward pass.
    """
    for part in (*layers, module):
        fully_shard(part, mesh=mesh)
    for step in STEPS:
        register_fsdp_forward_method(module, step)


def shard_for_scoring(network: nn.Module, layers: Iterable[nn.Module], mesh: DeviceMesh) -> None:
    """Shard likewise; the rest is whole from the first forward pass on."""
    for part in (*layers, network):
        fully_shard(part, mesh=mesh)


def check_shardable(network: nn.Module) -> None:
    """A ConfigError if the weights of a network cannot be sharded."""
    if not all(parameter.is_floating_point() for parameter in network.parameters()):
        raise ConfigError(
            "trainer.strategy=fsdp shards weights in floating point, and some of these are packed. Use "
            "adapter=lora, or trainer.strategy=ddp."
        )


class Sharded(ModelParallelStrategy):
    """One shard of the weights for each device; checkpoints are folders of shards."""

    def __init__(self, devices: int, environment: ClusterEnvironment) -> None:
        super().__init__(data_parallel_size=devices, tensor_parallel_size=1)
        self.cluster_environment = environment

    @property
    def mesh(self) -> DeviceMesh:
        """All devices in a row."""
        return self.device_mesh["data_parallel"]

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The shards of what is trained."""
        assert self.model is not None
        options = StateDictOptions(ignore_frozen_params=True, cpu_offload=True)
        return get_model_state_dict(self.model, options=options)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Write a folder, together with the other devices."""
        checkpoints.write_shards(checkpoint, Path(filepath), self.is_global_zero, self.barrier)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Take over the weights and the optimizers' states; what is returned is the rest."""
        path = Path(checkpoint_path)
        return self._from_folder(path) if path.is_dir() else self._from_file(path)

    def _from_folder(self, path: Path) -> dict[str, Any]:
        model = self._module
        weights = get_model_state_dict(model, options=StateDictOptions(ignore_frozen_params=True))
        trained = [name for name, value in model.named_parameters() if value.requires_grad]
        states = [get_optimizer_state_dict(model, optimizer) for optimizer in self.optimizers]
        like = {"state_dict": {name: weights[name] for name in trained}, "optimizer_states": states}
        rest = checkpoints.read_shards(path, like)
        for optimizer, state, kept in zip(self.optimizers, states, rest["optimizer_states"], strict=True):
            filled: dict[str, Any] = state["state"]  # type: ignore[assignment]
            both = {name: values | kept["state"][name] for name, values in filled.items()}
            set_optimizer_state_dict(model, optimizer, kept | {"state": both})
        return rest

    def _from_file(self, path: Path) -> dict[str, Any]:
        """That of one device, of which each takes its shards."""
        checkpoint, model = checkpoints.read_rest(path), self._module
        options = StateDictOptions(full_state_dict=True, strict=False)
        set_model_state_dict(model, checkpoint.pop("state_dict"), options=options)
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        for number, optimizer in enumerate(self.optimizers):
            order = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
            state = checkpoints.named(checkpoint["optimizer_states"][number], order)
            set_optimizer_state_dict(model, optimizer, state, options=options)
        return checkpoint

    @property
    def _module(self) -> nn.Module:
        assert self.model is not None
        return self.model


class EqualPasses(Callback):
    """Lets devices score batches that need different numbers of passes through the network.

    Every pass gathers the layers from all devices, so all must make equally many. Before each pass the devices ask
    whether any of them still scores. One that has finished makes passes over a single token until none does.
    """

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        network = pl_module.model
        assert isinstance(network, nn.Module)

        def ask(*_: Any) -> None:
            self._any_scores(trainer, True)

        self._asking = network.register_forward_pre_hook(ask)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._asking.remove()
        token = torch.zeros(1, 1, dtype=torch.long, device=pl_module.device)
        while self._any_scores(trainer, False):
            with trainer.precision_plugin.predict_step_context():
                pl_module.model(token, use_cache=False)  # type: ignore[operator]

    @staticmethod
    def _any_scores(trainer: L.Trainer, this_one: bool) -> bool:
        return trainer.strategy.reduce_boolean_decision(this_one, all=False)
