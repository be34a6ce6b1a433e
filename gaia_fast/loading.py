"""What was saved or exported, ready to score."""

from pathlib import Path
from typing import TypeAlias, overload

from torch import nn

from gaia_fast.compiler.package import reading
from gaia_fast.compiler.package.metadata import FORMATS
from gaia_fast.detector import GaiaA, GaiaZ
from gaia_fast.detector_file import ENDING, SavedDetector
from gaia_fast.errors import ArgumentError, GaiaError, LayerError, ModelError
from gaia_fast.gaia import Gaia
from gaia_fast.inspection import checks
from gaia_fast.inspection.fingerprint import Fingerprint
from gaia_fast.inspection.layers import listed

Exported: TypeAlias = reading.ExportedDetector | reading.ExportedJointDetector

_KINDS: dict[str, type[GaiaA | GaiaZ | Gaia]] = {each.__name__: each for each in (GaiaA, GaiaZ, Gaia)}


@overload
def load(path: str | Path) -> Exported: ...


@overload
def load(path: str | Path, model: nn.Module) -> GaiaA | GaiaZ | Gaia: ...


def load(path: str | Path, model: nn.Module | None = None) -> Exported | GaiaA | GaiaZ | Gaia:
    """Returns a saved detector, for its model; or an exported file, which holds its own.

    Both have `score`, `predict`, `is_ood` and `threshold`. A saved detector is prepared anew: `prepare` with the
    `cache_dir` of an earlier process reads what was made there.

    A ".pt2" file is a program of machine code: loading it runs it, with all rights of the user. Load only what you
    trust. Nothing of a ".gaia" or ".onnx" file is run as code.

    Args:
        path: ".gaia", that `save` wrote; or ".onnx" or ".pt2", that `export` wrote.
        model: for ".gaia": the model, in eval mode, with the weights that it had. Wrappers are taken off as in `GaiaZ`.

    Raises:
        ArgumentError: no such file, damaged, another ending, or a model where there is to be none.
        ModelError: the model is another one; its first module or tensor that differs is named.
        GaiaError: as the detector, where it cannot be made here.

    Example:
        >>> from gaia_fast import GaiaZ, load
        >>> from gaia_fast.data.digits import held_out_digits
        >>> from gaia_fast.models import digits_resnet
        >>> from tempfile import TemporaryDirectory
        >>> model, (x, labels) = digits_resnet(pretrained=True), held_out_digits()
        >>> with TemporaryDirectory() as folder:
        ...     saved = GaiaZ(model).calibrate(x[:500]).save(f"{folder}/digits.gaia")
        ...     detector = load(saved, digits_resnet(pretrained=True))
        >>> detector.is_ood(x[:4]).dtype
        torch.bool
    """
    path = Path(path)
    if path.suffix in FORMATS:
        if model is not None:
            raise ArgumentError(f"{path} holds its own model: load it without one, gaia_fast.load({str(path)!r})")
        return reading.load(path)
    if path.suffix != ENDING:
        raise ArgumentError(f"{path} ends in none of {(ENDING, *FORMATS)}; give a file that save() or export() wrote")
    if model is None:
        raise ArgumentError(f"{path} is a detector without its model: give that, too, gaia_fast.load(path, model)")
    saved = SavedDetector.read(path)
    if saved.kind not in _KINDS:
        raise ArgumentError(f"{path} is a {saved.kind}, by gaia_fast {saved.version}, which is not known here")
    plain = checks.unwrap(model)
    checks.check_model(plain)
    if difference := saved.fingerprint.difference(Fingerprint.of(plain, left_out=saved.fingerprint.left_out)):
        raise ModelError(
            f"{path} was saved with another model than this {type(plain).__name__}: {difference}. Give the model that "
            "it was saved with, its weights loaded; for this one calibrate and save a detector of its own"
        )
    try:
        detector = _KINDS[saved.kind](plain, **saved.arguments)
        detector._restore(saved)
    except GaiaError:
        raise
    except Exception as error:
        raise ArgumentError(f"{path} holds what a {saved.kind} cannot be made of ({error}); save it again") from error
    _check_layers(path, saved, detector)
    return detector


def _check_layers(path: Path, saved: SavedDetector, detector: GaiaA | GaiaZ | Gaia) -> None:
    """Raises LayerError if the detector inspects other layers than the saved one: its threshold is of those."""
    for name, layers in detector.inspected_layers.items():
        if layers != saved.inspected.get(name, layers):
            other = [each for each in layers if each not in saved.inspected[name]]
            other += [each for each in saved.inspected[name] if each not in layers]
            raise LayerError(
                f"{path} was saved by gaia_fast {saved.version} with other layers than it would inspect here: "
                f"{listed(other)}. Name the layers, layers=[...], calibrate and save it again"
            )
