"""Scores over the tree against one forward pass per title."""

import pytest
import torch
from conftest import small_model

from labor_llm.errors import RunError
from labor_llm.language.scoring import TitleScorer, plain_log_prob, self_check
from labor_llm.language.tree_attention import TreeState
from labor_llm.language.trie import TitleTrie

END = 7
TITLES = [(11, END), (11, 12, END), (11, 12, 13, END), (14, 15, END), (14, 16, 17, 18, END), (19, END)]
IDS = torch.randint(20, 300, (30,), generator=torch.Generator().manual_seed(1))
PROMPT_ENDS = torch.tensor([4, 9, 10, 21, 28])


def plain(model, ids, ends, titles):
    with torch.no_grad():
        rows = [[plain_log_prob(model, ids, int(end), list(title)) for title in titles] for end in ends]
    return torch.tensor(rows)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("max_tokens", [1, 20, 10_000])
def test_tree_scores_equal_title_by_title_scores(architecture, attention, max_tokens):
    model = small_model(architecture, attention=attention)
    scores = TitleScorer(model, TitleTrie.of(TITLES), max_tokens).score(IDS[None], PROMPT_ENDS[None])[0]
    torch.testing.assert_close(scores, plain(model, IDS, PROMPT_ENDS, TITLES), atol=1e-4, rtol=0)


def test_later_tokens_change_nothing():
    scorer = TitleScorer(small_model("llama"), TitleTrie.of(TITLES), 100)
    changed = IDS.clone()
    changed[9:] = IDS[9:].flip(0)
    torch.testing.assert_close(
        scorer.score(changed[None], PROMPT_ENDS[None])[0, :2],
        scorer.score(IDS[None], PROMPT_ENDS[None])[0, :2],
    )


def test_titles_of_one_token_need_no_tree():
    model, titles = small_model("gpt2"), [(11,), (12,), (13,)]
    scores = TitleScorer(model, TitleTrie.of(titles), 100).score(IDS[None], PROMPT_ENDS[None])[0]
    torch.testing.assert_close(scores, plain(model, IDS, PROMPT_ENDS, titles), atol=1e-4, rtol=0)


def test_all_strings_of_a_tiny_vocabulary_sum_to_one():
    """Every string of up to two tokens before the terminator, and those that have not ended by then."""
    model = small_model("llama", vocabulary=6)
    titles = [(0,), *[(a, 0) for a in range(1, 6)], *[(a, b) for a in range(1, 6) for b in range(1, 6)]]
    scores = TitleScorer(model, TitleTrie.of(titles), 100).score(IDS[None] % 6, PROMPT_ENDS[None])[0]
    torch.testing.assert_close(scores.exp().sum(1), torch.ones(len(PROMPT_ENDS)), atol=1e-5, rtol=0)


BATCH = IDS.unfold(0, 20, 10)
BATCH_ENDS = torch.tensor([[4, 9, 10], [7, 15, 1]])
"""Two careers, the second with one record less."""


@pytest.mark.parametrize("max_tokens", [1, 7, 10_000])
def test_careers_of_a_padded_batch_are_scored_as_alone(architecture, max_tokens):
    model = small_model(architecture)
    scores = TitleScorer(model, TitleTrie.of(TITLES), max_tokens).score(BATCH, BATCH_ENDS)
    torch.testing.assert_close(scores[0], plain(model, BATCH[0], BATCH_ENDS[0], TITLES), atol=1e-4, rtol=0)
    torch.testing.assert_close(scores[1, :2], plain(model, BATCH[1], BATCH_ENDS[1, :2], TITLES), atol=1e-4, rtol=0)


def test_a_sliding_window_is_kept_to():
    model = small_model("mistral")
    model.config.sliding_window = 6
    model = type(model)(model.config).eval()
    scores = TitleScorer(model, TitleTrie.of(TITLES), 100).score(IDS[None], PROMPT_ENDS[None])[0]
    torch.testing.assert_close(scores, plain(model, IDS, PROMPT_ENDS, TITLES), atol=1e-4, rtol=0)


def check(scorer):
    self_check(scorer, BATCH, BATCH_ENDS, torch.tensor([3, 2]))


@pytest.mark.parametrize("spread", [0.02, 0.3])
def test_self_check_refuses_attention_that_sees_later_records(monkeypatch, spread):
    scorer = TitleScorer(small_model("llama", spread=spread), TitleTrie.of(TITLES), 100)
    check(scorer)
    monkeypatch.setattr(TreeState, "_bias", lambda self, window: torch.zeros(1))
    with pytest.raises(RunError, match="does not read its attention"):
        check(scorer)


def test_self_check_refuses_broken_weights():
    model = small_model("llama")
    model.lm_head.weight.data[0, 0] = float("nan")
    with pytest.raises(RunError, match="weights are broken"):
        check(TitleScorer(model, TitleTrie.of(TITLES), 100))
