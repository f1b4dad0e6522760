"""Tokens of several words, up to a whole line, for tokenizers made from scratch.

A dataset repeats few phrases: years, levels of education, titles. With a token for each of the frequent ones a
career is a third as long, and a tree of titles has a fraction of the nodes. The words are learned first, then
what follows them, as in SuperBPE (Liu et al., arXiv 2503.13423).
"""

import json
from collections.abc import Iterable
from functools import cache

from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split, WhitespaceSplit
from tokenizers.trainers import BpeTrainer

PHRASE = Regex(r"\d+|[^\d:\n]+[:\n]?|[:\n]")
"""A number, or what stands before the next number, colon or end of line: no phrase tells two facts of a record."""
FIRST_CHARACTER = 0xF0000
"""Token t of the words is the private character FIRST_CHARACTER + t while phrases are learned from them."""


def with_phrases(words: Tokenizer, texts: Iterable[str], phrases: int) -> Tokenizer:
    """The tokenizer with up to so many more tokens: the phrases that are most frequent in the texts."""
    cut = Split(PHRASE, "isolated")

    @cache
    def characters(piece: str) -> str:
        return "".join(chr(FIRST_CHARACTER + token) for token in words.encode(piece, add_special_tokens=False).ids)

    learner = Tokenizer(BPE())
    learner.pre_tokenizer = WhitespaceSplit()
    alphabet = [chr(FIRST_CHARACTER + token) for token in range(words.get_vocab_size())]
    trainer = BpeTrainer(
        vocab_size=len(alphabet) + phrases, initial_alphabet=alphabet, min_frequency=2, show_progress=False
    )
    lines = (" ".join(characters(piece) for piece, _ in cut.pre_tokenize_str(text)) for text in texts)
    learner.train_from_iterator(lines, trainer)

    tokens = {token: text for text, token in words.get_vocab().items()}

    def written(characters: str) -> str:
        return "".join(tokens[ord(character) - FIRST_CHARACTER] for character in characters)

    of_words = json.loads(words.to_str())["model"]
    learned = json.loads(learner.to_str())["model"]["merges"]
    pairs = [(written(left), written(right)) for left, right in learned]
    vocabulary = dict(of_words["vocab"])
    for left, right in pairs:
        vocabulary.setdefault(left + right, len(vocabulary))
    tokenizer = Tokenizer(BPE(vocabulary, [(left, right) for left, right in of_words["merges"]] + pairs))
    tokenizer.pre_tokenizer = Sequence([cut, ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = words.decoder
    return tokenizer
