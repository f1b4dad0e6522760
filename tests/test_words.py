"""Words of the text: codes where words belong are refused with the recodes that mend them."""

import re

import pandas as pd
import polars as pl
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from labor_llm.configs import check_overrides, conf_folder
from labor_llm.datasets import read
from labor_llm.datasets.table import Table
from labor_llm.errors import ConfigError, DataError


def _table(path, field, values, **settings):
    rows = {"person_id": [f"p{n}" for n in range(len(values))], "year": 2001, "occupation": "095", field: values}
    frame = pd.DataFrame(rows)
    frame.to_csv(path, index=False) if path.suffix == ".csv" else pl.from_pandas(frame).write_parquet(path)
    return Table(name="mine", raw=path, survey="S", **settings)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
@pytest.mark.parametrize("field", ["gender", "ethnicity", "education", "region"])
@pytest.mark.parametrize(
    ("values", "line"),
    [
        ([1, 2, 2], "{2:WORD,1:WORD}"),
        ([16.5, None, 16.5], "{16.5:WORD}"),
        ([-4, -4], "{-4:null}"),
        ([True, True], "{True:WORD}"),
    ],
)
def test_codes_are_refused_with_the_recodes_that_mend_them(tmp_path, ending, field, values, line):
    path = tmp_path / f"t.{ending}"
    with pytest.raises(DataError) as refused:
        read(_table(path, field, values))
    line = line if ending == "csv" else line.replace("True", "true")
    assert f"'+dataset.recodes.{field}={line}'" in str(refused.value)
    in_file = re.search(r"recodes: (\{.*\}) in the dataset's file", str(refused.value))[1]
    recodes = OmegaConf.to_container(OmegaConf.create(f"recodes: {in_file}"))["recodes"]
    words = read(_table(path, field, values, recodes=recodes)).table[field]
    assert set(words.drop_nulls()) == ({"WORD"} if "WORD" in line else set())


@pytest.mark.parametrize("odd", ["-7", "3", "1.5", ".5", ".a", "FALSE", "1e3", "\u22121", "inf"])
def test_one_code_among_words_is_refused(tmp_path, odd):
    with pytest.raises(DataError, match=rf"gender: '{re.escape(odd)}' in 1 record\."):
        read(_table(tmp_path / "t.parquet", "gender", ["female", odd]))


@pytest.mark.parametrize("word", ["65+", "12th grade", "k-12", "south", "-", "2 years"])
def test_words_with_digits_stay(tmp_path, word):
    assert read(_table(tmp_path / "t.csv", "education", [word])).table["education"].to_list() == [word]


def test_keys_of_recodes_may_be_numbers_and_a_number_may_be_its_own_word(tmp_path):
    recodes = {"education": {12: 12, 16.0: "college", -4: None, True: "yes"}}
    table = _table(tmp_path / "t.csv", "education", ["12", "16", "12.0", "-4", "true"], recodes=recodes)
    assert read(table).table["education"].to_list() == ["12", "college", "12", None, "yes"]


def test_a_missing_value_may_be_a_number(tmp_path):
    table = _table(tmp_path / "t.csv", "region", ["south", "-4"], missing=[-4])
    assert read(table).table["region"].to_list() == ["south", None]


def test_keys_of_recodes_keep_all_their_digits(tmp_path):
    table = _table(
        tmp_path / "t.csv", "region", ["1234.5678", "7"], recodes={"region": {1234.5678: "a", 7.0: "b"}}
    )
    assert read(table).table["region"].to_list() == ["a", "b"]


@pytest.mark.parametrize(
    "override",
    [
        "+dataset.recodes.gender={1:male,-4:null}",
        "+dataset.recodes.gender={1: male, -4: null}",
        "+dataset.recodes={gender:{1:male,-4:null}}",
    ],
)
def test_recodes_are_written_on_the_command_line(tmp_path, override):
    check_overrides("prepare", ["dataset=table", override], False)
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        recodes = OmegaConf.to_container(compose("prepare", ["dataset=table", override]).dataset.recodes)
    assert read(_table(tmp_path / "t.csv", "gender", [1, -4], recodes=recodes)).table["gender"].to_list() == [
        "male",
        None,
    ]


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("dataset.recodes.gender={1:male}", r"write '\+dataset\.recodes\.gender=\{1:male\}'"),
        ("dataset.recodes.gender.1=male", r"write '\+dataset\.recodes\.gender\.1=male'"),
        ("+dataset.recodes.gender={'1':male}", "keys stand without quotes"),
        ("+dataset.recodes.gender.-4=null", r"within braces: \{-4:null\}"),
    ],
)
def test_other_ways_to_write_recodes_are_answered_with_the_right_one(override, hint):
    with pytest.raises(ConfigError, match=hint):
        check_overrides("prepare", ["dataset=table", override], False)
