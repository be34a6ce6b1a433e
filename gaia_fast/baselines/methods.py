"""The baselines by name: how each is made, and fitted where it needs that."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gaia_fast.baselines.exgrad import exgrad
from gaia_fast.baselines.pytorch_ood import detectors
from gaia_fast.baselines.split import Representation, SplitNetwork
from gaia_fast.data import ImageSource
from gaia_fast.errors import BackendError, DataError, GaiaError, first_line

Scorer = Callable[[Any], Tensor]  # of a Representation, or of images (N, C, H, W): scores (N,), larger = more OOD

_NAC_IMAGES = 5000  # of which each is sent through the network, forwards and backwards
_NAC_PIXELS = 2**19  # that go through the network together: all its activations are kept until the backward pass
_GRADIENT_BYTES = 2**29  # of one batch of gradients by image


@dataclass(frozen=True)
class Hyperparameters:
    """What the methods' own papers chose for a benchmark.

    Attributes:
        pixel_std: what pixels were divided by, for ODIN's step; per channel, of pixels in [0, 1].
        neighbour_share: KNN's k as a share of the images that it is fitted on.
        ash: the variant ("ash-p", "ash-b", "ash-s") and the share of activations that is pruned.
        dice: the share of weights that is dropped.
        gen_classes: GEN's M, the number of most likely classes.
        nac_layers: whose activations NAC looks at, by name; none for that method to be left out.
    """

    pixel_std: tuple[float, float, float]
    neighbour_share: float = 0.001
    ash: tuple[str, float] = ("ash-p", 0.7)
    dice: float = 0.9
    gen_classes: int | None = None
    nac_layers: Sequence[str] = ()


class FitImages(NamedTuple):
    """Training images, to fit a method on.

    Attributes:
        source: the images.
        labels: int64 (N,).
        found: their representation.
    """

    source: ImageSource
    labels: Tensor
    found: Representation


@dataclass(frozen=True)
class Baseline:
    """A method to compare with.

    Attributes:
        name: as in results.
        title: with its paper.
        make: of a network, its hyperparameters and, where `fitted`, images to fit on: what scores.
        of_images: whether that takes images rather than a Representation, and runs the network itself.
        fitted: whether it needs images to fit on.
    """

    name: str
    title: str
    make: Callable[[SplitNetwork, Hyperparameters, FitImages | None], Scorer]
    of_images: bool = False
    fitted: bool = False

    def scorer(self, network: SplitNetwork, options: Hyperparameters, fit: FitImages | None = None) -> Scorer:
        """What scores.

        Raises:
            BackendError: pytorch-ood is not there. DataError: it cannot be fitted on these images. LayerError: the
            network has not what it looks at.
        """
        if self.fitted and fit is None:
            raise DataError(f"{self.name} has to be fitted, and there are no images to fit it on")
        with self._own_errors():
            scorer = self.make(network, options, fit)

        def score(found: Any) -> Tensor:
            with self._own_errors():
                return scorer(found).detach().cpu()

        return score

    @contextlib.contextmanager
    def _own_errors(self) -> Iterator[None]:
        try:
            yield
        except GaiaError:
            raise
        except Exception as error:  # whatever another library trips over
            raise BackendError(f"{self.name} failed, {type(error).__name__}: {first_line(error)}") from error


def _on_logits(score: Callable[[Any, Hyperparameters], Callable[[Tensor], Tensor]]) -> Any:
    def make(network: SplitNetwork, options: Hyperparameters, fit: FitImages | None) -> Scorer:
        of = score(detectors(), options)
        return lambda found: of(found.logits)

    return make


def _exgrad(network: SplitNetwork, options: Hyperparameters, fit: FitImages | None) -> Scorer:
    return lambda found: exgrad(found.logits, found.features)


def _on_features(build: Callable[[Any, SplitNetwork, Hyperparameters, FitImages], Any], least: int = 1) -> Any:
    """A features detector of pytorch-ood, fitted on features."""

    def make(network: SplitNetwork, options: Hyperparameters, fit: FitImages | None) -> Scorer:
        assert fit is not None
        if len(fit.labels) < least:
            raise DataError(f"it needs at least {least} images to be fitted; there are {len(fit.labels)}")
        detector = build(detectors(), network, options, fit)
        detector.fit_features(fit.found.features, fit.labels)
        return lambda found: detector.predict_features(found.features)

    return make


def _all_classes(network: SplitNetwork, fit: FitImages, correct: bool = False) -> None:
    labels = fit.labels
    if correct:
        labels = labels[fit.found.logits.argmax(1).to(labels.device) == labels]
    classes = network.head.out_features
    if (there := len(labels.unique())) < classes:
        which = "images that are classified rightly " if correct else "images "
        raise DataError(f"it needs {which}of all {classes} classes to be fitted; there are such of {there}")


def _mahalanobis(library: Any, network: SplitNetwork, options: Hyperparameters, fit: FitImages) -> Any:
    _all_classes(network, fit)
    return library.Mahalanobis(None)


def _she(library: Any, network: SplitNetwork, options: Hyperparameters, fit: FitImages) -> Any:
    _all_classes(network, fit, correct=True)
    return library.SHE(None, network.head)


def _knn(library: Any, network: SplitNetwork, options: Hyperparameters, fit: FitImages) -> Any:
    return library.KNN(None, k=max(1, round(options.neighbour_share * len(fit.labels))))


def _vim(library: Any, network: SplitNetwork, options: Hyperparameters, fit: FitImages) -> Any:
    width = network.head.in_features
    if len(fit.labels) <= width:
        raise DataError(f"it needs more than {width} images, as many as features; there are {len(fit.labels)}")
    kept = 1000 if width > 1500 else 512 if width >= 768 else width // 2  # as in its paper
    return library.ViM(None, d=kept, w=network.head.weight, b=network.head.bias)


def _fdbd(library: Any, network: SplitNetwork, options: Hyperparameters, fit: FitImages) -> Any:
    class Fdbd(library.fDBD):  # type: ignore[misc]
        def _precompute_denom_matrix(self) -> None:
            """The same distances between the classes' weights, without C x C x D numbers: 5 GB for ImageNet."""
            self._denom_matrix = torch.cdist(self.head.weight.data, self.head.weight.data).fill_diagonal_(1)

    return Fdbd(None, network.head)


