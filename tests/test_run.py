"""The main job from the command line to the run folder, and what trackers are told."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file

from labor_llm.__main__ import main
from labor_llm.build import build
from labor_llm.careers import Careers
from labor_llm.compare import compare
from labor_llm.comparison.side_by_side import Statistics
from labor_llm.configs import conf_folder
from labor_llm.datasets import read
from labor_llm.errors import ConfigError, DataError, RunError
from labor_llm.identity import plain
from labor_llm.models.base import choice_set
from labor_llm.models.empirical import Empirical
from labor_llm.models.language import LanguageModel
from labor_llm.predictions import choice_indices
from labor_llm.preparation import prepare
from labor_llm.run import _folder, run, score
from labor_llm.run_folder import held
from labor_llm.splits import hashed_places

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
            return compose(verb, overrides=[f"outputs={tmp_path / 'out'}", *overrides])

    return composed


def run_folders(outputs: Path) -> list[Path]:
    return sorted(marker.parent for marker in outputs.rglob("complete"))


@pytest.mark.parametrize(
    ("group", "choice"), sorted((path.parent.name, path.stem) for path in conf_folder().glob("*/*.yaml"))
)
def test_every_choice_composes_and_builds(config, group, choice):
    if choice == "qlora" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    missing = {"hf": ["backbone.path=somewhere"], "mixture": ["model.runs=[a,b]"]}.get(choice, [])
    build(config("run", f"{group}={choice}", *missing), ["dataset", "model", "tracker"])


def test_a_run_writes_its_folder_and_is_not_run_twice(config, tmp_path, caplog):
    first = run(config("run", "model=markov", "tracker=jsonl"))
    (folder,) = run_folders(tmp_path)
    written = {path.name for path in folder.iterdir()}
    assert written >= {"config.yaml", "environment.txt", "run.log", "metrics.json", "metrics.jsonl", "model"}
    assert pl.read_parquet(folder / "predictions.parquet").height == 928
    assert folder.parent == tmp_path / "out" / "wage_panel" / "markov"
    before = (folder / "complete").stat().st_mtime_ns
    assert run(config("run", "model=markov", "tracker=wandb")) == first
    assert run_folders(tmp_path) == [folder]
    assert (folder / "complete").stat().st_mtime_ns == before


def test_pruned_and_realised_scores_are_reported_and_compared(config, tmp_path):
    exact = run(config("run", *TINY, "tracker=jsonl"))
    fitted = run_folders(tmp_path)[0]
    assert (tmp_path / "out" / "wage_panel" / "tokens").is_dir()
    pruned = run(config("run", "scoring=pruned", "label=token", *TINY, "tracker=jsonl"))
    assert exact is not None
    assert pruned is not None
    realised = run(config("run", "scoring=realized", *TINY, "tracker=jsonl"))
    assert realised is not None
    scored = score(config("score", f"run={fitted}", "scoring=pruned"))
    assert scored == pytest.approx(exact, rel=2e-3)
    metrics = {folder: json.loads((folder / "metrics.json").read_text()) for folder in run_folders(tmp_path)}
    bounds = [found["error_bound"] for found in metrics.values()]
    assert sorted(bound is None for bound in bounds) == [False, False, True, True]
    raw = [found["metrics"]["all"]["perplexity_raw"]["value"] for found in metrics.values()]
    assert metrics[fitted]["metrics"]["all"]["perplexity_raw"]["value"] == pytest.approx(raw[0])
    comparison = compare([tmp_path / "out"])
    assert comparison.table["perplexity"].null_count() == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("seed=true", "seed must be a whole number of 0 to 4294967295, got True"),
        ("seed=4294967296", "seed must be a whole number of 0 to 4294967295"),
        ("known_until=true", "known_until must be null or a calendar year, got True"),
        ("keep_distribution=maybe", "keep_distribution must be true or false, got 'maybe'"),
        ("name=null", "name names a folder"),
    ],
)
def test_a_switch_is_no_number_and_a_word_no_switch(config, words, said):
    with pytest.raises(ConfigError, match=said):
        run(config("run", "model=markov", "tracker=jsonl", words))


def test_without_a_scorable_record_a_run_ends_with_an_error(config, tmp_path, own_table):
    """All test persons are bakers, whom nobody in training is; so are, later, all validation persons."""
    taxonomy, table, words = own_table
    taxonomy.write_text(taxonomy.read_text() + "3,Bakers,occupation\n")
    places = hashed_places(pl.Series(map(str, range(90))), "labor-llm")
    for part, low, high in (("test", 0.8, 1), ("valid", 0.7, 0.8)):
        bakers = {str(person) for person in range(90) if low <= places[person] < high}
        lines = [line.split(",") for line in table.read_text().splitlines()]
        changed = [[*line[:2], "3" if line[0] in bakers else line[2]] for line in lines]
        table.write_text("\n".join(",".join(line) for line in changed))
        with pytest.raises(DataError, match=f"no record of the .* {part} persons .*the choice set"):
            run(config("run", *words, f"predict={part}"))
    assert not list(tmp_path.rglob("config.yaml"))


def test_other_settings_are_another_run(config, tmp_path):
    run(config("run", "model=markov", "tracker=jsonl"))
    run(config("run", "model=markov", "tracker=jsonl", "predict=valid"))
    assert len(run_folders(tmp_path)) == 2


def persons_of(folder: Path) -> set[str]:
    return set(pl.read_parquet(folder / "predictions.parquet")["person_id"])


def trained_on(folder: Path) -> set[str]:
    """Hashes of the training persons."""
    return set(json.loads((folder / "model" / "occupation_model.json").read_text())["training_persons"])


def test_samples_of_persons_are_nested_and_the_same_for_every_model(config, tmp_path, caplog):
    folders = {}
    for model, train, test in (("markov", 50, 40), ("markov", 100, 60), ("empirical", 50, 40)):
        samples = [f"train_persons={train}", f"test_persons={test}", "valid_persons=20"]
        with caplog.at_level("INFO"):
            run(config("run", f"model={model}", "tracker=jsonl", *samples))
        (new,) = set(run_folders(tmp_path)) - set(folders.values())
        folders[model, train] = new
        metrics = json.loads((new / "metrics.json").read_text())
        assert (metrics["training_persons"], metrics["persons"]) == (train, test)
        assert metrics["metrics"]["all"]["perplexity"]["persons"] == test
    assert "train_persons: 50 of 376 train persons" in caplog.text
    assert "valid_persons: 20 of 53 valid persons" in caplog.text
    assert "320 records of 40 persons), on 40 of 116 test persons" in caplog.text
    small, large, other = (folders[key] for key in (("markov", 50), ("markov", 100), ("empirical", 50)))
    assert trained_on(small) == trained_on(other) < trained_on(large)
    assert persons_of(small) == persons_of(other) < persons_of(large)
    compared = compare([tmp_path], statistics=Statistics(replicates=100))
    assert compared.references.keys() == {"wage_panel (40 test persons)", "wage_panel (60 test persons)"}


def test_an_occupation_that_nobody_in_the_sample_had_is_outside_the_choice_set(config, tmp_path, own_table):
    taxonomy, table, words = own_table
    taxonomy.write_text(taxonomy.read_text() + "3,Bakers,occupation\n")
    places = hashed_places(pl.Series(map(str, range(90))), "labor-llm")
    bakers = {places.argsort()[49], places.argmax()}  # the last of 50 training persons, and a test person
    lines = [line for line in table.read_text().splitlines() if line.split(",")[0] not in map(str, bakers)]
    table.write_text("\n".join([*lines, *(f"{person},1990,3" for person in bakers)]))
    for persons in (49, 50):
        run(config("run", *words, f"train_persons={persons}"))
    outside = {
        metrics["training_persons"]: metrics["outside_choice_set"]
        for metrics in (json.loads(path.read_text()) for path in tmp_path.rglob("metrics.json"))
    }
    assert outside == {49: 1, 50: 0}


def test_more_persons_than_there_are_is_one_message(config, tmp_path):
    with pytest.raises(DataError, match="train_persons=377: the part 'train' of dataset 'wage_panel' has 376"):
        run(config("run", "model=markov", "tracker=jsonl", "train_persons=377"))
    with pytest.raises(DataError, match=r"test_persons=54: the part 'valid' .* has 53 persons\. Name at most 53"):
        run(config("run", "model=markov", "tracker=jsonl", "predict=valid", "test_persons=54"))
    assert not list(tmp_path.rglob("config.yaml"))


def test_a_fitted_model_is_scored_on_a_sample(config, tmp_path):
    run(config("run", "model=markov", "tracker=jsonl", "train_persons=100"))
    (fitted,) = run_folders(tmp_path)
    score(config("score", f"run={fitted}", "test_persons=30"))
    (scored,) = set(run_folders(tmp_path)) - {fitted}
    metrics = json.loads((scored / "metrics.json").read_text())
    assert (metrics["training_persons"], metrics["persons"]) == (100, 30)
    assert persons_of(scored) < persons_of(fitted)
    with pytest.raises(
        DataError, match="test_persons=546: the part 'all' of dataset 'wage_panel' has 545 persons"
    ):
        score(config("score", f"run={fitted}", "predict=all", "test_persons=546"))


def test_only_what_leaves_a_checkpoint_valid_resumes_it(config):
    """A checkpoint counts batches, so another micro batch may not go on from it; another device may."""

    def folder(*overrides):
        cfg = config("run", *overrides)
        parts = build(cfg, ["dataset", "model"])
        return _folder(plain(cfg), read(parts["dataset"]), parts["model"])

    elsewhere = ["trainer.accelerator=cpu", "trainer.checkpoint_every=7", "trainer.devices=2"]
    assert folder() == folder(*elsewhere, "scoring.max_tokens=99")
    assert len({folder(), *(folder(f"{part}_persons=9") for part in ("train", "valid", "test"))}) == 4
    assert folder() == folder("trainer.nodes=2", "trainer.strategy=fsdp")
    assert folder() != folder("trainer.micro_batch_size=4")
    embedding = ["model=embedding", "model.language.scoring.max_tokens=99"]
    assert folder("model=embedding") == folder(*embedding, *elsewhere)


def test_a_language_model_runs_and_scores_again(config, tmp_path):
    perplexity = run(config("run", "tracker=jsonl", *TINY))
    (folder,) = run_folders(tmp_path)
    assert not (folder / "checkpoints").exists()
    again = score(config("score", f"run={folder}"))
    assert again == pytest.approx(perplexity, abs=1e-5)
    assert len(run_folders(tmp_path)) == 2


@pytest.fixture
def language_fits(monkeypatch) -> list[str]:
    """The language models that were fitted, one after another."""
    names, fit = [], LanguageModel.fit

    def counted(self, *args):
        names.append(self.name)
        return fit(self, *args)

    monkeypatch.setattr(LanguageModel, "fit", counted)
    return names


def test_a_language_model_that_was_run_gives_its_states(config, tmp_path, language_fits, caplog):
    runs = tmp_path / "out" / "wage_panel"
    embedding = (*TINY, "tracker=jsonl", "model=embedding")
    own = run(config("run", *embedding))
    assert language_fits == ["nano-title"]
    (runs / "nano-title-embedding").rename(tmp_path / "before")
    run(config("run", *TINY, "tracker=jsonl", "predict=valid", "scoring=realized", "test_persons=5"))
    with caplog.at_level("INFO"):
        taken = run(config("run", *embedding, "trainer.checkpoint_every=9"))
    assert len(language_fits) == 2
    ((folder,), (language,)) = (run_folders(runs / name) for name in ("nano-title-embedding", "nano-title"))
    assert f"the language model is that of {language}" in caplog.text
    assert taken == pytest.approx(own, rel=1e-4)
    (tmp_path / "out").rename(tmp_path / "moved")
    moved = tmp_path / "moved" / folder.relative_to(tmp_path / "out")
    assert score(config("score", f"run={moved}", "predict=valid", "outputs=null")) is not None
    (tmp_path / "moved" / "wage_panel" / "nano-title").rename(tmp_path / "gone")
    with pytest.raises(
        RunError, match=r"reads the states of the language model in .*nano-title/.*, which is gone"
    ):
        score(config("score", f"run={moved}", "predict=all", "outputs=null"))


@pytest.mark.parametrize(
    "other", ["seed=1", "dataset.split.salt=other", "known_until=1985", "train_persons=300", "incomplete"]
)
def test_another_language_model_is_not_taken(config, tmp_path, language_fits, other):
    run(config("run", *TINY, "tracker=jsonl", *([] if other == "incomplete" else [other])))
    if other == "incomplete":
        (run_folders(tmp_path)[0] / "complete").unlink()
    run(config("run", *TINY, "tracker=jsonl", "model=embedding"))
    assert len(language_fits) == 2


def test_a_model_knows_the_year_until_which_all_is_known_and_none_after(config, tmp_path):
    run(config("run", "model=empirical", "tracker=jsonl", "known_until=1983"))
    (folder,) = run_folders(tmp_path)
    careers = Careers.read(tmp_path / "out" / "wage_panel" / "careers.parquet")
    known = replace(careers, table=careers.table.filter(pl.col("year") <= 1983))
    assert known.table["year"].max() == 1983
    dataset = build(config("run"), ["dataset"])["dataset"]
    splits, test = dataset.split(known), dataset.split(careers).test
    model = Empirical().fit(splits.train, splits.valid, choice_set(splits.train))
    log_probs = model.log_probs(test)
    predicted = pl.read_parquet(folder / "predictions.parquet")
    places = choice_indices(test.table["occupation"], model.choice_set)
    np.testing.assert_allclose(predicted["log_prob"], log_probs[np.arange(len(places)), places], rtol=1e-6)


def test_a_failed_evaluation_does_not_fit_again(config, tmp_path, monkeypatch):
    def broken(*args):
        raise OSError("disk full")

    monkeypatch.setattr("labor_llm.run.evaluate", broken)
    with pytest.raises(OSError, match="disk full"):
        run(config("run", "model=markov", "tracker=jsonl"))
    monkeypatch.undo()
    monkeypatch.setattr("labor_llm.models.markov.Markov._fit", broken)
    assert run(config("run", "model=markov", "tracker=jsonl")) > 1


def test_where_a_model_without_a_network_computes_is_refused(config, tmp_path):
    run(config("run", "model=markov", "tracker=jsonl"))
    (folder,) = run_folders(tmp_path)
    with pytest.raises(ConfigError, match="markov is no network: leave out accelerator and devices"):
        score(config("score", f"run={folder}", "accelerator=cpu", "devices=2"))
    assert run_folders(tmp_path) == [folder]


def test_an_incomplete_run_cannot_be_scored(config, tmp_path):
    with pytest.raises(RunError, match="does not exist"):
        score(config("score", f"run={tmp_path / 'nothing'}"))


def test_a_run_that_is_refused_leaves_a_folder_only_if_it_computed_something(config, tmp_path, monkeypatch):
    def refused(*args):
        raise DataError("no")

    with pytest.raises(ConfigError, match="nowhere"):
        run(config("run", "tracker=jsonl", "backbone=hf", "backbone.path=/nowhere"))
    with pytest.raises(DataError, match="leaves no records to train on"):
        run(config("run", "tracker=jsonl", "known_until=1970"))
    assert not list(tmp_path.rglob("config.yaml"))
    monkeypatch.setattr("labor_llm.run.evaluate", refused)
    with pytest.raises(DataError):
        run(config("run", *TINY, "tracker=jsonl"))
    assert len(list(tmp_path.rglob("config.yaml"))) == 1


def test_a_folder_in_use_is_refused(tmp_path):
    with held(tmp_path), pytest.raises(RunError, match="another process"), held(tmp_path):
        pass


def test_prepare_reads_once(config, tmp_path, monkeypatch, caplog):
    with caplog.at_level("INFO"):
        prepare(config("prepare"))
    assert "545 persons, 4,360 records" in caplog.text
    monkeypatch.setattr("labor_llm.datasets.wage_panel.WagePanel.parts", None)
    prepare(config("prepare"))


LOGGED = re.compile(r"_\w+|step|(train|valid)/\w+|test/((first|transitions|stayers|movers)/)?\w+|epoch")
"""What a tracker may be told: names of aggregates."""


def summary_of(wandb_run: Path) -> dict:
    """State, config and latest metrics of an offline run, as W&B itself reads it back."""
    command = [Path(sys.executable).with_name("wandb"), "leet", "inspect", "--summary", "--json", wandb_run]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_trackers_get_aggregates_only(config, tmp_path):
    """Reads the offline W&B run back: config, metrics and results, all of them single numbers with known names."""
    perplexity = run(config("run", "model=language", "tracker.tags=[a,b]", "seed=7", *TINY))
    (folder,) = run_folders(tmp_path)
    (logged,) = (folder / "wandb").glob("offline-run-*")
    summary = summary_of(logged)
    assert summary["config"]["seed"] == 7
    assert "git_commit" in summary["config"]
    assert summary["summary"]["test/perplexity"] == pytest.approx(perplexity)
    for name, value in summary["summary"].items():
        assert LOGGED.fullmatch(name), name
        assert isinstance(value, int | float) or name.startswith("_"), (name, value)
    told = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for metrics in told:
        assert all(LOGGED.fullmatch(name) for name in metrics.get("summary", metrics)), metrics
    kept = {path.name for path in logged.rglob("*") if path.is_file()}
    assert not {name for name in kept if name.endswith((".py", ".patch", ".json", ".txt", ".html"))}, kept
    raw = b"".join(path.read_bytes() for path in logged.rglob("*") if path.is_file())
    assert b"The worker was born" not in raw
    assert b"person_id" not in raw


def test_jobs_of_a_sweep_are_runs_of_their_own(tmp_path, monkeypatch):
    words = ["run", "-m", "model=markov,empirical", f"outputs={tmp_path}"]
    subprocess.run([sys.executable, "-m", "labor_llm", *words], check=True, capture_output=True)
    runs = [summary_of(path) for path in tmp_path.glob("wage_panel/*/*/wandb/offline-run-*")]
    assert {run["config"]["name"] for run in runs} == {"markov", "empirical"}
    assert {path.parent.name for path in tmp_path.glob("wage_panel/*/*")} == {"markov", "empirical"}


def test_a_mistake_inside_a_run_is_one_message(tmp_path):
    words = ["run", "backbone=hf", "backbone.path=/nowhere", f"outputs={tmp_path}", "tracker=jsonl"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "labor_llm", *words]
    answer = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert answer.returncode == 2
    assert "Traceback" not in answer.stderr
    assert answer.stderr.count("there is no folder '/nowhere'") == 1


def test_all_mistakes_are_said_at_once(monkeypatch, capsys):
    words = ["backbone=nanoo", "trainer.max_epoch=3", "labell=code", "trainer.max_epochs=abc", "adapter.rank=1"]
    monkeypatch.setattr(sys, "argv", ["labor-llm", "run", *words])
    assert main() == 2
    said = capsys.readouterr().err
    for part in ["'nanoo'", "'trainer.max_epoch'", "'labell'", "trainer.max_epochs: input", "'adapter.rank'"]:
        assert part in said


def test_an_entry_of_ones_own_without_a_class_is_one_message(tmp_path, monkeypatch, capsys):
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "mine.yaml").write_text("name: mine\n")
    monkeypatch.setattr(sys, "argv", ["labor-llm", "run", "--config-dir", str(tmp_path), "dataset=mine"])
    with pytest.raises(SystemExit):
        main()
    assert "its file has no _target_" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong",
    [
        "predict=tset",
        "predict=train",
        "seed=abc",
        "name=a/b",
        "dataset.name=..",
        "train_persons=0",
        "test_persons=a",
    ],
)
def test_settings_of_the_verb_are_checked_first(config, wrong):
    with pytest.raises(ConfigError, match=wrong.partition("=")[0]):
        run(config("run", "model=markov", "tracker=jsonl", wrong))


@pytest.fixture
def own_table(tmp_path):
    """A table of one's own with its own taxonomy, and the overrides that name them."""
    taxonomy, table = tmp_path / "codes.csv", tmp_path / "own.csv"
    taxonomy.write_text("code,title,kind\n1,Cooks,occupation\n2,Nurses,occupation\n")
    rows = [f"{person},{year},{1 + (person + year) % 2}" for person in range(90) for year in (1990, 1991)]
    table.write_text("person_id,year,occupation\n" + "\n".join(rows))
    files = [f"dataset.raw={table}", f"dataset.taxonomy={taxonomy}"]
    return taxonomy, table, ["dataset=table", "dataset.survey=X", "model=markov", "tracker=jsonl", *files]


