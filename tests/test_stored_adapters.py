"""A folder with an adapter as backbone: used, trained further or merged, or refused in a sentence."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CHOICES, TEST, TRAIN, VALID
from peft import IA3Config, LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from test_finetune import hub_model
from test_hub_backbones import backbone, loaded, logits, model_on
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from labor_llm.errors import ConfigError
from labor_llm.language.adapters import Frozen, FullFineTuning, Lora
from labor_llm.templates import Titles, Tokens

STILL = 1e-12
FEW = TRAIN.select_persons([f"p{person}" for person in range(8)])
SOME = TEST.select_persons(["p50", "p51"])
LORA = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "down_proj"], r=3, lora_alpha=5)
IA3 = IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
HEADS = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], modules_to_save=["lm_head"])


def adapter_in(folder: Path, base: Path, config=LORA):
    """An adapter with weights that matter, saved by peft; and the model with it."""
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    torch.manual_seed(1)
    for weight in adapted.parameters():
        if weight.requires_grad:
            weight.data += 0.3 * torch.randn_like(weight)
    adapted.save_pretrained(folder)
    return adapted.eval()


def change(folder: Path, **settings) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.mark.parametrize("config", [LORA, IA3, HEADS], ids=["lora", "ia3", "lora with a head"])
def test_an_adapter_is_used_as_it_is_or_merged(config, llama_folder, tmp_path, caplog):
    expected = logits(adapter_in(tmp_path, llama_folder, config))
    assert not torch.allclose(expected, logits(loaded(backbone(llama_folder))), atol=0.1)
    chosen = backbone(tmp_path)
    with caplog.at_level("INFO", "labor_llm"):
        torch.testing.assert_close(logits(Frozen().apply(loaded(chosen), chosen)), expected)
        merged = FullFineTuning(learning_rate=1e-3).apply(loaded(chosen), chosen)
    torch.testing.assert_close(logits(merged), expected, atol=1e-4, rtol=1e-4)
    assert type(merged) is LlamaForCausalLM
    assert all(weight.requires_grad for weight in merged.parameters())
    assert f"adapter on {llama_folder}" in caplog.text
    assert f"merged the {config.peft_type.value} adapter" in caplog.text


def test_training_goes_on_from_an_adapter_and_its_run_scores_alike_again(llama_folder, tmp_path, caplog):
    adapter_in(tmp_path / "first", llama_folder)
    chosen = backbone(tmp_path / "first")
    before = model_on(chosen, Frozen()).fit(FEW, VALID, CHOICES).log_probs(SOME)
    with caplog.at_level("INFO", "labor_llm"):
        still = model_on(chosen, Lora(rank=8), learning_rate=STILL).fit(FEW, VALID, CHOICES)
    np.testing.assert_allclose(still.log_probs(SOME), before, atol=1e-4)
    assert "goes on from it: its rank is 3, its alpha 5" in caplog.text
    moved = model_on(chosen, Lora(dropout=0), learning_rate=1e-2).fit(FEW, VALID, CHOICES)
    moved.save(tmp_path / "second")
    assert np.abs(moved.log_probs(SOME) - before).max() > 0.01
    again = model_on(chosen, Lora()).load(tmp_path / "second")
    np.testing.assert_allclose(again.log_probs(SOME), moved.log_probs(SOME), atol=1e-5)
    direct = model_on(backbone(tmp_path / "second"), Frozen()).fit(FEW, VALID, CHOICES)
    np.testing.assert_allclose(direct.log_probs(SOME), moved.log_probs(SOME), atol=1e-5)


@pytest.fixture(scope="module")
def token_adapter(llama_folder, tmp_path_factory):
    """A LoRA that was trained with a token for each title, and its probabilities."""
    folder = tmp_path_factory.mktemp("token")
    model = hub_model(llama_folder, Lora(rank=4), Tokens(), learning_rate=1e-2).fit(FEW, VALID, CHOICES)
    model.save(folder)
    return folder, model.log_probs(SOME)


def test_tokens_of_titles_are_saved_with_an_adapter(token_adapter, llama_folder):
    folder, expected = token_adapter
    torch.manual_seed(5)
    again = hub_model(llama_folder, Lora(rank=4), Tokens()).load(folder)
    np.testing.assert_allclose(again.log_probs(SOME), expected, atol=1e-5)


@pytest.mark.parametrize(
    "adapter", [Frozen(), Lora(), FullFineTuning(learning_rate=STILL)], ids=lambda each: each.name
)
def test_an_adapter_with_tokens_of_titles_is_a_backbone_for_the_same_label(token_adapter, adapter, tmp_path):
    folder, expected = token_adapter
    model = model_on(backbone(folder), adapter, Tokens(), learning_rate=STILL).fit(FEW, VALID, CHOICES)
    np.testing.assert_allclose(model.log_probs(SOME), expected, atol=1e-4)
    model.save(tmp_path)
    again = model_on(backbone(folder), adapter, Tokens()).load(tmp_path)
    np.testing.assert_allclose(again.log_probs(SOME), expected, atol=1e-4)


def test_an_adapter_without_tokens_of_titles_is_refused_for_that_label(llama_folder, tmp_path):
    adapter_in(tmp_path, llama_folder)
    with pytest.raises(ConfigError, match=r"label=token: .* was trained without \d+ of the titles' tokens"):
        model_on(backbone(tmp_path), Lora(), Tokens()).fit(FEW, VALID, CHOICES)


def test_only_a_lora_is_trained_further(llama_folder, tmp_path):
    adapter_in(tmp_path, llama_folder, IA3)
    with pytest.raises(ConfigError, match=r"one of the kind IA3\. adapter=none merges it"):
        Lora().apply(loaded(backbone(tmp_path)), backbone(tmp_path))


def test_the_base_is_found_beside_the_adapter_in_its_folder_and_by_a_relative_path(llama_folder, tmp_path):
    expected = logits(adapter_in(tmp_path / "runs" / "lora", llama_folder))
    shutil.copytree(llama_folder, tmp_path / "runs" / "base")
    change(tmp_path / "runs" / "lora", base_model_name_or_path="../base")
    relative = loaded(backbone(tmp_path / "runs", subfolder="lora"))
    torch.testing.assert_close(logits(relative), expected)
    change(tmp_path / "runs" / "lora", base_model_name_or_path="/somewhere/else")
    shutil.copytree(llama_folder, tmp_path / "runs" / "lora", dirs_exist_ok=True)
    torch.testing.assert_close(logits(loaded(backbone(tmp_path / "runs" / "lora"))), expected)


def lacks_weights(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    save_file({name: value for name, value in load_file(path).items() if "layers.0" in name}, path)


def pickled(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    torch.save(load_file(path), folder / "adapter_model.bin")
    path.unlink()


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda folder: change(folder, base_model_name_or_path="/not/here"), "'/not/here', which is no folder"),
        (lambda folder: change(folder, base_model_name_or_path=None), "does not name the model"),
        (lambda folder: change(folder, task_type="SEQ_CLS"), "was trained for SEQ_CLS, not for CAUSAL_LM"),
        (lambda folder: change(folder, peft_type="NEXT_YEARS"), "does not describe an adapter of peft"),
        (lambda folder: change(folder, target_modules=["convolution"]), "Target modules .* not found"),
        (lambda folder: change(folder, r=2), "size mismatch"),
        (lambda folder: (folder / "adapter_config.json").write_text("[]"), "does not describe an adapter of peft"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), r"has no adapter_model\.safetensors"),
        (lacks_weights, "lacks weights that it has for LlamaForCausalLM: .*layers.1"),
        (pickled, r"backbone\.weights=pickle reads the weights in it"),
    ],
)
def test_an_adapter_that_cannot_be_used_is_refused(spoil, sentence, llama_folder, tmp_path):
    adapter_in(tmp_path, llama_folder)
    AutoTokenizer.from_pretrained(llama_folder).save_pretrained(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ConfigError, match=sentence):
        loaded(backbone(tmp_path))


def test_a_pickled_adapter_is_read_by_choice_though_its_base_is_in_safetensors(llama_folder, tmp_path):
    expected = logits(adapter_in(tmp_path, llama_folder))
    pickled(tmp_path)
    torch.testing.assert_close(logits(loaded(backbone(tmp_path, weights="pickle"))), expected)


@pytest.mark.parametrize(
    "config",
    [
        PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
    ],
)
def test_an_adapter_of_made_up_tokens_is_refused(config, llama_folder, tmp_path):
    adapter_in(tmp_path, llama_folder, config)
    with pytest.raises(ConfigError, match="puts made-up tokens before every text"):
        model_on(backbone(tmp_path), Frozen(), Titles()).fit(FEW, VALID, CHOICES)
