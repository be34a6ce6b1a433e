from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from gaia_fast.cli import main
from gaia_fast.data.digits import held_out_pictures, noise_pictures

DIGITS = ("--arch", "digits_resnet", "--preset", "digits")


def rgb(pictures: np.ndarray) -> np.ndarray:
    return np.repeat(pictures[..., None], 3, axis=3)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs gaia-fast in an empty folder."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(main, [str(each) for each in arguments])

    return run


@pytest.fixture
def digits_npz(tmp_path: Path) -> Path:
    pictures, labels = held_out_pictures()
    np.savez(tmp_path / "digits.npz", x=rgb(pictures[:40]), y=labels[:40])
    return tmp_path / "digits.npz"


@pytest.fixture
def noise_npz(tmp_path: Path) -> Path:
    np.savez(tmp_path / "noise.npz", x=rgb(noise_pictures()[:30]))
    return tmp_path / "noise.npz"


@pytest.fixture
def digits_folder(tmp_path: Path) -> Path:
    """Six digits in two folders."""
    for index, picture in enumerate(rgb(held_out_pictures()[0][:6])):
        path = tmp_path / "pictures" / ("a" if index < 3 else "b") / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    return tmp_path / "pictures"


@pytest.fixture
def damaged_folder(digits_folder: Path) -> Path:
    """Those digits and two files that are no images."""
    (digits_folder / "a" / "broken.png").write_bytes(b"not an image")
    (digits_folder / "zero.jpg").write_bytes(b"")
    return digits_folder
