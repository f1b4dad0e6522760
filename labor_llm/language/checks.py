"""Checks of a user's own model before it is trusted: careers in one row, and trees, against the plain way.

Attention is replaced by that of ``labor_llm.language.attention``; a model that does not take it would give wrong
numbers without an error. Both ways are compared in float32, token by token or title by title, where they agree
within rounding: by the model itself if its weights are float32, else by its probe (``labor_llm.language.probes``).
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning.utilities import move_data_to_device
from torch import Tensor
from transformers import PreTrainedModel

from labor_llm.errors import RunError
from labor_llm.language.attention import ADVICE, PACKED, attending
from labor_llm.language.batches import Layout, collate
from labor_llm.language.loss import IGNORED
from labor_llm.language.probes import in_float32
from labor_llm.language.scoring import PackedCareers
from labor_llm.language.title_scorer import TitleScorer
from labor_llm.language.tokens import EncodedCareers
from labor_llm.language.trie import TitleTrie

logger = logging.getLogger(__name__)

TOLERANCE = 1e-4
"""Share of the range of a token's logits by which its log-probability may differ between two ways in float32."""
OTHERS = 4
"""Titles that are compared besides the longest."""
MUCH_ROUNDING = 0.25
"""Nats a token that rounding takes from or adds to a title, from which on a user should know."""


@torch.no_grad()
def check_packing(model: PreTrainedModel, encoded: EncodedCareers) -> None:
    """Compare the tokens of two short careers in one row with those of each alone, by the model's own attention.

    A RunError if they differ: the model mixes careers that stand in one row, and would learn from strangers.
    """
    careers = np.argsort(encoded.lengths, kind="stable")[:2]
    with in_float32(model) as exact:
        alone = [_token_log_probs(exact, encoded, careers[[place]], "padded") for place in range(len(careers))]
        plain_T, allowed_T = (torch.cat(parts) for parts in zip(*alone, strict=True))
        with attending(exact, PACKED):
            packed_T, _ = _token_log_probs(exact, encoded, careers, "packed")
    if not bool(((packed_T - plain_T).abs() <= allowed_T).all()):
        raise RunError(
            f"{type(model).__name__} gives careers in one row a loss of {-float(packed_T.sum()):.4f} nats where "
            f"it gives them {-float(plain_T.sum()):.4f} one by one{_by_probe(model, exact)}: it does not keep "
            "them apart. Use trainer.layout=padded."
        )


def _token_log_probs(
    model: PreTrainedModel, encoded: EncodedCareers, careers: NDArray[np.int64], layout: Layout
) -> tuple[Tensor, Tensor]:
    """Of all tokens but the careers' first: log-probabilities in nats, and by how much they may differ, (T,)."""
    batch = move_data_to_device(collate(encoded, careers, layout, "all"), model.device)
    logits_TV = model(**batch["inputs"], use_cache=False).logits[0, :-1]
    targets_T = batch["labels"][0, 1:]
    labelled = targets_T != IGNORED
    return _read_off(logits_TV[labelled], targets_T[labelled])


def _read_off(logits_TV: Tensor, targets_T: Tensor) -> tuple[Tensor, Tensor]:
    """The targets' log-probabilities, and by how much rounding may change them in float32."""
    log_probs_TV = logits_TV.float().log_softmax(-1)
    range_T = log_probs_TV.amax(-1) - log_probs_TV.amin(-1)
    return log_probs_TV.gather(-1, targets_T[:, None])[:, 0], TOLERANCE * range_T.clamp(min=1.0)


def _by_probe(model: PreTrainedModel, exact: PreTrainedModel) -> str:
    """What an error adds if the model itself computes less exactly."""
    return "" if exact is model else " (in float32 with random weights, so this is no rounding)"


def plain_log_prob(model: PreTrainedModel, ids_L: Tensor, prompt_end: int, title: Sequence[int]) -> Tensor:
    """The log-probability of one title after one prompt, in one forward pass over both: the usual, slow way."""
    return _plain(model, ids_L[:prompt_end], title)[0].sum()


