"""Fine-tuning: gradients, resume after interruption, what is saved."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CHOICES, SMALL, TEST, TRAIN, VALID, bpe_tokenizer, language, save_model, small_model
from pytorch_lightning.callbacks import Callback
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    LlamaForCausalLM,
)

from labor_llm import training
from labor_llm.errors import ConfigError, RunError
from labor_llm.language.adapters import FullFineTuning, Lora
from labor_llm.language.attention import PACKED, attending
from labor_llm.language.backbones import HubBackbone
from labor_llm.language.batches import TrainingBatches
from labor_llm.language.checks import check_packing, plain_log_prob
from labor_llm.language.finetune import MONITOR, FineTuning, TrainerSettings
from labor_llm.language.residual_dropout import end_dropout
from labor_llm.language.scoring import ExactScoring
from labor_llm.language.tokens import CareerEncoder
from labor_llm.models.base import Workspace
from labor_llm.models.language import LanguageModel
from labor_llm.templates import ResumeTemplate, Titles, Tokens
from labor_llm.tracking import NoTracker


def hub_model(folder: Path, adapter=None, label=None, **settings) -> LanguageModel:
    defaults = {"learning_rate": 1e-3, "max_epochs": 1, "accelerator": "cpu", "precision": "32-true"}
    return LanguageModel(
        name="small",
        backbone=HubBackbone(name="small", path=str(folder)),
        adapter=adapter or FullFineTuning(learning_rate=1e-3),
        template=ResumeTemplate(),
        label=label or Titles(),
        scoring=ExactScoring(),
        trainer=TrainerSettings(**defaults | settings),
        seed=1,
    )


@pytest.mark.parametrize("label", [Titles(), Tokens()], ids=["title", "token"])
@pytest.mark.parametrize("adapter", [None, Lora(rank=4, dropout=0.1)], ids=["none", "lora"])
def test_a_downloaded_model_is_fine_tuned_saved_and_loaded(model_folder, adapter, label, tmp_path):
    model = hub_model(model_folder, adapter, label).fit(TRAIN, VALID, CHOICES)
    model.save(tmp_path)
    assert any(tmp_path.glob("adapter_model.safetensors" if adapter else "model.safetensors"))
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".bin", ".pt", ".pkl")]
    loaded = hub_model(model_folder, adapter, label).load(tmp_path)
    np.testing.assert_allclose(loaded.log_probs(TEST), model.log_probs(TEST), atol=1e-5)


@pytest.mark.parametrize("family", ["Mixtral", "Qwen3Moe"])
def test_lora_on_packed_experts_says_which_setting_to_change_and_then_works(family, tmp_path):
    import transformers

    tokenizer = bpe_tokenizer("llama", ResumeTemplate().texts(TRAIN, Titles()))
    tokenizer.save_pretrained(tmp_path)
    experts = {"num_experts": 2, "num_local_experts": 2, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    config = getattr(transformers, f"{family}Config")(vocab_size=len(tokenizer), **SMALL | experts)
    getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(tmp_path)
    few = TRAIN.select_persons(["p0", "p1", "p2", "p3"])
    with pytest.raises(ConfigError, match=rf"{family}ForCausalLM packs .* Set adapter\.dropout=0 \(now 0\.05\)"):
        hub_model(tmp_path, Lora(rank=4)).fit(few, few, CHOICES)
    model = hub_model(tmp_path, Lora(rank=4, dropout=0), batch_size=4).fit(few, few, CHOICES)
    trained = [name for name, value in model._module.model.named_parameters() if value.requires_grad]
    assert any("experts" in name for name in trained)
    model.save(tmp_path / "fitted")
    again = hub_model(tmp_path, Lora(rank=4, dropout=0)).load(tmp_path / "fitted")
    np.testing.assert_allclose(again.log_probs(few), model.log_probs(few), atol=1e-5)


def test_a_model_that_sees_pictures_has_its_text_models_numbers(tmp_path):
    """Of Gemma 3, AutoModelForCausalLM gives the model with its vision part."""
    tokenizer = bpe_tokenizer("llama", ResumeTemplate().texts(TRAIN, Titles()))
    tokenizer.save_pretrained(tmp_path)
    text = SMALL | {"vocab_size": len(tokenizer), "head_dim": 8, "sliding_window": 40}
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    ids = {"image_token_index": 1, "boi_token_index": 2, "eoi_token_index": 3, "mm_tokens_per_image": 4}
    torch.manual_seed(0)
    both = Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision, **ids))
    both.save_pretrained(tmp_path)
    few = TRAIN.select_persons(["p0", "p1", "p2", "p3"])
    model = hub_model(tmp_path, batch_size=4).fit(few, few, CHOICES)
    model.save(tmp_path / "fitted")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "fitted")
    alone = Gemma3ForCausalLM(loaded.config.text_config).eval()
    alone.model.load_state_dict(loaded.model.language_model.state_dict())
    alone.lm_head.load_state_dict(loaded.lm_head.state_dict())
    given, encoder = model.predict(few), model._encoder
    encoded = encoder.encode(few)
    ids_L = torch.from_numpy(encoded.ids_T[: encoded.prompt_ends[2]].astype(np.int64))
    with torch.no_grad():
        plain = [plain_log_prob(alone, ids_L, len(ids_L), encoder.titles[code]).item() for code in CHOICES]
    np.testing.assert_allclose(given.log_probs_NJ[2] + given.log_mass_N[2], plain, atol=1e-4)


def test_lora_trains_the_adapter_in_float32_and_nothing_else(model_folder):
    model = hub_model(model_folder, Lora(rank=4))
    tokenizer = model.backbone.tokenizer([])
    trained = model.adapter.apply(model.backbone.model(tokenizer, torch.bfloat16), model.backbone)
    parts = {
        (name.split(".")[-3], value.dtype) for name, value in trained.named_parameters() if value.requires_grad
    }
    assert parts == {("lora_A", torch.float32), ("lora_B", torch.float32)}


def test_mixed_precision_keeps_what_is_trained_in_float32_and_moves_it(gpt2_folder):
    model = hub_model(gpt2_folder, Lora(rank=4), precision="bf16-mixed")
    few = TRAIN.select_persons(["p0", "p1", "p2", "p3"])
    model.fit(few, few, CHOICES)
    values = dict(model._module.model.named_parameters())
    trained = {name: value for name, value in values.items() if "lora_" in name}
    assert {value.dtype for value in trained.values()} == {torch.float32}
    assert {value.dtype for name, value in values.items() if name not in trained} == {torch.bfloat16}
    assert all(value.abs().max() > 0 for name, value in trained.items() if "lora_B" in name)
    assert np.isfinite(model.log_probs(few)).all()


def test_lora_on_random_weights_is_refused():
    model = language()
    with pytest.raises(ConfigError, match="random weights"):
        Lora().apply(model.backbone.model(model.backbone.tokenizer(["text"]), torch.float32), model.backbone)


def test_a_missing_model_says_what_to_do(tmp_path):
    with pytest.raises(ConfigError, match=r"backbone.path: .* has no config\.json.* Copy the model's folder"):
        hub_model(tmp_path).fit(TRAIN, VALID, CHOICES)


@pytest.mark.parametrize("loss_on", ["all", "titles"])
def test_gradients_do_not_depend_on_how_a_step_is_cut(loss_on):
    def gradient(micro_batch_size, layout):
        torch.manual_seed(0)
        model = language()
        tokenizer = model.backbone.tokenizer(ResumeTemplate().texts(TRAIN, Titles()))
        encoder = CareerEncoder(tokenizer, ResumeTemplate(), Titles(), TRAIN.taxonomy)
        batches = TrainingBatches(encoder.encode(TRAIN), 40, micro_batch_size, loss_on, 0, layout)
        module = FineTuning(model.backbone.model(tokenizer, torch.float32), model.trainer, 1, 0)
        with attending(module.model, PACKED) if layout == "packed" else nullcontext():
            for batch in batches:
                (module._nll(batch) / batch["step_tokens"]).backward()
        return torch.cat([p.grad.flatten() for p in module.parameters()])

    whole = gradient(40, "packed")
    for micro_batch_size, layout in [(7, "packed"), (40, "padded"), (7, "padded")]:
        torch.testing.assert_close(gradient(micro_batch_size, layout), whole, atol=1e-6, rtol=1e-4)


class Gradients(Callback):
    """Keeps the gradients with which the first step updates the weights."""

    first: torch.Tensor | None = None

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        if self.first is None:
            self.first = torch.cat([p.grad.flatten() for p in pl_module.parameters() if p.grad is not None])


def test_training_updates_with_the_mean_over_the_step_however_it_is_cut(llama_folder, monkeypatch):
    """AdamW hides a factor in all gradients, a limit on their length does not."""
    callbacks = training._fitting_callbacks

    def gradient(micro_batch_size: int) -> torch.Tensor:
        kept = Gradients()
        monkeypatch.setattr(training, "_fitting_callbacks", lambda *args: [*callbacks(*args), kept])
        sizes = {"batch_size": 40, "micro_batch_size": micro_batch_size}
        hub_model(llama_folder, layout="padded", **sizes).fit(TRAIN, VALID, CHOICES)
        assert kept.first is not None
        return kept.first

    torch.testing.assert_close(gradient(10), gradient(40), atol=1e-6, rtol=1e-4)


class Validations(NoTracker):
    """Keeps the perplexity of every validation."""

    def __init__(self) -> None:
        self.perplexities: list[float] = []

    def log(self, metrics, step) -> None:
        self.perplexities += [metrics[MONITOR]] if MONITOR in metrics else []


def test_training_ends_with_its_patience(gpt2_folder):
    """At so high a learning rate an early validation is the best; two more are waited for."""
    tracker, settings = Validations(), {"learning_rate": 1.0, "max_epochs": 9, "patience": 2}
    hub_model(gpt2_folder, **settings).fit(TRAIN, VALID, CHOICES, Workspace(tracker=tracker))
    assert len(tracker.perplexities) == int(np.argmin(tracker.perplexities)) + 3 < 9


class PowerCutError(Exception):
    """Ends training in the middle."""


class PowerCut(Callback):
    """Ends training the n-th time that a hook is reached; nothing is saved on the way out."""

    def __init__(self, hook: str, times: int) -> None:
        self.left = times
        setattr(self, hook, self.count)

    def count(self, *args) -> None:
        self.left -= 1
        if self.left == 0:
            raise PowerCutError


QUICK = {"patience": 5}
CUTS = [
    ("on_train_batch_end", 4, QUICK),
    ("on_train_batch_end", 11, QUICK | {"dropout_until": 0.5}),
    ("on_validation_start", 2, QUICK),
    ("on_validation_end", 1, {"patience": 1}),
    ("on_train_batch_end", 8, {"patience": 9, "validate_every": 0.5, "micro_batch_size": 3}),
    *(
        pytest.param(hook, times, settings, marks=pytest.mark.slow)
        for hook, times in [("on_train_batch_end", n) for n in (1, 2, 5, 6, 9, 10, 14)]
        + [(f"on_validation_{end}", n) for end in ("start", "end") for n in (1, 2)]
        for settings in (QUICK, {"patience": 1}, {"patience": 5, "validate_every": 0.4})
    ),
]


def weights(model: LanguageModel) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model._module.model.named_parameters()}


@pytest.mark.parametrize(("hook", "times", "settings"), CUTS)
def test_an_interrupted_fit_ends_with_the_same_weights(hook, times, settings, gpt2_folder, tmp_path, monkeypatch):
    """Five steps an epoch in two parts each, dropout, and a learning rate so high that the best come early."""

    def model():
        settings_ = {
            "max_epochs": 3,
            "checkpoint_every": 2,
            "micro_batch_size": 4,
            "learning_rate": 0.3,
        } | settings
        return hub_model(gpt2_folder, Lora(rank=4, dropout=0.2), **settings_)

    whole = weights(model().fit(TRAIN, VALID, CHOICES))
    callbacks = training._fitting_callbacks
    cut = PowerCut(hook, times)
    monkeypatch.setattr(training, "_fitting_callbacks", lambda *args: [*callbacks(*args), cut])
    with pytest.raises(PowerCutError):
        model().fit(TRAIN, VALID, CHOICES, Workspace(tmp_path))
    monkeypatch.undo()
    resumed = weights(model().fit(TRAIN, VALID, CHOICES, Workspace(tmp_path)))
    for name, value in whole.items():
        assert torch.equal(resumed[name], value), name


@pytest.mark.parametrize("until", [0.0, 0.5, 1.0])
def test_dropout_ends_with_its_share_of_the_steps(until):
    def weights(dropout: float, until: float) -> torch.Tensor:
        model = language(max_epochs=2)
        model.backbone = replace(model.backbone, dropout=dropout)
        model.trainer = replace(model.trainer, dropout_until=until)
        return model.fit(TRAIN, VALID, CHOICES)._module.model.get_input_embeddings().weight

    assert torch.equal(weights(0.5, until), weights(0.0, 1.0)) == (until == 0.0)
    assert torch.equal(weights(0.5, until), weights(0.5, 1.0)) == (until == 1.0)


@pytest.mark.parametrize("again", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("family", ["SeedOss", "OPT"])
def test_dropout_that_is_a_function_with_a_number_ends_too(family, again, tmp_path):
    """Seed-OSS drops in its attention and feed-forward parts, OPT in its layers themselves."""
    import transformers

    tokenizer = bpe_tokenizer("llama", ResumeTemplate().texts(TRAIN, Titles()))
    tokenizer.save_pretrained(tmp_path)
    sizes = {"vocab_size": len(tokenizer), "word_embed_proj_dim": 32, "ffn_dim": 64, "head_dim": 8}
    shares = dict.fromkeys(("residual_dropout", "attention_dropout", "dropout"), 0.5)
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SMALL | sizes | shares)
    getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(tmp_path)
    read = []

    def trained(until: float, share: float | None = None) -> torch.Tensor:
        model = hub_model(tmp_path, dropout_until=until, gradient_checkpointing=again, batch_size=20)
        if share is not None:
            config = AutoConfig.from_pretrained(tmp_path)
            config.update(dict.fromkeys(shares, share))
            config.save_pretrained(tmp_path)
        fitted = model.fit(TRAIN, VALID, CHOICES)._module.model
        read.append(fitted.config.to_dict())
        return fitted.get_input_embeddings().weight

    halfway, never, always = trained(0.5), trained(0.0), trained(1.0)
    assert not torch.equal(halfway, always)
    assert not torch.equal(halfway, never)
    assert {config[name] for config in read for name in shares if name in config} == {0.5}
    torch.testing.assert_close(never, trained(1.0, share=0.0))


def test_layers_are_still_computed_again_after_dropout_has_ended():
    model = small_model("llama").train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    layers, forward = model.model.layers, []
    for _ in range(2):  # as in every step
        end_dropout(model, layers)
    layers[0].mlp.register_forward_pre_hook(lambda *_: forward.append(layers[0].training))
    model(torch.arange(9)[None], use_cache=False).logits.sum().backward()
    assert forward == [False, False]


def test_diverged_training_is_an_error_and_nothing_is_saved(gpt2_folder):
    with pytest.raises(RunError, match=r"training diverged.*trainer\.learning_rate"):
        hub_model(gpt2_folder, learning_rate=1e12).fit(TRAIN, VALID, CHOICES)


def test_a_changed_tokenizer_is_noticed(gpt2_folder, tmp_path):
    hub_model(gpt2_folder).fit(TRAIN, VALID, CHOICES).save(tmp_path)
    bpe_tokenizer("gpt2", ["other words"] * 9).save_pretrained(tmp_path)
    with pytest.raises(RunError, match="no longer gives the token ids"):
        hub_model(gpt2_folder).load(tmp_path)


@pytest.mark.parametrize("adapter", [None, Lora(rank=4, dropout=0)], ids=["none", "lora"])
@pytest.mark.parametrize("settings", [{"gradient_checkpointing": True}, {"layout": "padded"}])
def test_how_a_step_is_computed_does_not_change_the_weights(settings, adapter, llama_folder):
    plain, other = (
        weights(hub_model(llama_folder, adapter, max_epochs=1, **more).fit(TRAIN, TRAIN, CHOICES))
        for more in ({"batch_size": 40}, {"batch_size": 40} | settings)
    )
    for name, value in plain.items():
        torch.testing.assert_close(other[name], value, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.slow
def test_compiled_layers_learn_the_same(llama_folder, monkeypatch):
    compile_layer, layers = torch.nn.Module.compile, []
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, **how: (layers.append(self), compile_layer(self, **how))
    )
    plain, compiled = (
        hub_model(llama_folder, max_epochs=2, compile=compile_).fit(TRAIN, VALID, CHOICES)
        for compile_ in (False, True)
    )
    assert {type(layer).__name__ for layer in layers} == {"LlamaDecoderLayer"}
    np.testing.assert_allclose(compiled.log_probs(TEST), plain.log_probs(TEST), atol=1e-2)


def test_a_model_without_known_layers_cannot_be_compiled(llama_folder):
    model = LlamaForCausalLM.from_pretrained(llama_folder)
    model._no_split_modules = None
    settings = TrainerSettings(learning_rate=1e-3, max_epochs=1, compile=True)
    with pytest.raises(ConfigError, match=r"trainer\.compile: LlamaForCausalLM does not say"):
        FineTuning(model, settings, total_steps=1, seed=0).check_layers()


@pytest.mark.gpu
def test_qlora_trains_on_four_bits(tmp_path):
    pytest.importorskip("bitsandbytes")
    from labor_llm.language.adapters import QLora

    wide = {"hidden_size": 128, "intermediate_size": 128, "num_attention_heads": 2, "num_key_value_heads": 2}
    folder = save_model("llama", tmp_path / "base", **wide)
    few = TRAIN.select_persons(["p0", "p1", "p2", "p3"])
    model = hub_model(folder, QLora(rank=4), precision="bf16-mixed").fit(few, few, CHOICES)
    values = dict(model._module.model.named_parameters())
    assert sum(value.dtype == torch.uint8 for value in values.values()) == 2 * 7
    assert {value.dtype for name, value in values.items() if "lora_" in name} == {torch.float32}
    assert all(value.abs().max() > 0 for name, value in values.items() if "lora_B" in name)
    model.save(tmp_path / "fitted")
    loaded = hub_model(folder, QLora(rank=4), precision="bf16-mixed").load(tmp_path / "fitted")
    np.testing.assert_allclose(loaded.log_probs(few), model.log_probs(few), atol=0.1)


def test_qlora_needs_its_library_a_gpu_and_loaded_weights(monkeypatch):
    from labor_llm.language.adapters import QLora

    monkeypatch.setattr("labor_llm.language.adapters.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'labor-llm\[quantization\]'"):
        QLora()
    monkeypatch.setattr("labor_llm.language.adapters.find_spec", lambda name: "found")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="needs a CUDA GPU"):
        QLora()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    scratch, quantization = language().backbone, QLora().quantization
    assert quantization.load_in_4bit
    with pytest.raises(ConfigError, match="only loaded ones are quantized"):
        scratch.model(scratch.tokenizer(["text"]), torch.bfloat16, quantization)


@pytest.mark.parametrize("name", ["Falcon", "Bloom"])
def test_a_model_that_would_mix_careers_in_one_row_is_refused(name):
    import transformers

    config = getattr(transformers, f"{name}Config")(
        vocab_size=600, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, n_layer=2, n_head=2
    )
    other = getattr(transformers, f"{name}ForCausalLM")(config)
    tokenizer = bpe_tokenizer("gpt2", ResumeTemplate().texts(TRAIN, Titles()))
    encoded = CareerEncoder(tokenizer, ResumeTemplate(), Titles(), TRAIN.taxonomy).encode(TRAIN)
    with pytest.raises(
        RunError,
        match=rf"{name}ForCausalLM .* Use another architecture",
    ):
        check_packing(other, encoded)


def test_a_fit_does_not_go_on_in_another_precision():
    settings = TrainerSettings(learning_rate=1e-3, accelerator="cpu", precision="32-true")
    module = FineTuning(small_model("llama"), settings, total_steps=1, seed=0)
    with pytest.raises(RunError, match=r"interrupted in bf16-mixed and cannot go on in 32-true\. Set trainer\."):
        module.on_load_checkpoint({"precision": "bf16-mixed"})
