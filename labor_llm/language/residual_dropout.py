"""Dropout of a language model's embeddings and of what each layer adds to them, in any architecture; and its end.

Some architectures have this dropout, and their configuration sets its share. To others forward hooks add it:
before the first layer, and after the two parts of each layer whose output is added.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from labor_llm.dropout import Dropout
from labor_llm.errors import ConfigError

OWN = ("embd_pdrop", "resid_pdrop", "embed_dropout", "resid_dropout", "hidden_dropout")
"""What this dropout is called in the configurations of GPT-2, Phi, GPT-Neo, GPT-NeoX and others."""
OF_ATTENTION = ("attn_pdrop", "attention_dropout")
"""What another kind is called there, of what each token attends to."""
NORMS = {"input_layernorm", "post_attention_layernorm"}
SANDWICH = NORMS | {"pre_feedforward_layernorm", "post_feedforward_layernorm"}
ADDED = {
    frozenset({"self_attn", "mlp"} | NORMS): ("self_attn", "mlp"),
    frozenset({"self_attn", "mlp"} | SANDWICH): ("post_attention_layernorm", "post_feedforward_layernorm"),
}
"""All parts of a layer -> the two whose output is added: in Llama, Qwen, Mistral and Gemma 1; in Gemma 2 and 3."""


def configure_dropout(config: PretrainedConfig, share: float) -> None:
    """Set the share in a configuration that has this dropout, and leave out dropout of attention."""
    text = config.get_text_config()
    for names, value in ((OWN, share), (OF_ATTENTION, 0.0)):
        for name in names:
            if hasattr(text, name):
                setattr(text, name, value)


def add_dropout(model: PreTrainedModel, share: float) -> None:
    """Let a model, made from a configuration with that share, drop it while it is trained.

    A ConfigError if it is not known which parts of its layers are added to the embeddings.
    """
    names = model._no_split_modules or ()
    layers = [module for module in model.modules() if type(module).__name__ in names]
    if layers and _drops(model, layers, share):
        return
    if not layers or not all(_parts(layer) in ADDED for layer in layers):
        raise ConfigError(
            f"backbone.dropout: it is not known which parts of {type(model).__name__} are added to its "
            "embeddings. Leave backbone.dropout out, or use Llama, Qwen, Mistral, Gemma, GPT-2 or GPT-NeoX."
        )
    layers[0].add_module("dropout_of_embeddings", Dropout(share))
    layers[0].register_forward_pre_hook(_dropped_input, with_kwargs=True)
    for layer in layers:
        for name in ADDED[_parts(layer)]:
            part = layer.get_submodule(name)
            part.add_module("dropout_of_output", Dropout(share))
            part.register_forward_hook(_dropped_output)


def end_dropout(model: nn.Module, recomputed: Iterable[nn.Module] = ()) -> None:
    """Let a model drop nothing while it is trained further: not in modules, nor where it calls a function itself.

    Such functions go by ``training``, which is off from here on. Layers that are ``recomputed`` for their
    gradients ask it whether they are: it stays on, but for what is recomputed.
    """
    model.eval()
    layer: Any
    for layer in recomputed:
        layer.training = True
        recompute = layer._gradient_checkpointing_func
        if getattr(recompute, "func", None) is not _recomputed:
            layer._gradient_checkpointing_func = partial(_recomputed, layer, recompute)


def _recomputed(layer: nn.Module, recompute: Callable[..., Any], forward: Callable[..., Any], *args: Any) -> Any:
    return recompute(partial(_evaluated, layer, forward), *args)


def _evaluated(layer: nn.Module, forward: Callable[..., Any], *args: Any) -> Any:
    layer.training = False
    try:
        return forward(*args)
    finally:
        layer.training = True


def _drops(model: PreTrainedModel, layers: list[nn.Module], share: float) -> bool:
    """Whether the configuration's share reached dropout before the layers and in every one."""
    if not any(hasattr(model.config.get_text_config(), name) for name in OWN):
        return False
    of_layers = [_dropouts(layer, share) for layer in layers]
    return all(of_layers) and _dropouts(model, share) > sum(of_layers)


def _dropouts(module: nn.Module, share: float) -> int:
    return sum(isinstance(part, nn.Dropout) and part.p == share for part in module.modules())


def _parts(layer: nn.Module) -> frozenset[str]:
    return frozenset(name for name, _ in layer.named_children() if not name.startswith("dropout_of_"))


def _dropped_input(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A hook: the embeddings that enter the first layer, through their dropout."""
    embeddings, *others = args
    return (layer.dropout_of_embeddings(embeddings), *others), kwargs


def _dropped_output(part: Any, _: Any, output: Tensor | tuple[Any, ...]) -> Tensor | tuple[Any, ...]:
    """A hook: what a part of a layer gives, through its dropout; attention gives more than that."""
    if isinstance(output, Tensor):
        return part.dropout_of_output(output)
    given, *others = output
    return part.dropout_of_output(given), *others
