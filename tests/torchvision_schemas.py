"""Lets torchvision, timm and pytorch-ood import beside a CPU build of torch.

PyPI's torchvision is built for CUDA torch; without its compiled operators the import fails on two missing schemas.
Import this module before torchvision. For tests and benchmarks only: nothing that uses those two operators works.
"""

import torch

try:
    import torchvision  # noqa: F401
except ModuleNotFoundError:
    pass  # whoever needs it says so
except RuntimeError:
    _library = torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        _library.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
