"""Predictions that complete runs have on disk, so that a large model need not predict the same records again."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from labor_llm import parquet_files
from labor_llm.careers import Careers
from labor_llm.predictions import COVARIATES, ChoiceProbabilities, Predictions, RealizedProbabilities
from labor_llm.run_folder import PREDICTIONS, from_here, is_complete, read_config

logger = logging.getLogger(__name__)

KNOWN = ("person_id", "year", "occupation", "weight", *COVARIATES)
"""What a table of predictions says of the careers; all of it must be the same."""


def stored_predictions(
    run: Path, careers: Careers, choice_set: Sequence[str]
) -> ChoiceProbabilities | RealizedProbabilities | None:
    """What the model of a run predicts for these careers, if it lies on disk, else None.

    That is in the run's own predictions, or in those of a ``labor-llm score`` of it beside it which scores as the
    run does. They may be of more persons, but of these persons they must have the same records and covariates.
    """
    if not is_complete(run):
        return None
    for folder in sorted(run.parent.iterdir(), reverse=True):
        if _is_of(folder, run):
            found = _read(folder / PREDICTIONS, careers, choice_set)
            if found is not None:
                logger.info("%d predictions are taken from %s", len(careers), from_here(folder))
                return found
    return None


def _is_of(folder: Path, run: Path) -> bool:
    """Whether a folder holds predictions of the run's model, made in the run's way."""
    if not is_complete(folder):
        return False
    config, own = read_config(folder), read_config(run)
    scored = Path(config.get("fitted") or folder).name  # outputs may have moved, the run's name has not
    return scored == run.name and _scoring(config) == _scoring(own)


def _scoring(config: Mapping[str, Any]) -> dict[str, Any]:
    """How titles are scored, but for the size of a pass; empty for other models."""
    scoring = config.get("model", {}).get("scoring") or {}
    return {key: value for key, value in scoring.items() if key != "max_tokens"}


def _read(
    path: Path, careers: Careers, choice_set: Sequence[str]
) -> ChoiceProbabilities | RealizedProbabilities | None:
    """What a file has of the careers' records, None unless it has all of them as the run scores them."""
    of_persons = pl.col("person_id").is_in(careers.table["person_id"].unique().implode())
    known = Predictions.read(path, distribution=False)
    same = known.table.filter(of_persons).select(KNOWN).equals(careers.table.select(KNOWN))
    if known.choice_set != tuple(choice_set) or not same:
        return None
    if known.realized_only:
        raw = known.table.filter(of_persons)["log_prob_raw"]
        return RealizedProbabilities(raw.fill_null(float("nan")).to_numpy())
    if "log_probs" not in parquet_files.schema(path):
        return None
    table = Predictions.read(path).table.filter(of_persons)
    bound = table["error_bound"]
    return ChoiceProbabilities(
        table["log_probs"].to_numpy(),
        np.zeros(len(table)),
        None if bound.is_null().all() else bound.to_numpy(),
    )
