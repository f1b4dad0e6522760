"""The main job from the command line to the run folder, and what trackers are told."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file

from labor_llm.build import build
from labor_llm.configs import conf_folder
from labor_llm.errors import RunError
from labor_llm.run import prepare, run, score
from labor_llm.run_folder import held

TINY = [
    "backbone.layers=1",
    "backbone.width=32",
    "backbone.heads=2",
    "backbone.feed_forward=64",
    "trainer.max_epochs=1",
    "trainer.precision=32-true",
    "trainer.accelerator=cpu",
]


@pytest.fixture
def config(tmp_path):
    """Composes a config whose outputs go to a folder of the test's own."""

    def composed(verb: str, *overrides: str):
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            return compose(verb, overrides=[f"outputs={tmp_path}", *overrides])

    return composed


def run_folders(outputs: Path) -> list[Path]:
    return sorted(marker.parent for marker in outputs.glob("*/*/*/complete"))


@pytest.mark.parametrize(
    ("group", "choice"), sorted((path.parent.name, path.stem) for path in conf_folder().glob("*/*.yaml"))
)
def test_every_choice_composes_and_builds(config, group, choice):
    missing = ["backbone.path=somewhere"] if (group, choice) == ("backbone", "hf") else []
    build(config("run", f"{group}={choice}", *missing), ["dataset", "model", "tracker"])


def test_a_run_writes_its_folder_and_is_not_run_twice(config, tmp_path, caplog):
    first = run(config("run", "model=markov", "tracker=jsonl"))
    (folder,) = run_folders(tmp_path)
    written = {path.name for path in folder.iterdir()}
    assert written >= {"config.yaml", "environment.txt", "run.log", "metrics.json", "metrics.jsonl", "model"}
    assert pl.read_parquet(folder / "predictions.parquet").height == 928
    assert folder.parent == tmp_path / "wage_panel" / "markov"
    before = (folder / "complete").stat().st_mtime_ns
    assert run(config("run", "model=markov", "tracker=wandb")) == first
    assert run_folders(tmp_path) == [folder]
    assert (folder / "complete").stat().st_mtime_ns == before


def test_other_settings_are_another_run(config, tmp_path):
    run(config("run", "model=markov", "tracker=jsonl"))
    run(config("run", "model=markov", "tracker=jsonl", "predict=valid"))
    assert len(run_folders(tmp_path)) == 2


def test_a_language_model_runs_and_scores_again(config, tmp_path):
    perplexity = run(config("run", "tracker=jsonl", *TINY))
    (folder,) = run_folders(tmp_path)
    assert not (folder / "checkpoints").exists()
    again = score(config("score", f"run={folder}"))
    assert again == pytest.approx(perplexity, abs=1e-5)
    assert len(run_folders(tmp_path)) == 2


def test_a_failed_evaluation_does_not_fit_again(config, tmp_path, monkeypatch):
    def broken(*args):
        raise OSError("disk full")

    monkeypatch.setattr("labor_llm.run.evaluate", broken)
    with pytest.raises(OSError, match="disk full"):
        run(config("run", "model=markov", "tracker=jsonl"))
    monkeypatch.undo()
    monkeypatch.setattr("labor_llm.models.markov.Markov._fit", broken)
    assert run(config("run", "model=markov", "tracker=jsonl")) > 1


def test_an_incomplete_run_cannot_be_scored(config, tmp_path):
    with pytest.raises(RunError, match="does not exist"):
        score(config("score", f"run={tmp_path / 'nothing'}"))


def test_a_folder_in_use_is_refused(tmp_path):
    with held(tmp_path), pytest.raises(RunError, match="another process"), held(tmp_path):
        pass


def test_prepare_reads_once(config, tmp_path, monkeypatch, caplog):
    with caplog.at_level("INFO"):
        prepare(config("prepare"))
    assert "545 persons, 4360 records" in caplog.text
    monkeypatch.setattr("labor_llm.datasets.wage_panel.WagePanel.read", None)
    prepare(config("prepare"))


def test_trackers_get_aggregates_only(config, tmp_path, monkeypatch):
    """Reads the offline W&B run back: the config, the metrics and the results, and no person's anything."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    perplexity = run(config("run", "model=language", "tracker.tags=[a,b]", "seed=7", *TINY))
    (folder,) = run_folders(tmp_path)
    (logged,) = (folder / "wandb").glob("offline-run-*")
    command = [Path(sys.executable).with_name("wandb"), "leet", "inspect", "--summary", "--json", logged]
    summary = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    everything = json.dumps(summary)
    assert summary["config"]["seed"] == 7
    assert "git_commit" in summary["config"]
    assert f"{perplexity:.6f}"[:6] in everything
    raw = b"".join(path.read_bytes() for path in logged.rglob("*") if path.is_file())
    persons = pl.read_parquet(folder / "predictions.parquet")["person_id"].unique()
    assert not [person for person in persons if len(person) > 3 and f'"{person}"'.encode() in raw]
    assert b"The worker was born" not in raw
    assert b"person_id" not in raw


@pytest.mark.slow
def test_killed_in_the_middle_it_resumes_to_the_same_weights(tmp_path):
    def command(outputs):
        arguments = [*TINY, "trainer.max_epochs=6", "trainer.checkpoint_every=5", "tracker=jsonl"]
        return [sys.executable, "-m", "labor_llm", "run", f"outputs={outputs}", *arguments]

    subprocess.run(command(tmp_path / "whole"), check=True, capture_output=True)
    killed = subprocess.Popen(command(tmp_path / "killed"), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while not list((tmp_path / "killed").glob("*/*/*/checkpoints/last.ckpt")):
        time.sleep(0.05)
        assert killed.poll() is None
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not run_folders(tmp_path / "killed")
    subprocess.run(command(tmp_path / "killed"), check=True, capture_output=True)
    (whole,), (resumed,) = run_folders(tmp_path / "whole"), run_folders(tmp_path / "killed")
    expected = load_file(whole / "model" / "model.safetensors")
    for name, value in load_file(resumed / "model" / "model.safetensors").items():
        assert value.equal(expected[name]), name
