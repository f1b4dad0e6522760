"""The verbs that compute: prepare a dataset, run a model on it, score with a fitted model again."""

import json
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from labor_llm import run_folder
from labor_llm.build import build
from labor_llm.careers import Careers, Splits
from labor_llm.datasets import Dataset
from labor_llm.evaluate import Evaluation, evaluate
from labor_llm.models.base import OccupationModel, Workspace, choice_set
from labor_llm.predictions import Predictions
from labor_llm.tracking import Tracker

logger = logging.getLogger(__name__)

CAREERS = "careers.parquet"
DECISIVE = ("dataset", "model", "predict", "seed")
"""The parts of a config on which a run's results depend."""


def prepare(cfg: DictConfig) -> None:
    """Read a dataset as downloaded, check it, and write it as one Careers table."""
    dataset: Dataset = build(cfg, ["dataset"])["dataset"]
    careers = read_prepared(dataset, Path(cfg.outputs))
    splits = dataset.split(careers)
    known = careers.previous.is_not_null()
    stays = (careers.previous == careers.table["occupation"]).filter(known).to_numpy()
    logger.info("%s (%s)", careers.dataset, careers.source)
    logger.info(
        "%d persons, %d records, %d to %d, %d occupations; the same occupation as the record before in %.1f%%",
        careers.persons,
        len(careers),
        careers.table["year"].min(),
        careers.table["year"].max(),
        careers.table["occupation"].n_unique(),
        100 * stays.mean() if len(stays) else 0.0,
    )
    for part in ("train", "valid", "test"):
        chosen: Careers = getattr(splits, part)
        logger.info("  %-5s %d persons, %d records", part, chosen.persons, len(chosen))
    logger.info("table: %s", _prepared_path(dataset, Path(cfg.outputs)))


def read_prepared(dataset: Dataset, outputs: Path) -> Careers:
    """The dataset's Careers table, read from its raw files only if these or its settings changed."""
    path = _prepared_path(dataset, outputs)
    stamp, stamp_path = _stamp(dataset), path.with_name("prepare.json")
    if path.is_file() and stamp_path.is_file():
        before = json.loads(stamp_path.read_text())
        if before["settings"] == stamp["settings"] and stamp["raw"] in (None, before["raw"]):
            return Careers.read(path)
    careers = dataset.read()
    path.parent.mkdir(parents=True, exist_ok=True)
    stamp_path.unlink(missing_ok=True)
    careers.write(path)
    run_folder.write_atomically(stamp_path, json.dumps(stamp, indent=1))
    return careers


def run(cfg: DictConfig) -> float | None:
    """Fit, predict and evaluate one model; returns the perplexity, for sweepers.

    The same command again skips a run that is complete and resumes one that is not.
    """
    parts = build(cfg, ["dataset", "model", "tracker"])
    dataset, model = parts["dataset"], parts["model"]
    careers = read_prepared(dataset, Path(cfg.outputs))
    config = _plain(cfg)
    decisive = {key: config[key] for key in DECISIVE} | {"data": careers.fingerprint}
    folder = run_folder.find_or_create(Path(cfg.outputs) / dataset.name / cfg.name, config, decisive)
    if run_folder.is_complete(folder):
        logger.info("already complete: %s", folder)
        return _perplexity(folder)
    with run_folder.held(folder):
        tracker = parts["tracker"].start(folder, config | {"git_commit": run_folder.git_commit()})
        _tracked(tracker, lambda: _fit_and_evaluate(model, dataset.split(careers), cfg, folder, tracker))
    return _perplexity(folder)


