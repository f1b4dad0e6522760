import json
from io import StringIO
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml
from omegaconf import OmegaConf
from rich.console import Console

from labor_llm.compare import compare, compare_verb, differing_settings
from labor_llm.errors import RunError
from labor_llm.evaluate import evaluate, paired_difference
from labor_llm.predictions import Predictions

NAMES = ["good", "fair", "poor"]


def predictions(quality: float, persons: int = 20) -> Predictions:
    """Predictions of six records a person; the higher the quality, the better, with the same noise."""
    rng = np.random.default_rng(0)
    person, year = np.divmod(np.arange(6 * persons), 6)
    table = pl.DataFrame(
        {
            "person_id": person.astype(str),
            "year": (1980 + year).astype(np.int32),
            "occupation": rng.choice(["cook", "nurse"], size=len(year)),
            "in_choice_set": np.ones(len(year), dtype=bool),
            "log_prob": -rng.exponential(1 / quality, size=len(year)),
            "log_mass": np.zeros(len(year)),
            "rank": rng.integers(1, 15, len(year), dtype=np.int32),
            "first": year == 0,
            "moved": rng.random(len(year)) < 0.5,
            "log_prob_stay": -rng.exponential(size=len(year)),
            "weight": rng.uniform(1, 2, len(year)),
        }
    )
    return Predictions(
        table.with_columns(
            pl.when(~pl.col("first")).then(pl.col("moved", "log_prob_stay")),
            log_prob_raw=pl.col("log_prob") + pl.col("log_mass"),
            error_bound=pl.lit(None, pl.Float64),
        ),
        ("cook", "nurse"),
    )


def write_run(folder: Path, name: str, predicted: Predictions, complete: bool = True, **config) -> Path:
    """A run folder as a run writes it."""
    folder.mkdir(parents=True)
    config = {
        "name": name,
        "seed": 0,
        "dataset": {"name": "panel"},
        "predict": "test",
        "outputs": str(folder),
    } | config
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    if complete:
        metrics = evaluate(predicted).to_dict() | {"seconds": {"fit": 61.4, "score": 2.0}}
        (folder / "metrics.json").write_text(json.dumps(metrics))
        predicted.write(folder / "predictions.parquet")
        (folder / "complete").touch()
    return folder


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
        "top5": ("top5", "all"),
        "move_auc": ("move_auc", "transitions"),
    }.items():
        assert (row[column], row[f"{column}_se"]) == evaluation.estimate(metric, subset)[:2]
    paired = paired_difference(predictions(2.0), predictions(3.0))
    assert (row["difference"], row["difference_se"], row["difference_p"]) == (
        paired.difference,
        paired.se,
        paired.p,
    )
    assert (row["records"], row["persons"], row["seconds_fit"], row["seconds_score"]) == (120, 20, 61.4, 2.0)
    assert comparison.table["difference"].is_null().to_list() == [True, False, False]


def test_reference_by_name_and_by_folder(outputs):
    folder = outputs / "panel" / "poor" / "1"
    assert compare([outputs], "poor").references == compare([outputs], str(folder)).references == {"panel": "poor"}
    assert compare([outputs], "poor").table["difference"][0] > 0


def test_unknown_reference_names_near_misses(outputs):
    with pytest.raises(
        RunError, match=r"unknown reference 'goood' among the runs of panel. Did you mean 'good'\?"
    ):
        compare([outputs], "goood")


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
    with pytest.raises(RunError, match=r"on panel predict other records than good: few \(30 records differ\)"):
        compare([outputs])


def test_one_table_per_dataset(outputs):
    write_run(outputs / "other" / "1", "good", predictions(3.0, persons=9), dataset={"name": "other"})
    comparison = compare([outputs])
    assert comparison.table["dataset"].to_list() == ["other", "panel", "panel", "panel"]
    assert comparison.references == {"other": "good", "panel": "good"}


def test_runs_that_share_a_name_show_what_differs(tmp_path):
    for seed in (1, 2):
        tracker = {"mode": f"mode-{seed}"}
        write_run(
            tmp_path / f"{seed}", "nano", predictions(seed), seed=seed, tracker=tracker, model={"seed": seed}
        )
    assert compare([tmp_path]).table["run"].to_list() == ["nano (seed=2)", "nano (seed=1)"]


def test_runs_that_differ_in_nothing_show_their_folders(tmp_path):
    folders = [write_run(tmp_path / f"{number}", "nano", predictions(1.0)) for number in (1, 2)]
    assert set(compare([tmp_path]).table["run"]) == {f"nano in {folder}" for folder in folders}


def test_settings_that_follow_from_a_name_are_left_out():
    def lora(rank):
        return {"name": "lora", "_target_": "Lora", "alpha": 32, "rank": rank}

    adapters = [lora(8), lora(16), {"name": "none", "_target_": "Full"}]
    configs = [{"adapter": adapter, "model": {"adapter": adapter}} for adapter in adapters]
    assert differing_settings(configs) == {
        "adapter": ["lora", "lora", "none"],
        "adapter.rank": ["8", "16", "null"],
    }


def test_files_and_printed_table(outputs, tmp_path, capsys, monkeypatch):
    write_run(tmp_path / "odd", "50%_a|b", predictions(0.1))
    monkeypatch.chdir(tmp_path)
    comparison = compare_verb(
        OmegaConf.create({"runs": [str(outputs)], "reference": None, "folder": None, "outputs": "outputs"})
    )
    (folder,) = Path("outputs/comparisons").iterdir()
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
    assert "panel: 120 records of 20 persons" in printed
    assert f"{perplexity:.3f}" in printed
    assert str(folder / "comparison.tex") in printed.replace("\n", "")


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
