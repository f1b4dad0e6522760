"""The benchmark of architectures tells right models from refused and from wrong ones."""

import pytest

from benchmarks.architectures import careers, tokenizer, tried
from benchmarks.tiny_models import VARIANTS, architectures
from labor_llm.language.title_scorer import TitleScorer

PANEL = careers(persons=10)
WORDS = tokenizer(PANEL)


@pytest.mark.parametrize(("name", "expected"), [("llama", "right"), ("bloom", "refused"), ("nothing", "not made")])
def test_an_architecture_is_right_or_refused_or_not_made(name, expected):
    outcome = tried(name, PANEL, WORDS, lora=False)
    assert (outcome.outcome, outcome.fault) == (expected, False)
    if expected == "refused":
        assert "BloomForCausalLM" in outcome.detail


def test_a_wrong_number_is_a_fault(monkeypatch):
    monkeypatch.setattr("labor_llm.language.finetune.check_scores", lambda *_: None)
    score = TitleScorer.score

    def off(scorer, batch):
        scores = score(scorer, batch)
        scores.raw_QJ[0, 0] += 1e-3
        return scores

    monkeypatch.setattr(TitleScorer, "score", off)
    outcome = tried("llama", PANEL, WORDS, lora=True)
    assert (outcome.outcome, outcome.fault) == ("wrong", True)
    monkeypatch.undo()
    assert tried("llama", PANEL, WORDS, lora=True).outcome == "right"


def test_all_of_transformers_models_are_listed():
    assert {"llama", "gpt2", "mixtral", "gemma3", "mamba", *VARIANTS} <= set(architectures())
    assert len(list(architectures())) > 120
