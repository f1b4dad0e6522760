"""Predictions as a model would make them, drawn at random, for tests of what is said of them."""

import numpy as np
import polars as pl

from labor_llm.events import SET_EVENTS
from labor_llm.predictions import Predictions

RAW = (pl.col("log_prob") + pl.col("log_mass")).alias("log_prob_raw")


def simulated(persons: int, seed: int = 0, years: int = 8) -> Predictions:
    """Predictions in which a person's records resemble each other; one person in ten has one record."""
    rng = np.random.default_rng(seed)
    lengths = rng.choice([1, years // 2, years], size=persons, p=[0.1, 0.4, 0.5])
    person = np.repeat(np.arange(persons), lengths)
    year = np.concatenate([np.arange(length) for length in lengths])
    taste = rng.normal(size=persons)[person]
    table = pl.DataFrame(
        {
            "person_id": person.astype(str),
            "year": year.astype(np.int32),
            "occupation": rng.choice(["cook", "nurse"], size=len(year)),
            "in_choice_set": rng.random(len(year)) > 0.05,
            "log_prob": -np.exp(0.5 * (taste + rng.normal(size=len(year)))),
            "log_mass": -rng.random(len(year)),
            "rank": rng.integers(1, 15, len(year), dtype=np.int32),
            "tied": np.ones(len(year), dtype=np.int32),
            "first": year == 0,
            "moved": rng.random(len(year)) < 1 / (1 + np.exp(-taste)),
            "log_prob_stay": -np.logaddexp(0, np.round(taste + rng.normal(size=len(year)), 1)),
            "weight": rng.uniform(0.5, 2, persons)[person],
        }
    )
    inside, later, weighted = (
        pl.col("in_choice_set"),
        ~pl.col("first"),
        pl.Series(rng.random(len(year)) < 0.9),
    )
    table = table.with_columns(
        pl.when(inside).then(pl.col("log_prob", "rank")),
        pl.when(later).then(pl.col("moved", "log_prob_stay")),
        pl.when(weighted).then(pl.col("weight")),
    )
    logits = {f"{event}_logit": rng.normal(size=len(year)) + taste for event in SET_EVENTS}
    events = {event: rng.random(len(year)) < 1 / (1 + np.exp(-logits[f"{event}_logit"])) for event in SET_EVENTS}
    table = table.with_columns(
        **{name: pl.when(later).then(pl.Series(v)) for name, v in (events | logits).items()}
    )
    return Predictions(table.with_columns(RAW), ("cook", "nurse"))


def edited(predictions: Predictions, **columns: pl.Expr) -> Predictions:
    table = predictions.table.with_columns(**columns).with_columns(RAW)
    return Predictions(table, predictions.choice_set)
