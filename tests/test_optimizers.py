"""Optimizers that need less memory: the libraries' own results, resumed bit for bit, gradients gone in time."""

import numpy as np
import pytest
import torch
from conftest import CHOICES, TEST, TRAIN, VALID, language
from pytorch_lightning.callbacks import Callback
from torch import nn
from transformers.optimization import Adafactor

from labor_llm import training
from labor_llm.language import optimizers
from labor_llm.language.finetune import TrainerSettings
from labor_llm.language.optimizers import PiecewiseOptimizer, make_optimizer, rounded
from labor_llm.language.scoring import RealizedScoring
from labor_llm.models.base import Workspace
from labor_llm.models.language import LanguageModel

LEAST = {"weights": "bf16", "update_in_backward": True, "clip_norm": None}
SETTINGS = [
    {"optimizer": "adamw_8bit"},
    {"optimizer": "adafactor"},
    {"weights": "bf16"},
    {"update_in_backward": True, "clip_norm": None},
    {"optimizer": "adamw_8bit"} | LEAST,
    {"optimizer": "adafactor"} | LEAST,
]
NAMES = ["-".join(str(value) for value in settings.values()) for settings in SETTINGS]


def steps(optimizer, weights, count=5) -> list[torch.Tensor]:
    """The weights after some steps with gradients of a seed."""
    torch.manual_seed(1)
    for _ in range(count):
        for weight in weights:
            weight.grad = torch.randn_like(weight)
        optimizer.step()
        optimizer.zero_grad()
    return [weight.detach().clone() for weight in weights]


def random_weights(dtype=torch.float32) -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(*shape, dtype=dtype)) for shape in [(64, 256), (7, 32, 16), (50,)]]


def groups(weights):
    return [
        {"params": [w for w in weights if w.ndim >= 2], "weight_decay": 0.1},
        {"params": [w for w in weights if w.ndim < 2], "weight_decay": 0.0},
    ]


@pytest.mark.parametrize("in_backward", [False, True])
def test_adamw_in_pieces_is_that_of_pytorch(in_backward, monkeypatch):
    monkeypatch.setattr(optimizers, "PIECE", 2048)
    weights = random_weights()
    whole = steps(torch.optim.AdamW(groups(weights), lr=0.01, fused=True), weights)
    weights = random_weights()
    make = lambda parts: torch.optim.AdamW(parts, lr=0.01, fused=True)  # noqa: E731
    in_pieces = PiecewiseOptimizer(groups(weights), make, in_backward, seed=0)
    assert sum(len(group["params"]) for group in in_pieces.param_groups) == 8 + 2 + 1
    for ours, theirs in zip(steps(in_pieces, weights), whole, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ["adamw_8bit", "adafactor"])
def test_small_weights_are_updated_as_the_library_does(name):
    weights = random_weights()
    if name == "adamw_8bit":
        bitsandbytes = pytest.importorskip("bitsandbytes")
        library = bitsandbytes.optim.AdamW8bit(groups(weights), lr=0.01)
    else:
        library = Adafactor(groups(weights), lr=0.01, scale_parameter=False, relative_step=False)
    theirs = steps(library, weights)
    weights = random_weights()
    ours = steps(make_optimizer(weights, name, 0.01, 0.1, False, seed=0), weights)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)


def test_eight_bits_in_pieces_are_those_of_the_whole(monkeypatch):
    pytest.importorskip("bitsandbytes")
    whole, pieces = random_weights(), random_weights()
    expected = steps(make_optimizer(whole, "adamw_8bit", 0.01, 0.1, False, seed=0), whole)
    monkeypatch.setattr(optimizers, "PIECE", 4096)  # of which bitsandbytes keeps 8 bits
    found = steps(make_optimizer(pieces, "adamw_8bit", 0.01, 0.1, False, seed=0), pieces)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_plain_adamw_is_pytorch_own():
    assert type(make_optimizer(random_weights(), "adamw", 0.01, 0.1, False, 0)) is torch.optim.AdamW


def test_rounding_goes_to_a_neighbor_and_keeps_the_mean():
    values = torch.randn(1001) * torch.logspace(-20, 20, 1001)
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([rounded(values, generator).float() for _ in range(400)])
    spacing = values.abs() * 2.0**-7  # of neighboring bfloat16 numbers, at most
    assert ((draws - values).abs() <= spacing).all()
    assert ((draws.mean(0) - values).abs() <= 5 * spacing / 400**0.5).all()
    exact = values.bfloat16()
    assert torch.equal(rounded(exact.float(), generator), exact)


def test_steps_below_the_precision_of_bfloat16_add_up():
    """Steps of 1e-4 of weights of 1, where the next lower bfloat16 number is 4e-3 away."""
    weight = nn.Parameter(torch.ones(100, 100, dtype=torch.bfloat16))
    optimizer = make_optimizer([weight], "adamw", 1e-4, 0.0, False, seed=0)
    for _ in range(100):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert abs(weight.detach().double().mean().item() - 0.99) < 5e-4


