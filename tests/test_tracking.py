"""What trackers keep of the machine that a run is on: nothing."""

import subprocess
import sys
from pathlib import Path

from labor_llm.tracking import Wandb

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
