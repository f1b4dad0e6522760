"""A small Llama as llama.cpp would write it: one GGUF file with weights and tokenizer."""

import json
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def write_gguf(path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Weights in float32; the rows of queries and keys in llama.cpp's order."""
    import gguf

    config, weights = model.config, model.state_dict()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("a name of its own")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    _write_tokenizer(writer, tokenizer)
    for name, source in _tensors(config.num_hidden_layers):
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
        part = name.split(".")[-2]
        tensor = weights[source]
        writer.add_tensor(name, (_permuted(tensor, heads[part]) if part in heads else tensor).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _tensors(layers: int) -> list[tuple[str, str]]:
    """Names in the file and in transformers; without an output layer, which the embeddings are."""
    outer = [("token_embd.weight", "model.embed_tokens.weight"), ("output_norm.weight", "model.norm.weight")]
    inner = [
        (f"blk.{layer}.{name}.weight", f"model.layers.{layer}.{source}.weight")
        for layer in range(layers)
        for name, source in LAYER.items()
    ]
    return outer + inner


def _permuted(weight: Tensor, heads: int) -> Tensor:
    """Pairs that are turned together stand side by side."""
    return weight.view(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape).contiguous()


def _write_tokenizer(writer, tokenizer: PreTrainedTokenizerFast) -> None:
    bpe = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token == tokenizer.eos_token else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in bpe["model"]["merges"]])
    for add in (writer.add_eos_token_id, writer.add_bos_token_id, writer.add_unk_token_id):
        add(tokenizer.eos_token_id)
    writer.add_add_bos_token(False)
