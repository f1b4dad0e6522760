"""Batches of careers: who has a loss, how a step is cut, where a resumed run goes on."""

import itertools

import pytest
from conftest import bpe_tokenizer, chain_panel

from labor_llm.language.batches import IGNORED, TrainingBatches, ValidationBatches
from labor_llm.language.tokens import CareerEncoder
from labor_llm.templates import ResumeTemplate, Titles

CAREERS = chain_panel(persons=23)


@pytest.fixture(scope="module")
def encoded():
    tokenizer = bpe_tokenizer("gpt2", ResumeTemplate().texts(CAREERS, Titles()))
    return CareerEncoder(tokenizer, ResumeTemplate(), Titles(), CAREERS.taxonomy).encode(CAREERS)


def test_losses_on_titles_are_the_titles_tokens(encoded):
    batches = list(ValidationBatches(encoded, 5))
    assert sum(int((batch["labels"] != IGNORED).sum()) for batch in batches) == encoded.in_title_T.sum()
    assert sum(int(batch["records"]) for batch in batches) == len(CAREERS)


@pytest.mark.parametrize("loss_on", ["all", "titles"])
@pytest.mark.parametrize("micro", [3, 4, 8, 100])
def test_parts_of_a_step_make_up_the_whole_step(encoded, loss_on, micro):
    batches = TrainingBatches(encoded, 8, micro, loss_on, seed=1)
    listed = list(batches)
    for step in (listed[i : i + batches.parts] for i in range(0, len(listed), batches.parts)):
        assert sum(len(batch["input_ids"]) for batch in step) == 8
        tokens = sum(int((batch["labels"] != IGNORED).sum()) for batch in step)
        assert {int(batch["step_tokens"]) for batch in step} == {tokens}


def test_padding_is_masked_and_has_no_loss(encoded):
    for batch in ValidationBatches(encoded, 23):
        padding = batch["attention_mask"] == 0
        assert (batch["labels"][padding] == IGNORED).all()
        assert (batch["labels"][:, 0] == IGNORED).all()


@pytest.mark.parametrize("stop", range(0, 7))
def test_a_restored_loader_goes_on_with_the_next_batch(encoded, stop):
    def two_epochs(batches):
        return itertools.chain(batches, batches)

    whole = [batch["input_ids"].tolist() for batch in two_epochs(TrainingBatches(encoded, 7, 7, "all", 1))]
    first = TrainingBatches(encoded, 7, 7, "all", 1)
    begun = [batch["input_ids"].tolist() for batch in itertools.islice(two_epochs(first), stop)]
    second = TrainingBatches(encoded, 7, 7, "all", 1)
    second.load_state_dict(first.state_dict())
    rest = [batch["input_ids"].tolist() for batch in two_epochs(second)]
    assert begun + rest[: len(whole) - stop] == whole


def test_few_careers_still_make_a_step(encoded):
    assert len(TrainingBatches(encoded, 1000, 10, "all", 1)) == 3
