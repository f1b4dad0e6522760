"""Future careers against chains whose later distributions are known."""

import logging
import shutil
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from conftest import CHOICES, TEST, TRAIN, VALID, panel
from hydra import compose, initialize_config_dir

from labor_llm.configs import conf_folder
from labor_llm.errors import ConfigError, DataError, RunError
from labor_llm.forecast import forecast
from labor_llm.future import foretell
from labor_llm.models.empirical import Empirical
from labor_llm.models.markov import Markov
from labor_llm.run import run
from labor_llm.run_folder import is_complete


def silent(done: int, persons: int) -> None:
    """Tells nobody."""


@pytest.fixture(scope="module")
def markov():
    return Markov().fit(TRAIN, VALID, CHOICES)


CUTOFF = int(TEST.table["year"].min()) + 1


def drawn(model, careers=TEST, paths=50, covariates="observed", horizon=10, seed=0, cutoff=CUTOFF):
    return foretell(model, careers, cutoff, horizon, paths, covariates, seed, silent)


def test_the_next_record_is_foretold_by_the_model_itself(markov):
    future = drawn(markov, horizon=1, paths=3)
    rows = TEST.table.with_row_index().join(future.records, on=["person_id", "year"], how="semi")["index"]
    assert len(rows) == future.records.height > 0
    np.testing.assert_allclose(future.records["log_probs"].to_numpy(), markov.log_probs(TEST)[rows.to_numpy()])


def test_later_records_follow_the_powers_of_a_transition_matrix(markov):
    careers = panel(person_id=["x"] * 5, year=[1980, 1981, 1982, 1983, 1984], occupation=["095"] * 5)
    future = drawn(markov, careers, paths=4000, cutoff=1981)
    transition = markov.probabilities_IJ_[: len(CHOICES)]
    expected = transition[CHOICES.index("095")]
    for ahead in (1, 2, 3):
        found = np.exp(future.records.filter(years_ahead=ahead)["log_probs"].to_numpy()[0])
        np.testing.assert_allclose(found, expected, atol=0.02)
        expected = expected @ transition
    drawn_shares = future.paths.filter(year=1984)["occupation"].value_counts(normalize=True)
    for code, share in drawn_shares.iter_rows():
        assert share == pytest.approx(
            float((transition[CHOICES.index("095")] @ transition @ transition)[CHOICES.index(code)]), abs=0.03
        )


def test_nothing_after_the_cutoff_is_known(markov):
    later = pl.when(pl.col("year") > CUTOFF).then(pl.lit(CHOICES[0])).otherwise("occupation").alias("occupation")
    changed = panel(
        **TEST.table.with_columns(later).select("person_id", "year", "occupation").to_dict(as_series=False)
    )
    plain = panel(**TEST.table.select("person_id", "year", "occupation").to_dict(as_series=False))
    before, after = drawn(markov, plain), drawn(markov, changed)
    assert before.paths.equals(after.paths)
    np.testing.assert_array_equal(before.records["log_probs"].to_numpy(), after.records["log_probs"].to_numpy())


def test_a_seed_draws_the_same_paths_and_the_next_record_does_not_depend_on_groups(markov, monkeypatch):
    whole = drawn(Empirical().fit(TRAIN, VALID, CHOICES), paths=5)
    assert drawn(Empirical().fit(TRAIN, VALID, CHOICES), paths=5).paths.equals(whole.paths)
    assert not drawn(Empirical().fit(TRAIN, VALID, CHOICES), paths=5, seed=1).paths.equals(whole.paths)
    together = drawn(markov, horizon=1)
    monkeypatch.setattr("labor_llm.future.RECORDS_AT_A_TIME", 1)
    assert drawn(markov, horizon=1).records.equals(together.records)


def test_small_cells_are_left_out_of_the_table(markov):
    future = drawn(markov)
    persons = future.records["person_id"].n_unique()
    assert future.table(min_persons=persons + 1).is_empty()
    by_state = future.records.filter(pl.col("occupation").is_in(TEST.taxonomy.states))
    counts = dict(by_state.group_by("occupation").agg(pl.col("person_id").n_unique()).iter_rows())
    shown = set(future.table(min_persons=3).filter(years_ahead="all")["metric"]) - {"perplexity"}
    rare = {f"auc_{code}" for code, having in counts.items() if having < 3}
    assert not shown & rare


def test_covariates_are_carried_from_the_last_known_record(markov):
    seen = []

    class Watching(Markov):
        def _predict(self, careers, workspace):
            seen.append(careers.table)
            return super()._predict(careers, workspace)

    watching = Watching().fit(TRAIN, VALID, CHOICES)
    careers = panel(
        person_id=["x"] * 3, year=[1980, 1981, 1982], occupation=["095"] * 3, education=["low", "middle", "high"]
    )
    drawn(watching, careers, paths=1, covariates="carried", cutoff=1981)
    assert seen[-1]["education"].to_list() == ["low", "middle", "middle"]
    drawn(watching, careers, paths=1, covariates="observed", cutoff=1981)
    assert seen[-1]["education"].to_list() == ["low", "middle", "high"]


