"""torchvision's ResNet-50, in a module that replicas can import beside a torch without torchvision's kernels."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests"))
import torchvision_schemas  # noqa: F401, I001  (before torchvision)

from torchvision.models.resnet import Bottleneck, ResNet


class ServedResNet50(ResNet):  # type: ignore[misc]
    """As `torchvision.models.resnet50`; its weights are whatever the seed makes."""

    def __init__(self) -> None:
        super().__init__(Bottleneck, [3, 4, 6, 3])
