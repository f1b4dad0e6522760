"""What transformers reports of the weights that it loaded: missing, of another shape, or left over."""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel

from labor_llm.errors import ConfigError

logger = logging.getLogger(__name__)

NAMED = 4
"""Weights that a message names."""
WITHOUT_EFFECT = re.compile(r"(inv_freq|cos_cached|sin_cached|position_ids|masked_bias|\.[kv]_scale)$")
"""Angles of positions and masks, which are computed anew, and scales of a cache in eight bits."""


@contextmanager
def quiet_report() -> Iterator[None]:
    """Keep transformers from printing its table: ``check_report`` reports what it contains."""
    theirs = logging.getLogger("transformers.modeling_utils")
    theirs.addFilter(_no_report)
    try:
        yield
    finally:
        theirs.removeFilter(_no_report)


def check_report(model: PreTrainedModel, report: dict[str, Any], path: str) -> None:
    """A ConfigError unless every weight of the model was read, and none that the model should have is left over.

    ``report`` is what ``from_pretrained`` returns with ``output_loading_info=True``.
    """
    kind = type(model).__name__
    if missing := _relevant(report["missing_keys"]):
        raise ConfigError(
            f"backbone.path: {path!r} lacks weights of {kind}: {_listed(missing)}. Random numbers would take "
            "their place. Use the complete checkpoint of a causal language model, output layer included."
        )
    if other := sorted(report["mismatched_keys"]):
        shapes = [f"{name} {list(found)} instead of {list(wanted)}" for name, found, wanted in other]
        raise ConfigError(
            f"backbone.path: weights of {path!r} have other shapes than its config.json says: {_listed(shapes)}. "
            "Weights and config.json belong to different models."
        )
    left_over = _relevant(report["unexpected_keys"])
    if unread := [name for name in left_over if _belongs(name, model)]:
        raise ConfigError(
            f"backbone.path: {path!r} has weights that {kind} does not read: {_listed(unread)}. The model would "
            "not be the one that was saved: check config.json (number of layers, biases, quantization_config)."
        )
    if left_over:
        logger.warning("%s has weights beside those of %s, without effect: %s", path, kind, _listed(left_over))


def _no_report(record: logging.LogRecord) -> bool:
    return "LOAD REPORT" not in record.getMessage()


def _relevant(names: Sequence[str]) -> list[str]:
    return sorted(name for name in names if not WITHOUT_EFFECT.search(name))


def _belongs(name: str, model: PreTrainedModel) -> bool:
    """Whether a weight lies within a part of the model, rather than in a part of its own such as a reward head."""
    modules, base = dict(model.named_modules()), model.base_model_prefix
    parts = name.split(".")
    inner = {".".join(parts[:length]) for length in range(1, len(parts))}
    inner |= {f"{base}.{part}" for part in inner}  # some checkpoints leave out the prefix
    return any(part in modules for part in inner - {base})


def _listed(names: Sequence[str]) -> str:
    rest = f", ... ({len(names)} in all)" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + rest
