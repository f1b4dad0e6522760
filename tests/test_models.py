"""The contract of every occupation model, and what is exact for each."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
import pytest
from conftest import CHOICES, TEST, TRAIN, VALID, language, panel, save_model
from small_networks import coded

from labor_llm.careers import Careers
from labor_llm.datasets.simulated import Simulated
from labor_llm.errors import DataError, RunError
from labor_llm.evaluate import evaluate
from labor_llm.language.adapters import Frozen
from labor_llm.language.backbones import HubBackbone
from labor_llm.language.prompts import InContextPrompt, TitlesPrompt
from labor_llm.language.scoring import ExactScoring, PrunedScoring, RealizedScoring
from labor_llm.models.bag_of_jobs import BagOfJobs
from labor_llm.models.base import Workspace
from labor_llm.models.career import Career
from labor_llm.models.embedding import Embedding
from labor_llm.models.empirical import Empirical
from labor_llm.models.logit import Logit
from labor_llm.models.markov import Markov
from labor_llm.models.mixture import Mixture
from labor_llm.models.nemo import Nemo
from labor_llm.models.oracle import Oracle
from labor_llm.predictions import Predictions, choice_indices
from labor_llm.templates import Tokens
from labor_llm.tracking import NoTracker

SHELF = TemporaryDirectory()


@cache
def shelf() -> HubBackbone:
    """A small GPT-2 on disk, as one downloads it."""
    return HubBackbone(name="shelf", path=str(save_model("gpt2", Path(SHELF.name))))


def off_the_shelf(**changes):
    return replace(language(), adapter=Frozen(), backbone=shelf(), **changes)


@cache
def fitted_before() -> dict[str, Path]:
    """Folders with models as runs leave them."""
    folders = {name: Path(SHELF.name) / name for name in ("markov", "logit")}
    for folder, model in zip(folders.values(), (Markov(), Logit()), strict=True):
        model.fit(TRAIN, VALID, CHOICES).save(folder / "model")
    return folders


def mixture(**settings) -> Mixture:
    components = {"markov": Markov(), "logit": Logit()}
    return Mixture(runs=list(fitted_before().values()), components=components, **settings)


MODELS = {
    "empirical": Empirical,
    "markov": Markov,
    "markov2": lambda: Markov(order=2),
    "language": language,
    "bag_of_jobs": lambda: coded(BagOfJobs, width=32),
    "career": lambda: coded(Career, layers=2, width=24, feed_forward=48, heads=3),
    "nemo": lambda: coded(Nemo, width=8, state=16, two_stage=False),
    "logit": Logit,
    "logit-one-stage": lambda: Logit(two_stage=False),
    "language-token": lambda: replace(language(), label=Tokens()),
    "language-frozen-titles": lambda: off_the_shelf(prompt=TitlesPrompt()),
    "language-frozen-in-context": lambda: off_the_shelf(prompt=InContextPrompt(careers=1)),
    "embedding": lambda: Embedding(name="embedding", language=off_the_shelf()),
    "embedding-pca": lambda: Embedding(name="embedding", language=off_the_shelf(), pca=4),
    "mixture": mixture,
    "mixture-history": lambda: mixture(by="history"),
    "oracle": lambda: Oracle(dataset=Simulated(occupations=330)),
}


@pytest.fixture(scope="module", params=sorted(MODELS))
def make(request):
    return MODELS[request.param]


@pytest.fixture(scope="module")
def fitted(make):
    return make().fit(TRAIN, VALID, CHOICES)


def changed_after(year: int) -> Careers:
    """The test careers with all that is known after the year replaced, and the wages of the year, too."""
    later = pl.col("year") > year
    table = TEST.table.with_columns(
        occupation=pl.when(later).then(pl.lit("004")).otherwise("occupation"),
        education=pl.when(later & (pl.col("year") > year + 1)).then(pl.lit("graduate")).otherwise("education"),
        region=pl.when(later & (pl.col("year") > year + 1)).then(pl.lit("west")).otherwise("region"),
        weight=pl.when(later).then(9.0).otherwise("weight"),
        log_wage=pl.when(pl.col("year") >= year).then(9.0).otherwise("log_wage"),
    )
    return Careers.validated(table, dataset="test", taxonomy=TEST.taxonomy, source="changed")


def test_the_choice_set_holds_states_that_nobody_is_in(fitted):
    """A model gives them a probability: somebody may enter them after training."""
    unseen = TRAIN.taxonomy.states - set(TRAIN.table["occupation"])
    assert unseen
    assert unseen < set(CHOICES)
    places = [fitted.choice_set.index(state) for state in unseen]
    assert np.isfinite(fitted.log_probs(TEST)[:, places]).all()


def test_rows_are_distributions_over_the_choice_set(fitted):
    log_probs = fitted.log_probs(TEST)
    assert log_probs.shape == (len(TEST), len(CHOICES))
    np.testing.assert_allclose(np.exp(log_probs).sum(axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("year", [1980, 1983])
def test_a_prediction_sees_neither_its_own_record_nor_later_ones(fitted, year):
    up_to = (TEST.table["year"] <= year).to_numpy()
    before, after = fitted.log_probs(TEST), fitted.log_probs(changed_after(year - 1))
    np.testing.assert_allclose(after[up_to], before[up_to], atol=1e-5, rtol=1e-6)  # float32 of -49 nats


def test_the_same_seed_gives_the_same_numbers(make, fitted):
    np.testing.assert_array_equal(make().fit(TRAIN, VALID, CHOICES).log_probs(TEST), fitted.log_probs(TEST))


def test_a_saved_model_predicts_the_same(make, fitted, tmp_path):
    fitted.save(tmp_path)
    loaded = make().load(tmp_path)
    assert loaded.choice_set == CHOICES
    np.testing.assert_allclose(loaded.log_probs(TEST), fitted.log_probs(TEST), atol=1e-6)


def test_persons_do_not_influence_each_other(fitted):
    alone = [fitted.log_probs(TEST.select_persons([person])) for person in ["p50", "p53"]]
    together = fitted.log_probs(TEST.select_persons(["p50", "p53"]))
    np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-4)


def test_last_records_alone_are_predicted_the_same(fitted):
    last = fitted.predict_last(TEST).log_probs_NJ
    np.testing.assert_allclose(last, fitted.log_probs(TEST)[TEST.person_starts[1:] - 1], atol=1e-4)


def test_occupations_outside_the_choice_set_may_stand_in_a_history(fitted):
    assert "004" not in CHOICES
    odd = panel(person_id=["x"] * 3, year=[1980, 1981, 1982], occupation=["095", "004", "243"])
    assert np.isfinite(fitted.log_probs(odd)).all()


def test_one_record_and_no_covariates_suffice(fitted):
    assert fitted.log_probs(panel(person_id=["x"], year=[1990], occupation=["095"])).shape == (
        1,
        len(CHOICES),
    )


def test_predicting_before_fit_names_the_model(make):
    model = make()
    with pytest.raises(RuntimeError, match=f"{type(model).__name__}.predict was called before fit"):
        model.log_probs(TEST)


def test_loading_from_an_empty_folder_is_refused(make, tmp_path):
    with pytest.raises(RunError, match="no fitted model"):
        make().load(tmp_path)


def test_validation_persons_without_a_known_occupation_are_refused():
    odd = panel(person_id=["x"] * 2, year=[1980, 1981], occupation=["004", "004"])
    with pytest.raises(
        DataError, match="no record of the 1 validation persons of dataset 'test' has an occupation"
    ):
        Markov().fit(TRAIN, odd, CHOICES)


def test_choice_set_is_what_training_saw_and_the_special_states():
    assert set(CHOICES) == set(TRAIN.table["occupation"]) | TRAIN.taxonomy.states
    assert list(CHOICES) == [code for code in TRAIN.taxonomy.codes if code in CHOICES]


def test_choice_indices_mark_the_unknown():
    codes = pl.Series(["095", "004", None])
    assert choice_indices(codes, ("243", "095")).tolist() == [1, -1, -1]


def test_empirical_is_the_smoothed_frequency():
    model = Empirical().fit(TRAIN, VALID, CHOICES)
    counts = np.array([(TRAIN.table["occupation"] == code).sum() for code in CHOICES])
    shares = counts / counts.sum()
    assert np.abs(model.shares_J_ - shares).max() < 0.02
    assert (model.shares_J_ > 0).all()


def test_markov_is_between_the_row_frequencies_and_the_margin():
    model = Markov().fit(TRAIN, VALID, CHOICES)
    pairs = TRAIN.table.select(to="occupation", before=TRAIN.previous).drop_nulls()
    row = pairs.filter(pl.col("before") == "095")["to"]
    stay = model.probabilities_IJ_[CHOICES.index("095"), CHOICES.index("095")]
    assert (TRAIN.table["occupation"] == "095").mean() < stay <= (row == "095").mean()


def test_training_moves_mass_onto_the_titles():
    masses = [language(epochs).fit(TRAIN, VALID, CHOICES).predict(TEST).log_mass_N for epochs in (1, 20)]
    assert all((mass <= 1e-5).all() for mass in masses)
    assert masses[0].mean() < masses[1].mean() - 5


@pytest.fixture(scope="module")
def trained():
    return language().fit(TRAIN, VALID, CHOICES)


def test_pruned_probabilities_are_within_their_bound(trained):
    exact = trained.predict(TEST)
    trained.scoring = PrunedScoring(tolerance=0.05)
    pruned = trained.predict(TEST)
    trained.scoring = ExactScoring()
    distance_N = np.abs(np.exp(pruned.log_probs_NJ) - np.exp(exact.log_probs_NJ)).sum(1) / 2
    assert exact.error_bound_N is None
    assert (distance_N <= pruned.error_bound_N + 1e-6).all()
    assert 0 < pruned.error_bound_N.max() <= 0.05
    realised_N = choice_indices(TEST.table["occupation"], CHOICES)
    rows = np.arange(len(TEST))
    raw = [p.log_probs_NJ[rows, realised_N] + p.log_mass_N for p in (pruned, exact)]
    np.testing.assert_allclose(*raw, atol=1e-4)


def test_realised_occupations_alone_have_the_same_raw_probability(trained):
    exact = Predictions.of(TEST, CHOICES, trained.predict(TEST))
    trained.scoring = RealizedScoring()
    realised = Predictions.of(TEST, CHOICES, trained.predict(TEST))
    with pytest.raises(RuntimeError, match="realised occupations only"):
        trained.log_probs(TEST)
    trained.scoring = ExactScoring()
    np.testing.assert_allclose(realised.table["log_prob_raw"], exact.table["log_prob_raw"], atol=1e-4)
    whole, part = evaluate(exact), evaluate(realised)
    assert part.estimate("perplexity_raw").value == pytest.approx(whole.estimate("perplexity_raw").value, rel=1e-4)
    assert part.estimate("perplexity").value is None
    assert part.estimate("top1").value is None
    assert "before normalisation" in str(part)


def test_validation_counts_what_the_evaluation_counts():
    """Occupations outside the choice set count in neither."""

    class Last(NoTracker):
        def log(self, metrics, step):
            self.monitored = metrics.get("valid/perplexity_raw", getattr(self, "monitored", None))

    choices, tracker = CHOICES[1:], Last()
    train = replace(TRAIN, table=TRAIN.table.filter(pl.col("occupation") != CHOICES[0]))
    model = language(max_epochs=1).fit(train, VALID, choices, Workspace(tracker=tracker))
    evaluated = evaluate(Predictions.of(VALID, choices, model.predict(VALID)))
    assert (VALID.table["occupation"] == CHOICES[0]).any()
    assert tracker.monitored == pytest.approx(evaluated.estimate("perplexity_raw").value, rel=1e-4)
