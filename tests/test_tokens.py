"""Text -> token ids: pieces, boundaries and round trips."""

import logging
import re
from dataclasses import replace

import numpy as np
import pytest
from conftest import SPLIT_WORDS, bpe_tokenizer, chain_panel
from tokenizers.processors import TemplateProcessing
from transformers import ByT5Tokenizer

from labor_llm.errors import DataError
from labor_llm.language.backbones import ScratchBackbone
from labor_llm.language.title_tokens import add_title_tokens
from labor_llm.language.tokens import CareerEncoder
from labor_llm.templates import Codes, ResumeTemplate, Titles, Tokens

CAREERS = chain_panel(persons=12)
TEXTS = ResumeTemplate().texts(CAREERS, Titles())
SCRATCH = ScratchBackbone(name="x", layers=1, width=8, heads=1, feed_forward=8, vocabulary=500, learning_rate=1e-3)


PHRASES = replace(SCRATCH, phrases=60)


@pytest.fixture(params=[*SPLIT_WORDS, "scratch", "phrases"])
def tokenizer(request):
    made = {"scratch": SCRATCH, "phrases": PHRASES}
    return made[request.param].tokenizer(TEXTS) if request.param in made else bpe_tokenizer(request.param, TEXTS)


@pytest.fixture(params=[Titles(), Codes(), Tokens()], ids=lambda label: label.name)
def encoder(request, tokenizer):
    encoder = CareerEncoder(tokenizer, ResumeTemplate(), request.param, CAREERS.taxonomy)
    if isinstance(request.param, Tokens):
        add_title_tokens(encoder)
    return CareerEncoder(tokenizer, ResumeTemplate(), request.param, CAREERS.taxonomy)


def test_pieces_laid_end_to_end_are_the_text(encoder):
    encoded = encoder.encode(CAREERS)
    texts = ResumeTemplate().texts(CAREERS, encoder.label)
    for place, text in enumerate(texts):
        start, end = encoded.career_starts[place : place + 2]
        ids = encoded.ids_T[start + len(encoder.prefix) : end]
        assert encoder.tokenizer.decode(ids) == text
        assert tuple(ids) == tuple(encoder.tokenizer(text, add_special_tokens=False)["input_ids"])


def test_titles_stand_where_the_encoding_says(encoder):
    encoded = encoder.encode(CAREERS)
    for record, code in enumerate(CAREERS.table["occupation"]):
        span = slice(encoded.prompt_ends[record], encoded.title_ends[record])
        assert tuple(encoded.ids_T[span]) == encoder.titles[code]
        assert encoded.in_title_T[span].all()
        assert not encoded.in_title_T[encoded.prompt_ends[record] - 1]
    assert encoded.in_title_T.sum() == (encoded.title_ends - encoded.prompt_ends).sum()


def test_a_tokenizer_of_ones_own_begins_with_its_own_token():
    tokenizer = SCRATCH.tokenizer(TEXTS)
    encoder = CareerEncoder(tokenizer, ResumeTemplate(), Titles(), CAREERS.taxonomy)
    assert encoder.prefix == (tokenizer.bos_token_id,)
    assert (encoder.encode(CAREERS).ids_T[encoder.encode(CAREERS).career_starts[:-1]] == encoder.prefix[0]).all()


def test_phrases_shorten_careers_and_their_tokens_keep_the_facts_of_a_record_apart():
    words, phrases = SCRATCH.tokenizer(TEXTS), PHRASES.tokenizer(TEXTS)
    assert len(words) < len(phrases) <= len(words) + 60
    assert sum(map(len, phrases(list(TEXTS))["input_ids"])) < sum(map(len, words(list(TEXTS))["input_ids"])) / 2
    written = [phrases.decode([token]) for token in range(len(phrases)) if token not in phrases.all_special_ids]
    several = [text for text in written if " " in text.strip()]
    assert several
    assert not [text for text in several if re.search(r"\d|[:\n].", text)]


def test_phrases_learn_whole_titles_first_where_they_are_frequent():
    encoder = CareerEncoder(PHRASES.tokenizer(TEXTS), ResumeTemplate(), Titles(), CAREERS.taxonomy)
    lengths = (
        CAREERS.table["occupation"]
        .value_counts(sort=True)["occupation"]
        .replace_strict({code: len(ids) for code, ids in encoder.titles.items()})
    )
    assert lengths[0] == 1


def test_a_tokenizer_that_loses_text_is_refused():
    tokenizer = bpe_tokenizer("gpt2", TEXTS)
    tokenizer.backend_tokenizer.normalizer = __import__("tokenizers").normalizers.Lowercase()
    with pytest.raises(DataError, match="does not keep"):
        CareerEncoder(tokenizer, ResumeTemplate(), Titles(), CAREERS.taxonomy)


