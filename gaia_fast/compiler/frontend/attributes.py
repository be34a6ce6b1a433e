"""The attributes of a model's modules, which PyTorch's exporter replaces: it leaves equal containers in their place."""

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.utils import _pytree as pytree


@contextlib.contextmanager
def put_back(model: nn.Module) -> Iterator[None]:
    """Puts modules' own objects back where others, of the same structure and with the very same leaves, are found.

    Else a guard would compare what these hold at every call, and for what it cannot compare take the model for another
    one, each time; and two modules that shared a list would share none any more. What others write meanwhile stays.
    """
    before = [(vars(module), dict(vars(module))) for module in model.modules()]
    try:
        yield
    finally:
        for attributes, held in before:
            for name, value in held.items():
                found = attributes.get(name, value)
                if found is not value and _is_rebuilt(value, found):
                    attributes[name] = value


def _is_rebuilt(value: Any, found: Any) -> bool:
    if type(value) is not type(found):
        return False
    try:
        leaves, structure = pytree.tree_flatten(value)
        others, other_structure = pytree.tree_flatten(found)
    except RecursionError:  # one that contains itself
        return False
    if len(leaves) == 1 and leaves[0] is value:  # no container
        return False
    same = len(leaves) == len(others) and all(one is other for one, other in zip(leaves, others, strict=True))
    return same and structure == other_structure
