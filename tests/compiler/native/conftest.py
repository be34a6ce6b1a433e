from collections.abc import Iterator

import pytest
import torch

from cases import TARGETS, Target


@pytest.fixture(params=[each for each in TARGETS if each.backend == "cpu"], ids=str)
def level(request: pytest.FixtureRequest) -> Iterator[Target]:
    with request.param.active() as each:
        yield each


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)
