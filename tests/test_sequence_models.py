"""Networks that read codes as models: the schedule, resuming, and CAREER that goes on from other careers."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from conftest import CHOICES, TEST, TRAIN, VALID, panel
from hydra import compose, initialize_config_dir
from pytorch_lightning.callbacks import Callback
from small_networks import coded, trainer

from labor_llm import training
from labor_llm.configs import conf_folder
from labor_llm.errors import ConfigError, RunError
from labor_llm.models.bag_of_jobs import BagOfJobs
from labor_llm.models.base import Workspace, choice_set
from labor_llm.models.career import Career
from labor_llm.models.logit import Logit
from labor_llm.run import run, score
from labor_llm.sequences import transformer
from labor_llm.sequences.batches import CodeScoringBatches

SMALL = {"layers": 1, "width": 12, "feed_forward": 24, "heads": 3}


def weights(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model._module.model.named_parameters()}


def test_the_rate_rises_to_its_peak_and_falls_with_the_inverse_square_root():
    model = coded(BagOfJobs, width=4, trainer=trainer(max_epochs=1, warmup_steps=10, learning_rate=1.0))
    optimizers = model.fit(TRAIN, VALID, CHOICES)._module.configure_optimizers()
    schedule, rates = optimizers["lr_scheduler"]["scheduler"], []
    for _ in range(40):
        rates.append(schedule.get_last_lr()[0])
        optimizers["optimizer"].step()
        schedule.step()
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == pytest.approx(1.0)
    assert rates[39] == pytest.approx(0.5)


class PowerCutError(Exception):
    """Ends training in the middle."""


class PowerCut(Callback):
    """Ends training after so many batches."""

    def __init__(self, batches: int) -> None:
        self.left = batches

    def on_train_batch_end(self, *args) -> None:
        self.left -= 1
        if self.left == 0:
            raise PowerCutError


@pytest.mark.parametrize("batches", [2, 5])
def test_an_interrupted_fit_ends_with_the_same_weights(batches, tmp_path, monkeypatch):
    def model():
        return coded(Career, **SMALL, trainer=trainer(max_epochs=3, checkpoint_every=1, learning_rate=0.03))

    whole = weights(model().fit(TRAIN, VALID, CHOICES))
    callbacks = training._fitting_callbacks
    cut = PowerCut(batches)
    monkeypatch.setattr(training, "_fitting_callbacks", lambda *args: [*callbacks(*args), cut])
    with pytest.raises(PowerCutError):
        model().fit(TRAIN, VALID, CHOICES, Workspace(tmp_path))
    monkeypatch.undo()
    resumed = weights(model().fit(TRAIN, VALID, CHOICES, Workspace(tmp_path)))
    for name, value in whole.items():
        assert torch.equal(resumed[name], value), name


@pytest.mark.parametrize("name", ["a::b", "[2]*", "~nobody"])
def test_checkpoints_lie_in_a_folder_of_any_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path(name)
    folder.mkdir()
    coded(Career, **SMALL, trainer=trainer(max_epochs=1)).fit(TRAIN, VALID, CHOICES, Workspace(folder))
    assert {path.name for path in (tmp_path / name).iterdir()} == {"best.ckpt", "last.ckpt"}
    assert [path.name for path in tmp_path.iterdir()] == [name]


def small_career(dropout=0.0, **settings) -> Career:
    """A CAREER of one layer after training with some settings."""
    career = coded(Career, **SMALL, dropout=dropout, trainer=trainer(max_epochs=2, **settings))
    return career.fit(TRAIN, VALID, CHOICES)


SAME = [
    pytest.param({"micro_batch_size": 5}, 0.0, id="micro"),
    pytest.param({"gradient_checkpointing": True}, 0.2, id="checkpointing"),
    pytest.param({"compile": True}, 0.1, id="compile", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("settings", "dropout"), SAME)
def test_what_saves_memory_or_time_learns_the_same(settings, dropout):
    plain, other = small_career(dropout), small_career(dropout, **settings)
    np.testing.assert_allclose(other.log_probs(TEST), plain.log_probs(TEST), atol=1e-4)


def test_career_scores_careers_of_all_lengths_together_and_others_similar_ones(monkeypatch):
    asked = []

    class Noted(CodeScoringBatches):
        def __init__(self, coded, records, mixed):
            asked.append(mixed)
            super().__init__(coded, records, mixed)

    for module in ("labor_llm.sequences.training", "labor_llm.models.sequence"):
        monkeypatch.setattr(f"{module}.CodeScoringBatches", Noted)
    small_career().log_probs(TEST)
    assert asked == [True, True]
    coded(BagOfJobs, trainer=trainer(max_epochs=1)).fit(TRAIN, VALID, CHOICES).log_probs(TEST)
    assert asked[2:] == [False, False]


@pytest.mark.slow
@pytest.mark.skipif(not transformer.JOINED[torch.bfloat16], reason="needs a processor that multiplies bfloat16")
def test_compiled_layers_are_validated_in_bfloat16():
    plain, compiled = (small_career(precision="bf16-mixed", compile=compile_) for compile_ in (False, True))
    np.testing.assert_allclose(compiled.log_probs(TEST), plain.log_probs(TEST), atol=5e-2)


def test_layers_are_computed_again_while_training_and_only_if_asked(monkeypatch):
    called = []
    again = transformer.checkpoint
    monkeypatch.setattr(transformer, "checkpoint", lambda *args, **how: (called.append(1), again(*args, **how))[1])
    small_career()
    assert not called
    small_career(gradient_checkpointing=True)
    assert len(called) == 2 * 3  # two epochs of forty careers, sixteen a step


@pytest.mark.parametrize("name", ["gradient_checkpointing", "compile"])
def test_a_network_without_layers_has_none_to_compile(name):
    bag = coded(BagOfJobs, width=4, trainer=trainer(**{name: True}))
    with pytest.raises(ConfigError, match=rf"model\.trainer\.{name}: Bag\w* does not say which"):
        bag.fit(TRAIN, VALID, CHOICES)


def test_gradients_are_clipped_and_dropout_ends(monkeypatch):
    lengths, shares = [], []
    clip, start = torch.nn.utils.clip_grad_norm_, training.Training.on_train_batch_start

    def clipped(parameters, length):
        lengths.append(length)
        return clip(parameters, length)

    def started(module, *args):
        start(module, *args)
        shares.append(module.model.layers[0].dropout.p)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clipped)
    monkeypatch.setattr(training.Training, "on_train_batch_start", started)
    loose = weights(small_career(dropout=0.1))
    assert not lengths
    tight = small_career(dropout=0.1, clip_norm=1e-3, dropout_until=0.5)
    assert lengths == [1e-3] * 6
    assert shares == [0.1] * 9 + [0.0] * 3
    assert any(not torch.equal(loose[name], value) for name, value in weights(tight).items())


def test_diverged_training_names_the_key_to_change():
    with pytest.raises(RunError, match=r"valid/perplexity was never.*Lower model\.trainer\.learning_rate"):
        coded(Career, **SMALL, trainer=trainer(learning_rate=1e38)).fit(TRAIN, VALID, CHOICES)


RESUMES = panel(
    person_id=[f"r{person}" for person in range(30) for _ in range(4)],
    year=[1970 + year for _ in range(30) for year in range(4)],
    occupation=["243", "095", "004", "243"] * 30,
    region=["south"] * 120,
    gender=["female"] * 120,
)


def complete_run(model, folder: Path) -> Path:
    """A folder that looks like that of a complete run."""
    model.save(folder / "model")
    (folder / "complete").touch()
    return folder


@pytest.fixture(scope="module")
def pretrained():
    return coded(Career, **SMALL, covariates=("year", "region", "gender")).fit(
        RESUMES, RESUMES, choice_set(RESUMES)
    )


def going_on(run: Path, **settings):
    """A model that starts from the run and hardly moves from there."""
    still = trainer(learning_rate=1e-9, max_epochs=1)
    return coded(Career, **SMALL | {"init_from": str(run), "trainer": still} | settings)


def test_a_model_goes_on_from_another_one_row_by_row(pretrained, tmp_path):
    fitted = going_on(complete_run(pretrained, tmp_path)).fit(TRAIN, VALID, CHOICES)
    old, new = weights(pretrained), weights(fitted)
    before = pretrained.choice_set
    for code in set(before) & set(CHOICES):
        for name in ("occupations.weight", "output.weight"):
            row, source = new[name][CHOICES.index(code)], old[name][before.index(code)]
            torch.testing.assert_close(row, source, atol=1e-6, rtol=0)
    for name, value in new.items():
        if name.startswith(("layers", "norm")):
            torch.testing.assert_close(value, old[name], atol=1e-6, rtol=0)
    torch.testing.assert_close(new["output.weight"][-1], old["output.weight"][-1], atol=1e-6, rtol=0)
    starts = new["occupations.weight"][len(CHOICES)], old["occupations.weight"][len(before)]
    torch.testing.assert_close(*starts, atol=1e-6, rtol=0)
    place = fitted._book.values["gender"].index("female") + 1
    torch.testing.assert_close(
        new["covariates.gender.weight"][place], old["covariates.gender.weight"][1], atol=1e-6, rtol=0
    )


def test_what_only_one_of_the_two_datasets_has_starts_at_random_or_is_dropped(pretrained, tmp_path):
    run = complete_run(pretrained, tmp_path)
    fitted = going_on(run).fit(TRAIN, VALID, CHOICES)
    fresh = weights(going_on(run, init_from=None).fit(TRAIN, VALID, CHOICES))
    assert "region" not in fitted._book.columns
    assert fitted._book.values["year"][0] == "1980"
    for name, row in (("covariates.education.weight", 1), ("output.weight", CHOICES.index("274"))):
        torch.testing.assert_close(weights(fitted)[name][row], fresh[name][row], atol=1e-6, rtol=0)
    assert not torch.allclose(weights(fitted)["output.weight"], fresh["output.weight"], atol=1e-3)


def test_persons_of_the_first_training_count_as_seen(pretrained, tmp_path):
    fitted = going_on(complete_run(pretrained, tmp_path)).fit(TRAIN, VALID, CHOICES)
    assert fitted.persons_seen(RESUMES) == RESUMES.persons
    assert fitted.persons_seen(TRAIN) == TRAIN.persons
    assert fitted.persons_seen(TEST) == 0


def test_two_stages_go_on_in_one(pretrained, tmp_path):
    fitted = going_on(complete_run(pretrained, tmp_path), two_stage=False).fit(TRAIN, VALID, CHOICES)
    new, old = (weights(model)["output.weight"] for model in (fitted, pretrained))
    assert len(new) == len(CHOICES)
    for code in set(pretrained.choice_set) & set(CHOICES):
        row, source = new[CHOICES.index(code)], old[pretrained.choice_set.index(code)]
        torch.testing.assert_close(row, source, atol=1e-6, rtol=0)


def test_a_run_that_does_not_fit_is_refused(pretrained, tmp_path):
    with pytest.raises(ConfigError, match="folder of a complete run"):
        going_on(tmp_path / "nowhere").fit(TRAIN, VALID, CHOICES)
    run = complete_run(pretrained, tmp_path / "career")
    with pytest.raises(ConfigError, match=r"another shape: set model\.width=12"):
        going_on(run, width=24).fit(TRAIN, VALID, CHOICES)
    other = complete_run(Logit().fit(TRAIN, VALID, CHOICES), tmp_path / "logit")
    with pytest.raises(ConfigError, match="run of another model"):
        going_on(other).fit(TRAIN, VALID, CHOICES)


def test_codes_that_mean_something_else_are_refused(pretrained, tmp_path):
    run = complete_run(pretrained, tmp_path)
    facts = run / "model" / "occupation_model.json"
    text = facts.read_text()
    title = TRAIN.taxonomy.title("095")
    facts.write_text(text.replace(title.replace('"', '\\"'), "Astronauts"))
    assert facts.read_text() != text
    with pytest.raises(ConfigError, match=r"code '095' is .*Astronauts"):
        going_on(run).fit(TRAIN, VALID, CHOICES)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="width must be a multiple of twice the heads, 6, got 16"):
        coded(Career, layers=1, width=16, feed_forward=8, heads=3)


def test_two_stages_learn_to_stay():
    careers = panel(
        person_id=[f"s{person}" for person in range(40) for _ in range(5)],
        year=[1980 + year for _ in range(40) for year in range(5)],
        occupation=[code for person in range(40) for code in [("095", "243", "274")[person % 3]] * 5],
    )
    model = coded(BagOfJobs, width=32, trainer=trainer(max_epochs=40, patience=40, learning_rate=0.01))
    choices = choice_set(careers)
    predictions = np.exp(model.fit(careers, careers, choices).log_probs(careers))
    stays = careers.table.with_row_index().filter(pl.Series(careers.previous.is_not_null()))
    columns = [choices.index(code) for code in stays["occupation"]]
    assert predictions[stays["index"], columns].min() > 0.9


def test_a_run_goes_on_from_another_run_and_is_scored_again(tmp_path):
    small = [
        "model.layers=1",
        "model.width=12",
        "model.feed_forward=24",
        "model.trainer.max_epochs=1",
        "model.trainer.warmup_steps=3",
    ]
    common = [f"outputs={tmp_path}", "tracker=jsonl", "trainer.accelerator=cpu", "model=career", *small]
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        first = run(compose("run", [*common, "name=first"]))
        (folder,) = tmp_path.glob("wage_panel/first/*")
        second = run(compose("run", [*common, "name=second", f"model.init_from={folder}"]))
        (fitted,) = tmp_path.glob("wage_panel/second/*")
        again = score(compose("score", [f"run={fitted}"]))
    assert 1 < second < first
    assert again == pytest.approx(second, rel=1e-6)
