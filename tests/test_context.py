"""Careers longer than the context: whole records, the most recent ones, and never a target cut."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import CHOICES, TEST, TRAIN, VALID, bpe_tokenizer, chain_panel, language, panel

from labor_llm.careers import Careers
from labor_llm.errors import DataError
from labor_llm.language.context import every_record, last_record, most_recent
from labor_llm.language.tokens import CareerEncoder
from labor_llm.templates import ResumeTemplate, Titles

LONG = chain_panel(persons=2, years=30, seed=1).table
SHORT = chain_panel(persons=4, years=3).table
MIXED = Careers.validated(
    SHORT.with_columns(person_id="s" + SHORT["person_id"]).vstack(LONG),
    dataset="test",
    taxonomy=TRAIN.taxonomy,
    source="made for a test",
)


@pytest.fixture(scope="module")
def encoder():
    tokenizer = bpe_tokenizer("gpt2", ResumeTemplate().texts(MIXED, Titles()))
    return CareerEncoder(tokenizer, ResumeTemplate(), Titles(), MIXED.taxonomy)


def texts(encoder, encoded) -> list[str]:
    bounds = zip(encoded.career_starts[:-1], encoded.career_starts[1:], strict=True)
    return [encoder.tokenizer.decode(encoded.ids_T[start:end]) for start, end in bounds]


def test_what_fits_stays_as_it_is(encoder):
    encoded = encoder.encode(MIXED)
    assert most_recent(encoded, 10_000) is encoded
    assert every_record(encoded, 10_000, 9) is encoded


@pytest.mark.parametrize("context", [90, 130, 200])
def test_training_keeps_the_header_and_the_most_recent_records(encoder, context):
    encoded = encoder.encode(MIXED)
    kept = most_recent(encoded, context)
    assert kept.lengths.max() <= context
    assert len(kept) == len(encoded)
    for text, whole, header in zip(
        texts(encoder, kept), texts(encoder, encoded), ResumeTemplate().headers(MIXED), strict=True
    ):
        assert text.startswith(header)
        body = text[len(header) :]
        assert whole.endswith(body)
        assert body[:4].isdigit()
        left_out = whole[len(header) : len(whole) - len(body)]
        if left_out:
            line = left_out[left_out[:-1].rfind("\n") + 1 :]
            assert len(encoder.tokenizer(text + line)["input_ids"]) > context
    assert kept.in_title_T.sum() == (kept.title_ends - kept.prompt_ends).sum()


@pytest.mark.parametrize("context", [90, 130, 200])
def test_prediction_keeps_every_record_after_as_many_as_fit(encoder, context):
    encoded, longest = encoder.encode(MIXED), 9
    views = every_record(encoded, context, longest)
    np.testing.assert_array_equal(views.record_starts[[0, -1]], encoded.record_starts[[0, -1]])
    person = np.repeat(range(len(encoded)), np.diff(encoded.record_starts))
    for view in range(len(views)):
        start = views.career_starts[view]
        for record in range(*views.record_starts[view : view + 2]):
            end = views.prompt_ends[record]
            assert end - start + longest <= context
            prompt = encoder.tokenizer.decode(views.ids_T[start:end])
            header = ResumeTemplate().headers(MIXED)[int(person[record])]
            assert prompt.startswith(header)
            first = encoded.career_starts[person[record]]
            original = encoder.tokenizer.decode(encoded.ids_T[first : encoded.prompt_ends[record]])
            assert original.endswith(prompt[len(header) :])
            np.testing.assert_array_equal(
                views.ids_T[end : views.title_ends[record]],
                encoded.ids_T[encoded.prompt_ends[record] : encoded.title_ends[record]],
            )
            if len(prompt) < len(original):  # one more record would not have fitted
                missing = original[len(header) : len(original) - len(prompt) + len(header)].splitlines()[-1]
                assert end - start + longest + len(encoder.tokenizer(missing + "\n")["input_ids"]) > context


@pytest.mark.parametrize("context", [90, 130, 200, 10_000])
def test_a_last_record_follows_as_many_as_every_record_would_show_it(encoder, context):
    encoded = encoder.encode(MIXED)
    every, last = every_record(encoded, context, 9), last_record(encoded, context, 9)
    np.testing.assert_array_equal(last.record_starts, range(len(encoded) + 1))
    for person, record in enumerate(encoded.record_starts[1:] - 1):
        view = np.searchsorted(every.record_starts, record, side="right") - 1
        shown = every.ids_T[every.career_starts[view] : every.prompt_ends[record]]
        np.testing.assert_array_equal(last.ids_T[last.career_starts[person] : last.prompt_ends[person]], shown)
        np.testing.assert_array_equal(
            last.ids_T[last.prompt_ends[person] : last.title_ends[person]],
            encoded.ids_T[encoded.prompt_ends[record] : encoded.title_ends[record]],
        )


def test_a_context_too_short_for_one_record_is_refused(encoder):
    encoded = encoder.encode(MIXED)
    for shortened in (
        lambda: most_recent(encoded, 60),
        lambda: every_record(encoded, 60, 9),
        lambda: last_record(encoded, 60, 9),
    ):
        with pytest.raises(DataError, match="do not fit into"):
            shortened()


def test_a_model_with_a_short_context_fits_and_predicts_every_record(caplog):
    model = language(max_epochs=1)
    model.backbone = replace(model.backbone, context=150)
    model.fit(TRAIN, VALID, CHOICES)
    assert "records are further back than the 150 tokens" in caplog.text
    assert np.isfinite(model.log_probs(TEST)).all()


def test_the_most_recent_records_decide(caplog):
    """With and without the first years, which the context cannot hold, the last record is predicted alike."""
    model = language(max_epochs=1)
    model.backbone = replace(model.backbone, context=220)
    model.fit(TRAIN, VALID, CHOICES)
    years = list(range(1980, 2000))
    columns = {"gender": ["male"] * 20, "education": ["college"] * 20, "occupation": ["095"] * 10 + ["274"] * 10}
    long = panel(person_id=["a"] * 20, year=years, **columns)
    other = panel(person_id=["a"] * 20, year=years, **columns | {"occupation": ["243"] * 10 + ["274"] * 10})
    np.testing.assert_allclose(model.log_probs(long)[-1], model.log_probs(other)[-1], atol=1e-5)
    assert np.abs(model.log_probs(long)[9] - model.log_probs(other)[9]).max() > 1e-3
