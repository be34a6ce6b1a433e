"""Replicas on a Ray of their own: what they score, and what becomes of images whose replica dies."""

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from torch import Tensor, nn

from gaia_fast import GaiaZ
from gaia_fast.data.digits import held_out_digits
from gaia_fast.errors import BackendError
from gaia_fast.models import digits_resnet
from gaia_fast.serving import ray_serve
from gaia_fast.serving.errors import ReplicaError
from gaia_fast.serving.ray_serve import Deployment, Replicas, deployed
from gaia_fast.serving.replica import ImageScores

IMAGES = held_out_digits()[0][:40].numpy()
DEADLY = 77.0  # of a pixel


class Fragile(nn.Module):
    """The digits' network, whose process ends at an image that has one pixel too large."""

    def __init__(self) -> None:
        super().__init__()
        self.network = digits_resnet(pretrained=True)

    def forward(self, x: Tensor) -> Tensor:
        if (x == DEADLY).any():
            os.kill(os.getpid(), signal.SIGKILL)
        found: Tensor = self.network(x)
        return found


@pytest.fixture(scope="module")
def replicas() -> Iterator[Replicas]:
    detector = GaiaZ(Fragile().eval(), engine="hooks")
    with deployed(detector, IMAGES[:2], Deployment(replicas=2, code=Path(__file__).parent)) as made:
        yield made
    assert not processes()


def processes() -> list[psutil.Process]:
    """The replicas that this process started."""
    found = psutil.Process().children(recursive=True)
    return [each for each in found if "ServeReplica" in " ".join(each.cmdline())]


def ask(made: Replicas, *batches: Any) -> list[Any]:
    async def body() -> list[Any]:
        return await asyncio.gather(*(made.score(batch) for batch in batches))

    return asyncio.run(asyncio.wait_for(body(), 120))


def expected() -> np.ndarray:
    return GaiaZ(digits_resnet(pretrained=True), engine="hooks").predict(torch.from_numpy(IMAGES)).double().numpy()


def test_batches_are_scored_as_the_detector_scores_them(replicas: Replicas) -> None:
    found = ask(replicas, *(IMAGES[k : k + 5] for k in range(0, 40, 5)))
    scores = [each.scores["gaia-z"] for batch in found for each in batch]
    assert scores == pytest.approx(expected().tolist(), rel=1e-5)
    assert asyncio.run(replicas.running()) == 2


def test_a_replica_that_is_killed_loses_nothing(replicas: Replicas) -> None:
    async def body() -> list[Any]:
        asked = [asyncio.create_task(replicas.score(list(IMAGES[k : k + 2]))) for k in range(0, 40, 2)]
        await asyncio.sleep(0.01)
        processes()[0].send_signal(signal.SIGKILL)
        return await asyncio.gather(*asked)

    found = asyncio.run(asyncio.wait_for(body(), 120))
    scores = [each.scores["gaia-z"] for batch in found for each in batch]
    assert scores == pytest.approx(expected().tolist(), rel=1e-5)


def test_an_image_that_kills_replicas_takes_no_other_with_it(replicas: Replicas) -> None:
    images = IMAGES[:4].copy()
    images[2, 0, 0, 0] = DEADLY
    (found,) = ask(replicas, images)
    assert [type(each) for each in found] == [ImageScores, ImageScores, ReplicaError, ImageScores]
    assert "died over this image" in str(found[2])
    assert found[2].status == 500
    assert [found[k].scores["gaia-z"] for k in (0, 1, 3)] == pytest.approx(expected()[[0, 1, 3]].tolist(), rel=1e-5)


def test_replicas_that_cannot_be_made(replicas: Replicas) -> None:
    found = ask(replicas, np.full_like(IMAGES[:1], np.nan))  # a detector's own refusal
    assert found[0][0].status == 422
    elsewhere = Deployment(address="127.0.0.1:1")
    with (
        pytest.raises(BackendError, match="Ray at 127.0.0.1:1 cannot be reached"),
        deployed(GaiaZ(digits_resnet(pretrained=True)), IMAGES[:1], elsewhere),
    ):
        pass


def test_replicas_that_there_is_no_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_serve, "_state", lambda name: (1, ""))
    asked = Deployment(replicas=3, threads=64, patience=0.1)
    with pytest.raises(BackendError, match=r"after 0.1 seconds 1 of 3 replicas are ready, each of 64 CPUs; ask for"):
        ray_serve._within(asked, "name", lambda: threading.Event().wait(1))
    assert ray_serve._within(asked, "name", lambda: "a handle") == "a handle"
