"""Optimizers that need less memory than AdamW in float32, one piece of the weights at a time.

The algorithms are those of PyTorch, bitsandbytes and transformers. What is added here: weights may be bfloat16,
though every update is computed in float32; what an update needs is held for one piece only; and updates may happen
within the backward pass, so that no more gradients exist than autograd holds at that moment.

Bytes per weight at rest, gradients included (none stand whole with updates in the backward pass):

==============  =======  ========  ======  =====
optimizer       weights  gradient  states  total
==============  =======  ========  ======  =====
adamw           4        4         8       16
adamw_8bit      4        4         2.03    10.03
adafactor       4        4         0       8
adamw_8bit      2        none      2.03    4.03
adafactor       2        none      0       2
==============  =======  ========  ======  =====
"""

import ctypes
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer
from transformers.optimization import Adafactor

OptimizerName = Literal["adamw", "adamw_8bit", "adafactor"]
WeightType = Literal["float32", "bf16"]

PIECE = 2**22
"""Weights that are updated together: what their update computes takes some 100 megabytes."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""glibc's numbers for how much free memory it keeps, and for the size that it asks of the system by itself."""
LARGE, USUAL, KEPT = 2**20, 2**25, 2**26
"""Bytes: such a size while pieces are updated, and what glibc itself arrives at in a process like this one."""


def make_optimizer(
    weights: Iterable[Tensor],
    name: OptimizerName,
    learning_rate: float,
    weight_decay: float,
    in_backward: bool,
    seed: int,
) -> Optimizer:
    """The optimizer of all weights that are trained; matrices decay, vectors do not.

    Float32 weights with plain AdamW get PyTorch's own, whole; everything else is updated in pieces.
    """
    trained = [weight for weight in weights if weight.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [w for w in trained if w.ndim >= 2], "weight_decay": weight_decay},
        {"params": [w for w in trained if w.ndim < 2], "weight_decay": 0.0},
    ]
    make = _makers(learning_rate)[name]
    in_float32 = all(weight.dtype == torch.float32 for weight in trained)
    if name == "adamw" and in_float32 and not in_backward:
        return make(groups)
    return PiecewiseOptimizer(groups, make, in_backward, seed)


@contextmanager
def _giving_memory_back() -> Iterator[None]:
    """Let glibc return what is freed to the system: pieces that come and go tear holes that no other tensor fills.

    It takes time, so it is limited to updates: of activations it would make a step a third slower.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        yield
        return
    mallopt(M_TRIM_THRESHOLD, KEPT)
    mallopt(M_MMAP_THRESHOLD, LARGE)
    try:
        yield
    finally:
        mallopt(M_MMAP_THRESHOLD, USUAL)


def give_back_memory() -> None:
    """Let glibc return all that is free, holes between tensors included, as after a step of training."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _makers(learning_rate: float) -> dict[OptimizerName, Callable[[Any], Optimizer]]:
    return {
        "adamw": lambda groups: torch.optim.AdamW(groups, lr=learning_rate, fused=True),
        "adamw_8bit": lambda groups: _adamw_8bit(groups, learning_rate),
        # With these settings the learning rate means what it means to AdamW: the size of a step of one weight.
        "adafactor": lambda groups: Adafactor(
            groups, lr=learning_rate, scale_parameter=False, relative_step=False, warmup_init=False
        ),
    }


