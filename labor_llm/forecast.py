"""The verb that goes on with careers: what a fitted model foretells after a year, and how well it did."""

import logging
from pathlib import Path
from typing import Any

import polars as pl
from omegaconf import DictConfig, OmegaConf
from rich import box
from rich.console import Console
from rich.table import Table

from labor_llm import run_folder
from labor_llm.build import build
from labor_llm.careers import Careers
from labor_llm.errors import ConfigError, unknown, wrong_number, wrong_switch
from labor_llm.future import Future, foretell
from labor_llm.identity import own_careers, warn_of_other_code
from labor_llm.progress import counting

logger = logging.getLogger(__name__)
WIDTH = 120
"""Columns of the table in a narrower terminal or none."""


def forecast(cfg: DictConfig) -> None:
    """Draw future careers with the fitted model of a complete run, and write how well they were foretold."""
    fitted = Path(cfg.run).resolve()
    config = run_folder.fitting_run(fitted)
    cutoff = _checked(cfg, config)
    alone = OmegaConf.create(config)
    if "trainer" in config["model"]:  # a year's records are too few for several
        OmegaConf.update(alone, "model.trainer", {"devices": 1, "nodes": 1})
    parts = build(alone, ["dataset", "model"])
    careers = own_careers(parts["dataset"], config, fitted)
    warn_of_other_code(config, fitted)
    _warn_of_later_records(careers, config.get("known_until"), cutoff)
    chosen = careers if cfg.predict == "all" else getattr(parts["dataset"].split(careers), cfg.predict)
    model = parts["model"].load(fitted / run_folder.MODEL)
    with counting(f"{config['name']}: persons with careers drawn after {cutoff}") as told:
        future = foretell(model, chosen, cutoff, cfg.horizon, cfg.paths, cfg.covariates, cfg.seed, told)
    settings = (cfg.predict, cfg.covariates, cfg.horizon, cfg.paths, cfg.seed)
    folder = fitted / "forecasts" / "-".join(map(str, (cutoff, *settings)))
    table = future.table(cfg.min_persons).with_columns(covariates=pl.lit(cfg.covariates))
    _write(future, table, folder, cfg.keep_paths)
    title = f"{config['name']}: records after {cutoff}, {cfg.paths} paths, {cfg.covariates} covariates"
    console = Console(width=max(WIDTH, Console().width))
    console.print(title, highlight=False)
    console.print(_shown(table))
    logger.info("results: %s", run_folder.from_here(folder))


def _checked(cfg: DictConfig, config: dict[str, Any]) -> int:
    """The last known year; a ConfigError with all that is wrong."""
    problems = []
    cutoff: int | None = config.get("known_until") if cfg.cutoff is None else cfg.cutoff
    if type(cutoff) is not int:
        got = "" if cutoff is None else f"; got {cutoff!r}"
        problems.append(
            f"cutoff: name the last year that is known, cutoff=YEAR, some years before the data end{got}"
        )
    for key, least in (("horizon", 1), ("paths", 1), ("min_persons", 1), ("seed", 0)):
        problems += wrong_number(key, cfg[key], least)
    problems += wrong_switch("keep_paths", cfg.keep_paths)
    for key, known in (("covariates", ("observed", "carried")), ("predict", ("test", "valid", "all"))):
        if cfg[key] not in known:
            problems.append(unknown("value", str(cfg[key]), known, f" of {key}"))
    if problems or not isinstance(cutoff, int):
        raise ConfigError("\n".join(problems))
    return cutoff


def _warn_of_later_records(careers: Careers, until: int | None, cutoff: int) -> None:
    last = min(year for year in (until, careers.table["year"].max()) if isinstance(year, int))
    if last > cutoff:
        logger.warning(
            "the model was trained on records after %d, too, if on other persons: to know no more than was known "
            "then, train it with known_until=%d",
            cutoff,
            cutoff,
        )


def _write(future: Future, table: pl.DataFrame, folder: Path, keep_paths: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    future.records.write_parquet(folder.absolute() / "records.parquet")
    if keep_paths:
        future.paths.write_parquet(folder.absolute() / "paths.parquet")
    run_folder.write_atomically(folder / "forecast.csv", table.write_csv())


def _shown(table: pl.DataFrame) -> Table:
    """Years ahead by metric, standard errors in brackets."""
    shown = Table(box=box.SIMPLE_HEAD)
    names = table["metric"].unique(maintain_order=True)
    # weighted AUCs are in forecast.csv alone
    metrics = [name for name in names if not (name.startswith("auc_") and name.endswith("_weighted"))]
    for name in ("years ahead", "records", *metrics):
        shown.add_column(name, justify="right")
    for rows in table.partition_by("years_ahead", maintain_order=True):
        cells = {
            metric: "-" if value is None else f"{value:.3f}" + ("" if se is None else f" ({se:.3f})")
            for metric, value, se in rows.select("metric", "value", "se").iter_rows()
        }
        shown.add_row(
            rows["years_ahead"][0], f"{rows['records'][0]:,}", *(cells.get(name, "") for name in metrics)
        )
    return shown
