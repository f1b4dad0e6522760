"""Weights against their conditions of optimality, predictions that are taken, runs that do not fit together."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conftest import CHOICES, TEST, TRAIN, VALID
from hydra import compose, initialize_config_dir
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import logsumexp

from labor_llm.compare import compare
from labor_llm.comparison.side_by_side import Statistics
from labor_llm.configs import conf_folder
from labor_llm.errors import ConfigError, RunError
from labor_llm.evaluate import evaluate
from labor_llm.models.base import OccupationModel
from labor_llm.models.empirical import Empirical
from labor_llm.models.markov import Markov
from labor_llm.models.mixture import Mixture, convex_weights
from labor_llm.predictions import ChoiceProbabilities, Predictions, RealizedProbabilities
from labor_llm.run import run, score


def log_scores(records: int, components: int, seed: int, alike: float) -> np.ndarray:
    """Log-probabilities of what happened; the more alike, the less the components differ."""
    rng = np.random.default_rng(seed)
    common, own = rng.normal(-2, 1, (records, 1)), rng.normal(0, 1 - alike, (records, components))
    return np.minimum(common + own, 0)


@given(st.integers(1, 200), st.integers(2, 5), st.integers(0, 999), st.sampled_from([0, 0.9, 0.999, 1]))
def test_weights_satisfy_the_conditions_of_the_optimum(records, components, seed, alike):
    scores_NK = log_scores(records, components, seed, alike)
    weights_K = convex_weights(scores_NK)
    gains_K = np.exp(scores_NK - logsumexp(scores_NK + np.log(weights_K), axis=1, keepdims=True)).mean(0)
    assert weights_K.sum() == pytest.approx(1)
    assert (weights_K >= 0).all()
    assert gains_K.max() <= 1 + 1e-5
    np.testing.assert_allclose(weights_K * (gains_K - 1), 0, atol=1e-5)


def test_two_weights_are_those_of_a_grid():
    scores_NK = log_scores(300, 2, 7, 0.0) - np.array([0.0, 0.2])
    grid = np.linspace(0, 1, 10_001)
    with np.errstate(divide="ignore"):
        values = [np.logaddexp(scores_NK[:, 0] + np.log(w), scores_NK[:, 1] + np.log(1 - w)).mean() for w in grid]
    assert 0.1 < grid[np.argmax(values)] < 0.9
    assert convex_weights(scores_NK)[0] == pytest.approx(grid[np.argmax(values)], abs=2e-3)


def test_impossible_outcomes_of_one_component_leave_weight_to_the_other():
    with np.errstate(divide="ignore"):
        scores_NK = np.log(np.array([[0.9, 0.1]] * 99 + [[0.0, 0.1]]))
    weights_K = convex_weights(scores_NK)
    # 99 log(0.1 + 0.8 w) + log(0.1 - 0.1 w) is highest where 99 x 0.8 (1 - w) = 0.1 + 0.8 w
    assert weights_K[0] == pytest.approx(79.1 / 80, abs=1e-3)
    assert convex_weights(np.full((3, 2), -np.inf)).tolist() == [0.5, 0.5]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """Folders with fitted models, as runs leave them."""
    folder = tmp_path_factory.mktemp("runs")
    for name, model in (("markov", Markov()), ("empirical", Empirical())):
        model.fit(TRAIN, VALID, CHOICES).save(folder / name / "model")
    return {name: folder / name for name in ("markov", "empirical")}


def mixture(runs: dict[str, Path], **settings) -> Mixture:
    components = {"markov": Markov(), "empirical": Empirical()}
    return Mixture(runs=list(runs.values()), components=components, **settings)


@pytest.mark.parametrize("by", [None, "history"])
def test_probabilities_are_the_weighted_mean(runs, by):
    model = mixture(runs, by=by).fit(TRAIN, VALID, CHOICES)
    parts = [kind().load(runs[name] / "model") for name, kind in (("markov", Markov), ("empirical", Empirical))]
    earlier = TEST.table.select(pl.int_range(pl.len()).over("person_id")).to_series()
    groups = {None: [0] * len(TEST), "history": [0 if n == 0 else 1 if n <= 3 else 2 for n in earlier]}[by]
    weights_NK = model.weights_GK_[groups]
    expected = sum(weights_NK[:, [place]] * np.exp(part.log_probs(TEST)) for place, part in enumerate(parts))
    np.testing.assert_allclose(np.exp(model.log_probs(TEST)), expected, rtol=1e-9)
    assert len(np.unique(model.weights_GK_, axis=0)) == (3 if by else 1)


def test_every_group_has_the_weights_of_its_own_records(runs):
    model = mixture(runs, by="history").fit(TRAIN, VALID, CHOICES)
    markov, empirical = (
        Predictions.of(VALID, CHOICES, kind().load(runs[name] / "model").predict(VALID))
        .table["log_prob"]
        .to_numpy()
        for name, kind in (("markov", Markov), ("empirical", Empirical))
    )
    late = VALID.table["year"].to_numpy() >= 1984  # everybody begins in 1980
    np.testing.assert_allclose(
        model.weights_GK_[2], convex_weights(np.column_stack([markov, empirical])[late]), atol=1e-9
    )
    table = model.table_
    assert table["records"].to_list() == [10, 10, 30, 30, 20, 20]
    late_rows = table.filter(group="more records before")
    assert late_rows["log_score"].to_list() == pytest.approx([markov[late].mean(), empirical[late].mean()])
    mixed = np.log(
        np.exp(markov[late]) * model.weights_GK_[2, 0] + np.exp(empirical[late]) * model.weights_GK_[2, 1]
    )
    assert late_rows["mixture_log_score"][0] == pytest.approx(mixed.mean())


def test_a_group_without_validation_records_has_the_weights_of_all(runs):
    early = VALID.table.filter(pl.col("year") == 1980)
    first = type(VALID)(early, VALID.dataset, VALID.taxonomy, VALID.source)
    model = mixture(runs, by="history").fit(TRAIN, first, CHOICES)
    np.testing.assert_array_equal(model.weights_GK_[1:], model.weights_GK_[[0, 0]])
    assert model.table_["log_score"].null_count() == 4


def test_weights_are_written_and_logged(runs, tmp_path, caplog):
    with caplog.at_level("INFO"):
        model = mixture(runs).fit(TRAIN, VALID, CHOICES)
    weights = model.weights_GK_[0]
    said = f"{weights[0]:.3f} of markov, {weights[1]:.3f} of empirical"
    assert f"mixture: all records (60 validation records): {said}" in caplog.text
    model.save(tmp_path / "model")
    assert pl.read_csv(tmp_path / "model" / "weights.csv")["weight"].to_list() == pytest.approx(weights)
    assert [
        row["weight"] for row in json.loads((tmp_path / "model" / "mixture.json").read_text())["table"]
    ] == list(weights)


def test_validation_persons_count_as_seen_and_training_persons_are_refused(runs):
    model = mixture(runs).fit(TRAIN, VALID, CHOICES)
    assert model.persons_seen(VALID) == VALID.persons
    assert model.persons_seen(TEST) == 0
    with pytest.raises(
        RunError, match=r"mixture cannot predict 40 of the 40 persons: the run in .*markov was trained"
    ):
        model.predict(TRAIN)
    with pytest.raises(RunError, match="cannot predict 40 of the 40"):
        model.predict_last(TRAIN)


def test_runs_of_other_training_persons_are_refused(runs, tmp_path):
    """One of them may have seen whom the mixture is tested on."""
    Markov().fit(VALID, TRAIN, CHOICES).save(tmp_path / "model")
    with pytest.raises(RunError, match="was fitted on 10 persons, 0 of them among the 40 training persons here"):
        mixture(runs | {"markov": tmp_path}).fit(TRAIN, VALID, CHOICES)
    Markov().fit(TRAIN, VALID, CHOICES[1:]).save(tmp_path / "model")
    with pytest.raises(RunError, match=rf"has {len(CHOICES) - 1} occupations .* here they are {len(CHOICES)}"):
        mixture(runs | {"markov": tmp_path}).fit(TRAIN, VALID, CHOICES)
    with pytest.raises(ConfigError, match="0 models are given for 2 runs"):
        Mixture(runs=list(runs.values())).fit(TRAIN, VALID, CHOICES)


def test_components_that_are_gone_are_named(runs, tmp_path):
    mixture(runs).fit(TRAIN, VALID, CHOICES).save(tmp_path / "mixture" / "model")
    (tmp_path / "mixture" / "model" / "mixture.json").write_text(
        json.dumps({"runs": ["../../nowhere", "../../gone"], "table": []})
    )
    with pytest.raises(RunError, match=r"reads the model of the run in .*nowhere, which is gone"):
        mixture(runs).load(tmp_path / "mixture" / "model")


class Bounded(Empirical):
    """Says how far its probabilities may be off."""

    def _predict(self, careers, workspace):
        found = super()._predict(careers, workspace)
        return ChoiceProbabilities(found.log_probs_NJ, found.log_mass_N - 1, np.full(len(careers), 0.1))


class Realized(Empirical):
    """Scores what happened, and nothing else; nine tenths of its probability are titles."""

    def _predict(self, careers, workspace):
        whole = super()._predict(careers, workspace)
        places = [self.choice_set.index(code) for code in careers.table["occupation"]]
        return RealizedProbabilities(whole.log_probs_NJ[np.arange(len(places)), places] + np.log(0.9))


def test_a_bound_counts_with_its_weight(runs):
    model = mixture(runs)
    model.components["empirical"] = Bounded()
    found = model.fit(TRAIN, VALID, CHOICES).predict(TEST)
    np.testing.assert_allclose(found.error_bound_N, 0.1 * model.weights_GK_[0, 1])
    assert (found.log_mass_N == 0).all()


def test_with_a_component_that_scores_what_happened_the_mixture_does_too(runs):
    whole, model = mixture(runs), mixture(runs)
    model.components["empirical"] = Realized()
    whole.fit(TRAIN, VALID, CHOICES)
    model.fit(TRAIN, VALID, CHOICES)
    weights = model.weights_GK_[0]
    assert weights[1] < whole.weights_GK_[0, 1]  # it gave less to what happened
    found = model.predict(TEST)
    assert isinstance(found, RealizedProbabilities)
    places = [CHOICES.index(code) for code in TEST.table["occupation"]]
    markov, empirical = (
        component.log_probs(TEST)[np.arange(len(places)), places] for component in whole.components.values()
    )
    expected = np.logaddexp(np.log(weights[0]) + markov, np.log(weights[1]) + np.log(0.9) + empirical)
    np.testing.assert_allclose(found.log_prob_raw_N, expected, rtol=1e-6)


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    """Runs a verb in the test's own outputs; counts what each model predicts."""
    predicted, predict = [], OccupationModel.predict

    def counted(self, careers, *args):
        predicted.append((self.name, careers.persons))
        return predict(self, careers, *args)

    monkeypatch.setattr(OccupationModel, "predict", counted)

    def call(verb, *words: str) -> tuple[Path, list[tuple[str, int]]]:
        before = set(tmp_path.rglob("complete"))
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            cfg = compose(verb, overrides=[f"outputs={tmp_path}", *words])
        predicted.clear()
        (run if verb == "run" else score)(cfg)
        (new,) = set(tmp_path.rglob("complete")) - before or {None}
        return new and new.parent, list(predicted)

    return call


