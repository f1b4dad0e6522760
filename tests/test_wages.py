"""Wage regressions against least squares, and what a representation that knows the wage adds."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from labor_llm import wages
from labor_llm.careers import Careers
from labor_llm.datasets import read
from labor_llm.datasets.wage_panel import SPLIT, WagePanel
from labor_llm.errors import DataError
from labor_llm.models.base import Workspace, choice_set
from labor_llm.models.career import Career
from labor_llm.sequences.training import CodeTrainerSettings
from labor_llm.splits import Splits
from labor_llm.wages import wage_regressions

PARTS = ("train", "valid", "test")


@pytest.fixture(scope="module")
def splits() -> Splits:
    return SPLIT(read(WagePanel()))


def test_a_representation_that_knows_the_wage_explains_it(splits):
    rng = np.random.default_rng(0)
    knowing = {
        part: np.column_stack(
            [getattr(splits, part).table["log_wage"], rng.normal(size=len(getattr(splits, part)))]
        )
        for part in PARTS
    }
    noise = {part: rng.normal(size=(len(getattr(splits, part)), 3)).astype(np.float32) for part in PARTS}
    plain, jobs, all_of_it, nothing = wage_regressions(splits, {"knowing": knowing, "noise": noise})
    assert 0.1 < plain.r2 < jobs.r2 + 0.05
    assert all_of_it.r2 > 0.999
    assert nothing.r2 == pytest.approx(jobs.r2, abs=0.01)
    assert (plain.records, plain.persons) == (928, 116)


def test_weighted_scores_count_a_person_of_weight_two_twice(splits):
    number = pl.col("person_id").cast(pl.Int64)
    weights = pl.when(number % 3 == 0).then(0.0).when(number % 3 == 1).then(2.0).otherwise(1.0)
    table = splits.test.table
    weighted = replace(splits, test=replace(splits.test, table=table.with_columns(weight=weights)))
    again = table.filter(number % 3 == 1).with_columns(person_id="again " + pl.col("person_id"))
    twice = replace(splits, test=replace(splits.test, table=pl.concat([table.filter(number % 3 > 0), again])))
    (line, _), (expected, _) = wage_regressions(weighted, {}), wage_regressions(twice, {})
    assert (line.r2_weighted, line.mse_weighted) == pytest.approx((expected.r2, expected.mse))
    assert line.r2_weighted != pytest.approx(line.r2, abs=1e-4)
    assert line.mse_weighted_se > expected.mse_se  # it is not two persons
    assert expected.r2_weighted is None


def test_without_a_penalty_it_is_least_squares_with_errors_clustered_by_person(splits, monkeypatch):
    monkeypatch.setattr(wages, "PENALTIES", (1e-6,))
    (plain, _) = wage_regressions(splits, {})

    def regressors(careers):
        dummies = careers.table.select("year", "education", "ethnicity").to_dummies()
        age = (careers.table["year"] - careers.table["birth_year"]) / 10
        return np.column_stack([np.ones(len(careers)), dummies, age, age**2])

    train, test = splits.train, splits.test
    coefficients = np.linalg.lstsq(regressors(train), train.table["log_wage"].to_numpy(), rcond=None)[0]
    squares = np.square(test.table["log_wage"].to_numpy() - regressors(test) @ coefficients)
    assert plain.mse == pytest.approx(squares.mean(), rel=1e-3)
    by_person = np.add.reduceat(squares - squares.mean(), test.person_starts[:-1])
    assert plain.mse_se == pytest.approx(np.sqrt(116 / 115 * np.square(by_person).sum()) / 928, rel=1e-3)


def test_the_states_of_career_know_nothing_of_the_record_itself(splits):
    model = Career(
        name="small",
        covariates=("year", "education"),
        two_stage=True,
        layers=1,
        width=12,
        feed_forward=8,
        heads=3,
        trainer=CodeTrainerSettings(learning_rate=1e-3, max_epochs=1, accelerator="cpu", precision="32-true"),
        seed=0,
    ).fit(splits.train, splits.valid, choice_set(splits.train))
    states = model.states(splits.test, Workspace())
    assert states.shape == (len(splits.test), 12)
    last = pl.col("year") == 1987
    other = splits.test.table.with_columns(occupation=pl.when(last).then(pl.lit("9")).otherwise("occupation"))
    changed = Careers.validated(other, dataset="x", taxonomy=splits.test.taxonomy, source="changed")
    np.testing.assert_allclose(model.states(changed, Workspace()), states, atol=1e-5)
    earlier = splits.test.table.with_columns(
        occupation=pl.when(pl.col("year") == 1980).then(pl.lit("9")).otherwise("occupation")
    )
    assert not np.allclose(model.states(replace(changed, table=earlier), Workspace()), states, atol=1e-3)


def test_without_wages_there_is_nothing_to_regress(splits):
    none = {
        part: replace(careers, table=careers.table.with_columns(log_wage=pl.lit(None, pl.Float64)))
        for part, careers in vars(splits).items()
    }
    with pytest.raises(DataError, match="no wages in its train part"):
        wage_regressions(Splits(**none), {})
