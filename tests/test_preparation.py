"""The verbs about data: prepare, describe and variables."""

import json
import logging
from pathlib import Path

import polars as pl
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from labor_llm import preparation
from labor_llm.configs import conf_folder
from labor_llm.datasets.variables import COLUMNS, Variables
from labor_llm.errors import ConfigError, DataError
from labor_llm.preparation import describe, prepare, variables
from labor_llm.run import run
from labor_llm.run_folder import make_folder

ROWS = "person_id,year,occupation,status\n" + "".join(
    f"p{number},{year},{code},{status}\n"
    for number in range(40)
    for year, code, status in [(2001, "3255", "employed"), (2002, "", "unemployed"), (2003, "9990", "employed")]
)


@pytest.fixture
def config(tmp_path):
    """Composes a config of a table of 40 persons, with outputs of the test's own."""
    (tmp_path / "long.csv").write_text(ROWS)

    def composed(verb: str, *overrides: str):
        table = ["dataset=table", f"dataset.raw={tmp_path / 'long.csv'}", "dataset.survey=S"]
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            words = [f"outputs={tmp_path / 'out'}", *table, "dataset.scheme=census2010"]
            words += ["dataset.columns.status=status", *overrides]
            return compose(verb, overrides=words)

    return composed


def test_prepare_says_and_writes_what_became_of_the_records(config, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    prepare(config("prepare"))
    assert "40 persons, 120 person-years in the source" in caplog.messages
    assert "  carried over: 40 of 80 occupation codes (50.0%)" in caplog.messages
    assert "    census2010 9990 (Uncodeable): 40 records" in caplog.messages
    assert any("80 records, 2001 to 2002, 1 occupation and 1 state;" in line for line in caplog.messages)
    assert "most frequent: Registered nurses (095), 40 records" in caplog.messages
    record = json.loads((tmp_path / "out/table/prepare.json").read_text())
    assert record["report"]["steps"]["records with an occupation or a state"] == {"persons": 40, "records": 80}
    assert record["report"]["unmapped"][0]["records"] == 40
    assert len(record["fingerprint"]) == 64


def test_nothing_is_read_again_until_something_changes(config, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    prepare(config("prepare"))
    table = tmp_path / "out/table/careers.parquet"
    first = table.stat().st_mtime_ns
    prepare(config("prepare"))
    assert table.stat().st_mtime_ns == first
    assert f"prepared before: {table}" in caplog.messages
    prepare(config("prepare", "dataset.survey=T"))
    assert table.stat().st_mtime_ns > first
    (tmp_path / "long.csv").write_text(ROWS + "new,2001,3255,employed\n")
    prepare(config("prepare", "dataset.survey=T"))
    assert "41 persons, 121 person-years in the source" in caplog.messages


def test_describe_shows_no_real_career_unless_it_is_asked_to(config, tmp_path, capsys):
    describe(config("describe"))
    page = capsys.readouterr().out
    assert "Made-up careers" in page
    assert "Registered nurses" in page
    assert "<A worker from the S dataset>" in page
    assert "The careers of" not in page
    assert "p0" not in page
    html = tmp_path / "out/table/describe.html"
    assert "Made-up careers" in html.read_text()
    safe = html.read_text()
    describe(config("describe", "show_records=2"))
    assert "The careers of 2 persons" in capsys.readouterr().out
    describe(config("describe", "show_records=1"))
    assert "The careers of 1 person," in capsys.readouterr().out
    assert html.read_text() == safe


@pytest.mark.parametrize(
    "words", ["show_records=-1", "show_records=abc", "smallest_cell=0", "smallest_cell=x", "show_records=true"]
)
def test_describe_checks_its_settings(config, words):
    with pytest.raises(ConfigError, match=r"(show_records|smallest_cell) must be a whole number of at least"):
        describe(config("describe", words))


def test_a_mistyped_file_leaves_the_table_as_it_was(config, tmp_path):
    prepare(config("prepare"))
    table = (tmp_path / "out/table/careers.parquet").read_bytes()
    with pytest.raises(DataError, match="no file at"):
        prepare(config("prepare", f"dataset.raw={tmp_path / 'lonng.csv'}"))
    assert (tmp_path / "out/table/careers.parquet").read_bytes() == table
    prepare(config("prepare", "dataset.raw=null"))  # as it was prepared before
    with pytest.raises(ConfigError, match=r"There is .*careers\.parquet, but made with other settings"):
        prepare(config("prepare", "dataset.raw=null", "dataset.survey=T"))


@pytest.mark.parametrize("folder", ["/dev/null/x", "/proc/x"])
def test_a_folder_that_cannot_be_made_is_named(folder):
    with pytest.raises(ConfigError, match=f"outputs.* {folder.rpartition('/')[0]}"):
        make_folder(Path(folder), "outputs")


def test_a_damaged_record_and_a_file_for_a_folder_are_named(config, tmp_path):
    prepare(config("prepare"))
    record = tmp_path / "out/table/prepare.json"
    for text in ("{", "[]", "{}"):
        record.write_text(text)
        with pytest.raises(DataError, match=r"prepare\.json is damaged: delete it"):
            prepare(config("prepare"))
    with pytest.raises(ConfigError, match=r"outputs names a folder, but .*prepare\.json is a file"):
        prepare(config("prepare", f"outputs={record}"))


def test_the_name_of_a_dataset_stays_within_outputs(config):
    with pytest.raises(ConfigError, match=r"dataset\.name names a folder"):
        prepare(config("prepare", "dataset.name=../evil"))


def test_variables_writes_the_list_and_says_what_is_lacking(config, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    rows = [
        ("R0000100", "person", None, True, 5, True),
        ("R0046400", "occupation", 1979, True, 2, True),
        ("R8982400", "occupation", 2022, True, 1, False),
        ("R0216400", "region", 1979, False, 2, False),
    ]
    listed = Variables(
        pl.DataFrame(rows, schema=COLUMNS, orient="row"),
        {"region": "the text names no region"},
        "nlsy79.NLSY79",
        "R0000100\n",
        "Upload it.",
    )

    class Downloaded:
        name = "nlsy79"

        def variables(self):
            return listed

    monkeypatch.setattr(preparation, "build", lambda cfg, sections: {"dataset": Downloaded()})
    variables(OmegaConf.create({"outputs": str(tmp_path)}))
    assert (tmp_path / "nlsy79/nlsy79.NLSY79").read_text() == "R0000100\n"
    text = "\n".join(caplog.messages)
    assert "occupation: 2 variables, 1979 to 2022 (needed)" in text
    assert "person: 1 variable (needed)" in text
    assert "one source only, check before relying on them: R8982400 (2022)" in text
    assert "the extract lacks R0216400 (1979): the text names no region" in text


def test_a_dataset_without_variables_says_so(config):
    with pytest.raises(ConfigError, match="dataset 'table' is not downloaded variable by variable"):
        variables(config("prepare"))


def test_a_table_that_replaces_another_one_of_its_name_says_so(config, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    prepare(config("prepare"))
    assert not any("replaced" in line for line in caplog.messages)
    prepare(config("prepare", "dataset.survey=T"))
    assert any("'table', that was made with other values of dataset.survey. To keep" in m for m in caplog.messages)
    (tmp_path / "other.csv").write_text(ROWS)
    prepare(config("prepare", f"dataset.raw={tmp_path / 'other.csv'}", "dataset.survey=T"))
    assert any(f"was made of {tmp_path / 'long.csv'}. To keep" in line for line in caplog.messages)


def test_a_run_logs_what_was_left_out_as_prepare_does(config, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    settings = ["model=markov", "tracker=jsonl"]
    run(config("run", *settings))
    said = "  left out: 40 records of 40 persons: the occupation code has no counterpart in occ1990dd"
    assert caplog.messages.count(said) == 1
    log = next((tmp_path / "out/table/markov").glob("*/run.log")).read_text()
    assert said in log
    assert "note: this table replaced" not in log
    run(config("run", *settings, "dataset.survey=T"))
    logs = [path.read_text() for path in sorted((tmp_path / "out/table/markov").glob("*/run.log"))]
    assert sum("note: this table replaced" in log for log in logs) == 1
