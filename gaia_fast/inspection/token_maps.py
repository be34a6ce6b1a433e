"""Maps of tokens, of transformers: (N, T, C) or (N, H, W, C), whose channels come last. Experimental.

A module that works on the last axis alone, nn.LayerNorm(C) or nn.Linear, tells which axis is that of the channels; all
axes between it and the first, that of the images, are positions: the class token is one of them. So does a LayerNorm of
one's own that says data_format="channels_last". docs/transformers.md shows how little GAIA-Z tells there.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from gaia_fast.errors import LayerError, ModelError
from gaia_fast.inspection.normalisation import channels, is_layer_norm, is_normalisation

TOKEN_MAPS = "token_maps"  # in `layers=`: of every norm over the last axis

_NORMS = (nn.LayerNorm, nn.RMSNorm)


def is_token_norm(module: nn.Module) -> bool:
    """Returns whether `module` is a norm over the last axis alone."""
    if is_normalisation(module):
        return False
    if isinstance(module, _NORMS):
        return len(module.normalized_shape) == 1
    return _says_channels_last(module) and channels(module) > 0


def width(module: nn.Module) -> int:
    """Returns C where `module` works on the last axis alone, so that its C channels are there; else 0."""
    if isinstance(module, nn.Linear):
        return module.out_features
    return channels(module) if is_token_norm(module) else 0


def token_norms(model: nn.Module) -> list[str]:
    """Returns the names of the norms over the last axis, in the model's own order.

    Example:
        >>> token_norms(nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.GroupNorm(2, 8)))
        ['1']
    """
    return [name for name, module in model.named_modules() if is_token_norm(module)]


def check_order(model: nn.Module) -> None:
    """Raises ModelError where the model is known to have tokens before images, (T, N, C): the axes look alike."""
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention) and not module.batch_first:
            raise ModelError(
                f"{name!r} is a MultiheadAttention with batch_first=False, so that maps of tokens are (T, N, C), and "
                "images cannot be told from tokens; build the model with batch_first=True, for (N, T, C)"
            )


def as_map(output: Any, name: str, module: nn.Module) -> Any:
    """Returns what a module of some `width` gave as a (N, K, H, W) view: (N, C, T, 1), or (N, C, H, W).

    Anything but a tensor with positions is returned as it is.

    Raises:
        LayerError: the module has a `forward` of its own, and its result may have its channels in second place.
    """
    last = width(module)
    if not isinstance(output, Tensor) or output.ndim not in (3, 4) or output.shape[-1] != last:
        return output
    own = all(type(module).forward is not each.forward for each in (*_NORMS, nn.Linear))
    if own and not _says_channels_last(module) and output.ndim == 4 and output.shape[1] == last:
        raise LayerError(
            f"layer {name!r} gives a map of shape {tuple(output.shape)}, whose channels may be the second axis or the "
            "last; leave it out, or use images of another size"
        )
    channels_first = output.movedim(-1, 1)
    return channels_first.unsqueeze(-1) if output.ndim == 3 else channels_first


def _says_channels_last(module: nn.Module) -> bool:
    """Whether a LayerNorm by the name of its class, as ConvNeXt's own code has it, says which axis it works on."""
    return getattr(module, "data_format", None) == "channels_last" and is_layer_norm(module)


def in_place_of(output: Tensor, replaced: Tensor) -> Tensor:
    """Returns the map that stands for what `as_map` made of `output`, in the shape of `output`."""
    return (replaced.squeeze(-1) if output.ndim == 3 else replaced).movedim(1, -1)


def seen_as_map(name: str, callback: Callable[[nn.Module, Any], Any]) -> Callable[[nn.Module, Any], Any]:
    """Returns a callback for the output of a module of some `width` that hands `callback` its `as_map`."""

    def see(module: nn.Module, output: Any) -> Any:
        map_ = as_map(output, name, module)
        replaced = callback(module, map_)
        return replaced if replaced is None or map_ is output else in_place_of(output, replaced)

    return see
