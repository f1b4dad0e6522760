"""How much memory a run needs on each device: estimated from configurations, before any weights are loaded.

What stands at the same time, at most, in bytes of one device:

* training: weights and optimizer states all the time; and the more of
  1. copies of float32 weights in the type of the products, activations, and what the loss holds,
  2. gradients, and what an update computes with;
* scoring: weights, keys and values of the careers and of the titles' trees, and the logits of one pass.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from importlib.util import find_spec
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from labor_llm.errors import ConfigError, LaborLLMError
from labor_llm.language.activations import Activations, count_activations
from labor_llm.language.adapters import Adapter, Lora
from labor_llm.language.backbones import Backbone
from labor_llm.language.finetune import TrainerSettings
from labor_llm.language.free_memory import free_memory
from labor_llm.language.loss import COLUMNS, ROWS
from labor_llm.language.optimizers import PIECE, OptimizerName
from labor_llm.language.quantized import packed_bits
from labor_llm.language.scoring import Scoring, tokens_per_pass
from labor_llm.language.title_scorer import CPU_NODES

logger = logging.getLogger(__name__)

GB = 1e9
STATES: dict[OptimizerName, float] = {"adamw": 8, "adamw_8bit": 2 * (1 + 4 / 256), "adafactor": 0}
"""Bytes of an optimizer's states per weight."""
UPDATE = 6 * 4 * PIECE
"""Bytes that the update of a piece computes with: its weights, gradient and states in float32, and results."""
MATRICES = (nn.Linear, Conv1D)
HOLES, HOLES_GPU = 0.3, 0.1
"""Bytes lost between tensors, per byte of activations: in glibc's heap (0.2 to 0.4 seen), on a GPU (a guess)."""
FEWEST_TOKENS = 64
QUANTIZED = (4 + 0.127) / 8
"""Bytes of a weight in 4-bit NormalFloat whose scales are quantized too (arXiv 2305.14314, section 3)."""


