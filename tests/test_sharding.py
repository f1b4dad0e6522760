"""Sharded weights: several devices learn, resume and score what one does."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import chain_panel, language
from test_devices import Heard

from labor_llm.language.adapters import Lora
from labor_llm.language.backbones import HubBackbone
from labor_llm.models.base import Workspace, choice_set

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
    return {name: value.detach().float().numpy() for name, value in named if value.requires_grad}


@pytest.mark.parametrize("devices", [2, 3])
def test_sharded_weights_learn_and_predict_what_whole_ones_do(devices, tmp_path):
    one, told_one = fitted(1, tmp_path / "one")
    several, told = fitted(devices, tmp_path / "several")
    assert (tmp_path / "several" / "last.ckpt").is_dir()
    for key in told_one.keys() & told.keys():
        assert told[key] == pytest.approx(told_one[key], rel=1e-3), key
    expected = weights_of(one)
    for name, value in weights_of(several).items():
        np.testing.assert_allclose(value, expected[name], atol=1e-4, err_msg=name)
    np.testing.assert_allclose(several.log_probs(CAREERS), one.log_probs(CAREERS), atol=1e-3)


def test_shards_of_one_number_of_devices_are_resumed_on_another(llama_folder, tmp_path):
    whole, _ = fitted(1, tmp_path / "whole", llama_folder, "auto")
    folder = tmp_path / "parts"
    for devices, epochs in ((2, 0.5), (3, 1), (1, 2)):
        pass
