"""Low-rank adaptation (LoRA): train a small addition to each matrix of the blocks instead of the matrices.

    diffvit train --dataset DATA --model NAME --lora 8

Each query, key, value and output projection of attention and each layer of the MLPs gets an addition of a low rank, by
peft. The head and the parameters of lambda are trained as usual, and everything else is frozen. The network that is
saved has the additions merged into its matrices, so that it is an ordinary network, which loads without peft.

`LoRA: Low-Rank Adaptation of Large Language Models` - https://arxiv.org/abs/2106.09685
"""

import copy
import importlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..console import counted, log0
from ..data.loading import model_data_config
from ..errors import InputError
from ..layers.adapters import known_layers
from ..layers.adapters.projections import input_projections, output_projection
from ..layers.hooks import evaluating

__all__ = ["add_lora", "from_merged", "merged_copy", "require_peft"]

SMALL = 20e6  # parameters; see the advice below


def require_peft(rank: int) -> None:
    """Check that peft can be imported, before anything is loaded.

    Raises:
        InputError: it cannot.
    """
    try:
        importlib.import_module("peft")
    except ImportError as error:
        raise InputError(f"`lora={rank}` needs peft ({error}): pip install 'diffvit_timm[lora]'") from error


def add_lora(model: Any, rank: int, heads: Sequence[nn.Module]) -> None:
    """Add LoRA to the matrices of the blocks, in place, and freeze everything but LoRA, the heads and lambda.

    The additions start at zero, so the outputs do not change. They are scaled by alpha / rank = 2.

    Args:
        model: timm model.
        rank: rank of each addition.
        heads: classifiers of the model, which are trained.

    Raises:
        InputError: a network whose attention the package does not know, or that uses a matrix without calling its
            layer, so that LoRA would have no effect.
    """
    from peft import LoraConfig, inject_adapter_in_model  # not above: it takes seconds, and is an extra

    try:
        layers = known_layers(model)
    except ValueError as error:
        raise InputError(f"`lora={rank}` does not apply to the network {type(model).__name__}: {error}") from error
    targets = _targets(model, layers, heads)
    if unused := _not_called(model, targets):
        raise InputError(
            f"`lora={rank}` does not apply to the network {type(model).__name__}, which uses the weight of {unused[0]} "
            "without calling this layer: leave it out, or use `freeze`"
        )
    size = sum(p.numel() for p in model.parameters())
    pattern = "|".join(map(re.escape, targets))
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=pattern), model)
    added = sum(p.numel() for name, p in model.named_parameters() if ".lora_" in name)
    for head in heads:
        head.requires_grad_(True)
    for layer in layers.values():
        for name, parameter in layer.named_parameters():
            parameter.requires_grad_(parameter.requires_grad or name.startswith("lambda_"))
    log0(f"LoRA of rank {rank} in {counted(len(targets), 'layer')}: {added / 1e6:.2f} M parameters")
    if size < SMALL:
        log0(
            f"the network has only {size / 1e6:.1f} M parameters. LoRA was reported to cost accuracy in such small "
            "networks (ViT-Ti: 82.2 % with it, 86.4 % without) and to help larger ones (ViT-B: 91.4 %, 88.1 %): "
            "compare with a run without LoRA"
        )


def _targets(model: Any, layers: Mapping[str, nn.Module], heads: Sequence[nn.Module]) -> dict[str, nn.Module]:
    """Return the layers that get LoRA by their names: the projections of attention, and the other layers of blocks.

    Args:
        model: timm model.
        layers: its attention layers by their names.
        heads: its classifiers.
    """
    stacks = tuple({_stack(name) for name in layers})
    projections = {part for layer in layers.values() for part in (*input_projections(layer), output_projection(layer))}
    others = {part for layer in layers.values() if not _has_mlp(layer) for part in layer.modules()} - projections
    others |= {part for head in heads for part in head.modules()}
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(stacks) and module not in others
    }


def _stack(name: str) -> str:
    """Return the beginning of the names of all blocks: 'blocks.' for an attention layer blocks.0.attn."""
    return re.split(r"\.\d+(?:\.|$)", name)[0] + "."


def _has_mlp(layer: nn.Module) -> bool:
    """Return whether a layer is a whole block, with its MLP."""
    return hasattr(layer, "in_split")


@torch.no_grad()
def _not_called(model: Any, modules: Mapping[str, nn.Module]) -> list[str]:
    """Return the names of the modules that a forward pass of one image does not call."""
    called: set[nn.Module] = set()
    hooks = [module.register_forward_hook(lambda module, *_: called.add(module)) for module in modules.values()]
    image = next(model.parameters()).new_zeros(1, *model_data_config(model)["input_size"])  # (1, C, H, W)
    try:
        with evaluating(model):
            model(image)
    finally:
        for hook in hooks:
            hook.remove()
    return [name for name, module in modules.items() if module not in called]


def _lora_layers(model: nn.Module) -> dict[str, Any]:
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def merged_copy(model: nn.Module) -> Any:
    """Return a copy of a network with LoRA that computes the same without it."""
    copied: Any = copy.deepcopy(model)
    for name, layer in _lora_layers(copied).items():
        layer.merge()
        copied.set_submodule(name, layer.get_base_layer())
    del copied.peft_config
    return copied


def from_merged(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict with which a network with LoRA computes what merged weights compute: LoRA adds nothing.

    Args:
        model: network with LoRA.
        weights: state dict of a merged copy of it.
    """
    return {
        name: torch.zeros_like(tensor)
        if ".lora_B." in name
        else tensor
        if ".lora_A." in name
        else weights[name.replace(".base_layer.", ".")]
        for name, tensor in model.state_dict().items()
    }
