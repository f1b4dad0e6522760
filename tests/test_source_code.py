"""Which code a class rests on, and that a hash of it notices every change of it and no other."""

import importlib
from pathlib import Path

import pytest

from labor_llm.datasets.nlsy97 import NLSY97
from labor_llm.models.language import LanguageModel
from labor_llm.models.markov import Markov
from labor_llm.source_code import code_hash, files_named, modules

PACKAGE = {
    "__init__.py": "from own_careers.models import Own\n",
    "models.py": "from . import parts\nfrom .deep.inner import helped\nfrom own_lists import LIST\n\n\n"
    "class Own:\n    words = 'words.txt'\n\n    def fit(self):\n        from own_careers import late\n",
    "parts.py": "import json\nfrom labor_llm.errors import DataError\n",
    "late.py": "",
    "deep/__init__.py": "",
    "deep/inner.py": "from ..far import away\n\n\ndef helped():\n    return away\n",
    "far.py": "away = 1\n",
    "words.txt": "cook\n",
    "unrelated.py": "",
}


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A package of the user's own, and a module beside it."""
    for name, text in PACKAGE.items():
        path = tmp_path / "own_careers" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "own_lists.py").write_text("import os\nLIST = []\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    return tmp_path / "own_careers"


@pytest.fixture
def own(package, monkeypatch) -> type:
    before = dict(importlib.sys.modules)
    yield importlib.import_module("own_careers.models").Own
    for name in importlib.sys.modules.keys() - before:
        if name.startswith("own_"):
            del importlib.sys.modules[name]


def test_a_module_rests_on_what_it_imports_of_its_own_package_and_ours(own):
    names = {"models", "parts", "deep.inner", "far", "late"}
    assert modules(own).keys() == {f"own_careers.{name}" for name in names} | {"own_lists", "labor_llm.errors"}


@pytest.mark.parametrize(
    "name", ["models.py", "parts.py", "far.py", "late.py", "words.txt", "../own_lists.py", "deep/inner.py"]
)
def test_a_change_of_any_of_it_is_noticed(own, package, name):
    before = code_hash(own)
    assert code_hash(own) == before
    (package / name).write_text((package / name).read_text() + "# changed\n")
    assert code_hash(own) != before


@pytest.mark.parametrize("name", ["unrelated.py", "new.py", "new.csv", "deep/new.py", "../new.py", "__init__.py"])
def test_what_nothing_imports_changes_nothing(own, package, name):
    before = code_hash(own)
    (package / name).write_text("# new\n")
    assert code_hash(own) == before


def test_where_the_code_lies_does_not_matter(own, package, monkeypatch):
    before = code_hash(own)
    moved = package.parent / "elsewhere"
    moved.mkdir()
    for path in (package, package.parent / "own_lists.py"):
        path.rename(moved / path.name)
    for name in [name for name in importlib.sys.modules if name.startswith("own_")]:
        del importlib.sys.modules[name]
    monkeypatch.syspath_prepend(moved)
    importlib.invalidate_caches()
    assert code_hash(importlib.import_module("own_careers.models").Own) == before


def test_ours_rest_on_what_they_use_and_not_on_each_other():
    language, markov, reader = (set(modules(each)) for each in (LanguageModel, Markov, NLSY97))
    assert {"labor_llm.templates", "labor_llm.language.trie", "labor_llm.training"} <= language
    assert "labor_llm.models.empirical" in markov
    assert not {"labor_llm.models.language", "labor_llm.run", "labor_llm.evaluate"} & markov
    assert "labor_llm.datasets.nlsy" in reader
    assert "labor_llm.datasets.psid" not in reader
    assert [file.name for path in modules(NLSY97).values() for file in files_named(path)] == ["nlsy_variables.csv"]


def test_what_has_no_file_is_left_out():
    assert modules(dict) == {}
    assert code_hash(dict) == code_hash()
