"""The estimate of memory: against what layers keep, and against peaks of processes that train."""

import logging
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ARCHITECTURES, CHOICES, TRAIN, VALID, language, small_model
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.memory_process import estimated, measured
from labor_llm.errors import ConfigError
from labor_llm.language import memory
from labor_llm.language.activations import _kept, count_activations
from labor_llm.language.adapters import FullFineTuning, Lora
from labor_llm.language.backbones import HubBackbone, ScratchBackbone
from labor_llm.language.finetune import TrainerSettings
from labor_llm.language.free_memory import free_memory
from labor_llm.language.memory import GB, Plan, check_memory, longest
from labor_llm.language.optimizers import make_optimizer
from labor_llm.language.scoring import ExactScoring

CPU = torch.device("cpu")
ALL = FullFineTuning(learning_rate=1e-3)
HUB = HubBackbone(name="any", path="any")


@pytest.mark.parametrize(
    ("dtype", "mixed"),
    [(torch.float32, False), (torch.float32, True), (torch.bfloat16, True)],
    ids=["float32", "mixed", "bf16"],
)
def test_what_narrow_layers_keep_tells_what_wide_ones_do(architecture, dtype, mixed):
    """A network four times as wide as the one that is counted on, with careers of other lengths."""
    config = ARCHITECTURES[architecture](300)
    found = count_activations(config, ALL, HUB, dtype, mixed, "packed", CPU)
    network = small_model(architecture).train()
    for weight in network.parameters():
        weight.data = weight.data.to(dtype)
    lengths = [192, 128]
    no_tokens = _kept(network, [64], mixed, "packed")  # copies of weights: what two passes have in common
    no_tokens -= (found.token * 64) + 2 * found.of_layer([64])
    kept = _kept(network, lengths, mixed, "packed") - no_tokens
    assert found.token * sum(lengths) + 2 * found.of_layer(lengths) == pytest.approx(kept, rel=0.1)


def test_adapters_and_padding_are_counted_too():
    config = ARCHITECTURES["llama"](300)
    full, lora = (
        count_activations(config, adapter, HUB, torch.float32, False, "packed", CPU) for adapter in (ALL, Lora())
    )
    padded = count_activations(config, ALL, HUB, torch.float32, False, "padded", CPU)
    assert lora.layer_token > full.layer_token  # what dropout leaves of every layer's input
    assert padded.layer_token > 0


def plan(**changes) -> Plan:
    settings = TrainerSettings(learning_rate=1e-3, accelerator="cpu", precision="bf16-mixed")
    backbone = ScratchBackbone(
        name="s", layers=4, width=128, heads=4, feed_forward=344, vocabulary=400, learning_rate=1e-3
    )
    made = Plan(
        backbone=backbone,
        adapter=ALL,
        tokenizer=backbone.tokenizer(["some text"]),
        settings=replace(settings, **changes.pop("settings", {})),
        scoring=ExactScoring(),
        lengths=(400,) * 8,
    )
    return replace(made, **changes)


def test_weights_gradients_and_states_are_those_of_the_model():
    network = plan().backbone.model(plan().tokenizer, torch.float32)
    weights = sum(weight.numel() for weight in network.parameters())
    full = plan().estimate
    assert (full.weights, full.gradients, full.states) == (4 * weights, 4 * weights, 8 * weights)
    layers = sum(w.numel() for name, w in network.named_parameters() if w.ndim == 2 and "embed" not in name)
    assert full.copies == 2 * layers
    low = plan(
        settings={"weights": "bf16", "optimizer": "adafactor", "update_in_backward": True, "clip_norm": None}
    )
    largest = max(weight.numel() for weight in network.parameters())
    assert (low.estimate.weights, low.estimate.gradients, low.estimate.states) == (2 * weights, 2 * largest, 0)
    sharded = plan(shards=4).estimate
    assert (sharded.gradients, sharded.states) == (weights, 2 * weights)


def test_states_of_8_bits_take_what_is_estimated():
    pytest.importorskip("bitsandbytes")
    weight = torch.nn.Parameter(torch.randn(512, 512))
    optimizer = make_optimizer([weight], "adamw_8bit", 1e-3, 0.0, False, 0)
    weight.grad = torch.randn_like(weight)
    optimizer.step()
    (state,) = optimizer.state.values()
    size = sum(state[name].nbytes for name in ("state1", "state2", "absmax1", "absmax2"))
    assert size == memory.STATES["adamw_8bit"] * weight.numel()


def test_each_setting_needs_less():
    peak = plan().estimate.peak
    for change in (
        {"micro_batch_size": 2},
        {"gradient_checkpointing": True},
        {"optimizer": "adamw_8bit"},
        {"weights": "bf16"},
    ):
        if change == {"optimizer": "adamw_8bit"}:
            pytest.importorskip("bitsandbytes")
        assert plan(settings=change).estimate.peak < peak
    assert plan(settings={"layout": "padded"}, lengths=(400, 100)).step == [400, 400]
    assert plan(settings={"devices": 4}).step == [400, 400]


