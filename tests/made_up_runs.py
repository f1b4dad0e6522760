"""Run folders with made-up predictions, as runs write them."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import yaml

from labor_llm.comparison.side_by_side import Statistics
from labor_llm.evaluate import evaluate
from labor_llm.events import SET_EVENTS
from labor_llm.predictions import COLUMNS, Predictions

QUICK = Statistics(replicates=200, bins=3)


def predictions(quality: float, persons: int = 60, seed: int = 0) -> Predictions:
    """Predictions of six records a person; the higher the quality, the better, with the noise of the seed."""
    rng, noise = np.random.default_rng(0), np.random.default_rng(seed)
    person, year = np.divmod(np.arange(6 * persons), 6)
    table = pl.DataFrame(
        {
            "person_id": person.astype(str),
            "year": (1980 + year).astype(np.int32),
            "occupation": rng.choice(["cook", "nurse"], size=len(year)),
            "in_choice_set": np.ones(len(year), dtype=bool),
            "log_prob": -noise.exponential(1 / quality, size=len(year)),
            "log_mass": np.zeros(len(year)),
            "rank": rng.integers(1, 15, len(year), dtype=np.int32),
            "tied": np.ones(len(year), dtype=np.int32),
            "first": year == 0,
            "moved": rng.random(len(year)) < 0.5,
            "log_prob_stay": -rng.exponential(size=len(year)),
            "weight": rng.uniform(1, 2, len(year)),
            "gender": np.where(person % 2, "male", "female"),
        }
        | {event: rng.random(len(year)) < 0.3 for event in SET_EVENTS}
        | {f"{event}_logit": rng.normal(-1, 1, size=len(year)) for event in SET_EVENTS}
    )
    later = [name for name in table.columns if name.startswith(("leave", "enter", "moved", "log_prob_stay"))]
    return changed(
        Predictions(table, ("cook", "nurse")),
        **{name: pl.when(~pl.col("first")).then(pl.col(name)) for name in later},
        log_prob_raw=pl.col("log_prob") + pl.col("log_mass"),
        error_bound=pl.lit(None, pl.Float64),
        education=pl.lit(None, pl.String),
        ethnicity=pl.lit(None, pl.String),
    )


def changed(predicted: Predictions, **columns: pl.Expr) -> Predictions:
    return Predictions(predicted.table.with_columns(**columns), predicted.choice_set)


def realised(predicted: Predictions) -> Predictions:
    """As if only what happened had been scored."""
    unknown = [
        name for name in COLUMNS if name.endswith(("_logit", "_stay")) or name in ("rank", "tied", "log_prob")
    ]
    return changed(predicted, **{name: pl.lit(None, COLUMNS[name]) for name in unknown})


def write_run(folder: Path, name: str, predicted: Predictions, complete: bool = True, **config) -> Path:
    """A run folder as a run writes it."""
    folder.mkdir(parents=True)
    config = {
        "name": name,
        "seed": 0,
        "dataset": {"name": "panel"},
        "predict": "test",
        "outputs": str(folder),
    } | config
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    if complete:
        metrics = evaluate(predicted).to_dict() | {"seconds": {"fit": 61.4, "score": 2.0}}
        (folder / "metrics.json").write_text(json.dumps(metrics))
        predicted.write(folder / "predictions.parquet")
        (folder / "complete").touch()
    return folder
