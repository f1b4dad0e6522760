"""Pretrained backbones: GGUF files, subfolders, pickled weights, random twins, dropout."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CHOICES, SMALL, TEST, TRAIN, VALID, bpe_tokenizer, chain_panel, small_model
from gguf_files import write_gguf
from hydra import compose, initialize_config_dir
from test_finetune import hub_model
from tokenizers import Tokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from labor_llm.build import build
from labor_llm.configs import check_overrides, conf_folder
from labor_llm.errors import ConfigError
from labor_llm.language.adapters import Frozen, Lora
from labor_llm.language.backbones import HubBackbone
from labor_llm.language.prompts import TitlesPrompt
from labor_llm.models.language import LanguageModel
from labor_llm.templates import Codes, ResumeTemplate, Titles, Tokens

SMOLLM2 = Path(__file__).parents[1] / "models" / "smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
FEW = TRAIN.select_persons(["p0", "p1", "p2", "p3"])


def backbone(folder: Path, **settings) -> HubBackbone:
    return HubBackbone(name="small", path=str(folder), **settings)


def model_on(backbone: HubBackbone, adapter=None, label=None, **settings) -> LanguageModel:
    model = hub_model(Path(), adapter, label, **settings)
    model.backbone = backbone
    return model


def loaded(backbone: HubBackbone, dtype=torch.float32):
    return backbone.model(backbone.tokenizer([]), dtype)


def logits(model) -> torch.Tensor:
    return model(torch.arange(30)[None]).logits


@pytest.fixture(scope="session")
def gguf(tmp_path_factory) -> tuple[Path, LlamaForCausalLM]:
    """A GGUF file, and the model that was written to it."""
    pytest.importorskip("gguf")
    tokenizer = bpe_tokenizer("gpt2", ResumeTemplate().texts(chain_panel(), Titles()))
    renamed = tokenizer.backend_tokenizer.to_str().replace("<|end|>", "<|endoftext|>")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(renamed), eos_token="<|endoftext|>")
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=True, initializer_range=0.3, **SMALL)
    model = LlamaForCausalLM(config).eval()
    return write_gguf(tmp_path_factory.mktemp("gguf") / "small.gguf", model, tokenizer), model


def test_a_gguf_file_is_the_model_that_was_written(gguf):
    path, written = gguf
    read = loaded(backbone(path))
    assert type(read) is LlamaForCausalLM
    torch.testing.assert_close(logits(read), logits(written), atol=1e-5, rtol=0)
    assert read.get_output_embeddings().weight is read.get_input_embeddings().weight
    assert loaded(backbone(path), torch.bfloat16).dtype == torch.bfloat16
    in_folder = loaded(backbone(path.parent, gguf_file=path.name))
    torch.testing.assert_close(logits(in_folder), logits(read), atol=0, rtol=0)


@pytest.mark.parametrize("label", [Titles(), Tokens()], ids=["title", "token"])
@pytest.mark.parametrize("adapter", [None, Lora(rank=4)], ids=["none", "lora"])
def test_a_gguf_file_is_fine_tuned_saved_and_loaded_as_any_model(gguf, adapter, label, tmp_path):
    path, _ = gguf
    model = model_on(backbone(path), adapter, label).fit(TRAIN, VALID, CHOICES)
    model.save(tmp_path)
    files = {file.name for file in tmp_path.iterdir()}
    assert ("adapter_model.safetensors" if adapter else "model.safetensors") in files
    assert not any(name.endswith(".gguf") for name in files)
    again = model_on(backbone(path), adapter, label).load(tmp_path)
    np.testing.assert_allclose(again.log_probs(TEST), model.log_probs(TEST), atol=1e-5)
    if adapter is None:  # an ordinary folder, also without this package
        plain = AutoModelForCausalLM.from_pretrained(tmp_path)
        assert not hasattr(plain.config, "quantization_config")
        assert len(AutoTokenizer.from_pretrained(tmp_path)) == plain.config.vocab_size


def test_a_gguf_file_off_the_shelf_in_bfloat16(gguf):
    path, _ = gguf
    model = model_on(backbone(path), Frozen(), precision="bf16-mixed")
    model.prompt = TitlesPrompt()
    assert np.isfinite(model.fit(TRAIN, VALID, CHOICES).log_probs(FEW)).all()


def test_what_is_missing_of_a_gguf_file_is_said(gguf, tmp_path, monkeypatch):
    path, _ = gguf
    missing = backbone("models/none.gguf", fetch="make none")
    with pytest.raises(ConfigError, match=r"there is no file '.*models/none\.gguf'.* `make none` fetches it"):
        missing.tokenizer([])
    with pytest.raises(ConfigError, match=r"has no config\.json\. Set backbone\.gguf_file to one of: small\.gguf"):
        backbone(path.parent).tokenizer([])
    with pytest.raises(ConfigError, match=r"no file .*other\.gguf'.* one of: small\.gguf"):
        backbone(path.parent, gguf_file="other.gguf").tokenizer([])
    with pytest.raises(ValueError, match="names a GGUF file already"):
        backbone(path, gguf_file="small.gguf")
    monkeypatch.setattr("labor_llm.language.model_files.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'labor-llm\[gguf\]'"):
        backbone(path).tokenizer([])


def test_gguf_is_not_quantized_again(gguf):
    from transformers import BitsAndBytesConfig

    path, _ = gguf
    tokenizer = backbone(path).tokenizer([])
    with pytest.raises(ConfigError, match="use adapter=lora"):
        backbone(path).model(tokenizer, torch.bfloat16, BitsAndBytesConfig(load_in_4bit=True))
    with pytest.raises(ConfigError, match="random weights are not quantized"):
        backbone(path, pretrained=False).model(tokenizer, torch.bfloat16, BitsAndBytesConfig(load_in_4bit=True))


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> Path:
    """Llamas in subfolders, sharded, as the authors of LABOR-LLM released theirs: with titles and with codes."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for seed, name in enumerate(["ft_7b_NLSY79_with_birth_year_ckpt_3", "ft_7b_NLSY79_numeric_ckpt_bo5"]):
        label = Codes() if "numeric" in name else Titles()
        tokenizer = bpe_tokenizer("llama", ResumeTemplate().texts(chain_panel(), label))
        tokenizer.save_pretrained(folder / name)
        model = small_model("llama", len(tokenizer))
        torch.manual_seed(seed)
        torch.nn.init.normal_(model.lm_head.weight)
        model.save_pretrained(folder / name, max_shard_size="50KB")
        assert len(list((folder / name).glob("model-*.safetensors"))) > 1
    return folder


