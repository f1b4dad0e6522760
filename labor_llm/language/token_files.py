"""Tokenized careers on disk, memory-mapped: made once for the same careers, template, label and tokenizer."""

import hashlib
import logging
import shutil
import tempfile
from dataclasses import fields
from pathlib import Path

import numpy as np
import tokenizers
import transformers
from transformers import PreTrainedTokenizerBase

from labor_llm.careers import Careers
from labor_llm.language.tokens import CareerEncoder, EncodedCareers
from labor_llm.source_code import code_hash

logger = logging.getLogger(__name__)


def encode_once(encoder: CareerEncoder, careers: Careers, folder: Path | None) -> EncodedCareers:
    """The careers' tokens, read from below ``folder`` if they were written there before.

    The files hold individual records, in tokens: they stay where the data may be. Without a folder nothing is
    written.
    """
    if folder is None:
        return encoder.encode(careers)
    home = folder / _key(encoder, careers)
    if home.is_dir():
        logger.info("tokenized before: %s", home)
    else:
        _write(encoder.encode(careers), home)
    return EncodedCareers(
        **{field.name: np.load(home / f"{field.name}.npy", mmap_mode="r") for field in fields(EncodedCareers)}
    )


def _write(encoded: EncodedCareers, home: Path) -> None:
    """All files or none; if another process was faster, its files stay."""
    home.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=home.parent))
    try:
        for field in fields(EncodedCareers):
            np.save(partial / f"{field.name}.npy", getattr(encoded, field.name), allow_pickle=False)
        try:
            partial.rename(home)
        except OSError:
            if not home.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _content(tokenizer: PreTrainedTokenizerBase) -> str:
    """All that decides how a tokenizer cuts a text; one written in Python has its files for that."""
    if tokenizer.is_fast:
        return str(tokenizer.backend_tokenizer.to_str())
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        return "\n".join(f"{path.name}: {path.read_bytes()!r}" for path in files)


def _key(encoder: CareerEncoder, careers: Careers) -> str:
    """Changes with anything that decides about the tokens: data, wording, tokenizer, code."""
    parts = [
        careers.fingerprint,
        repr(encoder.template),
        repr(encoder.label),
        _content(encoder.tokenizer),
        repr(encoder.prefix),
        code_hash(CareerEncoder, type(encoder.template), type(encoder.label)),
        tokenizers.__version__,
        transformers.__version__,
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
