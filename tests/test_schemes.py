import polars as pl
import pytest

from labor_llm.errors import ConfigError
from labor_llm.schemes import SCHEMES, codes_of, crosswalk
from labor_llm.taxonomy import Taxonomy

OCC1990DD = Taxonomy.packaged("occ1990dd")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_code_has_a_title_and_a_target_of_occ1990dd(scheme):
    codes = codes_of(scheme)
    assert codes["code"].is_unique().all()
    assert codes["title"].is_not_null().all()
    assert not codes["code"].str.contains("^0.").any()
    assert OCC1990DD.unknown(codes["occ1990dd"].drop_nulls()) == ""


@pytest.mark.parametrize(
    ("scheme", "code", "occupation"),
    [
        ("census1970", "1", "023"),  # accountants
        ("census1970", "75", "095"),  # registered nurses
        ("census1970", "590", "military"),
        ("census1970", "995", None),
        ("census1970", "280", "274"),  # salesmen, not split: from the supplement
        ("census1990", "874", "873"),  # the stray duplicate of Dorn's files
        ("census1990", "873", "873"),
        ("census1980", "905", "military"),
        ("census2000", "313", "095"),
        ("census2000", "121", "068"),  # mathematicians: from the supplement
        ("census2002", "3130", "095"),
        ("census2002", "9840", "military"),
        ("census2002", "9990", None),
        ("census2010", "3255", "095"),
        ("census2010", "1230", "068"),  # as census 2000 code 123
        ("census2010", "9920", "unemployed"),
        ("census2010", "9990", None),
    ],
)
def test_codes_are_carried_to_occ1990dd(scheme, code, occupation):
    row = codes_of(scheme).filter(code=code)
    assert (row["occ1990dd"].to_list() or [None]) == [occupation]


def test_four_digits_of_2002_are_three_of_2000_and_a_nought():
    three, four = codes_of("census2000").filter(pl.col("code") != "0"), codes_of("census2002")
    assert four["code"].to_list() == [f"{code}0" for code in three["code"]]
    assert four["occ1990dd"].to_list() == three["occ1990dd"].to_list()


def test_native_codes_stay_and_states_become_states():
    taxonomy, table = crosswalk(["census2010"], "native", "panel_native")
    carried = dict(table.select("code", "occupation").iter_rows())
    assert (carried["3255"], carried["9800"], carried["9990"]) == ("3255", "military", None)
    assert taxonomy.title("3255") == "Registered nurses"
    assert taxonomy.states == OCC1990DD.states
    assert taxonomy.unknown(value for value in carried.values() if value is not None) == ""


def test_natively_one_title_is_one_occupation_in_all_schemes():
    taxonomy, table = crosswalk(["census1970", "census2000"], "native", "nlsy79_native")
    assert len(set(map(str.lower, taxonomy.titles.values()))) == len(taxonomy.titles)
    lawyers = table.filter(pl.col("title").str.to_lowercase() == "lawyers")
    assert lawyers["scheme"].to_list() == ["census1970", "census2000"]
    assert set(lawyers["occupation"]) == {"census1970:31"}


def test_unknown_schemes_and_targets_are_refused():
    with pytest.raises(ConfigError, match=r"unknown coding scheme 'census1979'\. Did you mean .*'census1970'"):
        codes_of("census1979")
    with pytest.raises(ConfigError, match="unknown taxonomy 'soc'"):
        crosswalk(["census1970"], "soc", "x")
