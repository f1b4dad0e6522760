"""A checkpoint is what it says: all its weights, as they are packed, and no code of its own; or it is refused."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CHOICES, TEST, TRAIN, VALID, bpe_tokenizer, save_model
from safetensors.torch import load_file, save_file
from test_hub_backbones import Runs, backbone, loaded, logits, model_on
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BitsAndBytesConfig,
    ViTConfig,
    ViTModel,
)

from labor_llm.errors import ConfigError
from labor_llm.language.adapters import Frozen, FullFineTuning, Lora
from labor_llm.language.quantized import check_trainable, packed_bits

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
FEW = TRAIN.select_persons([f"p{person}" for person in range(8)])
SOME = TEST.select_persons(["p50", "p51"])
SAFE = "model.safetensors"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n"


@pytest.fixture
def folder(llama_folder, tmp_path) -> Path:
    """A Llama to spoil."""
    return Path(shutil.copytree(llama_folder, tmp_path / "model"))


def configure(folder: Path, **settings) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def reweigh(folder: Path, change) -> None:
    save_file(change(load_file(folder / SAFE)), folder / SAFE, metadata={"format": "pt"})


def without(part: str):
    return lambda weights: {name: value for name, value in weights.items() if part not in name}


def refused(folder: Path, sentence: str, **settings) -> None:
    with pytest.raises(ConfigError, match=sentence):
        loaded(backbone(folder, **settings))


# weights that are missing, of another shape, or left over


@pytest.mark.parametrize("part", ["lm_head", "layers.0.self_attn.k_proj", "model.norm"])
def test_weights_that_are_missing_are_named(part, folder):
    reweigh(folder, without(part))
    refused(
        folder, rf"lacks weights of LlamaForCausalLM: \S*{part}\S*weight\.? Random numbers would take their place"
    )


def test_a_head_that_is_tied_to_the_embeddings_is_not_missing(folder):
    configure(folder, tie_word_embeddings=True)
    reweigh(folder, without("lm_head"))
    model = loaded(backbone(folder))
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_weights_of_another_shape_are_named_with_both(folder):
    configure(folder, intermediate_size=48)
    refused(folder, r"layers\.0\.mlp\.down_proj\.weight \[32, 64\] instead of \[32, 48\], .* \(6 in all\)")


@pytest.mark.parametrize(
    "name",
    ["model.layers.2.mlp.up_proj.weight", "model.layers.1.self_attn.q_proj.bias", "lm_head.bias", "norm.bias"],
)
def test_weights_that_the_model_would_not_read_are_named(name, folder):
    reweigh(folder, lambda weights: weights | {name: torch.ones(4)})
    refused(folder, f"has weights that LlamaForCausalLM does not read: {name}")


def test_weights_beside_the_model_are_noted_and_angles_of_positions_are_not(folder, caplog):
    expected = logits(loaded(backbone(folder)))
    more = {"v_head.weight": torch.ones(3), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    reweigh(folder, lambda weights: weights | more)
    torch.testing.assert_close(logits(loaded(backbone(folder))), expected, atol=0, rtol=0)
    assert "without effect: v_head.weight" in caplog.text
    assert "inv_freq" not in caplog.text


# tokens without embeddings


def test_tokens_without_embeddings_change_no_probability(folder, llama_folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.add_tokens(["<|im_start|>"])
    tokenizer.save_pretrained(folder)
    plain, more = (
        model_on(backbone(each), Frozen()).fit(FEW, VALID, CHOICES).predict(SOME)
        for each in (llama_folder, folder)
    )
    np.testing.assert_array_equal(more.log_probs_NJ, plain.log_probs_NJ)
    np.testing.assert_array_equal(more.log_mass_N, plain.log_mass_N)


def test_new_rows_are_the_mean_of_the_others_whatever_the_seed(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["[PAD]"])
    tokenizer.save_pretrained(folder)
    chosen, rows = backbone(folder), len(tokenizer) - 1
    more = chosen.tokenizer([])
    more.add_tokens(["a title"])
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = chosen.model(more, torch.float32)
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            assert layer.weight.shape[0] == rows + 2
            torch.testing.assert_close(layer.weight[rows:], layer.weight[:rows].mean(0).expand(2, -1))


def test_the_tokenizer_of_another_model_is_refused(folder):
    bpe_tokenizer("llama", [f"word{number} " * 3 for number in range(300)]).save_pretrained(folder)
    configure(folder, vocab_size=400)
    reweigh(folder, lambda weights: {n: v[:400].clone() if v.shape[0] > 400 else v for n, v in weights.items()})
    refused(folder, r"the tokenizer of .* has 5\d\d tokens, and its weights have embeddings of 400")


# files


def half(folder: Path) -> None:
    path = folder / SAFE
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def as_index(folder: Path, target: str) -> None:
    names = load_file(folder / SAFE)
    (folder / SAFE).rename(folder / "whole.safetensors")
    (folder / f"{SAFE}.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(names, target)}))


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (half, rf"{SAFE} is cut off or damaged \(.*\)\. Download or copy it again"),
        (lambda folder: (folder / SAFE).write_bytes(b""), "is cut off or damaged"),
        (lambda folder: (folder / SAFE).write_text(POINTER), rf"{SAFE} is a Git LFS pointer.*`git lfs pull`"),
        (lambda folder: (folder / "tokenizer.json").write_text(POINTER), r"tokenizer\.json is a Git LFS pointer"),
        (lambda folder: as_index(folder, "gone.safetensors"), r"gone\.safetensors, which the index.*is missing"),
        (
            lambda folder: as_index(folder, "weights.bin"),
            r"names weights\.bin, a pickle\. backbone\.weights=pickle",
        ),
        (
            lambda folder: configure(folder, transformers_weights="adapter_model.bin"),
            r"names adapter_model\.bin, a pi",
        ),
        (lambda folder: (folder / "config.json").write_text(""), "not a valid JSON file"),
        (lambda folder: (folder / "config.json").write_text("[1]"), "the config of .* could not be loaded"),
        (lambda folder: configure(folder, num_hidden_layers="two"), "'num_hidden_layers': .* expected int"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "the tokenizer of .* could not be loaded"),
        (
            lambda folder: (folder / "config.json").rename(folder / "model_index.json"),
            "it is a pipeline of diffusers",
        ),
        (lambda folder: configure(folder, is_encoder_decoder=True), "an encoder with a decoder"),
    ],
)
def test_what_is_damaged_or_foreign_is_said_in_a_sentence(spoil, sentence, folder):
    spoil(folder)
    refused(folder, sentence)


def test_a_damaged_index_and_a_file_for_a_folder_are_refused(folder):
    refused(folder / SAFE, "is a file; set it to the folder")
    (folder / SAFE).unlink()
    (folder / f"{SAFE}.index.json").write_text("{}")
    refused(folder, r"index\.json is no index of weights \(KeyError|'weight_map'")


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        (lambda: BertForMaskedLM(BertConfig(vocab_size=60, **SMALL)), "an encoder, which reads texts in both"),
        (
            lambda: ViTModel(ViTConfig(image_size=8, patch_size=4, **SMALL)),
            r"no causal language model \(model_type vit",
        ),
    ],
)
def test_models_of_another_kind_are_refused(model, kind, tmp_path):
    model().save_pretrained(tmp_path)
    refused(tmp_path, kind)


def test_attention_that_is_not_there_is_refused_with_the_setting(folder):
    refused(
        folder,
        r"backbone\.attention=flash_attention_2: .* Use backbone\.attention=sdpa",
        attention="flash_attention_2",
    )
    refused(folder, r"backbone\.attention=quick: ", attention="quick")


# code of checkpoints


def code(marker: Path) -> str:
    return f"from pathlib import Path\nPath({str(marker)!r}).touch()\n"


def test_no_code_of_a_checkpoint_runs_and_nothing_is_asked(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    expected = logits(loaded(backbone(folder)))
    own = dict.fromkeys(("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer"), "own.Own")
    (folder / "own.py").write_text(code(tmp_path / "ran"))
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(code(tmp_path / "ran"))
    configure(folder, auto_map=own)
    torch.testing.assert_close(logits(loaded(backbone(folder))), expected, atol=0, rtol=0)
    configure(folder, auto_map=own, model_type="made_up")
    refused(folder, "needs code of its own .* labor-llm runs no code")
    assert not (tmp_path / "ran").exists()


def test_a_tokenizer_of_its_own_is_refused(folder, tmp_path):
    (folder / "tokenizer.json").unlink()
    names = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    (folder / "own.py").write_text(code(tmp_path / "ran"))
    refused(folder, "needs code of its own")
    assert not (tmp_path / "ran").exists()


def test_pickles_are_for_checkpoints_without_safetensors(folder, tmp_path):
    torch.save({"code": Runs(tmp_path / "ran")}, folder / "pytorch_model.bin")
    loaded(backbone(folder, weights="pickle"))
    assert not (tmp_path / "ran").exists()


# quantized checkpoints


def packed_in_eight_bits(folder: Path):
    """Pack the linear layers as FP8 with a scale for each; the model that this means."""
    right = AutoModelForCausalLM.from_pretrained(folder)
    stored = {}
    for name, weight in right.named_parameters():
        if "proj" in name:
            scale = weight.abs().max() / 448
            stored[name] = (weight.data / scale).to(torch.float8_e4m3fn)
            stored[name.replace("weight", "weight_scale_inv")] = scale.detach().reshape(1, 1)
            weight.data = stored[name].float() * scale
    reweigh(folder, lambda weights: weights | stored)
    method = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    configure(folder, quantization_config=method)
    return right.eval()


@pytest.mark.parametrize(
    "adapter", [Frozen(), Lora(rank=2), FullFineTuning(learning_rate=1e-12)], ids=lambda a: a.name
)
def test_weights_in_eight_bits_mean_what_their_scales_say(adapter, folder, tmp_path):
    right = packed_in_eight_bits(folder)
    chosen = backbone(folder, dequantize=True)
    torch.testing.assert_close(logits(loaded(chosen)), logits(right), atol=1e-4, rtol=1e-4)
    model = model_on(chosen, adapter, learning_rate=1e-12).fit(FEW, VALID, CHOICES)
    model.save(tmp_path / "fitted")
    again = model_on(chosen, adapter).load(tmp_path / "fitted")
    np.testing.assert_allclose(again.log_probs(SOME), model.log_probs(SOME), atol=1e-5)


def test_packed_weights_are_unpacked_only_if_the_user_says_so(folder):
    refused(folder, r"dequantize=true: the weights of .* are not quantized; leave it out", dequantize=True)
    packed_in_eight_bits(folder)
    refused(folder, r"are quantized \(fp8\), .* backbone\.dequantize=true unpacks them")
    configure(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    refused(folder, "dequantize=true: transformers does not unpack weights in gptq", dequantize=True)


def test_weights_in_eight_bits_whose_packing_is_concealed_are_refused(folder):
    packed_in_eight_bits(folder)
    configure(folder, quantization_config=None)
    refused(folder, "does not read: .*weight_scale_inv.*quantization_config")


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "a library .* is missing .*(optimum|gptqmodel)"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "a library .* is missing .*gptqmodel"),
        ({"quant_method": "modelopt"}, r"are quantized \(modelopt\), which transformers does not read"),
        ({"bits": 4}, r"are quantized \(None\), which transformers does not read"),
    ],
)
def test_packed_weights_are_refused_with_the_library_that_reads_them(method, sentence, folder, monkeypatch):
    monkeypatch.setattr("transformers.quantizers.quantizer_awq.is_gptqmodel_available", lambda: False)
    configure(folder, quantization_config=method)
    refused(folder, sentence)


def test_unpacking_without_its_library_is_refused(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "compressed_tensors", None)
    configure(folder, quantization_config={"quant_method": "compressed-tensors", "config_groups": {}})
    refused(folder, "a library .* is missing .*compressed.tensors", dequantize=True)


def test_a_packed_checkpoint_is_not_packed_again(folder):
    packed_in_eight_bits(folder)
    chosen = backbone(folder)
    with pytest.raises(ConfigError, match=r"adapter=qlora: .* are quantized already \(fp8\)\. adapter=lora"):
        chosen.model(chosen.tokenizer([]), torch.bfloat16, BitsAndBytesConfig(load_in_4bit=True))


def test_the_estimate_of_memory_knows_packed_weights(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    packed_in_eight_bits(folder)
    for dequantize, bits in ((False, 8), (True, None)):
        assert packed_bits(backbone(folder, dequantize=dequantize).skeleton(tokenizer).config) == bits
    configure(folder, quantization_config={"quant_method": "gptq", "bits": 3})
    assert packed_bits(backbone(folder).skeleton(tokenizer).config) == 3


def test_packed_weights_are_not_trained(folder):
    model = loaded(backbone(folder))
    model.config.quantization_config = {"quant_method": "gptq"}
    with pytest.raises(
        ConfigError, match=r"adapter=none trains all weights, and those of 'x' are packed \(gptq\)"
    ):
        check_trainable(model, "x")


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU, bitsandbytes computes with packed weights")
def test_what_bitsandbytes_packed_is_unpacked_for_a_cpu(tmp_path):
    pytest.importorskip("bitsandbytes")
    plain = save_model("llama", tmp_path / "plain", hidden_size=64, intermediate_size=128)
    for bits in ({"load_in_4bit": True}, {"load_in_8bit": True}):
        packed = AutoModelForCausalLM.from_pretrained(plain, quantization_config=BitsAndBytesConfig(**bits))
        packed.save_pretrained(tmp_path / "packed")
        AutoTokenizer.from_pretrained(plain).save_pretrained(tmp_path / "packed")
        refused(tmp_path / "packed", r"are quantized \(bitsandbytes_\dbit\), .*dequantize=true")
        read = loaded(backbone(tmp_path / "packed", dequantize=True))
        torch.testing.assert_close(logits(read), logits(packed.dequantize(torch.float32)), atol=1e-4, rtol=1e-4)
        assert {weight.dtype for weight in read.parameters()} == {torch.float32}
        read.save_pretrained(tmp_path / "saved")
        torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "saved")), logits(read))
        shutil.rmtree(tmp_path / "packed")