def test_a_boundary_inside_a_token_is_reported(caplog):
    tokenizer = bpe_tokenizer("gpt2", ["1980: Cooks\n"] * 50)
    encoder = CareerEncoder(tokenizer, ResumeTemplate(), Titles(), CAREERS.taxonomy)
    encoder.titles = {code: (*ids, 0) for code, ids in encoder.titles.items()}
    with caplog.at_level(logging.WARNING):
        encoder.check_boundaries(CAREERS)
    assert "otherwise in running text" in caplog.text


def test_fingerprint_follows_the_ids(tokenizer):
    def fingerprint(label):
        return CareerEncoder(tokenizer, ResumeTemplate(), label, CAREERS.taxonomy).fingerprint

    assert fingerprint(Titles()) == fingerprint(Titles()) != fingerprint(Codes())


def test_lengths_and_starts_agree(encoder):
    encoded = encoder.encode(CAREERS)
    assert encoded.career_starts[-1] == len(encoded.ids_T)
    np.testing.assert_array_equal(encoded.lengths, np.diff(encoded.career_starts))
    for start, header, first in zip(
        encoded.career_starts, encoded.header_ends, encoded.record_starts[:-1], strict=False
    ):
        header_text = encoder.tokenizer.decode(encoded.ids_T[start + len(encoder.prefix) : header])
        assert header_text == ResumeTemplate().headers(CAREERS)[int(np.searchsorted(encoded.career_starts, start))]
        assert header < encoded.prompt_ends[first]


def with_tokens_around(template: str, *tokens: str):
    """A tokenizer that puts tokens of its own before a text, and after it."""
    tokenizer = bpe_tokenizer("llama", TEXTS)
    tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})
    ids = list(zip(tokens, tokenizer.convert_tokens_to_ids(list(tokens)), strict=True))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=ids)
    return tokenizer


@pytest.mark.parametrize(
    ("template", "tokens", "before"),
    [
        ("[gMASK] <sop> $A", ("[gMASK]", "<sop>"), 2),
        ("[CLS] $A [SEP]", ("[CLS]", "[SEP]"), 1),
        ("$A <s>", ("<s>",), 0),
    ],
)
def test_all_tokens_that_a_tokenizer_puts_before_a_text_stand_there_once(template, tokens, before):
    tokenizer = with_tokens_around(template, *tokens)
    encoder = CareerEncoder(tokenizer, ResumeTemplate(), Titles(), CAREERS.taxonomy)
    encoded = encoder.encode(CAREERS)
    own = tokenizer(list(TEXTS))["input_ids"]
    for ids, start, end in zip(own, encoded.career_starts[:-1], encoded.career_starts[1:], strict=True):
        assert encoded.ids_T[start:end].tolist() == ids[: len(ids) - len(tokens) + before]
    assert encoder.prefix == tuple(tokenizer.convert_tokens_to_ids(list(tokens[:before])))


def test_a_tokenizer_whose_own_tokens_change_the_text_is_refused():
    tokenizer = bpe_tokenizer("llama", TEXTS)
    call = type(tokenizer).__call__

    class Doubling(type(tokenizer)):
        def __call__(self, texts, add_special_tokens=True, **kwargs):
            return call(self, texts + texts if add_special_tokens else texts, **kwargs)

    tokenizer.__class__ = Doubling
    tokenizer.backend_tokenizer.add_tokens(["xx"])
    with pytest.raises(DataError, match="Doubling cuts a text otherwise when it adds tokens of its own"):
        CareerEncoder(tokenizer, ResumeTemplate(), Titles(), CAREERS.taxonomy)


@pytest.mark.parametrize("label", [Titles(), Tokens()], ids=lambda label: label.name)
def test_a_tokenizer_written_in_python_is_as_good(label):
    tokenizer = ByT5Tokenizer()
    encoder = CareerEncoder(tokenizer, ResumeTemplate(), label, CAREERS.taxonomy)
    if isinstance(label, Tokens):
        add_title_tokens(encoder)
        encoder = CareerEncoder(tokenizer, ResumeTemplate(), label, CAREERS.taxonomy)
        assert {len(ids) for ids in encoder.titles.values()} == {1}
    encoded = encoder.encode(CAREERS)
    for place, text in enumerate(ResumeTemplate().texts(CAREERS, label)):
        ids = encoded.ids_T[slice(*encoded.career_starts[place : place + 2])]
        assert tokenizer.decode(ids) == text
