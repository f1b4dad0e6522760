"""Backbones: the causal language models that are fine-tuned, from scratch or loaded, with their tokenizers."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import logging as hub_logging
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging
from transformers.utils.quantization_config import QuantizationConfigMixin

from labor_llm.dropout import Dropout
from labor_llm.errors import ConfigError
from labor_llm.language.phrases import with_phrases

SETTINGS = ConfigDict(extra="forbid")
BOS, PAD = "<|begin|>", "<|pad|>"
FIRST_ADDED = 0.1
"""Share of its usual weights with which a layer from scratch begins to write."""


class Backbone(ABC):
    """Where a language model and its tokenizer come from."""

    name: str
    learning_rate: float
    """Peak learning rate when all weights are trained."""
    pretrained: bool

    @abstractmethod
    def tokenizer(self, texts: Iterable[str]) -> PreTrainedTokenizerBase:
        """The tokenizer; one that is made from scratch learns from the training texts."""

    @abstractmethod
    def model(
        self,
        tokenizer: PreTrainedTokenizerBase,
        dtype: torch.dtype,
        quantization: QuantizationConfigMixin | None = None,
    ) -> PreTrainedModel:
        """The model with its weights in the given type, or quantized."""

    @abstractmethod
    def skeleton(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        """The model without its weights, on the meta device: only its configuration is read."""

    def at(self, revision: str | None) -> "Backbone":
        """The same weights again, as they were when an adapter was trained on them."""
        return self


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class ScratchBackbone(Backbone):
    """A Llama of any size with random weights and a byte-level BPE of its own: nothing to download."""

    name: str
    layers: int = Field(ge=1)
    width: int = Field(ge=8)
    heads: int = Field(ge=1)
    feed_forward: int = Field(ge=8)
    vocabulary: int = Field(ge=300, le=100_000)
    """Tokens of single words and of parts of words."""
    phrases: int = Field(default=0, ge=0)
    """More tokens, of several words up to a whole line: shorter careers, and titles share less."""
    context: int = Field(default=1024, ge=16)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Of the embeddings and of what each layer adds to them, while training."""
    learning_rate: float = Field(gt=0)
    pretrained: bool = False

    def __post_init__(self) -> None:
        if self.width % (2 * self.heads):  # positions turn pairs of a head's numbers
            raise ValueError(
                f"width must be a multiple of twice the heads, {2 * self.heads}, got width={self.width}"
            )

    def tokenizer(self, texts: Iterable[str]) -> PreTrainedTokenizerBase:
        bpe = Tokenizer(BPE())
        bpe.pre_tokenizer = ByteLevel(add_prefix_space=False)
        bpe.decoder = ByteLevelDecoder()
        trainer = BpeTrainer(
            vocab_size=self.vocabulary,
            special_tokens=[BOS, PAD],
            initial_alphabet=ByteLevel.alphabet(),
            show_progress=False,
        )
        texts = list(texts)
        bpe.train_from_iterator(texts, trainer)
        bpe = with_phrases(bpe, texts, self.phrases) if self.phrases else bpe
        bpe.post_processor = TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, bpe.token_to_id(BOS))])
        return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=BOS, pad_token=PAD)

    def model(
        self,
        tokenizer: PreTrainedTokenizerBase,
        dtype: torch.dtype,
        quantization: QuantizationConfigMixin | None = None,
    ) -> PreTrainedModel:
        if quantization is not None:
            raise ConfigError(
                f"backbone {self.name!r} is trained from random weights; only loaded ones are quantized"
            )
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=self.width,
            intermediate_size=self.feed_forward,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            max_position_embeddings=self.context,
            tie_word_embeddings=True,
            initializer_range=(2 * self.width) ** -0.5,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=None,
            pad_token_id=tokenizer.pad_token_id,
        )
        model = LlamaForCausalLM(config)
        added = [part for layer in model.model.layers for part in (layer.self_attn.o_proj, layer.mlp.down_proj)]
        with torch.no_grad():
            for part in added:  # so that a token is not drowned in what random layers add to it
                part.weight.mul_(FIRST_ADDED)
        for part in (model.model.embed_tokens, *added) if self.dropout else ():  # Llama has none of its own
            part.add_module("dropout", Dropout(self.dropout))
            part.register_forward_hook(_dropped_output)
        for weight in model.parameters():  # not buffers: angles of positions stay float32, as in a loaded model
            weight.data = weight.data.to(dtype)
        return model

    def skeleton(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        with torch.device("meta"):
            return self.model(tokenizer, torch.float32)


def _dropped_output(part: Any, _: Any, output: Tensor) -> Tensor:
    """A hook: what a layer gives, through its dropout."""
    dropped: Tensor = part.dropout(output)
    return dropped


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class HubBackbone(Backbone):
    """Any causal language model by Hugging Face name or folder; safetensors only, no code from the hub."""

    name: str
    path: str
    """A name on the hub, such as ``openai-community/gpt2``, or a folder on this machine."""
    revision: str | None = None
    attention: str = "sdpa"
    learning_rate: float = Field(default=2e-5, gt=0)
    pretrained: bool = True

    def tokenizer(self, texts: Iterable[str]) -> PreTrainedTokenizerBase:
        self._prepare()
        try:
            return AutoTokenizer.from_pretrained(self._source, revision=self.revision, use_fast=True)
        except (OSError, ValueError) as error:
            raise self._not_loaded("tokenizer", error) from error

    def model(
        self,
        tokenizer: PreTrainedTokenizerBase,
        dtype: torch.dtype,
        quantization: QuantizationConfigMixin | None = None,
    ) -> PreTrainedModel:
        self._prepare()
        try:
            model = AutoModelForCausalLM.from_pretrained(
                self._source,
                revision=self.revision,
                dtype=dtype,
                attn_implementation=self.attention,
                quantization_config=quantization,
                use_safetensors=True,
            )
        except (OSError, ValueError) as error:
            raise self._not_loaded("model", error) from error
        if len(tokenizer) > model.get_input_embeddings().num_embeddings:  # it was given tokens of its own
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        return model

    def skeleton(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        self._prepare()
        try:
            config = AutoConfig.from_pretrained(self._source, revision=self.revision)
        except (OSError, ValueError) as error:
            raise self._not_loaded("config", error) from error
        config.vocab_size = max(config.vocab_size, len(tokenizer))
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
        return model

    def at(self, revision: str | None) -> "HubBackbone":
        return replace(self, revision=self.revision or revision)

    def _prepare(self) -> None:
        """Refuse a folder that is not there, which the hub would take for a name; and keep the hub quiet."""
        if self.path.startswith(("/", ".", "~")) and not Path(self._source).is_dir():
            raise ConfigError(f"backbone.path: there is no folder {self.path!r} on this machine.")
        transformers_logging.disable_progress_bar()
        hub_logging.set_verbosity_error()

    @property
    def _source(self) -> str:
        return str(Path(self.path).expanduser())

    def _not_loaded(self, part: str, error: Exception) -> ConfigError:
        reason = str(error).strip().splitlines()[0]
        return ConfigError(
            f"backbone.path: the {part} of {self.path!r} could not be loaded ({reason}). Without internet, copy "
            "the model's folder (config.json, tokenizer.json, *.safetensors) to this machine and set "
            "backbone.path=/its/folder (HF_HUB_OFFLINE=1 saves the wait); a gated model needs `hf auth login`."
        )
