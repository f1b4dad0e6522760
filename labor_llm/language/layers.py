"""Parts of Llama-like layers with few passes over memory, their gradients by hand: for CPUs.

transformers computes norms, rotations and gates in many small operations, each of which writes a tensor, and
autocast converts their results once for each product that reads them. Here a norm gives the type that products
read, and one product serves all projections of the same input (``labor_llm.language.products``).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from labor_llm.language.products import product_dtype, projected

NORMS = {"LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm"}
ATTENTIONS = {"LlamaAttention", "MistralAttention", "Qwen2Attention", "Qwen3Attention"}
FEED_FORWARDS = {"LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP"}
"""Classes of transformers whose forward passes are those below."""


@contextmanager
def fast_layers(model: PreTrainedModel) -> Iterator[None]:
    """Compute the parts of Llama-like layers on a CPU with the functions below; other parts stay as they are."""
    replaced = list(_replacements(model)) if model.device.type == "cpu" else []
    for module, forward in replaced:
        module.forward = partial(forward, module)
    try:
        yield
    finally:
        for module, _ in replaced:
            del module.forward


def _replacements(model: nn.Module) -> Iterator[tuple[Any, Callable[..., Any]]]:
    module: Any
    for module in model.modules():
        name = type(module).__name__
        if "forward" in vars(module):  # replaced already, here or by somebody else
            continue
        if name in NORMS:
            yield module, normed
        elif name in ATTENTIONS:
            yield module, _attention
        elif name in FEED_FORWARDS and module.config.hidden_act in ("silu", "swish"):
            yield module, _feed_forward


def normed(module: Any, hidden: Tensor) -> Tensor:
    """A root mean square norm, in the type that products are computed in."""
    out: Tensor = _Norm.apply(hidden, module.weight, module.variance_epsilon, product_dtype(hidden))
    return out


class _Norm(torch.autograd.Function):
    """x / sqrt(mean(x^2) + eps) * weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = scale.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight).to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, weight, scale = ctx.saved_tensors
        width = x.shape[-1]
        unit, slope = x * scale, grads[0].float()
        to_weight = None
        if ctx.needs_input_grad[1]:
            to_weight = (unit * slope).view(-1, width).sum(0).to(weight.dtype)
        slope = slope * weight
        mean = (unit * slope).sum(-1, keepdim=True).div_(-width)
        return slope.addcmul_(unit, mean).mul_(scale).to(x.dtype), to_weight, None, None


def _feed_forward(module: Any, x: Tensor) -> Tensor:
    """down(silu(gate(x)) * up(x))."""
    gated: Tensor = _Gated.apply(projected((module.gate_proj, module.up_proj), x))
    return projected((module.down_proj,), gated)


class _Gated(torch.autograd.Function):
    """silu of the first half of the columns times the second half."""

    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        ctx.save_for_backward(both)
        gate, up = both.chunk(2, dim=-1)
        return silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (both,) = ctx.saved_tensors
        gate, up = both.chunk(2, dim=-1)
        to_both = torch.empty_like(both)
        to_gate, to_up = to_both.chunk(2, dim=-1)
        torch.mul(grads[0], silu(gate), out=to_up)
        torch.mul(grads[0], up, out=to_gate)
        torch.ops.aten.silu_backward.grad_input(to_gate, gate, grad_input=to_gate)
        return to_both


def _attention(
    module: Any,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    attention_mask: Tensor | None = None,
    past_key_values: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, Any]:
    """Projections, rotations, the attention function that the model is set to, and the output's projection."""
    shape = hidden_states.shape[:-1]
    both = projected((module.q_proj, module.k_proj, module.v_proj), hidden_states)
    query, key, value = both.view(*shape, -1, module.head_dim).split(_heads(module), dim=-2)
    if hasattr(module, "q_norm"):
        query, key = module.q_norm(query), module.k_norm(key)
    query, key = (_Rotated.apply(part, *position_embeddings) for part in (query, key))
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    if past_key_values is not None:
        key, value = past_key_values.update(key, value, module.layer_idx)
    attend = ALL_ATTENTION_FUNCTIONS[module.config._attn_implementation]
    window = getattr(module, "sliding_window", getattr(module.config, "sliding_window", None))
    read, weights = attend(
        module,
        query,
        key,
        value,
        attention_mask,
        dropout=module.attention_dropout if module.training else 0.0,
        scaling=module.scaling,
        sliding_window=window,
        **kwargs,
    )
    return projected((module.o_proj,), read.reshape(*shape, -1)), weights


def _heads(module: Any) -> list[int]:
    keys = module.config.num_key_value_heads
    return [module.config.num_attention_heads, keys, keys]


class _Rotated(torch.autograd.Function):
    """Rotary positions: pairs of a head's numbers, half a head apart, turned by the angle of the place."""

    @staticmethod
    def forward(ctx: Any, heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        half = heads.shape[-1] // 2
        cos, sin = (part[..., None, :half].to(heads.dtype) for part in (cos, sin))
        ctx.save_for_backward(cos, sin)
        return _turned(heads, cos, sin, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        cos, sin = ctx.saved_tensors
        return _turned(grads[0], cos, sin, -1), None, None


def _turned(heads: Tensor, cos: Tensor, sin: Tensor, direction: int) -> Tensor:
    """The heads, turned by the angles or, with direction -1, back."""
    out = torch.empty(heads.shape, dtype=heads.dtype)
    (first, second), (to_first, to_second) = heads.chunk(2, dim=-1), out.chunk(2, dim=-1)
    torch.mul(first, cos, out=to_first)
    to_first.addcmul_(second, sin, value=-direction)
    torch.mul(second, cos, out=to_second)
    to_second.addcmul_(first, sin, value=direction)
    return out
