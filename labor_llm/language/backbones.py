"""Backbones: the causal language models that are fine-tuned, from scratch or loaded, with their tokenizers."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import replace
from pickle import UnpicklingError
from typing import Any, Literal

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
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging
from transformers.utils.quantization_config import QuantizationConfigMixin

from labor_llm.errors import ConfigError
from labor_llm.language.model_files import ModelFiles
from labor_llm.language.phrases import with_phrases
from labor_llm.language.residual_dropout import add_dropout, configure_dropout

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
        if self.dropout:
            add_dropout(model, self.dropout)
        for weight in model.parameters():  # not buffers: angles of positions stay float32, as in a loaded model
            weight.data = weight.data.to(dtype)
        return model

    def skeleton(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        with torch.device("meta"):
            return self.model(tokenizer, torch.float32)


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class HubBackbone(Backbone):
    """Any causal language model by Hugging Face name, folder or GGUF file; no code from the hub is run."""

    name: str
    path: str
    """A name on the hub such as ``openai-community/gpt2``, or a folder or a GGUF file on this machine."""
    subfolder: str | None = None
    """Where the model lies within its repository or folder, such as ``ckpt_3``."""
    revision: str | None = None
    gguf_file: str | None = None
    """The GGUF file in a folder or repository; its weights are dequantized."""
    weights: Literal["safetensors", "pickle"] = "safetensors"
    """pickle: ``pytorch_model*.bin``, of which PyTorch then reads weights only."""
    pretrained: bool = True
    """False: the same architecture and tokenizer with random weights, to learn what pretraining is worth."""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """Of the embeddings and of what each layer adds to them, while training; None: as the model is configured."""
    attention: str = "sdpa"
    learning_rate: float = Field(default=2e-5, gt=0)
    fetch: str | None = None
    """The command that fetches the files, for the message if they are missing."""

    def __post_init__(self) -> None:
        if self.gguf_file and self.path.endswith(".gguf"):
            raise ValueError(f"path names a GGUF file already; leave out gguf_file={self.gguf_file}")

    def tokenizer(self, texts: Iterable[str]) -> PreTrainedTokenizerBase:
        files = self._checked_files()
        try:
            return AutoTokenizer.from_pretrained(files.folder, use_fast=True, **files.arguments)
        except (OSError, ValueError) as error:
            raise self._not_loaded("tokenizer", error) from error

    def model(
        self,
        tokenizer: PreTrainedTokenizerBase,
        dtype: torch.dtype,
        quantization: QuantizationConfigMixin | None = None,
    ) -> PreTrainedModel:
        files = self._checked_files()
        self._check_quantization(files, quantization)
        given = {"dtype": dtype, "attn_implementation": self.attention}
        try:
            if self.dropout is not None or not self.pretrained:
                given["config"] = self._config(files)
            if self.pretrained:
                model = self._loaded(files, quantization, given)
            else:  # new weights, from PyTorch's generator, which a run seeds
                model = AutoModelForCausalLM.from_config(trust_remote_code=False, **given)
        except (OSError, ValueError, UnpicklingError) as error:
            raise self._not_loaded("model", error) from error
        if self.dropout is not None:
            add_dropout(model, self.dropout)
        if len(tokenizer) > model.get_input_embeddings().num_embeddings:  # it was given tokens of its own
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        return model

    def skeleton(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        try:
            config = self._config(self._checked_files())
        except (OSError, ValueError) as error:
            raise self._not_loaded("config", error) from error
        config.vocab_size = max(config.vocab_size, len(tokenizer))
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        return model

    def at(self, revision: str | None) -> "HubBackbone":
        return replace(self, revision=self.revision or revision)

    def _checked_files(self) -> ModelFiles:
        """Where the model's files are, checked as far as they are on this machine; and the hub kept quiet."""
        files = ModelFiles(self.path, self.subfolder, self.revision, self.gguf_file, self.fetch)
        files.check()
        transformers_logging.disable_progress_bar()
        hub_logging.set_verbosity_error()
        return files

    def _config(self, files: ModelFiles) -> PretrainedConfig:
        config = AutoConfig.from_pretrained(files.folder, **files.arguments)
        if self.dropout is not None:
            configure_dropout(config, self.dropout)
        return config

    def _loaded(
        self, files: ModelFiles, quantization: QuantizationConfigMixin | None, given: dict[str, Any]
    ) -> PreTrainedModel:
        if files.gguf:  # dequantized, it is a model as any other
            given |= {"quantization_config": GgufConfig(dequantize=True)}
        else:
            given |= {"quantization_config": quantization, "use_safetensors": self.weights == "safetensors"}
        return AutoModelForCausalLM.from_pretrained(files.folder, weights_only=True, **files.arguments, **given)

    def _check_quantization(self, files: ModelFiles, quantization: QuantizationConfigMixin | None) -> None:
        if quantization is not None and not self.pretrained:
            raise ConfigError("backbone.pretrained=false: random weights are not quantized; use adapter=none")
        if quantization is not None and files.gguf:
            raise ConfigError(f"adapter=qlora does not quantize GGUF files such as {files.gguf}; use adapter=lora")

    def _not_loaded(self, part: str, error: Exception) -> ConfigError:
        reason = str(error).strip().splitlines()[0]
        if part == "model" and self.weights == "safetensors" and "safetensors" in str(error):
            return ConfigError(
                f"backbone.weights: {self.path!r} could not be loaded from safetensors ({reason}). If it has "
                "pytorch_model*.bin, backbone.weights=pickle reads the weights in it and runs no code."
            )
        return ConfigError(
            f"backbone.path: the {part} of {self.path!r} could not be loaded ({reason}). Without internet, copy "
            "the model's folder (config.json, tokenizer.json, *.safetensors) to this machine and set "
            "backbone.path=/its/folder (HF_HUB_OFFLINE=1 saves the wait); a gated model needs `hf auth login`."
        )
