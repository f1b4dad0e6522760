"""The training loss: minus the log-probability of all labelled tokens, without ever holding all their logits.

Legend: N labelled tokens, E numbers of a hidden state, V tokens of the vocabulary, R tokens and C vocabulary
entries of a tile.
"""

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

IGNORED = -100
"""Label of a token that carries no loss."""
ROWS = 1024
"""Tokens of a tile: every pass over that many reads the whole projection once."""
FEW = 4
"""Tokens on which it is tried what a model does to its logits."""
COLUMNS = 4096
"""Vocabulary entries of a tile on a CPU, whose cache holds its logits; a GPU takes the whole vocabulary."""


def summed_nll(model: PreTrainedModel, inputs: dict[str, Any], labels_BL: Tensor) -> Tensor:
    """Minus the log-probability of the labelled tokens, summed, in nats."""
    targets_BL = labels_BL[:, 1:]
    labelled = targets_BL != IGNORED
    bare = getattr(model, "get_base_model", lambda: model)()
    if not projects(bare, inputs):
        if len(labels_BL) == 1:  # one row: only the labelled tokens are projected
            places = labelled[0].nonzero()[:, 0]
            logits = model(**inputs, use_cache=False, logits_to_keep=places).logits[0]
        else:
            logits = model(**inputs, use_cache=False).logits[:, :-1][labelled]
        return cross_entropy(logits.float(), targets_BL[labelled], reduction="sum")
    hidden_BLE = bare.base_model(**inputs, use_cache=False).last_hidden_state
    head = bare.get_output_embeddings()
    nll: Tensor = _ProjectedLoss.apply(hidden_BLE[:, :-1][labelled], head.weight, targets_BL[labelled])
    return nll


def projects(model: PreTrainedModel, inputs: dict[str, Any]) -> bool:
    """Whether the logits are the hidden states times the output embeddings, and no more: tried once a model.

    Some architectures cap or scale their logits, each by a setting of its own name.
    """
    if model not in _PROJECTS:
        _PROJECTS[model] = _is_matrix(model.get_output_embeddings()) and _only_projects(model, inputs)
    return _PROJECTS[model]


_PROJECTS: WeakKeyDictionary[torch.nn.Module, bool] = WeakKeyDictionary()


def _is_matrix(head: Any) -> bool:
    """Whether the output embeddings are a plain matrix, not wrapped by an adapter."""
    return type(head) is torch.nn.Linear and head.bias is None


