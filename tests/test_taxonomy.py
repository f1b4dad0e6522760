import pytest

from labor_llm.errors import ConfigError, DataError
from labor_llm.taxonomy import Taxonomy

HEADER = "code,title,kind\n"


@pytest.mark.parametrize(
    ("name", "occupations", "states"), [("occ1990dd", 330, 5), ("census1970_major_groups", 9, 0)]
)
def test_packaged_taxonomies_have_unique_titles(name, occupations, states):
    taxonomy = Taxonomy.packaged(name)
    assert len(taxonomy.codes) - len(taxonomy.states) == occupations
    assert len(taxonomy.states) == states
    assert len({title.lower() for title in taxonomy.titles.values()}) == len(taxonomy.codes)


def test_codes_are_text_with_leading_zeros():
    taxonomy = Taxonomy.packaged("occ1990dd")
    assert taxonomy.codes[0] == "004"
    assert taxonomy.title("095") == "Registered nurses"
    assert taxonomy.title("in_school") == "In school"
    assert not {"874", "905", "991", "999"} & set(taxonomy.codes)


def test_an_unknown_code_is_named_with_its_near_misses():
    taxonomy = Taxonomy.packaged("occ1990dd")
    with pytest.raises(
        DataError, match=r"unknown occupation code '95' in taxonomy 'occ1990dd'\. Did you mean '095'\?"
    ):
        taxonomy.check(["004", "95"])
    with pytest.raises(DataError, match=r"Did you mean '004'\? Leading zeros count"):
        taxonomy.title("4")
    with pytest.raises(DataError, match=r"Did you mean 'in_school'\?"):
        taxonomy.title("in school")
    with pytest.raises(DataError, match=r"5 unknown codes in all"):
        taxonomy.check("abcde")
    taxonomy.check(taxonomy.codes)


def test_an_unknown_packaged_taxonomy_is_refused_with_the_list():
    with pytest.raises(
        ConfigError, match=r"'occ1990'\. Did you mean 'occ1990dd'\? Known: census1970_major_groups"
    ):
        Taxonomy.packaged("occ1990")


def test_json_keeps_everything_and_the_order():
    taxonomy = Taxonomy.packaged("occ1990dd")
    again = Taxonomy.from_json(taxonomy.to_json())
    assert again == taxonomy
    assert again.codes == taxonomy.codes


def test_a_taxonomy_of_ones_own(tmp_path):
    (tmp_path / "mine.csv").write_text(HEADER + "02,Bakers,occupation\n01,Retired,state\n")
    taxonomy = Taxonomy.from_csv(tmp_path / "mine.csv")
    assert (taxonomy.name, taxonomy.codes, taxonomy.states) == ("mine", ("02", "01"), {"01"})
    assert Taxonomy.from_csv(tmp_path / "mine.csv", name="ours").name == "ours"


def test_a_column_says_what_states_are(tmp_path):
    rows = "1,Bakers,occupation,\nidle,Idle,state,unemployed\nold,Old,state,outside\nunemployed,No job,state,\n"
    (tmp_path / "mine.csv").write_text(f"code,title,kind,labor_force\n{rows}")
    taxonomy = Taxonomy.from_csv(tmp_path / "mine.csv")
    assert taxonomy.states_of("unemployed") == {"idle", "unemployed"}
    assert taxonomy.states_of("outside") == {"old"}
    assert taxonomy.states_of("working") == set()
    assert Taxonomy.packaged("occ1990dd").states_of("working") == {"military"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("code,name,kind\n1,Bakers,occupation\n", "lacks the column 'title'.*has 'code', 'name', 'kind'"),
        ("", "not a readable CSV file"),
        (HEADER, "no rows"),
        (HEADER + ",Bakers,occupation\n", r"empty code: row 1 \(code None, 'Bakers'\)"),
        (HEADER + "1,,occupation\n", "empty title: row 1"),
        (HEADER + "1,Bakers,occupation\n1,Cooks,occupation\n", "code that occurs twice: row 1 .*, 2 "),
        (HEADER + "1,Bakers,occupation\n2,Bakers,occupation\n", "title that occurs twice"),
        (HEADER + '1,"Bak\ners",occupation\n', "line break"),
        (HEADER + "1, Bakers,occupation\n", "space before or after"),
        (HEADER + "1,Bakers,job\n", "kind other than occupation or state: row 1"),
        ("code,title,kind,labor_force\n1,Idle,state,seeking\n", "labor_force other than working, unemployed"),
        ("code,title,kind,labor_force\n1,Cook,occupation,working\n", "labor_force of an occupation.*row 1"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path, content, message):
    path = tmp_path / "mine.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        Taxonomy.from_csv(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no taxonomy file at .*absent\.csv"):
        Taxonomy.from_csv(tmp_path / "absent.csv")
