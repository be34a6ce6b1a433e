import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gaia_fast.data import PRESETS
from gaia_fast.errors import DataError
from gaia_fast.reproduction.image_sets import IMAGE_SETS, LARGE_OOD_SETS, SMALL_OOD_SETS

import torchvision_schemas  # noqa: F401  (before torchvision)

CIFAR = PRESETS["cifar10"]


def test_a_set_that_is_not_there_says_where_it_is_expected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"svhn \(SVHN\) is not there: .*svhn\.npz or .*test_32x32\.mat or .*svhn"):
        SMALL_OOD_SETS["svhn"].load(tmp_path, CIFAR)


def test_the_first_images_of_class_folders_are_of_all_classes(tmp_path: Path) -> None:
    for name in ("n1", "n2", "n3"):
        for index in range(2):
            path = tmp_path / "imagenet" / "val" / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (300, 300)).save(path)
    source = IMAGE_SETS["imagenet"].load(tmp_path, PRESETS["imagenet"])
    assert source.labels is not None
    assert source.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert source.names[:3] == ["n1/0.png", "n2/0.png", "n3/0.png"]


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    (tmp_path / "SUN" / "images").mkdir(parents=True)
    Image.new("RGB", (300, 300)).save(tmp_path / "SUN" / "images" / "a.png")
    assert len(LARGE_OOD_SETS["sun"].load(tmp_path, PRESETS["imagenet"])) == 1


def test_torchvisions_files_of_svhn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scipy_io = pytest.importorskip("scipy.io")
    datasets = pytest.importorskip("torchvision.datasets", reason="torchvision is not installed")
    pictures = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 4), dtype=np.uint8)
    scipy_io.savemat(tmp_path / "test_32x32.mat", {"X": pictures, "y": np.array([[1], [10], [3], [2]])})
    monkeypatch.setattr(datasets.SVHN, "_check_integrity", lambda self: True)  # the real file's checksum
    source = SMALL_OOD_SETS["svhn"].load(tmp_path, CIFAR)
    assert source.labels is not None
    assert source.labels.tolist() == [1, 0, 3, 2]
    expected = torch.from_numpy(pictures[..., 1]).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(each)[:, None, None] for each in (CIFAR.mean, CIFAR.std))
    torch.testing.assert_close(source[1], (expected - mean) / std)


def test_torchvisions_files_of_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("torchvision.datasets", reason="torchvision is not installed")
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    flat = np.random.default_rng(0).integers(0, 256, (3, 3072), dtype=np.uint8)
    (folder / "test_batch").write_bytes(pickle.dumps({"data": flat, "labels": [4, 5, 6]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    source = IMAGE_SETS["cifar10"].load(tmp_path, PRESETS["cifar10"])
    assert source.labels is not None
    assert source.labels.tolist() == [4, 5, 6]
    assert source[0].shape == (3, 32, 32)


def test_damaged_files_of_torchvisions(tmp_path: Path) -> None:
    pytest.importorskip("torchvision.datasets", reason="torchvision is not installed")
    (tmp_path / "test_32x32.mat").write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot be read as torchvision's SVHN"):
        SMALL_OOD_SETS["svhn"].load(tmp_path, CIFAR)
