"""Panels that are odd, but no mistake: one record a person, one occupation, nothing to score."""

from functools import cache

import numpy as np
import polars as pl
import pytest
from conftest import CAREERS, panel
from test_models import MODELS

from labor_llm.careers import Careers
from labor_llm.errors import DataError
from labor_llm.evaluate import Evaluation, evaluate
from labor_llm.future import foretell
from labor_llm.models.base import choice_set
from labor_llm.models.empirical import Empirical
from labor_llm.models.markov import Markov
from labor_llm.predictions import Predictions
from labor_llm.taxonomy import Taxonomy

LONE = Taxonomy("lone", {"1": "Cooks"}, frozenset())
"""One occupation and no state: nothing to choose."""
FITTED_HERE = sorted(MODELS.keys() - {"oracle", "mixture", "mixture-history", "language-frozen-titles"})
"""Models that are fitted on these persons alone."""


def cross_section() -> Careers:
    """One record a person."""
    return panel(**CAREERS.table.group_by("person_id", maintain_order=True).first().drop("survey").to_dict())


def one_occupation(records: int) -> Careers:
    """Everybody is a cook, for so many years."""
    table = CAREERS.table.filter(pl.col("year") < 1980 + records).with_columns(occupation=pl.lit("1"))
    return Careers.validated(table, dataset="lone", taxonomy=LONE, source="made for a test")


def parts(careers: Careers) -> list[Careers]:
    persons = careers.table["person_id"].unique(maintain_order=True)
    return [careers.select_persons(persons[rows]) for rows in (slice(40), slice(40, 50), slice(50, 60))]


def evaluated(model: str, careers: Careers) -> Evaluation:
    train, valid, test = parts(careers)
    fitted = MODELS[model]().fit(train, valid, choice_set(train))
    predictions = Predictions.of(test, fitted.choice_set, fitted.predict(test))
    return evaluate(predictions)


@cache
def frequencies() -> float:
    """The perplexity of the training frequencies on a cross-section."""
    return evaluated("empirical", cross_section()).estimate("perplexity").value


@pytest.mark.parametrize("model", FITTED_HERE)
def test_a_cross_section_is_first_records_only(model):
    evaluation = evaluated(model, cross_section())
    assert (evaluation.records, evaluation.persons) == (10, 10)
    assert evaluation.estimate("perplexity") == evaluation.estimate("perplexity", "first")
    assert evaluation.estimate("perplexity", "movers").value is None


@pytest.mark.parametrize("model", ["markov", "markov2"])
def test_without_a_second_record_transition_frequencies_are_frequencies(model):
    assert evaluated(model, cross_section()).estimate("perplexity").value == pytest.approx(frequencies(), rel=0.01)


@pytest.mark.parametrize("records", [1, 3])
@pytest.mark.parametrize("model", FITTED_HERE)
def test_the_only_occupation_is_certain(model, records):
    evaluation = evaluated(model, one_occupation(records))
    assert evaluation.estimate("perplexity").value == pytest.approx(1)
    assert evaluation.estimate("top1").value == 1


def test_pairs_that_training_never_saw_together_fall_back_on_the_first_order(tmp_path):
    """Nobody in training has two records; saved and loaded, too."""
    train, valid, _ = parts(cross_section())
    choices, test = choice_set(train), parts(CAREERS)[2]
    first, second = (Markov(order=order).fit(train, valid, choices) for order in (1, 2))
    np.testing.assert_array_equal(second.log_probs(test), first.log_probs(test))
    second.save(tmp_path)
    np.testing.assert_array_equal(Markov(order=2).load(tmp_path).log_probs(test), first.log_probs(test))


def test_a_forecast_of_nothing_but_unknown_occupations_is_refused():
    train, valid, test = parts(CAREERS)
    model = Empirical().fit(train, valid, choice_set(train))
    later = pl.col("year") > 1982
    odd = test.table.with_columns(occupation=pl.when(later).then(pl.lit("004")).otherwise("occupation"))
    careers = panel(**odd.drop("survey").to_dict())
    with pytest.raises(DataError, match=r"persons with records after 1982 .* nothing to forecast"):
        foretell(model, careers, 1982, 3, 5, "carried", 0, lambda done, persons: None)