def test_the_table_has_perplexities_and_states_by_year(markov):
    future = drawn(markov)
    table = future.table()
    everything = table.filter(years_ahead="all", metric="perplexity").row(0, named=True)
    log_prob = future.records["log_prob"].drop_nulls()
    assert everything["value"] == pytest.approx(np.exp(-log_prob.mean()))
    assert everything["records"] == len(log_prob)
    states = {f"auc_{code}" for code in CHOICES if code in TEST.taxonomy.states}
    assert {name for name in table["metric"] if not name.endswith("_weighted")} == {"perplexity", *states}


def test_survey_weights_count(markov):
    person = pl.col("person_id")
    weights = pl.when(person < "p53").then(2.0).when(person < "p55").then(1.0).otherwise(0.0)
    weighted = replace(TEST, table=TEST.table.with_columns(weight=weights))
    table = drawn(markov, weighted).table()
    heavy = drawn(markov, weighted).records.filter(pl.col("weight") > 0)
    line = table.filter(years_ahead="all", metric="perplexity_weighted").row(0, named=True)
    scored = heavy.drop_nulls("log_prob")
    assert line["value"] == pytest.approx(np.exp(-np.average(scored["log_prob"], weights=scored["weight"])))
    assert line["value"] != pytest.approx(np.exp(-scored["log_prob"].mean()), rel=1e-4)
    assert line["persons"] == scored["person_id"].n_unique() < TEST.persons
    unweighted = {name for name in table["metric"] if not name.endswith("_weighted")}
    assert {f"{name}_weighted" for name in unweighted} == set(table["metric"]) - unweighted
    bare = replace(TEST, table=TEST.table.with_columns(weight=pl.lit(None, pl.Float64)))
    assert not any("weighted" in name for name in drawn(markov, bare).table()["metric"])


def test_without_a_future_there_is_nothing_to_foretell(markov):
    with pytest.raises(DataError, match=r"nobody .* records both up to 1800 and in the 10 years after"):
        drawn(markov, cutoff=1800)


@pytest.fixture
def fitted(tmp_path):
    """The folder of a run that knows nothing after 1984."""
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        run(compose("run", [f"outputs={tmp_path}", "model=markov", "tracker=jsonl", "known_until=1984"]))
    return next(folder for folder in (tmp_path / "wage_panel/markov").iterdir() if is_complete(folder))


def composed(folder, *overrides):
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return compose("forecast", [f"run='{folder}'", "paths=20", *overrides])


def test_a_run_that_ends_early_is_forecast_from_there(fitted, capsys):
    forecast(composed(fitted, "keep_paths=true"))
    assert "records after 1984" in capsys.readouterr().out
    (written,) = (fitted / "forecasts").iterdir()
    table = pl.read_csv(written / "forecast.csv", infer_schema_length=None)
    perplexities = table.filter(metric="perplexity")
    assert perplexities["years_ahead"].cast(pl.String).to_list() == ["1", "2", "3", "all"]
    assert perplexities["value"][0] < perplexities["value"][2]
    assert pl.read_parquet(written / "paths.parquet").height == 20 * 3 * 116


def test_results_are_named_from_the_working_directory(fitted, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "labor_llm.forecast")
    monkeypatch.chdir(tmp_path)
    for folder in (fitted, fitted.relative_to(tmp_path)):
        forecast(composed(folder))
        assert caplog.messages[-1].startswith(f"results: wage_panel/markov/{fitted.name}/forecasts/1984-test")
    monkeypatch.chdir(fitted)
    forecast(composed("."))
    assert caplog.messages[-1].startswith("results: forecasts/1984-test")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    forecast(composed(fitted))
    assert caplog.messages[-1].startswith(f"results: {fitted}/forecasts/1984-test")


def test_training_ends_with_the_last_known_year(tmp_path):
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        perplexities = {
            run(compose("run", [f"outputs={tmp_path}", "model=markov", "tracker=jsonl", f"known_until={year}"]))
            for year in (1981, 1986, "null")
        }
    assert len(perplexities) == 3


def test_no_other_training_is_advised_for_a_year_without_records_after_it(fitted, caplog):
    with pytest.raises(DataError, match="2050"):
        forecast(composed(fitted, "cutoff=2050"))
    assert not caplog.messages
    with pytest.raises(ConfigError, match=r"cutoff=YEAR, .*; got 'soon'"):
        forecast(composed(fitted, "cutoff=soon"))


def test_what_was_scored_is_forecast_with_the_run_that_fitted_it(fitted, tmp_path):
    scored = tmp_path / "scored"
    shutil.copytree(fitted, scored)
    with (scored / "config.yaml").open("a") as config:
        config.write(f"fitted: {fitted}\n")
    with pytest.raises(RunError, match=rf"scored the model of {fitted}: name that one"):
        forecast(composed(scored))
    with pytest.raises(RunError, match=r"metrics\.json is a file: name the folder of a run"):
        forecast(composed(fitted / "metrics.json"))


def test_a_folder_above_runs_is_no_run(fitted):
    with pytest.raises(RunError, match=rf"is not the folder of a run; there are runs below it, such as {fitted}"):
        forecast(composed(fitted.parents[1]))


def test_all_mistakes_are_said(fitted):
    with pytest.raises(ConfigError, match=r"(?s)paths must be .* got 0.*unknown value 'guessed' of covariates"):
        forecast(composed(fitted, "paths=0", "covariates=guessed"))
