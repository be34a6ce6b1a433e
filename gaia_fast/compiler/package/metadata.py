"""What an exported file says about itself, read without running anything of it."""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gaia_fast.compiler.onnx.conversion import LARGEST, missing
from gaia_fast.errors import ArgumentError, BackendError, InputError, first_line
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
    """The images that a program was made for.

    Attributes:
        sizes: (N, C, H, W); None where any number will do, but none at all.
        dtype: theirs.
        device: its type, of a package; None for ONNX, which runs where it is told to.
    """

    sizes: tuple[int | None, ...]
    dtype: torch.dtype
    device: str | None

    def check(self, x: Tensor) -> None:
        """Raises InputError for other images: a package does not look, and reads past their end."""
        check_form(x)
        fits = len(x.shape) == len(self.sizes) and all(
            wanted == size or (wanted is None and size > 0) for wanted, size in zip(self.sizes, x.shape, strict=True)
        )
        if not fits or x.dtype != self.dtype or x.is_meta or x.device.type != (self.device or x.device.type):
            wanted = ", ".join("one or more" if size is None else str(size) for size in self.sizes)
            where = f" on {self.device}" if self.device else ""
            raise InputError(
                f"images are {x.dtype} {tuple(x.shape)} on {x.device}; the file was exported for {self.dtype} "
                f"({wanted}){where}: prepare them so, or export it for others"
            )


def accepted(path: Path) -> Accepted:
    """Returns which images an exported file is for.

    Raises:
        ArgumentError, BackendError: as `read_metadata`; also where sizes or dtype are none.
    """
    metadata = read_metadata(path)
    try:
        sizes: Any = json.loads(metadata["images"])
    except (ValueError, RecursionError):
        sizes = None
    dtype = getattr(torch, metadata["dtype"], None)
    if (
        not isinstance(sizes, list)
        or len(sizes) != 4
        or not all(type(size) is int and size > 0 for size in sizes[1:])
        or not (sizes[0] is None or (type(sizes[0]) is int and sizes[0] > 0))
        or not isinstance(dtype, torch.dtype)
    ):
        raise ArgumentError(
            f"{path} is said to be for images of sizes {metadata['images'][:80]!r} and dtype "
            f"{metadata['dtype'][:80]!r}, which are none; export it again"
        )
    return Accepted(tuple(sizes), dtype, metadata.get("device"))


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
