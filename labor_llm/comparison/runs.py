"""Complete runs as a comparison finds them: read from their folders, named, and gathered over seeds."""

import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from labor_llm.errors import RunError
from labor_llm.paths import from_home
from labor_llm.predictions import Predictions
from labor_llm.run_folder import CONFIG, METRICS, PREDICTIONS, fitted_on, is_complete, read_config

logger = logging.getLogger(__name__)

IRRELEVANT = {"name", "outputs", "tracker", "asked"}
"""Sections of a config that do not tell two runs apart."""
UNNAMED = {"dataset.raw", "model.dataset.raw", "model.fitted.dataset.raw", "fitted.dataset.raw"}
"""Keys that tell runs apart, and that are no part of their names: where a file lies is private."""
NULL = "null"
"""How a setting without a value is written, whether it is null or not there."""
COMPUTED = (
    ".keep_distribution",
    ".trainer.accelerator",
    ".trainer.devices",
    ".trainer.nodes",
    ".trainer.strategy",
    ".trainer.checkpoint_every",
    ".scoring.max_tokens",
)
"""Endings of keys that say how something is computed or kept, and change no result."""


@dataclass(frozen=True)
class Run:
    """What a complete run folder says, without its predictions."""

    folder: Path
    config: Mapping[str, Any]
    metrics: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> "Run":
        """A RunError if a part of the folder is missing."""
        for name in (METRICS, PREDICTIONS):
            if not (folder / name).is_file():
                raise RunError(
                    f"run folder {folder} is marked complete but has no {name}; delete it and run it again."
                )
        return cls(folder, read_config(folder), json.loads((folder / METRICS).read_text(encoding="utf-8")))

    @property
    def dataset(self) -> str:
        """The dataset, and whom of it the run predicted if not all test persons: what can be compared.

        Runs that predicted samples of other sizes are side by side in no table.
        """
        name, part, persons = (
            self.config["dataset"]["name"],
            self.config["predict"],
            self.config.get("test_persons"),
        )
        if persons is not None:
            return f"{name} ({persons} {part} persons)"
        return str(name) if part == "test" else f"{name} ({part})"

    @property
    def name(self) -> str:
        return str(self.config["name"])

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """The config, but ``fitted`` and ``model.fitted`` say what was fitted on, not which run's folder it is.

        If that run is gone, its name stands for it. What a run fitted itself, it fitted on its own dataset.
        """
        settings, model = dict(self.config), self.config.get("model", {})
        told = settings.pop("fitted_on", None)
        settings["fitted"] = told or _fitted_on(self.config.get("fitted")) or fitted_on(self.config)
        if model.get("fitted") is not None:
            settings["model"] = model | {"fitted": _fitted_on(model["fitted"])}
        if "components" in model:  # they say what the runs are
            settings["model"] = {key: value for key, value in model.items() if key != "runs"}
        return settings

    @property
    def perplexity(self) -> float:
        """The raw one if only realized occupations were scored; infinite, so last, if there is none."""
        metrics = self.metrics["metrics"]["all"]
        values = [metrics[name]["value"] for name in ("perplexity", "perplexity_raw")]
        return next((float(value) for value in values if value is not None), float("inf"))

    def predictions(self) -> Predictions:
        return Predictions.read(self.folder / PREDICTIONS, distribution=False)


def _fitted_on(run: Any) -> Any:
    """What the run in a folder was fitted on; the folder's own name if it is gone."""
    if not isinstance(run, str):
        return run
    try:
        return fitted_on(read_config(from_home(Path(run))))
    except RunError:
        return Path(run).name


