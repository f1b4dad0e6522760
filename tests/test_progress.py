"""What is said of long work where no progress bar can be seen, and that a bar says it where one can."""

import logging
import re
from collections import Counter

import pytest
from conftest import CHOICES, TEST, TRAIN, VALID, language
from pytorch_lightning.callbacks import RichProgressBar
from rich.console import Console
from small_networks import coded, trainer

from labor_llm import progress
from labor_llm.models.bag_of_jobs import BagOfJobs
from labor_llm.models.base import Workspace
from labor_llm.progress import LoggedProgress, counting, training_progress

ELAPSED = r", after \d:\d\d:\d\d"
SHOWN = Workspace(progress=True)


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch, caplog):
    """Tests may be run on a terminal or by one that only seems to be there."""
    monkeypatch.setattr(Console, "is_terminal", False)
    caplog.set_level(logging.INFO, "labor_llm.progress")


@pytest.fixture
def at_once(monkeypatch):
    """Lines without a pace."""
    monkeypatch.setattr(progress, "PACE", 0.0)


def bag() -> BagOfJobs:
    return coded(BagOfJobs, width=4, trainer=trainer(max_epochs=2, batch_size=20))


def test_every_validation_has_a_line(caplog):
    bag().fit(TRAIN, VALID, CHOICES, SHOWN)
    numbers = rf"loss \d+\.\d{{4}}, validation perplexity \d+\.\d{{4}}{ELAPSED}"
    for epoch, line in enumerate(caplog.messages, start=1):
        assert re.fullmatch(rf"epoch {epoch} of 2, step {2 * epoch} of 4, {numbers}", line)
    assert len(caplog.messages) == 2


def test_the_perplexity_is_the_one_that_chooses_the_weights(caplog):
    model = bag().fit(TRAIN, VALID, CHOICES, SHOWN)
    perplexities = [float(re.search(r"perplexity (\d+\.\d+)", line)[1]) for line in caplog.messages]
    best = model._module.trainer.checkpoint_callback.best_model_score
    assert min(perplexities) == pytest.approx(float(best), abs=1e-4)


@pytest.mark.usefixtures("at_once")
def test_long_epochs_and_long_predictions_are_told_batch_by_batch(caplog):
    bag().fit(TRAIN, VALID, CHOICES, SHOWN).predict(TEST, SHOWN)
    first, *_, last = caplog.messages
    assert re.fullmatch(rf"epoch 1 of 2, step 1 of 4, loss \d+\.\d{{4}}{ELAPSED}", first)
    assert re.fullmatch(rf"predicted 1 of 1 batches{ELAPSED}", last)
    words = Counter("validation batch 1 of 1" in line for line in caplog.messages)
    assert words == {True: 2, False: 4 + 2 + 1}


def test_lines_keep_their_pace(monkeypatch, caplog):
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with counting("persons") as told:
        for now in (59.0, 60.0, 119.0, 121.0):
            told(int(now), 200)
    assert caplog.messages == ["persons: 60 of 200, after 0:01:00", "persons: 121 of 200, after 0:02:01"]


@pytest.mark.usefixtures("at_once")
def test_counted_work_is_told(caplog):
    with counting("persons") as told:
        told(1_000, 2_000)
    assert re.fullmatch(rf"persons: 1,000 of 2,000{ELAPSED}", caplog.messages[0])
    with counting("persons", shown=False) as told:
        told(1_000, 2_000)
    assert len(caplog.messages) == 1


@pytest.mark.usefixtures("at_once")
def test_states_are_counted(caplog):
    model = language(max_epochs=1).fit(TRAIN, VALID, CHOICES)
    model.states(TEST, SHOWN)
    assert caplog.messages[-1].startswith("batches of careers read: 1 of 1")


@pytest.mark.usefixtures("at_once")
def test_a_terminal_shows_a_bar_and_no_lines(monkeypatch, caplog, capsys):
    assert isinstance(training_progress(), LoggedProgress)
    monkeypatch.setattr(Console, "is_terminal", True)
    assert isinstance(training_progress(), RichProgressBar)
    with counting("persons") as told:
        told(1, 2)
    assert "persons" in capsys.readouterr().err
    assert not caplog.messages


@pytest.mark.usefixtures("at_once")
def test_other_devices_say_nothing(monkeypatch, caplog):
    quiet = LoggedProgress()
    quiet.disable()
    monkeypatch.setattr("labor_llm.training.training_progress", lambda: quiet)
    bag().fit(TRAIN, VALID, CHOICES, SHOWN).predict(TEST, SHOWN)
    assert not caplog.messages
