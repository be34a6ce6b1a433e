"""What a normalisation layer is: its output can be an inspected (N, K, H, W) feature map."""

import re

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

# Classes of torchvision, timm and others that derive from nn.Module, or from nn.LayerNorm, whose channels come last:
# these turn the axes around it.
_OF_MAPS = re.compile(r"FrozenBatchNorm(Act)?2d|(Layer|R[Mm][Ss]|Simple)Norm(Act)?2d(Fp32)?")


def is_normalisation(module: nn.Module) -> bool:
    """Returns whether `module` is a normalisation layer whose output can be a (N, K, H, W) feature map.

    Example:
        >>> is_normalisation(nn.BatchNorm2d(4)), is_normalisation(nn.LayerNorm(4))
        (True, False)
    """
    if isinstance(module, (_BatchNorm, nn.GroupNorm, _InstanceNorm)):
        return not isinstance(module, nn.BatchNorm1d)
    names = [base.__name__ for base in type(module).__mro__]
    if any(_OF_MAPS.fullmatch(name) for name in names):
        return True
    # ConvNeXt's own code, and that of Hugging Face: one class for both orders of axes.
    return getattr(module, "data_format", None) == "channels_first" and any(n.endswith("LayerNorm") for n in names)