SAMPLES = ["train_persons=200", "test_persons=50"]


def of_models(outputs, *words: str) -> list[Path]:
    return [outputs("run", f"model={model}", "tracker=jsonl", *words)[0] for model in ("markov", "logit")]


def mixed(outputs, runs: list[Path], *words: str):
    return outputs("run", "model=mixture", "tracker=jsonl", f"model.runs=[{','.join(map(str, runs))}]", *words)


def test_predictions_on_disk_are_taken(outputs, tmp_path, caplog):
    runs = of_models(outputs, *SAMPLES)
    validated, _ = outputs("score", f"run={runs[0]}", "predict=valid")
    outputs("score", f"run={runs[1]}", "predict=valid", "keep_distribution=false")
    with caplog.at_level("INFO"):
        folder, predicted = mixed(outputs, runs, *SAMPLES, "valid_persons=30")
    assert predicted == [("logit", 30), ("mixture", 50)]  # the other predictions are there
    assert f"predictions are taken from {validated}" in caplog.text
    parts = {name: Predictions.read(run / "predictions.parquet") for name, run in zip("ab", runs, strict=True)}
    weights = pl.read_csv(folder / "model" / "weights.csv")["weight"]
    found = Predictions.read(folder / "predictions.parquet").table["log_prob"].to_numpy()
    expected = np.log(
        sum(w * np.exp(part.table["log_prob"]) for w, part in zip(weights, parts.values(), strict=True))
    )
    np.testing.assert_allclose(found, expected, atol=1e-6)
    again, predicted = mixed(outputs, [run.parent / "." / run.name for run in runs], *SAMPLES, "valid_persons=30")
    assert (again, predicted) == (None, [])  # complete already


