import json

import polars as pl
import pytest
from pydantic import ValidationError

from labor_llm.careers import Careers
from labor_llm.datasets import read
from labor_llm.datasets.pooled import Pooled
from labor_llm.datasets.report import Report
from labor_llm.errors import DataError
from labor_llm.models.base import choice_set
from labor_llm.models.empirical import Empirical
from labor_llm.splits import SplitByPerson
from labor_llm.taxonomy import Taxonomy
from labor_llm.templates import ResumeTemplate, Titles


def prepared(folder, name: str, persons: int, taxonomy: str = "occ1990dd", split=SplitByPerson()) -> Careers:  # noqa: B008
    ids = [f"{number:04d}" for number in range(persons) for _ in range(2)]
    table = pl.DataFrame(
        {
            "person_id": ids,
            "year": [1990, 1991] * persons,
            "survey": name.upper(),
            "occupation": "1" if taxonomy == "census1970_major_groups" else "095",
            "weight": 2.0,
        }
    )
    careers = Careers.validated(table, dataset=name, taxonomy=Taxonomy.packaged(taxonomy), source="made")
    (folder / name).mkdir()
    careers.write(folder / name / "careers.parquet")
    (folder / name / "prepare.json").write_text(json.dumps({"split": repr(split)}))
    return careers


@pytest.fixture
def sources(tmp_path):
    return {name: prepared(tmp_path, name, persons) for name, persons in [("a", 40), ("a-b", 60)]}


def pooled(folder, **settings) -> Pooled:
    return Pooled(**{"name": "pooled", "folder": folder, "sources": ["a", "a-b"], **settings})


def test_a_pool_holds_everybody_and_names_the_survey_in_the_first_line(sources, tmp_path):
    report = Report()
    pool = read(pooled(tmp_path, weights={"a": 3.0}), report)
    assert (pool.persons, len(pool)) == (100, 200)
    assert report.steps["records of a-b"] == {"persons": 60, "records": 120}
    weights = pool.table.group_by(pl.col("person_id").str.head(2)).agg(pl.col("weight").unique())
    assert dict(weights.iter_rows()) == {"a:": [6.0], "a-": [2.0]}
    surveys = {text.splitlines()[0] for text in ResumeTemplate().texts(pool, Titles())}
    assert surveys == {"<A worker from the A dataset>", "<A worker from the A-B dataset>"}


def test_everybody_stays_in_the_part_of_their_own_dataset(sources, tmp_path):
    pool = pooled(tmp_path)
    parts = pool.split(read(pool))
    for part in ("train", "valid", "test"):
        own = {
            f"{name}::{person}"
            for name, careers in sources.items()
            for person in getattr(SplitByPerson()(careers), part).table["person_id"]
        }
        assert set(getattr(parts, part).table["person_id"]) == own


def test_a_share_takes_training_persons_only_and_a_larger_one_takes_more(sources, tmp_path):
    def persons(share, part):
        pool = pooled(tmp_path, shares={"a-b": share})
        return set(getattr(pool.split(read(pool)), part).table["person_id"])

    assert persons(0.2, "train") < persons(0.6, "train") < persons(1.0, "train")
    assert not any(person.startswith("a-b::") for person in persons(0.0, "train"))
    assert persons(0.0, "test") == persons(1.0, "test")


def test_a_sample_of_the_pool_is_by_the_hash_of_the_own_dataset(sources, tmp_path):
    pool = pooled(tmp_path)
    train = pool.split(read(pool)).train
    sampled = set(pool.split.sample(train, 20).table["person_id"])
    own = [SplitByPerson()(careers).train for careers in sources.values()]
    places = [
        (place, f"{careers.dataset}::{person}")
        for careers in own
        for place, person in zip(
            SplitByPerson().places(careers), careers.table["person_id"].unique(maintain_order=True), strict=True
        )
    ]
    assert sampled == {person for _, person in sorted(places)[:20]}


def test_what_does_not_fit_together_is_refused(sources, tmp_path):
    with pytest.raises(DataError, match=r"pools c, not prepared.*labor-llm prepare dataset=c"):
        read(pooled(tmp_path, sources=["a", "c"]))
    prepared(tmp_path, "groups", 3, "census1970_major_groups")
    with pytest.raises(DataError, match="'groups' has occupations of taxonomy 'census1970_major_groups'"):
        read(pooled(tmp_path, sources=["a", "groups"]))
    prepared(tmp_path, "salted", 3, split=SplitByPerson(salt="another"))
    with pytest.raises(DataError, match=r"'salted' is divided by SplitByPerson\(.*salt='another'\)"):
        read(pooled(tmp_path, sources=["a", "salted"]))
    with pytest.raises(ValidationError, match="weights names b, which is not among the sources"):
        pooled(tmp_path, weights={"b": 2.0})
    with pytest.raises(ValidationError, match="less than or equal to 1"):
        pooled(tmp_path, shares={"a": 2.0})


def test_a_model_of_the_pool_knows_its_training_persons_in_their_own_dataset(sources, tmp_path):
    pool = pooled(tmp_path)
    splits = pool.split(read(pool))
    model = Empirical().fit(splits.train, splits.valid, choice_set(splits.train))
    own = SplitByPerson()(sources["a-b"])
    assert model.persons_seen(own.train) == own.train.persons
    assert model.persons_seen(own.test) == 0
