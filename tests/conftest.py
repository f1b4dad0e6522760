"""Small models made with the real classes, and a panel small enough to check by hand."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import settings
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.trainers import BpeTrainer
from transformers import (
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from labor_llm.careers import Careers
from labor_llm.language.adapters import FullFineTuning
from labor_llm.language.backbones import ScratchBackbone
from labor_llm.language.finetune import TrainerSettings
from labor_llm.language.scoring import ExactScoring
from labor_llm.models.base import choice_set
from labor_llm.models.language import LanguageModel
from labor_llm.taxonomy import Taxonomy
from labor_llm.templates import ResumeTemplate, Titles

settings.register_profile("suite", deadline=None, max_examples=30)
settings.load_profile("suite")

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
ARCHITECTURES = {
    "gemma": lambda size: GemmaConfig(vocab_size=size, head_dim=8, **SMALL),
    "gemma3": lambda size: Gemma3TextConfig(vocab_size=size, head_dim=8, query_pre_attn_scalar=8, **SMALL),
    "gpt2": lambda size: GPT2Config(vocab_size=size, n_embd=32, n_layer=2, n_head=4, n_positions=512),
    "llama": lambda size: LlamaConfig(vocab_size=size, **SMALL),
    "qwen2": lambda size: Qwen2Config(vocab_size=size, **SMALL),
    "qwen3": lambda size: Qwen3Config(vocab_size=size, head_dim=8, **SMALL),
    "mistral": lambda size: MistralConfig(vocab_size=size, sliding_window=None, **SMALL),
    "neox": lambda size: GPTNeoXConfig(
        vocab_size=size, **{key: value for key, value in SMALL.items() if key != "num_key_value_heads"}
    ),
}


def small_model(
    architecture: str, vocabulary: int = 300, attention: str = "sdpa", spread: float = 0.3
) -> PreTrainedModel:
    """A model of the real class with random weights, wide enough that its scores differ."""
    torch.manual_seed(0)
    config = ARCHITECTURES[architecture](vocabulary)
    config.initializer_range = spread
    model = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]._from_config(config, attn_implementation=attention)
    return model.eval()


@pytest.fixture(params=sorted(ARCHITECTURES))
def architecture(request) -> str:
    """Every architecture that the language engine is tested on."""
    return request.param


def panel(taxonomy: str = "occ1990dd", **columns) -> Careers:
    """A Careers table from its columns."""
    table = pl.DataFrame({"survey": ["NLSY79"] * len(columns["person_id"]), **columns})
    return Careers.validated(table, dataset="test", taxonomy=Taxonomy.packaged(taxonomy), source="made for a test")


def chain_panel(persons: int = 60, years: int = 6, seed: int = 0) -> Careers:
    """Careers of a Markov chain over five occupations with long titles that begin alike, and covariates."""
    rng = np.random.default_rng(seed)
    codes = np.array(["095", "243", "274", "313", "in_school"])
    stay = rng.random((persons, years)) < 0.6
    drawn = rng.integers(0, len(codes), (persons, years))
    for year in range(1, years):
        drawn[:, year] = np.where(stay[:, year], drawn[:, year - 1], drawn[:, year])
    return panel(
        person_id=[f"p{person}" for person in range(persons) for _ in range(years)],
        year=[1980 + year for _ in range(persons) for year in range(years)],
        occupation=codes[drawn].ravel().tolist(),
        education=[str(level) for level in rng.choice(["high school", "college"], persons).repeat(years)],
        gender=[str(value) for value in rng.choice(["female", "male"], persons).repeat(years)],
        weight=rng.uniform(0.5, 2, persons).repeat(years).tolist(),
    )


CAREERS = chain_panel(persons=60)
TRAIN, VALID, TEST = (
    CAREERS.select_persons([f"p{person}" for person in part]) for part in (range(40), range(40, 50), range(50, 60))
)
CHOICES = choice_set(TRAIN)


def language(max_epochs: int = 3) -> LanguageModel:
    """A language model from scratch that is fitted in a second."""
    return LanguageModel(
        name="tiny",
        backbone=ScratchBackbone(
            name="tiny", layers=2, width=32, heads=2, feed_forward=64, vocabulary=400, learning_rate=3e-3
        ),
        adapter=FullFineTuning(learning_rate=3e-3),
        template=ResumeTemplate(),
        label=Titles(),
        scoring=ExactScoring(),
        trainer=TrainerSettings(
            learning_rate=3e-3, max_epochs=max_epochs, batch_size=8, precision="32-true", accelerator="cpu"
        ),
        seed=0,
    )


SPLIT_WORDS = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "llama": r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen3": r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
"""How each family cuts a text into words before BPE; GPT-2 keeps years whole, Qwen cuts every digit."""


def bpe_tokenizer(architecture: str, texts) -> PreTrainedTokenizerFast:
    """A byte-level BPE with the family's way of cutting words, trained on the texts."""
    bpe = Tokenizer(BPE())
    words = Split(Regex(SPLIT_WORDS[architecture]), behavior="isolated")
    bpe.pre_tokenizer = Sequence([words, ByteLevel(add_prefix_space=False, use_regex=False)])
    bpe.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=600,
        special_tokens=["<|end|>"],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|end|>")


def save_model(architecture: str, folder: Path, **sizes: int) -> Path:
    """A small model with its tokenizer, saved as one downloads them."""
    tokenizer = bpe_tokenizer(architecture, ResumeTemplate().texts(chain_panel(), Titles()))
    tokenizer.save_pretrained(folder)
    model = small_model(architecture, len(tokenizer))
    if sizes:
        config = type(model.config)(**model.config.to_dict() | sizes | {"head_dim": None})
        model = type(model)(config)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session", params=sorted(SPLIT_WORDS))
def model_folder(request, tmp_path_factory) -> Path:
    """A small GPT-2, Llama or Qwen on disk."""
    return save_model(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session")
def gpt2_folder(tmp_path_factory) -> Path:
    """A small GPT-2 on disk."""
    return save_model("gpt2", tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory) -> Path:
    """A small Llama on disk: without dropout."""
    return save_model("llama", tmp_path_factory.mktemp("llama"))
