"""Paths are taken literally: no library reads a pattern or an address into them."""

import lzma

import numpy as np
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from polars.testing import assert_frame_equal

from labor_llm import Predictions, WagePanel, choice_set
from labor_llm.__main__ import with_paths
from labor_llm.careers import Careers
from labor_llm.configs import conf_folder, quoted
from labor_llm.datasets import read, table_files
from labor_llm.datasets.table import Table
from labor_llm.models.base import ChoiceProbabilities
from labor_llm.run import run, score

ODD = ["[ab]", "a*", "a?", "{a,b}", "~a", "a b (1)", "file:a", "year=2001", "%61"]
ENDINGS = ["csv", "csv.gz", "csv.xz", "parquet", "dta", "xlsx"]


def _frame(person):
    return pd.DataFrame({"person_id": [person], "survey": ["S"], "year": [2001], "occupation": ["095"]})


def _written(frame, path):
    if path.name.endswith(".csv.xz"):
        path.write_bytes(lzma.compress(frame.to_csv(index=False).encode()))
    elif path.name.endswith((".csv", ".csv.gz")):
        frame.to_csv(path, index=False)
    elif path.suffix == ".parquet":
        frame.to_parquet(path)
    elif path.suffix == ".dta":
        frame.to_stata(path, write_index=False)
    else:
        frame.to_excel(path, index=False)
    return path


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("in_memory", [10**8, 0])
def test_the_table_that_is_named_is_read_and_none_that_its_name_fits_as_a_pattern(
    tmp_path, monkeypatch, ending, in_memory
):
    monkeypatch.setattr(table_files, "IN_MEMORY", in_memory)
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "ab"):
        _written(_frame("another"), tmp_path / f"{name}.{ending}")
    for odd in ODD:
        for path in (tmp_path / f"{odd}.{ending}", tmp_path / odd / f"{odd}.{ending}"):
            path.parent.mkdir(exist_ok=True)
            _written(_frame("named"), path)
            for spelt in (path, path.relative_to(tmp_path)):
                assert read(Table(name="t", raw=spelt)).table["person_id"].to_list() == ["named"]


@pytest.mark.parametrize("odd", ODD)
def test_careers_and_predictions_are_written_and_read_where_they_are_said_to_be(tmp_path, monkeypatch, odd):
    monkeypatch.chdir(tmp_path)
    splits = WagePanel().split(read(WagePanel()))
    careers, folder = splits.valid, (tmp_path / odd).relative_to(tmp_path)
    folder.mkdir()
    careers.write(folder / "careers.parquet")
    assert (tmp_path / odd / "careers.parquet").is_file()
    assert_frame_equal(Careers.read(folder / "careers.parquet").table, careers.table)
    assert_frame_equal(next(Careers.read_parts(folder / "careers.parquet")).table, careers.table)
    codes = choice_set(splits.train)
    even = ChoiceProbabilities(np.full((len(careers), len(codes)), -np.log(len(codes))), np.zeros(len(careers)))
    Predictions.of(careers, codes, even).write(folder / "predictions.parquet")
    assert (tmp_path / odd / "predictions.parquet").is_file()
    assert Predictions.read(folder / "predictions.parquet").choice_set == codes


def test_a_path_that_hydra_cannot_read_is_quoted_even_if_its_file_is_not_there_yet(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert with_paths("run", ["outputs=[2]/o"]) == ["outputs='[2]/o'"]
    assert with_paths("run", ["dataset.raw=data (2)/new.csv"]) == ["dataset.raw='data (2)/new.csv'"]
    for word in ("outputs=/a/b,/c/d", "model.runs=[/a/b,/c/d]", "backbone.path=a/b", "outputs='[2]/o'"):
        assert with_paths("run", [word]) == [word]


@pytest.mark.parametrize("odd", ["[2]", "a*b?", "~b {c},d"])
def test_a_run_is_written_found_again_and_scored_in_a_folder_of_any_name(tmp_path, monkeypatch, odd):
    monkeypatch.chdir(tmp_path)
    words = [f"outputs={quoted(f'{odd}/o')}", "model=markov", "tracker=jsonl"]
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        perplexity = run(compose("run", words))
        (folder,) = (tmp_path / odd / "o/wage_panel/markov").iterdir()
        assert run(compose("run", words)) == perplexity
        relative = quoted(str(folder.relative_to(tmp_path)))
        assert score(compose("score", [f"run={relative}", "predict=test"])) == pytest.approx(perplexity)
    assert [path.name for path in tmp_path.iterdir()] == [odd]