@dataclass(frozen=True)
class Estimate:
    """Bytes of one device."""

    weights: float
    states: float
    """Of the optimizer."""
    gradients: float
    update: float
    """What the update of the weights computes with, or the sum of the embeddings' gradients before it."""
    copies: float
    """Float32 weights in the type of the products, made anew in every step."""
    activations: float
    logits: float
    """With the gradient of the output layer, which the loss computes."""
    scoring: float
    """Of scoring, weights not included."""

    @property
    def training(self) -> float:
        """The most that stands together while a model is trained."""
        forward = self.copies + self.activations + self.logits
        return self.weights + self.states + max(forward, self.gradients + self.update)

    @property
    def scored(self) -> float:
        """The most that stands together while records are scored."""
        return self.weights + self.scoring

    @property
    def peak(self) -> float:
        """The most of the whole run."""
        return max(self.training, self.scored)

    def __str__(self) -> str:
        parts = [(field.name, getattr(self, field.name)) for field in fields(self)]
        return ", ".join(f"{name} {size / GB:.2f}" for name, size in parts if size)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is known of a run before its model is loaded."""

    backbone: Backbone
    adapter: Adapter
    tokenizer: PreTrainedTokenizerBase
    settings: TrainerSettings
    scoring: Scoring
    lengths: tuple[int, ...]
    """Tokens of the longest careers, the longest first."""
    tree: int = 1
    """Nodes of the titles' tree."""
    shards: int = 1
    """Devices that share weights, gradients and states among them."""

    @cached_property
    def device(self) -> torch.device:
        """Where a model computes."""
        return torch.device("cuda" if self.settings.on_gpu else "cpu")

    @cached_property
    def mixed(self) -> bool:
        """Whether products are computed in bfloat16."""
        return self.settings.resolved_precision == "bf16-mixed"

    @cached_property
    def network(self) -> PreTrainedModel:
        """The model without its weights, as it is trained."""
        skeleton = self.backbone.skeleton(self.tokenizer)
        for weight in skeleton.parameters():
            weight.data = weight.data.to(self.dtype)
        return self.adapter.apply(skeleton, self.backbone)

    @cached_property
    def dtype(self) -> torch.dtype:
        """The type of the backbone's weights."""
        if self.settings.weights == "bf16":
            return torch.bfloat16
        return self.adapter.base_dtype(torch.bfloat16 if self.mixed else torch.float32)

    @cached_property
    def counted(self) -> Activations:
        """What a token's layers keep."""
        return count_activations(
            self.network.config,
            self.adapter,
            self.backbone,
            self.dtype,
            self.mixed,
            self.settings.layout,
            self.device,
        )

    @cached_property
    def estimate(self) -> Estimate:
        """Bytes of one device."""
        training = self._training() if self.adapter.trains else dict.fromkeys(TRAINING, 0.0)
        weights = sum(self._size(name, weight) for name, weight in self.network.named_parameters())
        return Estimate(
            weights=weights / self.shards + self._gathered(weights), scoring=self._scoring(), **training
        )

    def _training(self) -> dict[str, float]:
        trained = [weight for weight in self.network.parameters() if weight.requires_grad]
        output = self._output
        own_size = output.element_size() if output.requires_grad else 0
        gradients = sum(weight.nbytes for weight in trained) / self.shards
        pieces = self.settings.optimizer != "adamw" or trained[0].dtype != torch.float32
        states = STATES[self.settings.optimizer] * sum(weight.numel() for weight in trained) / self.shards
        if self.settings.update_in_backward:
            gradients, pieces = max(weight.nbytes for weight in trained), True
        return {
            "states": states,
            "gradients": gradients,
            "update": max(UPDATE if pieces else 0, 2 * output.numel() * own_size),
            "copies": self._copies(),
            "activations": self._activations(),
            "logits": self._loss(sum(self.step)),
        }

    @property
    def step(self) -> list[int]:
        """The lengths of the largest forward pass: the panel's longest careers together."""
        careers = min(self.settings.micro_batch_size, self.settings.batch_size // self.settings.devices)
        longest = list(self.lengths[:careers])
        return [longest[0]] * len(longest) if self.settings.layout == "padded" else longest

    def _activations(self) -> float:
        """What layers keep for the gradients, with the holes between."""
        kept = self.counted.kept(self.step, self._layers, self.settings.gradient_checkpointing)
        return kept * (1 + (HOLES if self.device.type == "cpu" else HOLES_GPU))

    def _copies(self) -> float:
        """Autocast keeps a copy of each float32 matrix that is trained, from the forward pass to its gradient."""
        if not self.mixed:
            return 0
        matrices = [module.weight for module in self.network.modules() if isinstance(module, MATRICES)]
        copied = [w for w in matrices if w.requires_grad and w.dtype == torch.float32 and w is not self._output]
        return 2 * sum(weight.numel() for weight in copied)

    def _loss(self, tokens: int) -> float:
        """The larger of the forward and the backward pass of ``labor_llm.language.loss``.

        Forward: one tile in float32, those kept for the gradient of the output layer in the type of the products,
        that gradient, and a copy of the layer in that type. Backward: the gradient once more, in its own type.
        """
        vocabulary, width = self._output.shape
        product = 2 if self.mixed else 4
        rows = min(ROWS, tokens)
        columns = min(COLUMNS, vocabulary) if self.device.type == "cpu" else vocabulary
        states = tokens * width * (4 + product) + rows * width * 4 * 4
        own = self._output.element_size()
        copy = vocabulary * width * product if own != product else 0
        if not self._output.requires_grad:
            return rows * columns * (4 + product) + states + copy
        matrix = vocabulary * width
        reordered = 2 * product * columns * width if self.device.type == "cpu" and self.mixed else 0  # by oneDNN
        forward = rows * (columns * 4 + vocabulary * product) + copy + reordered + matrix * 4
        backward = matrix * (4 + 4 + (own if own != 4 else 0))
        return states + max(forward, backward)

    def _scoring(self) -> float:
        """Keys and values of careers and nodes, logits of the nodes and their exponentials, a layer's results."""
        config = self.network.config.get_text_config()
        vocabulary, size = len(self._output), 2 if self.mixed else 4
        tokens = tokens_per_pass(self.scoring, vocabulary)
        read = min(tokens, max(sum(self.lengths), self.lengths[0]))
        most = min(tokens, CPU_NODES) if self.device.type == "cpu" else tokens
        tree = max(1, self.tree)  # one token a title: no inner node
        nodes = most if tree > most else most // tree * tree  # whole trees
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        cache = 2 * heads * head * size * self._layers * (read + nodes)
        layer = config.hidden_size * 4 * 12 * max(read, nodes)
        return cache + layer + nodes * vocabulary * (size + 4 + 4)

    def _size(self, name: str, weight: torch.Tensor) -> float:
        """Bytes of a weight; the matrices of a quantized backbone are packed."""
        if self._packed is None or weight.requires_grad or weight.ndim != 2 or "embed" in name:
            return weight.nbytes
        return weight.numel() * self._packed

    @cached_property
    def _packed(self) -> float | None:
        """Bytes of a weight in the backbone's matrices, if an adapter or the checkpoint packs them."""
        if self.adapter.quantization is not None:
            return QUANTIZED
        bits = packed_bits(self.network.config)
        return None if bits is None else bits / 8

    def _gathered(self, weights: float) -> float:
        """Shards of a layer and of the next are gathered while they compute."""
        return 0 if self.shards == 1 else 2 * (weights - self._output.nbytes) / self._layers

    @cached_property
    def _output(self) -> torch.Tensor:
        output: torch.Tensor = self.network.get_output_embeddings().weight
        return output

    @property
    def _layers(self) -> int:
        return int(self.network.config.get_text_config().num_hidden_layers)


TRAINING = ("states", "gradients", "update", "copies", "activations", "logits")


def longest(lengths_P: NDArray[np.int64], careers: int) -> tuple[int, ...]:
    """The lengths of the longest careers, the longest first."""
    return tuple(np.sort(lengths_P)[::-1][:careers].tolist())


def check_memory(plan: Plan) -> None:
    """Log the estimate; a ConfigError with what would make the run fit if it does not.

    Of an architecture whose layers cannot be counted nothing is known: it is tried.
    """
    settings = plan.settings
    try:
        with torch.random.fork_rng():  # the model's weights are drawn next
            estimate = plan.estimate
    except LaborLLMError:
        raise
    except Exception as error:  # any code of any architecture
        logger.warning(
            "memory is not estimated: the layers of %s cannot be counted (%s: %s)",
            plan.backbone.name,
            type(error).__name__,
            error,
        )
        return
    free = free_memory(plan.device, 1 if settings.on_gpu else settings.devices)
    purpose = f"training {estimate.training / GB:.2f}, " if plan.adapter.trains else ""
    logger.info(
        "memory per device, estimated, in GB: %sscoring %.2f; free %.2f (%s)",
        purpose,
        estimate.scored / GB,
        free / GB,
        estimate,
    )
    if estimate.peak > free:
        with torch.random.fork_rng():
            message = _refusal(plan, free)
        if settings.check_memory:
            raise ConfigError(message)
        logger.warning("%s", message)


def _refusal(plan: Plan, free: int) -> str:
    lines = [
        f"the run needs about {plan.estimate.peak / GB:.2f} GB on each device, and {free / GB:.2f} GB are free. "
        "These settings need less, from the cheapest on, each together with those above it:"
    ]
    for text, tried in chain(_cheaper(plan, free), _others(plan, free)):
        fits = "fits" if tried.estimate.peak <= free else "not enough"
        lines.append(f"  {text}: {tried.estimate.peak / GB:.2f} GB, {fits}")
    lines.append("trainer.check_memory=false tries it all the same.")
    return "\n".join(lines)


def _cheaper(plan: Plan, free: int) -> Iterator[tuple[str, Plan]]:
    """Changes that keep what is trained, one upon the other, until the run fits."""
    if plan.estimate.scored > free:
        plan = _smaller_passes(plan, free)
        yield f"scoring.max_tokens={plan.scoring.max_tokens}", plan
    if not plan.adapter.trains:
        return
    for text, change in _changes(plan.settings, full=plan.adapter.name == "none"):
        if plan.estimate.peak <= free:
            return
        tried = replace(plan, settings=replace(plan.settings, **change))
        if tried.estimate.training < plan.estimate.training or tried.estimate.scored < plan.estimate.scored:
            plan = tried
            yield text, plan


def _smaller_passes(plan: Plan, free: int) -> Plan:
    """Fewer tokens scored at once, half of them each time."""
    while plan.estimate.scored > free and plan.scoring.max_tokens > FEWEST_TOKENS:
        plan = replace(plan, scoring=replace(plan.scoring, max_tokens=plan.scoring.max_tokens // 2))
    return plan


def _changes(settings: TrainerSettings, full: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Settings that need less memory, from the cheapest on."""
    careers = 0 if settings.update_in_backward else settings.micro_batch_size // 2
    while careers:
        yield f"trainer.micro_batch_size={careers}", {"micro_batch_size": careers}
        careers //= 2
    yield "trainer.gradient_checkpointing=true", {"gradient_checkpointing": True}
    if settings.precision != "32-true":
        yield "trainer.precision=bf16-mixed", {"precision": "bf16-mixed"}
    if full:
        if settings.optimizer == "adamw" and find_spec("bitsandbytes") is not None:
            yield "trainer.optimizer=adamw_8bit", {"optimizer": "adamw_8bit"}
        yield "trainer.weights=bf16", {"weights": "bf16", "precision": "bf16-mixed"}
        yield "trainer.optimizer=adafactor", {"optimizer": "adafactor"}
        if settings.devices == 1 and not settings.update_in_backward:
            yield (
                f"trainer.update_in_backward=true trainer.micro_batch_size={settings.batch_size} "
                "trainer.clip_norm=null",
                {"update_in_backward": True, "micro_batch_size": settings.batch_size, "clip_norm": None},
            )


def _others(plan: Plan, free: int) -> Iterator[tuple[str, Plan]]:
    """What changes the model, or asks for more devices."""
    if plan.adapter.name == "none" and plan.backbone.pretrained:
        yield "adapter=lora instead", replace(plan, adapter=Lora())
    for shards in (2, 4, 8):
        tried = replace(plan, shards=shards)
        if tried.estimate.peak <= free:
            yield f"trainer.strategy=fsdp trainer.devices={shards} instead", tried
            return