def _dice(library: Any, network: SplitNetwork, options: Hyperparameters, fit: FitImages) -> Any:
    return library.DICE(None, network.head.weight, network.head.bias, options.dice)


def _nci(library: Any, network: SplitNetwork, options: Hyperparameters, fit: FitImages) -> Any:
    return library.NCI(None, network.head)


def _nnguide(library: Any, network: SplitNetwork, options: Hyperparameters, fit: FitImages) -> Any:
    return library.NNGuide(None, network.head, k=10)


def _shaped(build: Callable[[Any, SplitNetwork, Hyperparameters], Any]) -> Any:
    """A detector that changes activations; here the pooled ones, as maps of one position."""

    def make(network: SplitNetwork, options: Hyperparameters, fit: FitImages | None) -> Scorer:
        detector = build(detectors(), network, options)
        if detector.requires_fit:
            assert fit is not None
            detector.fit_feature_maps(_as_maps(fit.found.features), fit.labels)
        return lambda found: detector.predict_feature_maps(_as_maps(found.features))

    return make


def _as_maps(features: Tensor) -> Tensor:
    return features[:, :, None, None]


def _rankfeat(network: SplitNetwork, options: Hyperparameters, fit: FitImages | None) -> Scorer:
    detector = detectors().RankFeat(network.feature_maps, network.logits_of_maps)
    return detector.predict


def _odin(network: SplitNetwork, options: Hyperparameters, fit: FitImages | None) -> Scorer:
    std = list(options.pixel_std)
    return detectors().ODIN(network.classifier, eps=0.0014, temperature=1000.0, norm_std=std).predict


def _gradnorm(network: SplitNetwork, options: Hyperparameters, fit: FitImages | None) -> Scorer:
    # The last layer's weights, as in its paper: so the head alone is run, and its gradients taken.
    detector = detectors().GradNorm(network.head, param_filter=lambda name: name == "weight")
    return lambda found: detector.predict(found.features)


