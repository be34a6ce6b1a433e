"""What an exported file says about itself, read without running anything of it."""

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gaia_fast.compiler.onnx.conversion import LARGEST, missing
from gaia_fast.data.presets import Preset, preset_of
from gaia_fast.errors import ArgumentError, BackendError, DataError, InputError, first_line
from gaia_fast.inspection.checks import check_form

FORMATS = (".onnx", ".pt2")

_KEY = "gaia_fast"  # under which a package keeps it all, beside what PyTorch puts there
_MOST_BYTES = 2**20  # of metadata in a package; a name a layer makes some kilobytes


def check_ending(path: Path) -> None:
    """Raises ArgumentError unless the file's ending is one of `FORMATS`."""
    if path.suffix not in FORMATS:
        raise ArgumentError(f"{path} ends in neither of {FORMATS}: give one, for onnxruntime or AOTInductor")


def read_metadata(path: str | Path) -> dict[str, str]:
    """Returns what `export` put into a file beside the program, and a package's "device". No code of the file runs.

    Raises:
        ArgumentError: no such format, no such file, or one that `export` did not write, or that is damaged.
        BackendError: a package is missing.

    Example:
        >>> from gaia_fast import GaiaZ
        >>> from gaia_fast.data.digits import held_out_digits
        >>> from gaia_fast.models import digits_resnet
        >>> from tempfile import TemporaryDirectory
        >>> x, labels = held_out_digits()
        >>> with TemporaryDirectory() as folder:
        ...     detector = GaiaZ(digits_resnet(pretrained=True)).calibrate(x[:100])
        ...     found = read_metadata(detector.export(f"{folder}/model.onnx", x[:4]))
        >>> float(found["threshold"]) == detector.threshold
        True
    """
    path = Path(path)
    check_ending(path)
    if path.suffix == ".onnx" and (reason := missing()):
        raise BackendError(f"{path} cannot be read: {reason}")
    if not path.is_file():
        raise ArgumentError(f"{path} is not a file; give one that export() wrote")
    try:
        found = _in_onnx(path) if path.suffix == ".onnx" else _in_package(path)
    # protobuf, zipfile, zlib and json each report damage in their own way.
    except Exception as error:
        raise ArgumentError(
            f"{path} cannot be read as {'ONNX' if path.suffix == '.onnx' else 'an AOTInductor package'} "
            f"({first_line(error)}); it is damaged, cut short or of another kind: export it again"
        ) from error
    if not {"images", "dtype"} <= found.keys() or not all(isinstance(value, str) for value in found.values()):
        raise ArgumentError(f"{path} has no metadata of gaia_fast, so it was not written by export(); export it again")
    return found


@dataclass(frozen=True)
class Accepted:
    """The images that a file was made for.

    Attributes:
        sizes: (N, C, H, W), one or several of them; None where any number will do, but none at all.
        dtype: theirs.
        device: its type, of a package; None for ONNX, which runs where it is told to.
        preset: what the file does to pictures before they are the model's images; None where it takes those.
    """

    sizes: tuple[tuple[int | None, ...], ...]
    dtype: torch.dtype
    device: str | None
    preset: Preset | None

    def check(self, x: Tensor) -> None:
        """Raises InputError for other images: a package does not look, and reads past their end."""
        check_form(x, self.dtype.is_floating_point)
        fits = any(map(partial(_fits, tuple(x.shape)), self.sizes))
        if not fits or x.dtype != self.dtype or x.is_meta or x.device.type != (self.device or x.device.type):
            wanted = " or ".join(f"({', '.join(map(_described, sizes))})" for sizes in self.sizes)
            where = f" on {self.device}" if self.device else ""
            raise InputError(
                f"images are {x.dtype} {tuple(x.shape)} on {x.device}; the file was exported for {self.dtype} "
                f"{wanted}{where}: prepare them so, or export it for others"
            )
        if self.preset is not None:
            try:
                self.preset.check_size(x.shape[2], x.shape[3])
            except DataError as error:
                raise InputError(f"images of shape {tuple(x.shape)} cannot be prepared: {error}") from error


def accepted(path: Path, metadata: Mapping[str, str]) -> Accepted:
    """Returns which images an exported file is for, as its metadata say.

    Raises:
        ArgumentError: sizes, dtype or preprocessing are none.
    """
    preset = None
    if "preprocessing" in metadata:
        try:
            preset = preset_of(metadata["preprocessing"])
        except (ValueError, TypeError, RecursionError) as error:
            raise ArgumentError(
                f"{path} is said to prepare images by {metadata['preprocessing'][:80]!r}, which is no preset; export "
                "it again"
            ) from error
    try:
        listed: Any = json.loads(metadata["images"])
    except (ValueError, RecursionError):
        listed = None
    if isinstance(listed, list) and not any(isinstance(each, list) for each in listed):
        listed = [listed]
    dtype = getattr(torch, metadata["dtype"], None)
    if (
        not isinstance(listed, list)
        or not listed
        or not all(_is_size(each, preset is not None) for each in listed)
        or not isinstance(dtype, torch.dtype)
    ):
        raise ArgumentError(
            f"{path} is said to be for images of sizes {metadata['images'][:80]!r} and dtype "
            f"{metadata['dtype'][:80]!r}, which are none; export it again"
        )
    return Accepted(tuple(map(tuple, listed)), dtype, metadata.get("device"), preset)


def model_name(shapes: Sequence[tuple[int | None, ...]], shape: tuple[int | None, ...]) -> str:
    """Returns what the program for images of one shape (N, C, H, W), of several, is called in a package."""
    return "model" if shape == shapes[0] else f"model_{shape[2]}x{shape[3]}"


def _fits(shape: tuple[int, ...], sizes: tuple[int | None, ...]) -> bool:
    return len(shape) == len(sizes) and all(
        wanted == size or (wanted is None and size > 0) for wanted, size in zip(sizes, shape, strict=True)
    )


def _described(size: int | None) -> str:
    return "one or more" if size is None else str(size)


def _is_size(sizes: Any, any_size: bool) -> bool:
    """Whether these are (N, C, H, W), of which N may be left open; where `any_size`, H and W too."""
    if not isinstance(sizes, list) or len(sizes) != 4:
        return False
    left_open = (True, False, any_size, any_size)
    return all(
        (each is None and free) or (type(each) is int and each > 0) for each, free in zip(sizes, left_open, strict=True)
    )


def _in_onnx(path: Path) -> dict[str, str]:
    import onnx

    if path.stat().st_size > LARGEST:
        raise ValueError("it is larger than any ONNX file can be")
    model = onnx.load(path, load_external_data=False)
    return {each.key: each.value for each in model.metadata_props}


def _in_package(path: Path) -> dict[str, Any]:
    """A package is a zip: one JSON file for each part of the program, all with the same contents."""
    found = []
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if not entry.filename.endswith("metadata.json"):
                continue
            with archive.open(entry) as file:
                content = file.read(_MOST_BYTES + 1)
            if len(content) > _MOST_BYTES:
                raise ValueError(f"{entry.filename} is larger than {_MOST_BYTES} bytes")
            record = json.loads(content)
            if isinstance(record, dict) and _KEY in record:
                found.append({**json.loads(record[_KEY]), "device": record.get("AOTI_DEVICE_KEY")})
    if any(each != found[0] for each in found):
        raise ValueError("its parts contradict each other")
    return found[0] if found else {}