def test_replicas_round_alike_whatever_was_drawn_elsewhere():
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        weight = nn.Parameter(torch.ones(30, 30, dtype=torch.bfloat16))
        optimizer = make_optimizer([weight], "adamw", 1e-3, 0.0, False, seed=0)
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        found.append(weight.detach().clone())
    assert torch.equal(*found)
    assert found[0].unique().numel() == 2


class PowerCutError(Exception):
    """Ends training in the middle."""


class PowerCut(Callback):
    """Ends training after some batches; nothing is saved on the way out."""

    def __init__(self, batches: int) -> None:
        self.left = batches

    def on_train_batch_end(self, *args) -> None:
        self.left -= 1
        if self.left == 0:
            raise PowerCutError


def model(settings: dict) -> LanguageModel:
    if settings.get("optimizer") == "adamw_8bit":
        pytest.importorskip("bitsandbytes")
    made = language()
    defaults = {"learning_rate": 3e-3, "max_epochs": 3, "accelerator": "cpu", "checkpoint_every": 2}
    made.trainer = TrainerSettings(**defaults | settings)
    return made


def weights_of(fitted: LanguageModel) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in fitted._module.model.named_parameters()}


@pytest.mark.parametrize("settings", SETTINGS, ids=NAMES)
@pytest.mark.parametrize("batches", [3, pytest.param(8, marks=pytest.mark.slow)])
def test_an_interrupted_fit_ends_with_the_same_weights(settings, batches, tmp_path, monkeypatch):
    """Five steps an epoch; the checkpoint holds plain tensors and numbers, as Lightning loads it here."""
    monkeypatch.setattr(optimizers, "PIECE", 4096)
    whole = weights_of(model(settings).fit(TRAIN, VALID, CHOICES))
    callbacks = training._fitting_callbacks
    monkeypatch.setattr(training, "_fitting_callbacks", lambda *args: [*callbacks(*args), PowerCut(batches)])
    with pytest.raises(PowerCutError):
        model(settings).fit(TRAIN, VALID, CHOICES, Workspace(tmp_path))
    monkeypatch.setattr(training, "_fitting_callbacks", callbacks)
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert last["optimizer_states"]
    assert last["precision"] == model(settings).trainer.resolved_precision
    resumed = weights_of(model(settings).fit(TRAIN, VALID, CHOICES, Workspace(tmp_path)))
    for name, value in whole.items():
        assert torch.equal(resumed[name], value), name


@pytest.mark.parametrize("settings", SETTINGS, ids=NAMES)
def test_each_learns_about_as_fast_as_adamw(settings):
    """Log-probability of the realised titles, in nats: 58 before training, 39 after three epochs."""
    found = []
    for more in ({}, settings):
        fitted = model(more)
        fitted.scoring = RealizedScoring()
        found.append(-fitted.fit(TRAIN, VALID, CHOICES).predict(TEST).log_prob_raw_N.mean())
    assert found[1] < found[0] + 1


def test_updates_in_the_backward_pass_are_those_after_it():
    after, within = (
        weights_of(model({"clip_norm": None, "weights": "bf16", **more}).fit(TRAIN, VALID, CHOICES))
        for more in ({}, {"update_in_backward": True})
    )
    for name, value in after.items():
        assert torch.equal(within[name], value), name


def test_one_gradient_stands_at_a_time(monkeypatch):
    update, standing = PiecewiseOptimizer._update, []

    def counted(self, weight):
        standing.append(sum(other.grad is not None for other in self.weights))
        update(self, weight)

    monkeypatch.setattr(PiecewiseOptimizer, "_update", counted)
    fitted = model(LEAST).fit(TRAIN, VALID, CHOICES)
    assert len(standing) == 15 * len(list(fitted._module.model.parameters()))
    assert set(standing) == {1}
    assert all(not weight._post_accumulate_grad_hooks for weight in fitted._module.model.parameters())


def test_weights_in_bfloat16_are_trained_saved_and_loaded_as_such(tmp_path):
    fitted = model({"weights": "bf16"}).fit(TRAIN, VALID, CHOICES)
    fitted.save(tmp_path)
    loaded = model({"weights": "bf16"}).load(tmp_path)
    for name, value in weights_of(loaded).items():
        assert value.dtype == torch.bfloat16
        assert torch.equal(value, weights_of(fitted)[name])
    np.testing.assert_allclose(loaded.log_probs(TEST), fitted.log_probs(TEST), atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clip_norm": 1.0}, r"set clip_norm=null \(now 1.0\)"),
        ({"micro_batch_size": 4}, r"set micro_batch_size to batch_size, 8 \(now 4\)"),
        ({"devices": 2}, "needs one device, got devices times nodes 2"),
    ],
)
def test_what_updates_in_the_backward_pass_cannot_do_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainerSettings(**{"learning_rate": 1e-3, "update_in_backward": True, "clip_norm": None} | settings)


def test_other_settings_that_cannot_be_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="weights=bf16 needs precision=auto or bf16-mixed"):
        TrainerSettings(learning_rate=1e-3, weights="bf16", precision="32-true")
    monkeypatch.setattr("labor_llm.language.finetune.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'labor-llm\[quantization\]'"):
        TrainerSettings(learning_rate=1e-3, optimizer="adamw_8bit")
