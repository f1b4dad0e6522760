import contextlib
import gzip
import random
import shutil
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from pydantic import ValidationError

from labor_llm.careers import Careers, write_parts
from labor_llm.configs import conf_folder
from labor_llm.datasets import career_text, read
from labor_llm.datasets.career_text import CareerText, SplitByFile
from labor_llm.datasets.report import Report
from labor_llm.datasets.wage_panel import WagePanel
from labor_llm.errors import ConfigError, DataError, LaborLLMError

FILES = {
    "train.job": "7 in_school\n9\n",
    "train.year": "1990 1992\n2001\n",
    "train.education": "some_college high_school_diploma\n<unk>\n",
    "train.ethnicity": "other\nhispanic\n",
    "train.gender": "male\nunknown\n",
    "train.location": "north_central\nsouth\n",
    "valid.job": "9 9\n",
    "valid.year": "1990 1991\n",
    "test.job": "10\n",
    "test.year": "1999\n",
}


def write(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        if name.endswith(".gz"):
            (folder / name).write_bytes(gzip.compress(text.encode()))
        else:
            (folder / name).write_bytes(text.encode())
    return folder


def test_files_become_careers_by_hand(tmp_path):
    report = Report()
    recodes = {"education": {"high_school_diploma": "high school"}, "ethnicity": {"other": None}}
    made = read(CareerText(raw=write(tmp_path, FILES), recodes=recodes, survey="CVs"), report)
    columns = ("person_id", "year", "occupation", "education", "region", "gender", "ethnicity")
    assert made.table.select(columns).rows() == [
        ("test/000000001", 1999, "10", None, None, None, None),
        ("train/000000001", 1990, "7", "some college", "north central", "male", None),
        ("train/000000001", 1992, "in_school", "high school", "north central", "male", None),
        ("train/000000002", 2001, "9", None, "south", None, "hispanic"),
        ("valid/000000001", 1990, "9", None, None, None, None),
        ("valid/000000001", 1991, "9", None, None, None, None),
    ]
    assert dict(made.taxonomy.titles) == {code: code for code in ("7", "9", "10", "in_school")}
    assert (made.taxonomy.name, made.taxonomy.states) == ("career_text_tokens", frozenset())
    assert set(made.table["survey"]) == {"CVs"}
    assert report.steps["records"] == {"persons": 4, "records": 6}


def test_the_split_is_that_of_the_files(tmp_path):
    dataset = CareerText(raw=write(tmp_path, FILES))
    splits = dataset.split(read(dataset))
    for part in ("train", "valid", "test"):
        ids = getattr(splits, part).table["person_id"]
        assert ids.str.starts_with(f"{part}/").all()
    assert [part.persons for part in (splits.train, splits.valid, splits.test)] == [2, 1, 1]
    assert all(SplitByFile().wants(part) for part in SplitByFile.PARTS)


def test_persons_of_other_datasets_have_no_such_split():
    with pytest.raises(DataError, match="person '10043' does not come from a file of train, valid or test"):
        SplitByFile()(read(WagePanel()))


def test_compressed_and_plain_files_mix_and_spaces_do_not_matter(tmp_path):
    plain = read(CareerText(raw=write(tmp_path / "plain", FILES)))
    mixed = {
        name + (".gz" if place % 2 else ""): text.replace(" ", " \t ").replace("\n", " \r\n").rstrip("\n")
        for place, (name, text) in enumerate(FILES.items())
    }
    assert read(CareerText(raw=write(tmp_path / "mixed", mixed))).fingerprint == plain.fingerprint


def test_ids_follow_the_line_in_person_id(tmp_path):
    ids = {"train.id": "z9\na1\n", "valid.id": "m\n", "test.id": "k\n"}
    table = read(CareerText(raw=write(tmp_path, FILES | ids))).table
    assert table["person_id"].unique(maintain_order=True).to_list() == [
        "test/000000001/k",
        "train/000000001/z9",
        "train/000000002/a1",
        "valid/000000001/m",
    ]


def test_job_tokens_may_be_codes_of_a_taxonomy(tmp_path):
    jobs = {"train.job": "095 in_school\n004\n", "valid.job": "095 095\n", "test.job": "004\n"}
    made = read(CareerText(raw=write(tmp_path / "text", FILES | jobs), taxonomy="occ1990dd"))
    assert made.taxonomy.name == "occ1990dd"
    own = tmp_path / "own.csv"
    own.write_text("code,title,kind\n095,Nurses,occupation\n004,Chiefs,occupation\nin_school,In school,state\n")
    dataset = CareerText(raw=tmp_path / "text", taxonomy=str(own))
    assert read(dataset).taxonomy.title("095") == "Nurses"
    assert own in dataset.files
    with pytest.raises(
        DataError, match=r"unknown occupation code '10'.*\n?.*row 1: person 'test/000000001', 1999"
    ):
        read(CareerText(raw=write(tmp_path / "other", FILES), taxonomy="occ1990dd"))


@pytest.mark.parametrize(("same_year", "jobs"), [("first", ["7", "8"]), ("last", ["9", "8"])])
def test_of_several_records_of_a_year_one_may_be_kept(tmp_path, same_year, jobs):
    files = FILES | {"test.job": "7 9 8\n", "test.year": "1990 1990 1995\n"}
    report = Report()
    table = read(CareerText(raw=write(tmp_path, files), same_year=same_year), report).table
    assert table.filter(pl.col("person_id") == "test/000000001")["occupation"].to_list() == jobs
    assert report.dropped == {"another record of the same year": {"persons": 1, "records": 1}}
    with pytest.raises(DataError, match=r"must not occur twice for a person.*row 1: person 'test/000000001'"):
        read(CareerText(raw=tmp_path))


def test_lines_without_records_are_counted(tmp_path):
    files = FILES | {"train.job": "\n9\n", "train.year": "\n2001\n", "train.education": " \nx\n"}
    report = Report()
    table = read(CareerText(raw=write(tmp_path, files)), report).table
    assert table["person_id"].to_list()[1] == "train/000000002"
    assert report.dropped == {"the line has no records": {"persons": 1, "records": 1}}


def test_the_wage_panel_in_the_format_of_the_reference_is_the_wage_panel(tmp_path):
    panel = read(WagePanel())
    splits = WagePanel().split(panel)
    for part in ("train", "valid", "test"):
        persons = getattr(splits, part).table.group_by("person_id", maintain_order=True)
        lines = persons.agg(
            pl.col("occupation").str.join(" "), pl.col("year").cast(pl.String).str.join(" "),
            pl.col("education").str.replace_all(" ", "_").str.join(" "), pl.col("gender").first(),
        )  # fmt: skip
        names = {
            "person_id": "id",
            "occupation": "job",
            "year": "year",
            "education": "education",
            "gender": "gender",
        }
        for column, ending in names.items():
            text = "".join(line + "\n" for line in lines[column])
            write(tmp_path, {f"{part}.{ending}.gz": text})
    table = read(CareerText(raw=tmp_path, survey="NLSY79")).table
    ours = table.with_columns(pl.col("person_id").str.split("/").list.last()).sort("person_id", "year")
    columns = ("person_id", "survey", "year", "occupation", "education", "gender")
    assert ours.select(columns).equals(panel.table.select(columns))


@given(data=st.data())
def test_what_is_written_is_read_in_parts_of_any_size(tmp_path_factory, data):
    token = st.text("abcé_0", min_size=1, max_size=4)
    person = st.dictionaries(st.integers(1950, 2020), token, min_size=1, max_size=5)
    parts = {part: data.draw(st.lists(person, min_size=1, max_size=6)) for part in ("test", "train", "valid")}
    folder = tmp_path_factory.mktemp("text")
    for part, people in parts.items():
        write(folder, {
            f"{part}.job": "".join(" ".join(p.values()) + "\n" for p in people),
            f"{part}.year.gz": "".join(" ".join(map(str, p)) + "\n" for p in people),
        })  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(career_text, "PERSONS_PER_PART", data.draw(st.integers(1, 4)))
        patch.setattr(career_text, "BLOCK", data.draw(st.integers(1, 50)))
        pieces = list(CareerText(raw=folder).parts(Report()))
    write_parts(pieces, folder / "careers.parquet")
    table = Careers.read(folder / "careers.parquet").table
    assert table.select("person_id", "year", "occupation").rows() == [
        (f"{part}/{line:09}", year, person[year])
        for part, people in parts.items()
        for line, person in enumerate(people, start=1)
        for year in sorted(person)
    ]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train.year": "1990 1992\n"}, r"train\.year ends after line 1, and train\.job goes on"),
        ({"train.gender": "male\nmale\nmale\n"}, r"train\.job ends after line 2, and train\.gender goes on"),
        ({"train.year": "1990\n2001\n"}, r"train\.year line 1: 1 tokens, and train\.job has 2 there"),
        ({"train.education": "a b\nc d\n"}, r"train\.education line 2: 2 tokens, and train\.job has 1 there"),
        ({"train.year": "1990 199x\n2001\n"}, r"train\.year line 1: '199x' is not a calendar year"),
        ({"train.year": "1990 5\n2001\n"}, r"year: must be a calendar year.*row 1: person 'train/000000001', 5"),
        ({"train.gender": "male\nfe male\n"}, r"train\.gender line 2: 'fe male' is not one token"),
        ({"train.location": "\nsouth\n"}, r"train\.location line 1: '' is not one token"),
        ({"valid.job.gz": "9 9\n"}, r"has both valid\.job and valid\.job\.gz: leave one"),
        ({"test.id": "1\n", "train.id": "1\n2\n"}, r"1 lines of test\.id, train\.id repeat an id"),
        ({"train.id": "1\n\n"}, r"train\.id line 2: no id"),
        ({"test.job": "", "test.year": ""}, "test gets nobody"),
    ],
)
def test_what_does_not_fit_is_said_with_file_and_line(tmp_path, files, message):
    dataset = CareerText(raw=write(tmp_path, FILES | files))
    with pytest.raises(DataError, match=message):
        dataset.split(read(dataset))


