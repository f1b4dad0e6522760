"""Backbones: the causal language models that are fine-tuned, from scratch or loaded, with their tokenizers."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import fields, replace
from functools import cached_property

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils.quantization_config import QuantizationConfigMixin

from labor_llm.errors import ConfigError
from labor_llm.language.checkpoint import Checkpoint, WeightFormat
from labor_llm.language.model_files import ModelFiles
from labor_llm.language.phrases import with_phrases
from labor_llm.language.residual_dropout import add_dropout, configure_dropout
from labor_llm.language.stored_adapters import StoredAdapter, stored_adapter
from labor_llm.language.token_rows import add_rows, check_rows, rows_of

logger = logging.getLogger(__name__)

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

    @property
    def base(self) -> "Backbone":
        """The backbone without the adapter that it is, if it is one."""
        return self

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
    weights: WeightFormat = "safetensors"
    """pickle: ``pytorch_model*.bin`` if there is nothing else; PyTorch then reads weights only."""
    dequantize: bool = False
    """Unpack a checkpoint that is quantized already: FP8, MXFP4, compressed-tensors or bitsandbytes."""
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
        self._checkpoint.check(self.pretrained)
        if self._adapter is None:
            self._checkpoint.config()  # whether it is a language model at all
        elif self._files.find("tokenizer_config.json") is None:
            return self.base.tokenizer(texts)
        return self._checkpoint.tokenizer()

    def model(
        self,
        tokenizer: PreTrainedTokenizerBase,
        dtype: torch.dtype,
        quantization: QuantizationConfigMixin | None = None,
    ) -> PreTrainedModel:
        self._checkpoint.check(self.pretrained)
        if self._adapter is not None:
            return self._adapted(self._adapter, tokenizer, dtype, quantization)
        config = self._config()
        if self.pretrained:
            model = self._checkpoint.model(config, dtype, quantization)
        elif quantization is None:
            model = self._checkpoint.random_model(config, dtype)
        else:
            raise ConfigError("backbone.pretrained=false: random weights are not quantized; use adapter=none")
        if self.dropout is not None:
            add_dropout(model, self.dropout)
        self._add_rows(model, tokenizer)
        return model

    def skeleton(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        self._checkpoint.check(self.pretrained)
        if self._adapter is not None:
            return self.base.skeleton(tokenizer)
        config = self._config()
        text = config.get_text_config()  # of a model that sees or hears, too
        text.vocab_size = max(text.vocab_size, len(tokenizer))
        if self.dequantize:
            config.quantization_config = None
        with torch.device("meta"), self._checkpoint.reading("config"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        return model

    def at(self, revision: str | None) -> "HubBackbone":
        if self._adapter is not None and not self._files.inner.is_dir():
            return self  # the revision is one of the adapter's base
        return replace(self, revision=self.revision or revision)

    @property
    def base(self) -> "HubBackbone":
        if (adapter := self._adapter) is None:
            return self
        here = {field.name: getattr(self, field.name) for field in fields(self)}
        if adapter.base is not None:
            here |= {"path": adapter.base, "subfolder": None, "revision": adapter.config.revision or self.revision}
        return _BareBackbone(**here)

    @cached_property
    def _files(self) -> ModelFiles:
        return ModelFiles(self.path, self.subfolder, self.revision, self.gguf_file, self.fetch)

    @property
    def _checkpoint(self) -> Checkpoint:
        return Checkpoint(self._files, self.weights, self.dequantize, self.attention)

    @cached_property
    def _adapter(self) -> StoredAdapter | None:
        """The adapter that the path leads to, if it leads to one."""
        adapter = stored_adapter(self._files)
        if adapter is not None:
            adapter.check(self.weights)
        return adapter

    def _config(self) -> PretrainedConfig:
        config = self._checkpoint.config()
        if self.dropout is not None:
            configure_dropout(config, self.dropout)
        return config

    def _adapted(
        self,
        adapter: StoredAdapter,
        tokenizer: PreTrainedTokenizerBase,
        dtype: torch.dtype,
        quantization: QuantizationConfigMixin | None,
    ) -> PreTrainedModel:
        own = self.tokenizer([])
        if (new := len(tokenizer) - len(own)) > 0:
            raise ConfigError(
                f"label=token: the adapter in {self.path!r} was trained without {new} of the titles' tokens. Use "
                "the label that it was trained with."
            )
        base = self.base.model(own, dtype, quantization)
        with self._checkpoint.reading("adapter"):
            adapted = adapter.put_on(base)
        logger.info("%s is a %s adapter on %s", self.path, adapter.kind, self.base.path)
        return adapted

    def _add_rows(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Give tokens of the titles embeddings; other tokens that have none are left out."""
        if len(tokenizer) <= rows_of(model):
            return
        own = self.tokenizer([])
        if len(own) > rows_of(model):
            check_rows(own, rows_of(model), self.path)
        if len(tokenizer) > len(own):
            add_rows(model, len(tokenizer))


class _BareBackbone(HubBackbone):
    """The model itself, without the adapter that lies in the same folder."""

    _adapter = None
