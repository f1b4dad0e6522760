"""The verbs that compute: run a model on a dataset, score with a fitted model again."""

import json
import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
from omegaconf import DictConfig, OmegaConf

from labor_llm import run_folder
from labor_llm.build import build
from labor_llm.careers import Careers
from labor_llm.columns import YEARS
from labor_llm.datasets import Dataset
from labor_llm.errors import ConfigError, DataError, RunError, unknown, wrong_number, wrong_switch
from labor_llm.evaluate import evaluate
from labor_llm.identity import (
    SAMPLES,
    TRAINERS,
    code_of,
    decided,
    decided_before,
    decisive,
    is_of,
    of_fit,
    own_careers,
    plain,
    warn_of_other_code,
)
from labor_llm.models.base import OccupationModel, Workspace, check_scorable, choice_set
from labor_llm.paths import from_home
from labor_llm.predictions import Predictions
from labor_llm.prepared import FOLDER_NAME, FOLDER_RULE, prepared_lines, read_prepared
from labor_llm.processes import Processes, joined
from labor_llm.splits import Split, Splits
from labor_llm.tracking import JsonLines, NoTracker, Tracker

logger = logging.getLogger(__name__)

LARGEST_SEED = 2**32 - 1
"""NumPy takes no larger one."""


def run(cfg: DictConfig) -> float | None:
    """Fit, predict and evaluate one model; returns the perplexity, for sweepers.

    The same command again skips a run that is complete and resumes one that is not. Processes that torchrun or
    srun started take part in fitting and predicting.
    """
    with _processes(cfg) as processes:
        return _run(cfg, processes)


def _run(cfg: DictConfig, processes: Processes) -> float | None:
    _check(cfg, ("test", "valid"))
    cfg = with_components(with_fitted_language(cfg))
    parts = build(cfg, ["dataset", "model", "tracker"])
    dataset = parts["dataset"]
    careers = processes.after_first(lambda: read_prepared(dataset, Path(cfg.outputs)))
    asked = plain(cfg)
    _check_components(asked, careers)
    folder = processes.from_first(lambda: _folder(asked, careers, parts["model"]))
    if processes.from_first(lambda: run_folder.is_complete(folder)):
        _log_preparation(dataset, cfg.outputs, processes)
        logger.info("already complete: %s", folder)
    else:
        config = processes.from_first(lambda: decided_before(asked, run_folder.stored_config(folder)))
        model = build(OmegaConf.create(config), ["model"])["model"]
        provenance = {"git_commit": run_folder.git_commit(), "data": careers.fingerprint}
        with _held(folder, parts["tracker"], config | provenance, processes) as tracker:
            _log_preparation(dataset, cfg.outputs, processes)
            splits = _nonempty(_known(dataset.split(careers), cfg.known_until), cfg.predict)
            chosen = getattr(splits, cfg.predict)
            predicted = _sample(dataset.split, chosen, cfg.predict, "test_persons", config)
            splits = replace(
                splits,
                train=_sample(dataset.split, splits.train, "train", "train_persons", config),
                valid=_sample(dataset.split, splits.valid, "valid", "valid_persons", config),
            )
            check_scorable(predicted, choice_set(splits.train), f"{cfg.predict} persons", "score")
            tokens = _tokens(config, careers)
            workspace = Workspace(folder / run_folder.CHECKPOINTS, tracker, processes.first, tokens)
            if _needs_language(model, config, folder):
                model.fitted = _run_of_language(asked, careers)
            seconds = _fit_or_load(model, splits, folder, workspace, processes)
            facts: dict[str, Any] = {"training_persons": splits.train.persons, "seconds": seconds}
            _evaluate(model, predicted, chosen.persons, config, folder, workspace, facts, processes)
            processes.from_first(lambda: shutil.rmtree(folder / run_folder.CHECKPOINTS, ignore_errors=True))
    return processes.from_first(lambda: _perplexity(folder))


def _log_preparation(dataset: Dataset, outputs: str, processes: Processes) -> None:
    """What was left out of the dataset and why, as ``prepare`` prints it; in a run folder, into its log, too."""
    if processes.first:
        for line in prepared_lines(dataset, Path(outputs)):
            logger.info("%s", line)


def with_fitted_language(cfg: DictConfig) -> DictConfig:
    """The config itself or, if ``model.fitted`` names a run, one with that run's language model and settings."""
    if cfg.model.get("fitted") is None:
        return cfg
    fitted = run_folder.read_config(from_home(Path(cfg.model.fitted)))
    if fitted["model"]["_target_"] != cfg.model.language._target_:
        raise ConfigError(
            f"model.fitted: the run in {cfg.model.fitted} is of {fitted['name']!r}, which has no language model. "
            "Name a run of model=language."
        )
    changed = cfg.copy()
    OmegaConf.update(changed, "model.language", fitted["model"], merge=False)
    return changed


