from collections.abc import Callable

import pytest
import torch
from torch import nn

from gaia_fast import fingerprint

import zoo


def test_nothing_changed() -> None:
    model = zoo.build("vgg_like")
    modules = list(model.modules())
    for look in (fingerprint.structure, fingerprint.everything):
        before = look(modules)
        with torch.no_grad():
            model(zoo.images(2))
        assert look(modules) == before


CHANGES = {
    "training": lambda model: model.features[1].train(),
    "replaced": lambda model: setattr(model, "pool", nn.AvgPool2d(4)),
    "taken out": lambda model: setattr(model, "pool", None),
    "put in": lambda model: model.features.append(nn.ReLU()),
    "statistics lost": lambda model: setattr(model.features[1], "running_var", None),
}
WRITES = {
    "in place, no_grad": lambda model: torch.no_grad()(lambda: model.features[0].weight.mul_(2))(),
    "replaced": lambda model: setattr(model.features[0], "weight", nn.Parameter(torch.zeros(8, 3, 3, 3))),
    "buffer": lambda model: model.features[1].running_mean.add_(1),
    "moved": lambda model: model.double(),
    "loaded": lambda model: model.load_state_dict(zoo.build("vgg_like").state_dict()),
}


@pytest.mark.parametrize(
    ("look", "change"),
    [(look, each) for look in (fingerprint.structure, fingerprint.everything) for each in CHANGES.values()]
    + [(fingerprint.everything, each) for each in WRITES.values()],
    ids=[*CHANGES, *(f"{name}, everything" for name in CHANGES), *(f"weights {name}" for name in WRITES)],
)
def test_changes_are_seen(look: Callable, change: Callable) -> None:
    model = zoo.build("vgg_like")
    modules = list(model.modules())
    before = look(modules)
    change(model)
    assert look(modules) != before