def _plain(model: PreTrainedModel, prompt_L: Tensor, title: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The log-probability of every token of a title, and by how much it may differ."""
    title_ids = torch.tensor(title, device=prompt_L.device)
    logits = model(torch.cat([prompt_L, title_ids])[None], use_cache=False).logits[0]
    return _read_off(logits[len(prompt_L) - 1 : -1], title_ids)


@dataclass(frozen=True)
class _Scored:
    """One title after one prompt, in two ways."""

    ours: float
    """By the token tree or by reading careers in one row, in nats."""
    plain: float
    allowed: float
    """By how much the two may differ in float32."""
    tokens: int

    @property
    def rounding(self) -> float:
        """The difference in nats a token."""
        return abs(self.ours - self.plain) / self.tokens


@torch.no_grad()
def check_scores(scorer: TitleScorer, batch: PackedCareers) -> None:
    """Compare some titles at the first, a middle and the last record of two careers with the plain way.

    Raises
    ------
    RunError
        If they differ in float32 by more than rounding, or are not numbers.
    """
    batch, model = batch.few(), scorer.model
    with in_float32(model) as exact:
        for scored in _both_ways(exact, _few_titles(scorer.trie, OTHERS), scorer.max_tokens, batch):
            if exact is model:
                _check_number(scored)
            if not abs(scored.ours - scored.plain) <= scored.allowed:
                raise RunError(
                    f"scoring over the token tree gives {scored.ours:.4f} nats for a title where the plain way "
                    f"gives {scored.plain:.4f}{_by_probe(model, exact)}: {type(exact).__name__} does not read its "
                    f"attention as transformers' models do. {ADVICE}"
                )
    if exact is not model:
        longest = _few_titles(scorer.trie, 0)
        _note_rounding(model, list(_both_ways(model, longest, scorer.max_tokens, batch)))


def _few_titles(trie: TitleTrie, others: int) -> TitleTrie:
    """The longest title and about so many others."""
    longest = max(range(len(trie.titles)), key=lambda place: len(trie.titles[place]))
    places = {longest, *(range(0, len(trie.titles), max(1, len(trie.titles) // others)) if others else ())}
    return TitleTrie.of([trie.titles[place] for place in sorted(places)])


def _both_ways(
    model: PreTrainedModel, trie: TitleTrie, max_tokens: int, batch: PackedCareers
) -> Iterator[_Scored]:
    """The titles of the trie and the realised one after every record's prompt."""
    scorer = TitleScorer(model, trie, max_tokens)
    raw_QJ, realised_Q = scorer.score(batch).raw_QJ, scorer.score_realised(batch).raw_QJ[:, 0]
    for record, career in enumerate(batch.careers_Q.tolist()):
        end = int(batch.prompt_ends_Q[record])
        prompt_L = batch.ids_T[batch.career_starts[career] : end]
        realised = batch.ids_T[end : int(batch.title_ends_Q[record])].tolist()
        for title, score in [*zip(trie.titles, raw_QJ[record], strict=True), (realised, realised_Q[record])]:
            plain, allowed = (float(part.sum()) for part in _plain(model, prompt_L, title))
            yield _Scored(float(score), plain, allowed, len(title))


def _check_number(scored: _Scored) -> None:
    """A RunError if a log-probability is not a number."""
    if not math.isfinite(scored.plain):
        raise RunError(f"the model gives a title a log-probability of {scored.plain}: its weights are broken.")


def _note_rounding(model: PreTrainedModel, titles: list[_Scored]) -> None:
    """Log how much rounding moves the titles of a model whose attention was found right in float32."""
    for scored in titles:
        _check_number(scored)
    worst = max(titles, key=lambda scored: scored.rounding)
    logger.log(
        logging.WARNING if worst.rounding > MUCH_ROUNDING else logging.DEBUG,
        "rounding moves the log-probability of a title by up to %.2f nats a token (%.2f or %.2f nats in all by "
        "two ways that agree in float32): %s computes in bfloat16. trainer.precision=32-true avoids it",
        worst.rounding,
        worst.ours,
        worst.plain,
        type(model).__name__,
    )
