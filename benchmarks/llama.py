"""Llama 3 and SmolLM2 without their files: the published configurations, random weights, a tokenizer alike."""

from collections.abc import Iterable
from typing import Any

import torch
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Split
from tokenizers.pre_tokenizers import Sequence as PreTokenizers
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

BEGIN, PAD = "<|begin_of_text|>", "<|pad|>"
LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
"""How Llama 3 cuts a text into words before BPE (tokenizer.json of meta-llama/Llama-3.2-1B)."""
ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
COMMON = {
    "vocab_size": 128256,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.02,
    "max_position_embeddings": 131072,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 0,
    "eos_token_id": None,
    "pad_token_id": 1,
}
"""The special tokens are those of the tokenizer made here, not of the models."""
LLAMA_3_2_1B = {
    **COMMON,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "tie_word_embeddings": True,
    "rope_parameters": {**ROPE, "factor": 32.0},
}
"""config.json of https://huggingface.co/meta-llama/Llama-3.2-1B: 1.24 billion weights."""
LLAMA_3_1_8B = {
    **COMMON,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": False,
    "rope_parameters": {**ROPE, "factor": 8.0},
}
"""config.json of https://huggingface.co/meta-llama/Llama-3.1-8B: 8.03 billion weights."""
SMOLLM2_135M = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "initializer_range": 1 / 24,
    "bos_token_id": 0,
    "eos_token_id": None,
    "pad_token_id": 1,
}
"""config.json of https://huggingface.co/HuggingFaceTB/SmolLM2-135M, with the special tokens that are made here."""
TOY = {
    **COMMON,
    "vocab_size": 1024,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "tie_word_embeddings": True,
    "rope_parameters": {**ROPE, "factor": 32.0},
}


def llama3_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE that cuts words as Llama 3 does, trained on the texts: its own is gated."""
    bpe = Tokenizer(BPE())
    words = Split(Regex(LLAMA3_WORDS), behavior="isolated")
    bpe.pre_tokenizer = PreTokenizers([words, ByteLevel(add_prefix_space=False, use_regex=False)])
    bpe.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[BEGIN, PAD],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    begin = bpe.token_to_id(BEGIN)
    bpe.post_processor = TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[(BEGIN, begin)])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=BEGIN, pad_token=PAD)


def random_model(config: dict[str, Any], dtype: torch.dtype, device: str) -> PreTrainedModel:
    """Random weights, drawn on the device itself."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return LlamaForCausalLM(LlamaConfig(**config))
    finally:
        torch.set_default_dtype(before)
