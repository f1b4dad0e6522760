"""Several devices: their shares are the whole, and they learn and predict what one does."""

import logging
import multiprocessing
import os
import signal
import time
from dataclasses import replace
from itertools import pairwise
from unittest.mock import patch

import numpy as np
import pytest
import torch
from conftest import chain_panel, language
from small_networks import COVARIATES, trainer
from torch.multiprocessing.spawn import spawn

from labor_llm.devices import Replicas, raising_own_errors, together
from labor_llm.errors import ConfigError, RunError
from labor_llm.language.batches import IGNORED, ScoringBatches, TrainingBatches, ValidationBatches
from labor_llm.language.scoring import ExactScoring
from labor_llm.language.tokens import CareerEncoder
from labor_llm.models.base import Workspace, choice_set
from labor_llm.models.career import Career
from labor_llm.sequences.batches import CodeScoringBatches, CodeTrainingBatches
from labor_llm.sequences.codes import CodeBook
from labor_llm.shares import Share
from labor_llm.templates import ResumeTemplate, Titles
from labor_llm.tracking import NoTracker, Tracker

CAREERS = chain_panel(persons=23)
CHOICES = choice_set(CAREERS)


@pytest.fixture(scope="module")
def encoded():
    tokenizer = language().backbone.tokenizer(ResumeTemplate().texts(CAREERS, Titles()))
    return CareerEncoder(tokenizer, ResumeTemplate(), Titles(), CAREERS.taxonomy).encode(CAREERS)


@pytest.fixture(scope="module")
def coded():
    return CodeBook.of(CAREERS, CHOICES, ()).encode(CAREERS)


def shares(batches, devices: int) -> list[list]:
    """The batches of every device."""
    return [list(batches.share(Share(device, devices))) for device in range(devices)]


def starts_of(batch) -> list[tuple[int, ...]]:
    """The careers of a packed batch, as their ids."""
    row, starts = batch["inputs"]["input_ids"][0].tolist(), batch["inputs"]["career_starts"]
    return [tuple(row[start:end]) for start, end in pairwise(starts)]


@pytest.mark.parametrize(("devices", "micro"), [(2, 2), (2, 3), (3, 1), (4, 8)])
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_devices_share_every_step(encoded, devices, micro, layout):
    batches = TrainingBatches(encoded, 12, micro, "all", 1, layout)
    parts = batches.share(Share(0, devices)).parts
    own = shares(batches, devices)
    assert {len(batches) for batches in own} == {parts * batches.steps}
    for step in range(batches.steps):
        cut = [batch for batches in own for batch in batches[step * parts : (step + 1) * parts]]
        assert all(len(batch["labels"]) <= micro for batch in cut if layout == "padded")
        tokens = sum(int((batch["labels"] != IGNORED).sum()) for batch in cut)
        assert {int(batch["step_tokens"]) for batch in cut} == {tokens}
        if layout == "packed":
            alone = list(TrainingBatches(encoded, 12, 12, "all", 1))[step]
            assert sorted(career for batch in cut for career in starts_of(batch)) == sorted(starts_of(alone))


@pytest.mark.parametrize(("devices", "micro"), [(1, 3), (2, None), (2, 2), (5, 1)])
def test_devices_share_every_step_of_codes(coded, devices, micro):
    alone = list(CodeTrainingBatches(coded, 12, seed=1))
    batches = CodeTrainingBatches(coded, 12, seed=1, micro_batch_size=micro)
    parts = batches.share(Share(0, devices)).parts
    own = shares(batches, devices)
    assert {len(batches) for batches in own} == {parts * len(alone)}
    for step, whole in enumerate(alone):
        cut = [batch for batches in own for batch in batches[step * parts : (step + 1) * parts]]
        rows = torch.cat([batch["rows_T"] for batch in cut]).tolist()
        assert sorted(rows) == sorted(whole["rows_T"].tolist())
        assert {batch["step_records"] for batch in cut} == {len(rows)}


@pytest.mark.parametrize("devices", [1, 2, 5])
def test_devices_share_what_is_validated_and_scored(encoded, coded, devices):
    records = np.arange(len(CAREERS))
    validated = shares(ValidationBatches(encoded, 4), devices)
    assert sum(int(batch["records"]) for own in validated for batch in own) == len(CAREERS)
    assert all(validated)
    for mixed in (False, True):
        codes = shares(CodeScoringBatches(coded, 40, mixed), devices)
        found = sorted(row for own in codes for batch in own for row in batch["rows_T"].tolist())
        assert found == records.tolist()
    batches = ScoringBatches(encoded, np.zeros(len(CAREERS), dtype=int), 300)
    scored = [[own[place] for place in range(len(own))] for own in map(batches.share, map_shares(devices))]
    found = sorted(row for own in scored for batch in own for row in batch["records_Q"].tolist())
    assert found == records.tolist()


def map_shares(devices: int) -> list[Share]:
    return [Share(device, devices) for device in range(devices)]


