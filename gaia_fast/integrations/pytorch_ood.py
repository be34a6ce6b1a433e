"""GAIA as detectors of pytorch-ood: `GAIAZ` and `GAIAA` go where its own do, into `Benchmark` and `GridSearch`.

Needs pytorch-ood: pip install 'gaia-fast[pytorch-ood]'.
"""

from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from gaia_fast.detector import GaiaA, GaiaZ
from gaia_fast.detector_base import Layers
from gaia_fast.errors import ArgumentError, BackendError, first_line
from gaia_fast.extras import how_to_install
from gaia_fast.integrations.kept_detector import KeptDetector, search_space

try:
    from pytorch_ood.api import DetectorInfo, GradientDetector, ModelNotSetException, Paper, Task
except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that was built for another torch
    raise BackendError(
        f"gaia_fast.integrations.pytorch_ood needs pytorch-ood 0.4 or newer, which cannot be imported "
        f"({first_line(error)}): {how_to_install('pytorch-ood')}, with the torchvision that fits your torch"
    ) from error

_INFO = DetectorInfo(
    tasks=frozenset({Task.CLASSIFICATION}),
    paper=Paper(
        title="GAIA: Delving into Gradient-based Attribution Abnormality for Out-of-distribution Detection",
        venue="NeurIPS",
        year=2023,
        url="https://arxiv.org/abs/2311.09620",
        code="https://github.com/JGEthanChen/GAIA-OOD",
    ),
    ai_coded=True,
)


class _GAIA(GradientDetector):  # type: ignore[misc]  # the library has no types
    """What GAIAZ and GAIAA share. `fit`, `to`, `device`, `get_hyperparameters` and `__call__` are the library's."""

    hyperparameter_space = search_space()

    def __init__(
        self,
        model: nn.Module,
        kind: type[GaiaA] | type[GaiaZ],
        layers: Layers,
        p: float,
        micro_batch_size: int | None,
        options: dict[str, Any],
    ) -> None:
        self.model = model
        self.layers = layers
        self.p = p
        self.micro_batch_size = micro_batch_size
        self._options = options
        self._kept = KeptDetector(kind)
        self._kept.check_names(options, type(self).__name__)
        self.gaia  # noqa: B018  what is wrong with model or options is said now

    @property
    def micro_batch_size(self) -> int | None:
        """How many images are scored together at most; None for all of a batch.

        Raises:
            ArgumentError: set to what is no whole number of at least 1.
        """
        return self._micro_batch_size

    @micro_batch_size.setter
    def micro_batch_size(self, size: int | None) -> None:
        if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
            raise ArgumentError(f"micro_batch_size={size!r} must be a whole number of at least 1, or None")
        self._micro_batch_size = size

    @property
    def gaia(self) -> GaiaA | GaiaZ:
        """The detector of gaia_fast behind this one, for its `prepare`, `plan`, `calibrate` and `is_ood`; another as
        soon as the model or a hyperparameter is another.

        Raises:
            ModelNotSetException: the model is None. GaiaError: as GaiaA and GaiaZ.
        """
        if self.model is None:
            raise ModelNotSetException(f"{type(self).__name__} has no model: give it a trained classifier")
        return self._kept.of(self.model, {"layers": self.layers, "p": self.p, **self._options})

    def predict(self, x: Tensor) -> Tensor:
        """Scores a batch.

        Args:
            x: (B, C, H, W) images, prepared as in training; moved to the model's device.

        Returns:
            (B,) float32, detached, on the model's device; larger = more out of distribution.

        Raises:
            ModelNotSetException: the model is None. GaiaError: as `gaia_fast.GaiaZ.score`.
        """
        gaia = self.gaia
        if not isinstance(x, Tensor) or x.ndim != 4:
            return gaia.predict(x)  # which says what is wrong
        x = x if self.device is None else x.to(self.device)
        return torch.cat([gaia.predict(part) for part in x.split(self.micro_batch_size or len(x))])

    def set_hyperparameters(self, **hyperparameters: Any) -> Self:
        """Sets `layers` and `p`, all or none.

        Raises:
            ValueError: no such hyperparameter. GaiaError: a value that GaiaA or GaiaZ refuses.
        """
        before = self.get_hyperparameters()
        try:
            super().set_hyperparameters(**hyperparameters)
            self.gaia  # noqa: B018  a value that cannot be is refused now
        except Exception:
            for name, value in before.items():
                setattr(self, name, value)
            raise
        return self


class GAIAZ(_GAIA):
    """GAIA-Z, the density of non-zero attribution gradients, as a detector of pytorch-ood. Needs no fitting.

    Args:
        model: a trained classifier in eval mode; it is never changed.
        layers: hyperparameter; see `gaia_fast.GaiaZ`.
        p: hyperparameter; the order of the norm that aggregates.
        micro_batch_size: how many images are scored together at most; None for all of a batch.
        options: the others of `gaia_fast.GaiaZ`: `engine`, `backend`, `runtime`.

    Raises:
        ModelNotSetException: the model is None. GaiaError: as `gaia_fast.GaiaZ`.

    Example:
        >>> from gaia_fast.data.digits import held_out_digits
        >>> from gaia_fast.integrations.pytorch_ood import GAIAZ
        >>> from gaia_fast.models import digits_resnet
        >>> from pytorch_ood.metrics import OODMetrics
        >>> (x, labels), metrics = held_out_digits(), OODMetrics()
        >>> detector = GAIAZ(digits_resnet(pretrained=True), layers="last_stage")
        >>> metrics = metrics.update(detector(x[:50]), labels[:50])
        >>> metrics = metrics.update(detector(torch.rand_like(x[:50])), torch.full((50,), -1))
        >>> metrics.compute()["AUROC"] > 0.9
        True
    """

    info = _INFO

    def __init__(
        self,
        model: nn.Module,
        layers: Layers = None,
        p: float = 2.0,
        micro_batch_size: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model, GaiaZ, layers, p, micro_batch_size, options)


class GAIAA(_GAIA):
    """GAIA-A, the channel-wise average gradient, as a detector of pytorch-ood. Needs no fitting.

    Args:
        model, layers, p, micro_batch_size: as in `GAIAZ`.
        options: the others of `gaia_fast.GaiaA`: `head`, `fusion`, `statistic`, `engine`, `backend`, `runtime`.

    Raises:
        ModelNotSetException: the model is None. GaiaError: as `gaia_fast.GaiaA`.

    Example:
        >>> from gaia_fast.data.digits import held_out_digits
        >>> from gaia_fast.integrations.pytorch_ood import GAIAA
        >>> from gaia_fast.models import digits_resnet
        >>> x, labels = held_out_digits()
        >>> GAIAA(digits_resnet(pretrained=True))(x[:4]).shape
        torch.Size([4])
    """

    info = _INFO

    def __init__(
        self,
        model: nn.Module,
        layers: Layers = None,
        p: float = 2.0,
        micro_batch_size: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model, GaiaA, layers, p, micro_batch_size, options)
