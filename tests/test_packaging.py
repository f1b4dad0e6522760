"""The wheel works from any folder, with its configs and its data."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with the unpacked wheel and nothing else of the project."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, PROJECT]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--target", folder / "site", wheel]
    subprocess.run(pip, check=True, capture_output=True)
    return folder / "site"


def answer(site: Path, cwd: Path, *words: str) -> str:
    command = [sys.executable, "-P", "-m", "labor_llm", *words]
    environment = os.environ | {"PYTHONPATH": str(site)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=True).stdout


def test_a_wheel_finds_its_configs_from_any_folder(installed, tmp_path):
    code = "import labor_llm.configs as c; print(c.conf_folder())"
    environment = os.environ | {"PYTHONPATH": str(installed)}
    found = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(found.stdout.strip()) == installed / "labor_llm" / "conf"
    assert "labor_llm.models.language" in answer(installed, tmp_path, "run", "--cfg", "job")


def test_a_wheel_runs_with_a_users_own_folder(installed, tmp_path):
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "markov.yaml").write_text(
        "_target_: labor_llm.models.empirical.Empirical\nname: replaced\n"
    )
    answer(installed, tmp_path, "run", "--config-dir", "mine", "model=markov", "tracker=jsonl")
    assert list(tmp_path.glob("outputs/wage_panel/replaced/*/complete"))