def test_a_changed_taxonomy_file_is_noticed(config, tmp_path, own_table):
    taxonomy, _, words = own_table
    run(config("run", *words))
    taxonomy.write_text(taxonomy.read_text().replace("Cooks", "Bakers"))
    run(config("run", *words))
    assert len(run_folders(tmp_path)) == 2


def test_a_mistyped_file_is_not_the_table_prepared_before(config, own_table):
    words = own_table[2]
    run(config("run", *words))
    with pytest.raises(DataError, match="no file at"):
        run(config("run", *words, "dataset.raw=/nowhere/own.csv"))


def test_a_prepared_table_needs_no_file(config, tmp_path, own_table):
    words = own_table[2]
    run(config("run", *words))
    assert run(config("run", *words, "dataset.raw=null")) > 1
    assert len(run_folders(tmp_path)) == 1


def test_persons_of_the_training_are_counted_when_they_are_scored(config, tmp_path, caplog):
    run(config("run", "model=markov", "tracker=jsonl"))
    (fitted,) = run_folders(tmp_path)
    with caplog.at_level("WARNING"):
        score(config("score", f"run={fitted}", "dataset=wage_panel", "dataset.split.salt=other"))
    assert "were in the model's training" in caplog.text
    (other,) = [folder for folder in run_folders(tmp_path) if folder != fitted]
    seen = {
        folder: json.loads((folder / "metrics.json").read_text())["persons_seen_in_training"]
        for folder in (fitted, other)
    }
    assert seen[fitted] == 0 < seen[other]