def _adamw_8bit(groups: Any, learning_rate: float) -> Optimizer:
    """AdamW with states in 8 bits, each 256 with a scale of their own (arXiv 2110.02861)."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it misses kernels that only inference uses
    from bitsandbytes.optim import AdamW8bit

    optimizer: Optimizer = AdamW8bit(groups, lr=learning_rate)
    return optimizer


class PiecewiseOptimizer(Optimizer):
    """Lets another optimizer update weights piece by piece, each a float32 tensor for as long as that takes.

    1. A weight is cut along its first dimension into pieces of about ``PIECE`` numbers. Every piece has a
       stand-in, an empty float32 tensor, which is what the inner optimizer knows and keeps its states for.
    2. For an update, the stand-in takes its numbers and its gradient in float32, and the inner optimizer steps.
    3. A bfloat16 weight takes the result with stochastic rounding: on average nothing is lost of steps that are
       smaller than the distance to the next bfloat16 number.

    The inner optimizer sees pieces of at most ``PIECE`` numbers: AdamW computes the same as with whole weights,
    Adafactor factors the second moments of each piece by itself.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        make: Callable[[Any], Optimizer],
        in_backward: bool,
        seed: int,
    ) -> None:
        self.weights: list[Tensor] = [weight for group in groups for weight in group["params"]]
        self.seed, self.steps = seed, 0
        self._pieces: dict[Tensor, list[tuple[int, Tensor]]] = {}
        """Per weight, the number and the stand-in of every piece."""
        self._groups_of: dict[Tensor, int] = {}
        for place, group in enumerate(groups):
            self._groups_of |= dict.fromkeys(group["params"], place)
        numbers = iter(range(sum(len(_cut(weight)) for weight in self.weights)))
        for weight in self.weights:
            self._pieces[weight] = [(next(numbers), _stand_in(weight)) for _ in _cut(weight)]
        self.inner = make([group | {"params": list(self._stand_ins(group["params"]))} for group in groups])
        super().__init__(self.inner.param_groups, {})  # the same dictionaries: schedules set their learning rates
        self.state = self.inner.state
        hooked = self.weights if in_backward else []
        self._hooks = [weight.register_post_accumulate_grad_hook(self._update) for weight in hooked]

    def _stand_ins(self, weights: Iterable[Tensor]) -> Iterator[Tensor]:
        return (stand_in for weight in weights for _, stand_in in self._pieces[weight])

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update every weight that still has a gradient; those updated in the backward pass have none."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for weight in self.weights:
            if weight.grad is not None:
                self._update(weight)
        self.steps += 1
        give_back_memory()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients."""
        for weight in self.weights:
            weight.grad = None

    @torch.no_grad()
    def _update(self, weight: Tensor) -> None:
        """Update one weight and forget its gradient."""
        assert weight.grad is not None
        parts = zip(self._pieces[weight], _cut(weight.data), _cut(weight.grad), strict=True)
        with _giving_memory_back():
            for (number, stand_in), piece, gradient in parts:
                self._update_piece(self._groups_of[weight], number, stand_in, piece, gradient)
        weight.grad = None

    def _update_piece(self, group: int, number: int, stand_in: Tensor, piece: Tensor, gradient: Tensor) -> None:
        stand_in.data = piece.float()  # float32 weights: themselves
        stand_in.grad = gradient.float()
        self._step_inner(group, stand_in)
        if piece.dtype == torch.bfloat16:
            piece.copy_(rounded(stand_in.data, self._generator(number, piece.device)))
        elif stand_in.data_ptr() != piece.data_ptr():  # the inner optimizer laid it out anew
            piece.copy_(stand_in)
        stand_in.grad = None
        stand_in.data = stand_in.data.new_empty(0)

    def _step_inner(self, place: int, stand_in: Tensor) -> None:
        """A step of the inner optimizer, which looks at no other weight."""
        groups = self.inner.param_groups
        self.inner.param_groups = [groups[place] | {"params": [stand_in]}]
        try:
            self.inner.step()
        finally:
            self.inner.param_groups = groups

    def _generator(self, number: int, device: torch.device) -> torch.Generator:
        """The same on every device and after every resume, for replicas must round alike."""
        seed = np.random.SeedSequence((self.seed, self.steps, number)).generate_state(1)[0]
        return torch.Generator(device).manual_seed(int(seed))

    def state_dict(self) -> dict[str, Any]:
        """That of the inner optimizer, plain tensors and numbers, and how many steps were taken."""
        return {**self.inner.state_dict(), "steps": self.steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on there."""
        self.inner.load_state_dict({key: value for key, value in state_dict.items() if key != "steps"})
        self.steps = state_dict["steps"]
        self.param_groups, self.state = self.inner.param_groups, self.inner.state

    def release(self) -> None:
        """Update nothing in backward passes any more; whoever holds the weights no longer holds the states."""
        for hook in self._hooks:
            hook.remove()


def _cut(weight: Tensor) -> tuple[Tensor, ...]:
    """Views of a weight, as many of its first dimension's entries together as come to ``PIECE`` numbers."""
    if weight.ndim < 2:
        return (weight,)
    return weight.split(max(1, PIECE // weight[0].numel()))


def _stand_in(weight: Tensor) -> Tensor:
    return torch.nn.Parameter(torch.empty(0, dtype=torch.float32, device=weight.device))


def rounded(values: Tensor, generator: torch.Generator) -> Tensor:
    """Bfloat16 numbers next to float32 ones, up or down with the probability that makes their mean the value.

    A bfloat16 number is the upper half of a float32 one: noise below it carries over as often as it should.
    """
    words = torch.empty(-(-values.numel() // 4), dtype=torch.int64, device=values.device)
    noise = words.random_(-(2**63), None, generator=generator).view(torch.int16)[: values.numel()]
    bits = values.clone().view(torch.int32).flatten()
    bits.add_(noise.to(torch.int32).bitwise_and_(0xFFFF)).bitwise_and_(~0xFFFF)
    return bits.view(torch.float32).view_as(values).bfloat16()