@pytest.mark.parametrize("label", [Titles(), Codes()], ids=["title", "code"])
def test_a_checkpoint_in_a_subfolder_is_scored_off_the_shelf(checkpoints, label):
    name = "ft_7b_NLSY79_numeric_ckpt_bo5" if label.name == "code" else "ft_7b_NLSY79_with_birth_year_ckpt_3"
    nested = model_on(backbone(checkpoints, subfolder=name), Frozen(), label)
    direct = model_on(backbone(checkpoints / name), Frozen(), label)
    scores = [model.fit(TRAIN, VALID, CHOICES).log_probs(TEST) for model in (nested, direct)]
    np.testing.assert_array_equal(*scores)


def test_a_missing_subfolder_names_those_that_are_there(checkpoints):
    there = "one of: ft_7b_NLSY79_numeric_ckpt_bo5, ft_7b_NLSY79_with_birth_year_ckpt_3"
    for chosen in (backbone(checkpoints), backbone(checkpoints, subfolder="ckpt")):
        with pytest.raises(ConfigError, match=there):
            chosen.tokenizer([])


def test_subfolder_and_revision_reach_configuration_tokenizer_and_weights(monkeypatch):
    asked = []

    def from_pretrained(name, **arguments):
        asked.append((name, arguments["subfolder"], arguments["revision"], arguments["trust_remote_code"]))
        raise OSError("no hub here")

    for kind in (AutoConfig, AutoTokenizer, AutoModelForCausalLM):
        monkeypatch.setattr(kind, "from_pretrained", from_pretrained)
    there = HubBackbone(name="x", path="some/model", subfolder="ckpt_3").at("abc")
    for read in (
        lambda: there.tokenizer([]),
        lambda: there.model(None, torch.float32),
        lambda: replace(there, dropout=0.1).model(None, torch.float32),
    ):
        with pytest.raises(ConfigError, match="could not be loaded"):
            read()
    assert asked == [("some/model", "ckpt_3", "abc", False)] * 3
    assert replace(there, revision="mine").at("abc").revision == "mine"


