"""GAIA as postprocessors of OpenOOD: `GAIAZPostprocessor` and `GAIAAPostprocessor`, for its evaluators.

Needs OpenOOD, which no index has: pip install git+https://github.com/Jingkang50/OpenOOD.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from gaia_fast.detector import GaiaA, GaiaZ
from gaia_fast.errors import BackendError, first_line
from gaia_fast.integrations.kept_detector import KeptDetector, search_space

try:
    from openood.postprocessors import BasePostprocessor
except Exception as error:  # it imports all that any of its methods needs, and each of these fails in its own way
    raise BackendError(
        f"gaia_fast.integrations.openood needs OpenOOD, which cannot be imported ({type(error).__name__}: "
        f"{first_line(error)}): pip install git+https://github.com/Jingkang50/OpenOOD, with what it needs"
    ) from error


class _GAIAPostprocessor(BasePostprocessor):  # type: ignore[misc]  # the library has no types
    """What both share; `inference` and `setup`, which has nothing to do, are the library's.

    Attributes:
        options: of GaiaA or GaiaZ.
        APS_mode: whether OpenOOD searches `args_dict`, on its validation sets, before it evaluates.
        args_dict: what is searched, by option.
        hyperparam_search_done: set by OpenOOD.
    """

    def __init__(
        self, kind: type[GaiaA] | type[GaiaZ], config: Any, APS_mode: bool | None, options: dict[str, Any]
    ) -> None:
        super().__init__(config)
        given = _entry(config, "postprocessor")
        self.options = {**(_entry(given, "postprocessor_args") or {}), **options}
        self.args_dict = dict(_entry(given, "postprocessor_sweep") or search_space())
        self.APS_mode = bool(_entry(given, "APS_mode")) if APS_mode is None else APS_mode
        self.hyperparam_search_done = False
        self._kept = KeptDetector(kind)
        self._kept.check_names(self.options, "postprocessor_args")
        self._kept.check_names(self.args_dict, "postprocessor_sweep")

    def gaia(self, net: nn.Module) -> GaiaA | GaiaZ:
        """Returns the detector of gaia_fast for a network, the same one until network or options are others.

        Raises:
            GaiaError: as GaiaA and GaiaZ.
        """
        return self._kept.of(net, self.options)

    def postprocess(self, net: nn.Module, data: Tensor) -> tuple[Tensor, Tensor]:
        """Predicts and scores a batch.

        Args:
            net: a trained classifier in eval mode; it is never changed.
            data: (N, C, H, W) images, prepared as in training, on the network's device.

        Returns:
            (N,) int64 predicted classes, and (N,) float32 confidences: the score with its sign turned, so that
            larger = more in-distribution, as OpenOOD has it.

        Raises:
            GaiaError: as `gaia_fast.GaiaZ.score`.
        """
        found = self.gaia(net).score(data)
        return found.logits.argmax(dim=1), -found.score

    def set_hyperparam(self, hyperparam: list[Any]) -> None:
        """Sets the options that are searched, in the order of `args_dict`."""
        self.options.update(zip(self.args_dict, hyperparam, strict=True))

    def get_hyperparam(self) -> list[Any]:
        """Returns the options that are searched, in the order of `args_dict`."""
        return [self.options.get(name, self._kept.defaults[name]) for name in self.args_dict]


def _entry(config: Any, name: str) -> Any:
    """What a config has by a name; None for what it has not. Some of the library's raise KeyError for an attribute."""
    return config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)


class GAIAZPostprocessor(_GAIAPostprocessor):
    """GAIA-Z, the density of non-zero attribution gradients, as a postprocessor of OpenOOD. Its `Evaluator` takes it
    as `postprocessor=GAIAZPostprocessor()`.

    Args:
        config: OpenOOD's, of which `postprocessor.postprocessor_args`, `.postprocessor_sweep` and `.APS_mode` are
            read where they are there; or None.
        APS_mode: whether OpenOOD searches layers and p, on its validation sets, before it evaluates; None for what
            the config says, and otherwise not.
        options: those of `gaia_fast.GaiaZ`, before those of the config.

    Raises:
        ArgumentError: no such option; what is wrong with its value, the first batch says.

    Example:
        >>> from gaia_fast.data.digits import held_out_digits
        >>> from gaia_fast.integrations.openood import GAIAZPostprocessor
        >>> from gaia_fast.models import digits_resnet
        >>> net, (x, labels) = digits_resnet(pretrained=True), held_out_digits()
        >>> predicted, confidence = GAIAZPostprocessor(layers="last_stage").postprocess(net, x[:8])
        >>> predicted.shape, confidence.shape
        (torch.Size([8]), torch.Size([8]))
    """

    def __init__(self, config: Any = None, *, APS_mode: bool | None = None, **options: Any) -> None:
        super().__init__(GaiaZ, config, APS_mode, options)


class GAIAAPostprocessor(_GAIAPostprocessor):
    """GAIA-A, the channel-wise average gradient, as a postprocessor of OpenOOD.

    Args:
        config, APS_mode: as in `GAIAZPostprocessor`.
        options: those of `gaia_fast.GaiaA`, before those of the config.

    Raises:
        ArgumentError: no such option; what is wrong with its value, the first batch says.

    Example:
        >>> from gaia_fast.data.digits import held_out_digits
        >>> from gaia_fast.integrations.openood import GAIAAPostprocessor
        >>> from gaia_fast.models import digits_resnet
        >>> net, (x, labels) = digits_resnet(pretrained=True), held_out_digits()
        >>> predicted, confidence = GAIAAPostprocessor(fusion="inner").postprocess(net, x[:8])
        >>> predicted.shape, confidence.shape
        (torch.Size([8]), torch.Size([8]))
    """

    def __init__(self, config: Any = None, *, APS_mode: bool | None = None, **options: Any) -> None:
        super().__init__(GaiaA, config, APS_mode, options)