def test_another_taxonomy_is_refused(config, tmp_path, own_table):
    run(config("run", "model=markov", "tracker=jsonl"))
    (fitted,) = run_folders(tmp_path)
    words = [word for word in own_table[2] if word.startswith("dataset")]
    with pytest.raises(DataError, match="fitted on occupations of taxonomy 'census1970_major_groups'"):
        score(config("score", f"run={fitted}", *words))


def test_an_empty_part_is_refused(config):
    with pytest.raises(DataError, match=r"dataset\.split\.valid"):
        run(config("run", "model=markov", "+dataset.split.valid=0", "+dataset.split.test=0.3"))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_stopped_in_the_middle_it_resumes_to_the_same_weights(tmp_path, how):
    """SIGTERM is what Slurm, ``timeout`` and ``docker stop`` send: training ends after a step, which is kept."""

    def command(outputs):
        arguments = [*TINY, "trainer.max_epochs=6", "trainer.checkpoint_every=5", "tracker=jsonl"]
        return [sys.executable, "-m", "labor_llm", "run", f"outputs={outputs}", *arguments]

    subprocess.run(command(tmp_path / "whole"), check=True, capture_output=True)
    stopped = subprocess.Popen(command(tmp_path / "stopped"), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    while not list((tmp_path / "stopped").glob("*/*/*/checkpoints/last.ckpt")):
        time.sleep(0.05)
        assert stopped.poll() is None
    os.kill(stopped.pid, how)
    said = stopped.communicate()[1].decode()
    assert stopped.returncode == (143 if how == signal.SIGTERM else -how)
    assert ("ended by SIGTERM; the same command goes on" in said) == (how == signal.SIGTERM)
    assert not run_folders(tmp_path / "stopped")
    subprocess.run(command(tmp_path / "stopped"), check=True, capture_output=True)
    (whole,), (resumed,) = run_folders(tmp_path / "whole"), run_folders(tmp_path / "stopped")
    expected = load_file(whole / "model" / "model.safetensors")
    for name, value in load_file(resumed / "model" / "model.safetensors").items():
        assert value.equal(expected[name]), name
