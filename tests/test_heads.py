"""The probabilities of one stage and of two, beside a loop that spells the definition out."""

import numpy as np
import pytest
import torch

from labor_llm.sequences.heads import LIMIT, choice_log_probs, choice_nll

J = 4
BEFORE = torch.tensor([0, 1, 3, J, J + 1, 2])  # J: the beginning; J + 1: outside the choice set
TARGETS = torch.tensor([0, 2, 3, 1, 0, -1])


def spelled_out(logits: np.ndarray, before: int) -> np.ndarray:
    moves, stay = np.exp(logits[:J]), 1 / (1 + np.exp(-logits[J]))
    if before >= J:
        return moves / moves.sum()
    moves[before] = 0
    shares = (1 - stay) * moves / moves.sum()
    shares[before] = stay
    return shares


def test_two_stages_are_as_defined():
    logits = torch.randn(len(BEFORE), J + 1, generator=torch.Generator().manual_seed(0)).double()
    expected = [spelled_out(row.numpy(), int(before)) for row, before in zip(logits, BEFORE, strict=True)]
    np.testing.assert_allclose(choice_log_probs(logits, BEFORE, J).exp(), expected, rtol=1e-12)


@pytest.mark.parametrize("columns", [J, J + 1])
def test_the_loss_is_minus_the_log_probability_and_has_its_gradient(columns):
    logits = torch.randn(len(BEFORE), columns, generator=torch.Generator().manual_seed(1)).double()
    expected = -choice_log_probs(logits, BEFORE, J)[torch.arange(5), TARGETS[:5]].sum()
    torch.testing.assert_close(choice_nll(logits, BEFORE, TARGETS, J), expected)
    assert torch.autograd.gradcheck(lambda x: choice_nll(x, BEFORE, TARGETS, J), logits.requires_grad_())


@pytest.mark.parametrize("columns", [J, J + 1])
def test_the_loss_is_that_of_clamped_logits(columns):
    logits = 4 * LIMIT * torch.randn(len(BEFORE), columns, generator=torch.Generator().manual_seed(2)).double()
    assert (logits.abs() > LIMIT).any(0).all()
    expected = choice_nll(logits.clamp(-LIMIT, LIMIT), BEFORE, TARGETS, J)
    nll = choice_nll(logits.requires_grad_(), BEFORE, TARGETS, J)
    torch.testing.assert_close(nll, expected)
    (gradient,) = torch.autograd.grad(nll, logits)
    assert gradient.abs().sum() > 0
    assert not gradient[logits.abs() > LIMIT].any()


@pytest.mark.parametrize(
    ("before", "targets"),
    [([0, 1], [0, 1]), ([0, 1], [2, 3]), ([J, 2], [-1, -1]), ([J + 1], [3]), ([], [])],
    ids=["stayers", "movers", "outside", "beginning", "nobody"],
)
def test_the_loss_of_some_kinds_alone(before, targets):
    before, targets = torch.tensor(before, dtype=torch.long), torch.tensor(targets, dtype=torch.long)
    logits = torch.randn(len(before), J + 1, generator=torch.Generator().manual_seed(3)).double()
    known = (targets >= 0).nonzero()[:, 0]
    expected = -choice_log_probs(logits, before, J)[known, targets[known]].sum()
    nll = choice_nll(logits.requires_grad_(), before, targets, J)
    torch.testing.assert_close(nll, expected)
    (gradient,) = torch.autograd.grad(nll, logits)
    assert gradient.isfinite().all()
    assert gradient.any(1).tolist() == (targets >= 0).tolist()


def test_with_one_occupation_there_is_nothing_to_choose():
    logits = torch.tensor([[1.0, -3.0]])
    assert choice_log_probs(logits, torch.tensor([0]), 1).item() == 0
    assert choice_nll(logits, torch.tensor([0]), torch.tensor([0]), 1).item() == 0
