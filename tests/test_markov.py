"""The second-order chain beside its definition, and on careers that only it can predict."""

import numpy as np
from conftest import CHOICES, TEST, TRAIN, VALID, panel

from labor_llm.models.base import choice_set
from labor_llm.models.markov import Markov


def test_a_pair_is_backed_off_to_the_first_order():
    first, second = Markov().fit(TRAIN, VALID, CHOICES), Markov(order=2).fit(TRAIN, VALID, CHOICES)
    codes = TRAIN.table["occupation"].to_list()
    starts = set(TRAIN.person_starts.tolist())
    triples = [tuple(codes[n - 2 : n + 1]) for n in range(len(codes)) if not {n, n - 1} & starts]
    last = TEST.person_starts[1] - 1
    pair = tuple(TEST.table["occupation"][[last - 2, last - 1]])
    counts = np.array([triples.count((*pair, code)) for code in CHOICES])
    shorter = first.probabilities_IJ_[CHOICES.index(pair[1])]
    expected = (counts + second.trust_ * shorter) / (counts.sum() + second.trust_)
    np.testing.assert_allclose(np.exp(second.log_probs(TEST)[last]), expected, rtol=1e-10)


def test_first_records_and_new_pairs_have_the_first_order():
    first, second = Markov().fit(TRAIN, VALID, CHOICES), Markov(order=2).fit(TRAIN, VALID, CHOICES)
    odd = panel(person_id=["x"] * 3, year=[1980, 1981, 1982], occupation=["004", "095", "243"])
    np.testing.assert_allclose(second.log_probs(odd)[[0, 2]], first.log_probs(odd)[[0, 2]])


def test_only_the_second_order_knows_a_career_that_turns_every_other_year():
    cycle = ["095", "095", "243", "243"]
    careers = panel(
        person_id=[f"p{person}" for person in range(20) for _ in range(8)],
        year=[1980 + year for _ in range(20) for year in range(8)],
        occupation=[cycle[(person + year) % 4] for person in range(20) for year in range(8)],
    )
    choices = choice_set(careers)
    realised = [choices.index(code) for code in careers.table["occupation"]]
    third_on = np.flatnonzero(np.arange(len(careers)) % 8 >= 2)
    for order, bound in ((1, (0.3, 0.7)), (2, (0.95, 1.0))):
        model = Markov(order=order).fit(careers, careers, choices)
        probabilities = np.exp(model.log_probs(careers))[np.arange(len(careers)), realised][third_on]
        assert bound[0] < probabilities.min() <= probabilities.max() <= bound[1]
