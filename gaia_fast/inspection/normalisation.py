"""What a normalisation layer is: its output can be an inspected (N, K, H, W) feature map."""

import re

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

# Classes of torchvision, timm and others that derive from nn.Module, or from nn.LayerNorm, whose channels come last:
# these turn the axes around it.
_OF_MAPS = re.compile(r"FrozenBatchNorm(Act)?2[dD]|(Layer|R[Mm][Ss]|Simple)Norm(Act)?2[dD](Fp32)?")
# Whose classes of such names have their channels in second place, always.
_LIBRARIES = ("torchvision.", "timm.")


def is_normalisation(module: nn.Module) -> bool:
    """Returns whether `module` is a normalisation layer whose output can be a (N, K, H, W) feature map.

    Example:
        >>> is_normalisation(nn.BatchNorm2d(4)), is_normalisation(nn.LayerNorm(4))
        (True, False)
    """
    if isinstance(module, (_BatchNorm, nn.GroupNorm, _InstanceNorm)):
        return not isinstance(module, nn.BatchNorm1d)
    return is_known_by_name(module)


def is_known_by_name(module: nn.Module) -> bool:
    """Returns whether `module` is a normalisation layer by the name of its class, which is none of PyTorch's.

    Left out are those of which it is not known how many channels they have, as their axes could not be told, and those
    that contain a normalisation layer, which is inspected in their place.
    """
    order = getattr(module, "data_format", None)
    if not (_is_named_for_maps(module) or (order == "channels_first" and is_layer_norm(module))):
        return False
    if order == "channels_last" or type(module).forward in (nn.LayerNorm.forward, nn.RMSNorm.forward):
        return False
    return channels(module) > 0 and not any(is_normalisation(each) for each in module.modules() if each is not module)


def is_layer_norm(module: nn.Module) -> bool:
    """Returns whether `module` is a LayerNorm or RMSNorm by the name of its class, whichever axes it works on."""
    return any(base.__name__.endswith(("LayerNorm", "RMSNorm")) for base in type(module).__mro__)


def channels(module: nn.Module) -> int:
    """Returns how many channels a norm was built for, or one inside it; 0 where that is not known.

    Example:
        >>> channels(nn.LayerNorm(4)), channels(nn.Sequential(nn.RMSNorm(8))), channels(nn.ReLU())
        (4, 8, 0)
    """
    shape = getattr(module, "normalized_shape", None)
    if isinstance(shape, (tuple, list)) and shape:
        shape = shape[0]
    if isinstance(shape, int):
        return shape
    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor):
        return weight.numel()
    return next((channels(each) for each in module.modules() if each is not module and is_layer_norm(each)), 0)


def has_channels_first(module: nn.Module) -> bool:
    """Returns whether the output of a norm that `is_known_by_name` has its channels in second place for certain."""
    if getattr(module, "data_format", None) == "channels_first":
        return True
    if "forward" in vars(module):
        return False
    written = next(base for base in type(module).__mro__ if "forward" in vars(base))
    return written.__module__.startswith(_LIBRARIES)


def _is_named_for_maps(module: nn.Module) -> bool:
    return any(_OF_MAPS.fullmatch(base.__name__) for base in type(module).__mro__)
