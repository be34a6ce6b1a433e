"""The image sets of the paper, where users have them: torchvision's layouts, folders of images, archives."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from gaia_fast import extras
from gaia_fast.data import ImageSource, Preset, load_images
from gaia_fast.data.images import load_class_folders
from gaia_fast.errors import DataError, first_line

Load = Callable[[Path, Preset], ImageSource]


@dataclass(frozen=True)
class Place:
    """Where a set may lie below the data folder.

    Attributes:
        path: relative to it.
        load: of what lies there, and the preset.
    """

    path: str
    load: Load = load_images


@dataclass(frozen=True)
class ImageSet:
    """A set of images.

    Attributes:
        name: as in results.
        title: what it is.
        places: where it may lie; the first one that exists is taken.
    """

    name: str
    title: str
    places: tuple[Place, ...]

    def load(self, data: Path, preset: Preset) -> ImageSource:
        """The images.

        Raises:
            DataError: it lies in none of its places, or what is there cannot be read.
        """
        for place in self.places:
            if (data / place.path).exists():
                return spread(place.load(data / place.path, preset))
        expected = " or ".join(str(data / place.path) for place in self.places)
        raise DataError(f"{self.name} ({self.title}) is not there: {expected} is expected")


def spread(source: ImageSource) -> ImageSource:
    """The images with those of different folders in turn, so that the first ones are of all: of all classes, for one.

    Example:
        >>> from gaia_fast.data import PRESETS
        >>> pictures = np.zeros((3, 4, 4, 3), dtype=np.uint8)
        >>> spread(ImageSource(["a/1", "a/2", "b/1"], pictures, PRESETS["none"])).names
        ['a/1', 'b/1', 'a/2']
    """
    seen: Counter[str] = Counter()
    places = []
    for index, name in enumerate(source.names):
        folder = name.rpartition("/")[0]
        places.append((seen[folder], index))
        seen[folder] += 1
    return source if len(seen) <= 1 else source.take([index for _, index in sorted(places)])


def _torchvision(dataset: str, **options: object) -> Load:
    """By torchvision's class of that name, which knows its files, from the folder that they lie in."""

    def load(path: Path, preset: Preset) -> ImageSource:
        datasets = extras.load("torchvision.datasets", "torchvision", str(path), DataError)
        try:
            found = getattr(datasets, dataset)(str(path.parent), **options)
        # torchvision's own checks, unpicklers and readers each raise in their own way.
        except Exception as error:
            raise DataError(f"{path} cannot be read as torchvision's {dataset}: {first_line(error)}") from error
        pictures = np.asarray(found.data)
        if pictures.shape[1] == 3:  # SVHN has channels first
            pictures = np.ascontiguousarray(pictures.transpose(0, 2, 3, 1))
        labels = torch.as_tensor(np.asarray(getattr(found, "targets", None) or found.labels), dtype=torch.int64)
        return ImageSource([str(index) for index in range(len(pictures))], pictures, preset, labels)

    return load


def _set(name: str, title: str, *places: Place | str) -> ImageSet:
    return ImageSet(name, title, tuple(Place(each) if isinstance(each, str) else each for each in places))


IMAGE_SETS: dict[str, ImageSet] = {
    each.name: each
    for each in (
        _set(
            "cifar10",
            "CIFAR-10, test images",
            "cifar10_test.npz",
            Place("cifar-10-batches-py", _torchvision("CIFAR10", train=False)),
        ),
        _set(
            "cifar10_train",
            "CIFAR-10, training images",
            "cifar10_train.npz",
            "cifar10_train_jpeg.npz",
            Place("cifar-10-batches-py", _torchvision("CIFAR10", train=True)),
        ),
        _set(
            "cifar100",
            "CIFAR-100, test images",
            "cifar100_test.npz",
            Place("cifar-100-python", _torchvision("CIFAR100", train=False)),
        ),
        _set(
            "cifar100_train",
            "CIFAR-100, training images",
            "cifar100_train.npz",
            "cifar100_train_jpeg.npz",
            Place("cifar-100-python", _torchvision("CIFAR100", train=True)),
        ),
        _set(
            "imagenet",
            "ImageNet-1K, validation images",
            Place("imagenet/val", load_class_folders),
            "imagenet_val.npz",
            "imagenet_sample_jpeg.npz",
        ),
        _set("imagenet_train", "ImageNet-1K, training images", Place("imagenet/train", load_class_folders)),
    )
}

# As the networks of CIFAR see them: 32x32 pixels cut from the centre.
SMALL_OOD_SETS: dict[str, ImageSet] = {
    each.name: each
    for each in (
        _set("svhn", "SVHN", "svhn.npz", Place("test_32x32.mat", _torchvision("SVHN", split="test")), "svhn"),
        _set(
            "tinyimagenet",
            "TinyImageNet",
            "tinyimagenet_crop.npz",
            "tiny-imagenet-200/test",
            "Imagenet/test",
            "Imagenet",
        ),
        _set("lsun", "LSUN", "lsun.npz", "lsun_crop.npz", "LSUN/test", "LSUN"),
        _set("places", "Places365", "places_crop.npz", "places365_standard/val", "places365", "Places"),
        _set("textures", "Describable Textures", "textures_crop.npz", "dtd/images", "textures"),
    )
}
# At their own size.
LARGE_OOD_SETS: dict[str, ImageSet] = {
    each.name: each
    for each in (
        _set("inaturalist", "iNaturalist", "inaturalist_full_jpeg.npz", "iNaturalist/images", "iNaturalist"),
        _set("sun", "SUN", "sun_full_jpeg.npz", "SUN/images", "SUN"),
        _set("places", "Places365", "places_full_jpeg.npz", "Places/images", "Places"),
        _set("textures", "Describable Textures", "textures_full_jpeg.npz", "dtd/images", "textures"),
    )
}
# Not the paper's: shown where they are there.
LARGE_FURTHER_SETS: dict[str, ImageSet] = {
    "plants": _set("plants", "flowers, in the place of iNaturalist", "plants_full_jpeg.npz")
}
