"""Checks of a user's own model before it is trusted: our ways of reading it against the plain way.

Attention is replaced by that of ``labor_llm.language.attention``; a model that does not take it would give wrong
numbers without an error. Both ways are compared in float32, token by token, where they agree within rounding: on
short careers by the model itself if its weights are float32, and on long ones by its probe
(``labor_llm.language.probes``). The plain way is a forward pass over one text with the model's own attention.
"""

import inspect
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from pytorch_lightning.utilities import move_data_to_device
from torch import Tensor
from transformers import PreTrainedModel

from labor_llm.errors import RunError
from labor_llm.language.attention import ADVICE, PACKED, architecture, attempting, attending
from labor_llm.language.batches import Layout, ScoringBatches, collate
from labor_llm.language.loss import IGNORED, summed_nll
from labor_llm.language.probes import exactly, probe_of, stands_in_float32
from labor_llm.language.title_scorer import TitleScorer
from labor_llm.language.tokens import EncodedCareers
from labor_llm.language.trials import Trial
from labor_llm.language.trie import NONE, TitleTrie

logger = logging.getLogger(__name__)

TOLERANCE = 1e-4
"""Share of the range of a token's logits by which its log-probability may differ between two ways in float32."""
PLACES = 256
"""Tokens of a career that are compared at most: their logits must fit into memory."""
OTHERS = 3
"""Titles that are compared besides the longest and the realized one."""
DEPTHS = 6
"""Places within titles at which they are compared."""
MUCH_ROUNDING = 0.25
"""Nats a token that rounding takes from or adds to a title, from which on a user should know."""
LARGE = 2**28
"""Weights from which on a model on a CPU takes too long to be tried itself: its probe is."""


def _tried(model: PreTrainedModel, trial: Trial) -> Iterator[tuple[PreTrainedModel, EncodedCareers]]:
    """What is tried in float32, and on which careers."""
    weights = sum(value.numel() for value in model.parameters())
    if stands_in_float32(model) and (weights < LARGE or model.device.type != "cpu"):
        yield model, trial.short
    with attempting(model, "be made from its configuration"):
        probe = probe_of(model)
    yield probe, trial.careers


def _by_probe(model: PreTrainedModel, exact: PreTrainedModel) -> str:
    """What an error adds if the model itself computes less exactly."""
    return "" if exact is model else " (in float32 with random weights, so this is no rounding)"


def check_packing(model: PreTrainedModel, encoded: EncodedCareers) -> None:
    """``check_reading`` for some of these careers in one row."""
    check_reading(model, Trial.of(encoded, room=0), "packed")


@torch.no_grad()
def check_reading(model: PreTrainedModel, trial: Trial, layout: Layout) -> None:
    """Compare a batch of careers, token by token, and its loss with each career alone, by its own attention.

    A RunError if they differ: the model mixes careers, and would learn from strangers.
    """
    with exactly(model):
        for exact, careers in _tried(model, trial):
            _check_reading(model, exact, careers, layout)


def _check_reading(
    model: PreTrainedModel, exact: PreTrainedModel, careers: EncodedCareers, layout: Layout
) -> None:
    batch = move_data_to_device(collate(careers, np.arange(len(careers)), layout, "all"), model.device)
    labels_BL = _few_places(batch["labels"], careers)
    plain_T, allowed_T = _alone(exact, careers, labels_BL, layout)
    with (
        attempting(model, f"read careers as trainer.layout={layout} lays them out"),
        attending(exact, PACKED) if layout == "packed" else nullcontext(),
    ):
        ours_T = _read_off(exact, batch["inputs"], labels_BL)[0]
        loss = summed_nll(exact, batch["inputs"], labels_BL)
    if exact is model and not bool(plain_T.isfinite().all()):
        raise _broken(float(plain_T[~plain_T.isfinite()][0]))
    excess_T = (ours_T - plain_T).abs() - allowed_T
    if not bool((excess_T <= 0).all()):
        worst = int(excess_T.nan_to_num(math.inf).argmax())
        raise RunError(
            f"{architecture(model)} gives a token {ours_T[worst]:.4f} nats in a career beside others and "
            f"{plain_T[worst]:.4f} in the same career alone{_by_probe(model, exact)}: it does not keep careers "
            "apart, or it reads a short text otherwise as soon as a long one is in the batch (here of up to "
            f"{careers.lengths.max()} tokens). {ADVICE}"
        )
    if not bool((loss + ours_T.sum()).abs() <= allowed_T.sum()):
        raise RunError(
            f"the training loss of {architecture(model)} is {loss / len(ours_T):.4f} nats a token where its "
            f"logits give {-ours_T.mean():.4f}{_by_probe(model, exact)}. {ADVICE}"
        )


