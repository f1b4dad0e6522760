"""Checks of a user's own model before it is trusted: careers in one row, and trees, against the plain way.

Attention is replaced by that of ``labor_llm.language.attention``; a model that does not take it would give wrong
numbers without an error.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning.utilities import move_data_to_device
from torch import Tensor
from transformers import PreTrainedModel

from labor_llm.errors import RunError
from labor_llm.language.attention import ADVICE, PACKED, attending
from labor_llm.language.batches import Layout, collate
from labor_llm.language.loss import summed_nll
from labor_llm.language.scoring import PackedCareers
from labor_llm.language.title_scorer import TitleScorer
from labor_llm.language.tokens import EncodedCareers

TOLERANCE, ROUGH_TOLERANCE = 1e-3, 0.25
"""Nats by which the tree and the plain way may differ, in float32 and in bfloat16."""
ROUGH_SHARE = 0.01
"""In bfloat16 also a share of a very improbable title's log-probability."""
PACKING, ROUGH_PACKING = 1e-4, 1e-2
"""Share by which the loss of careers in one row may differ from that of each alone, in float32 and bfloat16."""


@torch.no_grad()
def check_packing(model: PreTrainedModel, encoded: EncodedCareers) -> None:
    """Compare the loss of two short careers in one row with that of each alone, by the model's own attention.

    A RunError if they differ: the model mixes careers that stand in one row, and would learn from strangers.
    """
    careers = np.argsort(encoded.lengths, kind="stable")[:2]
    training = model.training
    model.eval()
    plain = sum(_loss(model, encoded, careers[[place]], "padded") for place in range(len(careers)))
    with attending(model, PACKED):
        packed = _loss(model, encoded, careers, "packed")
    model.train(training)
    share = PACKING if model.dtype == torch.float32 else ROUGH_PACKING
    if not abs(packed - plain) <= share * max(1.0, abs(plain)):
        raise RunError(
            f"{type(model).__name__} gives careers in one row a loss of {packed:.4f} nats where it gives them "
            f"{plain:.4f} one by one: it does not keep them apart. Use trainer.layout=padded."
        )


def _loss(model: PreTrainedModel, encoded: EncodedCareers, careers: NDArray[np.int64], layout: Layout) -> float:
    batch = move_data_to_device(collate(encoded, careers, layout, "all"), model.device)
    return float(summed_nll(model, batch["inputs"], batch["labels"]))


def plain_log_prob(model: PreTrainedModel, ids_L: Tensor, prompt_end: int, title: Sequence[int]) -> Tensor:
    """The log-probability of one title after one prompt, in one forward pass over both: the usual, slow way."""
    title_ids = torch.tensor(title, device=ids_L.device)
    ids = torch.cat([ids_L[:prompt_end], title_ids])
    log_probs_LV = model(ids[None], use_cache=False).logits[0].float().log_softmax(-1)
    return log_probs_LV[prompt_end - 1 : -1].gather(-1, title_ids[:, None]).sum()


@torch.no_grad()
def check_scores(scorer: TitleScorer, batch: PackedCareers) -> None:
    """Compare some titles at the first, a middle and the last record of two careers with the plain way.

    Raises
    ------
    RunError
        If they differ, or are not numbers.
    """
    batch = batch.few()
    raw_QJ = TitleScorer(scorer.model, scorer.trie, scorer.max_tokens).score(batch).raw_QJ
    realised_Q = scorer.score_realised(batch).raw_QJ[:, 0]
    titles = scorer.trie.titles
    longest = max(range(len(titles)), key=lambda place: len(titles[place]))
    for record, career in enumerate(batch.careers_Q.tolist()):
        start, prompt_end = batch.career_starts[career], int(batch.prompt_ends_Q[record])
        ids_L, end = batch.ids_T[start:prompt_end], prompt_end - start
        for place in {longest, *range(0, len(titles), max(1, len(titles) // 4))}:
            _compare(scorer.model, raw_QJ[record, place], ids_L, end, titles[place])
        title = batch.ids_T[prompt_end : int(batch.title_ends_Q[record])].tolist()
        _compare(scorer.model, realised_Q[record], ids_L, end, title)


def _compare(model: PreTrainedModel, score: Tensor, ids_L: Tensor, end: int, title: Sequence[int]) -> None:
    """A RunError if a title's score is not that of the plain way, up to rounding."""
    in_float32 = model.dtype == torch.float32 and not torch.is_autocast_enabled(ids_L.device.type)
    ours, plain = float(score), float(plain_log_prob(model, ids_L, end, title))
    if not math.isfinite(plain):
        raise RunError(f"the model gives a title a log-probability of {plain}: its weights are broken.")
    if not abs(ours - plain) <= (TOLERANCE if in_float32 else max(ROUGH_TOLERANCE, ROUGH_SHARE * abs(plain))):
        raise RunError(
            f"scoring over the token tree gives {ours:.4f} nats for a title where the plain way gives "
            f"{plain:.4f}: {type(model).__name__} does not read its attention as transformers' models do. {ADVICE}"
        )
