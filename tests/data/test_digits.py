import numpy as np
import pytest
import torch

from gaia_fast.data.digits import (
    OOD_PICTURES,
    held_out_digits,
    held_out_pictures,
    ood_set,
    prepare,
    training_digits,
    training_pictures,
)


def test_split_is_a_stratified_partition_of_all_digits() -> None:
    from sklearn.datasets import load_digits

    (train, train_labels), (held, held_labels) = training_pictures(), held_out_pictures()
    assert train.shape == (1257, 8, 8)
    assert held.shape == (540, 8, 8)
    everything = sorted(picture.tobytes() for picture in np.concatenate([train, held]))
    digits = load_digits()
    assert everything == sorted(np.round(p * 255 / 16).astype(np.uint8).tobytes() for p in digits.images)
    for digit in range(10):
        share = (held_labels == digit).sum() / (digits.target == digit).sum()
        assert share == pytest.approx(0.3, abs=0.01)
    assert train_labels.shape == (1257,)


def test_no_held_out_picture_is_also_a_training_picture() -> None:
    train = {picture.tobytes() for picture in training_pictures()[0]}
    assert not any(picture.tobytes() in train for picture in held_out_pictures()[0])


def test_the_split_is_fixed() -> None:
    # The shipped weights were trained on one side of it, so it must never move.
    pictures, labels = held_out_pictures()
    assert labels[:12].tolist() == [1, 4, 5, 6, 9, 1, 2, 2, 2, 0, 7, 5]
    assert pictures[0].sum() == 5194


def test_network_input() -> None:
    for images, labels in (held_out_digits(), training_digits()):
        assert images.shape == (len(labels), 3, 32, 32)
        assert images.dtype == torch.float32
        assert labels.dtype == torch.int64
        assert images.min() == -1
        assert images.max() == 1
        assert torch.equal(images[:, 0], images[:, 2])
    assert prepare(np.zeros((0, 8, 8), np.uint8)).shape == (0, 3, 32, 32)


@pytest.mark.parametrize("name", OOD_PICTURES)
def test_ood_sets_are_deterministic_and_not_constant(name: str) -> None:
    pictures = OOD_PICTURES[name]()
    assert pictures.dtype == np.uint8
    assert pictures.shape[1:] == (8, 8)
    assert len(pictures) >= 300
    assert np.array_equal(pictures, OOD_PICTURES[name]())
    assert len({picture.tobytes() for picture in pictures}) > 0.9 * len(pictures)
    images = ood_set(name)
    assert images.shape == (len(pictures), 3, 32, 32)
    assert torch.equal(images[:5], prepare(pictures[:5]))


def test_no_ood_picture_is_a_digit_of_the_data_set() -> None:
    digits = {p.tobytes() for p in np.concatenate([training_pictures()[0], held_out_pictures()[0]])}
    for name, builder in OOD_PICTURES.items():
        assert not any(picture.tobytes() in digits for picture in builder()), name


def test_letters_carry_as_much_ink_as_digits() -> None:
    letters, digits = OOD_PICTURES["letters"](), held_out_pictures()[0]
    assert 0.6 < letters.mean() / digits.mean() < 1.6
