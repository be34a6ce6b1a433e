"""A model repository of Triton Inference Server: a folder for each model, and in it one for each version."""

import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from gaia_fast.compiler.package.writing import check_format
from gaia_fast.data.presets import Preset
from gaia_fast.detector import GaiaA, GaiaZ
from gaia_fast.errors import ArgumentError
from gaia_fast.files import new_folder, replacing, write_text
from gaia_fast.gaia import Gaia
from gaia_fast.integrations.triton_inference_server.config import Interface, config_text

FORMATS = ("onnx", "pt2")

_CONFIG = "config.pbtxt"


def export_model(
    detector: GaiaA | GaiaZ | Gaia,
    repository: str | Path,
    example: Tensor | Sequence[Tensor],
    *,
    name: str = "gaia",
    format: str = "onnx",
    preset: Preset | str | None = None,
) -> Path:
    """Writes NAME/config.pbtxt, NAME/1/model.py and, beside that, the exported file into a model repository.

    The server's model takes "images" and gives the exported file's outputs, scores and decisions as (N, 1). Where there
    is such a model already, this is its next version, which the server takes in the place of the earlier; config.pbtxt
    stays as it is. Everything appears at once, when it is whole, or nothing does.

    Args:
        detector: what is exported.
        repository: a folder, which is made if only its last part is missing.
        example, preset: as in `GaiaZ.export`.
        name: the model's, for the server: letters, digits, "_", "-" and ".".
        format: "onnx", for onnxruntime on the CPU; or "pt2", an AOTInductor package, for the device of the model.

    Returns:
        The path of the exported file.

    Raises:
        ArgumentError: as `check_repository`; or what is there by the name has other inputs or outputs.
        GaiaError: as `GaiaZ.export`.

    Example:
        >>> from gaia_fast import GaiaZ
        >>> from gaia_fast.data.digits import held_out_digits
        >>> from gaia_fast.integrations.triton_inference_server import export_model
        >>> from gaia_fast.models import digits_resnet
        >>> from tempfile import TemporaryDirectory
        >>> x, labels = held_out_digits()
        >>> with TemporaryDirectory() as folder:
        ...     detector = GaiaZ(digits_resnet(pretrained=True)).calibrate(x[:200])
        ...     path = export_model(detector, f"{folder}/models", x[:4], name="digits")
        ...     sorted(str(each.relative_to(folder)) for each in path.parent.iterdir())
        ['models/digits/1/model.onnx', 'models/digits/1/model.py']
    """
    repository = Path(repository)
    check_repository(repository, name, format)
    # Made elsewhere: the server takes every folder that it finds in the repository for a model.
    with tempfile.TemporaryDirectory(prefix="gaia-fast-") as folder:
        exported = detector.export(Path(folder) / f"model.{format}", example, preset=preset)
        first = example if isinstance(example, Tensor) else example[0]
        return _publish(exported, Interface.of(exported, first.shape[2:]), repository, name)


def check_repository(repository: Path, name: str, format: str) -> None:
    """Checks all that can be known before there is an exported file.

    Raises:
        ArgumentError: no such format, no name for a model, or a folder that cannot be, or take, a repository.
        BackendError: a package is missing.
    """
    if format not in FORMATS:
        raise ArgumentError(f"format={format!r} is none of {FORMATS}")
    if not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):
        raise ArgumentError(f"{name!r} is no name for a model: use letters, digits, '_', '-' and '.'")
    check_format(Path(tempfile.gettempdir()) / f"model.{format}")
    for path in (repository, repository / name):
        if path.exists() and not path.is_dir():
            raise ArgumentError(f"{path} is no folder; give another repository or name")
    there = repository if repository.exists() else repository.absolute().parent
    if not there.is_dir():
        raise ArgumentError(f"the folder {there} does not exist")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ArgumentError(f"{there} takes no new folders; choose one that does")
    if (repository / name).exists() and not (repository / name / _CONFIG).is_file():
        raise ArgumentError(f"{repository / name} has no {_CONFIG}, so it is no model of Triton's; give another name")


def _publish(exported: Path, interface: Interface, repository: Path, name: str) -> Path:
    """Puts the exported file where the server looks for it, with what belongs to it."""
    model = repository / name
    version = str(_next_version(model))
    found = model / version / exported.name
    if model.exists():
        _check_same_interface(model / _CONFIG, interface)
    # The outermost folder that is missing, which then appears with all that is in it.
    appearing = next(path for path in (repository, model, model / version) if not path.exists())
    with new_folder(appearing) as folder:
        of_version = folder / (model / version).relative_to(appearing)
        of_version.mkdir(parents=True, exist_ok=True)
        if appearing != model / version:
            write_text(of_version.parent / _CONFIG, config_text(name, interface))
        write_text(of_version / "model.py", Path(__file__).with_name("model.py").read_text(encoding="utf-8"))
        with replacing(of_version / exported.name) as written:
            shutil.copyfile(exported, written)
    return found


def _next_version(model: Path) -> int:
    """One more than the highest; those of other names than a number's are none to the server."""
    versions = [int(each.name) for each in model.glob("*") if re.fullmatch("[1-9][0-9]*", each.name)]
    return max(versions, default=0) + 1


def _check_same_interface(config: Path, interface: Interface) -> None:
    text = config.read_text(encoding="utf-8")
    if interface.text() not in text or 'backend: "python"' not in text:
        raise ArgumentError(
            f"{config} is of a model with other inputs or outputs than the file to be exported, which has\n"
            f"{interface.text()}Versions of a model share them: give another name"
        )
