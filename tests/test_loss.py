"""The loss of careers laid end to end, against one career at a time and the model's own logits."""

from contextlib import nullcontext
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import SMALL, small_model
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import CohereForCausalLM, FalconH1ForCausalLM, GraniteForCausalLM, LlamaForCausalLM

from labor_llm.language.attention import PACKED, attending
from labor_llm.language.batches import collate
from labor_llm.language.loss import _ProjectedLoss, projects, summed_nll
from labor_llm.language.tokens import EncodedCareers

STARTS = np.array([0, 9, 30, 37])
ENCODED = EncodedCareers(
    ids_T=np.random.default_rng(0).integers(0, 300, 37).astype(np.int32),
    career_starts=STARTS,
    record_starts=np.array([0, 1, 3, 4]),
    prompt_ends=np.array([4, 13, 20, 33]),
    title_ends=np.array([6, 17, 21, 36]),
    header_ends=np.array([2, 11, 31]),
)
ALL = np.arange(3)


def one_by_one(model, loss_on) -> torch.Tensor:
    """The usual way: every career alone, all its logits, transformers' own attention."""
    total = torch.zeros(())
    for start, end in pairwise(STARTS):
        ids = torch.from_numpy(ENCODED.ids_T[start:end].astype(np.int64))
        labelled = torch.from_numpy(ENCODED.in_title_T[start + 1 : end]) if loss_on == "titles" else slice(None)
        logits = model(ids[None], use_cache=False).logits[0, :-1]
        total = total + cross_entropy(logits[labelled], ids[1:][labelled], reduction="sum")
    return total


