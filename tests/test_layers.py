"""Fast layers give the numbers and gradients of transformers' and peft's own."""

import pytest
import torch
from conftest import small_model
from peft import LoraConfig, get_peft_model
from torch import nn

from labor_llm.language import products
from labor_llm.language.attention import PACKED, attending
from labor_llm.language.layers import fast_layers
from labor_llm.language.products import projected

STARTS = [0, 9, 30, 37]
INPUTS = {
    "input_ids": torch.randint(0, 300, (1, 37), generator=torch.Generator().manual_seed(0)),
    "position_ids": torch.cat([torch.arange(9), torch.arange(21), torch.arange(7)])[None],
    "career_starts": STARTS,
}
FAST = ["llama", "mistral", "qwen2", "qwen3"]


def with_lora(model: nn.Module, dropout: float = 0.0) -> nn.Module:
    """The model with adapters that do something."""
    config = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=4, lora_dropout=dropout)
    adapted = get_peft_model(model, config)
    torch.manual_seed(1)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.3)
    return adapted


def states_and_gradients(model: nn.Module, fast: bool) -> dict[str, torch.Tensor]:
    """The last hidden states, and the gradients of a random sum of them."""
    model.zero_grad()
    bare = getattr(model, "get_base_model", lambda: model)()
    with attending(bare, PACKED, fast=fast):
        states = bare.base_model(**INPUTS, use_cache=False).last_hidden_state
        weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(2))
        (states * weights).sum().backward()
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return {"states": states.detach(), **found}


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("name", FAST)
def test_states_and_gradients_are_those_of_transformers_and_peft(name, lora):
    model = small_model(name)
    if name == "qwen2":  # whose biases start at zero
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("bias"):
                nn.init.normal_(parameter)
    model = (with_lora(model) if lora else model).train()
    expected, found = (states_and_gradients(model, fast) for fast in (False, True))
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-4 * float(value.abs().max()), msg=key)


@pytest.mark.parametrize("name", FAST)
def test_every_part_of_these_architectures_is_replaced_and_put_back(name):
    model = small_model(name)
    parts = [part for part in model.modules() if type(part).__name__.endswith(("RMSNorm", "Attention", "MLP"))]
    with fast_layers(model):
        assert all("forward" in vars(part) for part in parts)
        with fast_layers(model):
            pass
        assert all("forward" in vars(part) for part in parts)
    assert not any("forward" in vars(part) for part in parts)


@pytest.mark.parametrize("name", ["gemma", "gemma3", "gpt2", "neox"])
def test_other_architectures_stay_as_they_are(name):
    model = small_model(name)
    with fast_layers(model):
        assert not any("forward" in vars(part) for part in model.modules())


def test_hooks_of_a_projection_are_called():
    model = small_model("llama").train()
    plain = states_and_gradients(model, True)["states"]
    model.model.layers[0].self_attn.o_proj.register_forward_hook(lambda part, given, output: 2 * output)
    doubled = [states_and_gradients(model, fast)["states"] for fast in (False, True)]
    torch.testing.assert_close(*doubled, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(plain, doubled[0], atol=1e-2)


def test_adapters_read_what_their_dropout_keeps(monkeypatch):
    model = with_lora(small_model("llama"), dropout=0.5).train()
    attention = model.get_base_model().model.layers[0].self_attn
    parts = attention.q_proj, attention.k_proj, attention.v_proj
    x = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(3), requires_grad=True)
    mask = 2.0 * (torch.rand(x.shape, generator=torch.Generator().manual_seed(4)) < 0.5)
    monkeypatch.setattr(products, "kept", lambda values, share: mask)
    expected = torch.cat(
        [
            part.get_base_layer()(x)
            + part.lora_B["default"](part.lora_A["default"](x * mask)) * part.scaling["default"]
            for part in parts
        ],
        dim=-1,
    )
    weights = [weight for part in parts for weight in part.parameters() if weight.requires_grad]
    slope = torch.randn(expected.shape, generator=torch.Generator().manual_seed(5))
    found = projected(parts, x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(
        torch.autograd.grad(found, [x, *weights], slope),
        torch.autograd.grad(expected, [x, *weights], slope),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_in_bfloat16_the_gradients_of_float32_weights_are_close():
    model = small_model("llama", spread=0.05).train()
    expected = states_and_gradients(model, False)
    expected = {key: value.clone() for key, value in expected.items()}
    with torch.autocast("cpu", torch.bfloat16):
        found = states_and_gradients(model, True)
    assert {value.dtype for key, value in found.items() if key != "states"} == {torch.float32}
    for key, value in expected.items():
        assert (found[key].float() - value).norm() < 0.03 * value.norm(), key