def _few_places(labels_BL: Tensor, careers: EncodedCareers) -> Tensor:
    """The labels with no more than so many tokens of each career left."""
    every = math.ceil(int(careers.lengths.max()) / PLACES)
    kept_L = torch.arange(labels_BL.shape[1], device=labels_BL.device) % every == every - 1
    return labels_BL.masked_fill(~kept_L, IGNORED)


def _alone(
    model: PreTrainedModel, careers: EncodedCareers, labels_BL: Tensor, layout: Layout
) -> tuple[Tensor, Tensor]:
    """Of the labelled tokens, each career read by itself: log-probabilities, and by how much they may differ."""
    parts = []
    with attempting(model, "read a text"):
        for place, (start, end) in enumerate(pairwise(careers.career_starts.tolist())):
            ids = torch.from_numpy(careers.ids_T[start:end].astype(np.int64)).to(model.device)
            own = labels_BL[:, start:end] if layout == "packed" else labels_BL[place, None, : end - start]
            parts.append(_read_off(model, {"input_ids": ids[None]}, own))
    plain_T, allowed_T = (torch.cat(part) for part in zip(*parts, strict=True))
    return plain_T, allowed_T


def _read_off(model: PreTrainedModel, inputs: dict[str, Any], labels_BL: Tensor) -> tuple[Tensor, Tensor]:
    """The labelled tokens' log-probabilities, and by how much rounding may change them in float32, (T,)."""
    labelled = labels_BL[:, 1:] != IGNORED
    places = labelled.any(0).nonzero()[:, 0]
    logits_TV = _logits(model, inputs, places)[labelled[:, places]]
    targets_T = labels_BL[:, 1:][labelled]
    log_probs_TV = logits_TV.float().log_softmax(-1)
    range_T = log_probs_TV.amax(-1) - log_probs_TV.amin(-1)
    return log_probs_TV.gather(-1, targets_T[:, None])[:, 0], TOLERANCE * range_T.clamp(min=1.0)


def _logits(model: PreTrainedModel, inputs: dict[str, Any], places: Tensor) -> Tensor:
    """The logits after the tokens at the given places of each row."""
    bare = getattr(model, "get_base_model", lambda: model)()
    if "logits_to_keep" in inspect.signature(bare.forward).parameters:
        return model(**inputs, use_cache=False, logits_to_keep=places).logits
    return model(**inputs, use_cache=False).logits[:, places]


def plain_log_prob(model: PreTrainedModel, ids_L: Tensor, prompt_end: int, title: Sequence[int]) -> Tensor:
    """The log-probability of one title after one prompt, in one forward pass over both: the usual, slow way."""
    return _plain(model, ids_L[:prompt_end], title)[0].sum()


