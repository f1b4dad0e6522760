"""Backbones from scratch: their dropout and their first weights."""

from dataclasses import replace

import pytest
import torch
from conftest import TRAIN

from labor_llm.language.backbones import ScratchBackbone
from labor_llm.templates import ResumeTemplate, Titles

TEXTS = ResumeTemplate().texts(TRAIN, Titles())
PLAIN = ScratchBackbone(
    name="tiny", layers=2, width=32, heads=2, feed_forward=64, vocabulary=400, learning_rate=3e-3
)


def logits(backbone: ScratchBackbone, training: bool) -> torch.Tensor:
    tokenizer = backbone.tokenizer(TEXTS)
    torch.manual_seed(0)
    model = backbone.model(tokenizer, torch.float32).train(training)
    return model(torch.tensor([tokenizer(TEXTS[0])["input_ids"]])).logits


def test_dropout_acts_in_training_only():
    dropping = replace(PLAIN, dropout=0.5)
    assert torch.equal(logits(PLAIN, training=True), logits(PLAIN, training=False))
    assert torch.equal(logits(dropping, training=False), logits(PLAIN, training=False))
    assert not torch.allclose(logits(dropping, training=True), logits(PLAIN, training=True))


def test_dropout_reaches_the_embeddings_and_both_parts_of_every_layer():
    tokenizer = PLAIN.tokenizer(TEXTS)
    model = replace(PLAIN, dropout=0.5).model(tokenizer, torch.float32).train()
    shares = {}

    def count(name: str, values) -> None:
        values = values[0] if isinstance(values, tuple) else values
        shares[name] = float((values == 0).float().mean())

    first = model.model.layers[0].input_layernorm
    first.register_forward_pre_hook(lambda _, args: count("embeddings", args[0]))
    for name, module in model.named_modules():
        if name.endswith(("self_attn", "mlp")):
            module.register_forward_hook(lambda _, __, output, name=name: count(name, output))
    model(torch.tensor([tokenizer(TEXTS[0])["input_ids"]]))
    assert len(shares) == 1 + 2 * PLAIN.layers
    assert all(0.4 < share < 0.6 for share in shares.values())


def test_a_width_whose_heads_have_odd_sizes_is_refused():
    with pytest.raises(ValueError, match="width must be a multiple of twice the heads, 8, got width=36"):
        replace(PLAIN, width=36, heads=4)
