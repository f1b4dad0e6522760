"""What makes another run: settings, data and code; and what a run keeps of the machine that it was made on."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from labor_llm import prepared
from labor_llm.build import build
from labor_llm.compare import compare
from labor_llm.comparison.side_by_side import Statistics
from labor_llm.configs import conf_folder
from labor_llm.errors import DataError, RunError
from labor_llm.forecast import forecast
from labor_llm.identity import code_of, decided_before, plain
from labor_llm.machine import processor_name, threads
from labor_llm.prepared import prepare, read_prepared
from labor_llm.run import _folder, run, score
from labor_llm.run_folder import stored_config

OWN = """
from own_parts import SHIFT
from labor_llm.models.empirical import Empirical
from labor_llm.datasets.table import Table


class Own(Empirical):
    def _predict(self, careers, workspace):
        return super()._predict(careers, workspace)


class OwnTable(Table):
    def parts(self, report):
        return super().parts(report)
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Composes a config of a table of 90 persons, from whose folder commands are typed."""
    (tmp_path / "codes.csv").write_text("code,title,kind\n1,Cooks,occupation\n2,Nurses,occupation\n")
    rows = [f"{person},{year},{1 + (person * year) % 2}" for person in range(90) for year in (1990, 1991, 1992)]
    (tmp_path / "own.csv").write_text("person_id,year,occupation\n" + "\n".join(rows))
    monkeypatch.chdir(tmp_path)
    table = ["dataset=table", "dataset.raw=own.csv", "dataset.taxonomy=codes.csv", "dataset.survey=X"]

    def composed(verb: str, *overrides: str, own: bool = False):
        words = [*table, "tracker=jsonl"] if verb == "run" else []
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            cfg = compose(verb, overrides=[*words, *overrides])
        OmegaConf.set_struct(cfg, False)
        if own:
            cfg.model._target_, cfg.dataset._target_ = "own_code.Own", "own_code.OwnTable"
        return cfg

    return composed


@pytest.fixture
def own_code(tmp_path, monkeypatch) -> Path:
    """The folder of a user's own classes."""
    (tmp_path / "own_code.py").write_text(OWN)
    (tmp_path / "own_parts.py").write_text("SHIFT = 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield tmp_path
    for name in ("own_code", "own_parts"):
        sys.modules.pop(name, None)


def folders(name: str = "*") -> list[Path]:
    return sorted(marker.parent.resolve() for marker in Path("outputs/table").glob(f"{name}/*/complete"))


@pytest.mark.parametrize("changed", ["own_code.py", "own_parts.py"])
def test_changed_code_of_a_users_class_is_another_run(config, own_code, caplog, changed):
    cfg = config("run", "model=empirical", own=True)
    run(cfg)
    run(cfg)
    (own_code / "unrelated.py").write_text("new = True\n")
    run(cfg)
    assert len(folders()) == 1
    (own_code / changed).write_text((own_code / changed).read_text() + "# changed\n")
    with caplog.at_level("INFO"):
        run(cfg)
    assert len(folders()) == 2
    assert f"{folders()[0].name} was made by other code: with that of now it is another run" in caplog.text
    codes = {f"empirical (code={stored_config(folder)['code']})" for folder in folders()}
    compared = compare(["outputs"], statistics=Statistics(replicates=100))
    assert set(compared.table["run"]) == set(compared.models["model"]) == codes


def test_a_table_is_prepared_again_when_its_reader_changes(config, own_code, caplog):
    dataset = build(config("run", own=True), ["dataset"])["dataset"]

    def stamp() -> int:
        prepare(dataset, Path("outputs"))
        return Path("outputs/table/careers.parquet").stat().st_mtime_ns

    first = stamp()
    (own_code / "unrelated.py").write_text("new = True\n")
    assert stamp() == first
    (own_code / "own_parts.py").write_text("SHIFT = 1\n")
    assert stamp() > first


def test_only_the_packaged_lists_that_a_dataset_names_count(config, tmp_path, monkeypatch):
    lists = tmp_path / "lists"
    lists.mkdir()
    for name in ("census2010", "own_list"):
        (lists / f"{name}.csv").write_text("code,title\n")
    monkeypatch.setattr(prepared, "PACKAGED", lists)
    dataset = build(config("run"), ["dataset"])["dataset"]
    first = prepared._code(dataset)
    (lists / "new.csv").write_text("code\n")
    (lists / "own_list.csv").write_text("code\n")
    assert prepared._code(dataset) == first
    (lists / "census2010.csv").write_text("code\n")
    second = prepared._code(dataset)
    named = build(config("run", "dataset.name=own_list"), ["dataset"])["dataset"]
    assert len({first, second, prepared._code(named)}) == 3


def test_a_run_is_scored_and_forecast_anywhere_without_its_raw_file(config, tmp_path, monkeypatch, caplog):
    run(config("run", "model=markov"))
    (fitted,) = folders()
    before = (tmp_path / "outputs/table/careers.parquet").stat().st_mtime_ns
    for name in ("own.csv", "codes.csv"):
        (tmp_path / name).unlink()
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert score(config("score", f"run='{fitted}'", "predict=valid")) > 1
    forecast(config("forecast", f"run='{fitted}'", "cutoff=1990", "paths=3", "min_persons=1"))
    assert (fitted / "forecasts").is_dir()
    assert (tmp_path / "outputs/table/careers.parquet").stat().st_mtime_ns == before
    assert "is not what the run" not in caplog.text


def test_a_table_whose_raw_file_is_gone_is_taken_as_it_was_prepared(config, tmp_path):
    run(config("run", "model=markov"))
    (tmp_path / "own.csv").unlink()
    run(config("run", "model=empirical"))
    assert len(folders()) == 2
    with pytest.raises(
        DataError, match=r"no file at .*other\.csv\nThere is .*careers\.parquet.*leave out dataset\.raw"
    ):
        run(config("run", "model=empirical", "dataset.raw=other.csv"))


def test_without_its_raw_file_a_table_of_other_code_is_taken_and_said(config, tmp_path, caplog):
    dataset = build(config("run"), ["dataset"])["dataset"]
    careers, record = read_prepared(dataset, Path("outputs")), Path("outputs/table/prepare.json")
    record.write_text(json.dumps(json.loads(record.read_text()) | {"code": "of then"}))
    (tmp_path / "own.csv").unlink()
    assert read_prepared(dataset, Path("outputs")).fingerprint == careers.fingerprint
    assert "the table was prepared by other code than there is now" in caplog.text


def test_data_that_changed_since_are_scored_and_said(config, tmp_path, caplog):
    run(config("run", "model=markov"))
    (fitted,) = folders()
    table = tmp_path / "own.csv"
    table.write_text(table.read_text() + "\nnew,1990,1")
    run(config("run", "model=markov"))
    assert len(folders()) == 2
    score(config("score", f"run='{fitted}'", "predict=valid"))
    assert "dataset 'table' is not what the run in" in caplog.text


def test_a_model_of_other_code_is_scored_and_said(config, own_code, caplog):
    run(config("run", "model=empirical", own=True))
    (fitted,) = folders()
    (own_code / "own_parts.py").write_text("SHIFT = 1\n")
    score(config("score", f"run='{fitted}'", "predict=valid"))
    assert "was fitted by other code than there is now" in caplog.text


NETWORK = ("model=bag_of_jobs", "trainer.accelerator=cpu")


def made(cfg) -> Path:
    parts = build(cfg, ["dataset", "model"])
    return _folder(plain(cfg), read_prepared(parts["dataset"], Path(cfg.outputs)), parts["model"])


def test_auto_is_decided_once_for_all_runs_of_a_folder(config, monkeypatch):
    """Whatever a second trial would find: runs, runs that go on, and runs of other processes agree."""
    precisions = {}
    for seed, pays in ((0, True), (1, False)):
        monkeypatch.setattr("labor_llm.precision.bfloat16_pays", lambda pays=pays: pays)
        precisions[seed] = stored_config(made(config("run", *NETWORK, f"seed={seed}")))["model"]["trainer"][
            "precision"
        ]
    assert precisions == {0: "bf16-mixed", 1: "bf16-mixed"}
    assert json.loads(Path("outputs/bfloat16.json").read_text()) == {
        f"{processor_name()}, {threads()} threads": True
    }
    Path("outputs/bfloat16.json").write_text("{")
    with pytest.raises(RunError, match=r"bfloat16\.json is damaged: delete it"):
        made(config("run", *NETWORK, "seed=2"))


def test_a_run_goes_on_in_the_precision_that_it_began_in(config, monkeypatch):
    monkeypatch.setattr("labor_llm.precision.bfloat16_pays", lambda: True)
    cfg = config("run", *NETWORK)
    folder = made(cfg)
    Path("outputs/bfloat16.json").unlink()
    monkeypatch.setattr("labor_llm.precision.bfloat16_pays", lambda: False)
    assert made(cfg) == folder
    assert made(config("run", *NETWORK, "trainer.precision=32-true")) != folder
    resumed = decided_before(plain(cfg), stored_config(folder))
    assert resumed["model"]["trainer"]["precision"] == resumed["trainer"]["precision"] == "bf16-mixed"
    assert resumed["asked"] == {"model": {"trainer": {"precision": "auto"}}}


def test_what_was_decided_is_in_the_run_and_tells_runs_apart(config, monkeypatch):
    quick = ["model.trainer.max_epochs=1", "model.width=8"]
    for seed, pays in ((0, True), (1, False)):
        monkeypatch.setattr("labor_llm.precision.bfloat16_pays", lambda pays=pays: pays)
        run(config("run", *NETWORK, *quick, f"seed={seed}"))
        Path("outputs/bfloat16.json").unlink()
    asked = [yaml.safe_load((folder / "config.yaml").read_text()) for folder in folders()]
    assert [each["trainer"]["precision"] for each in asked] == ["bf16-mixed", "32-true"]
    environment = (folders()[0] / "environment.txt").read_text().splitlines()
    assert {f"processor {processor_name()}", f"threads {threads()}", "gpu none"} <= set(environment)
    models = compare(["outputs"], statistics=Statistics(replicates=100)).models["model"]
    assert set(models) == {f"bag_of_jobs (trainer.precision={each})" for each in ("bf16-mixed", "32-true")}


def test_the_code_of_parts_of_a_model_counts(config):
    cfg = plain(config("run"))
    template = {**cfg, "model": {**cfg["model"], "template": {"_target_": "test_source_code.Path"}}}
    assert code_of(cfg) == code_of(cfg) != code_of(template)