def _lee_alregib(network: SplitNetwork, options: Hyperparameters, fit: FitImages | None) -> Scorer:
    detector = detectors().GradUncertainty(network.classifier)
    bytes_an_image = sum(each.numel() * each.element_size() for each in network.model.parameters())
    at_once = max(1, _GRADIENT_BYTES // bytes_an_image)
    return lambda images: torch.cat([detector.predict(part) for part in images.split(at_once)])


def _nac(network: SplitNetwork, options: Hyperparameters, fit: FitImages | None) -> Scorer:
    assert fit is not None
    if not options.nac_layers:
        raise DataError("nac needs to be told the layers that it looks at")
    layers = [network.model.get_submodule(name) for name in options.nac_layers]
    detector = detectors().NACUE(network.classifier, layers)
    with _without_hooks(detector):
        detector.fit(_Batches(fit.source.part(0, _NAC_IMAGES), next(network.model.parameters()).device))

    def score(images: Tensor) -> Tensor:
        with _without_hooks(detector):
            return detector.predict(images)

    return score


@dataclass(frozen=True)
class _Batches:
    """Batches of a source's readable images, as often as they are asked for."""

    source: ImageSource
    device: torch.device

    def __iter__(self) -> Iterator[Tensor]:
        height, width = self.source.first(1).images.shape[2:]
        for batch in self.source.batches(max(1, min(50, _NAC_PIXELS // (height * width)))):
            yield batch.images.to(self.device)


@contextlib.contextmanager
def _without_hooks(detector: Any) -> Iterator[None]:
    """Takes off what the detector has put on the model, also where it raises: it does so itself where all goes well."""
    try:
        yield
    finally:
        detector._remove_hooks()
        detector._captured.clear()


BASELINES: dict[str, Baseline] = {
    each.name: each
    for each in (
        Baseline("msp", "MSP (Hendrycks and Gimpel, 2017)", _on_logits(lambda library, _: library.MaxSoftmax.score)),
        Baseline("odin", "ODIN (Liang et al., 2018)", _odin, of_images=True),
        Baseline("energy", "Energy (Liu et al., 2020)", _on_logits(lambda library, _: library.EnergyBased.score)),
        Baseline("mahalanobis", "Mahalanobis (Lee et al., 2018)", _on_features(_mahalanobis), fitted=True),
        Baseline(
            "react",
            "ReAct (Sun et al., 2021)",
            _shaped(lambda library, network, _: library.ReAct(None, network.logits_of_maps)),
            fitted=True,
        ),
        Baseline("gradnorm", "GradNorm (Huang et al., 2021)", _gradnorm),
        Baseline("knn", "KNN (Sun et al., 2022)", _on_features(_knn), fitted=True),
        Baseline("rankfeat", "RankFeat (Song et al., 2022)", _rankfeat, of_images=True),
        Baseline(
            "ash",
            "ASH (Djurisic et al., 2023)",
            _shaped(
                lambda library, network, options: library.ASH(
                    None, network.logits_of_maps, variant=options.ash[0], percentile=options.ash[1]
                )
            ),
        ),
        Baseline("lee-alregib", "Lee and AlRegib (2020)", _lee_alregib, of_images=True),
        Baseline("exgrad", "ExGrad (Igoe et al., 2022)", _exgrad),
        Baseline(
            "max-logit", "Max logit (Hendrycks et al., 2022)", _on_logits(lambda library, _: library.MaxLogit.score)
        ),
        Baseline(
            "scale",
            "SCALE (Xu et al., 2024)",
            _shaped(lambda library, network, _: library.SCALE(None, network.logits_of_maps, percentile=0.85)),
        ),
        Baseline("vim", "ViM (Wang et al., 2022)", _on_features(_vim), fitted=True),
        Baseline(
            "gen",
            "GEN (Liu et al., 2023)",
            _on_logits(
                lambda library, options: lambda logits: library.GEN.score(logits, gamma=0.1, M=options.gen_classes)
            ),
        ),
        Baseline("fdbd", "fDBD (Liu and Qin, 2024)", _on_features(_fdbd), fitted=True),
        Baseline("nci", "NCI (Liu and Qin, 2025)", _on_features(_nci), fitted=True),
        Baseline("nac", "NAC (Liu et al., 2024)", _nac, of_images=True, fitted=True),
        Baseline(
            "vra",
            "VRA (Xu et al., 2023)",
            _shaped(lambda library, network, _: library.VRA(None, network.logits_of_maps)),
            fitted=True,
        ),
        Baseline("she", "SHE (Zhang et al., 2023)", _on_features(_she), fitted=True),
        Baseline("nnguide", "NNGuide (Park et al., 2023)", _on_features(_nnguide, least=10), fitted=True),
        Baseline("dice", "DICE (Sun and Li, 2022)", _on_features(_dice), fitted=True),
    )
}
