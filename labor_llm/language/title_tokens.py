"""One vocabulary entry per title (label=token), whose embeddings start from the mean of the title's own tokens."""

from collections.abc import Mapping

import torch
from tokenizers import AddedToken
from transformers import PreTrainedModel

from labor_llm.language.tokens import CareerEncoder, Ids


def add_title_tokens(encoder: CareerEncoder) -> dict[int, Ids]:
    """Make each title, its space and terminator included, one token; the ids that it had before, by its new id."""
    texts = encoder.template.titles(encoder.label, encoder.taxonomy)
    tokens = [AddedToken(text, normalized=False, special=False) for text in texts.values()]
    encoder.tokenizer.add_tokens(tokens)
    ids = encoder.tokenizer.convert_tokens_to_ids(list(texts.values()))
    pieces = {new: encoder.titles[code] for new, code in zip(ids, texts, strict=True)}
    return {new: before for new, before in pieces.items() if before != (new,)}  # or it had them already


@torch.no_grad()
def start_from_means(model: PreTrainedModel, pieces: Mapping[int, Ids]) -> None:
    """Set the input and output embeddings of new tokens to the means over the tokens that they stand for."""
    layers = {id(layer.weight): layer for layer in (model.get_input_embeddings(), model.get_output_embeddings())}
    for layer in layers.values():
        for token, ids in pieces.items():
            layer.weight[token] = layer.weight[list(ids)].float().mean(0).to(layer.weight.dtype)
