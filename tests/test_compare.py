from io import StringIO
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from made_up_runs import QUICK, changed, predictions, realised, write_run
from omegaconf import OmegaConf
from rich.console import Console

from labor_llm.build import build
from labor_llm.compare import compare, compare_verb
from labor_llm.comparison.side_by_side import Statistics
from labor_llm.errors import ConfigError, RunError
from labor_llm.evaluate import evaluate, paired_difference
from labor_llm.events import SET_EVENTS
from labor_llm.predictions import COLUMNS, COVARIATES

EVENTS = ("move", *SET_EVENTS)
NAMES = ["good", "fair", "poor"]


@pytest.fixture
def outputs(tmp_path):
    for number, name in enumerate(NAMES):
        write_run(tmp_path / "panel" / name / "1", name, predictions(3.0 - number))
    return tmp_path


def test_rows_hold_the_metrics_and_the_paired_difference(outputs):
    comparison = compare([outputs])
    assert comparison.table["run"].to_list() == NAMES
    assert comparison.references == {"panel": "good"}
    row = comparison.table.row(1, named=True)
    evaluation = evaluate(predictions(2.0))
    for column, (metric, subset) in {
        "perplexity": ("perplexity", "all"),
        "movers_perplexity": ("perplexity", "movers"),
        "perplexity_weighted": ("perplexity_weighted", "all"),
        "top5": ("top5", "all"),
        "move_auc": ("move_auc", "transitions"),
    }.items():
        assert (row[column], row[f"{column}_se"]) == evaluation.estimate(metric, subset)[:2]
    paired = paired_difference(predictions(2.0), predictions(3.0))
    assert [row[f"difference{part}"] for part in ("", "_se", "_p")] == pytest.approx(
        [paired.difference, paired.se, paired.p]
    )
    assert (row["records"], row["persons"], row["seconds_fit"], row["seconds_score"]) == (360, 60, 61.4, 2.0)
    assert comparison.table["difference"].is_null().to_list() == [True, False, False]


def test_reference_by_name_and_by_folder(outputs):
    folder = outputs / "panel" / "poor" / "1"
    assert compare([outputs], "poor").references == compare([outputs], str(folder)).references == {"panel": "poor"}
    assert compare([outputs], "poor").table["difference"][0] > 0


def test_unknown_reference_names_near_misses(outputs):
    with pytest.raises(RunError, match=r"unknown reference 'goood'. Did you mean 'good'\?"):
        compare([outputs], "goood")


def test_a_dataset_without_the_reference_has_its_best_run_instead(outputs):
    write_run(outputs / "other" / "plain" / "1", "plain", predictions(1.0), dataset={"name": "other"})
    comparison = compare([outputs], "poor")
    assert comparison.references == {"panel": "poor", "other": "plain"}
    assert "other: there is no 'poor'; the reference is the best run, plain." in comparison.notes


def test_results_are_not_written_where_a_file_is(outputs, tmp_path):
    (tmp_path / "taken").touch()
    cfg = config(outputs)
    cfg.folder = str(tmp_path / "taken" / "below")
    with pytest.raises(ConfigError, match=r"folder names a folder, but .*taken is a file"):
        compare_verb(cfg)


def test_runs_are_found_once_and_incomplete_ones_are_told(outputs, caplog):
    write_run(outputs / "panel" / "good" / "2", "good", predictions(1.0), complete=False)
    (outputs / "panel" / "good" / "1" / "inside").mkdir()
    (outputs / "panel" / "good" / "1" / "inside" / "config.yaml").touch()
    assert len(compare([outputs, outputs / "panel" / "good"]).table) == 3
    assert "1 incomplete run left out" in caplog.text