def _plain(model: PreTrainedModel, prompt_L: Tensor, title: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The log-probability of every token of a title, and by how much it may differ."""
    ids_L = torch.cat([prompt_L, torch.tensor(title, device=prompt_L.device)])
    labels_L = ids_L.clone()
    labels_L[: len(prompt_L)] = IGNORED
    return _read_off(model, {"input_ids": ids_L[None]}, labels_L[None])


@dataclass(frozen=True)
class _Scored:
    """Some tokens of one title after one prompt, in two ways."""

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
def check_scores(model: PreTrainedModel, trie: TitleTrie | None, max_tokens: int, trial: Trial) -> None:
    """Compare some titles at the first and the last record of careers with the plain way, piece by piece.

    Without a trie only the titles that stand in the careers are compared.

    Raises
    ------
    RunError
        If they differ in float32 by more than rounding, or are not numbers.
    """
    titles = _few_titles(trie) if trie else []
    with exactly(model):
        for exact, careers in _tried(model, trial):
            for scored in _both_ways(exact, titles, max_tokens, careers):
                if exact is model:
                    _check_number(scored)
                if not abs(scored.ours - scored.plain) <= scored.allowed:
                    raise RunError(
                        f"scoring over the token tree gives {scored.ours:.4f} nats for {scored.tokens} tokens of "
                        f"a title where the plain way gives {scored.plain:.4f}{_by_probe(model, exact)}: "
                        f"{architecture(model)} does not read its attention as transformers' models do. {ADVICE}"
                    )
        if not stands_in_float32(model):
            _note_rounding(model, list(_both_ways(model, titles[-1:], max_tokens, trial.short, depths=1)))


def _few_titles(trie: TitleTrie) -> list[tuple[int, ...]]:
    """About so many titles, the longest last."""
    *rest, longest = sorted(trie.titles, key=len)
    return [*rest[:: max(1, len(rest) // OTHERS)], longest]


def _both_ways(
    model: PreTrainedModel,
    titles: Sequence[tuple[int, ...]],
    max_tokens: int,
    careers: EncodedCareers,
    depths: int = DEPTHS,
) -> Iterator[_Scored]:
    """Pieces of the titles, and the realized title, after every record's prompt."""
    batches = ScoringBatches(careers, np.full(len(careers.prompt_ends), NONE), len(careers.ids_T))
    batch = batches[0]["careers"].to(model.device)
    longest = max(map(len, titles), default=0)
    ends = sorted({round(end) for end in np.linspace(longest, 1, depths) if titles})
    with attempting(model, "score titles over a token tree"):
        realised_Q = TitleScorer(model, TitleTrie.of([(0,)]), max_tokens).score_realised(batch).raw_QJ[:, 0]
        cut = [TitleTrie.of(sorted({title[:end] for title in titles})) for end in ends]
        raw = [TitleScorer(model, trie, max_tokens).score(batch).raw_QJ for trie in cut]
    for record, career in enumerate(batch.careers_Q.tolist()):
        end, stop = int(batch.prompt_ends_Q[record]), int(batch.title_ends_Q[record])
        prompt_L = batch.ids_T[batch.career_starts[career] : end]
        realised = batch.ids_T[end:stop].tolist()
        plain_L, allowed_L = _plain(model, prompt_L, realised)
        yield _Scored(float(realised_Q[record]), float(plain_L.sum()), float(allowed_L.sum()), len(realised))
        for title in titles:
            plain_L, allowed_L = _plain(model, prompt_L, title)
            ours, start = 0.0, 0
            for trie, scores_QJ, until in zip(cut, raw, ends, strict=True):
                if start < len(title):
                    own = float(scores_QJ[record, trie.titles.index(title[:until])])
                    piece = slice(start, until)
                    yield _Scored(
                        own - ours, float(plain_L[piece].sum()), float(allowed_L[piece].sum()), len(plain_L[piece])
                    )
                    ours, start = own, until


def _check_number(scored: _Scored) -> None:
    """A RunError if a log-probability is not a number."""
    if not math.isfinite(scored.plain):
        raise _broken(scored.plain)


def _broken(log_prob: float) -> RunError:
    return RunError(f"the model gives a token a log-probability of {log_prob}: its weights are broken.")


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
