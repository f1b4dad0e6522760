"""Sharded weights: several devices learn, resume and score what one does."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from conftest import chain_panel, language
from test_devices import Heard
from torch.nn.functional import cross_entropy

from labor_llm import checkpoints
from labor_llm.errors import ConfigError, RunError
from labor_llm.language.adapters import Lora
from labor_llm.language.backbones import HubBackbone
from labor_llm.language.finetune import FineTuning
from labor_llm.language.scoring import ExactScoring
from labor_llm.models.base import Workspace, choice_set
from labor_llm.sharding import check_shardable

CAREERS = chain_panel(persons=23)
CHOICES = choice_set(CAREERS)
PERSONS = CAREERS.table["person_id"].unique(maintain_order=True)
TRAIN, VALID = CAREERS.select_persons(PERSONS[:16]), CAREERS.select_persons(PERSONS[16:])


def model(devices: int, folder=None, strategy="fsdp", **settings):
    """A small model on so many devices: from scratch, or LoRA on one in a folder."""
    made = language(2)
    if folder is not None:
        made.backbone, made.adapter = HubBackbone(name="small", path=str(folder)), Lora(dropout=0.0)
    both = {"devices": devices, "batch_size": 12, "micro_batch_size": 2, "clip_norm": 0.5, "strategy": strategy}
    made.trainer = replace(made.trainer, **both | settings)
    return made


def fitted(devices: int, folder, *arguments, **settings):
    """The model after training, and what it told its tracker."""
    folder.mkdir(parents=True, exist_ok=True)
    made, heard = model(devices, *arguments, **settings), Heard()
    made.fit(TRAIN, VALID, CHOICES, Workspace(folder, heard))
    return made, heard.metrics


def weights_of(made) -> dict[str, np.ndarray]:
    named = made._module.model.named_parameters()
    return {name: value.detach().numpy() for name, value in named if value.requires_grad}


@pytest.mark.parametrize("devices", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_sharded_weights_learn_and_predict_what_whole_ones_do(devices, tmp_path):
    one, told_one = fitted(1, tmp_path / "one")
    several, told = fitted(devices, tmp_path / "several")
    assert (tmp_path / "several" / "last.ckpt").is_dir()
    for key in told_one.keys() & told.keys():
        assert told[key] == pytest.approx(told_one[key], rel=1e-3), key
    expected = weights_of(one)
    for name, value in weights_of(several).items():
        np.testing.assert_allclose(value, expected[name], atol=1e-4, err_msg=name)
    several.scoring = ExactScoring(
        max_tokens=300 if devices == 2 else 4096
    )  # many batches, or one for three devices
    np.testing.assert_allclose(several.log_probs(CAREERS), one.log_probs(CAREERS), atol=1e-3)


@pytest.mark.slow
def test_a_sharded_base_in_bfloat16_learns_adapters_and_saves_them(llama_folder, tmp_path):
    settings = {"precision": "bf16-mixed", "gradient_checkpointing": True, "max_epochs": 4}
    one, told_one = fitted(1, tmp_path / "one", llama_folder, **settings)
    two, told = fitted(2, tmp_path / "two", llama_folder, **settings)
    assert {value.dtype for value in one._module.model.parameters()} == {torch.bfloat16, torch.float32}
    for key in told_one.keys() & told.keys():
        assert told[key] == pytest.approx(told_one[key], rel=2e-2), key
    two.save(tmp_path / "saved")
    assert (tmp_path / "saved" / "adapter_model.safetensors").is_file()
    again = model(1, llama_folder, **settings).load(tmp_path / "saved")
    np.testing.assert_allclose(again.log_probs(CAREERS), two.log_probs(CAREERS), atol=2e-2)


def test_packed_weights_are_not_sharded():
    network = torch.nn.Module()
    network.packed = torch.nn.Parameter(torch.zeros(2, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ConfigError, match=r"adapter=lora, or trainer\.strategy=ddp"):
        check_shardable(network)


class Exact(FineTuning):
    """Computes in float64, so that all differences but those of rounding show; ends at a step."""

    stop = -1

    def __init__(self, network, *arguments) -> None:
        super().__init__(network.double(), *arguments)

    def _nll(self, batch):
        logits = self.model(**batch["inputs"], use_cache=False).logits[:, :-1]
        return cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum")

    def on_train_batch_end(self, *_) -> None:
        if self.trainer.global_step == self.stop:
            raise RunError("interrupted")


def exact(stop: int, *arguments) -> Exact:
    """Ends at that step, as if it were interrupted."""
    module = Exact(*arguments)
    module.stop = stop
    return module


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True])
def test_a_checkpoint_is_resumed_on_another_number_of_devices(lora, llama_folder, tmp_path, monkeypatch):
    settings = {"batch_size": 6, "max_epochs": 3, "checkpoint_every": 1}
    folder = llama_folder if lora else None
    last = tmp_path / "parts" / "last.ckpt"
    for devices, stop in ((2, 1), (3, 3), (1, 5)):
        monkeypatch.setattr("labor_llm.models.language.FineTuning", partial(exact, stop))
        with pytest.raises(RunError, match="interrupted"):
            fitted(devices, last.parent, folder, **settings)
        assert last.is_dir() == (devices > 1)
        assert checkpoints.read_rest(last)["global_step"] == stop
    monkeypatch.setattr("labor_llm.models.language.FineTuning", Exact)
    resumed, _ = fitted(2, last.parent, folder, **settings)
    whole, _ = fitted(1, tmp_path / "whole", folder, **settings)
    expected = weights_of(whole)
    for name, value in weights_of(resumed).items():
        np.testing.assert_allclose(value, expected[name], atol=1e-6, err_msg=name)