def test_nothing_to_compare(outputs, tmp_path):
    folder = write_run(tmp_path / "unfinished" / "1", "late", predictions(1.0), complete=False)
    (tmp_path / "empty").mkdir()
    for paths, reason in {
        (folder,): "1 incomplete run there",
        (outputs, tmp_path / "empty"): "empty: no run at all there",
        (tmp_path / "nowhere",): "it does not exist",
        (): "name at least one run folder",
    }.items():
        with pytest.raises(RunError, match=reason):
            compare(paths)


def test_a_broken_run_is_named(outputs):
    (outputs / "panel" / "fair" / "1" / "metrics.json").unlink()
    with pytest.raises(RunError, match=r"fair.1 is marked complete but has no metrics\.json"):
        compare([outputs])


def test_runs_on_other_records_are_refused(outputs):
    write_run(outputs / "panel" / "few" / "1", "few", predictions(0.1, persons=15))
    with pytest.raises(RunError, match=r"on panel predict other records than good: few \(270 records differ\)"):
        compare([outputs])


def test_one_table_per_dataset(outputs):
    write_run(outputs / "other" / "1", "good", predictions(3.0, persons=9), dataset={"name": "other"})
    comparison = compare([outputs], statistics=QUICK)
    assert comparison.table["dataset"].to_list() == ["other", "panel", "panel", "panel"]
    assert comparison.references == {"other": "good", "panel": "good"}
    assert comparison.models["dataset"].to_list() == ["panel"] * 3


def test_numbers_of_few_persons_are_left_out(tmp_path):
    for name in ("a", "b"):
        write_run(tmp_path / name, name, predictions(2.0, persons=9))
    comparison = compare([tmp_path], statistics=QUICK)
    told = comparison.table.drop("dataset", "run", "records", "persons", "outside_choice_set", "folder")
    assert told.drop("seconds_fit", "seconds_score").null_count().sum_horizontal().item() == 2 * (told.width - 2)
    assert comparison.models.is_empty()
    assert comparison.events.is_empty()
    assert comparison.notes == [
        "panel: models and events are left out, for there are 9 persons, fewer than statistics.min_persons=10."
    ]
    assert not compare([tmp_path], statistics=Statistics(replicates=100, min_persons=5)).models.is_empty()


def test_what_would_give_few_persons_away_is_left_out(tmp_path):
    moved = pl.when(pl.col("moved").is_not_null()).then(pl.col("person_id").cast(pl.Int64) < 9)
    few = changed(predictions(2.0), moved=moved, in_choice_set=pl.col("person_id").cast(pl.Int64) >= 3)
    for name in ("a", "b"):
        write_run(tmp_path / name, name, few)
    row = compare([tmp_path], statistics=QUICK).table.row(0, named=True)
    assert row["perplexity"] is not None
    parts = [f"{part}_perplexity" for part in ("first", "stayers", "movers")]
    hidden = [*parts, *(f"{part}_weighted" for part in parts), "move_auc", "move_brier", "move_auc_weighted"]
    assert [row[name] for name in hidden] == [None] * len(hidden)
    assert row["outside_choice_set"] is None
    told = compare([tmp_path], statistics=Statistics(replicates=200, bins=3, min_persons=3)).table.row(
        0, named=True
    )
    assert told["movers_perplexity"] is not None
    assert told["outside_choice_set"] == 18


def config(outputs: Path, **statistics):
    section = {
        "_target_": "labor_llm.comparison.side_by_side.Statistics",
        "replicates": 200,
        "bins": 3,
    } | statistics
    return OmegaConf.create(
        {"runs": [str(outputs)], "reference": None, "folder": None, "outputs": "outputs", "statistics": section}
    )


