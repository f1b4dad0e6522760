"""How others score a closed set of titles after a prompt: the same model, token ids and float32 as ours.

A rival is a function from prompts (all tokens of a career before a record's title) and titles to log-probabilities
before normalisation. ``batch_size_trials`` says which batch size is fastest on the machine.

Legend: Q prompts, B titles of a batch, L tokens of a row, J titles, V tokens of the vocabulary.
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.machine import seconds

Ids = Sequence[int]


Rival = Callable[[Sequence[Ids], Sequence[Ids]], Tensor]
"""From prompts and titles to log-probabilities in nats, (Q, J), float32, in the order given."""


def lm_eval_rival(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int) -> Rival:
    """lm-evaluation-harness's own ``HFLM`` on the model object, as its tasks with multiple choice call it.

    All prompts are handed over at once, so that it can sort and batch them as it likes. It gets token ids rather
    than text, so that it cuts titles from prompts where we do; its own tokenization is not timed.
    """
    from lm_eval.models.huggingface import HFLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of a model that is passed as an object
    harness: Any = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)

    @torch.inference_mode()
    def score(prompts: Sequence[Ids], titles: Sequence[Ids]) -> Tensor:
        requests = [
            ((str(number), str(place)), list(prompt), list(title))
            for number, prompt in enumerate(prompts)
            for place, title in enumerate(titles)
        ]
        answers = harness._loglikelihood_tokens(requests, disable_tqdm=True)
        return torch.tensor([log_prob for log_prob, _ in answers]).view(len(prompts), len(titles))

    return score


def naive_rival(model: PreTrainedModel, batch_size: int) -> Rival:
    """Prompt and title in one padded row, titles of similar length together, a log-softmax over all of it."""

    @torch.inference_mode()
    def score(prompts: Sequence[Ids], titles: Sequence[Ids]) -> Tensor:
        scores = torch.empty(len(prompts), len(titles))
        for row, prompt in enumerate(prompts):
            for places in _batches(titles, batch_size):
                rows = [[*prompt, *titles[place]] for place in places]
                scores[row, places] = _continuation_log_probs(model, rows, len(prompt)).cpu()
        return scores

    return score


def _continuation_log_probs(model: PreTrainedModel, rows: list[list[int]], start: int) -> Tensor:
    """Sums of the log-probabilities of the tokens from ``start`` on, (B,)."""
    ids_BL, real_BL = _padded(rows, model.device)
    # padding stands on the right: causal attention needs no mask, and is faster without
    log_probs_BLV = model(ids_BL, use_cache=False).logits.log_softmax(-1)
    taken_BL = log_probs_BLV[:, :-1].gather(-1, ids_BL[:, 1:, None])[..., 0]
    return taken_BL[:, start - 1 :].masked_fill(~real_BL[:, start:], 0.0).sum(1)


def prefix_cache_rival(model: PreTrainedModel, batch_size: int) -> Rival:
    """The prompt is read once per record; its keys and values are copied for every batch of padded titles."""

    @torch.inference_mode()
    def score(prompts: Sequence[Ids], titles: Sequence[Ids]) -> Tensor:
        scores = torch.empty(len(prompts), len(titles))
        for row, prompt in enumerate(prompts):
            past = DynamicCache()
            ids_BL = torch.tensor([list(prompt)], device=model.device)
            first_V = model(ids_BL, past_key_values=past, use_cache=True, logits_to_keep=1).logits[0, -1]
            first_V = first_V.log_softmax(-1)
            for places in _batches(titles, batch_size):
                scores[row, places] = _after_prompt(model, past, first_V, [titles[p] for p in places]).cpu()
        return scores

    return score


def _after_prompt(model: PreTrainedModel, past: DynamicCache, first_V: Tensor, titles: list[Ids]) -> Tensor:
    """Log-probabilities of titles after the prompt in ``past``, which is left as it is, (B,)."""
    ids_BL, real_BL = _padded(titles, model.device)
    scores_B = first_V[ids_BL[:, 0]]
    if ids_BL.shape[1] == 1:
        return scores_B
    copied = DynamicCache()
    for number, layer in enumerate(past.layers):
        shape = (len(titles), *layer.keys.shape[1:])
        copied.update(layer.keys.expand(shape), layer.values.expand(shape), number)
    logits_BLV = model(ids_BL[:, :-1], past_key_values=copied, use_cache=True).logits
    taken_BL = logits_BLV.log_softmax(-1).gather(-1, ids_BL[:, 1:, None])[..., 0]
    return scores_B + taken_BL.masked_fill(~real_BL[:, 1:], 0.0).sum(1)


def _batches(titles: Sequence[Ids], batch_size: int) -> list[list[int]]:
    """Places of the titles, similar lengths together, so that little is padding."""
    order = sorted(range(len(titles)), key=lambda place: len(titles[place]))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def _padded(rows: Sequence[Ids], device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows filled up on the right with zeros, and which tokens are real, (B, L)."""
    lengths = torch.tensor([len(row) for row in rows])
    longest = int(lengths.max())
    ids_BL = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
    return ids_BL.to(device), (torch.arange(longest) < lengths[:, None]).to(device)


def batch_size_trials(
    make: Callable[[int], Rival], sizes: Sequence[int], prompts: Sequence[Ids], titles: Sequence[Ids]
) -> dict[int, float]:
    """Seconds of a rival with each batch size for which the memory suffices: the better of two trials."""
    trials: dict[int, float] = {}
    for size in sizes:
        rival = make(size)
        try:
            rival(prompts[:1], titles[:size])
            trials[size] = min(seconds(partial(rival, prompts, titles)) for _ in range(2))
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
    return trials