def gradients(model) -> dict[str, torch.Tensor]:
    found = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("loss_on", ["all", "titles"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_equals_one_career_at_a_time(architecture, checkpointing, loss_on, monkeypatch):
    monkeypatch.setattr("labor_llm.language.loss.ROWS", 7)
    monkeypatch.setattr("labor_llm.language.loss.COLUMNS", 64)
    model = small_model(architecture).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    alone = one_by_one(model, loss_on)
    alone.backward()
    expected = gradients(model)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    batch = collate(ENCODED, ALL, "packed", loss_on)
    with attending(model, PACKED):
        packed = summed_nll(model, batch["inputs"], batch["labels"])
        packed.backward()
    torch.testing.assert_close(packed, alone, atol=1e-3, rtol=1e-5)
    found = gradients(model)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=2e-3, rtol=1e-3, msg=name)


@pytest.mark.parametrize("name", ["mistral", "gemma3"])
def test_packed_keeps_to_a_sliding_window(name):
    model = small_model(name)
    model.config.sliding_window = 6
    model = type(model)(model.config).eval()
    batch = collate(ENCODED, ALL, "packed", "all")
    with attending(model, PACKED):
        packed = summed_nll(model, batch["inputs"], batch["labels"])
    torch.testing.assert_close(packed, one_by_one(model, "all"), atol=1e-3, rtol=1e-5)


def test_padded_equals_one_career_at_a_time(architecture):
    model = small_model(architecture)
    batch = collate(ENCODED, ALL, "padded", "all")
    padded = summed_nll(model, batch["inputs"], batch["labels"])
    torch.testing.assert_close(padded, one_by_one(model, "all"), atol=1e-3, rtol=1e-5)


def test_with_lora_and_trained_embeddings():
    config = LoraConfig(
        task_type="CAUSAL_LM",
        target_modules="all-linear",
        trainable_token_indices={"model.embed_tokens": [3, 4], "lm_head": [3, 4]},
    )
    model = get_peft_model(small_model("llama"), config).eval()
    batch = collate(ENCODED, ALL, "packed", "all")
    with attending(model, PACKED):
        packed = summed_nll(model, batch["inputs"], batch["labels"])
    torch.testing.assert_close(packed, one_by_one(model, "all"), atol=1e-3, rtol=1e-5)
    packed.backward()
    assert {name.rsplit(".", 2)[-2] for name in gradients(model)} > {"trainable_tokens_delta"}


def test_capped_logits_are_capped():
    from transformers import Gemma3ForCausalLM

    config = small_model("gemma3").config
    config.final_logit_softcapping = 2.0
    model = Gemma3ForCausalLM(config).eval()
    batch = collate(ENCODED, ALL, "padded", "all")
    padded = summed_nll(model, batch["inputs"], batch["labels"])
    torch.testing.assert_close(padded, one_by_one(model, "all"), atol=1e-3, rtol=1e-5)


def test_under_autocast_gradients_keep_the_types_of_the_weights():
    model = small_model("llama", spread=0.02)
    batch = collate(ENCODED, ALL, "packed", "all")
    with attending(model, PACKED), torch.autocast("cpu", torch.bfloat16):
        mixed = summed_nll(model, batch["inputs"], batch["labels"])
        mixed.backward()
    torch.testing.assert_close(mixed, one_by_one(model, "all"), atol=0, rtol=2e-2)
    assert {gradient.dtype for gradient in gradients(model).values()} == {torch.float32}


@pytest.mark.parametrize("spread", [1.0, 60.0])
def test_the_loss_in_tiles_and_its_gradients(spread, monkeypatch):
    """With a large spread some realized tokens are so improbable that exp overflows without a reference."""
    monkeypatch.setattr("labor_llm.language.loss.ROWS", 5)
    monkeypatch.setattr("labor_llm.language.loss.COLUMNS", 16)
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(13, 8, generator=random, dtype=torch.float32).requires_grad_()
    weight = (spread * torch.randn(50, 8, generator=random)).requires_grad_()
    targets = torch.randint(0, 50, (13,), generator=random)
    expected = cross_entropy(hidden @ weight.T, targets, reduction="sum")
    gradients = torch.autograd.grad(expected, [hidden, weight])
    found = _ProjectedLoss.apply(hidden, weight, targets)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    for ours, plain in zip(torch.autograd.grad(2 * found, [hidden, weight]), gradients, strict=True):
        torch.testing.assert_close(ours, 2 * plain, rtol=1e-4, atol=1e-4 * spread)


def test_a_sure_token_keeps_its_small_gradient_in_bfloat16():
    hidden = torch.tensor([[1.0, 0.5]], requires_grad=True)
    weight = torch.tensor([[12.0, 0.0], [2.0, 1.0], [1.0, -1.0]])
    targets = torch.tensor([0])
    (expected,) = torch.autograd.grad(cross_entropy(hidden @ weight.T, targets), hidden)
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = torch.autograd.grad(_ProjectedLoss.apply(hidden, weight, targets), hidden)
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0)


class Halved(LlamaForCausalLM):
    """Does something to its logits that its configuration does not name."""

    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = out.logits / 2
        return out


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("kind", [Halved, FalconH1ForCausalLM, CohereForCausalLM, GraniteForCausalLM])
def test_what_a_model_does_to_its_logits_is_in_the_loss(kind, layout):
    if layout == "packed" and kind is FalconH1ForCausalLM:
        pytest.skip("its state spaces mix careers in one row")
    own = {"lm_head_multiplier": 0.2, "logit_scale": 0.3, "logits_scaling": 3.0, "initializer_range": 0.3}
    own |= {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 8}
    torch.manual_seed(0)
    model = kind(kind.config_class(vocab_size=300, pad_token_id=None, **SMALL | own)).eval()
    batch = collate(ENCODED, ALL, layout, "all")
    with attending(model, PACKED) if layout == "packed" else nullcontext():
        assert not projects(model, batch["inputs"])
        loss = summed_nll(model, batch["inputs"], batch["labels"])
    torch.testing.assert_close(loss, one_by_one(model, "all"), atol=1e-3, rtol=1e-5)


def test_trying_what_a_model_does_to_its_logits_changes_nothing_else():
    model = small_model("gpt2").train()  # drops
    inputs = collate(ENCODED, ALL, "padded", "all")["inputs"]
    torch.manual_seed(0)
    assert projects(model, inputs)
    state = torch.get_rng_state()
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.transformer._forward_hooks
    assert not model.lm_head._forward_hooks
