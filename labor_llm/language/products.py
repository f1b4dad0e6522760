"""Products of a linear layer's input: one for all layers that read it, LoRA adapters included.

Legend: T tokens of all rows, E numbers of the input, O outputs of all layers side by side, R ranks of adapters.
"""

from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.nn.functional import linear

from labor_llm.dropout import kept


def product_dtype(values: Tensor) -> torch.dtype:
    """The type in which products of the values are computed: autocast's, or their own."""
    kind = values.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else values.dtype


def projected(modules: Sequence[Any], x: Tensor) -> Tensor:
    """What several linear layers make of the same input, side by side, (..., O)."""
    if not all(_is_plain(module) or _is_lora(module) for module in modules):
        return torch.cat([module(x) for module in modules], dim=-1)
    x = x.to(product_dtype(x))
    adapters = [module for module in modules if _is_lora(module)]
    bases = [module.get_base_layer() if _is_lora(module) else module for module in modules]
    bias = torch.cat([base.bias for base in bases]) if bases[0].bias is not None else None
    weights = [base.weight for base in bases]
    if not adapters:
        out: Tensor = _Product.apply(x, bias, *weights)
        return out
    name = adapters[0].active_adapters[0]
    share = adapters[0].lora_dropout[name].p if isinstance(adapters[0].lora_dropout[name], nn.Dropout) else 0.0
    mask = kept(x, share) if share and adapters[0].training else None
    scales = [module.scaling[name] if _is_lora(module) else 0.0 for module in modules]
    factors = [
        (module.lora_A[name].weight, module.lora_B[name].weight) if _is_lora(module) else (None, None)
        for module in modules
    ]
    parts = [part for weight, pair in zip(weights, factors, strict=True) for part in (weight, *pair)]
    adapted: Tensor = _AdaptedProduct.apply(x, mask, bias, scales, *parts)
    return adapted


def _is_plain(module: Any) -> bool:
    """Whether the layer multiplies by its weights and does no more; hooks, such as dropout's, do more."""
    return type(module) is nn.Linear and not (module._forward_hooks or module._forward_pre_hooks)


def _is_lora(module: Any) -> bool:
    """Whether the layer is a plain one with a single, unmerged LoRA adapter of the ordinary kind."""
    return (
        type(module) is LoraLinear
        and _is_plain(module.get_base_layer())
        and len(module.active_adapters) == 1
        and module.active_adapters[0] in module.lora_A
        and module.lora_B[module.active_adapters[0]].bias is None
        and not (module.merged or module.disable_adapters or module.lora_variant or module._forward_hooks)
        and not module.get_base_layer().weight.requires_grad
    )


def _joined(weights: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Matrices of the same inputs one below the other."""
    if len(weights) == 1:
        return weights[0].to(dtype)
    joined = weights[0].new_empty(sum(map(len, weights)), weights[0].shape[1], dtype=dtype)
    for part, weight in zip(joined.split([len(weight) for weight in weights]), weights, strict=True):
        part.copy_(weight)
    return joined


class _Product(torch.autograd.Function):
    """One product for several matrices of the same inputs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, *weights: Tensor) -> Tensor:
        joined = _joined(weights, x.dtype)
        ctx.save_for_backward(x, joined)
        ctx.dtypes = [weight.dtype for weight in weights]
        ctx.sizes = [len(weight) for weight in weights]
        return linear(x, joined, None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, joined = ctx.saved_tensors
        grad = grads[0].reshape(-1, len(joined))
        to_x = (grad @ joined).view(x.shape) if ctx.needs_input_grad[0] else None
        to_bias = grad.sum(0, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        if not any(ctx.needs_input_grad[2:]):
            return to_x, to_bias, *(None for _ in ctx.sizes)
        to_weights = (grad.T @ x.reshape(-1, x.shape[-1])).to(ctx.dtypes[0]).split(ctx.sizes)
        return to_x, to_bias, *to_weights


class _AdaptedProduct(torch.autograd.Function):
    """The same with LoRA factors A and B: [x | x A'] [W | s B]', so that adapters are a few more columns.

    A module without an adapter has None for its factors.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mask: Tensor | None, bias: Tensor | None, scales: Sequence[float], *parts: Any
    ) -> Tensor:
        weights, downs, ups = (parts[place::3] for place in range(3))
        rows = x.reshape(-1, x.shape[-1])
        down = torch.cat([down for down in downs if down is not None]).to(x.dtype)
        kept_rows = rows if mask is None else rows * mask.view(rows.shape)
        read = kept_rows @ down.T
        wide, ctx.places = _widened(weights, ups, scales, x.dtype)
        ctx.save_for_backward(kept_rows, mask, read, down, wide)
        ctx.scales = scales
        out = linear(torch.cat([rows, read], dim=1), wide, None if bias is None else bias.to(x.dtype))
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        kept_rows, mask, read, down, wide = ctx.saved_tensors
        grad, inputs = grads[0].reshape(len(read), -1), kept_rows.shape[1]
        to_x = None
        if ctx.needs_input_grad[0]:
            to_x, to_read = (grad @ wide).split([inputs, read.shape[1]], dim=1)
            to_read = to_read.contiguous()
            to_kept = to_read @ down
            to_x = to_x + to_kept if mask is None else torch.addcmul(to_x, to_kept, mask.view(to_kept.shape))
            to_x = to_x.view(*grads[0].shape[:-1], -1)
        else:
            to_read = grad @ wide[:, inputs:]
        to_down = (to_read.T @ kept_rows).float()
        to_parts: list[Tensor | None] = []
        for place, scale in zip(ctx.places, ctx.scales, strict=True):
            if place is None:
                to_parts += [None, None, None]
                continue
            outputs, ranks = place
            to_parts += [None, to_down[ranks], (grad[:, outputs].T @ read[:, ranks]).float() * scale]
        return to_x, None, None, None, *to_parts


def _widened(
    weights: Sequence[Tensor], ups: Sequence[Tensor | None], scales: Sequence[float], dtype: torch.dtype
) -> tuple[Tensor, list[tuple[slice, slice] | None]]:
    """The matrices one below the other, (O, E + R), with their scaled adapters at the right; where each stands."""
    inner, ranks = weights[0].shape[1], sum(up.shape[1] for up in ups if up is not None)
    wide = weights[0].new_zeros(sum(map(len, weights)), inner + ranks, dtype=dtype)
    places: list[tuple[slice, slice] | None] = []
    row, rank = 0, 0
    for weight, up, scale in zip(weights, ups, scales, strict=True):
        outs = slice(row, row + len(weight))
        wide[outs, :inner] = weight
        if up is None:
            places.append(None)
        else:
            own = slice(rank, rank + up.shape[1])
            wide[outs, inner + own.start : inner + own.stop] = up * scale
            places.append((outs, own))
            rank = own.stop
        row = outs.stop
    return wide, places
