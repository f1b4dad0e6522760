"""Adapters that lie in a folder or on the hub: what they were trained on, and how they are put on it again."""

import logging
from dataclasses import dataclass
from pathlib import Path

from peft import PeftConfig, PeftModel, PeftType, get_peft_model
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from transformers import PreTrainedModel

from labor_llm.errors import ConfigError
from labor_llm.language.model_files import ModelFiles, is_local
from labor_llm.language.weight_files import PICKLED, SAFE

logger = logging.getLogger(__name__)

WEIGHTS = tuple(f"{stem}{end}" for stem in (SAFE, PICKLED) for end in ("", ".index.json"))


@dataclass(frozen=True)
class StoredAdapter:
    """An adapter and where its files lie."""

    config: PeftConfig
    files: ModelFiles

    @property
    def kind(self) -> str:
        """The name that peft gives the method, such as LORA."""
        return str(PeftType(self.config.peft_type).value)

    @property
    def base(self) -> str | None:
        """The path or name of the model that it was trained on; None if that lies in the same folder."""
        if self.files.find("config.json") and any(map(self.files.find, WEIGHTS)):
            return None
        name = self.config.base_model_name_or_path
        if not name:
            raise self._refused("does not name the model that it was trained on (base_model_name_or_path)")
        beside = self.files.inner / name
        if not Path(name).is_dir() and beside.is_dir():
            return str(beside)
        if not Path(name).is_dir() and is_local(name):
            raise self._refused(f"was trained on {name!r}, which is no folder on this machine")
        if (Path(name) / CONFIG_NAME).is_file() and not (Path(name) / "config.json").is_file():
            raise self._refused(f"was trained on {name!r}, which is an adapter itself: merge that one first")
        return str(name)

    def put_on(self, model: PreTrainedModel) -> PeftModel:
        """The model with the adapter, whose own weights can be trained; a ConfigError if they do not fit."""
        self.config.inference_mode = False  # a saved adapter says True, and would be frozen
        adapted = get_peft_model(model, self.config)
        place = {"subfolder": self.files.subfolder, "revision": self.files.revision}
        given = {name: value for name, value in place.items() if value is not None}
        report = adapted.load_adapter(self.files.folder, "default", is_trainable=True, **given)
        kind = type(model).__name__
        if names := sorted(report.missing_keys):
            raise self._refused(f"lacks weights that it has for {kind}: {', '.join(names[:3])}")
        if names := sorted(report.unexpected_keys):
            raise self._refused(f"has weights that do not fit {kind}: {', '.join(names[:3])}")
        return adapted

    def check(self, weights: str) -> None:
        """A ConfigError if it is not an adapter of a causal language model, or only has pickled weights."""
        if self.config.is_prompt_learning or self.config.is_adaption_prompt:
            raise self._refused(
                f"is of the kind {self.kind}, which puts made-up tokens before every text: careers that share a "
                "row cannot be read with it. Use a LoRA adapter"
            )
        if self.config.task_type not in (None, "CAUSAL_LM"):
            raise self._refused(f"was trained for {self.config.task_type}, not for CAUSAL_LM")
        read = [SAFETENSORS_WEIGHTS_NAME] + (["adapter_model.bin"] if weights == "pickle" else [])
        if any(map(self.files.find, read)):
            return
        raise self._refused(
            f"has no {SAFETENSORS_WEIGHTS_NAME}. If it has an adapter_model.bin, backbone.weights=pickle reads "
            "the weights in it and runs no code"
        )

    def _refused(self, reason: str) -> ConfigError:
        return ConfigError(f"backbone.path: the adapter in {str(self.files.inner)!r} {reason}.")


def merged(model: PeftModel) -> PreTrainedModel:
    """The model with the adapter in its own weights, all of which can be trained."""
    kind = model.active_peft_config.peft_type.value
    try:
        whole: PreTrainedModel = model.merge_and_unload(safe_merge=True)
    except (AttributeError, NotImplementedError, TypeError, ValueError) as error:
        raise ConfigError(
            f"adapter=none: peft does not merge the {kind} adapter of backbone.path ({error}). Use "
            "adapter=frozen, or a LoRA adapter."
        ) from error
    logger.info("merged the %s adapter into the weights of its base", kind)
    return whole.requires_grad_(True)


def stored_adapter(files: ModelFiles) -> StoredAdapter | None:
    """The adapter in a model's folder or repository, if there is one."""
    if files.gguf or (path := files.find(CONFIG_NAME)) is None:
        return None
    try:
        config = PeftConfig.from_pretrained(path.parent)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"backbone.path: {path} does not describe an adapter of peft ({error!r}).") from error
    return StoredAdapter(config, files)
