"""What makes two runs the same: the settings that decide, the data, and the code of the classes they name."""

import logging
from collections.abc import Iterator, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from labor_llm import run_folder
from labor_llm.careers import Careers
from labor_llm.datasets import Dataset
from labor_llm.paths import from_home
from labor_llm.precision import bfloat16_pays_below
from labor_llm.prepared import prepared_path, read_prepared
from labor_llm.source_code import code_hash

logger = logging.getLogger(__name__)

DECISIVE = ("dataset", "model", "predict", "keep_distribution", "known_until", "seed")
"""The parts of a config on which a run's results depend, but for the following keys."""
SAMPLES = ("train_persons", "valid_persons", "test_persons")
"""Keys that decide only where they are set: runs from before there were samples keep their hash."""
TRAINERS = ("model.trainer", "model.language.trainer")
"""Where the settings of a network's training stand in a config."""
INDIFFERENT = (
    "dataset.raw",
    *(
        f"{model}.{key}"
        for model in ("model", "model.language")
        for key in (
            *(f"trainer.{name}" for name in ("checkpoint_every", "accelerator", "check_memory")),
            *(f"trainer.{name}" for name in ("devices", "nodes", "strategy")),
            "scoring.max_tokens",
        )
    ),
)


def decisive(config: Mapping[str, Any], careers: Careers) -> dict[str, Any]:
    """What a run's results depend on: a run that differs elsewhere (tracker, paths) is the same run.

    What was decided for ``auto`` does not count, so that another machine finds the run, and goes on with it.
    """
    samples = {key: config[key] for key in SAMPLES if config.get(key) is not None}
    settings = OmegaConf.create({key: config.get(key) for key in (*DECISIVE, "fitted")} | samples)
    settings.merge_with(config.get("asked") or {})
    for key in INDIFFERENT:
        if OmegaConf.select(settings, key) is not None:
            OmegaConf.update(settings, key, None)
    found = plain(settings) | {"data": careers.fingerprint}
    if "runs" in found["model"]:  # where they lie decides nothing, and their folders' names say what they are
        runs = [from_home(Path(run)).resolve().name for run in found["model"]["runs"]]
        found["model"] |= {"runs": runs, "components": None}
    return found


def of_fit(config: Mapping[str, Any], careers: Careers) -> dict[str, Any]:
    """What is decisive for the fitted model, and not only for what is done with it."""
    settings = decisive(config, careers)
    model = {key: value for key, value in settings["model"].items() if key != "scoring"}
    return {**settings, "model": model, **dict.fromkeys(("predict", "test_persons", "keep_distribution"))}


def code_of(config: Mapping[str, Any]) -> str:
    """A hash of the code on which the classes of a config's dataset and model rest, of 12 hex digits."""
    names = {name for part in ("dataset", "model") for name in _targets(config[part])}
    return code_hash(*map(get_object, sorted(names)))[:12]


def _targets(node: Any) -> Iterator[str]:
    """The classes that a config names, at any depth."""
    children = node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ()
    if isinstance(node, Mapping) and isinstance(node.get("_target_"), str):
        yield node["_target_"]
    for child in children:
        yield from _targets(child)


def decided(config: Mapping[str, Any], model: object) -> dict[str, Any]:
    """The config with the precision that ``auto`` stands for on this machine; ``asked`` says what it replaces."""
    changed, asked = OmegaConf.create(dict(config)), OmegaConf.create(config.get("asked") or {})
    for key in TRAINERS:
        if OmegaConf.select(changed, f"{key}.precision") == "auto":
            settings = attrgetter(key.removeprefix("model."))(model)
            precision = settings.decided_precision(lambda: bfloat16_pays_below(Path(config["outputs"])))
            _decide(changed, asked, key, precision)
    return _with_asked(changed, asked)


def decided_before(config: Mapping[str, Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    """The config with the code and the precision that were decided when the run's folder was made."""
    changed, asked = OmegaConf.create(dict(config)), OmegaConf.create(config.get("asked") or {})
    for key in TRAINERS:
        before = OmegaConf.select(OmegaConf.create(dict(stored)), f"{key}.precision")
        if OmegaConf.select(changed, f"{key}.precision") == "auto" and before is not None:
            _decide(changed, asked, key, before)
    return _with_asked(changed, asked) | {"code": stored["code"]}


def _decide(changed: DictConfig, asked: DictConfig, key: str, precision: str) -> None:
    """Set the precision of a network's training, and of the section that its settings are taken from."""
    OmegaConf.update(asked, f"{key}.precision", "auto", force_add=True)
    for each in (key, "trainer"):
        if OmegaConf.select(changed, f"{each}.precision") == "auto":
            OmegaConf.update(changed, f"{each}.precision", precision)


def _with_asked(changed: DictConfig, asked: DictConfig) -> dict[str, Any]:
    return plain(changed) | ({"asked": plain(asked)} if asked else {})


def own_careers(dataset: Dataset, config: Mapping[str, Any], run: Path) -> Careers:
    """The careers that the run in a folder was fitted on: the prepared table beside it, wherever it came from.

    If that table has changed since, it is prepared anew where that is needed, and what differs is said.
    """
    path = prepared_path(dataset, run.parents[2])
    if path.is_file() and is_of(run, config, careers := Careers.read(path)):
        return careers
    careers = read_prepared(dataset, run.parents[2])
    if not is_of(run, config, careers):
        logger.warning(
            "dataset %r is not what the run in %s was fitted on, or that folder was renamed: it was prepared "
            "again since, from other files or with other settings",
            dataset.name,
            run_folder.from_here(run),
        )
    return careers


def is_of(run: Path, config: Mapping[str, Any], careers: Careers) -> bool:
    """Whether a run's folder is named for these settings and careers."""
    return run_folder.is_named_for(run, decisive(config, careers))


def warn_of_other_code(config: Mapping[str, Any], run: Path) -> None:
    """Say if the code that a fitted model rests on has changed since."""
    if config.get("code") not in (None, code_of(config)):  # the first version wrote none
        logger.warning(
            "the model in %s was fitted by other code than there is now: its numbers may differ",
            run_folder.from_here(run),
        )


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The config as plain, resolved containers."""
    found = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}