def by_seed(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that differ in nothing but their seeds, together; of several with the same seeds the newest."""
    together: dict[tuple[Any, ...], dict[frozenset[Any], Run]] = {}
    for run in sorted(runs, key=lambda run: run.folder.name):
        settings = (run.name, *sorted(_flat(seedless(run).settings)))
        seeds = frozenset(item for item in _flat(run.config) if item[0].rpartition(".")[2] == "seed")
        together.setdefault(settings, {})[seeds] = run
    return [list(of_seeds.values()) for of_seeds in together.values()]


def seedless(run: Run) -> Run:
    """The run without its seeds, which stands for all seeds; those of data count."""
    of_data = ("dataset", "fitted")
    config = {key: child if key in of_data else _without_seeds(child) for key, child in run.settings.items()}
    config.pop("seed", None)
    return replace(run, config=config)


def _without_seeds(node: Any) -> Any:
    if not isinstance(node, Mapping):
        return node
    return {
        key: child if key == "fitted" else _without_seeds(child) for key, child in node.items() if key != "seed"
    }


def distinct_names(runs: Sequence[Run]) -> dict[str, Run]:
    """The runs by name; those that share one also by the settings in which they differ, else by their folder.

    A setting that is null is not said: ``markov`` beside ``markov (known_until=2014)``.
    """
    shown = []
    for run in runs:
        alike = [other for other in runs if other.name == run.name]
        differing = differing_settings([other.settings for other in alike])
        own = {key: _private(values[alike.index(run)]) for key, values in differing.items()}
        words = [f"{key}={value}" for key, value in own.items() if value != NULL]
        shown.append(f"{run.name} ({', '.join(words)})" if words else run.name)
    times = Counter(shown)
    return {
        name if times[name] == 1 else f"{name} in {run.folder}": run for name, run in zip(shown, runs, strict=True)
    }


def _private(value: str) -> str:
    """Of a path, such as that of one's own taxonomy, the last part: where a file lies is private."""
    return Path(value).name if Path(value).is_absolute() else value


def differing_settings(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Dotted keys in which the configs differ, with their values as text, one per config.

    Left out: a key that repeats another one of the same ending (``model.adapter.rank``, ``adapter.rank``),
    and what follows from a section's name; ``adapter.name`` is called ``adapter``.
    """
    flat = [dict(_flat(config)) for config in configs]
    columns = {key: [config.get(key, NULL) for config in flat] for config in flat for key in config}
    differing = {key: values for key, values in columns.items() if len(set(values)) > 1 and key not in UNNAMED}

    def is_told_by(key: str, other: str) -> bool:
        if key.endswith(f".{other}"):
            return differing[key] == differing[other]
        pairs = set(zip(differing[other], differing[key], strict=True))
        of_section = other.endswith(".name") and key.startswith(other.removesuffix("name"))
        return of_section and len(pairs) == len(set(differing[other]))

    own = [key for key in differing if not any(is_told_by(key, other) for other in differing if other != key)]
    return {key.removesuffix(".name"): differing[key] for key in own}


def _flat(node: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for name, child in node.items():
        key = f"{above}{name}"
        if isinstance(child, Mapping):
            yield from _flat(child, f"{key}.")
        elif key.partition(".")[0] not in IRRELEVANT and not f".{key}".endswith(COMPUTED):
            yield key, NULL if child is None else str(child)


def read_runs(paths: Sequence[str | Path]) -> list[Run]:
    """Every complete run under the paths, once; a RunError if there is none under one of them."""
    complete: dict[Path, Path] = {}
    for path in map(Path, paths):
        folders = list(_run_folders(path))
        found = [folder for folder in folders if is_complete(folder)]
        rest = len(folders) - len(found)
        left = f"{rest} incomplete {'run' if rest == 1 else 'runs'}"
        if not found:
            there = f"{left} there; the same command again resumes a run" if rest else "no run at all there"
            raise RunError(f"no complete run under {path}: {there if path.exists() else 'it does not exist'}.")
        if rest:
            unfinished = [str(folder) for folder in folders if folder not in found]
            logger.warning("%s left out: %s", left, ", ".join(unfinished))
        complete |= {folder.resolve(): folder for folder in found}
    if not complete:
        raise RunError("nothing to compare: name at least one run folder, or a folder above some.")
    return [Run.read(folder) for folder in complete.values()]


def _run_folders(path: Path) -> Iterator[Path]:
    """Folders with a config, in order; what lies inside a run is not looked at."""
    for folder, below, files in os.walk(path):
        if CONFIG in files:
            yield Path(folder)
            below.clear()
        below.sort()