def with_components(cfg: DictConfig) -> DictConfig:
    """The config itself or, if ``model.runs`` names runs, one with the models of these runs, by name."""
    runs = OmegaConf.select(cfg, "model.runs")
    if not OmegaConf.is_list(runs):
        return cfg
    components: dict[str, Any] = {}
    for run in runs:
        config = run_folder.fitting_run(from_home(Path(run)))
        alike = sum(name.partition(" ")[0] == config["name"] for name in components)
        components[f"{config['name']} {alike + 1}" if alike else config["name"]] = config["model"]
    changed = cfg.copy()
    OmegaConf.update(changed, "model.components", components, force_add=True)
    return changed


def _check_components(config: Mapping[str, Any], careers: Careers) -> None:
    """A RunError if a run that a mixture names was fitted on other data, or on other persons of them."""
    for name in config["model"].get("runs", []):
        run = from_home(Path(name)).resolve()
        other = run_folder.fitting_run(run)
        if not is_of(run, other, careers):
            raise RunError(
                f"model.runs: the run in {name} was fitted on other data than {careers.dataset!r} has now, or its "
                "folder was renamed. Run it again, on this dataset."
            )
        for key in ("dataset", "known_until", "train_persons"):
            theirs, ours = (decisive(each, careers).get(key) for each in (other, config))
            if theirs != ours:
                said = (
                    "other settings of dataset"
                    if key == "dataset"
                    else f"{key}={_word(theirs)} and not {_word(ours)}"
                )
                raise RunError(
                    f"model.runs: the run in {name} has {said}. A mixture and all its runs learn from the same "
                    "persons."
                )


def _word(value: Any) -> str:
    return "null" if value is None else str(value)


def _needs_language(model: Any, config: Mapping[str, Any], folder: Path) -> bool:
    """Whether the model is to be fitted on the states of a language model that is to be fitted, too."""
    rests = "fitted" in config["model"] and not (folder / run_folder.MODEL).is_dir()
    return rests and model.fitted is None and model.language.adapter.trains


def _run_of_language(config: Mapping[str, Any], careers: Careers) -> Path | None:
    """The newest complete run of model=language that fitted what ``model.language`` would be, if there is one."""
    language = config["model"]["language"]
    parent, wanted = _run_folders(config, careers, language["name"]), {**config, "model": language}
    for folder in sorted(filter(run_folder.is_complete, parent.glob("*")), reverse=True):
        other, fitted = run_folder.read_config(folder), (folder / run_folder.MODEL).is_dir()
        of_these = is_of(folder, other, careers) and other.get("code") == code_of(wanted)
        if fitted and of_these and of_fit(other, careers) == of_fit(wanted, careers):
            logger.info("the language model is that of %s", folder)
            return folder.absolute()
    logger.info("there is no complete run of %s with these settings: it is fitted here", language["name"])
    return None


def score(cfg: DictConfig) -> float | None:
    """Predict and evaluate with the fitted model of a complete run, on its own dataset or another one."""
    fitted = Path(cfg.run).resolve()
    config = run_folder.fitting_run(fitted)
    warn_of_other_code(config, fitted)
    config["fitted_on"] = run_folder.fitted_on(config)
    if cfg.get("dataset") is not None:
        config["dataset"] = plain(cfg)["dataset"]
        if "dataset" in config["model"]:  # the oracle's
            config["model"]["dataset"] = config["dataset"]
    if cfg.get("scoring") is not None:
        if "scoring" not in config["model"]:
            raise ConfigError(f"scoring says how language models are scored; {config['name']} is none.")
        config["model"]["scoring"] = plain(cfg)["scoring"]
    config |= {key: cfg[key] for key in ("predict", "test_persons", "keep_distribution")} | {"fitted": str(fitted)}
    config["outputs"] = cfg.outputs or str(run_folder.from_here(fitted.parents[2]))
    merged = OmegaConf.create(config)
    where = {key: cfg[key] for key in ("accelerator", "devices", "nodes", "strategy") if cfg[key] is not None}
    trainers = [key for key in TRAINERS if OmegaConf.select(merged, key)]
    if where and not trainers:
        raise ConfigError(f"{config['name']} is no network: leave out {' and '.join(where)}.")
    for trainer in trainers:  # where it is computed changes no result
        OmegaConf.update(merged, trainer, where)
    with _processes(merged) as processes:
        return _score(merged, config, fitted, processes)


