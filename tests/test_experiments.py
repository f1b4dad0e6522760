"""The scripts behind tables and claims can be imported, and the leaderboard says what its runs were."""

import importlib
from pathlib import Path

import polars as pl
import pytest
from made_up_runs import predictions, write_run
from omegaconf import OmegaConf

from labor_llm.comparison.leaderboard import Leaderboard, leaderboard, markdown, runs_in
from labor_llm.comparison.runs import distinct_names, read_runs
from labor_llm.errors import RunError

SCRIPTS = sorted(path.stem for path in (Path(__file__).parents[1] / "experiments").glob("*.py"))
LANGUAGE = {"backbone": {"name": "nano"}, "label": {"name": "token"}}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_can_be_imported(script):
    assert importlib.import_module(f"experiments.{script}").__doc__


@pytest.fixture
def runs(tmp_path):
    defaults = {
        "backbone": {"name": "micro"},
        "label": {"name": "title"},
    }  # what the command line had, read or not
    models = {
        "career": {"init_from": "/a/backbone/folder"},
        "nano-token": LANGUAGE,
        "nano-embedding": {"fitted": "RUN", "language": LANGUAGE},
    }
    for number, (name, model) in enumerate(models.items()):
        write_run(tmp_path / name, name, predictions(1.0 + number), model=model, **defaults)
    return distinct_names(read_runs([tmp_path]))


def test_the_leaderboard_is_sorted_and_names_what_each_model_reads(runs):
    table = leaderboard(runs, "career")
    assert table["model"].to_list() == ["nano-embedding", "nano-token", "career"]
    assert table["backbone"].to_list() == ["nano", "nano", None]
    assert table["label"].to_list() == ["token", "token", None]
    assert table["difference"].to_list() == sorted(table["difference"], reverse=True)
    assert table["difference"][2] == 0
    assert markdown(table, "career").splitlines()[-1].split("|")[3].strip() == "ref."


def test_a_leaderboard_is_of_one_sample_of_test_persons(runs, tmp_path):
    write_run(tmp_path / "few", "career", predictions(1.0, persons=20), test_persons=20)
    assert runs_in(tmp_path).keys() == runs.keys()
    assert list(runs_in(tmp_path, 20)) == ["career"]


def test_an_unknown_reference_is_named(runs):
    with pytest.raises(RunError, match="there is no run 'markov' to compare with; there are career, nano"):
        leaderboard(runs, "markov")


def test_a_sweep_ends_with_its_leaderboard(runs, tmp_path, capsys, caplog):
    config = OmegaConf.create({"outputs": str(tmp_path.parent), "dataset": {"name": tmp_path.name}})
    Leaderboard(reference="markov").on_multirun_end(config)
    assert "no leaderboard: there is no run 'markov'" in caplog.text
    assert not (tmp_path / "leaderboard.csv").exists()
    Leaderboard(reference="career").on_multirun_end(config)
    written = pl.read_csv(tmp_path / "leaderboard.csv")
    assert written.equals(leaderboard(runs, "career"))
    assert capsys.readouterr().out == f"{markdown(written, 'career')}\n"