def test_files_and_printed_table(outputs, tmp_path, capsys, monkeypatch):
    write_run(tmp_path / "odd", "50%_a|b", predictions(0.1))
    monkeypatch.chdir(tmp_path)
    comparison = compare_verb(config(outputs))
    (folder,) = Path("outputs/comparisons").iterdir()
    names = ["perplexity-panel", "differences-panel", *(f"reliability-{event}-panel" for event in EVENTS)]
    assert {path.name for path in folder.iterdir()} == {
        *(f"{name}.csv" for name in ("comparison", "models", "events", "curves")),
        *(f"comparison.{ending}" for ending in ("md", "tex")),
        *(f"{name}.{ending}" for name in names for ending in ("png", "svg")),
    }
    csv = pl.read_csv(folder / "comparison.csv")
    assert csv["perplexity_se"].to_list() == pytest.approx(comparison.table["perplexity_se"].to_list())
    perplexity, se = csv.row(1, named=True)["perplexity"], csv.row(1, named=True)["perplexity_se"]
    markdown, latex = ((folder / f"comparison.{ending}").read_text() for ending in ("md", "tex"))
    assert f"| fair | {perplexity:.3f} ({se:.3f}) |" in markdown
    assert r"| 50%_a\|b |" in markdown
    assert f"fair & {perplexity:.3f} &" in latex
    assert f" & ({se:.3f}) &" in latex
    assert r"50\%\_a|b &" in latex
    printed = capsys.readouterr().out
    assert "panel: 360 records of 60 persons" in printed
    assert f"{perplexity:.3f}" in printed
    assert f"written into {folder}: comparison.csv" in printed.replace("\n", "")
    assert f"| move | fair | {comparison.events['rate'][0]:.3f}" in markdown


def test_the_table_fits_120_columns_uncut(tmp_path):
    for seed in (1, 2):
        name = "llama3_2_1b-title-with-[/a]-long-name"
        write_run(tmp_path / f"{seed}", name, predictions(0.2 * seed), seed=seed)
    console = Console(width=120, file=StringIO())
    console.print(compare([tmp_path]))
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 120
    assert "…" not in text
    assert "Brier" in text
    assert "MCS" in text
    assert "reso-" in text


def test_models_take_seeds_together(tmp_path):
    for seed in (1, 2, 3):
        model = {"seed": seed}
        write_run(tmp_path / f"{seed}", "nano", predictions(2, seed=seed), seed=seed, model=model)
    write_run(tmp_path / "other", "markov", predictions(1.5, seed=9))
    comparison = compare([tmp_path], statistics=QUICK)
    assert comparison.table.height == 4
    assert comparison.models.select("model", "seeds").rows() == [("nano", 3), ("markov", 1)]
    nano, markov = comparison.models.to_dicts()
    scores = [evaluate(predictions(2, seed=seed)).estimate("log_score").value for seed in (1, 2, 3)]
    assert nano["log_score"] == pytest.approx(np.mean(scores))
    assert nano["training_sd"] == pytest.approx(np.std(scores, ddof=1))
    assert markov["difference_se_total"] > markov["difference_se"]
    weighted = evaluate(predictions(1.5, seed=9)).estimate("perplexity_weighted")
    assert (markov["perplexity_weighted"], markov["perplexity_weighted_se"]) == pytest.approx(weighted[:2])
    assert compare([tmp_path], "markov", QUICK).model_references == {"panel": "markov"}
    named = compare([tmp_path], "nano", QUICK)
    assert named.references == {"panel": "nano (seed=1)"}
    assert named.model_references == {"panel": "nano"}


def test_p_values_are_adjusted_within_families(outputs):
    write_run(outputs / "panel" / "odd" / "1", "odd", predictions(2.5, seed=3))
    one = compare([outputs], statistics=QUICK).models
    families = {"ablations": ("fair", "poo?")}
    two = compare([outputs], statistics=Statistics(replicates=200, bins=3, families=families)).models
    p = dict(zip(one["model"], one["difference_p"], strict=True))
    adjusted = dict(zip(two["model"], two["difference_p_holm"], strict=True))
    assert adjusted["odd"] == p["odd"]
    assert adjusted["fair"] == max(2 * min(p["fair"], p["poor"]), p["fair"])
    assert one.filter(model="odd")["difference_p_holm"].item() >= p["odd"]
    with pytest.raises(RunError, match=r"unknown model 'fare' in statistics\.families\.x\. Did you mean 'fair'"):
        compare([outputs], statistics=Statistics(replicates=200, bins=3, families={"x": ("fare",)}))


