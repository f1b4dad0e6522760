"""Titles as single tokens: ids, embeddings, and the distribution from one forward pass."""

import pytest
import torch
from conftest import bpe_tokenizer, chain_panel, small_model

from labor_llm.language.adapters import Lora
from labor_llm.language.backbones import HubBackbone
from labor_llm.language.title_tokens import add_title_tokens, start_from_means
from labor_llm.language.tokens import CareerEncoder
from labor_llm.language.trie import TitleTrie
from labor_llm.templates import ResumeTemplate, Tokens

CAREERS = chain_panel(persons=5)
TEXTS = ResumeTemplate().texts(CAREERS, Tokens())


@pytest.fixture
def added():
    """An encoder whose tokenizer has the title tokens, and what each stands for."""
    tokenizer = bpe_tokenizer("llama", TEXTS)
    pieces = add_title_tokens(CareerEncoder(tokenizer, ResumeTemplate(), Tokens(), CAREERS.taxonomy))
    return CareerEncoder(tokenizer, ResumeTemplate(), Tokens(), CAREERS.taxonomy), pieces


def test_every_title_is_one_new_token_and_the_text_stays(added):
    encoder, pieces = added
    assert {len(ids) for ids in encoder.titles.values()} == {1}
    assert {ids[0] for ids in encoder.titles.values()} == set(pieces)
    assert min(pieces) > max(max(ids) for ids in pieces.values())
    assert encoder.tokenizer.decode(encoder.encode(CAREERS).ids_T) == "".join(TEXTS)
    assert TitleTrie.of(list(encoder.titles.values())).nodes == 0


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_embeddings_start_from_the_mean(added, name):
    encoder, pieces = added
    model = small_model(name, len(encoder.tokenizer))
    start_from_means(model, pieces)
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        for token, ids in pieces.items():
            torch.testing.assert_close(layer.weight[token], layer.weight[list(ids)].mean(0))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_lora_trains_and_saves_the_new_embeddings_and_no_others(added, name, tmp_path):
    encoder, pieces = added
    base = small_model(name, min(pieces))
    base.save_pretrained(tmp_path / "base")
    bpe_tokenizer("llama", ["before titles were added"]).save_pretrained(tmp_path / "base")
    backbone = HubBackbone(name="small", path=str(tmp_path / "base"))
    model = backbone.model(encoder.tokenizer, torch.bfloat16)
    start_from_means(model, pieces)
    adapted = Lora(rank=2).apply(model, backbone, list(pieces))
    trained = {name: weight for name, weight in adapted.named_parameters() if weight.requires_grad}
    assert {weight.dtype for weight in trained.values()} == {torch.float32}
    rows = [weight for name, weight in trained.items() if "trainable_tokens" in name]
    assert len(rows) == (1 if base.config.tie_word_embeddings else 2)
    assert {len(weight) for weight in rows} == {len(pieces)}
    with torch.no_grad():
        for row in rows:
            row.add_(1)
    Lora(rank=2).save(adapted, tmp_path / "adapter")
    assert sum(path.stat().st_size for path in (tmp_path / "adapter").iterdir()) < 200_000
    loaded = Lora(rank=2).load(tmp_path / "adapter", backbone, encoder.tokenizer, torch.bfloat16).eval()
    ids = torch.tensor([[3, next(iter(pieces)), 5]])
    torch.testing.assert_close(loaded(ids).logits, adapted.eval()(ids).logits, atol=0.05, rtol=0.05)