def test_lines_are_counted_over_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(career_text, "PERSONS_PER_PART", 10)
    many = {"train.job": "7\n" * 25, "train.year": "1990\n" * 22 + "x\n" + "1990\n" * 2}
    only = {name: text for name, text in FILES.items() if not name.startswith("train")}
    with pytest.raises(DataError, match=r"train\.year line 23: 'x' is not a calendar year"):
        read(CareerText(raw=write(tmp_path, only | many)))


@pytest.mark.parametrize("missing", ["train.job", "valid.year", "test.job"])
def test_files_that_are_needed_are_named(tmp_path, missing):
    files = {name: text for name, text in FILES.items() if name != missing}
    with pytest.raises(DataError, match=rf"has no {missing} and no {missing}\.gz. It has test"):
        read(CareerText(raw=write(tmp_path, files)))


def test_settings_and_folders_are_checked(tmp_path):
    with pytest.raises(ConfigError, match=r"dataset\.raw=FOLDER"):
        read(CareerText())
    with pytest.raises(DataError, match=r"dataset\.raw: no folder at .*absent"):
        read(CareerText(raw=tmp_path / "absent"))
    with pytest.raises(ValidationError, match="unknown column 'job' in recodes"):
        CareerText(recodes={"job": {}})
    with pytest.raises(ConfigError, match="unknown packaged taxonomy"):
        read(CareerText(raw=write(tmp_path, FILES), taxonomy="occ"))