def test_realised_only_runs_are_compared_by_raw_probabilities_and_have_no_events(outputs):
    of_realised = realised(predictions(2.0))
    write_run(outputs / "panel" / "only" / "1", "only", of_realised)
    comparison = compare([outputs], statistics=QUICK)
    assert set(comparison.events["run"]) == set(NAMES)
    only = comparison.models.row(by_predicate=pl.col("model") == "only", named=True)
    raw = evaluate(of_realised).estimate("perplexity_raw")
    assert (only["perplexity"], only["perplexity_se"]) == pytest.approx(raw[:2])
    notes = "".join(comparison.notes)
    assert "panel: log scores and perplexities of only are of raw probabilities" in notes
    assert "panel: leave_work is undefined for only: the predictions hold no forecasts of it" in notes
    list(comparison.write(outputs / "written"))


def test_what_is_too_small_is_not_said_to_be_undefined(tmp_path):
    write_run(tmp_path / "a", "a", predictions(2.0, persons=12))
    (note,) = compare([tmp_path], statistics=QUICK).notes
    assert "cells and bins of event forecasts are left out, for they tell of fewer than 10 persons" in note


def test_a_comparison_of_realised_only_runs(tmp_path, capsys):
    write_run(tmp_path / "only", "only", realised(predictions(2.0)))
    comparison = compare([tmp_path], statistics=QUICK)
    Console().print(comparison)
    assert "panel: move is undefined for only" in capsys.readouterr().out
    drawn = comparison.write(tmp_path / "written")[0].parent.glob("*.png")
    assert [picture.name for picture in drawn] == ["perplexity-panel.png"]  # events have none


def test_without_weights_and_covariates_their_columns_are_absent(tmp_path):
    bare = {name: pl.lit(None, COLUMNS[name]) for name in ("weight", *COVARIATES)}
    for name in ("a", "b"):
        write_run(tmp_path / name, name, changed(predictions(2.0), **bare))
    comparison = compare([tmp_path], statistics=QUICK)
    for table in (comparison.table, comparison.models, comparison.events, comparison.curves):
        assert not [name for name in table.columns if "weighted" in name]
    assert set(comparison.events["group"]) == {"all", "year", "history"}


def test_impossible_outcomes_leave_a_model_without_numbers(outputs):
    impossible = pl.when(pl.col("year") == 1982).then(-np.inf).otherwise("log_prob")
    write_run(outputs / "panel" / "sure" / "1", "sure", changed(predictions(2.0), log_prob=impossible))
    models = compare([outputs], statistics=QUICK).models
    assert models["model"].to_list() == [*NAMES, "sure"]
    assert models["perplexity"].is_null().to_list() == [False, False, False, True]


def test_what_is_written_tells_of_no_person(outputs):
    """No cell of fewer than ten persons, and no number of one, in any file."""
    comparison = compare([outputs], statistics=QUICK)
    paths = comparison.write(outputs / "written")
    assert comparison.events["persons"].min() >= 10
    assert comparison.curves["persons"].min() >= 10
    for path in paths:
        assert b"person_id" not in path.read_bytes()


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("replicates", 5, "statistics.replicates: input should be greater than or equal to 100, got 5"),
        ("level", 95, "statistics.level: input should be less than 1, got 95"),
        ("groups", ["sex"], r"statistics.groups.0: input should be 'gender', 'ethnicity'.*got 'sex'"),
        ("min_person", 3, "unknown key 'statistics.min_person'. Did you mean 'statistics.min_persons'"),
    ],
)
def test_settings_that_cannot_be_are_named(outputs, setting, value, message):
    with pytest.raises(ConfigError, match=message):
        build(config(outputs, **{setting: value}), ["statistics"])