def test_pickled_weights_are_read_by_choice_and_run_no_code(llama_folder, tmp_path):
    folder = tmp_path / "pickled"
    shutil.copytree(llama_folder, folder)
    (folder / "model.safetensors").unlink()
    weights = AutoModelForCausalLM.from_pretrained(llama_folder).state_dict()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"backbone\.weights: .*backbone\.weights=pickle reads the weights"):
        loaded(backbone(folder))
    read = loaded(backbone(folder, weights="pickle"))
    torch.testing.assert_close(logits(read), logits(loaded(backbone(llama_folder))), atol=0, rtol=0)
    torch.save(weights | {"code": Runs(tmp_path / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"could not be loaded \(Weights only load failed"):
        loaded(backbone(folder, weights="pickle"))
    assert not (tmp_path / "ran").exists()


class Runs:
    """What writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_the_random_twin_has_the_architecture_and_the_seeds_weights_and_needs_no_weights(llama_folder, tmp_path):
    folder = tmp_path / "bare"
    shutil.copytree(llama_folder, folder)
    (folder / "model.safetensors").unlink()

    def twin(seed: int):
        torch.manual_seed(seed)
        return loaded(backbone(folder, pretrained=False))

    original = loaded(backbone(llama_folder))
    assert {n: p.shape for n, p in twin(0).named_parameters()} == {
        n: p.shape for n, p in original.named_parameters()
    }
    assert torch.equal(logits(twin(0).eval()), logits(twin(0).eval()))
    assert not torch.allclose(logits(twin(0).eval()), logits(twin(1).eval()))
    model = model_on(backbone(folder, pretrained=False)).fit(TRAIN, VALID, CHOICES)
    model.save(tmp_path / "fitted")
    again = model_on(backbone(folder, pretrained=False)).load(tmp_path / "fitted")
    np.testing.assert_allclose(again.log_probs(TEST), model.log_probs(TEST), atol=1e-5)


@pytest.mark.parametrize("adapter", [Lora(rank=4), Frozen()], ids=["lora", "frozen"])
def test_the_random_twin_is_trained_whole_or_not_at_all(adapter, llama_folder):
    with pytest.raises(ConfigError, match="random weights"):
        model_on(backbone(llama_folder, pretrained=False), adapter).fit(TRAIN, VALID, CHOICES)


def test_dropout_acts_in_training_only_in_every_architecture(architecture, tmp_path):
    bpe_tokenizer("llama", ["some words"]).save_pretrained(tmp_path)
    small_model(architecture).save_pretrained(tmp_path)
    plain = logits(loaded(backbone(tmp_path, dropout=0.0)).train())
    torch.testing.assert_close(logits(loaded(backbone(tmp_path)).eval()), plain)
    dropping = loaded(backbone(tmp_path, dropout=0.5))
    torch.testing.assert_close(logits(dropping.eval()), plain)
    assert not torch.allclose(logits(dropping.train()), plain)
    modules = [module for module in dropping.modules() if isinstance(module, torch.nn.Dropout)]
    dropped = [module for module in modules if module.p == 0.5]
    assert len(dropped) == 1 + 2 * dropping.config.num_hidden_layers
    for module in modules:  # as at the end of training, if dropout_until says so
        module.p = 0.0
    torch.testing.assert_close(logits(dropping), plain)


@pytest.mark.parametrize("architecture", ["llama", "gemma3"], indirect=True)
def test_half_of_what_a_layer_adds_is_dropped_with_an_adapter_too(architecture, tmp_path):
    bpe_tokenizer("llama", ["some words"]).save_pretrained(tmp_path)
    small_model(architecture).save_pretrained(tmp_path)
    chosen = backbone(tmp_path, dropout=0.5)
    model = Lora(rank=4, dropout=0).apply(loaded(chosen), chosen).train()
    layer, seen = model.get_base_model().model.layers[0], {}
    names = (
        ("self_attn", "mlp")
        if architecture == "llama"
        else ("post_attention_layernorm", "post_feedforward_layernorm")
    )
    layer.input_layernorm.register_forward_pre_hook(lambda _, args: seen.update(embeddings=args[0]))
    for name in names:
        part = layer.get_submodule(name)
        part.register_forward_hook(
            lambda _, __, output, name=name: seen.update(
                {name: output[0] if isinstance(output, tuple) else output}
            )
        )
    logits(model)
    assert set(seen) == {"embeddings", *names}
    for values in seen.values():
        assert 0.4 < float((values == 0).float().mean()) < 0.6


def test_dropout_of_an_unknown_architecture_is_refused(tmp_path):
    from transformers import OPTConfig, OPTForCausalLM

    bpe_tokenizer("llama", ["some words"]).save_pretrained(tmp_path)
    config = OPTConfig(
        vocab_size=300,
        hidden_size=32,
        word_embed_proj_dim=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        ffn_dim=32,
    )
    OPTForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"backbone\.dropout: .*OPTForCausalLM"):
        loaded(backbone(tmp_path, dropout=0.1))


def test_gpt2_keeps_its_own_dropout_unless_it_is_set(gpt2_folder):
    assert loaded(backbone(gpt2_folder)).transformer.drop.p == 0.1
    set_ = loaded(backbone(gpt2_folder, dropout=0.3))
    assert (set_.transformer.drop.p, set_.config.resid_pdrop, set_.config.attn_pdrop) == (0.3, 0.3, 0.0)


SHIPPED = sorted(path.stem for path in (conf_folder() / "backbone").glob("*.yaml"))
SWEEPS = (
    "smollm2_135m,smollm2_360m,smollm2_1_7b",
    "qwen3_0_6b,qwen3_1_7b,qwen3_4b,qwen3_8b",
    "llama3_2_1b,llama3_2_3b,llama3_1_8b",
    "llama2_7b,llama2_13b",
    "gpt2,gpt2_medium,gpt2_large,gpt2_xl",
    "pythia_70m,pythia_160m,pythia_410m,pythia_1b,pythia_1_4b",
)


def composed(*overrides: str):
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return compose("run", list(overrides))


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_backbone_is_built_and_its_settings_can_be_overridden(name):
    own = ["backbone.path=here"] if name == "hf" else []
    built = build(composed(f"backbone={name}", *own), ["backbone"])["backbone"]
    assert built.name == ("ft_7b_NLSY79_with_birth_year_ckpt_3" if name == "labor_llm" else name)
    if isinstance(built, HubBackbone):
        check_overrides("run", [f"backbone={name}", "backbone.revision=main", "backbone.dropout=0.1"], False)
        again = build(composed(f"backbone={name}", *own, "backbone.pretrained=false"), ["backbone"])["backbone"]
        assert (built.pretrained, again.pretrained) == (True, False)


def test_families_are_sweeps_over_sizes():
    for sweep in SWEEPS:
        check_overrides("run", [f"backbone={sweep}"], True)
    paths = [
        build(composed(f"backbone={name}"), ["backbone"])["backbone"].path for name in ",".join(SWEEPS).split(",")
    ]
    assert len(set(paths)) == len(paths)


@pytest.mark.parametrize("experiment", ["labor_llm", "labor_llm_numeric"])
def test_the_authors_checkpoints_are_read_with_the_text_they_were_trained_on(experiment, checkpoints):
    numeric = experiment.endswith("numeric")
    name = "ft_7b_NLSY79_numeric_ckpt_bo5" if numeric else "ft_7b_NLSY79_with_birth_year_ckpt_3"
    local = [f"backbone.path={checkpoints}", f"backbone.subfolder={name}", "trainer.accelerator=cpu"]
    model = build(composed(f"experiment={experiment}", *local), ["model"])["model"]
    assert (model.adapter.name, model.label.name, model.template.birth_year) == (
        "frozen",
        "code" if numeric else "title",
        True,
    )
    assert model.name == f"{name}-{model.label.name}"
    assert np.isfinite(model.fit(TRAIN, VALID, CHOICES).log_probs(FEW)).all()


@pytest.mark.parametrize("size", ["7b", "13b"])
def test_the_papers_main_models_are_fully_fine_tuned_llama_2(size):
    parts = build(composed(f"experiment=ft_{size}", "trainer.accelerator=cpu"), ["model"])
    model = parts["model"]
    assert (model.backbone.name, model.adapter.name, model.trainer.max_epochs) == (f"llama2_{size}", "none", 3)
    assert model.trainer.learning_rate == 1e-5
    assert model.template.birth_year


@pytest.mark.slow
@pytest.mark.skipif(not SMOLLM2.is_file(), reason="no real model here: `make smollm2` fetches it")
def test_smollm2_off_the_shelf_and_with_lora(tmp_path):
    pytest.importorskip("gguf")
    real = backbone(SMOLLM2)
    shelf = loaded(real, torch.bfloat16)
    assert sum(weight.numel() for weight in shelf.parameters()) == 134_515_008
    tokenizer = real.tokenizer([])
    prompt = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        best = shelf(prompt).logits[0, -1].argmax()
    assert tokenizer.decode(best) == " Paris"
    few = {"batch_size": 4, "precision": "bf16-mixed"}
    frozen = model_on(real, Frozen(), **few).fit(FEW, FEW, CHOICES)
    tuned = model_on(real, Lora(rank=4), max_epochs=2, **few).fit(FEW, FEW, CHOICES)
    occupations = FEW.table["occupation"].to_numpy()
    columns = [CHOICES.index(code) for code in occupations]
    rows = np.arange(len(columns))
    assert tuned.log_probs(FEW)[rows, columns].mean() > frozen.log_probs(FEW)[rows, columns].mean() + 0.1
    tuned.save(tmp_path)
    again = model_on(real, Lora(rank=4), **few).load(tmp_path)
    np.testing.assert_allclose(again.log_probs(FEW), tuned.log_probs(FEW), atol=0.1)
