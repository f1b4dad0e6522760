"""Batches of careers: who has a loss, how a step is cut, where a resumed run goes on."""

import itertools

import numpy as np
import polars as pl
import pytest
from conftest import bpe_tokenizer, chain_panel

from labor_llm.language.batches import IGNORED, TrainingBatches, ValidationBatches
from labor_llm.language.tokens import CareerEncoder, EncodedCareers
from labor_llm.templates import ResumeTemplate, Titles

CAREERS = chain_panel(persons=23)


@pytest.fixture(scope="module")
def encoded():
    tokenizer = bpe_tokenizer("gpt2", ResumeTemplate().texts(CAREERS, Titles()))
    return CareerEncoder(tokenizer, ResumeTemplate(), Titles(), CAREERS.taxonomy).encode(CAREERS)


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_losses_on_titles_are_the_titles_tokens(encoded, layout):
    batches = list(ValidationBatches(encoded, 5, layout))
    assert sum(int((batch["labels"] != IGNORED).sum()) for batch in batches) == encoded.in_title_T.sum()
    assert sum(int(batch["records"]) for batch in batches) == len(CAREERS)


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("loss_on", ["all", "titles"])
@pytest.mark.parametrize("micro", [3, 4, 8, 100])
def test_parts_of_a_step_make_up_the_whole_step(encoded, layout, loss_on, micro):
    batches = TrainingBatches(encoded, 8, micro, loss_on, 1, layout)
    listed = list(batches)
    for step in (listed[i : i + batches.parts] for i in range(0, len(listed), batches.parts)):
        assert sum(len(ids_of(batch)) for batch in step) == 8
        tokens = sum(int((batch["labels"] != IGNORED).sum()) for batch in step)
        assert {int(batch["step_tokens"]) for batch in step} == {tokens}


def ids_of(batch) -> list[list[int]]:
    """The ids of every career of a batch."""
    inputs = batch["inputs"]
    if "career_starts" in inputs:
        row = inputs["input_ids"][0].tolist()
        return [row[start:end] for start, end in itertools.pairwise(inputs["career_starts"])]
    return [
        ids[mask == 1].tolist() for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
    ]


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_every_career_is_seen_once_an_epoch_in_another_order(encoded, layout):
    batches = TrainingBatches(encoded, 1, 1, "all", 1, layout)
    epochs = [[tuple(ids) for batch in batches for ids in ids_of(batch)] for _ in range(2)]
    assert epochs[0] != epochs[1]
    assert sorted(epochs[0]) == sorted(epochs[1])
    assert len(epochs[0]) == len(encoded)


def test_careers_in_a_row_begin_again_and_do_not_predict_each_other(encoded):
    for batch in TrainingBatches(encoded, 5, 5, "all", seed=1):
        starts = batch["inputs"]["career_starts"]
        assert (batch["labels"][0, starts[:-1]] == IGNORED).all()
        places = [list(range(end - start)) for start, end in itertools.pairwise(starts)]
        assert batch["inputs"]["position_ids"][0].tolist() == list(itertools.chain(*places))


def test_padded_careers_are_batched_with_others_of_their_length():
    lengths = np.random.default_rng(0).integers(2, 100, 640)
    starts = np.append(0, lengths.cumsum())
    encoded = EncodedCareers(
        ids_T=np.ones(starts[-1], dtype=np.int32),
        career_starts=starts,
        record_starts=np.arange(641),
        prompt_ends=starts[:-1] + 1,
        title_ends=starts[:-1] + 2,
        header_ends=starts[:-1] + 1,
    )
    batches = TrainingBatches(encoded, 8, 8, "all", seed=0, layout="padded")
    known = [float(batch["inputs"]["attention_mask"].float().mean()) for batch in batches]
    assert len(known) == 80
    assert np.mean(known) > 0.85


def test_padding_is_masked_and_has_no_loss(encoded):
    for batch in ValidationBatches(encoded, 23, "padded"):
        padding = batch["inputs"]["attention_mask"] == 0
        assert (batch["labels"][padding] == IGNORED).all()
        assert (batch["labels"][:, 0] == IGNORED).all()


@pytest.mark.parametrize("stop", range(0, 7))
def test_a_restored_loader_goes_on_with_the_next_batch(encoded, stop):
    def two_epochs(batches):
        return itertools.chain(batches, batches)

    whole = [ids_of(batch) for batch in two_epochs(TrainingBatches(encoded, 7, 7, "all", 1))]
    first = TrainingBatches(encoded, 7, 7, "all", 1)
    begun = [ids_of(batch) for batch in itertools.islice(two_epochs(first), stop)]
    second = TrainingBatches(encoded, 7, 7, "all", 1)
    second.load_state_dict(first.state_dict())
    rest = [ids_of(batch) for batch in two_epochs(second)]
    assert begun + rest[: len(whole) - stop] == whole


def test_few_careers_still_make_a_step(encoded):
    assert len(TrainingBatches(encoded, 1000, 10, "all", 1)) == 3


def test_titles_that_are_not_to_be_predicted_have_no_loss_and_are_not_counted(encoded):
    titles = {tuple(encoded.ids_T[encoded.prompt_ends[0] : encoded.title_ends[0]].tolist())}
    kept = CAREERS.table["occupation"] == CAREERS.table["occupation"][0]
    some = encoded.with_targets(titles)
    batches = list(ValidationBatches(some, 5))
    assert sum(int(batch["records"]) for batch in batches) == kept.sum() == len(some.prompt_ends)
    labelled = sum(int((batch["labels"] != IGNORED).sum()) for batch in batches)
    assert labelled == kept.sum() * len(next(iter(titles)))
    counts = (
        CAREERS.table.with_columns(kept=kept).group_by("person_id", maintain_order=True).agg(pl.col("kept").sum())
    )
    assert np.diff(some.record_starts).tolist() == counts["kept"].to_list()
    assert encoded.with_targets(set()).record_starts[-1] == 0