def test_the_yaml_says_what_the_class_does(tmp_path):
    config = OmegaConf.load(conf_folder() / "dataset" / "career_text.yaml")
    assert instantiate(config, _convert_="all") == CareerText()
    names = [path.name for path in CareerText(raw=write(tmp_path, FILES)).files]
    assert sorted(names) == sorted(FILES)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.job.gz", gzip.compress(b"7 8\n9\n", mtime=0)[:-9], r"train\.job\.gz is broken after line 0"),
        ("train.job.gz", b"7 8\n9\n", r"train\.job\.gz is broken"),
        ("train.job", b"7 8\n\xff9\n", r"train\.job line 2 is not UTF-8"),
    ],
)
def test_broken_files_are_refused(tmp_path, name, content, message):
    files = {key: text for key, text in FILES.items() if key != "train.job"}
    (write(tmp_path, files) / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(CareerText(raw=tmp_path))


def test_any_bytes_are_read_or_refused(tmp_path):
    packed = {name + ".gz": text for name, text in FILES.items() if name.endswith(("year", "gender"))}
    plain = {name: text for name, text in FILES.items() if name + ".gz" not in packed}
    write(tmp_path, packed | plain)
    choose = random.Random(2)
    for trial in range(120):
        path = choose.choice(sorted(tmp_path.iterdir()))
        whole = path.read_bytes()
        content = bytearray(whole)
        for _ in range(choose.choice([0, 1, 3])):
            content[choose.randrange(len(content))] = choose.choice([0, 10, 13, 32, choose.randrange(256)])
        path.write_bytes(content[: choose.randrange(len(content))] if trial % 4 == 0 else content)
        with contextlib.suppress(LaborLLMError):
            assert len(read(CareerText(raw=tmp_path))) > 0
        path.write_bytes(whole)


@pytest.mark.slow
def test_a_million_resumes_take_seconds(tmp_path):
    persons, records = 1_000_000, 9
    jobs = np.random.default_rng(0).integers(1, 336, (persons, records))
    for part, people in (("test", jobs[:1000]), ("train", jobs), ("valid", jobs[:1000])):
        np.savetxt(tmp_path / f"{part}.job", people, fmt="%d", delimiter=" ")
        for ending, line in (("year", " ".join(map(str, range(2000, 2000 + records)))), ("gender", "male")):
            (tmp_path / f"{part}.{ending}").write_text((line + "\n") * len(people))
    began = time.perf_counter()
    assert sum(len(part) for part in CareerText(raw=tmp_path).parts(Report())) == (persons + 2000) * records
    assert time.perf_counter() - began < 60
    shutil.rmtree(tmp_path)
