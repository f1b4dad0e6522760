"""The truth as the floor of every model: none does better on simulated careers, and one that peeks is caught."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from conftest import TRAIN, VALID, language
from small_networks import coded, trainer

from labor_llm.configs import conf_folder
from labor_llm.datasets import read
from labor_llm.datasets.simulated import Simulated
from labor_llm.datasets.wage_panel import WagePanel
from labor_llm.errors import ConfigError
from labor_llm.evaluate import PairedDifference, paired_difference
from labor_llm.models.bag_of_jobs import BagOfJobs
from labor_llm.models.base import choice_set
from labor_llm.models.career import Career
from labor_llm.models.embedding import Embedding
from labor_llm.models.empirical import Empirical
from labor_llm.models.language import LanguageModel
from labor_llm.models.logit import Logit
from labor_llm.models.markov import Markov
from labor_llm.models.mixture import Mixture
from labor_llm.models.nemo import Nemo
from labor_llm.models.oracle import Oracle
from labor_llm.predictions import ChoiceProbabilities, Predictions, choice_indices

DATASET = Simulated(persons=1500, occupations=8)
SPLITS = DATASET.split(read(DATASET))
CHOICES = choice_set(SPLITS.train)
REALISED = choice_indices(SPLITS.test.table["occupation"], CHOICES)
RUN = TemporaryDirectory()


def small_language() -> LanguageModel:
    """Reads a career in a third of the usual tokens, and so learns in seconds."""
    tiny = language(max_epochs=6)
    backbone = replace(tiny.backbone, vocabulary=700, phrases=100)
    return replace(tiny, backbone=backbone, trainer=replace(tiny.trainer, learning_rate=1e-2))


@cache
def language_run() -> Path:
    """A folder as that of a complete run of a language model, which is fitted once for all tests."""
    persons = SPLITS.train.table["person_id"].unique(maintain_order=True)
    some = SPLITS.train.select_persons(persons[:300])
    small_language().fit(some, SPLITS.valid, CHOICES).save(Path(RUN.name) / "model")
    return Path(RUN.name)


def fitted(model):
    return model.fit(SPLITS.train, SPLITS.valid, CHOICES)


def network(kind, **settings):
    return coded(kind, trainer=trainer(learning_rate=2e-2), **settings)


def mixture() -> Mixture:
    """Of two models that were fitted before."""
    components = {"markov2": Markov(order=2), "logit": Logit(l2=(3,))}
    folders = [Path(RUN.name) / name for name in components]
    for folder, name in zip(folders, components, strict=True):
        MODELS[name]().save(folder / "model")
    return fitted(Mixture(runs=folders, components=components))


MODELS = {
    "empirical": lambda: fitted(Empirical()),
    "markov": lambda: fitted(Markov()),
    "markov2": lambda: fitted(Markov(order=2)),
    "logit": lambda: fitted(Logit(l2=(3,))),
    "bag_of_jobs": lambda: fitted(network(BagOfJobs, width=32)),
    "nemo": lambda: fitted(network(Nemo, width=8, state=16, two_stage=False)),
    "career": lambda: fitted(network(Career, layers=2, width=24, feed_forward=48, heads=3)),
    "language": lambda: small_language().load(language_run() / "model"),
    "embedding": lambda: fitted(Embedding(name="small", language=small_language(), fitted=language_run())),
    "mixture": mixture,
    "oracle": lambda: fitted(Oracle(dataset=DATASET)),
}
"""By the names of conf/model; all of them learn enough to come near the truth."""


@cache
def predicted(name: str) -> np.ndarray:
    """Log-probabilities of the test persons' records, shape (N, J)."""
    return MODELS[name]().log_probs(SPLITS.test)


def advantage(log_probs_NJ: np.ndarray) -> PairedDifference:
    """In log score over the truth, record by record."""
    certain = np.zeros(len(SPLITS.test))
    model, truth = (
        Predictions.of(SPLITS.test, CHOICES, ChoiceProbabilities(each_NJ, certain))
        for each_NJ in (log_probs_NJ, predicted("oracle"))
    )
    return paired_difference(model, truth)


def beats_the_truth(log_probs_NJ: np.ndarray) -> bool:
    """Beyond sampling error, clustered by person."""
    found = advantage(log_probs_NJ)
    return found.difference > 3 * found.se


def peeking(log_probs_NJ: np.ndarray, share: float) -> np.ndarray:
    """The same with a share of all probability moved to what was realised."""
    probabilities_NJ = (1 - share) * np.exp(log_probs_NJ)
    probabilities_NJ[np.arange(len(REALISED)), REALISED] += share
    return np.log(probabilities_NJ)


def test_all_models_are_here():
    assert MODELS.keys() == {path.stem for path in (conf_folder() / "model").glob("*.yaml")}


@pytest.mark.parametrize("name", [name for name in MODELS if name != "oracle"])
def test_no_model_beats_the_truth(name):
    assert not beats_the_truth(predicted(name))


@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("empirical", "oracle")])
def test_every_model_is_so_near_the_truth_that_peeking_would_be_caught(name):
    """All but frequencies without history, which are too far from it."""
    assert beats_the_truth(peeking(predicted(name), 0.1))
    found = advantage(predicted(name))
    assert -0.4 < found.difference < -4 * found.se  # they lack what the truth knows


@pytest.mark.parametrize("share", [0.002, 0.02])
def test_the_least_peeking_at_the_truth_is_caught(share):
    assert beats_the_truth(peeking(predicted("oracle"), share))


class Late(Markov):
    """Believes a record's own occupation to be that of the record before: a shift by one."""

    def _rows(self, careers):
        return choice_indices(careers.table["occupation"], self.choice_set)


def test_a_model_that_reads_a_record_too_late_is_caught():
    assert beats_the_truth(fitted(Late()).log_probs(SPLITS.test))


def without(part: str) -> np.ndarray:
    """The truth of a process that lacks a part, about careers of the one that has it."""
    whole = DATASET.process
    lacking = {
        "the type": {
            "shares_K": np.ones(1),
            "types_KJ": whole.types_KJ.mean(0)[None],
            "stay_K": whole.stay_K[1:2],
        },
        "the record before the last": {"earlier_IJ": 0 * whole.earlier_IJ, "settled": 0.0},
        "covariates": {"effects": {}},
    }
    return replace(whole, **lacking[part]).true_log_probs(SPLITS.test)


@pytest.mark.parametrize("part", ["the type", "the record before the last", "covariates"])
def test_every_part_of_the_process_matters(part):
    assert DATASET.choice_set == CHOICES
    found = advantage(without(part))
    assert found.difference < -4 * found.se


def test_the_oracle_asks_for_a_dataset_that_knows():
    with pytest.raises(ConfigError, match=r"true probabilities of dataset 'wage_panel'. Use dataset=simulated"):
        Oracle(dataset=WagePanel()).fit(TRAIN, VALID, ("095",))


def test_the_oracle_keeps_the_mass_of_a_smaller_choice_set():
    """And gives nothing to what the process never makes."""
    assert "004" not in CHOICES
    part = (*CHOICES[2:], "004")
    whole = DATASET.true_log_probs(SPLITS.test)
    found = Oracle(dataset=DATASET).fit(SPLITS.train, SPLITS.valid, part).predict(SPLITS.test)
    np.testing.assert_allclose(np.exp(found.log_mass_N), np.exp(whole[:, 2:]).sum(1))
    np.testing.assert_allclose(found.log_probs_NJ[:, :-1] + found.log_mass_N[:, None], whole[:, 2:])
    assert np.isneginf(found.log_probs_NJ[:, -1]).all()
