"""Adapters: which weights of a backbone are trained, if any, and how they are saved."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import torch
from peft import LoraConfig, PeftModel, PeftType, get_peft_model
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.quantization_config import QuantizationConfigMixin

from labor_llm.errors import ConfigError
from labor_llm.language.backbones import Backbone, HubBackbone
from labor_llm.language.model_files import ModelFiles
from labor_llm.language.quantized import check_trainable
from labor_llm.language.stored_adapters import merged, stored_adapter

logger = logging.getLogger(__name__)

SETTINGS = ConfigDict(extra="forbid")


class Adapter(ABC):
    """Makes a backbone trainable."""

    name: str
    learning_rate: float
    trains: ClassVar[bool] = True
    """Whether there is a training step at all."""

    @abstractmethod
    def base_dtype(self, mixed: torch.dtype) -> torch.dtype:
        """The type of the backbone's weights where matrix products are done in ``mixed``."""

    @property
    def quantization(self) -> QuantizationConfigMixin | None:
        """How the backbone's weights are packed, if they are."""
        return None

    @abstractmethod
    def apply(self, model: PreTrainedModel, backbone: Backbone, new_tokens: Sequence[int] = ()) -> PreTrainedModel:
        """The model with exactly the weights to train requiring gradients; they are float32.

        The embeddings of ``new_tokens`` are trained, and saved, in any case.
        """

    @abstractmethod
    def save(self, model: PreTrainedModel, folder: Path) -> None:
        """Write what was trained."""

    @abstractmethod
    def load(
        self, folder: Path, backbone: Backbone, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype
    ) -> PreTrainedModel:
        """The trained model again."""


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class FullFineTuning(Adapter):
    """No adapter: all weights are trained, as float32 masters."""

    name: str = "none"
    learning_rate: float = Field(gt=0)

    def base_dtype(self, mixed: torch.dtype) -> torch.dtype:
        return torch.float32

    def apply(self, model: PreTrainedModel, backbone: Backbone, new_tokens: Sequence[int] = ()) -> PreTrainedModel:
        check_trainable(model, backbone.name)
        return merged(model) if isinstance(model, PeftModel) else model

    def save(self, model: PreTrainedModel, folder: Path) -> None:
        model.save_pretrained(folder)

    def load(
        self, folder: Path, backbone: Backbone, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype
    ) -> PreTrainedModel:
        saved = HubBackbone(name=backbone.name, path=str(folder), attention=getattr(backbone, "attention", "sdpa"))
        return saved.model(tokenizer, dtype)


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class Frozen(Adapter):
    """Nothing is trained: the backbone off the shelf."""

    name: str = "frozen"
    learning_rate: float = Field(default=2e-5, gt=0)
    """Without effect: there for the trainer, which takes its own from the adapter."""
    trains: ClassVar[bool] = False

    def base_dtype(self, mixed: torch.dtype) -> torch.dtype:
        return mixed

    def apply(self, model: PreTrainedModel, backbone: Backbone, new_tokens: Sequence[int] = ()) -> PreTrainedModel:
        if not backbone.pretrained:
            raise ConfigError(
                f"adapter=frozen: backbone {backbone.name!r} has random weights, and nothing would train them. "
                "Use a backbone with weights such as backbone=gpt2, or adapter=none."
            )
        if new_tokens:
            raise ConfigError(
                "adapter=frozen: label=token adds a vocabulary entry per title, and nothing would train them. "
                "Use label=title, or adapter=lora."
            )
        return model.requires_grad_(False)

    def save(self, model: PreTrainedModel, folder: Path) -> None:
        """Nothing was trained."""

    def load(
        self, folder: Path, backbone: Backbone, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype
    ) -> PreTrainedModel:
        return self.apply(backbone.model(tokenizer, dtype), backbone)


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class Lora(Adapter):
    """Low-rank adapters on every linear layer (arXiv 2106.09685): base frozen, adapters in float32."""

    name: str = "lora"
    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32, gt=0)
    dropout: float = Field(default=0.05, ge=0, lt=1)
    learning_rate: float = Field(default=2e-4, gt=0)

    def base_dtype(self, mixed: torch.dtype) -> torch.dtype:
        return mixed

    def apply(self, model: PreTrainedModel, backbone: Backbone, new_tokens: Sequence[int] = ()) -> PreTrainedModel:
        if not backbone.pretrained:
            raise ConfigError(
                f"adapter=lora: backbone {backbone.name!r} has random weights; the adapter would be saved "
                "without them. Use adapter=none, or a backbone with weights such as backbone=gpt2."
            )
        if isinstance(model, PeftModel):
            return self._gone_on_from(model)
        config = LoraConfig(
            task_type="CAUSAL_LM",
            target_modules="all-linear",
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            trainable_token_indices=_embeddings(model, new_tokens),
        )
        try:
            return _in_float32(get_peft_model(model, config))
        except ValueError as error:
            raise self._refused(model, error) from error

    def _gone_on_from(self, model: PeftModel) -> PreTrainedModel:
        """The adapter that the backbone is, trained further; its own rank and alpha hold."""
        config = model.active_peft_config
        if config.peft_type != PeftType.LORA:
            raise ConfigError(
                f"adapter={self.name} goes on from LoRA adapters, and backbone.path leads to one of the kind "
                f"{config.peft_type.value}. adapter=none merges it and trains all weights."
            )
        logger.info("training goes on from it: its rank is %d, its alpha %g", config.r, config.lora_alpha)
        return _in_float32(model)

    def _refused(self, model: PreTrainedModel, error: ValueError) -> ConfigError:
        name = type(model).__name__
        if self.dropout and "lora_dropout" in str(error):  # of experts whose matrices are packed into one tensor
            return ConfigError(
                f"adapter.dropout: {name} packs weights of its experts, where PEFT has LoRA without dropout only. "
                f"Set adapter.dropout=0 (now {self.dropout:g})."
            )
        return ConfigError(f"adapter={self.name}: PEFT does not adapt {name} ({error}). Use adapter=none.")

    def save(self, model: PreTrainedModel, folder: Path) -> None:
        model.save_pretrained(folder, save_embedding_layers=False)

    def load(
        self, folder: Path, backbone: Backbone, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype
    ) -> PreTrainedModel:
        adapter = stored_adapter(ModelFiles(str(folder)))
        assert adapter is not None
        return adapter.put_on(backbone.base.model(tokenizer, dtype, self.quantization))


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class QLora(Lora):
    """LoRA on a base in 4-bit NormalFloat, its scales quantized too (arXiv 2305.14314); needs bitsandbytes."""

    name: str = "qlora"

    def __post_init__(self) -> None:
        if find_spec("bitsandbytes") is None:
            raise ValueError("adapter=qlora needs bitsandbytes: pip install 'labor-llm[quantization]'")
        if not torch.cuda.is_available():  # on CPUs, bitsandbytes 0.50 repacks weights for inference: no gradients
            raise ValueError("adapter=qlora needs a CUDA GPU, and PyTorch finds none here; use adapter=lora")

    @property
    def quantization(self) -> QuantizationConfigMixin | None:
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )


def _in_float32(adapted: PeftModel) -> PeftModel:
    """The model with what is trained in float32; peft leaves embeddings in the type of the base."""
    for weight in adapted.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
    return adapted


def _embeddings(model: PreTrainedModel, tokens: Sequence[int]) -> dict[str, list[int]] | None:
    """The tokens to train, by the name of the layers that embed them; a tied output follows the input."""
    if not tokens:
        return None
    layers = [model.get_input_embeddings()]
    if not model.config.get_text_config().tie_word_embeddings:
        layers.append(model.get_output_embeddings())
    names = {id(module): name for name, module in model.named_modules()}
    return {names[id(layer)]: list(tokens) for layer in layers}
