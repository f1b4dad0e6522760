"""Rows of the embeddings for tokens that a tokenizer has and the weights have not."""

import logging

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from labor_llm.errors import ConfigError

logger = logging.getLogger(__name__)


def rows_of(model: PreTrainedModel) -> int:
    """For how many tokens the weights have embeddings."""
    return int(model.get_input_embeddings().weight.shape[0])


def check_rows(tokenizer: PreTrainedTokenizerBase, rows: int, path: str) -> None:
    """A ConfigError if the checkpoint's tokenizer writes tokens without embeddings; a note if it only could.

    Tokens that somebody added, such as ``[PAD]``, occur in no career. They get no rows: a softmax over more tokens
    would give the others other probabilities than the checkpoint does.
    """
    surplus = {token: id_ for token, id_ in tokenizer.get_vocab().items() if id_ >= rows}
    added = tokenizer.get_added_vocab()
    written = {*tokenizer("").input_ids, *(id_ for token, id_ in surplus.items() if token not in added)}
    if any(id_ >= rows for id_ in written):
        raise ConfigError(
            f"backbone.path: the tokenizer of {path!r} has {len(tokenizer)} tokens, and its weights have "
            f"embeddings of {rows}: they belong to different models."
        )
    logger.info(
        "%s has no embeddings for %d tokens that its tokenizer was given (%s): careers do not contain them",
        path,
        len(surplus),
        ", ".join(sorted(surplus)[:4]),
    )


@torch.no_grad()
def add_rows(model: PreTrainedModel, tokens: int) -> None:
    """Give the model embeddings for so many tokens; a new row is the mean of the others, so nothing is random."""
    rows = rows_of(model)
    model.resize_token_embeddings(tokens, mean_resizing=False)
    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    for layer in {id(layer.weight): layer for layer in layers if layer is not None}.values():
        layer.weight[rows:] = layer.weight[:rows].float().mean(0).to(layer.weight.dtype)
        if getattr(layer, "bias", None) is not None:
            layer.bias[rows:] = layer.bias[:rows].float().mean().to(layer.bias.dtype)
