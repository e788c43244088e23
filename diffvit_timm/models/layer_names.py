"""Layer classes as arguments of timm.create_model, written so that a saved config can contain them.

    timm.create_model('diffvit_small_patch16', mlp_layer='SwiGLUPacked')    # the layer of this name in timm.layers

A layer of timm.layers or torch.nn is written as its name, and functools.partial(RmsNorm, eps=1e-5) as the dictionary
{"layer": "RmsNorm", "eps": 1e-5}.
"""

import functools
from collections.abc import Callable
from typing import Any

import timm.layers
from torch import nn

__all__ = ["decode_layers", "encode_layers", "names_layer"]


def _is_layer(value: Any) -> bool:
    """Return whether a value is a class of modules, or a partial of one, as SwiGLUPacked is."""
    kind = value.func if isinstance(value, functools.partial) else value
    return isinstance(kind, type) and issubclass(kind, nn.Module)


# Layers by name. timm comes before torch; torch's own LayerNorm is nn.LayerNorm.
LAYERS = {
    **{name: value for name, value in vars(nn).items() if _is_layer(value)},
    **{name: value for name, value in vars(timm.layers).items() if _is_layer(value)},
    **{f"nn.{name}": value for name, value in vars(nn).items() if _is_layer(value)},
}


def names_layer(value: Any) -> bool:
    """Return whether a value of a config names a layer.

    Args:
        value: any value; the name of a layer is a string, and that of a partial a dictionary with the entry 'layer'.
    """
    name = value.get("layer") if isinstance(value, dict) else value
    return isinstance(name, str) and name in LAYERS


def encode_layers(args: dict[str, Any]) -> dict[str, Any]:
    """Replace the layers by their names, in all arguments whose names end in `_layer`.

    Args:
        args: arguments of timm.create_model.

    Returns:
        The arguments. Layers that are neither in timm.layers nor in torch.nn do not change.
    """
    return _map_layers(_encode, args)


def decode_layers(args: dict[str, Any]) -> dict[str, Any]:
    """Replace the names of layers by the layers, in all arguments whose names end in `_layer`.

    Args:
        args: arguments of timm.create_model, or of a saved config.

    Returns:
        The arguments. Values that name no layer of timm.layers or torch.nn do not change.
    """
    return _map_layers(_decode, args)


def _map_layers(convert: Callable[[Any], Any], args: dict[str, Any]) -> dict[str, Any]:
    return {name: convert(value) if name.endswith("_layer") else value for name, value in args.items()}


def _encode(value: Any) -> Any:
    if not _is_layer(value):
        return value
    name = next((name for name, layer in LAYERS.items() if layer is value), None)
    if name is None and isinstance(value, functools.partial) and not value.args:
        kind = _encode(value.func)
        return {"layer": kind, **encode_layers(value.keywords)} if isinstance(kind, str) else value
    return name or value


def _decode(value: Any) -> Any:
    if not names_layer(value):
        return value
    if isinstance(value, dict):
        keywords = {name: entry for name, entry in value.items() if name != "layer"}
        return functools.partial(LAYERS[value["layer"]], **decode_layers(keywords))
    return LAYERS[value]
