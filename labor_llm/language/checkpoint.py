"""A checkpoint: its configuration, tokenizer and weights, or a sentence on why they cannot be read.

By itself, transformers fills gaps with random numbers, asks on the terminal whether to run code that came with a
model, and raises all kinds of errors for damaged files.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from huggingface_hub.utils import logging as hub_logging
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging
from transformers.utils.quantization_config import QuantizationConfigMixin

from labor_llm.errors import ConfigError, LaborLLMError
from labor_llm.language.loading_report import check_report, quiet_report
from labor_llm.language.model_files import ModelFiles
from labor_llm.language.quantized import check_quantization, unpacked, unpacking
from labor_llm.language.reading_errors import check_kind, not_read
from labor_llm.language.weight_files import SAFE, check_index, check_not_pickled, check_whole

logger = logging.getLogger(__name__)

WeightFormat = Literal["safetensors", "pickle"]
NOWHERE = "no-adapter"
"""A subfolder that no model has: transformers looks for adapters there, and leaves them to ``stored_adapters``."""


@dataclass(frozen=True)
class Checkpoint:
    """A backbone's settings of the same names; see ``HubBackbone``."""

    files: ModelFiles
    weights: WeightFormat
    dequantize: bool
    attention: str

    def check(self, has_weights: bool = True) -> None:
        """A ConfigError if its files are missing or damaged, as far as they are on this machine."""
        with self.reading("files"):
            self.files.check()
            if has_weights and self.files.inner.is_dir():
                check_whole(self.files.inner, self._pickled)
        transformers_logging.disable_progress_bar()
        hub_logging.set_verbosity_error()

    def config(self) -> PretrainedConfig:
        """The configuration; a ConfigError unless it is one of a causal language model."""
        with self.reading("config"):
            config = AutoConfig.from_pretrained(self.files.folder, **self.files.arguments)
        check_kind(config, self.files.path)
        return config

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, fast if there is a fast one."""
        with self.reading("tokenizer"):
            return AutoTokenizer.from_pretrained(self.files.folder, use_fast=True, **self.files.arguments)

    def model(
        self, config: PretrainedConfig, dtype: torch.dtype, quantization: QuantizationConfigMixin | None
    ) -> PreTrainedModel:
        """The model with all its weights from the files: none random, none left out."""
        check_quantization(config, quantization, self.dequantize, self.files.path)
        if getattr(config, "auto_map", None):
            logger.info("%s comes with code of its own, which is not run", self.files.path)
        with self.reading("model"), quiet_report():
            model, report = AutoModelForCausalLM.from_pretrained(
                self.files.folder,
                config=config,
                dtype=dtype,
                attn_implementation=self.attention,
                weights_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # the report lists them
                adapter_kwargs={"subfolder": NOWHERE},
                **self.files.arguments,
                **self._format(config, quantization),
            )
        check_report(model, report, self.files.path)
        return unpacked(model, dtype) if self.dequantize else model

    def random_model(self, config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
        """The same architecture with new weights, from PyTorch's generator, which a run seeds."""
        with self.reading("model"):
            return AutoModelForCausalLM.from_config(
                config, dtype=dtype, attn_implementation=self.attention, trust_remote_code=False
            )

    @contextmanager
    def reading(self, part: str) -> Iterator[None]:
        """Turn what libraries raise over a user's files, which is every kind of error, into a ConfigError."""
        try:
            yield
        except LaborLLMError:
            raise
        except Exception as error:
            raise not_read(part, error, self.files, self.weights, self.attention) from error

    def _format(self, config: PretrainedConfig, quantization: QuantizationConfigMixin | None) -> dict[str, Any]:
        """How the weights are written. No quantization is not None, which would hide the checkpoint's own."""
        if self.files.gguf and quantization is not None:
            raise ConfigError(
                f"adapter=qlora does not quantize GGUF files such as {self.files.gguf}; use adapter=lora"
            )
        if self.files.gguf:  # dequantized, it is a model as any other
            return {"quantization_config": GgufConfig(dequantize=True)}
        if not self._pickled:
            check_not_pickled([getattr(config, "transformers_weights", None) or ""], "config.json")
            if (index := self.files.find(f"{SAFE}.index.json")) and not self.files.find(SAFE):
                check_index(index)
        quantization = quantization or (unpacking(config) if self.dequantize else None)
        given = {} if quantization is None else {"quantization_config": quantization}
        return given | {"use_safetensors": not self._pickled}

    @property
    def _pickled(self) -> bool:
        """Whether the weights are in pickles, as the user said, and in nothing better."""
        return self.weights == "pickle" and not any(map(self.files.find, (SAFE, f"{SAFE}.index.json")))
