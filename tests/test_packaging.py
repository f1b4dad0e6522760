"""The wheel works from any folder, with its configs and its data."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
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


def imported(folder: Path) -> Iterator[str]:
    """The top-level modules that the files of a folder import."""
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from (alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield node.module.partition(".")[0]


def normalized(name: str) -> str:
    return re.sub("[-_.]+", "-", name).lower()


def test_what_is_imported_is_declared():
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = [
        each for extra in ("gguf", "quantization", "excel") for each in project["optional-dependencies"][extra]
    ]
    declared = {normalized(re.match(r"[\w.-]+", each).group()) for each in [*project["dependencies"], *optional]}
    sources = packages_distributions()
    foreign = set(imported(PROJECT / "labor_llm")) - sys.stdlib_module_names - {"labor_llm"}
    assert not {name for name in foreign if not declared & {normalized(source) for source in sources[name]}}


def test_constraints_hold_no_local_version():
    """Such as 2.13.0+cpu, which PyPI does not carry."""
    assert "+" not in (PROJECT / "constraints.txt").read_text(encoding="utf-8")
