"""Tokenized careers on disk: the same as in memory, made once, and again when anything about them changes."""

import importlib
from dataclasses import fields

import numpy as np
import pytest
from conftest import TEST, TRAIN, bpe_tokenizer
from transformers import ByT5Tokenizer

from labor_llm.language import token_files
from labor_llm.language.token_files import encode_once
from labor_llm.language.tokens import CareerEncoder, EncodedCareers
from labor_llm.templates import Codes, ResumeTemplate, Titles


def encoder(name="gpt2", template=None, label=None) -> CareerEncoder:
    tokenizer = bpe_tokenizer(name, ResumeTemplate().texts(TRAIN, Titles()))
    return CareerEncoder(tokenizer, template or ResumeTemplate(), label or Titles(), TRAIN.taxonomy)


def test_what_is_read_is_what_was_encoded(tmp_path):
    expected, read = encoder().encode(TRAIN), encode_once(encoder(), TRAIN, tmp_path)
    for field in fields(EncodedCareers):
        np.testing.assert_array_equal(getattr(read, field.name), getattr(expected, field.name))
        assert isinstance(getattr(read, field.name), np.memmap)
    np.testing.assert_array_equal(read.in_title_T, expected.in_title_T)


def test_the_second_time_nothing_is_encoded(tmp_path, monkeypatch):
    encode_once(encoder(), TRAIN, tmp_path)
    monkeypatch.setattr(CareerEncoder, "encode", None)
    assert len(encode_once(encoder(), TRAIN, tmp_path)) == TRAIN.persons


@pytest.mark.parametrize(
    "changed",
    [
        (encoder("llama"), TRAIN),
        (encoder(template=ResumeTemplate(birth_year=False)), TRAIN),
        (encoder(label=Codes()), TRAIN),
        (encoder(), TEST),
    ],
    ids=["tokenizer", "template", "label", "careers"],
)
def test_what_changed_is_encoded_again(changed, tmp_path):
    encode_once(encoder(), TRAIN, tmp_path)
    encode_once(*changed, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_words_that_a_template_of_ones_own_imports_are_noticed(tmp_path, monkeypatch):
    (tmp_path / "own_words.py").write_text("GREETING = 'worker'\n")
    (tmp_path / "own_template.py").write_text(
        "from labor_llm.templates import ResumeTemplate\nfrom own_words import GREETING\n\n\n"
        "class Own(ResumeTemplate):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    own = encoder(template=importlib.import_module("own_template").Own())
    for text in ("GREETING = 'worker'\n", "GREETING = 'worker'\n", "GREETING = 'employee'\n"):
        (tmp_path / "own_words.py").write_text(text)
        encode_once(own, TRAIN, tmp_path / "tokens")
    assert len(list((tmp_path / "tokens").iterdir())) == 2


def test_tokenizers_written_in_python_are_told_apart(tmp_path):
    for tokens in ([], [], ["Cooks"]):
        tokenizer = ByT5Tokenizer()
        tokenizer.add_tokens(tokens)
        encode_once(CareerEncoder(tokenizer, ResumeTemplate(), Titles(), TRAIN.taxonomy), TRAIN, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(token_files.np, "save", broken)
    with pytest.raises(OSError, match="no space"):
        encode_once(encoder(), TRAIN, tmp_path)
    assert not list(tmp_path.iterdir())


def test_without_a_folder_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    encode_once(encoder(), TRAIN, None)
    assert not list(tmp_path.iterdir())
