"""What an occupation model's representation of a career adds to a wage regression.

As in the CAREER paper (arXiv 2202.08370): the log of hourly pay is regressed on covariates, on these and effects
of the occupation, and on all of it and the representation, by ridge regressions whose penalty the validation split
chooses; they are fitted without survey weights, and scored without and with them. The representation is of the
career before the record, so it knows neither its occupation nor its wage.

Legend: N records with a wage, F regressors.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from labor_llm.careers import Careers
from labor_llm.errors import DataError
from labor_llm.splits import Splits
from labor_llm.statistics.clustered import clustered_ratio, weighted_name

CATEGORIES = ("year", "education", "region", "gender", "ethnicity", "survey")
PENALTIES = tuple(10.0**power for power in range(-2, 5))
States = Mapping[str, NDArray[np.float32]]
"""Part -> the representation of each of its records, in the order of the table."""


@dataclass(frozen=True)
class WageRegression:
    """How well a regression predicts the log wages of test persons; errors are clustered by person."""

    regressors: str
    penalty: float
    records: int
    persons: int
    r2: float
    r2_se: float | None
    mse: float
    mse_se: float | None
    r2_weighted: float | None = None
    """By survey weights, as all that follows; None where there are none."""
    r2_weighted_se: float | None = None
    mse_weighted: float | None = None
    mse_weighted_se: float | None = None


def wage_regressions(splits: Splits, representations: Mapping[str, States]) -> list[WageRegression]:
    """The regressions without a representation, then one with each; DataError without wages in some part."""
    parts = {part: getattr(splits, part) for part in ("train", "valid", "test")}
    for part, careers in parts.items():
        if careers.table["log_wage"].null_count() == len(careers):
            raise DataError(f"dataset {careers.dataset!r} has no wages in its {part} part: nothing to regress")
    covariates = _covariates(parts)
    jobs = _one_hot(parts, ["occupation"])
    named = {"covariates": [covariates], "covariates, occupation": [covariates, jobs]}
    for name, states in representations.items():
        named[f"covariates, occupation, {name}"] = [covariates, jobs, _standardised(parts, states)]
    return [_regression(name, parts, blocks) for name, blocks in named.items()]


def _known(careers: Careers) -> NDArray[np.bool_]:
    return careers.table["log_wage"].is_not_null().to_numpy()


def _covariates(parts: Mapping[str, Careers]) -> dict[str, NDArray[np.float32]]:
    """Dummies of the categories, age and its square in decades; an unknown age is the mean one."""
    dummies = _one_hot(
        parts, [name for name in CATEGORIES if parts["train"].table[name].null_count() < len(parts["train"])]
    )
    ages = {}
    for part, careers in parts.items():
        table = careers.table.filter(pl.col("log_wage").is_not_null())
        ages[part] = ((table["year"] - table["birth_year"]).cast(pl.Float64) / 10).to_numpy()
    mean = np.nanmean(ages["train"]) if np.isfinite(ages["train"]).any() else 0.0
    filled = {part: np.nan_to_num(age, nan=mean)[:, None] for part, age in ages.items()}
    return {part: np.hstack([dummies[part], filled[part], filled[part] ** 2]).astype(np.float32) for part in parts}


def _one_hot(parts: Mapping[str, Careers], names: list[str]) -> dict[str, NDArray[np.float32]]:
    """Dummies of the values that training has; null is a value."""
    values = {
        part: careers.table.filter(pl.col("log_wage").is_not_null())
        .select(pl.col(names).cast(pl.String).fill_null("(unknown)"))
        .to_numpy()
        for part, careers in parts.items()
    }
    encoder = OneHotEncoder(handle_unknown="ignore", sparse_output=False, dtype=np.float32).fit(values["train"])
    return {part: encoder.transform(rows) for part, rows in values.items()}


def _standardised(parts: Mapping[str, Careers], states: States) -> dict[str, NDArray[np.float32]]:
    chosen = {part: states[part][_known(careers)] for part, careers in parts.items()}
    scaler = StandardScaler().fit(chosen["train"])
    return {part: scaler.transform(rows).astype(np.float32) for part, rows in chosen.items()}


def _regression(
    name: str, parts: Mapping[str, Careers], blocks: list[dict[str, NDArray[np.float32]]]
) -> WageRegression:
    """Fit on training, choose the penalty on validation, predict the test persons."""
    features = {part: np.hstack([block[part] for block in blocks], dtype=np.float64) for part in parts}
    wages = {part: careers.table["log_wage"].to_numpy()[_known(careers)] for part, careers in parts.items()}
    fitted = [Ridge(penalty, solver="cholesky").fit(features["train"], wages["train"]) for penalty in PENALTIES]
    losses = [np.square(wages["valid"] - ridge.predict(features["valid"])).mean() for ridge in fitted]
    best = int(np.argmin(losses))
    test = parts["test"].table.filter(pl.col("log_wage").is_not_null())
    told = test.select(
        "person_id", "weight", wage="log_wage", miss=wages["test"] - fitted[best].predict(features["test"])
    )
    weighable = told.filter(pl.col("weight") > 0)
    scores = _scores(told.with_columns(weight=pl.lit(1.0)))
    weighted = _scores(weighable) if len(weighable) else {}
    return WageRegression(
        regressors=name,
        penalty=PENALTIES[best],
        records=len(told),
        persons=told["person_id"].n_unique(),
        **scores,
        **{weighted_name(key): value for key, value in weighted.items()},
    )


def _scores(told: pl.DataFrame) -> dict[str, Any]:
    """R2 and mean squared error, with errors clustered by person, of wages and by how much they are missed."""
    weight, wage = pl.col("weight"), pl.col("wage")
    spread = wage - (weight * wage).sum() / weight.sum()
    weighed = told.select("person_id", "weight", errors=weight * pl.col("miss") ** 2, spread=weight * spread**2)
    sums = weighed.group_by("person_id", maintain_order=True).agg(pl.all().sum())
    errors_G, spread_G, weights_G = (sums[name].to_numpy() for name in ("errors", "spread", "weight"))
    mse, mse_se = clustered_ratio(errors_G, weights_G)
    unexplained, r2_se = clustered_ratio(errors_G, spread_G)
    return {"r2": 1 - unexplained, "r2_se": r2_se, "mse": mse, "mse_se": mse_se}
