"""The scripts behind tables and claims: all can be imported, and the leaderboard says what its runs were."""

import importlib
from pathlib import Path

import pytest
from made_up_runs import predictions, write_run

from experiments.leaderboard import leaderboard, markdown
from labor_llm.comparison.runs import distinct_names, read_runs

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


def test_an_unknown_reference_is_named(runs):
    with pytest.raises(SystemExit, match="there is no run 'markov': name one of"):
        leaderboard(runs, "markov")
