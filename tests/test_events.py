import numpy as np
import polars as pl
import pytest
from conftest import chain_panel, panel

from labor_llm.events import SET_EVENTS, event_columns, sets_left
from labor_llm.models.base import choice_set
from labor_llm.taxonomy import Taxonomy

WORK = ("095", "243", "military")
AT_RISK = {
    "leave_work": lambda code: code in WORK,
    "leave_labor_force": lambda code: code in (*WORK, "unemployed"),
    "enter_work": lambda code: code not in WORK,
}


@pytest.fixture(scope="module")
def careers():
    jobs = ["095", "243", "unemployed", "in_school", "military", "out_of_labor_force", "not_working"]
    rng = np.random.default_rng(0)
    return panel(
        person_id=[f"p{person}" for person in range(40) for _ in range(6)],
        year=[1980 + year for _ in range(40) for year in range(6)],
        occupation=[str(job) for job in rng.choice(jobs, 240)],
    )


@pytest.fixture(scope="module")
def log_probs(careers):
    shape = (len(careers), len(choice_set(careers)))
    return np.log(np.random.default_rng(1).dirichlet(np.ones(shape[1]), size=shape[0]))


@pytest.mark.parametrize("event", SET_EVENTS)
def test_events_agree_with_a_loop(careers, log_probs, event):
    choices, columns = choice_set(careers), event_columns(careers, choice_set(careers), log_probs)
    before = None
    for line, shares, happened, logit in zip(
        careers.table.iter_rows(named=True),
        np.exp(log_probs),
        columns[event],
        columns[f"{event}_logit"],
        strict=True,
    ):
        previous = before["occupation"] if before and before["person_id"] == line["person_id"] else None
        at_risk, before = AT_RISK[event], line
        if previous is None or not at_risk(previous):
            assert happened is None
            assert logit is None
        else:
            assert happened == (not at_risk(line["occupation"]))
            share = sum(share for code, share in zip(choices, shares, strict=True) if not at_risk(code))
            assert logit == pytest.approx(np.log(share / (1 - share)))


def test_log_odds_keep_their_digits_in_both_tails():
    careers = panel(person_id=["a", "a"], year=[2000, 2001], occupation=["095", "095"])
    for tiny in (-300.0, -40.0):
        rest = -np.exp(tiny)
        for log_probs, expected in (([rest, tiny], tiny), ([tiny, rest], -tiny)):
            columns = event_columns(careers, ("095", "in_school"), np.array([log_probs, log_probs]))
            assert columns["leave_work_logit"][1] == pytest.approx(expected)


def test_impossible_and_certain_events_have_infinite_log_odds():
    careers = panel(person_id=["a", "a"], year=[2000, 2001], occupation=["095", "095"])
    certain = np.array([[0.0, -np.inf]] * 2)
    assert event_columns(careers, ("095", "in_school"), certain)["leave_work_logit"][1] == -np.inf
    assert event_columns(careers, ("in_school", "095"), certain)["leave_work_logit"][1] == np.inf


def test_a_taxonomy_without_states_has_no_events():
    careers = panel("census1970_major_groups", person_id=["a", "a"], year=[2000, 2001], occupation=["1", "2"])
    columns = event_columns(careers, ("1", "2"), np.log(np.full((2, 2), 0.5)))
    assert all(column.null_count() == 2 for column in columns.values())


def test_states_of_a_users_own_are_outside_the_labor_force():
    taxonomy = Taxonomy("mine", {"1": "Cook", "retired": "Retired"}, frozenset({"retired"}))
    assert sets_left(taxonomy) == {
        "leave_work": {"1"},
        "leave_labor_force": {"1"},
        "enter_work": {"retired"},
    }


def test_the_taxonomy_says_which_states_are_work_and_which_seek_it():
    titles = {"1": "Cook", "army": "Army", "looking": "Looking for work", "retired": "Retired"}
    places = {"army": "working", "looking": "unemployed"}
    taxonomy = Taxonomy("mine", titles, frozenset(titles) - {"1"}, places)
    assert Taxonomy.from_json(taxonomy.to_json()) == taxonomy
    assert sets_left(taxonomy) == {
        "leave_work": {"1", "army"},
        "leave_labor_force": {"1", "army", "looking"},
        "enter_work": {"looking", "retired"},
    }


@pytest.mark.parametrize("state", ["in_school", "not_working", "out_of_labor_force"])
def test_without_the_unemployed_leaving_the_labor_force_is_unknown_and_not_leaving_work_again(state):
    careers = panel(person_id=["a"] * 3, year=[2000, 2001, 2002], occupation=["095", state, "095"])
    columns = event_columns(careers, choice_set(careers), None)
    assert columns["leave_work"].to_list() == [None, True, None]
    assert columns["leave_labor_force"].null_count() == 3
    known = panel(person_id=["a"] * 3, year=[2000, 2001, 2002], occupation=["095", "unemployed", state])
    columns = event_columns(known, choice_set(known), None)
    assert columns["leave_labor_force"].to_list() == [None, False, True]


def test_without_a_distribution_it_is_known_what_happened_only(careers, log_probs):
    with_one, without = (event_columns(careers, choice_set(careers), each) for each in (log_probs, None))
    for event in SET_EVENTS:
        assert without[event].equals(with_one[event])
        assert without[f"{event}_logit"].null_count() == len(careers)
        assert without[f"{event}_logit"].dtype == pl.Float64


def test_the_chain_panel_enters_and_leaves():
    careers = chain_panel(persons=10)
    left = event_columns(careers, choice_set(careers), None)
    assert left["leave_work"].sum() > 0 < left["enter_work"].sum()