def _score(cfg: DictConfig, config: dict[str, Any], fitted: Path, processes: Processes) -> float | None:
    _check(cfg, ("test", "valid", "all"))
    parts = build(cfg, ["dataset", "model"])
    careers = processes.after_first(lambda: _careers_to_score(parts["dataset"], config, fitted))
    folder = processes.from_first(lambda: _folder(config, careers, parts["model"]))
    if processes.from_first(lambda: run_folder.is_complete(folder)):
        logger.info("already complete: %s", folder)
    else:
        split, stored = parts["dataset"].split, processes.from_first(lambda: run_folder.stored_config(folder))
        chosen = careers if cfg.predict == "all" else getattr(split(careers), cfg.predict)
        with _held(folder, JsonLines(), stored, processes) as tracker:
            predicted = _sample(split, chosen, cfg.predict, "test_persons", config)
            model = build(OmegaConf.create(decided_before(plain(cfg), stored)), ["model"])["model"]
            model.load(fitted / run_folder.MODEL)
            check_scorable(predicted, model.choice_set, f"{cfg.predict} persons", "score")
            workspace = Workspace(None, tracker, processes.first, _tokens(config, careers))
            facts: dict[str, Any] = {"training_persons": _metrics(fitted).get("training_persons"), "seconds": {}}
            _evaluate(model, predicted, chosen.persons, config, folder, workspace, facts, processes)
    return processes.from_first(lambda: _perplexity(folder))


def _careers_to_score(dataset: Dataset, config: Mapping[str, Any], fitted: Path) -> Careers:
    """Those on which the model was fitted, or those of another dataset."""
    own = run_folder.fitting_run(fitted)
    if config["dataset"] == own["dataset"]:
        return own_careers(dataset, own, fitted)
    return read_prepared(dataset, Path(config["outputs"]))


def _processes(cfg: DictConfig) -> AbstractContextManager[Processes]:
    """Those that torchrun or srun started for the devices of a run's network; else this one alone."""
    trainers = (OmegaConf.select(cfg, key) for key in TRAINERS)
    trainer: Mapping[str, Any] = next((each for each in trainers if each is not None), {})
    numbers = (trainer.get(key) for key in ("devices", "nodes"))
    devices, nodes = (number if isinstance(number, int) and number > 0 else 1 for number in numbers)
    return joined(devices, nodes, on_gpu=trainer.get("accelerator") != "cpu")


@contextmanager
def _held(folder: Path, tracker: Any, config: Mapping[str, Any], processes: Processes) -> Iterator[Tracker]:
    """The run folder and its tracker, for the first process; the others write nothing."""
    if not processes.first:
        yield NoTracker()
        return
    with run_folder.held(folder), _tracked(tracker.start(folder, config)) as started:
        yield started


def _tokens(config: Mapping[str, Any], careers: Careers) -> Path:
    """Where the dataset's tokenized careers are kept."""
    return Path(config["outputs"]) / careers.dataset / "tokens"


def _fit_or_load(
    model: OccupationModel, splits: Splits, folder: Path, workspace: Workspace, processes: Processes
) -> dict[str, float]:
    """Fit the model and save it, or load it if that was done before; the seconds of a fit in one go."""
    saved, checkpoints = folder / run_folder.MODEL, workspace.folder
    assert checkpoints is not None
    if saved.is_dir():
        model.load(saved)
        return {}
    resumed = checkpoints.is_dir() and any(checkpoints.iterdir())
    checkpoints.mkdir(exist_ok=True)
    started = time.perf_counter()
    model.fit(splits.train, splits.valid, choice_set(splits.train), workspace)
    seconds = {} if resumed else {"fit": time.perf_counter() - started}
    processes.from_first(lambda: _save(model, saved))
    return seconds


