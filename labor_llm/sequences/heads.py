"""From logits to probabilities over the choice set, in one stage or in two: stay or move, then where to.

Two stages (CAREER, arXiv 2202.08370): with s the sigmoid of the last logit,

    P(next = previous) = s    P(next = j) = (1 - s) softmax over all occupations except the previous one

Nobody can stay at the first record, nor in an occupation outside the choice set: there the softmax over all
occupations is the whole probability. Rows always sum to one, and no special symbol takes a share of it.

Legend: N records, J occupations, K = J logits in one stage and J + 1 in two.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid

LIMIT = 10.0
"""Networks clamp their logits to [-10, 10], as the reference code of CAREER does for all of its models."""


def logit_count(choices: int, two_stage: bool) -> int:
    """Numbers that a model gives for a record, K."""
    return choices + two_stage


def choice_log_probs(logits_NK: Tensor, before_N: Tensor, choices: int) -> Tensor:
    """Log-probabilities in nats of all occupations, (N, J); ``before_N`` is numbered as in ``codes``.

    Logits are taken as they are.
    """
    if logits_NK.shape[1] == choices:
        return logits_NK.log_softmax(-1)
    rows = can_stay(before_N, choices).nonzero()[:, 0]
    before, stay = before_N[rows], logits_NK[rows, choices]
    moves_NJ = logits_NK[:, :choices].clone()
    moves_NJ[rows, before] = float("-inf")
    log_probs_NJ = moves_NJ.log_softmax(-1)
    log_probs_NJ += torch.zeros_like(logits_NK[:, 0]).index_copy_(0, rows, logsigmoid(-stay))[:, None]
    log_probs_NJ[rows, before] = logsigmoid(stay)
    return log_probs_NJ


def choice_nll(logits_NK: Tensor, before_N: Tensor, targets_N: Tensor, choices: int) -> Tensor:
    """Minus the log-probability of what was realised, summed, in nats; nothing for what is outside (-1).

    A network's logits, which are clamped here. In two stages the softmax over occupations is computed for those
    only who moved or who began.
    """
    known_N = targets_N >= 0
    two_stage = logits_NK.shape[1] > choices
    may_stay_N = can_stay(before_N, choices) & two_stage
    stayed_N = (before_N == targets_N) & may_stay_N
    chose = (known_N & ~stayed_N).nonzero()[:, 0]
    moves = logits_NK.index_select(0, chose)[:, :choices].clamp(-LIMIT, LIMIT)
    rows = may_stay_N[chose].nonzero()[:, 0]
    moves[rows, before_N[chose[rows]]] = float("-inf")
    nll = cross_entropy(moves, targets_N[chose], reduction="sum")
    if not two_stage:
        return nll
    staged = (known_N & may_stay_N).nonzero()[:, 0]
    stay = logits_NK[:, choices].index_select(0, staged).clamp(-LIMIT, LIMIT)
    return nll - logsigmoid(torch.where(stayed_N[staged], stay, -stay)).sum()


def can_stay(before_N: Tensor, choices: int) -> Tensor:
    """Whether the record before has an occupation of the choice set, and there is another one to move to."""
    return (before_N < choices) & (choices > 1)
