"""Scores over the tree against one forward pass per title."""

import math

import numpy as np
import pytest
import torch
from conftest import small_model
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from labor_llm.errors import RunError
from labor_llm.language.attention import Block
from labor_llm.language.checks import check_scores, plain_log_prob
from labor_llm.language.scoring import PackedCareers
from labor_llm.language.title_scorer import TitleScorer, _cut
from labor_llm.language.tokens import EncodedCareers
from labor_llm.language.trials import Trial
from labor_llm.language.trie import NONE, TitleTrie

END = 7
TITLES = [(11, END), (11, 12, END), (11, 12, 13, END), (14, 15, END), (14, 16, 17, 18, END), (19, END)]
TRIE = TitleTrie.of(TITLES)
GENERATOR = torch.Generator().manual_seed(1)
CAREERS = [torch.randint(20, 300, (length,), generator=GENERATOR) for length in (30, 20, 25)]
PROMPT_ENDS = [[4, 9, 10, 21, 28], [7], [3, 15]]


def packed(careers=CAREERS, prompt_ends=PROMPT_ENDS, realised=None) -> PackedCareers:
    """Careers in one row; each record's title is taken to be the two tokens after its prompt."""
    starts = [0]
    for career in careers:
        starts.append(starts[-1] + len(career))
    ends = torch.tensor([start + end for start, of in zip(starts, prompt_ends, strict=False) for end in of])
    return PackedCareers(
        ids_T=torch.cat(careers),
        career_starts=starts,
        careers_Q=torch.tensor([career for career, of in enumerate(prompt_ends) for _ in of]),
        prompt_ends_Q=ends,
        title_ends_Q=ends + 2,
        realised_Q=torch.tensor(realised) if realised else torch.full((len(ends),), NONE),
    )


TRIAL = Trial.of(
    EncodedCareers(
        ids_T=torch.cat(CAREERS).numpy().astype(np.int32),
        career_starts=np.array([0, 30, 50, 75]),
        record_starts=np.array([0, 5, 6, 8]),
        prompt_ends=packed().prompt_ends_Q.numpy(),
        title_ends=packed().title_ends_Q.numpy(),
        header_ends=np.array([2, 32, 52]),
    ),
    room=60,
)


def plain(model, titles=TITLES, careers=CAREERS, prompt_ends=PROMPT_ENDS):
    with torch.no_grad():
        rows = [
            [plain_log_prob(model, ids, end, title) for title in titles]
            for ids, ends in zip(careers, prompt_ends, strict=True)
            for end in ends
        ]
    return torch.tensor(rows)


def close(scores, expected):
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("max_tokens", [1, 2, 3, 7, 10_000])
def test_tree_scores_equal_title_by_title_scores(architecture, attention, max_tokens):
    model = small_model(architecture, attention=attention)
    scores = TitleScorer(model, TRIE, max_tokens).score(packed())
    close(scores.raw_QJ, plain(model))
    assert not scores.unexpanded_Q.any()
    assert model.config._attn_implementation == attention


def test_records_share_a_call_or_not_with_the_same_scores(monkeypatch):
    model = small_model("llama")
    scores = []
    for rows in (1, 5, 1000):
        monkeypatch.setattr("labor_llm.language.title_scorer.BLOCK_ROWS", rows)
        scores.append(TitleScorer(model, TRIE, 100).score(packed()).raw_QJ)
    for other in scores:
        close(other, plain(model))


@pytest.mark.parametrize("most", [None, 1, 2])
def test_nodes_of_a_record_are_cut_into_pieces_or_not(most):
    records, counts = _cut(torch.tensor([3, 3, 3, 3, 3, 5, 7, 7]), most)
    expected = {None: [(3, 5), (5, 1), (7, 2)], 2: [(3, 2), (3, 2), (3, 1), (5, 1), (7, 2)]}
    expected[1] = [(3, 1)] * 5 + [(5, 1)] + [(7, 1)] * 2
    assert list(zip(records, counts, strict=True)) == expected[most]


def test_with_lora(architecture):
    config = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(small_model(architecture), config).eval()
    close(TitleScorer(model, TRIE, 100).score(packed()).raw_QJ, plain(model))


def test_in_bfloat16_it_is_about_the_same(architecture):
    model = small_model(architecture, spread=0.05).to(torch.bfloat16)
    expected = plain(model)
    torch.testing.assert_close(TitleScorer(model, TRIE, 100).score(packed()).raw_QJ, expected, atol=0.2, rtol=0)
    mixed = small_model(architecture, spread=0.05)
    with torch.autocast("cpu", torch.bfloat16):
        scores = TitleScorer(mixed, TRIE, 100).score(packed()).raw_QJ
    torch.testing.assert_close(scores, expected, atol=0.2, rtol=0)


def test_later_tokens_change_nothing():
    scorer = TitleScorer(small_model("llama"), TRIE, 100)
    changed = [CAREERS[0].clone(), CAREERS[1].flip(0), CAREERS[2]]
    changed[0][9:] = CAREERS[0][9:].flip(0)
    scores, again = scorer.score(packed()).raw_QJ, scorer.score(packed(changed)).raw_QJ
    torch.testing.assert_close(again[[0, 1, 6, 7]], scores[[0, 1, 6, 7]])