def test_too_few_careers_for_the_devices(encoded):
    with pytest.raises(ConfigError, match="is 30, but there are 23 careers"):
        ValidationBatches(encoded, 4).share(Share(0, 30))
    with pytest.raises(ConfigError, match="is 4, but there are 3 careers"):
        TrainingBatches(encoded, 3, 3, "all", 1).share(Share(0, 4))


class Heard(NoTracker):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.metrics: dict[tuple[str, int], float] = {}

    def log(self, metrics, step) -> None:
        self.metrics |= {(name, step): value for name, value in metrics.items()}


def networks(devices: int):
    """A small model of either kind on so many devices."""
    both = {"devices": devices, "max_epochs": 8, "clip_norm": 0.5}
    settings = trainer(**both, micro_batch_size=16 // devices)
    words = language()
    words.scoring = ExactScoring(max_tokens=300)
    words.trainer = replace(words.trainer, **both, micro_batch_size=8 // devices)
    shape = {"layers": 1, "width": 8, "feed_forward": 8, "heads": 1, "dropout": 0.0}
    career = Career(name="small", covariates=COVARIATES, two_stage=True, trainer=settings, seed=0, **shape)
    return [words, career]


@pytest.mark.parametrize(
    "kind", [pytest.param(0, id="language", marks=pytest.mark.slow), pytest.param(1, id="career")]
)
def test_two_devices_learn_and_predict_what_one_does(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("labor_llm.sequences.training.SCORED_RECORDS", 50)
    persons = CAREERS.table["person_id"].unique(maintain_order=True)
    train, valid = CAREERS.select_persons(persons[:16]), CAREERS.select_persons(persons[16:])
    log_probs, heard = [], []
    for devices in (1, 2):
        model, tracker = networks(devices)[kind], Heard()
        folder = tmp_path / str(devices)
        folder.mkdir()
        model.fit(train, valid, CHOICES, Workspace(folder, tracker))
        log_probs.append(model.log_probs(CAREERS))
        heard.append(tracker.metrics)
    np.testing.assert_allclose(log_probs[1], log_probs[0], atol=1e-3)
    shared = heard[0].keys() & heard[1].keys()
    assert {name for name, _ in shared} >= {"train/loss", model._module.monitor}
    for key in shared:
        assert heard[1][key] == pytest.approx(heard[0][key], rel=1e-3), key


def fail(rank: int) -> None:
    raise RunError("the model mixes careers")


def test_a_mistake_found_on_a_device_is_raised_as_what_it_is():
    with pytest.raises(RunError, match=r"^the model mixes careers$"), raising_own_errors():
        spawn(fail)


def log(rank: int, strategy: Replicas, tracker: Tracker) -> None:
    """As a device's process does."""
    os.environ["LOCAL_RANK"] = str(rank)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("pytorch_lightning.strategies.DDPStrategy.setup_environment", lambda self: None)
        strategy.setup_environment()
    logging.getLogger("labor_llm.mine").info("step %d", rank)
    logging.getLogger("labor_llm.mine").warning("careful, %d", rank)
    tracker.log({"loss": 0.5}, rank)


def test_the_first_process_writes_what_the_others_log(caplog):
    tracker = Heard()
    with caplog.at_level("INFO"), together(2, tracker) as (strategy, reachable):
        spawn(log, (strategy, reachable), nprocs=2)
    assert sorted(caplog.messages) == ["careful, 0", "careful, 1", "step 0"]
    assert tracker.metrics.keys() == {("loss", 0), ("loss", 1)}


class Full(NoTracker):
    """Cannot be told anything."""

    def log(self, metrics, step) -> None:
        raise OSError("disk full")


def test_a_tracker_that_fails_is_heard_of_after_the_work():
    def work():
        with together(2, Full()) as (_, reachable):
            for step in range(5000):  # more than a pipe holds
                reachable.log({"loss": 0.5}, step)

    with pytest.raises(OSError, match="disk full"):
        work()


def test_no_process_goes_on_after_an_interruption():
    with patch.object(Replicas, "stop", autospec=True) as stop:
        with pytest.raises(KeyboardInterrupt), together(2, Heard()) as (strategy, _):
            raise KeyboardInterrupt
        stop.assert_called_once_with(strategy)


def test_processes_that_still_run_are_ended():
    with together(2, Heard()) as (strategy, _):
        strategy._configure_launcher()
        process = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
        process.start()
        strategy.launcher.procs = [process]
        strategy.stop()
        process.join(10)
        assert process.exitcode == -signal.SIGKILL


def test_steps_that_devices_cannot_share_evenly():
    with pytest.raises(ValueError, match="batch_size must be a multiple of devices, 3, got 8"):
        trainer(batch_size=8, devices=3)


def test_one_device_needs_nothing():
    tracker = Heard()
    with together(1, tracker) as (strategy, same):
        assert strategy == "auto"
        assert same is tracker
