"""The demo's network: a residual network small enough to ship, trained on scikit-learn's 8x8 digits."""

from importlib.resources import as_file, files

from gaia_fast.models.resnet import ResNet
from gaia_fast.models.weights import load_weights


def digits_resnet(num_classes: int = 10, *, pretrained: bool = False) -> ResNet:
    """Residual network of four stages with one block each (8, 16, 32 and 64 channels), for 32x32 RGB images.

    Args:
        num_classes: number of logits.
        pretrained: load the weights that ship with the package (`tools/train_digits.py`) and switch to eval mode.
            They want images prepared by the preset `digits`.

    Returns:
        The network; in train mode, as any new module, unless pretrained.

    Raises:
        WeightsError: pretrained with `num_classes` other than 10, or the shipped file is missing.
    """
    model = ResNet((1, 1, 1, 1), num_classes, width=8)
    if pretrained:
        with as_file(files("gaia_fast.models") / "digits_resnet.safetensors") as path:
            load_weights(model, path)
        model.eval()
    return model
