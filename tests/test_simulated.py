"""The truth of simulated careers: against enumeration and against the draws (test_oracle.py: as the floor)."""

import math

import numpy as np
import polars as pl
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from pydantic import ValidationError

from labor_llm.careers import Careers
from labor_llm.configs import conf_folder
from labor_llm.datasets import read
from labor_llm.datasets.simulated import LEVELS, Process, Simulated
from labor_llm.errors import ConfigError
from labor_llm.evaluate import clustered_mean
from labor_llm.predictions import choice_indices

DATASET = Simulated(persons=1500, occupations=8)
CAREERS = read(DATASET)


def naive_probability(process: Process, worker: int, past: list[str], record: dict) -> dict[str, float]:
    """The formula of the module for one type and one record, number by number."""
    codes = list(process.choice_set)
    none, never = len(codes), len(codes) + 1

    def place(lag: int) -> int:
        if len(past) < lag:
            return none
        return codes.index(past[-lag]) if past[-lag] in codes else never

    weights = []
    for number, code in enumerate(codes):
        utility = process.types_KJ[worker][number]
        utility += process.before_IJ[place(1)][number] + process.earlier_IJ[place(2)][number]
        for name, levels in LEVELS.items():
            if record[name] in levels:
                utility += process.effects[name][levels.index(record[name])][number]
        if record["birth_year"] is not None:
            utility += (record["year"] - record["birth_year"] - 30) / 10 * process.age_J[number]
        if past and past[-1] == code:
            utility += process.stay_K[worker]
            utility += process.settled if past[-2:] == [code, code] else 0.0
        weights.append(math.exp(utility))
    return {code: weight / sum(weights) for code, weight in zip(codes, weights, strict=True)}


def enumerated(process: Process, career: pl.DataFrame) -> list[list[float]]:
    """P(next | past) as P(past and next) / P(past), each summed over all types."""
    joint = list(process.shares_K)
    rows, past = [], []
    for record in career.iter_rows(named=True):
        given_type = [naive_probability(process, worker, past, record) for worker in range(len(joint))]
        rows.append(
            [
                sum(of_past * p[code] for of_past, p in zip(joint, given_type, strict=True)) / sum(joint)
                for code in process.choice_set
            ]
        )
        code = record["occupation"]
        joint = [of_past * p.get(code, 1.0) for of_past, p in zip(joint, given_type, strict=True)]
        past.append(code)
    return rows


@pytest.mark.parametrize("types", [1, 2, 4])
def test_the_truth_is_what_enumeration_of_the_types_gives(types):
    dataset = Simulated(persons=12, occupations=3, types=types, max_records=9)
    careers = read(dataset)
    expected = np.concatenate(
        [
            enumerated(dataset.process, person)
            for person in careers.table.partition_by("person_id", maintain_order=True)
        ]
    )
    np.testing.assert_allclose(np.exp(dataset.true_log_probs(careers)), expected, rtol=1e-9)


def test_what_the_process_never_makes_has_no_effect():
    dataset = Simulated(persons=4, occupations=3)
    careers = read(dataset)
    assert "004" not in dataset.choice_set
    second = pl.int_range(pl.len()).over("person_id") == 1
    table = careers.table.with_columns(
        gender=pl.lit(None, pl.String),
        birth_year=pl.lit(None, pl.Int32),
        education=pl.lit("an apprenticeship"),
        occupation=pl.when(second).then(pl.lit("004")).otherwise("occupation"),
    )
    odd = Careers.validated(table, dataset="odd", taxonomy=careers.taxonomy, source="changed")
    expected = np.concatenate(
        [
            enumerated(dataset.process, person)
            for person in odd.table.partition_by("person_id", maintain_order=True)
        ]
    )
    np.testing.assert_allclose(np.exp(dataset.true_log_probs(odd)), expected, rtol=1e-9)


def z_score(careers: Careers, value_N) -> float:
    """How many standard errors, clustered by person, a mean is from zero."""
    estimate = clustered_mean(careers.table.with_columns(value=pl.Series(value_N)), pl.col("value"))
    return estimate.value / estimate.se


def test_the_draws_follow_the_truth():
    """Every occupation, and staying, is as frequent as the truth says, and surprises have the size of entropy."""
    log_probs = DATASET.true_log_probs(CAREERS)
    probabilities = np.exp(log_probs)
    realised = choice_indices(CAREERS.table["occupation"], DATASET.choice_set)
    rows = np.arange(len(CAREERS))
    scores = [
        z_score(CAREERS, (realised == place) - probabilities[:, place]) for place in range(probabilities.shape[1])
    ]
    before = choice_indices(CAREERS.previous, DATASET.choice_set)
    stays = np.where(before < 0, 0.0, (realised == before) - probabilities[rows, before])
    scores.append(z_score(CAREERS, stays))
    entropy = -(probabilities * log_probs).sum(1)
    scores.append(z_score(CAREERS, -log_probs[rows, realised] - entropy))
    assert np.abs(scores).max() < 3.5


def test_the_same_settings_give_the_same_careers_and_another_seed_other_persons():
    small = Simulated(persons=50)
    other = Simulated(persons=50, seed=1)
    assert read(small).table.equals(read(Simulated(persons=50)).table)
    assert small.process is other.process
    persons = [set(read(dataset).table["person_id"]) for dataset in (small, other)]
    assert not persons[0] & persons[1]
    counts = read(small).table.group_by("person_id").len()["len"]
    assert (counts.min(), counts.max()) == (5, 15)


def test_education_rises_and_all_else_is_constant():
    per_person = CAREERS.table.with_columns(
        level=pl.col("education").replace_strict({name: place for place, name in enumerate(LEVELS["education"])})
    ).group_by("person_id")
    changes = per_person.agg(
        pl.col("level").diff().drop_nulls().min().alias("least"), pl.col("region", "gender").n_unique()
    )
    assert changes["least"].min() == 0
    assert (changes["region"].max(), changes["gender"].max()) == (1, 1)
    assert CAREERS.table.group_by("person_id").agg(pl.col("education").n_unique())["education"].max() > 1


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"min_records": 9, "max_records": 8}, ValidationError, "at most max_records, got 9 and 8"),
        ({"occupations": 999}, ValidationError, "at most 330, which taxonomy 'occ1990dd' has beside its states"),
        ({"taxonomy": "occ1991"}, ConfigError, "unknown packaged taxonomy 'occ1991'"),
        ({"person": 5}, ValidationError, "person"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        Simulated(**settings)


def test_a_taxonomy_without_states_will_do():
    assert set(read(Simulated(persons=9, taxonomy="census1970_major_groups", occupations=4)).table["year"])


def test_the_yaml_says_what_the_class_does():
    assert instantiate(OmegaConf.load(conf_folder() / "dataset" / "simulated.yaml")) == Simulated()