def _save(model: OccupationModel, folder: Path) -> None:
    """Write a fitted model whole or not at all."""
    partial = folder.with_name("model.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save(partial)
    partial.replace(folder)


def _evaluate(
    model: OccupationModel,
    careers: Careers,
    persons: int,
    config: Mapping[str, Any],
    folder: Path,
    workspace: Workspace,
    facts: dict[str, Any],
    processes: Processes,
) -> None:
    """Predict, evaluate, write the results, and mark the run as complete.

    ``persons``: how many there are in the part of which the careers may be a sample. ``facts``: what is known of
    the fit, for metrics.json.
    """
    started = time.perf_counter()
    probabilities = model.predict(careers, workspace)
    if not processes.first:
        return
    facts["seconds"]["score"] = time.perf_counter() - started
    predictions = Predictions.of(careers, model.choice_set, probabilities, config["keep_distribution"])
    del probabilities  # gigabytes of a large panel, and the table has its own
    predictions.write(folder / run_folder.PREDICTIONS)
    evaluation = evaluate(predictions)
    seen = model.persons_seen(careers)
    if seen:
        logger.warning("%d of %d persons were in the model's training: this is no test", seen, careers.persons)
    bound = predictions.table["error_bound"].max()
    if bound is not None:
        logger.info("pruned: no probability is further than %.2g from the exact one", bound)
    results = evaluation.to_dict() | {"error_bound": bound, "persons_seen_in_training": seen} | facts
    run_folder.write_atomically(folder / run_folder.METRICS, json.dumps(results, indent=1))
    workspace.tracker.summarize(evaluation.scalars(config["predict"]))
    (folder / run_folder.MARKER).touch()
    of = (
        f", on {careers.persons:,} of {persons:,} {config['predict']} persons" if careers.persons < persons else ""
    )
    logger.info("%s: %s%s", config["name"], evaluation, of)
    logger.info("results: %s", folder)


@contextmanager
def _tracked(tracker: Tracker) -> Iterator[Tracker]:
    """A tracker that is told how the work ended."""
    failed = True
    try:
        yield tracker
        failed = False
    finally:
        tracker.finish(failed)


def _check(cfg: DictConfig, parts: tuple[str, ...]) -> None:
    """Refuse settings of the verb itself that cannot be."""
    problems = []
    if cfg.predict not in parts:
        problems.append(unknown("part of the persons", str(cfg.predict), parts, " in predict"))
    problems += wrong_number("seed", cfg.seed, 0, LARGEST_SEED)
    problems += wrong_switch("keep_distribution", cfg.keep_distribution)
    for key, name in (("name", cfg.name), ("dataset.name", cfg.dataset.name)):
        if not (isinstance(name, str) and FOLDER_NAME.fullmatch(name)):
            problems.append(f"{key} {FOLDER_RULE}, got {name!r}")
    until = cfg.get("known_until")
    if until is not None and not (type(until) is int and YEARS[0] <= until <= YEARS[1]):
        problems.append(f"known_until must be null or a calendar year, got {until!r}")
    for key in SAMPLES:
        persons = cfg.get(key)
        if persons is not None and (type(persons) is not int or persons < 1):
            problems.append(
                f"{key} must be null for all persons, or a whole number of at least 1, got {persons!r}"
            )
    if problems:
        raise ConfigError("\n".join(problems))


def _known(splits: Splits, until: int | None) -> Splits:
    """The splits, but training and validation careers end with the year ``until``."""
    if until is None:
        return splits
    kept = {part: getattr(splits, part) for part in ("train", "valid")}
    of_time = pl.col("year") <= until
    early = {part: replace(careers, table=careers.table.filter(of_time)) for part, careers in kept.items()}
    if not all(map(len, early.values())):
        years: list[int] = splits.train.table["year"].to_list()
        raise DataError(f"known_until={until} leaves no records to train on: they begin in {min(years)}")
    return replace(splits, **early)


def _nonempty(splits: Splits, predict: str) -> Splits:
    for part in ("train", "valid", predict):
        if not len(getattr(splits, part)):
            raise DataError(f"no person is in the part {part!r}: give dataset.split.{part} a share above 0")
    return splits


def _sample(split: Split, careers: Careers, part: str, key: str, config: Mapping[str, Any]) -> Careers:
    """The first persons of a part by the split's hash, as many as the setting ``key`` says; all if it is null."""
    persons = config.get(key)
    if persons is None:
        return careers
    if persons > careers.persons:
        raise DataError(
            f"{key}={persons}: the part {part!r} of dataset {careers.dataset!r} has {careers.persons} persons. "
            f"Name at most {careers.persons}, or null for all of them."
        )
    logger.info("%s: %s of %s %s persons", key, f"{persons:,}", f"{careers.persons:,}", part)
    return split.sample(careers, persons)


def _folder(config: Mapping[str, Any], careers: Careers, model: object) -> Path:
    """The run folder for a config, data and code, found or made."""
    parent, settings = _run_folders(config, careers, config["name"]), decisive(config, careers)
    code = code_of(config)
    found = run_folder.find(parent, settings, code)
    return found or run_folder.create(parent, decided(config, model) | {"code": code}, settings)


def _run_folders(config: Mapping[str, Any], careers: Careers, name: str) -> Path:
    return Path(config["outputs"]) / careers.dataset / name


def _perplexity(folder: Path) -> float | None:
    metrics = _metrics(folder)["metrics"]["all"]
    perplexity: float | None = metrics["perplexity"]["value"] or metrics["perplexity_raw"]["value"]
    return perplexity


def _metrics(folder: Path) -> dict[str, Any]:
    """What a complete run wrote of its results."""
    metrics: dict[str, Any] = json.loads((folder / run_folder.METRICS).read_text(encoding="utf-8"))
    return metrics
