"""What trackers keep of a machine: nothing. What its environment says of W&B is done, or refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from labor_llm.tracking import MetricsFile, Wandb

SAID = "a sentence that the run prints"
REMOTE = "https://example.org/enclave/secret-project.git"
COMMITTED = [
    "-c",
    "user.name=somebody",
    "-c",
    "user.email=somebody@example.org",
    "commit",
    "--quiet",
    "--allow-empty",
]


def git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def test_wandb_takes_neither_the_console_nor_the_repository(tmp_path, monkeypatch):
    work, run = tmp_path / "work", tmp_path / "run"
    work.mkdir()
    run.mkdir()
    git(work, "init", "--quiet")
    git(work, "remote", "add", "origin", REMOTE)
    git(work, *COMMITTED, "--message=first")
    monkeypatch.chdir(work)
    tracker = Wandb().start(run, {"seed": 1})
    sys.stdout.write(f"{SAID}\n")
    tracker.log({"train/loss": 1.0}, 1)
    tracker.finish()
    kept = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and not path.is_symlink()}
    raw = b"".join(kept.values())
    assert b"train/loss" in raw
    for secret in (SAID, REMOTE, git(work, "rev-parse", "HEAD")):
        assert secret.encode() not in raw, secret


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    for name in ("WANDB_MODE", "WANDB_DISABLED"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("name", "value"), [("WANDB_MODE", "disabled"), ("WANDB_MODE", "Disabled"), ("WANDB_DISABLED", "true")]
)
@pytest.mark.parametrize("mode", ["offline", "online"])
def test_disabled_keeps_the_metrics_here(monkeypatch, tmp_path, caplog, name, value, mode):
    monkeypatch.setenv(name, value)
    with caplog.at_level("INFO"):
        tracker = Wandb(mode=mode).start(tmp_path, {})
    assert type(tracker) is MetricsFile
    tracker.log({"loss": 1.5}, 3)
    tracker.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 3, "loss": 1.5}
    assert "W&B is left out" in caplog.text


@pytest.mark.parametrize(("value", "mode"), [("online", "offline"), ("offline", "online"), ("dryrun", "online")])
def test_two_modes_at_once_are_refused(monkeypatch, value, mode):
    monkeypatch.setenv("WANDB_MODE", value)
    other = "online" if mode == "offline" else "offline"
    with pytest.raises(
        ValueError, match=f"WANDB_MODE={value}, and tracker.mode is {mode}: set tracker.mode={other}"
    ):
        Wandb(mode=mode)
    assert Wandb(mode=other).mode == other


def test_an_unknown_mode_is_named_with_those_that_are_known(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "of")
    with pytest.raises(ValueError, match=r"WANDB_MODE=of, .* known are offline, dryrun, online, run, disabled"):
        Wandb()


def test_where_nothing_is_disabled_wandb_is_used(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_DISABLED", "false")
    Wandb().start(tmp_path, {}).finish()
    assert list((tmp_path / "wandb").glob("offline-run-*"))


def test_a_folder_may_be_called_like_a_home_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("~nobody").mkdir()
    Wandb().start(Path("~nobody"), {}).finish()
    assert list((tmp_path / "~nobody" / "wandb").glob("offline-run-*"))