def score(cfg: DictConfig) -> float | None:
    """Predict and evaluate with the fitted model of a complete run, on its own dataset or another one."""
    fitted = Path(cfg.run)
    config = run_folder.read_config(fitted)
    if cfg.get("dataset") is not None:
        config["dataset"] = _plain(cfg)["dataset"]
    config |= {key: cfg[key] for key in ("predict", "keep_distribution", "outputs")}
    config |= {"tracker": _plain(cfg)["tracker"], "fitted": str(fitted)}
    merged = OmegaConf.create(config)
    parts = build(merged, ["dataset", "model", "tracker"])
    dataset = parts["dataset"]
    careers = read_prepared(dataset, Path(cfg.outputs))
    decisive = {key: config[key] for key in (*DECISIVE, "fitted")} | {"data": careers.fingerprint}
    folder = run_folder.find_or_create(Path(cfg.outputs) / dataset.name / config["name"], config, decisive)
    if run_folder.is_complete(folder):
        logger.info("already complete: %s", folder)
        return _perplexity(folder)
    with run_folder.held(folder):
        model = parts["model"].load(fitted / run_folder.MODEL)
        chosen = careers if cfg.predict == "all" else getattr(dataset.split(careers), cfg.predict)
        tracker = parts["tracker"].start(folder, config)
        _tracked(tracker, lambda: _evaluate(model, chosen, merged, folder, tracker, {}))
    return _perplexity(folder)


def _fit_and_evaluate(
    model: OccupationModel, splits: Splits, cfg: DictConfig, folder: Path, tracker: Tracker
) -> None:
    """The work of a run, each part kept as soon as it is done."""
    saved, seconds = folder / run_folder.MODEL, {}
    if saved.is_dir():
        model.load(saved)
    else:
        checkpoints = folder / run_folder.CHECKPOINTS
        checkpoints.mkdir(exist_ok=True)
        started = time.perf_counter()
        model.fit(splits.train, splits.valid, choice_set(splits.train), Workspace(checkpoints, tracker, True))
        seconds["fit"] = time.perf_counter() - started
        partial = saved.with_name("model.partial")
        shutil.rmtree(partial, ignore_errors=True)
        model.save(partial)
        partial.replace(saved)
    _evaluate(model, getattr(splits, cfg.predict), cfg, folder, tracker, seconds)
    shutil.rmtree(folder / run_folder.CHECKPOINTS, ignore_errors=True)


def _evaluate(
    model: OccupationModel,
    careers: Careers,
    cfg: DictConfig,
    folder: Path,
    tracker: Tracker,
    seconds: dict[str, float],
) -> None:
    """Predict, evaluate, write the results, and mark the run as complete."""
    started = time.perf_counter()
    probabilities = model.predict(careers, Workspace(progress=True))
    seconds["score"] = time.perf_counter() - started
    predictions = Predictions.of(careers, model.choice_set, probabilities, cfg.keep_distribution)
    predictions.write(folder / run_folder.PREDICTIONS)
    evaluation: Evaluation = evaluate(predictions)
    results = evaluation.to_dict() | {"seconds": seconds}
    run_folder.write_atomically(folder / run_folder.METRICS, json.dumps(results, indent=1))
    tracker.summarize(evaluation.scalars(cfg.predict))
    (folder / run_folder.MARKER).touch()
    logger.info("%s: %s", cfg.name, evaluation)
    logger.info("results: %s", folder)


def _prepared_path(dataset: Dataset, outputs: Path) -> Path:
    return outputs / dataset.name / CAREERS


def _stamp(dataset: Dataset) -> dict[str, Any]:
    """What tells whether a prepared table is still that of the dataset: its settings and its raw file's state."""
    settings = {key: value for key, value in vars(dataset).items() if key not in ("split", "raw")}
    raw: Path | None = getattr(dataset, "raw", None)
    state = None
    if raw is not None and raw.exists():
        state = {"path": str(raw.resolve()), "bytes": raw.stat().st_size, "modified": raw.stat().st_mtime}
    return {"settings": json.loads(json.dumps(settings, default=str)), "raw": state}


def _tracked(tracker: Tracker, work: Callable[[], None]) -> None:
    """Do the work and tell the tracker how it ended."""
    failed = True
    try:
        work()
        failed = False
    finally:
        tracker.finish(failed)


def _perplexity(folder: Path) -> float | None:
    results: dict[str, Any] = json.loads((folder / run_folder.METRICS).read_text())
    perplexity: float | None = results["metrics"]["all"]["perplexity"]["value"]
    return perplexity


def _plain(cfg: DictConfig) -> dict[str, Any]:
    """The config as plain, resolved containers."""
    plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}