def test_titles_of_one_token_need_no_tree():
    model, titles = small_model("gpt2"), [(11,), (12,), (13,)]
    close(TitleScorer(model, TitleTrie.of(titles), 100).score(packed()).raw_QJ, plain(model, titles))


def test_all_strings_of_a_tiny_vocabulary_sum_to_one():
    """Every string of up to two tokens before the terminator, and those that have not ended by then."""
    model = small_model("llama", vocabulary=6)
    titles = [(0,), *[(a, 0) for a in range(1, 6)], *[(a, b) for a in range(1, 6) for b in range(1, 6)]]
    careers = [career % 6 for career in CAREERS]
    scores = TitleScorer(model, TitleTrie.of(titles), 100).score(packed(careers)).raw_QJ
    torch.testing.assert_close(scores.exp().sum(1), torch.ones(len(scores)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["mistral", "gemma3"])
@pytest.mark.parametrize("rows", [1, 1000])
@pytest.mark.parametrize("max_tokens", [1, 3, 100])
def test_a_sliding_window_is_kept_to(name, rows, max_tokens, monkeypatch):
    monkeypatch.setattr("labor_llm.language.title_scorer.BLOCK_ROWS", rows)
    model = small_model(name)
    model.config.sliding_window = 6
    model = type(model)(model.config).eval()
    close(TitleScorer(model, TRIE, max_tokens).score(packed()).raw_QJ, plain(model))


def test_a_title_longer_than_the_window_is_refused():
    model = small_model("mistral")
    model.config.sliding_window = 4
    with pytest.raises(RunError, match="longer than the 4 tokens"):
        TitleScorer(type(model)(model.config).eval(), TRIE, 100).score(packed())


def test_capped_attention_is_refused():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(vocab_size=300, hidden_size=32, num_hidden_layers=2, intermediate_size=64, head_dim=8)
    with pytest.raises(RunError, match="caps its attention"):
        TitleScorer(Gemma2ForCausalLM(config).eval(), TRIE, 100).score(packed())


PEAKED = small_model("llama", spread=0.5)
EXACT = TitleScorer(PEAKED, TRIE, 100).score(packed()).raw_QJ
REALISED = [3, 4, 0, NONE, 2, 4, 1, 5]


def test_pruned_with_tolerance_zero_is_exact():
    scores = TitleScorer(PEAKED, TRIE, 100, tolerance=0.0).score(packed(realised=REALISED))
    torch.testing.assert_close(scores.raw_QJ, EXACT, atol=0, rtol=0)


@given(st.floats(1e-12, 0.9), st.sampled_from([1, 4, 100]))
def test_what_pruning_leaves_out_is_certified(tolerance, max_tokens):
    scores = TitleScorer(PEAKED, TRIE, max_tokens, tolerance).score(packed(realised=REALISED))
    raw_QJ, unexpanded_Q = scores.raw_QJ.double(), scores.unexpanded_Q
    assert (unexpanded_Q <= tolerance).all()
    exact_Q = EXACT.double().exp().sum(1)
    assert (raw_QJ.exp().sum(1) >= exact_Q - 1e-6).all()  # nothing is forgotten
    assert (raw_QJ.exp().sum(1) - unexpanded_Q <= exact_Q + 1e-6).all()
    distance_Q = (raw_QJ.softmax(1) - EXACT.double().softmax(1)).abs().sum(1) / 2
    assert (distance_Q <= unexpanded_Q / raw_QJ.exp().sum(1) + 1e-6).all()
    for record, place in enumerate(REALISED):
        if place != NONE:
            close(scores.raw_QJ[record, place], EXACT[record, place])


def test_pruning_leaves_something_out():
    scores = TitleScorer(PEAKED, TRIE, 100, tolerance=0.5).score(packed())
    assert (scores.unexpanded_Q > 0).any()
    assert torch.isfinite(scores.raw_QJ).all()


@pytest.mark.parametrize("tolerance", [0.0, 1e-3])
def test_realised_titles_alone(tolerance):
    model = small_model("llama")
    batch = packed(realised=list(range(8)))
    titles = [tuple(batch.ids_T[end : end + 2].tolist()) for end in batch.prompt_ends_Q]
    scores = TitleScorer(model, TitleTrie.of(titles), 100, tolerance).score_realised(batch).raw_QJ
    expected = TitleScorer(model, TitleTrie.of(titles), 100).score(batch).raw_QJ
    assert scores.shape == (8, 1)
    close(scores[:, 0], expected.diagonal())


@pytest.mark.parametrize("spread", [0.02, 0.3])
def test_self_check_refuses_attention_that_sees_later_records(monkeypatch, spread):
    model = small_model("llama", spread=spread)
    check_scores(model, TRIE, 100, TRIAL)
    view = Block.view

    def too_far(self, window):
        return slice(self.start, view(self, window)[0].stop + 2), None

    monkeypatch.setattr(Block, "view", too_far)
    with pytest.raises(RunError, match="does not read its attention"):
        check_scores(model, TRIE, 100, TRIAL)


def test_self_check_refuses_broken_weights():
    model = small_model("llama")
    model.lm_head.weight.data[0, 0] = math.nan
    with pytest.raises(RunError, match="weights are broken"):
        check_scores(model, TRIE, 100, TRIAL)