@torch.no_grad()
def _only_projects(model: PreTrainedModel, inputs: dict[str, Any]) -> bool:
    """Compare the hidden states with what the head reads, and what it gives with the logits, on a few tokens."""
    states: list[Any] = []
    hooks = (
        model.base_model.register_forward_hook(
            lambda _, __, out: states.append(getattr(out, "last_hidden_state", None))
        ),
        model.get_output_embeddings().register_forward_hook(lambda _, read, out: states.extend((*read, out))),
    )
    devices = [model.device] if model.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):  # a resumed run drops what one that was not interrupted does
            logits = model(**_first_tokens(inputs), use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()
    if len(states) != 3 or states[0] is None or states[2] is None:
        return False
    last, read, out = states
    return torch.equal(last, read) and torch.equal(out.float(), logits.float())


def _first_tokens(inputs: dict[str, Any]) -> dict[str, Any]:
    """A batch of the first few tokens."""
    ids = inputs["input_ids"][:1, :FEW]
    if "career_starts" not in inputs:
        return {"input_ids": ids}
    places = inputs["position_ids"][:, :FEW]
    return {"input_ids": ids, "position_ids": places, "career_starts": [0, ids.shape[1]]}


class _ProjectedLoss(torch.autograd.Function):
    """Projection onto the vocabulary and cross-entropy, tile by tile, gradients included.

    1. A tile is the logits of some tokens for some vocabulary entries. It becomes exp(logit - reference), where
       the reference is the logit of the realized token.
    2. The sums of a token's tiles give its loss. A tile times its part of the projection adds to the gradient of
       the hidden states. That matrix has E columns instead of V, and is divided by the sums at the end.
    3. The same tiles, transposed, times the hidden states give the gradient of the projection.

    This takes three matrix products, as many as without tiles. Tiles leave the realized token out: where the model
    is sure, its probability minus one would be lost to rounding.
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
        ctx.gradients = [hidden_grad, weight_grad]
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = grads
        gradients: list[Tensor | None] = []
        for dtype in ctx.types:  # one at a time, in place: that of the projection is as large as the projection
            saved = ctx.gradients.pop(0)
            gradients.append(None if saved is None else saved.mul_(grad).to(dtype))
        return *gradients, None


def _loss_and_gradients(
    hidden_NE: Tensor, weight_VE: Tensor, targets_N: Tensor, of_hidden: bool, of_weight: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    loss = hidden_NE.new_zeros((), dtype=torch.float32)
    hidden_grad = torch.empty_like(hidden_NE, dtype=torch.float32) if of_hidden else None
    weight_grad = torch.zeros_like(weight_VE, dtype=torch.float32) if of_weight else None
    tiles = _Tiles(weight_VE, min(ROWS, len(hidden_NE)), kept=of_weight)
    for start in range(0, len(hidden_NE), ROWS):
        rows = slice(start, start + ROWS)
        hidden_RE, targets_R = hidden_NE[rows], targets_N[rows]
        exact_RE, own_RE = hidden_RE.float(), weight_VE[targets_R].float()
        realized_R = torch.linalg.vecdot(exact_RE, own_RE)
        others_R, read_RE = tiles.read(hidden_RE, targets_R, realized_R, of_hidden)
        own_R = torch.ones_like(others_R)  # exp(realized logit - reference)
        if not others_R.isfinite().all():  # a realized token is next to impossible
            highest_R = tiles.highest(hidden_RE)
            others_R, read_RE = tiles.read(hidden_RE, targets_R, highest_R, of_hidden)
            own_R = (realized_R - highest_R).exp()
            loss -= (realized_R - highest_R).sum()
        sums_R = own_R + others_R
        loss += sums_R.log().sum()
        rest_R1 = (others_R / sums_R)[:, None]  # probability of all other tokens
        if hidden_grad is not None:
            hidden_grad[rows] = read_RE / sums_R[:, None] - own_RE * rest_R1
        if weight_grad is not None:
            tiles.add_products((exact_RE / sums_R[:, None]).to(hidden_NE.dtype), weight_grad)
            weight_grad.index_add_(0, targets_R, exact_RE * -rest_R1)
    return loss, hidden_grad, weight_grad


class _Tiles:
    """The logits of some tokens, vocabulary entries side by side, in memory that the next tokens use again."""

    def __init__(self, weight_VE: Tensor, rows: int, kept: bool) -> None:
        """``kept``: every tile stays for ``add_products``, instead of one at a time."""
        columns = COLUMNS if weight_VE.device.type == "cpu" else len(weight_VE)
        self.weights_CE, self.kept = weight_VE.split(columns), kept
        self._space = weight_VE.new_empty(len(self.weights_CE) if kept else 1, rows * columns)
        self._exact = self._space.new_empty(rows * columns, dtype=torch.float32)
        self.tiles_RC: list[Tensor] = []

    def read(
        self, hidden_RE: Tensor, targets_R: Tensor, reference_R: Tensor, of_hidden: bool
    ) -> tuple[Tensor, Tensor]:
        """exp(logit - reference), zero for the target: its sums (R,), and its products with the weights (R, E)."""
        sums_R = torch.zeros_like(reference_R)
        read_RE = torch.zeros_like(hidden_RE, dtype=torch.float32)
        self.tiles_RC, first = [], 0
        for weight_CE in self.weights_CE:
            tile_RC = self._logits(hidden_RE, weight_CE)
            exact_RC = self._exact[: tile_RC.numel()].view(tile_RC.shape).copy_(tile_RC)
            exact_RC.sub_(reference_R[:, None]).exp_()
            rows = ((targets_R >= first) & (targets_R < first + len(weight_CE))).nonzero()[:, 0]
            exact_RC[rows, targets_R[rows] - first] = 0
            sums_R += exact_RC.sum(-1)
            if of_hidden or self.kept:
                self.tiles_RC.append(tile_RC.copy_(exact_RC))
            if of_hidden:
                read_RE += tile_RC @ weight_CE
            first += len(weight_CE)
        return sums_R, read_RE

    def highest(self, hidden_RE: Tensor) -> Tensor:
        """The highest logit of every token, (R,), in float32."""
        self.tiles_RC = []
        highest = [self._logits(hidden_RE, weight_CE).amax(-1) for weight_CE in self.weights_CE]
        return torch.stack(highest).amax(0).float()

    def add_products(self, hidden_RE: Tensor, weight_grad_VE: Tensor) -> None:
        """Add the tiles, transposed, times the hidden states to a gradient of the weights."""
        grads_CE = weight_grad_VE.split(len(self.weights_CE[0]))
        for grad_CE, tile_RC in zip(grads_CE, self.tiles_RC, strict=True):
            grad_CE.add_(tile_RC.T @ hidden_RE)

    def _logits(self, hidden_RE: Tensor, weight_CE: Tensor) -> Tensor:
        place = len(self.tiles_RC) if self.kept else 0
        shape = len(hidden_RE), len(weight_CE)
        tile_RC = self._space[place, : shape[0] * shape[1]].view(shape)
        return torch.mm(hidden_RE, weight_CE.T, out=tile_RC)
