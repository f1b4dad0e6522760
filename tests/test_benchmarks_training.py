"""The benchmarks of training and of a GPU run at toy sizes and write what they promise, whatever the speed."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.training import training_flops

ROOT = Path(__file__).parents[1]


def run(module: str, out: Path, *arguments: str) -> dict:
    """The result of a benchmark's command line at toy sizes."""
    command = [sys.executable, "-m", f"benchmarks.{module}", "--toy", "--out", str(out), *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def training(tmp_path_factory) -> dict:
    """One round of the training benchmark."""
    pytest.importorskip("trl")
    pytest.importorskip("datasets")
    return run("training", tmp_path_factory.mktemp("training") / "result.json", "--rounds", "1")


@pytest.fixture(scope="module")
def gpu(tmp_path_factory) -> dict:
    """The GPU benchmark on a processor."""
    return run("gpu", tmp_path_factory.mktemp("gpu") / "result.json")


def test_training_reports_every_system_and_headline(training):
    for key in ("tokens_per_second", "vs_trainer_padded", "vs_trl_packing", "vs_trainer_padded_default"):
        assert training[key] > 0
    assert training["peak_rss_gib"] > 0
    assert training["systems"].keys() == {"labor_llm", "trainer_padded", "trainer_grouped", "trl_packing"}


def test_all_systems_learn_from_the_same_tokens(training):
    expected = 2 * training["panel"]["train"]["supervised_tokens"]  # two epochs
    for by_precision in training["systems"].values():
        for result in by_precision.values():
            assert result["supervised_tokens"] == expected


def test_equal_training_gives_an_equal_loss(training):
    assert abs(training["loss_gap_to_trainer"]) < 0.1
    untrained = math.log(600)
    assert training["systems"]["labor_llm"]["float32"]["loss"] < 0.9 * untrained


@pytest.mark.slow
def test_gpu_benchmark_measures_every_part(gpu):
    for name, part in gpu["parts"].items():
        if "/train/" in name:
            assert part.get("tokens_per_second", 0) > 0, (name, part)
    for model in ("toy-1b", "toy-8b"):
        assert gpu["parts"][f"{model}/score/exact"]["seconds_per_record"] > 0
        assert gpu["parts"][f"{model}/score/rival"]["seconds_per_record"] > 0


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> dict:
    """The benchmark at a pretrained model's size, at toy size."""
    pytest.importorskip("lm_eval")
    return run("pretrained", tmp_path_factory.mktemp("pretrained") / "result.json")


def test_a_pretrained_models_benchmark_reports_its_headlines(pretrained):
    shares = ("train_share_of_matmul_rate", "exact_share_of_matmul_rate")
    assert all(0 < pretrained[key] < 1 for key in shares)
    assert all(pretrained[key] > 0 for key in ("train_vs_trainer_padded", "lora_vs_full", "exact_vs_lm_eval"))
    assert pretrained["scoring"]["max_abs_diff_nats"] < 1e-3
    assert len({sum(system["tokens_of_steps"]) for system in pretrained["training"]["systems"].values()}) == 1


WITHOUT = """
import importlib.machinery, runpy, sys
absent, real = set(sys.argv.pop(1).split(",")), importlib.machinery.PathFinder.find_spec
importlib.machinery.PathFinder.find_spec = staticmethod(
    lambda name, *rest: None if name.partition(".")[0] in absent else real(name, *rest)
)
runpy.run_module("benchmarks.gpu", run_name="__main__", alter_sys=True)
"""


def test_gpu_benchmark_needs_no_rival_and_skips_what_begins_too_late(tmp_path):
    absent = "hydra,omegaconf,wandb,lm_eval,trl,datasets,linearmodels,sklearn"
    command = [sys.executable, "-c", WITHOUT, absent, "--toy", "--minutes", "0", "--out", str(tmp_path / "g.json")]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, capture_output=True)
    parts = json.loads((tmp_path / "g.json").read_text())["parts"]
    assert all("skipped" in part for part in parts.values())
    assert not any("trl" in name for name in parts)


def test_flops_of_training_are_six_per_weight_and_token():
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    model = LlamaForCausalLM(config)
    linear = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))
    attention = 6 * 2 * 16 * (10**2 + 5**2)
    assert training_flops(model, [10, 5]) == 6 * linear * 15 + attention
    model.requires_grad_(False)
    assert training_flops(model, [10, 5]) == 4 * linear * 15 + attention
