"""The verbs that compute: run a model on a dataset, score with a fitted model again."""

import json
import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
from omegaconf import DictConfig, OmegaConf

from labor_llm import run_folder
from labor_llm.build import build
from labor_llm.careers import Careers
from labor_llm.columns import YEARS
from labor_llm.errors import ConfigError, DataError, unknown
from labor_llm.evaluate import evaluate
from labor_llm.models.base import OccupationModel, Workspace, choice_set
from labor_llm.predictions import Predictions
from labor_llm.prepared import FOLDER_NAME, FOLDER_RULE, read_prepared
from labor_llm.splits import Splits
from labor_llm.tracking import JsonLines, Tracker

logger = logging.getLogger(__name__)

DECISIVE = ("dataset", "model", "predict", "keep_distribution", "known_until", "seed")
"""The parts of a config on which a run's results depend, but for the following keys."""
INDIFFERENT = (
    "dataset.raw",
    *(
        f"{model}.{key}"
        for model in ("model", "model.language")
        for key in (
            "trainer.checkpoint_every",
            "trainer.accelerator",
            "trainer.check_memory",
            "scoring.max_tokens",
        )
    ),
)


def run(cfg: DictConfig) -> float | None:
    """Fit, predict and evaluate one model; returns the perplexity, for sweepers.

    The same command again skips a run that is complete and resumes one that is not.
    """
    _check(cfg, ("test", "valid"))
    cfg = with_fitted_language(cfg)
    parts = build(cfg, ["dataset", "model", "tracker"])
    dataset, model = parts["dataset"], parts["model"]
    careers = read_prepared(dataset, Path(cfg.outputs))
    config = _plain(cfg)
    folder = _folder(config, careers)
    if run_folder.is_complete(folder):
        logger.info("already complete: %s", folder)
    else:
        provenance = {"git_commit": run_folder.git_commit(), "data": careers.fingerprint}
        with run_folder.held(folder), _tracked(parts["tracker"].start(folder, config | provenance)) as tracker:
            splits = _nonempty(_known(dataset.split(careers), cfg.known_until), cfg.predict)
            workspace = Workspace(folder / run_folder.CHECKPOINTS, tracker, True, _tokens(config, careers))
            if _needs_language(model, config, folder):
                model.fitted = _run_of_language(config, careers)
            seconds = _fit_or_load(model, splits, folder, workspace)
            _evaluate(model, getattr(splits, cfg.predict), config, folder, workspace, seconds)
            shutil.rmtree(folder / run_folder.CHECKPOINTS, ignore_errors=True)
    return _perplexity(folder)


def with_fitted_language(cfg: DictConfig) -> DictConfig:
    """The config itself or, if ``model.fitted`` names a run, one with that run's language model and settings."""
    if cfg.model.get("fitted") is None:
        return cfg
    fitted = run_folder.read_config(Path(cfg.model.fitted).expanduser())
    if fitted["model"]["_target_"] != cfg.model.language._target_:
        raise ConfigError(
            f"model.fitted: the run in {cfg.model.fitted} is of {fitted['name']!r}, which has no language model. "
            "Name a run of model=language."
        )
    changed = cfg.copy()
    OmegaConf.update(changed, "model.language", fitted["model"], merge=False)
    return changed


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
        of_these_data = run_folder.find(parent, _decisive(other, careers)) == folder
        if fitted and of_these_data and _of_fit(other, careers) == _of_fit(wanted, careers):
            logger.info("the language model is that of %s", folder)
            return folder.absolute()
    logger.info("there is no complete run of %s with these settings: it is fitted here", language["name"])
    return None


