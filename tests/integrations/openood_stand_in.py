"""The part of OpenOOD that a postprocessor meets, written anew from what it does: its package cannot be installed from
an index. The base class, and the calls that its evaluators make, in their order."""

from collections.abc import Iterable
from itertools import product
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Loader = Iterable[dict[str, Tensor]]


class BasePostprocessor:
    """By default the maximum softmax probability."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def setup(self, net: nn.Module, id_loader_dict: Any, ood_loader_dict: Any) -> None:
        pass

    @torch.no_grad()
    def postprocess(self, net: nn.Module, data: Tensor) -> tuple[Tensor, Tensor]:
        conf, pred = torch.softmax(net(data), dim=1).max(dim=1)
        return pred, conf

    def inference(self, net: nn.Module, data_loader: Loader, progress: bool = True) -> tuple[np.ndarray, ...]:
        rows = []
        for batch in data_loader:
            data, label = batch["data"].cuda(), batch["label"].cuda()
            pred, conf = self.postprocess(net, data)
            rows.append((pred.cpu(), conf.cpu(), label.cpu()))
        preds, confs, labels = (torch.cat(column).numpy() for column in zip(*rows, strict=True))
        return preds.astype(int), confs, labels.astype(int)


def modules() -> dict[str, ModuleType]:
    """Returns what `sys.modules` holds once the stand-in was imported under OpenOOD's name."""
    package, postprocessors = ModuleType("openood"), ModuleType("openood.postprocessors")
    package.__path__ = []
    package.postprocessors = postprocessors  # type: ignore[attr-defined]
    postprocessors.BasePostprocessor = BasePostprocessor  # type: ignore[attr-defined]
    return {"openood": package, "openood.postprocessors": postprocessors}


def search(postprocessor: Any, net: nn.Module, id_val: Loader, ood_val: Loader) -> list[list[Any]]:
    """What the evaluators do in APS mode, but for the choice, which is the last combination; returns all of them."""
    combinations = [list(each) for each in product(*postprocessor.args_dict.values())]
    for combination in combinations:
        postprocessor.set_hyperparam(combination)
        postprocessor.inference(net, id_val)
        postprocessor.inference(net, ood_val)
    postprocessor.hyperparam_search_done = True
    return combinations
