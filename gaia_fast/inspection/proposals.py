"""What to inspect in a model without a normalisation layer: maps of its convolutions, before the activation."""

import re

from torch import nn

from gaia_fast.inspection import token_maps

CONVOLUTIONS = "convolutions"  # in `layers=`: of all of them

MOST = 8  # of a list in a message: the last ones: the smallest maps tell most, and a list is to be read

_ACTIVATION = re.compile(r"relu|elu|silu|swish|mish|tanh|act(ivation)?(?![a-z])", re.IGNORECASE)
_NOTHING = (nn.Identity, nn.Dropout, nn.Dropout2d)


def convolutions(model: nn.Module) -> list[str]:
    """Returns the names of the convolutions that feed an activation, in the model's own order; of all, if none does.

    Told by the order in which the modules are kept, as no image has been through the model. Left out are a convolution
    that makes the logits, and those that weigh channels (squeeze and excitation), whose maps have one position.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 1))
        >>> convolutions(model)
        ['0', '2']
    """
    leaves = _leaves(model)
    weighing = {id(child) for module in model.modules() if _weighs_channels(module) for child in module.children()}
    activated = {id(child) for module in model.modules() for child in _single_activated(module)}
    layers = [place for place, (_, each) in enumerate(leaves) if isinstance(each, (nn.Conv2d, nn.Linear))]
    found, fed = [], []
    for place in layers:
        name, module = leaves[place]
        is_head = place == layers[-1] and isinstance(module, nn.Conv2d) and max(module.kernel_size) == 1
        if not isinstance(module, nn.Conv2d) or is_head or id(module) in weighing:
            continue
        found.append(name)
        followed = place + 1 < len(leaves) and _is_activation(leaves[place + 1][1])
        if followed or id(module) in activated:
            fed.append(name)
    return fed or ([] if token_maps.token_norms(model) else found)  # of patches, in a transformer: no feature maps


def refusal(model: nn.Module, names: str) -> str:
    """Returns the message for a model that has no normalisation layer: what else can be inspected.

    Args:
        model: the classifier.
        names: of its modules, for where there is nothing to propose.
    """
    found = convolutions(model)
    some = found[-MOST:]
    ways = []
    if found:
        which = f", or the last {MOST} of the {len(found)}, " if len(found) > MOST else ", which is "
        ways.append(f"the maps of its convolutions, before the activation: layers={CONVOLUTIONS!r}{which}layers={some}")
    if token_maps.token_norms(model):
        ways.append(
            f"the maps of tokens of its LayerNorms: layers={token_maps.TOKEN_MAPS!r}, which is experimental, and where "
            "GAIA-Z tells little (docs/transformers.md)"
        )
    what = "; or ".join(ways) or f"the modules whose feature maps are to be inspected, layers=[...]; it has: {names}"
    return (
        f"{type(model).__name__} has no normalisation layer (BatchNorm2d, GroupNorm, ...) to inspect by default. Name "
        f"{what}"
    )


def activations_in(module: nn.Module) -> list[nn.Module]:
    """Returns the children of a module that are activations, by the names of their classes or their own.

    Example:
        >>> activations_in(nn.Sequential(nn.Identity(), nn.ReLU()))
        [ReLU()]
    """
    return [each for name, each in module.named_children() if _is_activation(each) or _ACTIVATION.fullmatch(name)]


def _leaves(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules that compute, in order; one that is parametrised counts as a whole."""
    found: list[tuple[str, nn.Module]] = []
    whole = ""
    for name, module in model.named_modules():
        if whole and name.startswith(whole):
            continue
        whole = f"{name}." if isinstance(module, (nn.Conv2d, nn.Linear)) else ""
        if (whole or not any(module.children())) and not isinstance(module, (*_NOTHING, nn.Sequential)):
            found.append((name, module))
    return found


def _is_activation(module: nn.Module) -> bool:
    return bool(_ACTIVATION.search(type(module).__name__)) and not isinstance(module, nn.MultiheadAttention)


def _single_activated(module: nn.Module) -> list[nn.Module]:
    """The only convolution of a block that has an activation, in whatever order they are kept."""
    inside = list(module.children())
    convolutions: list[nn.Module] = [each for each in inside if isinstance(each, nn.Conv2d)]
    return convolutions if len(convolutions) == 1 and any(map(_is_activation, inside)) else []


def _weighs_channels(module: nn.Module) -> bool:
    return any("sigmoid" in type(child).__name__.lower() for child in module.children())