def test_a_mixture_is_scored_again_and_moved_with_its_runs(outputs, tmp_path):
    folder, _ = mixed(outputs, of_models(outputs))
    first = evaluate(Predictions.read(folder / "predictions.parquet")).estimate("perplexity")
    (tmp_path / "wage_panel").rename(tmp_path / "moved")
    moved = tmp_path / "moved" / folder.relative_to(tmp_path / "wage_panel")
    again, predicted = outputs("score", f"run={moved}")
    assert predicted == [("mixture", 116)]
    assert evaluate(Predictions.read(again / "predictions.parquet")).estimate("perplexity") == pytest.approx(first)
    with pytest.raises(RunError, match="cannot predict 376 of the 545 persons"):
        outputs("score", f"run={moved}", "predict=all")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["train_persons=100"], "has train_persons=200 and not 100"),
        ([], "has train_persons=200 and not null"),
        (["train_persons=200", "known_until=1985"], "has known_until=null and not 1985"),
        (["train_persons=200", "dataset.split.salt=other"], "has other settings of dataset"),
    ],
)
def test_runs_that_learned_from_others_are_refused(outputs, words, reason):
    runs = of_models(outputs, "train_persons=200")
    with pytest.raises(RunError, match=reason):
        mixed(outputs, runs, *words)


def test_a_run_of_other_data_is_refused(outputs, tmp_path):
    runs = of_models(outputs)
    renamed = runs[0].rename(runs[0].with_name("20260101-000000-00000000"))
    with pytest.raises(
        RunError, match="was fitted on other data than 'wage_panel' has now, or its folder was renamed"
    ):
        mixed(outputs, [renamed, runs[1]])


def test_mixtures_of_other_runs_are_other_models(outputs, tmp_path):
    markov, logit = of_models(outputs)
    empirical, _ = outputs("run", "model=empirical", "tracker=jsonl")
    second, _ = outputs("run", "model=markov", "tracker=jsonl", "seed=1")
    for runs in ([markov, logit], [markov, empirical], [markov, second]):
        mixed(outputs, runs)
    found = compare([tmp_path], statistics=Statistics(replicates=100)).models["model"].to_list()
    assert len(found) == 6
    assert str(tmp_path) not in " ".join(found)
    assert [name for name in found if "model.components.logit=logit" in name]
