"""examples/cpp: built against the torch that is installed, run in a process that has nothing of Python's."""

import csv
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from gaia_fast import GaiaZ

import zoo

SOURCE = Path(__file__).parents[3] / "examples" / "cpp"
COMPILERS = [os.environ.get("CXX", "c++"), "g++", "clang++"]

pytestmark = pytest.mark.skipif(not any(map(shutil.which, COMPILERS)), reason=f"no C++ compiler: none of {COMPILERS}")


class Package(NamedTuple):
    """A package of any number of images, with scores among which its threshold lies."""

    path: Path
    images: Tensor  # the last two of them are such as the package cannot score
    detector: GaiaZ


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("score")
    # cmake and ninja lie beside the interpreter, whether or not its environment was activated.
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    configure: list[str | Path] = ["cmake", "-S", SOURCE, "-B", folder, "-G", "Ninja"]
    configure += [f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}", "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror"]
    build: list[str | Path] = ["cmake", "--build", folder]
    for command in (configure, build):
        found = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        if "CUDA cannot be found" in found.stdout:
            pytest.skip("this torch is for CUDA, and its C++ library is not found without the CUDA toolkit")
        assert found.returncode == 0, found.stdout
    return folder / "score"


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    model, good, bad = zoo.sometimes_closed()
    detector = GaiaZ(model, engine="hooks")
    detector.calibrate(detector(good), id_tpr=0.5)
    assert detector.threshold is not None
    detector.threshold *= 1 + 1e-4  # not a score itself, which rounding would put on either side
    path = detector.export(tmp_path_factory.mktemp("package") / "model.pt2", good[:3])
    return Package(path, torch.cat([good, bad]), detector)


def run(program: Path, *arguments: Path | str, **environment: str) -> subprocess.CompletedProcess[str]:
    # Nothing is inherited: no PATH to find Python by, and no variable that names it.
    environment["OMP_WAIT_POLICY"] = "PASSIVE"
    return subprocess.run([program, *arguments], env=environment, capture_output=True, text=True, check=False)


def images_file(folder: Path, images: Tensor) -> Path:
    path = folder / "images.f32"
    images.numpy().tofile(path)
    return path


def with_metadata(package: Path, folder: Path, **changes: str | None) -> Path:
    """A copy of a package in which entries of the metadata are others, or missing."""
    path = folder / "changed.pt2"
    with zipfile.ZipFile(package) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith("_metadata.json"):
                whole = json.loads(data)
                entries = {**json.loads(whole["gaia_fast"]), **changes}
                whole["gaia_fast"] = json.dumps({key: value for key, value in entries.items() if value is not None})
                data = json.dumps(whole).encode()
            target.writestr(name, data)
    return path


def test_it_scores_as_the_detector_does(program: Path, package: Package, tmp_path: Path) -> None:
    detector = package.detector
    found = run(program, package.path, images_file(tmp_path, package.images))
    assert (found.returncode, found.stderr) == (0, "")
    rows = list(csv.DictReader(found.stdout.splitlines()))
    assert [row["image"] for row in rows] == [str(i) for i in range(len(package.images))]
    logits, score = detector.score(package.images)
    top = logits.max(1)
    assert [int(row["predicted"]) for row in rows] == top.indices.tolist()
    assert torch.allclose(torch.tensor([float(row["logit"]) for row in rows]), top.values, rtol=1e-4, atol=1e-5)
    own = torch.tensor([float(row["score"]) for row in rows])
    assert torch.allclose(own[:-2], score[:-2], rtol=1e-5)
    assert bool(own[-2:].isnan().all())
    decisions = [str(each).lower() for each in detector.is_ood(package.images[:-2]).tolist()]
    assert set(decisions) == {"true", "false"}
    assert [row["is_ood"] for row in rows] == [*decisions, "", ""]


def test_without_a_threshold_it_decides_nothing(program: Path, package: Package, tmp_path: Path) -> None:
    undecided = with_metadata(package.path, tmp_path, threshold="")
    found = run(program, undecided, images_file(tmp_path, package.images[:1]))
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.splitlines()[0] == "image,predicted,logit,score"
    assert found.stdout.splitlines()[1].count(",") == 3


def test_no_library_of_pythons_is_loaded(program: Path, package: Package, tmp_path: Path) -> None:
    found = run(program, package.path, images_file(tmp_path, package.images), LD_DEBUG="files")
    assert found.returncode == 0
    for library in ("libtorch_cpu.so", "libc10.so", ".wrapper.so"):  # the last is the package's own
        assert library in found.stderr
    for library in ("libpython", "libtorch_python"):
        assert library not in found.stderr


@pytest.mark.parametrize(("numbers", "size"), [(0, 0), (192 + 1, 772), (191, 764)])
def test_images_that_do_not_fit(program: Path, package: Package, tmp_path: Path, numbers: int, size: int) -> None:
    found = run(program, package.path, images_file(tmp_path, torch.zeros(numbers)))
    assert (found.returncode, found.stdout) == (1, "")
    assert f"takes float32 images of [null, 3, 8, 8], of 768 bytes each (null: one image or more), and {tmp_path}" in (
        found.stderr
    )
    assert f"has {size} bytes" in found.stderr


def test_a_number_of_images_that_the_model_fixes(program: Path, package: Package, tmp_path: Path) -> None:
    fixed = with_metadata(package.path, tmp_path, images="[2, 3, 8, 8]")
    assert run(program, fixed, images_file(tmp_path, package.images[:2])).returncode == 0
    found = run(program, fixed, images_file(tmp_path, package.images[:3]))
    assert (found.returncode, found.stdout) == (1, "")
    assert "takes float32 images of [2, 3, 8, 8]" in found.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "bfloat16"}, "is not for float32 images on the CPU"),
        ({"dtype": None}, "has no 'dtype': write it anew with det.export"),
        ({"images": "[null, 3]"}, "takes images of [null, 3], which are not (N, C, H, W)"),
    ],
)
def test_packages_that_do_not_fit(
    program: Path, package: Package, tmp_path: Path, changes: dict[str, str | None], message: str
) -> None:
    other = with_metadata(package.path, tmp_path, **changes)
    found = run(program, other, images_file(tmp_path, package.images))
    assert (found.returncode, found.stdout) == (1, "")
    assert f"score: {other}: {message}" in found.stderr


def test_files_that_are_none(program: Path, package: Package, tmp_path: Path) -> None:
    images = images_file(tmp_path, package.images)
    absent = tmp_path / "absent"
    for arguments, status, message in [
        ((), 2, "usage: score model.pt2 images.f32"),
        ((absent, images), 1, f"score: {absent}: is no file"),
        ((images, images), 1, f"score: {images}: "),
        ((package.path, absent), 1, f"No such file or directory [{absent}]"),
        ((package.path, tmp_path), 1, f"[{tmp_path}]"),
    ]:
        found = run(program, *arguments)
        assert (found.returncode, found.stdout) == (status, "")
        assert message in found.stderr
        assert len(found.stderr.splitlines()) == 1