def score(cfg: DictConfig) -> float | None:
    """Predict and evaluate with the fitted model of a complete run, on its own dataset or another one."""
    fitted = Path(cfg.run).resolve()
    config = run_folder.fitting_run(fitted)
    config["fitted_on"] = run_folder.fitted_on(config)
    if cfg.get("dataset") is not None:
        config["dataset"] = _plain(cfg)["dataset"]
        if "dataset" in config["model"]:  # the oracle's
            config["model"]["dataset"] = config["dataset"]
    if cfg.get("scoring") is not None:
        if "scoring" not in config["model"]:
            raise ConfigError(f"scoring says how language models are scored; {config['name']} is none.")
        config["model"]["scoring"] = _plain(cfg)["scoring"]
    config |= {"predict": cfg.predict, "keep_distribution": cfg.keep_distribution, "fitted": str(fitted)}
    config["outputs"] = cfg.outputs or str(run_folder.from_here(fitted.parents[2]))
    merged = OmegaConf.create(config)
    where = {key: cfg[key] for key in ("accelerator", "devices") if cfg[key] is not None}
    trainers = [key for key in ("model.trainer", "model.language.trainer") if OmegaConf.select(merged, key)]
    if where and not trainers:
        raise ConfigError(f"{config['name']} is no network: leave out {' and '.join(where)}.")
    for trainer in trainers:  # where it is computed changes no result
        OmegaConf.update(merged, trainer, where)
    _check(merged, ("test", "valid", "all"))
    parts = build(merged, ["dataset", "model"])
    careers = read_prepared(parts["dataset"], Path(config["outputs"]))
    folder = _folder(config, careers)
    if run_folder.is_complete(folder):
        logger.info("already complete: %s", folder)
    else:
        chosen = careers if cfg.predict == "all" else getattr(parts["dataset"].split(careers), cfg.predict)
        with run_folder.held(folder), _tracked(JsonLines().start(folder, config)) as tracker:
            model = parts["model"].load(fitted / run_folder.MODEL)
            workspace = Workspace(None, tracker, True, _tokens(config, careers))
            _evaluate(model, chosen, config, folder, workspace, {})
    return _perplexity(folder)


def _tokens(config: Mapping[str, Any], careers: Careers) -> Path:
    """Where the dataset's tokenized careers are kept."""
    return Path(config["outputs"]) / careers.dataset / "tokens"


def _fit_or_load(model: OccupationModel, splits: Splits, folder: Path, workspace: Workspace) -> dict[str, float]:
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
    partial = saved.with_name("model.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save(partial)
    partial.replace(saved)
    return seconds


def _evaluate(
    model: OccupationModel,
    careers: Careers,
    config: Mapping[str, Any],
    folder: Path,
    workspace: Workspace,
    seconds: dict[str, float],
) -> None:
    """Predict, evaluate, write the results, and mark the run as complete."""
    started = time.perf_counter()
    probabilities = model.predict(careers, workspace)
    seconds["score"] = time.perf_counter() - started
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
    results = evaluation.to_dict() | {"error_bound": bound, "persons_seen_in_training": seen, "seconds": seconds}
    run_folder.write_atomically(folder / run_folder.METRICS, json.dumps(results, indent=1))
    workspace.tracker.summarize(evaluation.scalars(config["predict"]))
    (folder / run_folder.MARKER).touch()
    logger.info("%s: %s", config["name"], evaluation)
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
    if not isinstance(cfg.seed, int) or cfg.seed < 0:
        problems.append(f"seed must be a whole number of at least 0, got {cfg.seed!r}")
    for key, name in (("name", cfg.name), ("dataset.name", cfg.dataset.name)):
        if not FOLDER_NAME.fullmatch(str(name)):
            problems.append(f"{key} {FOLDER_RULE}, got {str(name)!r}")
    until = cfg.get("known_until")
    if until is not None and not (isinstance(until, int) and YEARS[0] <= until <= YEARS[1]):
        problems.append(f"known_until must be null or a calendar year, got {until!r}")
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


def _folder(config: Mapping[str, Any], careers: Careers) -> Path:
    """The run folder for a config and data, found or made."""
    parent, decisive = _run_folders(config, careers, config["name"]), _decisive(config, careers)
    return run_folder.find(parent, decisive) or run_folder.create(parent, config, decisive)


def _run_folders(config: Mapping[str, Any], careers: Careers, name: str) -> Path:
    return Path(config["outputs"]) / careers.dataset / name


def _decisive(config: Mapping[str, Any], careers: Careers) -> dict[str, Any]:
    """What a run's results depend on: a run that differs elsewhere (tracker, paths) is the same run."""
    decisive = OmegaConf.create({key: config.get(key) for key in (*DECISIVE, "fitted")})
    for key in INDIFFERENT:
        if OmegaConf.select(decisive, key) is not None:
            OmegaConf.update(decisive, key, None)
    return _plain(decisive) | {"data": careers.fingerprint}


def _of_fit(config: Mapping[str, Any], careers: Careers) -> dict[str, Any]:
    """What is decisive for the fitted model, and not only for what is done with it."""
    decisive = _decisive(config, careers)
    model = {key: value for key, value in decisive["model"].items() if key != "scoring"}
    return {**decisive, "model": model, "predict": None, "keep_distribution": None}


def _perplexity(folder: Path) -> float | None:
    metrics: dict[str, Any] = json.loads((folder / run_folder.METRICS).read_text())["metrics"]["all"]
    perplexity: float | None = metrics["perplexity"]["value"] or metrics["perplexity_raw"]["value"]
    return perplexity


def _plain(cfg: DictConfig) -> dict[str, Any]:
    """The config as plain, resolved containers."""
    plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}