def test_a_run_that_does_not_fit_is_refused_with_what_would_make_it_fit(monkeypatch, caplog):
    small = plan(settings={"micro_batch_size": 2}).estimate.peak
    monkeypatch.setattr(memory, "free_memory", lambda *_: small + 1)
    with pytest.raises(ConfigError) as refused:
        check_memory(plan())
    lines = str(refused.value).splitlines()
    assert "trainer.micro_batch_size=4" in lines[1]
    assert "not enough" in lines[1]
    assert lines[2] == f"  trainer.micro_batch_size=2: {small / GB:.2f} GB, fits"
    assert lines[-1] == "trainer.check_memory=false tries it all the same."
    check_memory(plan(settings={"check_memory": False}))
    assert "trainer.micro_batch_size=2" in caplog.text


def test_what_never_fits_lists_every_setting_and_lora_for_loaded_weights(llama_folder, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda *_: 0)
    backbone = HubBackbone(name="small", path=str(llama_folder))
    with pytest.raises(ConfigError) as refused:
        check_memory(plan(backbone=backbone, tokenizer=backbone.tokenizer([]), lengths=(4000,) * 8))
    for setting in ("gradient_checkpointing=true", "weights=bf16", "optimizer=adafactor", "adapter=lora"):
        assert f"{setting}" in str(refused.value)
    assert "fits" not in str(refused.value)


def test_a_fit_checks_before_its_model_is_loaded(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    model = language()
    model.fit(TRAIN, VALID, CHOICES)
    assert "memory per device, estimated, in GB: training" in caplog.text
    monkeypatch.setattr(memory, "free_memory", lambda *_: 1)
    monkeypatch.setattr(ScratchBackbone, "model", refuse_to_load(ScratchBackbone.model))
    with pytest.raises(ConfigError, match="the run needs about"):
        language().fit(TRAIN, VALID, CHOICES)


def refuse_to_load(load):
    """``load`` for a skeleton; an error for weights."""

    def model(self, tokenizer, dtype, quantization=None):
        made = load(self, tokenizer, dtype, quantization)
        assert {weight.device.type for weight in made.parameters()} == {"meta"}
        return made

    return model


def test_the_estimate_draws_no_random_numbers():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    check_memory(plan())
    assert torch.equal(torch.rand(1), expected)


def test_longest_careers_come_first():
    assert longest(torch.tensor([3, 9, 1, 7]).numpy(), 3) == (9, 7, 3)


GROUPS = {
    "2": ("0::/a/b\n", "sys/fs/cgroup/a/b", "memory.max", "memory.current", "inactive_file"),
    "1": (
        "4:memory:/a\n",
        "sys/fs/cgroup/memory/a",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
    "container": ("0::/../x\n", "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
}


@pytest.mark.parametrize("kind", GROUPS)
def test_limits_of_control_groups_count(kind, tmp_path):
    text, folder, limit, used, files = GROUPS[kind]
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(text)
    (tmp_path / folder).mkdir(parents=True)
    without = free_memory(CPU, root=tmp_path)
    (tmp_path / folder / limit).write_text("1000000\n")
    (tmp_path / folder / used).write_text("600000\n")
    (tmp_path / folder / "memory.stat").write_text(f"anon 5\n{files} 200000\n")
    assert without > 1000000
    assert free_memory(CPU, root=tmp_path) == 600000
    assert free_memory(CPU, processes=2, root=tmp_path) == 300000
    (tmp_path / folder / limit).write_text("max\n")
    assert free_memory(CPU, root=tmp_path) > 1000000


def saved(folder: Path, layers: int, vocabulary: int) -> Path:
    """A Llama with the layers of SmolLM2-135M."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    plan().tokenizer.save_pretrained(folder)
    return folder


linux = pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux counts")


@linux
@pytest.mark.parametrize(
    ("adapter", "careers", "settings"),
    [
        ("none", 4, {}),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [("lora", 4, {}), ("none", 4, {"gradient_checkpointing": True}), ("frozen", 4, {})]
        ),
    ],
)
def test_the_estimate_is_near_the_measured_peak(adapter, careers, settings, tmp_path):
    """At 16 million weights."""
    folder = saved(tmp_path / "model", layers=3, vocabulary=10_000)
    order = {"folder": folder, "lengths": [200] * careers, "adapter": adapter, "precision": "32-true", **settings}
    assert estimated(**order) == pytest.approx(measured(**order)["peak"], rel=0.3)


@linux
@pytest.mark.slow
@pytest.mark.parametrize(
    ("adapter", "careers", "settings"),
    [
        ("none", 4, {}),
        ("none", 8, {}),
        ("lora", 4, {}),
        ("lora", 8, {}),
        ("none", 4, {"gradient_checkpointing": True}),
        ("none", 8, {"gradient_checkpointing": True}),
    ],
)
def test_the_estimate_is_near_the_measured_peak_at_135_million_weights(adapter, careers, settings, tmp_path):
    """1,600 and 3,200 tokens, within 20%."""
    folder = saved(tmp_path / "model", layers=30, vocabulary=49_152)
    order = {
        "folder": folder,
        "lengths": [400] * careers,
        "adapter": adapter,
        "precision": "bf16-mixed",
        **settings,
    }
    assert estimated(**order) == pytest.approx(measured(**order)["peak"], rel=0.2)
