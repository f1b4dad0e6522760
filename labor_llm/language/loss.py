"""The training loss: minus the log-probability of all labelled tokens, without ever holding all their logits.

Legend: N labelled tokens, E numbers of a hidden state, V tokens of the vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

IGNORED = -100
"""Label of a token that carries no loss."""
CHUNK_LOGITS, CHUNK_LOGITS_GPU = 2**20, 2**28
"""Logits of one chunk: in float32 4 megabytes, which a processor's cache holds, or a gigabyte of a GPU."""
CHUNK_ROWS = 256
"""Tokens of a chunk at least: every chunk reads the whole projection."""


def summed_nll(model: PreTrainedModel, inputs: dict[str, Any], labels_BL: Tensor) -> Tensor:
    """Minus the log-probability of the labelled tokens, summed, in nats."""
    targets_BL = labels_BL[:, 1:]
    labelled = targets_BL != IGNORED
    bare = getattr(model, "get_base_model", lambda: model)()
    head = bare.get_output_embeddings()
    if not _is_matrix(head) or _reshapes_logits(bare.config):
        if len(labels_BL) == 1:  # one row: only the labelled tokens are projected
            places = labelled[0].nonzero()[:, 0]
            logits = model(**inputs, use_cache=False, logits_to_keep=places).logits[0]
        else:
            logits = model(**inputs, use_cache=False).logits[:, :-1][labelled]
        return cross_entropy(logits.float(), targets_BL[labelled], reduction="sum")
    hidden_BLE = bare.base_model(**inputs, use_cache=False).last_hidden_state
    nll: Tensor = _ProjectedLoss.apply(hidden_BLE[:, :-1][labelled], head.weight, targets_BL[labelled])
    return nll


def _is_matrix(head: Any) -> bool:
    """Whether the output embeddings are a plain matrix, not wrapped by an adapter."""
    return type(head) is torch.nn.Linear and head.bias is None


def _reshapes_logits(config: Any) -> bool:
    """Whether the model does more to its logits than multiply by the output embeddings."""
    config = config.get_text_config()
    return any(
        getattr(config, name, None) for name in ("final_logit_softcapping", "logits_scaling", "logit_scale")
    )


class _ProjectedLoss(torch.autograd.Function):
    """Projection onto the vocabulary and cross-entropy, chunk by chunk, gradients included.

    A chunk's logits become its gradient in place, so nothing is computed twice, no exponential either: three
    matrix products in all, as without chunks.
    """

    @staticmethod
    def forward(ctx: Any, hidden_NE: Tensor, weight_VE: Tensor, targets_N: Tensor) -> Tensor:
        device = hidden_NE.device.type
        mixed = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_NE.dtype
        with torch.autocast(device, enabled=False):
            loss, hidden_grad, weight_grad = _loss_and_gradients(
                hidden_NE.to(mixed), weight_VE.to(mixed), targets_N, *ctx.needs_input_grad[:2]
            )
        ctx.types = hidden_NE.dtype, weight_VE.dtype
        ctx.save_for_backward(hidden_grad, weight_grad)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = grads
        gradients = (
            None if saved is None else (saved * grad).to(dtype)
            for saved, dtype in zip(ctx.saved_tensors, ctx.types, strict=True)
        )
        return *gradients, None


def _loss_and_gradients(
    hidden_NE: Tensor, weight_VE: Tensor, targets_N: Tensor, of_hidden: bool, of_weight: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    loss = hidden_NE.new_zeros((), dtype=torch.float32)
    hidden_grad = torch.empty_like(hidden_NE) if of_hidden else None
    weight_grad = torch.zeros_like(weight_VE, dtype=torch.float32) if of_weight else None
    logits_at_once = CHUNK_LOGITS if hidden_NE.device.type == "cpu" else CHUNK_LOGITS_GPU
    chunk = max(CHUNK_ROWS, logits_at_once // len(weight_VE))
    for start in range(0, len(hidden_NE), chunk):
        rows = slice(start, start + chunk)
        logits = (hidden_NE[rows] @ weight_VE.T).float()
        targets = targets_N[rows, None]
        highest = logits.amax(-1, keepdim=True)
        realised = logits.gather(1, targets)
        shares = logits.sub_(highest).exp_()
        sums = shares.sum(-1, keepdim=True)  # what the shares are to be divided by; it waits for a smaller matrix
        loss += (highest + sums.log() - realised).sum()
        if hidden_grad is None and weight_grad is None:
            continue
        slopes = shares.scatter_add_(1, targets, -sums).to(hidden_NE.dtype)
        if hidden_grad is not None:
            hidden_grad[rows] = (slopes @ weight_VE) / sums
        if weight_grad is not None:
            weight_grad += slopes.T @ (hidden_NE[rows] / sums).to(hidden_NE.dtype)
    return loss, hidden_grad, weight_grad
