"""The networks of the paper and of the demo, and the loader for their weights."""

from collections.abc import Callable

from torch import nn

from gaia_fast.models.bit import bit_s_r101x1
from gaia_fast.models.digits import digits_resnet
from gaia_fast.models.resnet import resnet18, resnet34
from gaia_fast.models.weights import load_weights
from gaia_fast.models.wide_resnet import wrn_40_2

ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "resnet18": resnet18,
    "resnet34": resnet34,
    "wrn_40_2": wrn_40_2,
    "bit_s_r101x1": bit_s_r101x1,
    "digits_resnet": digits_resnet,
}

__all__ = ["ARCHITECTURES", "bit_s_r101x1", "digits_resnet", "load_weights", "resnet18", "resnet34", "wrn_40_2"]
