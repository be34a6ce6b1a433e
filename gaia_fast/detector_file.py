"""The file of a saved detector: what was asked for, what was calibrated, which model it is of; not the model itself.

Safetensors: in its header JSON, as tensors the quantiles of calibration scores. Nothing in it is run as code.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save

from gaia_fast._version import __version__
from gaia_fast.calibration import Calibration
from gaia_fast.data.presets import Preset, preset_of, preset_record
from gaia_fast.errors import ArgumentError, first_line
from gaia_fast.files import replacing
from gaia_fast.inspection.fingerprint import Fingerprint

ENDING = ".gaia"

_KEY = "gaia_fast detector"
_FORMAT = 1
_QUANTILES = "quantiles "


@dataclass(frozen=True)
class SavedDetector:
    """A detector without its model.

    Attributes:
        kind: the class's name.
        arguments: what it is made with, beside the model.
        inspected: by score, the names of the layers that are inspected; none before images have shown them.
        stage_layers: the layers that names of stages stand for, as images showed it.
        thresholds: by score.
        calibrations: by score.
        fingerprint: of the model.
        preset: how images were prepared that it was calibrated on; None where that was not said.
        version: of this package, that it was written by.
    """

    kind: str
    arguments: Mapping[str, Any]
    inspected: Mapping[str, list[str]]
    stage_layers: Mapping[str, list[str]]
    thresholds: Mapping[str, float]
    calibrations: Mapping[str, Calibration]
    fingerprint: Fingerprint
    preset: Preset | None = None
    version: str = __version__

    def write(self, path: Path) -> None:
        """Writes it to a file, all of it or nothing.

        Raises:
            ArgumentError: another ending, no such folder, or one that takes no files.
        """
        if path.suffix != ENDING:
            raise ArgumentError(f"{path} does not end in {ENDING!r}, by which load(...) knows a saved detector; let it")
        if not path.absolute().parent.is_dir():
            raise ArgumentError(f"the folder {path.absolute().parent} does not exist")
        written = {
            "format": _FORMAT,
            "version": self.version,
            "kind": self.kind,
            "arguments": dict(self.arguments),
            "inspected": dict(self.inspected),
            "stage_layers": dict(self.stage_layers),
            "thresholds": dict(self.thresholds),
            "calibrations": {name: [each.images, each.id_tpr] for name, each in self.calibrations.items()},
            "fingerprint": asdict(self.fingerprint),
            "preset": None if self.preset is None else preset_record(self.preset),
        }
        tensors = {f"{_QUANTILES}{name}": each.quantiles for name, each in self.calibrations.items()}
        content = save(tensors, {_KEY: json.dumps(written)})
        with replacing(path) as file:
            file.write_bytes(content)

    @classmethod
    def read(cls, path: Path) -> "SavedDetector":
        """Returns what `write` wrote.

        Raises:
            ArgumentError: no such file, or one that is damaged, of another kind, or of a later release.
        """
        if not path.is_file():
            raise ArgumentError(f"{path} is not a file; give one that save() wrote")
        try:
            with safe_open(path, "pt") as file:
                found = json.loads((file.metadata() or {})[_KEY])
                if found["format"] == _FORMAT:
                    return cls._read(found, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        # Safetensors, JSON and what is built of them report damage each in their own way.
        except Exception as error:
            raise ArgumentError(
                f"{path} cannot be read as a saved detector ({type(error).__name__}: {first_line(error)}); it is "
                "damaged, cut short or of another kind: save it again"
            ) from error
        raise ArgumentError(
            f"{path} was written by gaia_fast {found['version']}, in a form that {__version__} does not know; install "
            "that, or a later release"
        )

    @classmethod
    def _read(cls, found: Mapping[str, Any], tensors: Mapping[str, Any]) -> "SavedDetector":
        return cls(
            found["kind"],
            dict(found["arguments"]),
            dict(found["inspected"]),
            dict(found["stage_layers"]),
            dict(found["thresholds"]),
            {
                name: Calibration(images, id_tpr, tensors[f"{_QUANTILES}{name}"])
                for name, (images, id_tpr) in found["calibrations"].items()
            },
            Fingerprint.read(found["fingerprint"]),
            None if found.get("preset") is None else preset_of(found["preset"]),
            str(found["version"]),
        )
